"""pykvm.machine.runloop: a scripted vCPU in place of KVM's, real buses and small devices behind it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator

import pytest

from pykvm.devices import Bus
from pykvm.errors import ConfigurationError, UnansweredReadError
from pykvm.kvm import (
    BusLock,
    Debug,
    DirtyRingFull,
    ExceptionExit,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    Intr,
    IoapicEoi,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MemoryFault,
    MmioRead,
    MmioWrite,
    Nmi,
    Notify,
    Rdmsr,
    ReadExit,
    SetTpr,
    Shutdown,
    SystemEvent,
    SystemEventType,
    TprAccess,
    Unknown,
    Wrmsr,
)
from pykvm.machine import Crashed, Halted, RunLoop, ShutdownRequested, Stop, Stopped, TimedOut
from pykvm.units import Gpa


class Script:
    """A vCPU that returns the exits it is given, and keeps the answers."""

    id = 0

    def __init__(self, exits: Iterable[Exit], pending: Iterable[Exit] = ()) -> None:
        self._exits: Iterator[Exit] = iter(exits)
        self._pending: Iterator[Exit] = iter(pending)
        self.answers: list[bytes] = []
        self.refused: list[Exit] = []
        self.ticking = False

    def run(self) -> Exit:
        return next(self._exits)

    def complete(self, exit: ReadExit, data: bytes) -> None:
        self.answers.append(data)

    def refuse(self, exit: Rdmsr | Wrmsr) -> None:
        self.refused.append(exit)

    def complete_pending(self) -> Exit | None:
        return next(self._pending, None)

    def start_ticks(self, first: float, interval: float) -> None:
        self.ticking = True

    def stop_ticks(self) -> None:
        self.ticking = False


class Counter:
    """A device that counts: each read gives the next number, each write is kept."""

    name = "counter"

    def __init__(self) -> None:
        self.next = 1
        self.written: list[tuple[int, bytes]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.next += 1
        return (self.next - 1).to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))


class Watcher:
    def __init__(self) -> None:
        self.exits: list[Exit] = []
        self.ticks = 0

    def exit(self, vcpu: int, exit: Exit) -> None:
        self.exits.append(exit)

    def tick(self) -> None:
        self.ticks += 1


def make_loop(script: Script, *, watcher: Watcher | None = None) -> tuple[RunLoop, Counter, Counter]:
    pio, mmio = Bus("port", 1 << 16), Bus("MMIO", 1 << 52)
    port, window = Counter(), Counter()
    pio.register(port, 0x10, 4)
    mmio.register(window, 0x1000, 8)
    return RunLoop(script, pio, mmio, [watcher] if watcher else []), port, window


def test_every_item_of_a_string_output_goes_to_the_same_port() -> None:
    loop, port, _ = make_loop(Script([IoOut(0x10, 2, 3, b"aabbcc"), Hlt()]))
    assert loop.run(None) == Halted()
    assert port.written == [(0, b"aa"), (0, b"bb"), (0, b"cc")]


def test_a_string_input_asks_the_device_once_for_each_item() -> None:
    script = Script([IoIn(0x10, 1, 4), Hlt()])
    loop, _, _ = make_loop(script)
    loop.run(None)
    assert script.answers == [b"\x01\x02\x03\x04"]


def test_mmio_goes_to_the_other_bus() -> None:
    script = Script([MmioWrite(Gpa(0x1004), b"\x2a"), MmioRead(Gpa(0x1000), 8), Hlt()])
    loop, port, window = make_loop(script)
    loop.run(None)
    assert window.written == [(4, b"\x2a")]
    assert script.answers == [(1).to_bytes(8, "little")]
    assert port.written == []


def test_what_nobody_claims_reads_as_all_ones() -> None:
    script = Script([IoIn(0x60, 4, 1), MmioRead(Gpa(0xE0000000), 2), Hlt()])
    make_loop(script)[0].run(None)
    assert script.answers == [b"\xff" * 4, b"\xff" * 2]


def test_msr_accesses_nobody_handles_are_refused() -> None:
    exits: list[Exit] = [Rdmsr(0x1234, 1), Wrmsr(0x1234, 5, 1)]
    script = Script([*exits, Hlt()])
    make_loop(script)[0].run(None)
    assert script.refused == exits


@pytest.mark.parametrize("kind", [SystemEventType.SHUTDOWN, SystemEventType.RESET])
def test_a_shutdown_or_reset_request_ends_the_run(kind: SystemEventType) -> None:
    event = SystemEvent(kind)
    assert make_loop(Script([event]))[0].run(None) == ShutdownRequested(event)


@pytest.mark.parametrize(
    "exit",
    [
        Shutdown(),
        FailEntry(0x80000021, 0),
        InternalError(1),
        MemoryFault(0, Gpa(0), 1),
        SystemEvent(SystemEventType.CRASH),
        Unknown(99),
        Debug(1, 0, 0, 0),
        ExceptionExit(1, 0),
        Hypercall(1, (0,) * 6, 1),
        Notify(0),
        DirtyRingFull(),
    ],
    ids=lambda exit: type(exit).__name__,
)
def test_exits_that_nobody_can_go_on_from_are_crashes(exit: Exit) -> None:
    assert make_loop(Script([exit]))[0].run(None) == Crashed(exit)


def test_exits_for_information_do_not_end_the_run() -> None:
    exits: list[Exit] = [Intr(), Nmi(), IrqWindowOpen(), SetTpr(), TprAccess(0, False), IoapicEoi(3), BusLock()]
    assert make_loop(Script([*exits, Hlt()]))[0].run(None) == Halted()


def test_observers_see_every_exit_before_it_is_handled() -> None:
    watcher = Watcher()
    exits: list[Exit] = [IoOut(0x10, 1, 1, b"x"), IoIn(0x10, 1, 1), Hlt()]
    make_loop(Script(exits), watcher=watcher)[0].run(None)
    assert watcher.exits == exits
    assert watcher.ticks >= 1


def test_a_time_limit_ends_a_guest_that_never_stops() -> None:
    def for_ever() -> Iterator[Exit]:
        while True:
            yield Intr()

    assert make_loop(Script(for_ever()))[0].run(0.01) == TimedOut(0.01)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="time limit"):
        make_loop(Script([]))[0].run(timeout)


def test_ticks_end_with_the_run_even_when_a_device_raises() -> None:
    class Broken(Counter):
        def read(self, offset: int, size: int) -> bytes:
            raise RuntimeError("broken device")

    script = Script([IoIn(0x20, 1, 1)])
    pio = Bus("port", 1 << 16)
    pio.register(Broken(), 0x20, 1)
    with pytest.raises(RuntimeError, match="broken device"):
        RunLoop(script, pio, Bus("MMIO", 1 << 52)).run(None)
    assert not script.ticking


def test_a_stop_requested_by_a_device_ends_the_run_after_its_exit() -> None:
    requests: list[Stop] = []

    class Stopper(Counter):
        def write(self, offset: int, data: bytes) -> None:
            requests.append(Stopped())

    pio = Bus("port", 1 << 16)
    pio.register(Stopper(), 0x30, 1)
    script = Script([IoOut(0x30, 1, 1, b"\x00"), Hlt()])
    loop = RunLoop(script, pio, Bus("MMIO", 1 << 52), requested=lambda: requests.pop() if requests else None)
    assert loop.run(None) == Stopped()


def test_settling_handles_what_the_last_instruction_still_wants() -> None:
    script = Script([], pending=[IoOut(0x10, 1, 1, b"y"), IoIn(0x10, 1, 1)])
    loop, port, _ = make_loop(script)
    loop.settle()
    assert port.written == [(0, b"y")]
    assert script.answers == [b"\x01"]


def test_settling_gives_up_on_an_instruction_without_end() -> None:
    def for_ever() -> Iterator[Exit]:
        while True:
            yield IoOut(0x10, 1, 1, b"z")

    make_loop(Script([], pending=for_ever()))[0].settle()


def test_settling_leaves_a_read_alone_that_a_device_failed_to_answer() -> None:
    class Unanswered(Script):
        def complete_pending(self) -> Exit | None:
            raise UnansweredReadError("no answer")

    make_loop(Unanswered([]))[0].settle()


def test_ctrl_c_waits_until_the_device_has_answered() -> None:
    class Slow(Counter):
        def read(self, offset: int, size: int) -> bytes:
            os.kill(os.getpid(), signal.SIGINT)
            return super().read(offset, size)

    script = Script([IoIn(0x40, 1, 1), Intr()])
    pio = Bus("port", 1 << 16)
    pio.register(Slow(), 0x40, 1)
    with pytest.raises(KeyboardInterrupt):
        RunLoop(script, pio, Bus("MMIO", 1 << 52)).run(None)
    assert script.answers == [b"\x01"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait_for_a_device_that_hangs() -> None:
    class Hung(Counter):
        def read(self, offset: int, size: int) -> bytes:
            while True:
                os.kill(os.getpid(), signal.SIGINT)

    pio = Bus("port", 1 << 16)
    pio.register(Hung(), 0x40, 1)
    with pytest.raises(KeyboardInterrupt):
        RunLoop(Script([IoIn(0x40, 1, 1)]), pio, Bus("MMIO", 1 << 52)).run(None)
