"""Rules for RIP, RFLAGS, the descriptor-table registers, debug registers and the interrupt that waits.

See: Intel SDM volume 3, sections 27.3.1.1 (DR7), 27.3.1.3 (GDTR, IDTR) and 27.3.1.4 (RIP, RFLAGS). That bit 1 of
RFLAGS is set is no rule here, because KVM_SET_REGS sets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from pykvm.x86.checks.state import MASK64, Problem, Refusal, Rule, State, fits, unnamed_bits
from pykvm.x86.registers import Cr0, Rflags

__all__ = ["RULES", "problems"]


def problems(state: State) -> Iterator[Problem]:
    """Return the broken rules of this module."""
    return (problem for rule in RULES if (problem := rule(state)) is not None)


def general_registers_fit_64_bits(state: State) -> Problem | None:
    """They cannot be handed to KVM."""
    wide = [field.name.upper() for field in fields(state.regs) if not fits(getattr(state.regs, field.name), 64)]
    if wide:
        return Problem(", ".join(wide), "more than 64 bits", "a register has 64 bits", Refusal.LOST)
    return None


def rip_is_canonical(state: State) -> Problem | None:
    """The processor refuses it."""
    if state.code64 and not state.canonical(state.regs.rip):
        why = f"bits 63 to {state.linear_width - 1} of a linear address are equal"
        return Problem("RIP", f"{state.regs.rip:#x} is not canonical", why, Refusal.ENTRY)
    return None


def rip_has_32_bits_outside_64_bit_code(state: State) -> Problem | None:
    """The processor refuses it."""
    if not state.code64 and (state.regs.rip & MASK64) >> 32:
        return Problem("RIP", f"is {state.regs.rip:#x}", "only 64-bit code reaches above 4 GiB", Refusal.ENTRY)
    return None


def rflags_has_no_unknown_bits(state: State) -> Problem | None:
    """The processor refuses them."""
    unknown = unnamed_bits(Rflags, state.regs.rflags) & ~0x2
    if unknown:
        why = "bits 63 to 22, 15, 5 and 3 are reserved"
        return Problem("RFLAGS", f"bits {unknown:#x} are set", why, Refusal.ENTRY)
    return None


def rflags_vm_excludes_long_mode(state: State) -> Problem | None:
    """The processor refuses it."""
    if state.has(Rflags.VM) and state.long_mode:
        return Problem("RFLAGS", "VM is set in long mode", "long mode has no virtual-8086 mode", Refusal.ENTRY)
    return None


def rflags_vm_needs_protection(state: State) -> Problem | None:
    """The processor refuses it."""
    if state.has(Rflags.VM) and not state.has(Cr0.PE):
        why = "virtual-8086 mode is a part of protected mode"
        return Problem("RFLAGS", "VM is set while CR0.PE is clear", why, Refusal.ENTRY)
    return None


def interrupt_needs_if(state: State) -> Problem | None:
    """The processor refuses to inject it."""
    if any(state.sregs.interrupt_bitmap) and not state.has(Rflags.IF):
        why = "an interrupt is delivered at once, which the guest forbids"
        return Problem("interrupt_bitmap", "a vector waits while RFLAGS.IF is clear", why, Refusal.ENTRY)
    return None


def interrupt_is_one(state: State) -> Problem | None:
    """KVM takes the lowest vector and forgets the others."""
    count = sum(word.bit_count() for word in state.sregs.interrupt_bitmap)
    if count > 1:
        why = "one can be injected at a time; KVM takes the lowest"
        return Problem("interrupt_bitmap", f"{count} vectors wait", why, Refusal.LOST)
    return None


def gdt_base_is_canonical(state: State) -> Problem | None:
    """The processor refuses it."""
    return _table_base(state, "GDT", state.sregs.gdt.base)


def idt_base_is_canonical(state: State) -> Problem | None:
    """The processor refuses it."""
    return _table_base(state, "IDT", state.sregs.idt.base)


def gdt_limit_has_16_bits(state: State) -> Problem | None:
    """It cannot be handed to KVM."""
    return _table_limit("GDT", state.sregs.gdt.limit)


def idt_limit_has_16_bits(state: State) -> Problem | None:
    """It cannot be handed to KVM."""
    return _table_limit("IDT", state.sregs.idt.limit)


def dr6_has_32_bits(state: State) -> Problem | None:
    """KVM refuses it."""
    return _debug_register("DR6", state.debugregs.dr6)


def dr7_has_32_bits(state: State) -> Problem | None:
    """KVM and the processor refuse it."""
    return _debug_register("DR7", state.debugregs.dr7)


def _table_base(state: State, name: str, base: int) -> Problem | None:
    if state.canonical(base):
        return None
    why = f"bits 63 to {state.linear_width - 1} of a linear address are equal"
    return Problem(name, f"base {base:#x} is not canonical", why, Refusal.ENTRY)


def _table_limit(name: str, limit: int) -> Problem | None:
    if fits(limit, 16):
        return None
    return Problem(name, f"limit is {limit:#x}", "the register's limit has 16 bits", Refusal.LOST)


def _debug_register(name: str, value: int) -> Problem | None:
    if fits(value, 32):
        return None
    return Problem(name, f"is {value:#x}", "bits 63 to 32 are reserved", Refusal.EINVAL)


RULES: tuple[Rule, ...] = (
    general_registers_fit_64_bits,
    rip_is_canonical,
    rip_has_32_bits_outside_64_bit_code,
    rflags_has_no_unknown_bits,
    rflags_vm_excludes_long_mode,
    rflags_vm_needs_protection,
    interrupt_needs_if,
    interrupt_is_one,
    gdt_base_is_canonical,
    idt_base_is_canonical,
    gdt_limit_has_16_bits,
    idt_limit_has_16_bits,
    dr6_has_32_bits,
    dr7_has_32_bits,
)
