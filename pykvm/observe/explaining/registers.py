"""A register's value bit by bit: CR0, CR3, CR4, EFER, RFLAGS, DR6, DR7 and the APIC base.

What no CPU would take, or KVM would refuse, comes from ``pykvm.x86.checks``, which is given the rest of a state in
which everything else is right. Leaves out rules that depend on more than the one register, as far as they can be
kept whatever its value is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Flag

from pykvm.errors import ConfigurationError
from pykvm.kvm.structs import DebugRegs, Regs, Sregs
from pykvm.observe.explaining.explanation import Bits, Explanation
from pykvm.observe.explaining.lookup import find_name, looks_like_number, parse_number
from pykvm.observe.explaining.meanings import MEANINGS
from pykvm.x86.checks import check
from pykvm.x86.registers import ApicBase, Cr0, Cr3, Cr4, Dr6, Dr7, Efer, Rflags

__all__ = ["REGISTERS", "Register", "explain_register", "explain_value", "named_bits", "register_names"]

_SDM3 = "Intel SDM volume 3, "
_ADDRESS = 0x000F_FFFF_FFFF_F000  # bits 51:12


@dataclass(frozen=True, slots=True)
class Register:
    """A register: the ``kind`` of its flags, what it is for, where that is said, and fields that are no flags.

    ``always`` are bits that read as 1 on every CPU, ``fields`` those that are no flags, with all their bits set.
    """

    name: str
    kind: type[Flag]
    what: str
    advice: str
    see: tuple[str, ...]
    always: int = 0
    fields: tuple[Bits, ...] = ()


_SET_SREGS = "KVM_SET_SREGS sets it from outside, MOV inside the guest."
REGISTERS: dict[str, Register] = {
    "cr0": Register(
        "CR0",
        Cr0,
        "CR0 switches protected mode, paging, caching and the x87 unit.",
        _SET_SREGS,
        (_SDM3 + '"Control Registers" (2.5)',),
    ),
    "cr3": Register(
        "CR3",
        Cr3,
        "CR3 holds the physical address of the top page table. With CR4.PCIDE its bits 11 to 0 are the process-context "
        "identifier instead; with PAE paging the address reaches down to bit 5.",
        _SET_SREGS,
        (_SDM3 + '"Control Registers" (2.5)', _SDM3 + '"Paging" (4)', "pykvm explain pte 0x83 pd"),
        fields=(
            Bits("address", _ADDRESS, "the top page table's physical address"),
            Bits("PCID", 0xFE7, "with CR4.PCIDE a part of the process-context identifier; else ignored"),
        ),
    ),
    "cr4": Register(
        "CR4",
        Cr4,
        "CR4 switches on what came after the 386.",
        _SET_SREGS + " A feature's bit needs that feature in CPUID: KVM_SET_CPUID2 first.",
        (_SDM3 + '"Control Registers" (2.5)',),
    ),
    "efer": Register(
        "EFER",
        Efer,
        "IA32_EFER (MSR 0xc0000080) switches long mode, SYSCALL and no-execute pages.",
        "KVM_SET_SREGS wants the result: LMA too where LME and CR0.PG are set. A guest sets LME; LMA follows when "
        "paging starts.",
        (_SDM3 + '"Extended Feature Enable Register" (2.2.1)', 'AMD64 manual volume 2, "(EFER) Register" (3.1.7)'),
    ),
    "rflags": Register(
        "RFLAGS",
        Rflags,
        "RFLAGS holds the results of arithmetic, and a few controls.",
        "KVM_SET_REGS sets it. Bit 1 is always 1: 0x2 is the value after reset.",
        ('Intel SDM volume 1, "EFLAGS Register" (3.4.3)',),
        always=1 << 1,
    ),
    "dr6": Register(
        "DR6",
        Dr6,
        "DR6 tells after a #DB which debug conditions were met. BLD and RTM are upside down: 0 says that it happened.",
        "The CPU never clears B0 to B3: a handler does. KVM_EXIT_DEBUG brings it in debug.arch.dr6.",
        (_SDM3 + '"Debug Status Register (DR6)"',),
        always=0xFFFE_07F0,
    ),
    "dr7": Register(
        "DR7",
        Dr7,
        "DR7 says which of the four breakpoints are on, and what they watch.",
        "The addresses are in DR0 to DR3; KVM_SET_GUEST_DEBUG takes all eight.",
        (_SDM3 + '"Debug Control Register (DR7)"',),
        always=1 << 10,
    ),
    "apic_base": Register(
        "IA32_APIC_BASE",
        ApicBase,
        "IA32_APIC_BASE (MSR 0x1b) says where the local APIC is, and whether it is on.",
        "0xfee00900 is the value after reset on the processor that booted, 0xfee00800 on the others.",
        (_SDM3 + '"Local APIC Status and Location"',),
        fields=(Bits("address", _ADDRESS, "the APIC's physical address"),),
    ),
}


def register_names() -> list[str]:
    """Return the names that ``explain_register`` knows."""
    return list(REGISTERS)


def explain_register(name: str, words: Sequence[str]) -> Explanation:
    """Return what the value in ``words`` means in the register called ``name``; without one, all of its bits.

    A value is a number, or the names of its bits: "PAE PGE". Raises: ConfigurationError.
    """
    register = REGISTERS[name]
    if not words:
        return _whole(register)
    if len(words) == 1 and looks_like_number(words[0]):
        return explain_value(register, parse_number(words[0], 64, f"a value of {register.name}"))
    value = register.always
    for word in (part for text in words for part in text.replace("|", " ").replace(",", " ").split()):
        if looks_like_number(word):
            raise ConfigurationError(
                f"give one value of {register.name}, or names of its bits, as {_example(register)}"
            )
        value |= register.kind.__members__[find_name(word, register.kind.__members__, f"bit of {register.name}")].value
    return explain_value(register, value)


def explain_value(register: Register, value: int) -> Explanation:
    """Return what ``value``, 64 bits, means in ``register``."""
    return Explanation(
        f"{register.name} {value:#x}",
        register.what,
        advice=(register.advice,),
        see=register.see,
        bits=tuple(_bits(register, value)),
        wrong=tuple(_wrong(register, value)),
    )


def named_bits(kind: type[Flag], value: int) -> Iterator[Bits]:
    """Yield the bits of ``value`` that are members of ``kind`` and set, lowest first; a field with its value."""
    for name, member in sorted(kind.__members__.items(), key=lambda item: int(item[1].value)):
        raw = value & member.value
        if raw:
            is_field = member.value.bit_count() > 1
            label = f"{name}={raw // (member.value & -member.value)}" if is_field else name
            yield Bits(label, raw, MEANINGS[kind][name])


def _whole(register: Register) -> Explanation:
    members = sorted(register.kind.__members__.items(), key=lambda item: int(item[1].value))
    bits = tuple(Bits(name, member.value, MEANINGS[register.kind][name]) for name, member in members)
    return Explanation(register.name, register.what, advice=(register.advice,), see=register.see, bits=bits)


def _bits(register: Register, value: int) -> Iterator[Bits]:
    rest = value
    for found in named_bits(register.kind, value):
        rest &= ~found.raw
        yield found
    if register.kind is Dr6:
        yield from _happened(value)
    for field in register.fields:
        if rest & field.raw:
            yield replace(field, raw=rest & field.raw)
            rest &= ~field.raw
    for meaning, mask in (("always 1", register.always), ("reserved", ~register.always)):
        if rest & mask:
            yield Bits("-", rest & mask, meaning)


def _happened(value: int) -> Iterator[Bits]:
    for bit, what in ((Dr6.BLD, "a bus lock was detected"), (Dr6.RTM, "it happened inside a transaction")):
        if not value & bit.value:
            yield Bits(f"no {bit.name}", 0, f"clear: {what}, on a CPU that has this bit")


def _wrong(register: Register, value: int) -> Iterator[str]:
    missing = register.always & ~value
    if missing and register.kind is not Dr6:
        yield f"bit {missing.bit_length() - 1} is clear: it is always 1 in the CPU"
    regs, sregs, debugregs = _state(register.kind, value)
    where = "APIC_BASE" if register.kind is ApicBase else register.name
    for problem in check(regs, sregs, debugregs=debugregs):
        if problem.where == where:
            yield f"{problem.what}: {problem.why}. What comes of it: {problem.refusal.value}."


def _state(kind: type[Flag], value: int) -> tuple[Regs, Sregs, DebugRegs]:
    """Return a state with ``value`` in the register of ``kind``, in which the other registers suit it."""
    regs, sregs, debugregs = Regs(), Sregs(cr0=Cr0.PE.value), DebugRegs()
    is_long = kind is Cr3 or (kind is Cr4 and value & Cr4.PAE.value) or (kind is Efer and value & Efer.LMA.value)
    if is_long:
        sregs.cr0, sregs.cr4, sregs.efer = (Cr0.PE | Cr0.PG).value, Cr4.PAE.value, (Efer.LME | Efer.LMA).value
    if kind is Cr4:
        sregs.cr0 |= Cr0.WP.value
    if kind is Rflags:
        regs.rflags = value
    elif kind in (Dr6, Dr7):
        setattr(debugregs, kind.__name__.lower(), value)
    else:
        setattr(sregs, "apic_base" if kind is ApicBase else kind.__name__.lower(), value)
    return regs, sregs, debugregs


def _example(register: Register) -> str:
    return next(iter(register.kind.__members__))
