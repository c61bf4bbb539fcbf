"""The run loop: takes exits from a vCPU, hands them to the devices, and knows when to stop.

This is the trip that everything else is built around:

    KVM_RUN -> exit -> observers -> bus -> device -> answer -> KVM_RUN

Each vCPU has a loop, on a thread of its own; vCPU 0's, on the thread that called ``Machine.run()``, looks after time
limit and Ctrl-C. A scripted vCPU can stand in for KVM's. See: Documentation/virt/kvm/api.rst, section 5, for what each
exit wants. Leaves out how the threads are stopped and paused: see ``control``.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, Self

from pykvm.devices import SECOND, Bus
from pykvm.errors import ConfigurationError, MsrRefusedError, UnansweredReadError
from pykvm.kvm import (
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
    MemoryFault,
    MmioRead,
    MmioWrite,
    Notify,
    Rdmsr,
    ReadExit,
    Shutdown,
    SystemEvent,
    SystemEventType,
    Unknown,
    Wrmsr,
)
from pykvm.machine.control import TICK, Control
from pykvm.machine.observer import Observer
from pykvm.machine.stop import Crashed, Halted, ShutdownRequested, Stop, TimedOut

__all__ = ["DeferredInterrupt", "ExitHandlers", "InterruptSource", "RunLoop", "VcpuProtocol"]

SHORTEST_TICK = 0.001  # a timer that is faster than a signal can be handled leaves no time for anything else
DAY = 86400.0

# How many more exits the last instruction may want before a stopped machine's registers are read (``rep insb`` comes in
# parts). A hostile guest's instruction wants 2**64 of them, and is left where it is.
SETTLE_LIMIT = 64


class VcpuProtocol(Protocol):
    """What the run loop needs of a vCPU: ``pykvm.kvm.Vcpu`` has it, and so may a stand-in for tests."""

    id: int
    request_interrupt_window: bool

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Whether ``interrupt()`` would be taken at once, as of the last exit."""

    @property
    def if_flag(self) -> bool:
        """RFLAGS.IF as of the last exit."""

    def run(self) -> Exit:
        """Run until the next exit."""

    def complete(self, exit: ReadExit, data: bytes) -> None:
        """Answer a read."""

    def refuse(self, exit: Rdmsr | Wrmsr) -> None:
        """Refuse an MSR access."""

    def complete_pending(self) -> Exit | None:
        """Finish the instruction of the last exit."""

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt."""

    def nmi(self) -> None:
        """Queue a non-maskable interrupt."""

    def kick(self) -> None:
        """Make the ``run()`` under way, or else the next one, return ``Intr``."""

    def start_ticks(self, first: float, interval: float) -> None:
        """Make ``run()`` return ``Intr`` every ``interval`` seconds."""

    def stop_ticks(self) -> None:
        """End ``start_ticks``."""


class InterruptSource(Protocol):
    """An interrupt controller outside the kernel: who asks for the CPU's INTR pin, and answers its INTA cycle."""

    @property
    def output(self) -> bool:
        """Whether an interrupt is waiting."""

    def acknowledge(self) -> int:
        """Return the vector of the interrupt that the CPU takes now."""


def _refuse_read(index: int) -> int:
    raise MsrRefusedError(index)


def _refuse_write(index: int, value: int) -> None:
    raise MsrRefusedError(index)


@dataclass(slots=True)
class ExitHandlers:
    """What to do at the exits that are not for a device on a bus.

    ``rdmsr(index)`` and ``wrmsr(index, value)`` raise MsrRefusedError for #GP. ``hypercall`` returns the guest's RAX;
    ``debug`` why a breakpoint or step of a vCPU ends the run, or None; ``assist`` whether it finished the instruction;
    ``on_tick`` hears now and then of a vCPU outside KVM_RUN; ``drain`` returns the writes kept in a coalesced zone,
    oldest first; ``is_idle`` whether, vCPU 0 being halted for good, the others are, too. None: nobody asked.
    """

    rdmsr: Callable[[int], int] = _refuse_read
    wrmsr: Callable[[int, int], None] = _refuse_write
    hypercall: Callable[[Hypercall], int] | None = None
    ioapic_eoi: Callable[[int], None] | None = None
    dirty_ring_full: Callable[[], None] | None = None
    drain: Callable[[], Sequence[IoOut | MmioWrite]] | None = None
    is_idle: Callable[[], bool] | None = None
    debug: Callable[[int, Debug], Stop | None] | None = None
    assist: Callable[[int, InternalError], bool] | None = None
    on_tick: Callable[[int], None] | None = None


class RunLoop:
    """Runs one vCPU against two buses.

    ``interrupts`` is who interrupts this vCPU from outside the kernel; without one, HLT is the end. ``now`` is the
    machine's time in nanoseconds, by which time limits go.
    """

    def __init__(
        self,
        vcpu: VcpuProtocol,
        pio: Bus,
        mmio: Bus,
        observers: Sequence[Observer] = (),
        control: Control | None = None,
        *,
        interrupts: InterruptSource | None = None,
        handlers: ExitHandlers | None = None,
        now: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._vcpu = vcpu
        self._pio = pio
        self._mmio = mmio
        self._control = control or Control()
        self._interrupts = interrupts
        self._handlers = handlers or ExitHandlers()
        self._now = now
        self._halted = False
        self._deadline = math.inf  # of the machine's time
        self._timeout = math.inf
        self._ctrl_c: DeferredInterrupt | None = None
        self.observe(observers)

    @property
    def id(self) -> int:
        """Return the vCPU's id."""
        return self._vcpu.id

    def observe(self, observers: Sequence[Observer]) -> None:
        """Have ``observers`` watch from now on, and nobody else. Not while the vCPU runs."""
        self._observers = tuple(observers)
        self._answer = self._make_answer()

    def kick(self) -> None:
        """Get the vCPU out of KVM_RUN."""
        self._vcpu.kick()

    def nmi(self) -> None:
        """Let the vCPU take a non-maskable interrupt, which wakes it from HLT too."""
        self._vcpu.nmi()
        self._halted = False

    def reset(self) -> None:
        """Forget that the vCPU is halted: its registers were set anew."""
        self._halted = False

    def put_back(self, is_halted: bool, time_shift: int) -> None:
        """Be halted or not, as a snapshot says; ``time_shift`` is by how many nanoseconds it sets time forward."""
        self._halted = is_halted
        self._deadline += time_shift  # a run that is paused has as much time left as before

    @property
    def is_halted(self) -> bool:
        """Return whether the vCPU waits here, outside the kernel, for what ends its HLT."""
        return self._halted

    def run(self, timeout: float | None, ctrl_c: DeferredInterrupt | None = None) -> Stop:
        """Run until the guest stops, a stop is requested, or ``timeout`` seconds (None: no limit) have passed.

        ``ctrl_c`` is who puts Ctrl-C off for the caller, if it is to be for longer than this call.

        Raises: ConfigurationError if ``timeout`` is no time; whatever a device raises.
        """
        if timeout is not None and not 0 < timeout < math.inf:
            raise ConfigurationError(f"a time limit is a number of seconds above 0, not {timeout}")
        self._timeout = math.inf if timeout is None else timeout
        self._deadline = self._now() + self._timeout * SECOND
        interval = _tick_interval(timeout)
        self._vcpu.start_ticks(interval, interval)
        try:
            with nullcontext(ctrl_c) if ctrl_c else DeferredInterrupt() as self._ctrl_c, self._control.running(self):
                return self._loop(self._tick)
        finally:
            self._vcpu.stop_ticks()
            self._tell_time()
            self._leave()

    def run_beside(self) -> Stop:
        """Run until a stop is requested, beside the loop of vCPU 0, which looks after everything else."""
        try:
            with self._control.running(self):
                return self._loop(None)
        finally:
            self._leave()

    def settle(self) -> None:
        """Have the kernel finish the last instruction, so that the registers tell the truth."""
        for _ in range(SETTLE_LIMIT):
            try:
                exit = self._vcpu.complete_pending()
            except UnansweredReadError:
                return  # a device raised instead of answering: there is nothing to finish the instruction with
            if exit is None:
                return
            self.take(exit)

    # ---- one entry at a time: see ``slowmotion`` ----

    def enter_once(self) -> Exit:
        """Enter the guest once and return the exit, which nobody has heard of yet."""
        for tell in self._hooks("enter"):
            tell(self._vcpu.id)
        exit = self._vcpu.run()
        self._take_coalesced()
        return exit

    def take(self, exit: Exit) -> Stop | None:
        """Let the observers hear of ``exit``, and do what it wants; return why the run is over, or None."""
        with self._control.lock:
            self._note(exit)
            return self.handle(exit)

    def take_hlt(self, *, is_waiting: bool) -> Stop | None:
        """Do what ``take`` does, of a HLT that KVM has not seen; ``is_waiting``: with interrupts on."""
        with self._control.lock:
            self._note(Hlt())
            return self._halt(is_waiting=is_waiting)

    def handle(self, exit: Exit) -> Stop | None:
        """Do what ``exit`` wants, with the lock held. Returns why the run is over, or None to go on."""
        match exit:
            case IoOut():
                for start in range(0, len(exit.data), exit.size):
                    self._pio.write(exit.port, exit.data[start : start + exit.size])
            case IoIn():
                items = [self._pio.read(exit.port, exit.size) for _ in range(exit.count)]
                self._answer(exit, b"".join(items))
            case MmioWrite():
                self._mmio.write(exit.address, exit.data)
            case MmioRead():
                self._answer(exit, self._mmio.read(exit.address, exit.size))
            case Hlt():
                return self._halt(is_waiting=self._vcpu.if_flag)
            case SystemEvent(type=SystemEventType.SHUTDOWN | SystemEventType.RESET):
                return ShutdownRequested(exit)
            case Rdmsr() | Wrmsr():
                self._access_msr(exit)
            case Hypercall() if self._handlers.hypercall is not None:
                self._answer(exit, self._handlers.hypercall(exit).to_bytes(8, "little"))
            case IoapicEoi() if self._handlers.ioapic_eoi is not None:
                self._handlers.ioapic_eoi(exit.vector)
            case DirtyRingFull() if self._handlers.dirty_ring_full is not None:
                self._handlers.dirty_ring_full()
            case Debug() if self._handlers.debug is not None:
                return self._handlers.debug(self._vcpu.id, exit)
            case InternalError() if self._handlers.assist is not None and self._handlers.assist(self._vcpu.id, exit):
                pass  # the instruction is finished
            case Shutdown() | FailEntry() | InternalError() | MemoryFault() | SystemEvent() | Unknown():
                return Crashed(exit)
            case Debug() | ExceptionExit() | Hypercall() | Notify() | DirtyRingFull():
                return Crashed(exit)  # nobody asked for these, so nobody knows how to go on
            case _:
                pass  # Intr, Nmi, IrqWindowOpen, SetTpr, TprAccess, IoapicEoi, BusLock: for information
        return None

    # ---- inside ----

    def _loop(self, tick: Callable[[], Stop | None] | None) -> Stop:
        vcpu, control, handlers, lock = self._vcpu, self._control, self._handlers, self._control.lock
        run, handle, id = vcpu.run, self.handle, vcpu.id
        observe, enters = tuple(observer.exit for observer in self._observers), self._hooks("enter")
        injects = self._interrupts is not None
        entered = False  # ready_for_interrupt_injection is as of the last exit: not to be trusted before the first
        while True:
            if control.attention:
                stop = control.attend(self, tick)
                if stop is not None:
                    return stop
            if self._halted:
                stop = self._wait_for_interrupt(tick)
                if stop is not None:
                    return stop
                continue
            if injects:
                self.inject(entered)
            for tell in enters:
                tell(id)
            exit = run()
            entered = True
            if handlers.drain is not None:
                self._take_coalesced()
            if isinstance(exit, Intr):
                if handlers.on_tick is not None:
                    handlers.on_tick(id)
                stop = tick() if tick is not None else None
            else:
                with lock:
                    for note in observe:
                        note(id, exit)
                    stop = handle(exit)
            if stop is not None:
                return stop

    def _halt(self, *, is_waiting: bool) -> Stop | None:
        if self._interrupts is None or not is_waiting:
            return Halted()
        self._halted = True
        return None

    def _wait_for_interrupt(self, tick: Callable[[], Stop | None] | None) -> Stop | None:
        """Wait, without any work for the host's CPU, until the guest may leave its HLT."""
        source = self._interrupts
        while self._halted and not self._control.attention:
            if source is None or source.output:
                self._halted = False
                return None
            self._control.wait(lambda: source.output)
            stop = tick() if tick is not None else None
            if stop is not None:
                return stop
        return None

    def inject(self, entered: bool, *, is_woken: bool = False) -> int | None:
        """Hand the CPU an interrupt if one waits and can be taken, and return its vector; or have KVM say when it can.

        ``entered`` says whether the vCPU has been in KVM_RUN since its registers were set, ``is_woken`` that it was
        halted, and can take one whatever the last exit has said. After an injection there may be one more waiting.
        See: api.rst, KVM_INTERRUPT and request_interrupt_window.
        """
        source, vcpu = self._interrupts, self._vcpu
        vector = None
        if source is None:
            return None
        if source.output and (is_woken or (entered and vcpu.ready_for_interrupt_injection)):
            with self._control.lock:
                vector = source.acknowledge()
                for tell in self._hooks("interrupt"):
                    tell(vcpu.id, vector)
                vcpu.interrupt(vector)
        vcpu.request_interrupt_window = source.output
        return vector

    def _access_msr(self, exit: Rdmsr | Wrmsr) -> None:
        try:
            if isinstance(exit, Wrmsr):
                self._handlers.wrmsr(exit.index, exit.data)
            else:
                self._answer(exit, self._handlers.rdmsr(exit.index).to_bytes(8, "little"))
        except MsrRefusedError:
            self._vcpu.refuse(exit)
            for tell in self._hooks("answer"):
                tell(self._vcpu.id, exit, None)

    def _take_coalesced(self) -> None:
        # What is in the ring was written before whatever this exit is about.
        if self._handlers.drain is None:
            return
        with self._control.lock:
            for write in self._handlers.drain():
                for tell in self._hooks("coalesced"):
                    tell(self._vcpu.id, write)
                self.handle(write)

    def _make_answer(self) -> Callable[[ReadExit, bytes], None]:
        """Return what answers a read: the vCPU's own method, if no observer wants to hear of answers."""
        tells, complete = self._hooks("answer"), self._vcpu.complete
        if not tells:
            return complete

        def answer(exit: ReadExit, data: bytes) -> None:
            complete(exit, data)
            for tell in tells:
                tell(self._vcpu.id, exit, data)

        return answer

    def _hooks(self, name: str) -> list[Callable[..., None]]:
        """Return the methods called ``name`` of the observers that have one: see ``CloseObserver``."""
        return [getattr(observer, name) for observer in self._observers if hasattr(observer, name)]

    def _leave(self) -> None:
        for tell in self._hooks("leave"):
            tell(self._vcpu.id)

    def _note(self, exit: Exit) -> None:
        for observer in self._observers:
            observer.exit(self._vcpu.id, exit)

    def _tick(self) -> Stop | None:
        """Look at the clock, for Ctrl-C, and whether there is anything left to run."""
        if self._ctrl_c is not None:
            self._ctrl_c.check()
        self._tell_time()
        if self._now() >= self._deadline:
            return TimedOut(self._timeout)
        if self._handlers.is_idle is not None and not self._vcpu.if_flag and self._handlers.is_idle():
            return Halted()
        return None

    def _tell_time(self) -> None:
        with self._control.lock:
            for observer in self._observers:
                observer.tick()


def _tick_interval(timeout: float | None) -> float:
    """Return the seconds between ticks, chosen so that one falls on the deadline."""
    if timeout is None or timeout > DAY:
        return TICK
    return max(SHORTEST_TICK, timeout / math.ceil(timeout / TICK))


class DeferredInterrupt:
    """Puts Ctrl-C off until ``check()``, so that it never breaks into a device in the middle of an answer.

    The signal itself takes the vCPU out of KVM_RUN, so the delay is nothing; a second Ctrl-C does not wait, for the
    sake of devices that hang. Only on the main thread, and only where nobody has a SIGINT handler of their own.
    """

    def __init__(self) -> None:
        self._pending = False
        self._installed = False

    def __enter__(self) -> Self:
        on_main = threading.current_thread() is threading.main_thread()
        if on_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if error is None:
                self.check()

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._pending:
            raise KeyboardInterrupt
        self._pending = True
