"""``Motion``: one step, one stretch, and one step back, each of them written down.

    now --step--> now'          the entry keeps ``now``, what was done, and the bytes of memory that changed
    now <--undo-- now'

An exception, or an interrupt of a local APIC in the kernel, may only be seen when the first instruction of its handler
has been executed as well. Then all that is undone, and done again with a breakpoint at the handler. Leaves out what to
do in which order, and when to stop: see ``stepper``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pykvm.errors import PykvmError
from pykvm.kvm import Regs, Sregs
from pykvm.kvm.saved import SavedVcpu
from pykvm.machine import Machine, RunResult, Stop, Stopped
from pykvm.machine.diary import MemoryChange
from pykvm.machine.moment import Moment
from pykvm.machine.slowmotion import Happened, Wanted
from pykvm.observe.stepping.delivery import Delivery, handler_of, pushed_flags, return_address, taken
from pykvm.observe.stepping.history import Entry, History
from pykvm.observe.stepping.reading import Next, Reader
from pykvm.observe.stepping.step import Event, EventKind, Step, Stretch
from pykvm.observe.stepping.traps import own_watchpoints_hit
from pykvm.probes import probe
from pykvm.x86 import Efer, Msr, Rflags, cpu_mode, linear_rip

__all__ = ["Motion"]

XSTATE_BV = slice(512, 520)  # of an XSAVE area (SDM volume 1, section 13.4.2)
TF_BYTE, TF_BIT = 1, Rflags.TF.value >> 8

IDLE_TICK = 0.002  # seconds that a CPU which nothing wakes is looked at for, when there are others to run


class Motion:
    """Moves ``machine``, and keeps ``history`` bytes of what was before."""

    def __init__(self, machine: Machine, history: int) -> None:
        self.history = History(history)
        self.machine = machine
        self.reader = Reader(machine.memory)
        self._slow = machine.slow_motion()
        with self._slow.standing():
            self._slow.settle()
            self._now = self._slow.moments.take()
        self._known: dict[int, tuple[SavedVcpu, Regs, Sregs]] = {}

    def registers(self, cpu: int) -> tuple[Regs, Sregs]:
        """Return the registers of ``cpu``; they are nobody's to change."""
        _, regs, sregs = self._decode(cpu)
        return regs, sregs

    def next(self, cpu: int) -> Next:
        """Return what ``cpu`` is about to execute."""
        return self.reader.next(*self.registers(cpu))

    # ---- forwards ----

    def step(self, cpu: int, should_stop: Callable[[], bool], *, is_brief: bool = False) -> Step:
        """Execute one instruction of ``cpu``; ``is_brief``: and do not wait for it if it is halted."""
        now, before, registers = self.next(cpu), self._now, self.registers(cpu)
        with self._slow.moving(cpu, *([IDLE_TICK] if is_brief else [])):
            happened, after, changes = self._try(cpu, now, should_stop, return_address(self.reader, now, registers))
            delivery = self._delivery(cpu, now, registers, happened)
            if delivery is not None and not (delivery.is_there or happened.exits):
                self._go_back(before, changes)
                happened, after, changes = self._try(cpu, now, should_stop, delivery.handler)
            changes = self._hide_tf(cpu, now, registers, changes, is_event=bool(_events(happened, delivery)))
            step = Step(
                self.history.position + 1,
                cpu,
                now.address,
                now.instruction,
                registers,
                self.registers(cpu),
                changes,
                tuple(happened.exits),
                _events(happened, delivery),
                happened.stop if happened.is_over else Stopped(),
            )
            self._raise_own(cpu, step)
            if happened.is_over or changes or after.devices is not before.devices:
                self.history.add(Entry(before, step))
            return step

    def stretch(self, run: Callable[[], RunResult]) -> tuple[Stretch, RunResult]:
        """Let ``run`` run the machine at full speed. What it raises comes through, and is written down, too."""
        cpu, start = 0, self._now
        before = self.registers(0)
        stop: Stop | None = Stopped()
        try:
            result = run()
            cpu, stop = result.cpu, result.stop
            before = _decoded(start.vcpus[cpu])
        finally:
            with contextlib.suppress(PykvmError):
                stretch = self._note(start, cpu, before, stop)
        return stretch, result

    def touched(self) -> None:
        """Write down what somebody else changed, if it is anything."""
        self._note(self._now, 0, self.registers(0), None, only_if_different=True)

    # ---- backwards ----

    def undo(self) -> Step | Stretch | None:
        """Go back by one, and return what was undone; None if there is nothing older."""
        if self.history.newest is None:
            return None
        with self._slow.standing():
            entry = self.history.pop()
            if entry is None:
                return None
            self._go_back(entry.before, entry.done.changes)
            return entry.done

    def close(self) -> None:
        """Let go of the machine."""
        self._slow.let_go()
        self._slow.diary.leave()
        self.history.clear()

    # ---- inside ----

    def _try(
        self, cpu: int, now: Next, should_stop: Callable[[], bool], guard: int | None
    ) -> tuple[Happened, Moment, tuple[MemoryChange, ...]]:
        regs, sregs = self.registers(cpu)
        is_unseen = self._is_unseen(regs, sregs)
        wanted = Wanted(
            now.address,
            now.is_hlt and cpu_mode(sregs, regs).ring == 0,
            now.repeats,
            lambda vector: handler_of(self.reader, sregs, vector),
            guard,
            self._now.vcpus[cpu].coming_exception,
            is_unseen=is_unseen,
            is_iret=now.is_iret and not is_unseen and not _shows_ring_3(),
        )
        happened = self._slow.step(cpu, wanted, should_stop)
        is_plain = now.is_plain and happened.stop is None and happened.vector is None
        after = self._slow.moments.take_again(self._now, cpu, is_plain=is_plain, is_touched=happened.is_touched)
        self._now = after
        return happened, after, self._slow.diary.look()

    def _is_unseen(self, regs: Regs, sregs: Sregs) -> bool:
        return bool(sregs.efer & Efer.LMA.value) and cpu_mode(sregs, regs).ring == 3 and not _shows_ring_3()

    def _delivery(self, cpu: int, now: Next, before: tuple[Regs, Sregs], happened: Happened) -> Delivery | None:
        if happened.vector is not None or happened.exception is not None:
            return None
        if not happened.is_over or happened.stop is not None:
            return None
        last = self.machine.vcpus[cpu].get_vcpu_events().exception.nr
        return taken(self.reader, now, before, self.registers(cpu), last)

    def _hide_tf(
        self,
        cpu: int,
        now: Next,
        before: tuple[Regs, Sregs],
        changes: tuple[MemoryChange, ...],
        *,
        is_event: bool,
    ) -> tuple[MemoryChange, ...]:
        """Take the TF by which KVM steps out of what the CPU has pushed, and return what changed in memory then."""
        after = self.registers(cpu)
        place = pushed_flags(self.reader, now, before, after, is_event=is_event)
        gpa = None if place is None else self.reader.translate(place + TF_BYTE, after[1])
        if gpa is None or self.machine.memory.find(gpa) is None:
            return changes
        value = self.machine.memory.read_u8(gpa)
        if not value & TF_BIT:
            return changes
        self._slow.diary.undo(changes)
        for change in changes:
            self.machine.memory.write(change.gpa, change.new)
        self.machine.memory.write_u8(gpa, value & ~TF_BIT)
        return self._slow.diary.look()

    def _raise_own(self, cpu: int, step: Step) -> None:
        """Have the CPU take the #DB that KVM has kept from it, or never raised."""
        saved = self._now.vcpus[cpu]
        if not saved.has_breakpoints or step.stop is not None:
            return
        hit = own_watchpoints_hit(step, saved.debugregs)
        if hit:
            self._slow.raise_debug(cpu, hit)
            self._now = self._slow.moments.take_again(self._now, cpu, is_plain=False, is_touched=False)

    def _go_back(self, moment: Moment, changes: tuple[MemoryChange, ...]) -> None:
        self._slow.diary.undo(changes)
        self._slow.moments.put_back(moment, self._now)
        self._slow.begins_anew()
        self._now = moment

    def _note(
        self,
        start: Moment,
        cpu: int,
        before: tuple[Regs, Sregs],
        stop: Stop | None,
        *,
        only_if_different: bool = False,
    ) -> Stretch:
        with self._slow.standing():
            self._slow.settle()
            self._now = self._slow.moments.take_again(start, None, is_plain=False, is_touched=True)
            changes = self._slow.diary.look()
        done = Stretch(self.history.position + 1, cpu, linear_rip(*before), before, self.registers(cpu), changes, stop)
        if not only_if_different or changes or _differ(start, self._now):
            self.history.add(Entry(start, done))
        return done

    def _decode(self, cpu: int) -> tuple[SavedVcpu, Regs, Sregs]:
        saved, known = self._now.vcpus[cpu], self._known.get(cpu)
        if known is None:
            known = (saved, *_decoded(saved))
        elif known[0] is not saved:
            regs = known[1] if saved.shares(known[0], "regs") else saved.regs
            sregs = known[2] if saved.shares(known[0], "sregs") else saved.sregs
            known = saved, regs, sregs
        self._known[cpu] = known
        return known


def _shows_ring_3() -> bool:
    return probe("single-step-ring3").works


def _decoded(saved: SavedVcpu) -> tuple[Regs, Sregs]:
    return saved.regs, saved.sregs


def _differ(one: Moment, other: Moment) -> bool:
    """Return whether they differ in more than what changes by itself.

    That is the TSC, timers in the kernel, and what XSAVE says is in use.
    """
    if one.devices != other.devices or one.rest != other.rest:
        return True
    return any(_lasting(before) != _lasting(after) for before, after in zip(one.vcpus, other.vcpus, strict=True))


def _lasting(saved: SavedVcpu) -> tuple[object, ...]:
    pieces = {name: data for name, data in saved.pieces.items() if name not in ("msrs", "lapic", "xsave")}
    xsave = saved.pieces["xsave"]
    return (
        pieces,
        xsave[: XSTATE_BV.start],
        xsave[XSTATE_BV.stop :],
        {index: value for index, value in saved.msrs.items() if index != Msr.IA32_TIME_STAMP_COUNTER},
    )


def _events(happened: Happened, delivery: Delivery | None) -> tuple[Event, ...]:
    if happened.vector is not None:
        return (Event(EventKind.INTERRUPT, happened.vector),)
    if happened.exception is not None:
        return (Event(EventKind.EXCEPTION, happened.exception),)
    return () if delivery is None else (delivery.event,)
