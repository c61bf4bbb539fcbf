"""The rule for CR4's feature bits: the guest's CPUID must offer what CR4 switches on.

KVM_SET_SREGS refuses a CR4 with a feature that KVM_SET_CPUID2 did not give to the vCPU; a new vCPU has no CPUID at all.
See: Intel SDM volume 3, section 2.5 (which feature a bit needs), volume 2, CPUID (leaves 1 and 7). Leaves out EFER's
features, which KVM takes from user space unchecked in most versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pykvm.kvm.structs import CpuidEntry
from pykvm.x86.checks.state import Problem, Refusal, Rule, State
from pykvm.x86.registers import Cr4

__all__ = ["RULES", "problems"]

# CR4 bit: the CPUID bits of which one must be set, as (leaf, subleaf, register, bit)
_FEATURES: dict[Cr4, tuple[tuple[int, int, str, int], ...]] = {
    Cr4.UMIP: ((7, 0, "ecx", 2),),
    Cr4.LA57: ((7, 0, "ecx", 16),),
    Cr4.VMXE: ((1, 0, "ecx", 5),),
    Cr4.FSGSBASE: ((7, 0, "ebx", 0),),
    Cr4.PCIDE: ((1, 0, "ecx", 17),),
    Cr4.OSXSAVE: ((1, 0, "ecx", 26),),
    Cr4.SMEP: ((7, 0, "ebx", 7),),
    Cr4.SMAP: ((7, 0, "ebx", 20),),
    Cr4.PKE: ((7, 0, "ecx", 3),),
    Cr4.CET: ((7, 0, "ecx", 7), (7, 0, "edx", 20)),
    Cr4.LASS: ((7, 1, "eax", 6),),
    Cr4.LAM_SUP: ((7, 1, "eax", 26),),
    Cr4.FRED: ((7, 1, "eax", 17),),
}


def problems(state: State) -> Iterator[Problem]:
    """Return the broken rules of this module."""
    return (problem for rule in RULES if (problem := rule(state)) is not None)


def cr4_features_are_in_cpuid(state: State) -> Problem | None:
    """KVM refuses the others."""
    if state.cpuid is None:
        return None
    cpuid = {(entry.function, entry.index): entry for entry in state.cpuid}
    missing = [bit for bit, places in _FEATURES.items() if state.has(bit) and not _offered(cpuid, places)]
    if missing:
        names = " ".join(str(bit.name) for bit in missing)
        why = "the vCPU's CPUID does not offer that: call KVM_SET_CPUID2 with it first"
        return Problem("CR4", f"{names} set", why, Refusal.EINVAL)
    return None


def _offered(cpuid: dict[tuple[int, int], CpuidEntry], places: Sequence[tuple[int, int, str, int]]) -> bool:
    for leaf, subleaf, register, bit in places:
        entry = cpuid.get((leaf, subleaf))
        if entry is not None and getattr(entry, register) >> bit & 1:
            return True
    return False


RULES: tuple[Rule, ...] = (cr4_features_are_in_cpuid,)
