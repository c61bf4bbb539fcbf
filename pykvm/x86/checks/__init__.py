"""What the CPU or KVM would refuse in a vCPU's registers, and why, in words.

KVM_SET_SREGS answers an impossible state with EINVAL and nothing more; other impossible states are accepted, and then
the processor fails the VM entry (KVM_EXIT_FAIL_ENTRY) with a reason number. ``check`` says which rule is broken. The
rules are those of the Intel SDM, volume 3, section 27.3.1 ("Checks on the Guest State Area"), for a processor with
"unrestricted guest", and those that KVM adds to protect itself. An AMD processor checks less (AMD64 manual, volume 2,
section 15.5.1), but a state that passes here passes there. Each rule is a function that returns a ``Problem`` or None.

Leaves out what is not in the registers: page tables and PAE's PDPTEs in memory, model-specific registers, the
interruptibility state.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.kvm.structs import CpuidEntry, DebugRegs, Regs, Sregs
from pykvm.x86.checks import control, execution, features, segments
from pykvm.x86.checks.state import Problem, Refusal, State

__all__ = ["Problem", "Refusal", "check"]


def check(
    regs: Regs,
    sregs: Sregs,
    *,
    maxphyaddr: int = 52,
    debugregs: DebugRegs | None = None,
    cpuid: Sequence[CpuidEntry] | None = None,
) -> list[Problem]:
    """Return every rule that the registers break, control registers first; an empty list for a state that can run.

    ``maxphyaddr`` is the width of a guest-physical address in bits (CPUID leaf 0x80000008, EAX bits 7 to 0). Any
    values are taken, even those that no register can hold. ``debugregs`` are checked too if they are given, and CR4
    against ``cpuid``, what KVM_SET_CPUID2 got: an empty list for a vCPU that had no such call.
    """
    state = State(regs, sregs, debugregs or DebugRegs(), maxphyaddr, cpuid)
    return [problem for subject in (control, features, segments, execution) for problem in subject.problems(state)]
