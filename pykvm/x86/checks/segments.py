"""Rules for segment registers: CS, SS, DS, ES, FS, GS, TR and LDTR.

See: Intel SDM volume 3, section 27.3.1.2; the types are in sections 3.4.5.1 and 3.5. KVM marks a segment that is not
present as unusable, so a data segment without ``present`` is a null segment here and breaks no rule. Leaves out the
stricter rules of processors without "unrestricted guest", where KVM emulates what the processor would refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields

from pykvm.kvm.structs import Segment
from pykvm.x86.checks.state import MASK64, Problem, Refusal, State, fits
from pykvm.x86.registers import Cr0

__all__ = ["RULES", "SegmentRule", "problems"]

SegmentRule = Callable[[State, str, Segment], Problem | None]

_ALL = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")
_CODE_AND_DATA = ("cs", "ss", "ds", "es", "fs", "gs")
_WIDTHS = {"base": 64, "limit": 32, "selector": 16, "type": 4, "dpl": 2}  # bits; all other fields have one
_CODE = 8  # bit 3 of the type: code, else data
_READABLE = 2  # bit 1 of a code segment's type
_ACCESSED = 1  # bit 0 of a code or data segment's type
_TABLE_INDICATOR = 4  # bit 2 of a selector: LDT, else GDT


def problems(state: State) -> Iterator[Problem]:
    """Return the broken rules of this module, by rule and register."""
    for rule, names in RULES:
        for name in names:
            problem = rule(state, name.upper(), getattr(state.sregs, name))
            if problem is not None:
                yield problem


def fields_fit(state: State, name: str, segment: Segment) -> Problem | None:
    """KVM takes as many bits as the register has."""
    values = [(field.name, getattr(segment, field.name)) for field in fields(segment)]
    wide = [f"{field} {value:#x}" for field, value in values if not fits(value, _WIDTHS.get(field, 1))]
    if wide:
        return Problem(name, f"{', '.join(wide)} does not fit", "the descriptor's fields are smaller", Refusal.LOST)
    return None


def cs_is_usable(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses a null CS."""
    if not _usable(segment):
        return Problem(name, "is not present", "the CPU cannot run without a code segment", Refusal.ENTRY)
    return None


def cs_l_needs_long_mode(state: State, name: str, segment: Segment) -> Problem | None:
    """KVM refuses it."""
    if segment.l and not state.long_mode:
        return Problem(name, "L is set while EFER.LMA is clear", "64-bit code needs long mode", Refusal.EINVAL)
    return None


def cs_l_excludes_d(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    if state.long_mode and segment.l and segment.db:
        why = "with L the default operand size is fixed, and D with L is reserved"
        return Problem(name, "L and D are both set", why, Refusal.ENTRY)
    return None


def cs_is_code(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses others, except type 3, with which real mode's CS may look like data."""
    if _checked(state, segment) and segment.type not in (3, 9, 11, 13, 15):
        why = "CS holds accessed code: 9, 11, 13 or 15, or 3 as in real mode"
        return Problem(name, f"type is {segment.type}", why, Refusal.ENTRY)
    return None


def cs_dpl_agrees_with_ss(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it: the ring is SS.DPL."""
    ring = state.sregs.ss.dpl
    agrees = segment.dpl <= ring if segment.type in (13, 15) else segment.dpl == ring
    if _checked(state, segment) and segment.type in (9, 11, 13, 15) and not agrees:
        why = "SS.DPL is the current ring; code runs in its own, conforming code also in outer rings"
        return Problem(name, f"DPL is {segment.dpl} and SS.DPL is {ring}", why, Refusal.ENTRY)
    return None


def cs_as_data_is_ring_0(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    if _checked(state, segment) and segment.type == 3 and segment.dpl != 0:
        why = "a CS of type 3 is real mode's, which is ring 0"
        return Problem(name, f"DPL is {segment.dpl} with type 3", why, Refusal.ENTRY)
    return None


def ss_is_ring_0_in_real_mode(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    real = not state.has(Cr0.PE) or state.sregs.cs.type == 3
    if not state.virtual_8086 and real and segment.dpl != 0:
        return Problem(name, f"DPL is {segment.dpl} in real mode", "real mode is ring 0", Refusal.ENTRY)
    return None


def ss_is_writable_data(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses others."""
    if _checked(state, segment) and segment.type not in (3, 7):
        return Problem(name, f"type is {segment.type}", "a stack is accessed writable data: 3 or 7", Refusal.ENTRY)
    return None


def data_is_accessed(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it; KVM sets the bit on some hosts."""
    if _checked(state, segment) and not segment.type & _ACCESSED:
        why = "loading a segment sets bit 0 (accessed), so a loaded one has it"
        return Problem(name, f"type {segment.type} is not accessed", why, Refusal.ENTRY)
    return None


def code_as_data_is_readable(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    if _checked(state, segment) and segment.type & _CODE and not segment.type & _READABLE:
        why = "a data segment register takes code only if it may be read"
        return Problem(name, f"type is {segment.type}", why, Refusal.ENTRY)
    return None


def code_and_data_are_no_system_segments(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    if _checked(state, segment) and not segment.s:
        return Problem(name, "S is clear", "that is a system segment: code and data have S set", Refusal.ENTRY)
    return None


def base_has_32_bits(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it: of all segments FS and GS alone have 64-bit bases."""
    needed = name == "CS" or _usable(segment)
    if needed and not state.virtual_8086 and (segment.base & MASK64) >> 32:
        why = "only FS, GS, TR and LDTR have bases of 64 bits"
        return Problem(name, f"base is {segment.base:#x}", why, Refusal.ENTRY)
    return None


def base_is_canonical(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    needed = name != "LDT" or _usable(segment)
    if needed and not state.canonical(segment.base):
        why = f"bits 63 to {state.linear_width - 1} of a linear address are equal"
        return Problem(name, f"base {segment.base:#x} is not canonical", why, Refusal.ENTRY)
    return None


def limit_agrees_with_granularity(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    if not _usable(segment) or (name not in ("TR", "LDT") and state.virtual_8086):
        return None
    if segment.g and segment.limit & 0xFFF != 0xFFF:
        why = "G counts the limit in pages of 4 KiB, so it ends in 0xfff"
        return Problem(name, f"G is set with limit {segment.limit:#x}", why, Refusal.ENTRY)
    if not segment.g and segment.limit >> 20:
        why = "without G a limit has 20 bits; KVM gives it in bytes in either case"
        return Problem(name, f"G is clear with limit {segment.limit:#x}", why, Refusal.ENTRY)
    return None


def virtual_8086_segment_is_like_real_mode(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses others."""
    real = segment.base == segment.selector << 4 and segment.limit == 0xFFFF
    if state.virtual_8086 and not real:
        what = f"selector {segment.selector:#x}, base {segment.base:#x}, limit {segment.limit:#x}"
        return Problem(name, what, "in virtual-8086 mode base = selector * 16, limit = 0xffff", Refusal.ENTRY)
    return None


def virtual_8086_segment_is_ring_3_data(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses others."""
    rights = (segment.type, segment.s, segment.dpl, segment.present, segment.l, segment.db, segment.g)
    if state.virtual_8086 and (rights != (3, 1, 3, 1, 0, 0, 0) or segment.unusable):
        why = "in virtual-8086 mode all are present, type 3, S, DPL 3, without L, D and G"
        return Problem(name, "access rights differ from 0xf3", why, Refusal.ENTRY)
    return None


def tr_is_usable(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses a null TR."""
    if not _usable(segment):
        return Problem(name, "is not present", "the CPU always has a task: give it a busy TSS", Refusal.ENTRY)
    return None


def tr_is_a_busy_tss(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses others."""
    if not _usable(segment) or segment.type == 11 or (segment.type == 3 and not state.long_mode):
        return None
    if segment.type == 3:
        why = "long mode has no 16-bit TSS: use type 11"
    else:
        why = "loading TR marks the TSS busy, so a loaded one is: type 11, or 3 for 16 bits"
    return Problem(name, f"type is {segment.type}", why, Refusal.ENTRY)


def ldt_is_an_ldt(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses others."""
    if _usable(segment) and segment.type != 2:
        return Problem(
            name, f"type is {segment.type}", "an LDT has type 2; without one, mark it unusable", Refusal.ENTRY
        )
    return None


def system_segment_has_s_clear(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    if _usable(segment) and segment.s:
        return Problem(name, "S is set", "that is code or data: TSS and LDT have S clear", Refusal.ENTRY)
    return None


def system_selector_is_in_the_gdt(state: State, name: str, segment: Segment) -> Problem | None:
    """The processor refuses it."""
    if _usable(segment) and segment.selector & _TABLE_INDICATOR:
        why = "bit 2 means the LDT, but TSS and LDT are described in the GDT"
        return Problem(name, f"selector is {segment.selector:#x}", why, Refusal.ENTRY)
    return None


def _usable(segment: Segment) -> bool:
    return bool(segment.present) and not segment.unusable


def _checked(state: State, segment: Segment) -> bool:
    # In virtual-8086 mode the access rights are fixed and have rules of their own.
    return _usable(segment) and not state.virtual_8086


RULES: tuple[tuple[SegmentRule, tuple[str, ...]], ...] = (
    (fields_fit, _ALL),
    (cs_is_usable, ("cs",)),
    (cs_l_needs_long_mode, ("cs",)),
    (cs_l_excludes_d, ("cs",)),
    (cs_is_code, ("cs",)),
    (cs_dpl_agrees_with_ss, ("cs",)),
    (cs_as_data_is_ring_0, ("cs",)),
    (ss_is_ring_0_in_real_mode, ("ss",)),
    (ss_is_writable_data, ("ss",)),
    (data_is_accessed, ("ds", "es", "fs", "gs")),
    (code_as_data_is_readable, ("ds", "es", "fs", "gs")),
    (code_and_data_are_no_system_segments, _CODE_AND_DATA),
    (base_has_32_bits, ("cs", "ss", "ds", "es")),
    (base_is_canonical, ("fs", "gs", "tr", "ldt")),
    (limit_agrees_with_granularity, _ALL),
    (virtual_8086_segment_is_like_real_mode, _CODE_AND_DATA),
    (virtual_8086_segment_is_ring_3_data, _CODE_AND_DATA),
    (tr_is_usable, ("tr",)),
    (tr_is_a_busy_tss, ("tr",)),
    (ldt_is_an_ldt, ("ldt",)),
    (system_segment_has_s_clear, ("tr", "ldt")),
    (system_selector_is_in_the_gdt, ("tr", "ldt")),
)
