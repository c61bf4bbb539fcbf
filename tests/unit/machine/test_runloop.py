"""pykvm.machine.runloop: scripted vCPUs in place of KVM's, real buses and small devices behind them."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pykvm.devices import Bus
from pykvm.errors import ConfigurationError
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
    SetTpr,
    Shutdown,
    SystemEvent,
    SystemEventType,
    TprAccess,
    Unknown,
    Wrmsr,
)
from pykvm.machine import (
    Breakpoint,
    Control,
    Crashed,
    ExitHandlers,
    Halted,
    Observer,
    RunLoop,
    ScriptedVcpu,
    ShutdownRequested,
    StandInVcpu,
    Stop,
    Stopped,
    TimedOut,
)
from pykvm.machine.runloop import InterruptSource
from pykvm.testing import DeviceBench, run_script
from pykvm.units import Gpa


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


class Bench(DeviceBench):
    """A counter at ports 0x10 to 0x13, and one at MMIO 0x1000 to 0x1007."""

    def __init__(self, *observers: Observer) -> None:
        self.port, self.window = Counter(), Counter()
        super().__init__(pio={0x10: (self.port, 4)}, mmio={0x1000: (self.window, 8)}, observers=observers)


def make_loop(
    vcpu: StandInVcpu,
    bench: DeviceBench | None = None,
    *,
    control: Control | None = None,
    interrupts: InterruptSource | None = None,
) -> RunLoop:
    """Return a loop for what a script cannot say: time, ticks, signals, interrupts."""
    bench = bench or Bench()
    return RunLoop(vcpu, bench.pio, bench.mmio, control=control, interrupts=interrupts)


def test_every_item_of_a_string_output_goes_to_the_same_port() -> None:
    bench = Bench()
    assert bench.run([IoOut(0x10, 2, 3, b"aabbcc"), Hlt()]).stop == Halted()
    assert bench.port.written == [(0, b"aa"), (0, b"bb"), (0, b"cc")]


def test_a_string_input_asks_the_device_once_for_each_item() -> None:
    assert Bench().run([IoIn(0x10, 1, 4), Hlt()]).replies == (b"\x01\x02\x03\x04",)


def test_mmio_goes_to_the_other_bus() -> None:
    bench = Bench()
    result = bench.run([MmioWrite(Gpa(0x1004), b"\x2a"), MmioRead(Gpa(0x1000), 8), Hlt()])
    assert bench.window.written == [(4, b"\x2a")]
    assert result.replies == ((1).to_bytes(8, "little"),)
    assert bench.port.written == []


def test_what_nobody_claims_reads_as_all_ones() -> None:
    result = Bench().run([IoIn(0x60, 4, 1), MmioRead(Gpa(0xE0000000), 2), Hlt()])
    assert result.replies == (b"\xff" * 4, b"\xff" * 2)


def test_msr_accesses_nobody_handles_are_refused() -> None:
    result = run_script([Rdmsr(0x1234, 1), Wrmsr(0x1234, 5, 1), Hlt()])
    assert result.replies == (None, None)
    assert result.stop == Halted()


@pytest.mark.parametrize("kind", [SystemEventType.SHUTDOWN, SystemEventType.RESET])
def test_a_shutdown_or_reset_request_ends_the_run(kind: SystemEventType) -> None:
    event = SystemEvent(kind)
    assert run_script([event]).stop == ShutdownRequested(event)


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
    assert run_script([exit]).stop == Crashed(exit)


def test_exits_for_information_do_not_end_the_run() -> None:
    exits: list[Exit] = [Intr(), Nmi(), IrqWindowOpen(), SetTpr(), TprAccess(0, False), IoapicEoi(3), BusLock()]
    result = run_script([*exits, Hlt()])
    assert result.stop == Halted()
    assert result.exits == len(exits) + 1


def test_observers_see_every_exit_before_it_is_handled() -> None:
    watcher = Watcher()
    exits: list[Exit] = [IoOut(0x10, 1, 1, b"x"), IoIn(0x10, 1, 1), Hlt()]
    Bench(watcher).run(exits)
    assert watcher.exits == exits
    assert watcher.ticks >= 1


def test_a_time_limit_ends_a_guest_that_never_stops() -> None:
    class Endless(ScriptedVcpu):
        def next_exit(self) -> Exit:
            return Intr()

    assert make_loop(Endless()).run(0.01) == TimedOut(0.01)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigurationError, match="time limit"):
        make_loop(ScriptedVcpu()).run(timeout)


def test_ticks_end_with_the_run_even_when_a_device_raises() -> None:
    class Broken(Counter):
        def read(self, offset: int, size: int) -> bytes:
            raise RuntimeError("broken device")

    class Ticking(ScriptedVcpu):
        ticking = False

        def start_ticks(self, first: float, interval: float) -> None:
            self.ticking = True

        def stop_ticks(self) -> None:
            self.ticking = False

    vcpu = Ticking([IoIn(0x20, 1, 1)])
    with pytest.raises(RuntimeError, match="broken device"):
        make_loop(vcpu, DeviceBench(pio={0x20: (Broken(), 1)})).run(None)
    assert not vcpu.ticking


def test_a_stop_requested_by_a_device_ends_the_run_after_its_exit() -> None:
    class Stopper(Counter):
        def write(self, offset: int, data: bytes) -> None:
            bench.stop()

    bench = DeviceBench(pio={0x30: (Stopper(), 1)})
    assert bench.run([IoOut(0x30, 1, 1, b"\x00"), Hlt()]).stop == Stopped()


class HalfDone(ScriptedVcpu):
    """A vCPU in the middle of an instruction, which wants all of the exits."""

    def complete_pending(self) -> Exit | None:
        super().complete_pending()
        exit = self.run()
        return None if exit == Hlt() else exit


def test_settling_handles_what_the_last_instruction_still_wants() -> None:
    bench, vcpu = Bench(), HalfDone([IoOut(0x10, 1, 1, b"y"), IoIn(0x10, 1, 1)])
    make_loop(vcpu, bench).settle()
    assert bench.port.written == [(0, b"y")]
    assert vcpu.replies == [b"\x01"]


def test_settling_gives_up_on_an_instruction_without_end() -> None:
    class Endless(HalfDone):
        def next_exit(self) -> Exit:
            return IoOut(0x10, 1, 1, b"z")

    make_loop(Endless()).settle()


def test_settling_leaves_a_read_alone_that_a_device_failed_to_answer() -> None:
    vcpu = ScriptedVcpu([IoIn(0x10, 1, 1)])
    vcpu.run()
    make_loop(vcpu).settle()
    assert vcpu.replies == []


def test_ctrl_c_waits_until_the_device_has_answered() -> None:
    class Slow(Counter):
        def read(self, offset: int, size: int) -> bytes:
            os.kill(os.getpid(), signal.SIGINT)
            return super().read(offset, size)

    vcpu = ScriptedVcpu([IoIn(0x40, 1, 1), Intr()])
    with pytest.raises(KeyboardInterrupt):
        make_loop(vcpu, DeviceBench(pio={0x40: (Slow(), 1)})).run(None)
    assert vcpu.replies == [b"\x01"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait_for_a_device_that_hangs() -> None:
    class Hung(Counter):
        def read(self, offset: int, size: int) -> bytes:
            while True:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_script([IoIn(0x40, 1, 1)], pio={0x40: (Hung(), 1)})


# ---- interrupts from outside the kernel ----


class Source:
    """An interrupt controller with a list of vectors to give."""

    def __init__(self, *vectors: int) -> None:
        self.vectors = list(vectors)

    @property
    def output(self) -> bool:
        return bool(self.vectors)

    def acknowledge(self) -> int:
        return self.vectors.pop(0)


class Interruptible(ScriptedVcpu):
    """A vCPU whose exits say, each, whether it could take an interrupt then; it records what was asked of it."""

    def __init__(self, *exits: tuple[Exit, bool]) -> None:
        super().__init__([exit for exit, _ in exits])
        self._ready = [ready for _, ready in exits]
        self.asked: list[tuple[bool, int]] = []  # at each entry: the window request, and how many injected so far

    def next_exit(self) -> Exit:
        self.asked.append((self.request_interrupt_window, len(self.interrupts)))
        self.interruptible = self._ready.pop(0)
        return super().next_exit()


def run_with(source: Source, vcpu: Interruptible, control: Control | None = None) -> Stop:
    return make_loop(vcpu, control=control, interrupts=source).run(5)


def test_an_interrupt_waits_for_the_window_and_the_next_one_too() -> None:
    vcpu = Interruptible((IrqWindowOpen(), True), (IrqWindowOpen(), True), (Hlt(), False))
    assert run_with(Source(0x20, 0x21), vcpu) == Halted()
    assert vcpu.interrupts == [0x20, 0x21]
    # The readiness of before the first entry is not trusted; after an injection the window is asked for again.
    assert vcpu.asked == [(True, 0), (True, 1), (False, 2)]


def test_no_window_is_asked_for_without_an_interrupt() -> None:
    vcpu = Interruptible((BusLock(), True), (Hlt(), False))
    run_with(Source(), vcpu)
    assert vcpu.asked == [(False, 0), (False, 0)]


def test_an_interrupt_is_not_injected_while_the_cpu_cannot_take_it() -> None:
    vcpu = Interruptible((BusLock(), False), (BusLock(), False), (Hlt(), False))
    run_with(Source(0x20), vcpu)
    assert vcpu.interrupts == []
    assert vcpu.asked == [(True, 0)] * 3


def test_hlt_with_interrupts_on_waits_and_an_interrupt_ends_it() -> None:
    control, source = Control(), Source()
    vcpu = Interruptible((Hlt(), True), (Hlt(), False))

    def interrupt() -> None:
        with control.lock:
            source.vectors.append(0x20)
            control.notify()

    timer = threading.Timer(0.05, interrupt)
    timer.start()
    assert run_with(source, vcpu, control) == Halted()
    timer.join()
    assert vcpu.interrupts == [0x20]


def test_hlt_with_interrupts_off_is_the_end() -> None:
    assert run_with(Source(), Interruptible((Hlt(), False))) == Halted()


def test_waiting_in_hlt_ends_with_the_time_limit_and_a_stop() -> None:
    control = Control()
    loop = make_loop(Interruptible((Hlt(), True), (Hlt(), False)), control=control, interrupts=Source())
    assert loop.run(0.01) == TimedOut(0.01)
    control.stop(Stopped())  # it still waits: the next run does not enter the guest
    assert loop.run(5) == Stopped()


def test_an_nmi_wakes_from_hlt() -> None:
    control = Control()
    vcpu = Interruptible((Hlt(), True), (Hlt(), False))
    loop = make_loop(vcpu, control=control, interrupts=Source())
    control.attach((loop,))
    timer = threading.Timer(0.05, lambda: control.nmi(0))
    timer.start()
    assert loop.run(5) == Halted()
    timer.join()
    assert vcpu.nmis == 1


# ---- exits with handlers ----


def test_msr_accesses_go_to_their_handlers() -> None:
    written: list[tuple[int, int]] = []
    handlers = ExitHandlers(rdmsr=lambda index: index + 1, wrmsr=lambda index, value: written.append((index, value)))
    result = run_script([Rdmsr(0x1234, 0), Wrmsr(0x1234, 7, 0), Hlt()], handlers=handlers)
    assert result.stop == Halted()
    assert result.replies == ((0x1235).to_bytes(8, "little"),)  # and no refusal
    assert written == [(0x1234, 7)]


def test_an_msr_without_a_handler_is_refused() -> None:
    result = run_script([Rdmsr(0x1234, 0), Wrmsr(0x1234, 7, 0), Hlt()], handlers=ExitHandlers())
    assert result.replies == (None, None)


def test_a_hypercall_is_answered_with_its_handlers_value() -> None:
    handlers = ExitHandlers(hypercall=lambda call: sum(call.args))
    result = run_script([Hypercall(12, (1, 2, 3, 4, 5, 6), 1), Hlt()], handlers=handlers)
    assert result.replies == ((21).to_bytes(8, "little"),)


def test_the_end_of_a_level_triggered_interrupt_is_passed_on() -> None:
    ended: list[int] = []
    run_script([IoapicEoi(0x31), Hlt()], handlers=ExitHandlers(ioapic_eoi=ended.append))
    assert ended == [0x31]


def test_a_full_dirty_ring_is_emptied_and_the_guest_goes_on() -> None:
    emptied: list[str] = []
    handlers = ExitHandlers(dirty_ring_full=lambda: emptied.append("now"))
    assert run_script([DirtyRingFull(), Hlt()], handlers=handlers).stop == Halted()
    assert emptied == ["now"]


def test_a_debug_exit_that_was_asked_for_stops_the_run() -> None:
    exit = Debug(1, 0x8000, 0x4000, 0x400)
    handlers = ExitHandlers(debug=lambda cpu, exit: Breakpoint(exit))
    assert run_script([exit], handlers=handlers).stop == Breakpoint(exit)


def test_writes_that_were_kept_back_come_before_the_exit_that_follows_them() -> None:
    port = Counter()
    kept: list[IoOut | MmioWrite] = [IoOut(0x10, 1, 1, b"a"), IoOut(0x11, 1, 1, b"b")]

    def drain() -> list[IoOut | MmioWrite]:
        taken, kept[:] = list(kept), []
        return taken

    run_script([IoOut(0x12, 1, 1, b"c"), Hlt()], pio={0x10: (port, 4)}, handlers=ExitHandlers(drain=drain))
    assert port.written == [(0, b"a"), (1, b"b"), (2, b"c")]


def test_a_halted_machine_in_which_nothing_can_happen_ends_at_a_tick() -> None:
    assert run_script([Intr(), Shutdown()], handlers=ExitHandlers(is_idle=lambda: True)).stop == Halted()


class Entering(Watcher):
    """Says in which order it hears of what."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def exit(self, vcpu: int, exit: Exit) -> None:
        self.heard.append(exit.reason.name)

    def enter(self, vcpu: int) -> None:
        self.heard.append(f"enter {vcpu}")


def test_an_observer_hears_of_each_entry_and_of_the_exit_after_it() -> None:
    watcher = Entering()
    DeviceBench(observers=[watcher]).run([IoOut(0x80, data=b"\x01"), Hlt()])
    assert watcher.heard == ["enter 0", "IO", "enter 0", "HLT"]


def test_other_observers_can_watch_from_the_next_run_on() -> None:
    first, second = Watcher(), Watcher()
    loop = RunLoop(ScriptedVcpu([Hlt(), Hlt()]), Bus("port", 1 << 16), Bus("MMIO", 1 << 52), [first])
    loop.run(None)
    loop.observe([second])
    loop.run(None)
    assert (len(first.exits), len(second.exits)) == (1, 1)
