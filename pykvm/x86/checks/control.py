"""Rules for control registers, EFER and the APIC base.

See: Intel SDM volume 3, section 27.3.1.1; kvm_is_valid_sregs() in the kernel's arch/x86/kvm. Bits 31 to 0 of CR0 that
have no name are not refused by anyone, so there is no rule for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from pykvm.x86.checks.state import MASK64, Problem, Refusal, Rule, State, fits, unnamed_bits
from pykvm.x86.registers import ApicBase, Cr0, Cr3, Cr4, Efer, describe

__all__ = ["RULES", "problems"]

# CR4 bits that KVM keeps from guests on every processor.
_NOT_OFFERED = Cr4.SMXE.value | Cr4.KL.value | Cr4.PKS.value | Cr4.UINTR.value
_LAM = Cr3.LAM_U48.value | Cr3.LAM_U57.value


def problems(state: State) -> Iterator[Problem]:
    """Return the broken rules of this module."""
    return (problem for rule in RULES if (problem := rule(state)) is not None)


def registers_fit_64_bits(state: State) -> Problem | None:
    """CR2 and CR3, and all others that KVM hands on as they are, are 64 bits wide."""
    values = [(field.name, getattr(state.sregs, field.name)) for field in fields(state.sregs)]
    wide = [name.upper() for name, value in values if isinstance(value, int) and not fits(value, 64)]
    if wide:
        return Problem(", ".join(wide), "more than 64 bits", "a register has 64 bits", Refusal.LOST)
    return None


def cr0_upper_half_is_clear(state: State) -> Problem | None:
    """KVM refuses bits 63 to 32."""
    high = unnamed_bits(Cr0, state.sregs.cr0) >> 32 << 32
    if high:
        return Problem("CR0", f"bits {high:#x} are set", "bits 63 to 32 are reserved", Refusal.EINVAL)
    return None


def cr0_paging_needs_protection(state: State) -> Problem | None:
    """KVM and the processor refuse it."""
    if state.has(Cr0.PG) and not state.has(Cr0.PE):
        return Problem("CR0", "PG is set without PE", "paging exists in protected mode only", Refusal.EINVAL)
    return None


def cr0_write_through_needs_cache_disable(state: State) -> Problem | None:
    """KVM and the processor refuse it."""
    if state.has(Cr0.NW) and not state.has(Cr0.CD):
        why = "not write-through means nothing for an enabled cache: set both or none"
        return Problem("CR0", "NW is set without CD", why, Refusal.EINVAL)
    return None


def cr3_is_a_physical_address(state: State) -> Problem | None:
    """KVM checks it in long mode, the processor always."""
    beyond = state.sregs.cr3 & ~_LAM & MASK64 & ~((1 << max(state.maxphyaddr, 0)) - 1)
    if beyond:
        why = f"a physical address has {state.maxphyaddr} bits here (MAXPHYADDR)"
        return Problem("CR3", f"bits {beyond:#x} are set", why, Refusal.EINVAL if state.long_mode else Refusal.ENTRY)
    return None


def cr4_has_no_unknown_bits(state: State) -> Problem | None:
    """KVM and the processor refuse them."""
    unknown = unnamed_bits(Cr4, state.sregs.cr4)
    if unknown:
        return Problem("CR4", f"bits {unknown:#x} are set", "they are reserved", Refusal.EINVAL)
    return None


def cr4_has_no_bits_kvm_keeps(state: State) -> Problem | None:
    """KVM refuses what it cannot virtualize."""
    kept = state.sregs.cr4 & _NOT_OFFERED
    if kept:
        what = f"{describe(Cr4, kept).strip('[]')} set"
        return Problem("CR4", what, "KVM does not offer that feature to guests", Refusal.EINVAL)
    return None


def cr4_pcid_needs_long_mode(state: State) -> Problem | None:
    """The processor refuses it."""
    if state.has(Cr4.PCIDE) and not state.long_mode:
        why = "process-context identifiers exist in long mode only"
        return Problem("CR4", "PCIDE is set while EFER.LMA is clear", why, Refusal.ENTRY)
    return None


def cr4_cet_needs_write_protect(state: State) -> Problem | None:
    """The processor refuses it."""
    if state.has(Cr4.CET) and not state.has(Cr0.WP):
        why = "a shadow stack is safe only if ring 0 obeys read-only pages"
        return Problem("CR4", "CET is set while CR0.WP is clear", why, Refusal.ENTRY)
    return None


def long_mode_needs_pae(state: State) -> Problem | None:
    """KVM and the processor refuse it."""
    if state.has(Efer.LME) and state.has(Cr0.PG) and not state.has(Cr4.PAE):
        why = "long mode's page tables are an extension of PAE's"
        return Problem("CR4", "PAE is clear while EFER.LME and CR0.PG are set", why, Refusal.EINVAL)
    return None


def cr8_is_a_priority(state: State) -> Problem | None:
    """KVM keeps the old value and says nothing."""
    if not fits(state.sregs.cr8, 4):
        why = "it is the task priority, 0 to 15; KVM keeps the old one and says nothing"
        return Problem("CR8", f"is {state.sregs.cr8:#x}", why, Refusal.LOST)
    return None


def efer_has_no_unknown_bits(state: State) -> Problem | None:
    """The processor refuses them; newer versions of KVM too."""
    unknown = unnamed_bits(Efer, state.sregs.efer)
    if unknown:
        return Problem("EFER", f"bits {unknown:#x} are set", "they are reserved", Refusal.ENTRY)
    return None


def efer_active_needs_enable(state: State) -> Problem | None:
    """KVM and the processor refuse it."""
    if state.has(Efer.LMA) and not state.has(Efer.LME):
        why = "long mode is active only where it was enabled: set LME too"
        return Problem("EFER", "LMA is set without LME", why, Refusal.EINVAL)
    return None


def efer_active_needs_paging(state: State) -> Problem | None:
    """KVM and the processor refuse it."""
    if state.has(Efer.LMA) and not state.has(Cr0.PG):
        why = "long mode becomes active when paging is switched on, not before"
        return Problem("EFER", "LMA is set while CR0.PG is clear", why, Refusal.EINVAL)
    return None


def efer_enable_and_paging_is_active(state: State) -> Problem | None:
    """KVM and the processor refuse it."""
    if state.has(Efer.LME) and state.has(Cr0.PG) and not state.has(Efer.LMA):
        why = "the CPU sets LMA by itself when paging starts with LME set; KVM_SET_SREGS expects the result"
        return Problem("EFER", "LMA is clear while LME and CR0.PG are set", why, Refusal.EINVAL)
    return None


def apic_base_has_no_unknown_bits(state: State) -> Problem | None:
    """KVM refuses them."""
    address = ((1 << max(state.maxphyaddr, 12)) - 1) & ~0xFFF
    unknown = unnamed_bits(ApicBase, state.sregs.apic_base) & ~address
    if unknown:
        why = "they are reserved: 0xfee00000 and flags are usual"
        return Problem("APIC_BASE", f"bits {unknown:#x} are set", why, Refusal.EINVAL)
    return None


def apic_base_x2apic_needs_enable(state: State) -> Problem | None:
    """KVM refuses it."""
    if state.sregs.apic_base & ApicBase.EXTD.value and not state.sregs.apic_base & ApicBase.EN.value:
        why = "x2APIC is a mode of an APIC that is on"
        return Problem("APIC_BASE", "EXTD is set without EN", why, Refusal.EINVAL)
    return None


RULES: tuple[Rule, ...] = (
    registers_fit_64_bits,
    cr0_upper_half_is_clear,
    cr0_paging_needs_protection,
    cr0_write_through_needs_cache_disable,
    cr3_is_a_physical_address,
    cr4_has_no_unknown_bits,
    cr4_has_no_bits_kvm_keeps,
    cr4_pcid_needs_long_mode,
    cr4_cet_needs_write_protect,
    long_mode_needs_pae,
    cr8_is_a_priority,
    efer_has_no_unknown_bits,
    efer_active_needs_enable,
    efer_active_needs_paging,
    efer_enable_and_paging_is_active,
    apic_base_has_no_unknown_bits,
    apic_base_x2apic_needs_enable,
)
