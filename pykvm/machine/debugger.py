"""Breakpoints, watchpoints and single steps of a machine's vCPUs, by KVM_SET_GUEST_DEBUG.

A breakpoint stops the CPU before its instruction, and so would stop it there again and again. To go on, the CPU is let
take one step with that breakpoint switched off:

    stopped at a breakpoint --run()--> one step without it --Debug--> all breakpoints are on again

See: Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG; SDM volume 3, section 17.3.1.1, for the CPU's own answer to
this, RFLAGS.RF, which KVM does not look at where it interprets. Leaves out breakpoints in the guest's code (INT3), and
stops after instructions that exit by themselves: that exit takes the step's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pykvm.kvm import Debug, GuestDebugControl, Vcpu
from pykvm.machine.stop import Breakpoint, Crashed, Stop
from pykvm.x86 import BreakpointKind, HardwareBreakpoint, encode_breakpoints, hit_breakpoints

__all__ = ["Debugger"]

OFF = GuestDebugControl(0)
DR7_ENABLE = 0b11  # the local and the global bit of breakpoint 0; breakpoint n has the two that are 2 * n higher


@dataclass(slots=True)
class _Watched:
    """What one vCPU is watched for, and the linear address of the breakpoint that it is leaving."""

    breakpoints: tuple[HardwareBreakpoint, ...]
    step: bool
    leaving: int | None = None


class Debugger:
    """Who is to stop where: ``vcpus`` by their ids."""

    def __init__(self, vcpus: Sequence[Vcpu]) -> None:
        self._vcpus = vcpus
        self._watched: dict[int, _Watched] = {}
        self._stopped_at: dict[int, int] = {}  # by vCPU, linear: where the last run ended

    def watch(self, cpu: int, breakpoints: tuple[HardwareBreakpoint, ...], step: bool) -> None:
        """Stop ``cpu`` at ``breakpoints``, and with ``step`` after every instruction; with neither, nowhere.

        Raises: ConfigurationError for too many; KvmError; InUseError while the vCPU is in KVM_RUN.
        """
        watched = _Watched(breakpoints, step)
        self._arm(cpu, watched)
        if breakpoints or step:
            self._watched[cpu] = watched
        else:
            self._watched.pop(cpu, None)

    def is_watching(self, cpu: int) -> bool:
        """Return whether ``cpu`` is being debugged."""
        return cpu in self._watched

    def stopped(self, cpu: int, exit: Debug) -> None:
        """Take note that ``exit`` of ``cpu`` ended a run: the next one goes on from there."""
        self._stopped_at[cpu] = exit.pc

    @property
    def stops(self) -> dict[int, int]:
        """Return the vCPUs that stand at a breakpoint where they stopped, and the linear addresses of these."""
        return dict(self._stopped_at)

    def put_back(self, stops: Mapping[int, int]) -> None:
        """Make ``stops`` what the property says. Raises: KvmError."""
        if stops or self._stopped_at:
            self._stopped_at = dict(stops)
        for cpu, watched in self._watched.items():
            if watched.leaving is not None:
                watched.leaving = None
                self._arm(cpu, watched)

    def forget_stops(self) -> None:
        """Take note that the vCPUs begin anew."""
        self._stopped_at.clear()

    def go_on(self) -> None:
        """Make the vCPU that stands at a breakpoint where it stopped leave it. Before a run."""
        for cpu, at in self._stopped_at.items():
            watched = self._watched.get(cpu)
            if watched is not None and _executes(watched, at) and at == self._linear_rip(cpu):
                watched.leaving = at
                self._arm(cpu, watched)
        self._stopped_at.clear()

    def on_debug(self, cpu: int, exit: Debug) -> Stop | None:
        """Return why ``exit`` of ``cpu`` ends the run: a stop that was asked for, or a crash; None to go on."""
        watched = self._watched.get(cpu)
        if watched is None:
            return Crashed(exit)
        if watched.leaving is None:
            return Breakpoint(exit)
        watched.leaving = None
        self._arm(cpu, watched)
        return Breakpoint(exit) if watched.step or _saw_data(watched, exit) else None

    # ---- inside ----

    def _arm(self, cpu: int, watched: _Watched) -> None:
        control = OFF
        if watched.breakpoints:
            control |= GuestDebugControl.USE_HW_BP
        if watched.step or watched.leaving is not None:
            control |= GuestDebugControl.SINGLESTEP
        if control:
            control |= GuestDebugControl.ENABLE
        *addresses, dr7 = encode_breakpoints(watched.breakpoints)
        for number, breakpoint in enumerate(watched.breakpoints):
            if breakpoint.kind is BreakpointKind.EXECUTE and breakpoint.address == watched.leaving:
                dr7 &= ~(DR7_ENABLE << 2 * number)
        self._vcpus[cpu].set_guest_debug(control, (*addresses, dr7))

    def _linear_rip(self, cpu: int) -> int:
        vcpu = self._vcpus[cpu]
        return (vcpu.get_sregs().cs.base + vcpu.get_regs().rip) % (1 << 64)


def _executes(watched: _Watched, address: int) -> bool:
    """Return whether a breakpoint stops before the instruction at ``address``."""
    return any(b.kind is BreakpointKind.EXECUTE and b.address == address for b in watched.breakpoints)


def _saw_data(watched: _Watched, exit: Debug) -> bool:
    """Return whether a watchpoint was hit as well, by the very instruction that was stepped over."""
    hit = (watched.breakpoints[number] for number in hit_breakpoints(exit.dr6) if number < len(watched.breakpoints))
    return any(breakpoint.kind is not BreakpointKind.EXECUTE for breakpoint in hit)
