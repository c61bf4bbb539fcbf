"""``Stepper``: a machine, an instruction at a time, forwards and backwards, and at full speed where that will do.

    full speed      up to four breakpoints that this host's KVM stops at, and nothing else to look for
    step by step    everything else: watchpoints, conditions, limits, more breakpoints

Everything that was done can be undone, as far back as the history reaches. Leaves out how one step is made: see
``motion``; and what is outside the machine: see ``pykvm.machine.snapshotter``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Regs, Sregs
from pykvm.machine import Breakpoint, Halted, Machine, RunResult, Stop, Stopped, TimedOut
from pykvm.observe.stepping.motion import Motion
from pykvm.observe.stepping.step import Arrival, Reason, Step, Stretch, Watchpoint
from pykvm.observe.stepping.watching import touched
from pykvm.probes import probe
from pykvm.units import MiB
from pykvm.x86 import HardwareBreakpoint, Instruction, cpu_mode, linear_rip

__all__ = ["Stepper"]

HISTORY = 256 * MiB
HARDWARE_BREAKPOINTS = 4
ADDRESSES = 1 << 64

ShouldStop = Callable[[], bool]
Condition = Callable[[Step], bool]


def _never() -> bool:
    return False


class Stepper:
    """Steps ``machine``; keeps up to ``history`` bytes of what was before, and drops the oldest.

    While there is one, nobody else may set ``machine.debug()``. Closing it leaves the machine where it is. Whoever
    changes registers or memory between its calls calls ``touched()``, so that the way back is known.

    Time stands still between the calls. While the guest is stepped it goes by instructions, a microsecond each, and an
    HLT takes no longer than it must; only timers in the kernel's interrupt controllers go by the host's clock.

    Raises: ConfigurationError if the machine cannot be saved; InUseError while it runs.
    """

    def __init__(self, machine: Machine, *, history: int = HISTORY) -> None:
        self._machine = machine
        self._motion = Motion(machine, history)
        self._is_closed = False

    # ---- where it is ----

    @property
    def position(self) -> int:
        """Return how many steps and stretches were made from the beginning to here."""
        return self._motion.history.position

    @property
    def oldest(self) -> int:
        """Return the earliest position that ``back`` can reach."""
        return self._motion.history.oldest

    def registers(self, cpu: int = 0) -> tuple[Regs, Sregs]:
        """Return the registers of ``cpu``. They are kept, too: change a copy. Raises: ConfigurationError."""
        self._check_cpu(cpu)
        return self._motion.registers(cpu)

    def address(self, cpu: int = 0) -> int:
        """Return the linear address of the next instruction of ``cpu``."""
        return linear_rip(*self.registers(cpu))

    def instruction(self, cpu: int = 0) -> Instruction | None:
        """Return the next instruction of ``cpu``, None where the code cannot be read."""
        self._check_cpu(cpu)
        return self._motion.next(cpu).instruction

    def past(self, count: int) -> Sequence[Step | Stretch]:
        """Return the last ``count`` of what was done, oldest first."""
        return [entry.done for entry in self._motion.history.last(count)]

    def touched(self) -> None:
        """Take note that somebody changed registers, memory or devices since the last call; going back undoes it."""
        self._motion.touched()

    # ---- forwards ----

    def step(self, cpu: int = 0, *, should_stop: ShouldStop | None = None) -> Step:
        """Execute one instruction of ``cpu``, while others stand still, and return what it did.

        A halted CPU is waited for until ``should_stop()``; then ``Step.stop`` is ``Stopped()``, and nothing was done.

        Raises: ConfigurationError if there is no such CPU; what a device raises; KvmError.
        """
        self._check_cpu(cpu)
        return self._motion.step(cpu, should_stop or _never)

    def step_over(
        self,
        cpu: int = 0,
        *,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        should_stop: ShouldStop | None = None,
    ) -> Arrival:
        """Execute one instruction of ``cpu``, and if it is a call, or an interrupt comes, all until that returns."""
        watched = tuple(watchpoints)
        start = self.position
        step = self.step(cpu, should_stop=should_stop)
        arrival = self._look_at(step, frozenset(), watched, None, start)
        if arrival is not None:
            return arrival
        back_at = _return_address(step)
        if back_at is None:
            return self._arrive(Reason.STEP, cpu, start)
        stack = step.before[0].rsp
        return self._run_to(back_at, cpu, lambda regs: regs.rsp >= stack, breakpoints, watched, should_stop, start)

    def run_to(
        self,
        address: int,
        cpu: int = 0,
        *,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        should_stop: ShouldStop | None = None,
    ) -> Arrival:
        """Go on until ``cpu`` stands at linear ``address``, or wherever ``continue_`` would stop."""
        self._check_cpu(cpu)
        start = self.position
        return self._run_to(address, cpu, lambda regs: True, breakpoints, tuple(watchpoints), should_stop, start)

    def continue_(
        self,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        *,
        condition: Condition | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        should_stop: ShouldStop | None = None,
        stepping: bool = False,
    ) -> Arrival:
        """Go on, on all CPUs, until one is about to execute the instruction at one of ``breakpoints`` (linear).

        Or until one accesses what ``watchpoints`` watch, ``condition(step)``, which sees every
        step, is true, ``limit`` steps were made,
        ``timeout`` seconds have passed, ``should_stop()`` says so (it is asked at least ten times a second), or the
        guest cannot go on. A CPU leaves the breakpoint at which it stands. At full speed where that is possible, which
        is with up to four breakpoints, and no watchpoints, conditions and limits; ``stepping`` forbids it.

        Raises: as ``step``; ConfigurationError for a breakpoint that is no address.
        """
        places, watched = _addresses(breakpoints), tuple(watchpoints)
        start = self.position
        wants_steps = stepping or bool(watched) or condition is not None or limit is not None
        if wants_steps or not self._can_run(places):
            return self._step_on(places, watched, condition, limit, timeout, should_stop or _never, start)
        for cpu in range(len(self._machine.vcpus)):
            if self.address(cpu) in places:
                step = self.step(cpu, should_stop=should_stop)
                arrival = self._look_at(step, places, (), None, start)
                if arrival is not None:
                    return arrival
        return self._run(places, timeout, should_stop or _never, start)

    # ---- backwards ----

    def back(self) -> Step | Stretch | None:
        """Undo the last step or stretch and return it; None if there is nothing older."""
        return self._motion.undo()

    def back_to(self, position: int) -> None:
        """Undo all that was done after ``position``. Raises: ConfigurationError if that is not in the history."""
        if not self.oldest <= position <= self.position:
            raise ConfigurationError(
                f"nobody can go back to position {position}: the history has {self.oldest} to {self.position}"
            )
        while self.position > position:
            self.back()

    def reverse_continue(
        self,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        *,
        should_stop: ShouldStop | None = None,
    ) -> Arrival:
        """Go back until a CPU stands at one of ``breakpoints``, or an access to what is watched is undone.

        A stretch at full speed is undone as one, so breakpoints inside are not seen.
        """
        places, watched = _addresses(breakpoints), tuple(watchpoints)
        start, cpu = self.position, 0
        while True:
            if should_stop is not None and should_stop():
                return self._arrive(Reason.INTERRUPTED, cpu, start)
            done = self.back()
            if done is None:
                return self._arrive(Reason.HISTORY, cpu, start)
            cpu = done.cpu
            hit = touched(self._motion.reader, done, watched)
            if hit is not None:
                return self._arrive(Reason.WATCHPOINT, cpu, start, watchpoint=hit)
            if self.address(cpu) in places:
                return self._arrive(Reason.BREAKPOINT, cpu, start)

    # ---- closing ----

    def close(self) -> None:
        """Let the machine run freely again, and forget the history. Does nothing the second time."""
        if not self._is_closed:
            self._is_closed = True
            if not self._machine.closed:
                self._motion.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- step by step ----

    def _step_on(
        self,
        places: frozenset[int],
        watched: tuple[Watchpoint, ...],
        condition: Condition | None,
        limit: int | None,
        timeout: float | None,
        should_stop: ShouldStop,
        start: int,
    ) -> Arrival:
        deadline = None if timeout is None else time.monotonic() + timeout
        cpus, left = _Turns(len(self._machine.vcpus)), limit

        def is_over() -> bool:
            return should_stop() or (deadline is not None and time.monotonic() >= deadline)

        while True:
            for cpu in cpus.next_round():
                if should_stop():
                    return self._arrive(Reason.INTERRUPTED, cpu, start)
                if left == 0:
                    return self._arrive(Reason.LIMIT, cpu, start)
                if deadline is not None and time.monotonic() >= deadline:
                    return self._arrive(Reason.TIMEOUT, cpu, start)
                step = self._step_in_turn(cpu, cpus, is_over)
                if cpus.are_all_idle:
                    return self._arrive(Reason.STOP, cpu, start, stop=Halted())
                if step.stop == Stopped() and not should_stop() and is_over():
                    return self._arrive(Reason.TIMEOUT, cpu, start)
                arrival = None if cpus.is_idle(cpu) else self._look_at(step, places, watched, condition, start)
                if arrival is not None:
                    return arrival
                left = None if left is None else left - 1

    def _step_in_turn(self, cpu: int, cpus: _Turns, should_stop: ShouldStop) -> Step:
        if cpus.are_several and cpus.is_idle(cpu):
            step = self._motion.step(cpu, lambda: True, is_brief=True)
        else:
            step = self._motion.step(cpu, should_stop)
        if cpus.are_several:
            cpus.note(cpu, is_idle=isinstance(step.stop, Halted) or (cpus.is_idle(cpu) and step.stop == Stopped()))
        return step

    def _look_at(
        self,
        step: Step,
        places: frozenset[int],
        watched: tuple[Watchpoint, ...],
        condition: Condition | None,
        start: int,
    ) -> Arrival | None:
        """Return why ``step`` was the last, or None if it was not."""
        is_met = condition is not None and condition(step)
        if step.stop == Stopped():
            return self._arrive(Reason.INTERRUPTED, step.cpu, start)
        hit = touched(self._motion.reader, step, watched)
        if step.stop is not None:
            return self._arrive(Reason.STOP, step.cpu, start, watchpoint=hit, stop=step.stop)
        if hit is not None:
            return self._arrive(Reason.WATCHPOINT, step.cpu, start, watchpoint=hit)
        if linear_rip(*step.after) in places:
            return self._arrive(Reason.BREAKPOINT, step.cpu, start)
        if is_met:
            return self._arrive(Reason.CONDITION, step.cpu, start)
        return None

    # ---- at full speed ----

    def _can_run(self, places: frozenset[int]) -> bool:
        """Return whether this host's KVM stops at ``places`` by itself."""
        if not places:
            return True
        if len(places) > HARDWARE_BREAKPOINTS or not probe("hw-breakpoint-ring0").works:
            return False
        return probe("hw-breakpoint-ring3").works or not any(map(self._may_be_ring_3, places))

    def _may_be_ring_3(self, place: int) -> bool:
        for cpu in range(len(self._machine.vcpus)):
            regs, sregs = self.registers(cpu)
            is_paged = cpu_mode(sregs, regs).width == 64 or bool(sregs.cr0 >> 31)
            if is_paged and self._motion.reader.is_for_users(place, sregs):
                return True
            if cpu_mode(sregs, regs).ring == 3:
                return True
        return False

    def _run(self, places: frozenset[int], timeout: float | None, should_stop: ShouldStop, start: int) -> Arrival:
        machine, poll = self._machine, _Poll(self._machine, should_stop)
        if should_stop():
            return self._arrive(Reason.INTERRUPTED, 0, start)

        def run() -> RunResult:
            machine.add_observer(poll)
            try:
                for cpu in range(len(machine.vcpus)):
                    machine.debug(*map(HardwareBreakpoint, sorted(places)), cpu=cpu)
                return machine.run(timeout)
            finally:
                for cpu in range(len(machine.vcpus)):
                    machine.debug(cpu=cpu)
                machine.remove_observer(poll)

        _, result = self._motion.stretch(run)
        match result.stop:
            case Breakpoint():
                return self._arrive(Reason.BREAKPOINT, result.cpu, start)
            case Stopped():
                return self._arrive(Reason.INTERRUPTED, result.cpu, start)
            case TimedOut():
                return self._arrive(Reason.TIMEOUT, result.cpu, start)
        return self._arrive(Reason.STOP, result.cpu, start, stop=result.stop)

    def _run_to(
        self,
        address: int,
        cpu: int,
        is_it: Callable[[Regs], bool],
        breakpoints: Iterable[int],
        watched: tuple[Watchpoint, ...],
        should_stop: ShouldStop | None,
        start: int,
    ) -> Arrival:
        places = _addresses(breakpoints)
        while True:
            arrival = self.continue_(places | _addresses([address]), watched, should_stop=should_stop)
            is_there = arrival.reason is Reason.BREAKPOINT and arrival.address == address
            if is_there and arrival.cpu == cpu and is_it(self.registers(cpu)[0]):
                return self._arrive(Reason.STEP, cpu, start)
            if not is_there or address in places:
                return Arrival(
                    arrival.reason,
                    arrival.cpu,
                    arrival.address,
                    self.position - start,
                    arrival.watchpoint,
                    arrival.stop,
                )

    # ---- inside ----

    def _arrive(
        self,
        reason: Reason,
        cpu: int,
        start: int,
        *,
        watchpoint: Watchpoint | None = None,
        stop: Stop | None = None,
    ) -> Arrival:
        return Arrival(reason, cpu, self.address(cpu), abs(self.position - start), watchpoint, stop)

    def _check_cpu(self, cpu: int) -> None:
        if not 0 <= cpu < len(self._machine.vcpus):
            raise ConfigurationError(f"there is no CPU {cpu}: this machine has 0 to {len(self._machine.vcpus) - 1}")


class _Turns:
    """Whose turn it is among ``count`` CPUs: one instruction each, those that nothing wakes only now and then."""

    PATIENCE = 64  # rounds

    def __init__(self, count: int) -> None:
        self._count = count
        self._idle: set[int] = set()
        self._rounds = 0

    @property
    def are_several(self) -> bool:
        """Return whether there are several."""
        return self._count > 1

    @property
    def are_all_idle(self) -> bool:
        """Return whether nothing wakes any of them."""
        return len(self._idle) == self._count

    def next_round(self) -> list[int]:
        """Return the CPUs to step once."""
        self._rounds += 1
        looks_at_all = self._rounds % self.PATIENCE == 0
        return [cpu for cpu in range(self._count) if looks_at_all or cpu not in self._idle]

    def is_idle(self, cpu: int) -> bool:
        """Return whether nothing woke ``cpu`` when it was tried last."""
        return cpu in self._idle

    def note(self, cpu: int, *, is_idle: bool) -> None:
        """Take note of how trying ``cpu`` came out."""
        if is_idle:
            self._idle.add(cpu)
        else:
            self._idle.discard(cpu)


class _Poll:
    """An observer that stops ``machine`` when ``should_stop`` says so."""

    def __init__(self, machine: Machine, should_stop: ShouldStop) -> None:
        self._machine = machine
        self._should_stop = should_stop

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Ask, about ten times a second."""
        if self._should_stop():
            self._machine.stop()


def _addresses(places: Iterable[int]) -> frozenset[int]:
    found = frozenset(places)
    for place in found:
        if not 0 <= place < ADDRESSES:
            raise ConfigurationError(f"there is no breakpoint at {place:#x}: addresses have 64 bits")
    return found


def _return_address(step: Step) -> int | None:
    """Return the linear address at which what ``step`` began goes on, None if it began nothing."""
    length = len(step.instruction.bytes) if step.instruction else 0
    following = step.address + length
    if step.events:
        is_call = step.instruction is not None and step.instruction.mnemonic.startswith(("int", "syscall"))
        return following if is_call else step.address
    is_call = step.instruction is not None and step.instruction.mnemonic.startswith(("call", "lcall"))
    return following if is_call else None
