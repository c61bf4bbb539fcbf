"""pykvm.machine.scripted: a vCPU without KVM, which refuses whatever KVM would never do."""

from __future__ import annotations

import pytest

from pykvm.errors import ConfigurationError, UnansweredReadError
from pykvm.kvm import (
    Debug,
    Exit,
    Hlt,
    Hypercall,
    InternalError,
    Intr,
    IoapicEoi,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Rdmsr,
    ReadExit,
    Shutdown,
    SystemEvent,
    SystemEventType,
    Wrmsr,
)
from pykvm.machine.scripted import PIO_BUFFER, ScriptedVcpu, answer_size, check_exit
from pykvm.units import Gpa

IN = IoIn(0x60, 1, 1)
OUT = IoOut(0x80, 1, 1, b"\x01")
ARGUMENTS = (0, 0, 0, 0, 0, 0)


# ---- the exits ----


def test_the_exits_come_in_order_and_then_the_cpu_halts_for_good() -> None:
    vcpu = ScriptedVcpu([OUT, Shutdown()])
    assert [vcpu.run() for _ in range(4)] == [OUT, Shutdown(), Hlt(), Hlt()]
    assert vcpu.position == 2
    assert vcpu.last == Shutdown()


def test_more_exits_can_be_added() -> None:
    vcpu = ScriptedVcpu()
    assert vcpu.last is None
    assert vcpu.run() == Hlt()
    vcpu.extend([OUT])
    assert vcpu.run() == OUT


def test_a_kick_comes_before_the_next_exit_once() -> None:
    vcpu = ScriptedVcpu([OUT])
    vcpu.kick()
    assert [vcpu.run(), vcpu.run()] == [Intr(), OUT]


def test_with_interrupts_on_the_end_of_the_script_still_is_the_end() -> None:
    vcpu = ScriptedVcpu([Hlt(), OUT], interruptible=True)
    assert vcpu.ready_for_interrupt_injection
    vcpu.run()
    assert vcpu.if_flag  # an interrupt can wake it
    vcpu.run()
    assert not vcpu.if_flag  # but nothing is left to do


def test_an_exits_time_costs_nothing() -> None:
    vcpu = ScriptedVcpu([OUT])
    vcpu.start_ticks(1, 1)
    vcpu.stop_ticks()
    vcpu.nmi()
    assert vcpu.nmis == 1
    assert vcpu.run() == OUT


def test_interrupts_are_kept_and_a_vector_beyond_a_byte_is_refused() -> None:
    vcpu = ScriptedVcpu()
    vcpu.interrupt(0x20)
    assert vcpu.interrupts == [0x20]
    with pytest.raises(ConfigurationError, match="no vector 256, only 0 to 255"):
        vcpu.interrupt(256)


# ---- the answers ----


@pytest.mark.parametrize(
    ("exit", "size"),
    [
        (IoIn(0x60, 4, 3), 12),
        (MmioRead(Gpa(0x1000), 5), 5),
        (Rdmsr(0x10, 2), 8),
        (Hypercall(12, ARGUMENTS, 1), 8),
    ],
    ids=str,
)
def test_a_read_takes_an_answer_of_its_size_and_no_other(exit: ReadExit, size: int) -> None:
    assert answer_size(exit) == size
    vcpu = ScriptedVcpu([exit])
    vcpu.run()
    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(UnansweredReadError, match=f"wants {size} bytes, not {wrong}"):
            vcpu.complete(exit, bytes(wrong))
    vcpu.complete(exit, b"\xab" * size)
    assert vcpu.replies == [b"\xab" * size]
    assert vcpu.run() == Hlt()


def test_a_read_is_answered_once() -> None:
    vcpu = ScriptedVcpu([IN])
    vcpu.run()
    vcpu.complete(IN, b"\x01")
    with pytest.raises(UnansweredReadError, match="it has one already"):
        vcpu.complete(IN, b"\x02")
    assert vcpu.replies == [b"\x01"]


def test_what_is_no_read_has_no_answer() -> None:
    vcpu = ScriptedVcpu([OUT])
    vcpu.run()
    with pytest.raises(UnansweredReadError, match="is no read"):
        vcpu.complete(OUT, b"\x01")  # type: ignore[arg-type]


def test_only_the_last_exit_can_be_answered() -> None:
    vcpu = ScriptedVcpu([IN, IoIn(0x61, 1, 1)])
    with pytest.raises(UnansweredReadError, match="not the last exit"):
        vcpu.complete(IN, b"\x01")
    vcpu.run()
    vcpu.complete(IN, b"\x01")
    vcpu.run()
    with pytest.raises(UnansweredReadError, match="not the last exit"):
        vcpu.complete(IN, b"\x01")


def test_nothing_goes_on_before_a_read_is_answered() -> None:
    vcpu = ScriptedVcpu([IN, OUT])
    vcpu.run()
    with pytest.raises(UnansweredReadError, match="was not answered"):
        vcpu.run()
    with pytest.raises(UnansweredReadError, match="was not answered"):
        vcpu.complete_pending()
    vcpu.complete(IN, b"\x01")
    assert vcpu.complete_pending() is None
    assert vcpu.run() == OUT


@pytest.mark.parametrize("exit", [Rdmsr(0x10, 2), Wrmsr(0x10, 5, 2)], ids=str)
def test_an_msr_access_can_be_refused_once(exit: Rdmsr | Wrmsr) -> None:
    vcpu = ScriptedVcpu([exit])
    vcpu.run()
    vcpu.refuse(exit)
    assert vcpu.replies == [None]
    with pytest.raises(UnansweredReadError):
        vcpu.refuse(exit)
    assert vcpu.run() == Hlt()


def test_an_abandoned_read_wants_nothing_any_more() -> None:
    vcpu = ScriptedVcpu([IN])
    vcpu.run()
    vcpu.abandon()
    assert vcpu.run() == Hlt()


# ---- what KVM would never report ----


@pytest.mark.parametrize(
    ("exit", "problem"),
    [
        (IoOut(0x300, 3, 1, b"abc"), "1, 2 or 4 bytes wide, not 3"),
        (IoIn(0x300, 8, 1), "1, 2 or 4 bytes wide, not 8"),
        (IoIn(0x10000, 1, 1), "no port 0x10000, only 0 to 0xffff"),
        (IoIn(-1, 1, 1), "no number"),
        (IoIn(0x300, 1, 0), "not of 0"),
        (IoIn(0x300, 4, PIO_BUFFER // 4 + 1), "exits of 1 to 1024 items of this size, not of 1025"),
        (IoOut(0x300, 2, 2, b"abc"), "size \\* count is 4 bytes, and data has 3"),
        (MmioRead(Gpa(0x1000), 9), "1 to 8 bytes, not 9"),
        (MmioRead(Gpa(0x1000), 0), "1 to 8 bytes, not 0"),
        (MmioWrite(Gpa(0x1000), b""), "1 to 8 bytes, not 0"),
        (MmioWrite(Gpa(0x1000), bytes(9)), "1 to 8 bytes, not 9"),
        (MmioRead(Gpa(1 << 52), 4), "those have 52 bits"),
        (Rdmsr(1 << 32, 2), "an MSR's number has 32 bits"),
        (Wrmsr(0x10, 1 << 64, 2), "no number of up to 64 bits"),
        (Hypercall(12, (1, 2), 1), "6 arguments, not 2"),
        (Hypercall(12, (1, 2, 3, 4, 5, -6), 1), "no number"),
        (IoapicEoi(256), "no vector 256"),
        (Debug(1, 1 << 64, 0, 0), "no number of up to 64 bits"),
        (IoOut(0x300, 1, 1, "H"), "not of type bytes"),  # type: ignore[arg-type]
        (IoIn(True, 1, 1), "not of type int"),
        (Hlt, "is no exit of a vCPU"),
        (None, "is no exit of a vCPU"),
    ],
    ids=str,
)
def test_an_exit_that_kvm_would_never_make_is_refused(exit: Exit, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"exit 1: .*{problem}"):
        ScriptedVcpu([OUT, exit])


@pytest.mark.parametrize(
    "exit",
    [
        IoIn(0xFFFF, 4, PIO_BUFFER // 4),
        IoOut(0, 1, PIO_BUFFER, bytes(PIO_BUFFER)),
        MmioRead(Gpa((1 << 52) - 1), 8),
        MmioWrite(Gpa(0), b"\x01\x02\x03"),
        Wrmsr(0xFFFF_FFFF, (1 << 64) - 1, 2),
        SystemEvent(SystemEventType.SHUTDOWN, (0,)),
        InternalError(1, (1, 2, 3), 1, b"\x0f\x0b"),
    ],
    ids=str,
)
def test_an_exit_at_the_limit_of_what_kvm_makes_is_taken(exit: Exit) -> None:
    check_exit(exit)
