"""The run loop: takes exits from a vCPU, hands them to the devices, and knows when to stop.

This is the trip that everything else is built around:

    KVM_RUN -> exit -> observers -> bus -> device -> answer -> KVM_RUN

The vCPU is known by a protocol, so that a scripted one can stand in for KVM's. See: Documentation/virt/kvm/api.rst,
section 5, for what each exit wants. Leaves out so far: several vCPUs, interrupts.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol, Self

from pykvm.devices import Bus
from pykvm.errors import ConfigurationError, UnansweredReadError
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
from pykvm.machine.observer import Observer
from pykvm.machine.stop import Crashed, Halted, ShutdownRequested, Stop, TimedOut

__all__ = ["DeferredInterrupt", "RunLoop", "VcpuProtocol"]

# How often a running guest is looked in on: for time limits, Ctrl-C, and output that waits to be flushed.
TICK = 0.1
SHORTEST_TICK = 0.001  # a timer that is faster than a signal can be handled leaves no time for anything else
DAY = 86400.0

# How many more exits the last instruction may want before a stopped machine's registers are read (``rep insb`` comes in
# parts). A hostile guest's instruction wants 2**64 of them, and is left where it is.
SETTLE_LIMIT = 64


class VcpuProtocol(Protocol):
    """What the run loop needs of a vCPU: ``pykvm.kvm.Vcpu`` has it, and so may a stand-in for tests."""

    id: int

    def run(self) -> Exit:
        """Run until the next exit."""

    def complete(self, exit: ReadExit, data: bytes) -> None:
        """Answer a read."""

    def refuse(self, exit: Rdmsr | Wrmsr) -> None:
        """Refuse an MSR access."""

    def complete_pending(self) -> Exit | None:
        """Finish the instruction of the last exit."""

    def start_ticks(self, first: float, interval: float) -> None:
        """Make ``run()`` return ``Intr`` every ``interval`` seconds."""

    def stop_ticks(self) -> None:
        """End ``start_ticks``."""


class RunLoop:
    """Runs one vCPU against two buses.

    ``requested`` is asked after each exit whether a device, or another thread, wants the run to stop.
    """

    def __init__(
        self,
        vcpu: VcpuProtocol,
        pio: Bus,
        mmio: Bus,
        observers: Sequence[Observer] = (),
        requested: Callable[[], Stop | None] = lambda: None,
    ) -> None:
        self._vcpu = vcpu
        self._pio = pio
        self._mmio = mmio
        self._observers = observers
        self._requested = requested

    def run(self, timeout: float | None) -> Stop:
        """Run until the guest stops, a stop is requested, or ``timeout`` seconds (None: no limit) have passed.

        Raises: ConfigurationError if ``timeout`` is no time; whatever a device raises.
        """
        if timeout is not None and not 0 < timeout < math.inf:
            raise ConfigurationError(f"a time limit is a number of seconds above 0, not {timeout}")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        interval = _tick_interval(timeout)
        self._vcpu.start_ticks(interval, interval)
        try:
            with DeferredInterrupt() as interrupt:
                return self._loop(deadline, timeout, interrupt)
        finally:
            self._vcpu.stop_ticks()
            self._tick()

    def settle(self) -> None:
        """Have the kernel finish the last instruction, so that the registers tell the truth."""
        for _ in range(SETTLE_LIMIT):
            try:
                exit = self._vcpu.complete_pending()
            except UnansweredReadError:
                return  # a device raised instead of answering: there is nothing to finish the instruction with
            if exit is None:
                return
            self._note(exit)
            self.handle(exit)

    def handle(self, exit: Exit) -> Stop | None:
        """Do what ``exit`` wants. Returns why the run is over, or None to go on."""
        match exit:
            case IoOut():
                for start in range(0, len(exit.data), exit.size):
                    self._pio.write(exit.port, exit.data[start : start + exit.size])
            case IoIn():
                items = [self._pio.read(exit.port, exit.size) for _ in range(exit.count)]
                self._vcpu.complete(exit, b"".join(items))
            case MmioWrite():
                self._mmio.write(exit.address, exit.data)
            case MmioRead():
                self._vcpu.complete(exit, self._mmio.read(exit.address, exit.size))
            case Hlt():
                return Halted()
            case SystemEvent(type=SystemEventType.SHUTDOWN | SystemEventType.RESET):
                return ShutdownRequested(exit)
            case Rdmsr() | Wrmsr():
                self._vcpu.refuse(exit)
            case Shutdown() | FailEntry() | InternalError() | MemoryFault() | SystemEvent() | Unknown():
                return Crashed(exit)
            case Debug() | ExceptionExit() | Hypercall() | Notify() | DirtyRingFull():
                return Crashed(exit)  # nobody asked for these, so nobody knows how to go on
            case _:
                pass  # Intr, Nmi, IrqWindowOpen, SetTpr, TprAccess, IoapicEoi, BusLock: for information
        return None

    def _loop(self, deadline: float, timeout: float | None, interrupt: DeferredInterrupt) -> Stop:
        run, handle, note, requested = self._vcpu.run, self.handle, self._note, self._requested
        while True:
            exit = run()
            if isinstance(exit, Intr):
                interrupt.check()
                self._tick()
                if time.monotonic() >= deadline and timeout is not None:
                    return TimedOut(timeout)
            else:
                note(exit)
                stop = handle(exit)
                if stop is not None:
                    return stop
            stop = requested()
            if stop is not None:
                return stop

    def _note(self, exit: Exit) -> None:
        for observer in self._observers:
            observer.exit(self._vcpu.id, exit)

    def _tick(self) -> None:
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
