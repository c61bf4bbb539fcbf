"""``SteppedGuest``: a machine and its stepper, as gdb's commands want them.

A guest that crashes stands still first, so that it can be looked at and go back; it ends when it is told to go on. All
memory is reached through the page tables of the CPU that gdb looks at, and never a device's. Leaves out how a guest
steps, stops and goes back: see ``pykvm.observe.stepping``.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pykvm.errors import ConfigurationError, GuestMemoryError, KvmError
from pykvm.machine import Crashed, LastExits, Machine, RunResult, Stop, Stopped, TimedOut, exit_status
from pykvm.observe.gdbstub.debuggee import Ended, Outcome, Standing, Why
from pykvm.observe.gdbstub.registers import CpuRegisters
from pykvm.observe.stepping import Arrival, Reason, Step, Stepper, Watchpoint
from pykvm.observe.stepping.reading import Reader
from pykvm.observe.stepping.watching import touched
from pykvm.units import PAGE_SIZE
from pykvm.x86 import Paging, Walk, check, walk

__all__ = ["SteppedGuest"]

T = TypeVar("T", Arrival, Step)

EXITS_KEPT = 256  # of each CPU
ADDRESSES = 1 << 64


class SteppedGuest:
    """A ``Debuggee`` out of ``machine`` and its ``stepper``; it may run for ``timeout`` seconds, None for no limit.

    ``stop`` is why it ended, None while it has not, and ``log`` has its exits. With ``keeps_steps`` it goes on step by
    step, so that it can go back step by step.
    """

    def __init__(self, machine: Machine, stepper: Stepper, timeout: float | None = None) -> None:
        self._machine = machine
        self._stepper = stepper
        self.log = LastExits(EXITS_KEPT)
        machine.add_observer(self.log)
        self._reader = Reader(machine.memory)
        self._limit = timeout
        self._used = 0.0  # seconds of that
        self._deadline = math.inf  # of the command under way
        self._start = machine.snapshot()
        self._breakpoints: frozenset[int] = frozenset()
        self._watchpoints: tuple[Watchpoint, ...] = ()
        self._interrupt = threading.Event()
        self._crash: Crashed | None = None
        self._culprit = 0  # the CPU that crashed, or ended the run
        self.stop: Stop | None = None
        self.keeps_steps = False

    @property
    def cpus(self) -> int:
        """Return how many CPUs there are."""
        return len(self._machine.vcpus)

    @property
    def time_left(self) -> float | None:
        """Return the seconds that it may still run, None for no limit."""
        return None if self._limit is None else max(0.001, self._limit - self._used)

    def result(self, stop: Stop) -> RunResult:
        """Return what all of it came to, if it ended with ``stop``."""
        return self._machine.result(stop, self.log.count, self._used, self._culprit)

    # ---- registers ----

    def registers(self, cpu: int) -> CpuRegisters:
        """Return the registers of ``cpu``."""
        return CpuRegisters(*self._stepper.registers(cpu), self._machine.vcpus[cpu].get_xsave())

    def set_registers(self, cpu: int, registers: CpuRegisters) -> None:
        """Make ``registers`` those of ``cpu``. Raises: ConfigurationError for what KVM refuses, and why."""
        vcpu, now = self._machine.vcpus[cpu], self.registers(cpu)
        try:
            if registers.sregs != now.sregs:
                vcpu.set_sregs(registers.sregs)
            if registers.regs != now.regs:
                vcpu.set_regs(registers.regs)
            if registers.xsave != now.xsave:
                vcpu.set_xsave(registers.xsave)
        except KvmError as error:
            problems = check(registers.regs, registers.sregs)
            raise ConfigurationError("; ".join([str(error), *map(str, problems)])) from error
        finally:
            self._stepper.touched()

    def activity(self, cpu: int) -> str:
        """Return what ``cpu`` is about, in a few words."""
        return self._machine.activity(cpu)

    # ---- memory ----

    def walk(self, cpu: int, address: int) -> Walk:
        """Return where linear ``address`` leads through the page tables of ``cpu``."""
        return walk(self._machine.memory, Paging.of(self._stepper.registers(cpu)[1]), address)

    def read(self, cpu: int, address: int, size: int) -> bytes:
        """Return up to ``size`` bytes from linear ``address`` on. Raises: GuestMemoryError if there is none."""
        data = self._reader.read(address, size, self._stepper.registers(cpu)[1])
        if not data:
            raise GuestMemoryError(f"there is no memory at {address:#x} for CPU {cpu}", address)
        return data

    def write(self, cpu: int, address: int, data: bytes) -> None:
        """Write ``data`` at linear ``address``, all of it or nothing; pages' rights do not count.

        Raises: GuestMemoryError.
        """
        pieces: list[tuple[int, bytes]] = []
        while data:
            gpa = self.walk(cpu, address).gpa
            region = None if gpa is None else self._machine.memory.find(gpa)
            if gpa is None or region is None or region.readonly:
                raise GuestMemoryError(f"there is no memory to write at {address:#x} for CPU {cpu}", address)
            room = min(PAGE_SIZE - address % PAGE_SIZE, region.end - gpa)
            pieces.append((gpa, data[:room]))
            address, data = (address + room) % ADDRESSES, data[room:]
        for start, piece in pieces:
            self._machine.memory.write(start, piece)
        self._stepper.touched()

    # ---- going on, and back ----

    def set_breakpoints(self, breakpoints: frozenset[int], watchpoints: frozenset[Watchpoint]) -> None:
        """Stop at these, on all CPUs, and at no others."""
        self._breakpoints = breakpoints
        self._watchpoints = tuple(sorted(watchpoints, key=lambda watched: (watched.address, watched.length)))

    def step(self, cpu: int) -> Outcome:
        """Execute one instruction of ``cpu``; the others stand still."""
        if self._crash is not None:
            return self._end(self._crash, cpu)
        step = self._timed(lambda: self._stepper.step(cpu, should_stop=self._is_over))
        if step.stop == Stopped():
            return Standing(Why.INTERRUPT, cpu) if self._has_time else self._end(self._time_out(), cpu)
        if step.stop is not None:
            return self._end(step.stop, cpu)
        hit = touched(self._reader, step, self._watchpoints)
        return Standing(Why.STEP, cpu) if hit is None else Standing(Why.WATCHPOINT, cpu, hit)

    def go(self) -> Outcome:
        """Go on, on all CPUs."""
        if self._crash is not None:
            return self._end(self._crash, self._culprit)
        arrival = self._timed(
            lambda: self._stepper.continue_(
                self._breakpoints,
                self._watchpoints,
                timeout=self.time_left,
                should_stop=self._interrupt.is_set,
                stepping=self.keeps_steps,
            )
        )
        return self._outcome(arrival)

    def step_back(self) -> Outcome:
        """Undo what was done last: a step, or all that was run at full speed."""
        self._crash = None
        done = self._stepper.back()
        return Standing(Why.OLDEST) if done is None else Standing(Why.STEP, done.cpu)

    def go_back(self) -> Outcome:
        """Go back to a breakpoint, a watched access, or the oldest that is kept."""
        self._crash = None
        return self._outcome(
            self._stepper.reverse_continue(self._breakpoints, self._watchpoints, should_stop=self._interrupt.is_set)
        )

    def reset(self) -> None:
        """Make everything what it was before the first instruction. Raises: KvmError."""
        self._machine.restore(self._start)
        self._stepper.touched()
        self._crash = None

    def interrupt(self) -> None:
        """Have the command under way, or else the next one, end soon. From any thread."""
        self._interrupt.set()

    def forget_interrupt(self) -> None:
        """Forget an interrupt that came when nothing was under way any more."""
        self._interrupt.clear()

    # ---- inside ----

    def _outcome(self, arrival: Arrival) -> Outcome:
        match arrival.reason:
            case Reason.BREAKPOINT:
                return Standing(Why.BREAKPOINT, arrival.cpu)
            case Reason.WATCHPOINT:
                return Standing(Why.WATCHPOINT, arrival.cpu, arrival.watchpoint)
            case Reason.INTERRUPTED:
                return Standing(Why.INTERRUPT, arrival.cpu)
            case Reason.HISTORY:
                return Standing(Why.OLDEST, arrival.cpu)
            case Reason.TIMEOUT:
                return self._end(self._time_out(), arrival.cpu)
        if arrival.stop is None:
            return Standing(Why.STEP, arrival.cpu)
        return self._end(arrival.stop, arrival.cpu)

    def _end(self, stop: Stop, cpu: int) -> Outcome:
        self._culprit = cpu
        if isinstance(stop, Crashed) and self._crash is None:
            self._crash = stop
            return Standing(Why.CRASH, cpu, words=f"pykvm: {self.result(stop).report}")
        self.stop = stop
        return Ended(exit_status(stop))

    def _time_out(self) -> TimedOut:
        return TimedOut(self._limit or 0.0)

    @property
    def _has_time(self) -> bool:
        return self._limit is None or self._used < self._limit

    def _is_over(self) -> bool:
        return self._interrupt.is_set() or time.monotonic() >= self._deadline

    def _timed(self, do: Callable[[], T]) -> T:
        start = time.monotonic()
        self._deadline = math.inf if self._limit is None else start + self._limit - self._used
        try:
            return do()
        finally:
            self._used += time.monotonic() - start
