"""KVM_RUN and the ways out of it: kicks, ticks, signals, and what another thread may do meanwhile."""

from __future__ import annotations

import contextlib
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ClosedError, ConfigurationError, InUseError, KvmError
from pykvm.kvm import Hlt, Intr, IoIn, IoOut, Rdmsr, Regs, Vcpu
from pykvm.units import Gva

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

DATA = 0x10000  # where DS points: see conftest.py
SPIN = bytes.fromhex("eb fe")  # jmp .
COUNT = bytes.fromhex("66 ff 06 00 00 eb f9")  # again: incl 0; jmp again


def counter(guest: RealModeGuest) -> int:
    return int(struct.unpack("<I", guest.read(DATA, 4))[0])


def wait_until_inside(guest: RealModeGuest) -> None:
    """Return when the guest, which executes COUNT on another thread, is seen to be running."""
    before = counter(guest)
    while counter(guest) == before:
        time.sleep(0)


@contextlib.contextmanager
def counting_on_a_thread(guest: RealModeGuest) -> Iterator[None]:
    """Have another thread inside KVM_RUN while the block runs."""
    guest.load(COUNT)
    exits: list[object] = []
    thread = threading.Thread(target=lambda: exits.append(guest.vcpu.run()))
    thread.start()
    try:
        wait_until_inside(guest)
        yield
    finally:
        guest.vcpu.kick()
        thread.join()
    assert exits == [Intr()]


# ---- kicks ----


def test_a_kick_before_run_makes_it_return_at_once(bare_guest: RealModeGuest) -> None:
    bare_guest.load(SPIN)
    bare_guest.vcpu.kick()
    assert bare_guest.vcpu.run() == Intr()
    assert bare_guest.regs.rip == 0x8000


def test_a_kick_during_run_makes_it_return(bare_guest: RealModeGuest) -> None:
    with counting_on_a_thread(bare_guest):
        pass
    assert counter(bare_guest) > 0


def test_kicks_before_run_count_as_one(bare_guest: RealModeGuest) -> None:
    for _ in range(10):
        bare_guest.vcpu.kick()
    assert bare_guest.vcpu.run() == Intr()
    assert bare_guest.vcpu.run() == Hlt()


def test_a_kicked_guest_runs_on_where_it_was(bare_guest: RealModeGuest) -> None:
    with counting_on_a_thread(bare_guest):
        pass
    first = counter(bare_guest)
    bare_guest.vcpu.set_regs(bare_guest.regs)
    thread = threading.Thread(target=bare_guest.vcpu.run)
    thread.start()
    wait_until_inside(bare_guest)
    bare_guest.vcpu.kick()
    thread.join()
    assert counter(bare_guest) > first


def test_thousands_of_kicks_raced_with_a_looping_guest_lose_none(bare_guest: RealModeGuest) -> None:
    # Each kick waits for the run() that it ends: were one lost, both threads would wait for ever.
    bare_guest.load(SPIN)
    returned, done = threading.Event(), threading.Event()

    def kick() -> None:
        for _ in range(5000):
            returned.clear()
            bare_guest.vcpu.kick()
            returned.wait()
        done.set()
        bare_guest.vcpu.kick()

    thread = threading.Thread(target=kick)
    thread.start()
    while not done.is_set():
        assert bare_guest.vcpu.run() == Intr()
        returned.set()
    thread.join()


def test_kicks_raced_with_output_lose_no_byte(bare_guest: RealModeGuest) -> None:
    again = bytes.fromhex("ee fe c0 e2 fb f4")  # again: out %al, (%dx); inc %al; loop again; hlt
    bare_guest.load(again, rdx=0x3F8, rcx=5000)
    done = threading.Event()

    def kick() -> None:
        while not done.is_set():
            bare_guest.vcpu.kick()

    thread = threading.Thread(target=kick)
    thread.start()
    output = b""
    try:
        while (exit := bare_guest.vcpu.run()) != Hlt():
            if isinstance(exit, IoOut):
                output += exit.data
            else:
                assert exit == Intr()
    finally:
        done.set()
        thread.join()
    assert output == bytes(n & 0xFF for n in range(5000))


def test_kicks_raced_with_input_lose_no_byte_and_reach_the_next_run(bare_guest: RealModeGuest) -> None:
    # again: in (%dx), %al; stosb; loop again; hlt
    bare_guest.load(bytes.fromhex("ec aa e2 fc f4"), rdx=0x3F8, rcx=2000)
    data = bytes(n * 7 & 0xFF for n in range(2000))
    given = 0
    while (exit := bare_guest.vcpu.run()) != Hlt():
        if not isinstance(exit, IoIn):
            assert exit == Intr()
            continue
        bare_guest.vcpu.complete(exit, data[given : given + 1])
        bare_guest.vcpu.kick()
        given += 1
        assert bare_guest.vcpu.complete_pending() is None
        assert bare_guest.vcpu.run() == Intr(), "complete_pending() has not swallowed the kick"
    assert bare_guest.read(DATA, 2000) == data


def test_a_kick_does_not_hide_the_exit_that_comes_first(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("ee f4"), rdx=0x80)  # out %al, (%dx); hlt
    assert isinstance(bare_guest.vcpu.run(), IoOut)
    bare_guest.vcpu.kick()
    assert bare_guest.vcpu.run() == Intr()
    assert bare_guest.vcpu.complete_pending() is None
    assert bare_guest.vcpu.run() == Hlt()


# ---- ticks ----


def test_ticks_take_a_looping_guest_out_again_and_again(bare_guest: RealModeGuest) -> None:
    bare_guest.load(SPIN)
    bare_guest.vcpu.start_ticks(0.001, 0.001)
    assert [bare_guest.vcpu.run() for _ in range(20)] == [Intr()] * 20
    bare_guest.vcpu.stop_ticks()


def test_a_tick_that_comes_before_run_is_kept_for_it(bare_guest: RealModeGuest) -> None:
    bare_guest.load(SPIN)
    bare_guest.vcpu.start_ticks(0.000_001, 1000)
    time.sleep(0.05)
    assert bare_guest.vcpu.run() == Intr()
    bare_guest.vcpu.stop_ticks()


def test_ticks_can_be_stopped_twice_and_started_again(bare_guest: RealModeGuest) -> None:
    bare_guest.load(SPIN)
    bare_guest.vcpu.stop_ticks()
    for _ in range(3):
        bare_guest.vcpu.start_ticks(0.001, 0.001)
        assert bare_guest.vcpu.run() == Intr()
        bare_guest.vcpu.stop_ticks()
        bare_guest.vcpu.stop_ticks()


def test_a_vcpu_has_ticks_once(bare_guest: RealModeGuest) -> None:
    bare_guest.vcpu.start_ticks(10, 10)
    with pytest.raises(KvmError, match=r"timer_create\(vcpu=0\): EBUSY: this vCPU has ticks already"):
        bare_guest.vcpu.start_ticks(10, 10)
    bare_guest.vcpu.stop_ticks()


def test_a_vcpu_may_be_closed_with_its_ticks(bare_guest: RealModeGuest) -> None:
    bare_guest.vcpu.start_ticks(0.001, 0.001)
    bare_guest.vcpu.close()
    with bare_guest.vm.create_vcpu(1) as other:
        other.start_ticks(10, 10)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e30])
def test_a_time_between_ticks_that_is_none_is_refused(vcpu: Vcpu, seconds: float) -> None:
    for times in ((seconds, 1), (1, seconds)):
        with pytest.raises(ConfigurationError, match="a time between ticks is above 0"):
            vcpu.start_ticks(*times)


# ---- signals ----

CHILD = """
import mmap, sys, threading
from pykvm.kvm import Kvm, Regs
from pykvm.units import Gpa

ram = mmap.mmap(-1, 65536)
ram[0x1000:0x1006] = bytes.fromhex("ff 06 00 20 eb fa")  # again: incw 0x2000; jmp again

def say_when_inside():
    while not ram[0x2000]:
        pass
    print("inside the guest", flush=True)

with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
    vm.set_user_memory_region(0, Gpa(0), ram)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=0x1000))
    threading.Thread(target=say_when_inside, daemon=True).start()
    try:
        while True:
            vcpu.run()
    except KeyboardInterrupt:
        print("rip", vcpu.get_regs().rip in (0x1000, 0x1004))
"""


def test_one_sigint_reaches_python_from_a_guest_that_never_exits() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "inside the guest\n"
            child.send_signal(signal.SIGINT)
            assert child.stdout.read() == "rip True\n"
            assert child.wait() == 0
        finally:
            child.kill()


def test_a_python_signal_handler_may_kick(bare_guest: RealModeGuest) -> None:
    bare_guest.load(SPIN)
    calls: list[int] = []

    def handler(number: int, frame: object) -> None:
        calls.append(number)
        bare_guest.vcpu.kick()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        signal.raise_signal(signal.SIGUSR1)
        assert bare_guest.vcpu.run() == Intr()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls == [signal.SIGUSR1]


# ---- a vCPU belongs to one thread at a time ----

USES: dict[str, Callable[[RealModeGuest], object]] = {
    "run": lambda guest: guest.vcpu.run(),
    "complete": lambda guest: guest.vcpu.complete(IoIn(0, 1), b"\0"),
    "refuse": lambda guest: guest.vcpu.refuse(Rdmsr(0, 0)),
    "get_regs": lambda guest: guest.vcpu.get_regs(),
    "set_regs": lambda guest: guest.vcpu.set_regs(Regs()),
    "get_xsave": lambda guest: guest.vcpu.get_xsave(),
    "get_msrs": lambda guest: guest.vcpu.get_msrs([0x10]),
    "translate": lambda guest: guest.vcpu.translate(Gva(0)),
    "interrupt": lambda guest: guest.vcpu.interrupt(0x20),
    "nmi": lambda guest: guest.vcpu.nmi(),
    "enable_cap": lambda guest: guest.vcpu.enable_cap(0xFFFF),
    "start_ticks": lambda guest: guest.vcpu.start_ticks(1, 1),
    "close": lambda guest: guest.vcpu.close(),
    "close the VM": lambda guest: guest.vm.close(),
}


@pytest.mark.parametrize("use", USES)
def test_while_one_thread_is_inside_kvm_run_another_is_told_so(bare_guest: RealModeGuest, use: str) -> None:
    with (
        counting_on_a_thread(bare_guest),
        pytest.raises(InUseError, match=r"vCPU 0 cannot be .* while a thread is inside KVM_RUN: kick\(\) it and wait"),
    ):
        USES[use](bare_guest)
    assert not bare_guest.vcpu.closed
    assert not bare_guest.vm.closed
    assert bare_guest.regs.rip in (0x8000, 0x8005), "and afterwards everything works"


def test_a_vm_whose_second_vcpu_runs_closes_nothing(bare_guest: RealModeGuest) -> None:
    with bare_guest.vm.create_vcpu(1) as other, counting_on_a_thread(bare_guest):
        with pytest.raises(InUseError):
            bare_guest.vm.close()
        assert other.get_regs().rflags == 2
        assert len(bare_guest.vm.slots) == 1


def test_a_vcpu_may_run_on_one_thread_after_another(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("ee eb fd"), rdx=0x80)  # again: out %al, (%dx); jmp again
    exits: list[object] = []
    for _ in range(5):
        thread = threading.Thread(target=lambda: exits.append(bare_guest.vcpu.run()))
        thread.start()
        thread.join()
    assert exits == [IoOut(0x80, 1, 1, b"\0")] * 5


def test_two_vcpus_run_at_the_same_time(bare_guest: RealModeGuest) -> None:
    with bare_guest.vm.create_vcpu(1) as other:
        other.set_sregs(bare_guest.vcpu.get_sregs())
        with counting_on_a_thread(bare_guest):
            other.set_regs(Regs(rip=0x9000))
            bare_guest.write(0x9000, b"\xf4")  # hlt
            assert other.run() == Hlt()


def test_a_kick_for_a_closed_vcpu_is_an_error(bare_guest: RealModeGuest) -> None:
    bare_guest.vcpu.close()
    with pytest.raises(ClosedError):
        bare_guest.vcpu.kick()
