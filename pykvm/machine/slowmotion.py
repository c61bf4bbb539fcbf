"""``SlowMotion``: a machine whose guest is entered once at a time, for who wants to see each instruction.

Time goes by the guest's instructions here: each takes a microsecond of the machine's clock, HLT is over when the next
alarm is due, and the alarms are called between two instructions; so what a guest does can be repeated. What KVM makes
of single steps on one host and another is hidden:

    an instruction that exits            its exit, or exits, take the step's place: they are handled, and it is finished
    REP                                  may stop after each element: goes on until RIP has left it
    HLT                                  may show no exit, and halt later on: it is executed here
    an interrupt from outside the kernel stops at its handler, for that is given a breakpoint

See: Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG. Leaves out exceptions, and interrupts of local APICs in the
kernel, which may only be seen after the handler's first instruction: see ``pykvm.observe.stepping``; time inside the
kernel, which is the host's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pykvm.errors import SnapshotError
from pykvm.kvm import (
    Debug,
    Exit,
    GuestDebugControl,
    Hlt,
    Intr,
    IrqWindowOpen,
    MpState,
    MpStateValue,
)
from pykvm.kvm.structs import ExceptionEvent
from pykvm.machine.control import TICK
from pykvm.machine.diary import Diary
from pykvm.machine.moment import Moments
from pykvm.machine.prepared import HasState
from pykvm.machine.ring3 import DB, execute_iret, step_in_ring_3
from pykvm.machine.runloop import DeferredInterrupt, RunLoop
from pykvm.machine.snapshotter import Parts
from pykvm.machine.stop import Halted, Stop, Stopped
from pykvm.x86 import HardwareBreakpoint, Rflags, encode_breakpoints

__all__ = ["Happened", "SlowMotion", "Wanted"]

INSTRUCTION_TIME = 1000  # nanoseconds of the machine's clock
NMI = 2
WAITS_FOR_ANOTHER = (MpStateValue.UNINITIALIZED, MpStateValue.INIT_RECEIVED)
MOST_PARTS = 1 << 16  # of one instruction with REP; the next step goes on with the rest
MOST_TICKS = 5  # and for how long
LONGEST_WAIT = 10  # ticks that a halted CPU is waited for while others stand still


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of the step to come: RIP is ``linear``, the instruction may be HLT in ring 0, or repeat by REP.

    ``handler_of`` returns the linear address of a vector's handler; ``guard`` is one to stop at as well.
    ``coming`` is the vector of an exception that the CPU takes before it executes anything. ``is_unseen``
    says that KVM shows no step there, and ``is_iret`` that it may lead to where none is shown: see ``ring3``.
    """

    linear: int
    is_hlt: bool
    repeats: bool
    handler_of: Callable[[int], int | None]
    guard: int | None = None
    coming: int | None = None
    is_unseen: bool = False
    is_iret: bool = False


@dataclass(slots=True)
class Happened:
    """What a step came to. ``vector`` is the interrupt that was handed to the CPU, ``stop`` why it cannot go on.

    ``exception`` is the vector of one that was seen on its way; others may have been raised.

    ``is_over`` is False if nothing was executed, because somebody did not want to wait any longer.
    """

    exits: list[Exit] = field(default_factory=list)
    vector: int | None = None
    exception: int | None = None
    stop: Stop | None = None
    is_touched: bool = False
    is_over: bool = True
    is_woken: bool = False  # from HLT, by an interrupt


class SlowMotion:
    """Enters the machine made of ``parts`` and ``devices``; ``hold`` keeps everybody else from running it meanwhile."""

    def __init__(
        self,
        parts: Parts,
        devices: Mapping[str, HasState],
        hold: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self.moments = Moments(parts, devices)
        self.diary = Diary(parts.vm, parts.dirty, parts.memories)
        self._parts = parts
        self._hold = hold
        self._has_local_apic = parts.interrupts.kind.has_local_apic
        self._entered = [False] * len(parts.vcpus)
        parts.vm.forget_translations()  # as when going back, so that pages are marked as accessed in both cases

    @contextlib.contextmanager
    def moving(self, cpu: int, tick: float = TICK) -> Iterator[RunLoop]:
        """Be the thread that runs ``cpu``, and look every ``tick`` seconds whether to go on while nothing happens.

        Ctrl-C comes through at the end. Raises: InUseError if another thread runs the machine.
        """
        loop, vcpu = self._parts.loops[cpu], self._parts.vcpus[cpu]
        with self._hold(), DeferredInterrupt(), self._parts.control.running(loop):
            vcpu.start_ticks(tick, tick)
            try:
                yield loop
            finally:
                vcpu.stop_ticks()

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Keep the machine as it is, for who takes moments or puts them back."""
        with self._hold(), self._parts.control.lock:
            yield

    def settle(self) -> None:
        """Have every CPU finish its last instruction. Raises: SnapshotError if one cannot."""
        for loop, vcpu in zip(self._parts.loops, self._parts.vcpus, strict=True):
            loop.settle()
            if not vcpu.is_settled:
                raise SnapshotError(f"CPU {vcpu.id} is in the middle of an instruction that cannot be finished")

    def let_go(self) -> None:
        """Step no CPU any more."""
        for vcpu in self._parts.vcpus:
            vcpu.set_guest_debug(GuestDebugControl(0))

    def raise_debug(self, cpu: int, hit: int) -> None:
        """Have ``cpu`` take #DB at the next step, with the bits ``hit`` set in its DR6."""
        vcpu = self._parts.vcpus[cpu]
        debug, events = vcpu.get_debugregs(), vcpu.get_vcpu_events()
        debug.dr6 |= hit
        events.exception = ExceptionEvent(injected=1, nr=DB)
        vcpu.set_debugregs(debug)
        vcpu.set_vcpu_events(events)

    def begins_anew(self) -> None:
        """Take note that moments were put back: a CPU's last exit is what the moment says."""
        self._entered = [True] * len(self._entered)

    def step(self, cpu: int, wanted: Wanted, should_stop: Callable[[], bool]) -> Happened:
        """Execute one instruction of ``cpu``, or let it take an interrupt; inside ``moving(cpu)``.

        Raises: SnapshotError if ``should_stop`` in the middle of an instruction; whatever a device raises; KvmError.
        """
        happened = Happened(exception=wanted.coming)
        with self._parts.control.lock:
            happened.is_touched = self._parts.events.pass_time(INSTRUCTION_TIME)
        if self._is_ready(cpu, happened, should_stop):
            self._enter(cpu, wanted, happened, should_stop)
        self._take_stop(happened)
        return happened

    # ---- before ----

    def _is_ready(self, cpu: int, happened: Happened, should_stop: Callable[[], bool]) -> bool:
        """Have the CPU ready to be entered, waiting if it is halted; False if it cannot be, or nobody wants to wait."""
        control, loop = self._parts.control, self._parts.loops[cpu]
        if control.attention:
            happened.is_touched = True
            happened.vector = NMI if cpu in control.requests.nmis else None
            happened.stop = control.attend(loop, lambda: self._sleep(should_stop))
            if happened.stop is not None:
                return False
        if self._has_local_apic and self._parts.vcpus[cpu].get_mp_state().mp_state in WAITS_FOR_ANOTHER:
            happened.stop = Halted()
            return False
        while loop.is_halted and happened.vector is None:
            happened.is_touched = True
            source = self._parts.interrupts.source
            if source is None or source.output:
                loop.reset()
                happened.is_woken = True
            elif should_stop():
                happened.is_over = False
                return False
            else:
                self._wait()
        return True

    def _sleep(self, should_stop: Callable[[], bool]) -> Stop | None:
        """Wait while the machine sleeps (S3) or is paused; return a stop if nothing will wake it."""
        self._wait()
        return Stopped() if should_stop() else None

    def _wait(self) -> None:
        """Let time pass up to the next alarm, or wait a tick for descriptors and other threads."""
        parts = self._parts
        with parts.control.lock:
            time = parts.events.time_to_next
            if time is not None:
                parts.events.pass_time(time)
                return
        source = parts.interrupts.source
        parts.control.wait(lambda: source is not None and source.output)
        with parts.control.lock:
            parts.events.pass_time(0)

    # ---- the step ----

    def _enter(self, cpu: int, wanted: Wanted, happened: Happened, should_stop: Callable[[], bool]) -> None:
        loop, ticks = self._parts.loops[cpu], 0
        for _ in range(MOST_PARTS):
            if happened.vector is None and happened.exception is None and not happened.exits:
                happened.vector = loop.inject(self._entered[cpu], is_woken=happened.is_woken)
            happened.is_touched |= happened.vector is not None
            if happened.vector is None and happened.exception is None and self._executes(cpu, wanted, happened):
                return
            exit = self._enter_once(cpu, wanted, happened)
            match exit:
                case Intr():
                    ticks += 1
                    if self._gives_up(cpu, wanted, happened, ticks, should_stop):
                        return
                case IrqWindowOpen():
                    loop.take(exit)
                case Debug():
                    is_event = happened.vector is not None or happened.exception is not None
                    if is_event or not (wanted.repeats and exit.pc == wanted.linear):
                        return
                case _:
                    if self._handle(cpu, exit, happened, should_stop) or not self._stays(cpu, wanted):
                        return
        # What is left of a long REP is the next step's.

    def _executes(self, cpu: int, wanted: Wanted, happened: Happened) -> bool:
        """Execute the instruction without KVM, if that would make something else of it; return whether it is done."""
        if wanted.is_hlt:
            self._halt(cpu, happened)
            return True
        return wanted.is_iret and execute_iret(self._parts.memories[0], self._parts.vcpus[cpu])

    def _enter_once(self, cpu: int, wanted: Wanted, happened: Happened) -> Exit:
        loop, self._entered[cpu] = self._parts.loops[cpu], True
        if wanted.is_unseen and happened.vector is None and wanted.coming is None:
            exit, happened.exception = step_in_ring_3(loop, self._parts.vcpus[cpu], wanted.handler_of)
            return exit
        self._arm(cpu, wanted, happened.vector)
        return loop.enter_once()

    def _arm(self, cpu: int, wanted: Wanted, vector: int | None) -> None:
        control = GuestDebugControl.ENABLE | GuestDebugControl.SINGLESTEP
        handlers = [wanted.handler_of(taken) for taken in (vector, wanted.coming) if taken is not None]
        places = {place for place in (wanted.guard, *handlers) if place is not None}
        breakpoints = list(map(HardwareBreakpoint, places))
        if breakpoints:
            control |= GuestDebugControl.USE_HW_BP
        self._parts.vcpus[cpu].set_guest_debug(control, encode_breakpoints(breakpoints))

    def _gives_up(
        self, cpu: int, wanted: Wanted, happened: Happened, ticks: int, should_stop: Callable[[], bool]
    ) -> bool:
        """Return whether there is no sense in entering the guest again after a tick, or a kick."""
        parts = self._parts
        taken = parts.control.take()
        if taken is not None:
            happened.stop = taken[0]
            return True
        if should_stop():
            happened.is_over = False
            return True
        if wanted.repeats and not happened.exits and ticks > MOST_TICKS:
            return True
        if not self._has_local_apic or parts.vcpus[cpu].get_mp_state().mp_state != MpStateValue.HALTED:
            return False
        is_idle = not parts.vcpus[cpu].if_flag and ticks > 1
        if is_idle or (len(parts.vcpus) > 1 and ticks > LONGEST_WAIT):
            happened.stop = Halted()
            return True
        return False

    def _handle(self, cpu: int, exit: Exit, happened: Happened, should_stop: Callable[[], bool]) -> bool:
        """Do what ``exit`` wants and let KVM finish the instruction; return whether that is all there is to it."""
        loop, vcpu = self._parts.loops[cpu], self._parts.vcpus[cpu]
        happened.is_touched = True
        next_exit: Exit | None = exit
        for _ in range(MOST_PARTS):
            if next_exit is None:
                return happened.stop is not None
            if isinstance(next_exit, Debug):
                return happened.stop is not None
            happened.exits.append(next_exit)
            happened.stop = loop.take(next_exit) or happened.stop
            if isinstance(next_exit, Hlt):
                return True
            if happened.stop is not None and vcpu.is_settled:
                return True
            next_exit = vcpu.complete_pending()
            if should_stop() and next_exit is not None:
                break
        raise SnapshotError(f"CPU {cpu} is in the middle of an instruction that wants ever more exits: step again")

    def _stays(self, cpu: int, wanted: Wanted) -> bool:
        """Return whether the CPU still stands at an instruction that repeats."""
        if not wanted.repeats:
            return False
        vcpu = self._parts.vcpus[cpu]
        rip = vcpu.get_regs().rip
        return wanted.linear in (rip, (rip + vcpu.get_sregs().cs.base) % (1 << 32))

    def _halt(self, cpu: int, happened: Happened) -> None:
        """Execute HLT in ring 0."""
        vcpu, loop = self._parts.vcpus[cpu], self._parts.loops[cpu]
        regs, events = vcpu.get_regs(), vcpu.get_vcpu_events()
        regs.rip += 1
        events.interrupt.shadow = 0
        vcpu.set_regs(regs)
        vcpu.set_vcpu_events(events)
        happened.is_touched = True
        if not self._has_local_apic:
            happened.exits.append(Hlt())
            happened.stop = loop.take_hlt(is_waiting=bool(regs.rflags & Rflags.IF.value))
            return
        vcpu.set_mp_state(MpState(MpStateValue.HALTED))
        has_ears = regs.rflags & Rflags.IF.value or len(self._parts.vcpus) > 1 or events.nmi.pending
        if not has_ears:
            happened.stop = Halted()

    def _take_stop(self, happened: Happened) -> None:
        taken = self._parts.control.take()
        if taken is not None:
            happened.stop = taken[0]
