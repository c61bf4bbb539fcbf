"""A descriptor bit by bit: segments, TSS, LDT and gates, of the GDT, the LDT and the IDT.

See: Intel SDM volume 3, sections 3.4.5 ("Segment Descriptors"), 3.5 ("System Descriptor Types"), 6.11 ("IDT
Descriptors"), 5.8.3 ("Call Gates"). Leaves out whether what a descriptor points to is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pykvm.observe.explaining.explanation import Bits, Explanation
from pykvm.observe.explaining.lookup import one_or_two, parse_number
from pykvm.x86.segments import decode_descriptor

__all__ = ["SYSTEM_TYPES", "explain", "explain_descriptor"]

SEE = (
    'Intel SDM volume 3, "Segment Descriptors" (3.4.5)',
    'Intel SDM volume 3, "System Descriptor Types" (3.5)',
)
CODE, CONFORMING_OR_DOWN, READ_OR_WRITE, ACCESSED = 8, 4, 2, 1  # bits of the type of code and data
GATES = (4, 5, 6, 7, 12, 14, 15)
TASK_GATE = 5
# Types of system descriptors: protected mode's name, and long mode's, which has fewer.
SYSTEM_TYPES: dict[int, tuple[str, str]] = {
    0: ("reserved", "upper half of a 16-byte descriptor"),
    1: ("16-bit TSS, free", "reserved"),
    2: ("LDT", "LDT"),
    3: ("16-bit TSS, busy", "reserved"),
    4: ("16-bit call gate", "reserved"),
    5: ("task gate", "reserved"),
    6: ("16-bit interrupt gate", "reserved"),
    7: ("16-bit trap gate", "reserved"),
    8: ("reserved", "reserved"),
    9: ("32-bit TSS, free", "64-bit TSS, free"),
    10: ("reserved", "reserved"),
    11: ("32-bit TSS, busy", "64-bit TSS, busy"),
    12: ("32-bit call gate", "64-bit call gate"),
    13: ("reserved", "reserved"),
    14: ("32-bit interrupt gate", "64-bit interrupt gate"),
    15: ("32-bit trap gate", "64-bit trap gate"),
}


def explain(words: Sequence[str]) -> Explanation:
    """Return what the 8 bytes of a descriptor in ``words`` mean; a second word is the upper 8 of a 16-byte one.

    Raises: ConfigurationError.
    """
    words = one_or_two(words, "a descriptor's 8 bytes as a number, and the next 8 if it has 16")
    low = parse_number(words[0], 64, "a descriptor")
    high = parse_number(words[1], 64, "the upper half of a descriptor") if len(words) == 2 else None
    return explain_descriptor(low, high)


def explain_descriptor(low: int, high: int | None = None) -> Explanation:
    """Return what ``low``, 64 bits, means, and with ``high`` the 16 bytes of a system descriptor of long mode.

    The explanation's bits are those of ``low`` alone.
    """
    if low == 0 and not high:
        return Explanation(
            "descriptor 0x0: the null descriptor",
            "Entry 0 of every GDT; elsewhere an entry that is not present. As a selector, 0 to 3 name it.",
            "A data segment register may hold it, and gives #GP when it is used; CS and SS may not (SS may in 64-bit "
            "code of rings 0 to 2).",
            see=SEE,
            bits=(Bits("all", 0, "zero"),),
        )
    is_segment, kind = bool(low >> 44 & 1), low >> 40 & 0xF
    if is_segment:
        return _segment(low, high, kind)
    return _gate(low, high, kind) if kind in GATES else _system(low, high, kind)


# ---- code and data ----


def _segment(low: int, high: int | None, kind: int) -> Explanation:
    words = _code_type(kind) if kind & CODE else _data_type(kind)
    wide, big = low >> 53 & 1, low >> 54 & 1
    if kind & CODE:
        size = "64-bit (32-bit outside long mode)" if wide else "32-bit" if big else "16-bit"
    else:
        size = "32-bit stack" if big else "16-bit stack"
    return Explanation(
        f"descriptor {low:#018x}: {words}, {size}, DPL {low >> 45 & 3}",
        _range(low, high),
        "In the GDT or an LDT; a selector is its index * 8, plus 4 for the LDT, plus the ring asked for.",
        tuple(_segment_advice(low, kind)),
        SEE,
        tuple(_segment_bits(low, words)),
        tuple(_segment_problems(low, high, kind)),
    )


def _code_type(kind: int) -> str:
    access = "execute and read" if kind & READ_OR_WRITE else "execute only"
    return f"{'conforming ' if kind & CONFORMING_OR_DOWN else ''}code, {access}"


def _data_type(kind: int) -> str:
    access = "read and write" if kind & READ_OR_WRITE else "read only"
    return f"{'expand-down ' if kind & CONFORMING_OR_DOWN else ''}data, {access}"


def _range(low: int, high: int | None) -> str:
    segment = decode_descriptor(low)
    base = segment.base | (high or 0) << 32 & 0xFFFF_FFFF_0000_0000
    return (
        f"Base {base:#x}, limit {segment.limit:#x}: {segment.limit + 1:#x} bytes. 64-bit code has no limits, and takes "
        "every base for 0 but those of FS and GS."
        if segment.s
        else f"Base {base:#x}, limit {segment.limit:#x}: {segment.limit + 1:#x} bytes."
    )


def _segment_advice(low: int, kind: int) -> Iterator[str]:
    if not low >> 47 & 1:
        yield "P is clear: loading it gives #NP (#SS for SS)."
    if not kind & CODE and not kind & READ_OR_WRITE:
        yield "It cannot be a stack: SS wants writable data, else #GP."
    if not kind & ACCESSED:
        yield "Loading it makes the CPU set bit 40 (accessed): a GDT in read-only memory should have it set already."


def _segment_problems(low: int, high: int | None, kind: int) -> Iterator[str]:
    if kind & CODE and low >> 53 & 1 and low >> 54 & 1:
        yield "L and D are both set: reserved in long mode; loading it into CS gives #GP."
    if not kind & CODE and low >> 53 & 1:
        yield "L is set in a data segment, where it is reserved."
    if high:
        yield "Code and data descriptors have 8 bytes: the next 8 are another descriptor."


def _segment_bits(low: int, words: str) -> Iterator[Bits]:
    big = "D: 32-bit code" if low >> 43 & 1 else "B: a stack in it uses ESP; expand-down reaches 4 GiB"
    yield from _limit_and_base(low)
    yield _field(low, "type", 40, 4, words + (", accessed" if low >> 40 & ACCESSED else ", not accessed"))
    yield _field(low, "S", 44, 1, "code or data; 0 would be a system descriptor")
    yield from _dpl_and_present(low)
    yield _field(low, "AVL", 52, 1, "for software")
    yield _field(low, "L", 53, 1, "64-bit code in long mode")
    yield _field(low, "D/B", 54, 1, big)
    yield _field(low, "G", 55, 1, "the limit counts pages of 4 KiB, else bytes")


# ---- TSS and LDT ----


def _system(low: int, high: int | None, kind: int) -> Explanation:
    protected, long = SYSTEM_TYPES[kind]
    name = protected if protected == long else f"{protected} (long mode: {long})"
    advice = (
        ["In long mode it has 16 bytes: give the next 8 too, which are bits 63:32 of the base."] if not high else []
    )
    if not low >> 47 & 1:
        advice.append("P is clear: LTR or LLDT gives #NP.")
    if "TSS" in protected and decode_descriptor(low).limit < (0x2B if "16" in protected else 0x67):
        advice.append("The limit is too small for a TSS: a task switch or an entry into an inner ring gives #TS.")
    return Explanation(
        f"descriptor {low:#018x}: {name}",
        _range(low, high),
        "Only in the GDT; LTR and LLDT load it. LTR makes a free TSS busy, and refuses a busy one with #GP.",
        tuple(advice),
        SEE,
        _shown(_system_bits(low, name)),
        tuple(_system_problems(low, high, protected)),
    )


def _system_problems(low: int, high: int | None, protected: str) -> Iterator[str]:
    if protected == "reserved":
        yield f"type {low >> 40 & 0xF} of a system descriptor is reserved: using it gives #GP."
    if low >> 53 & 3:
        yield f"bits {low & 3 << 53:#x} are set: reserved in a system descriptor."
    if high is not None and high >> 40 & 0x1F:
        yield "bits 12:8 of the upper half's second word are not 0: the CPU refuses it with #GP."


def _system_bits(low: int, name: str) -> Iterator[Bits]:
    yield from _limit_and_base(low)
    yield _field(low, "type", 40, 4, name)
    yield _field(low, "S", 44, 1, "0: a system descriptor")
    yield from _dpl_and_present(low)
    yield _field(low, "AVL", 52, 1, "for software")
    yield _field(low, "-", 53, 2, "reserved")
    yield _field(low, "G", 55, 1, "the limit counts pages of 4 KiB, else bytes")


# ---- gates ----


def _gate(low: int, high: int | None, kind: int) -> Explanation:
    protected, long = SYSTEM_TYPES[kind]
    is_call = "call" in protected
    offset = low & 0xFFFF | (0 if kind < 8 else low >> 48 << 16) | (high or 0) << 32 & 0xFFFF_FFFF_0000_0000
    where = f"Selector {low >> 16 & 0xFFFF:#x}"
    if kind != TASK_GATE:
        where += f", offset {offset:#x}"
    advice = [] if high is not None else ["In long mode it has 16 bytes: give the next 8 too, which are bits 63:32."]
    if not low >> 47 & 1:
        advice.append("P is clear: an event or a call through it gives #NP.")
    return Explanation(
        f"descriptor {low:#018x}: {protected if kind < 8 or is_call else f'{protected} (long mode: {long})'}",
        f"{where}: where {'a far call' if is_call else 'an event'} through it goes. {_gate_kind(protected)}".strip(),
        "In the GDT or an LDT." if is_call else "In the IDT, at vector * 8 (long mode: vector * 16).",
        (*advice, "DPL is the outermost ring that may use it by INT n or CALL; hardware's events do not ask."),
        (SEE[1], 'Intel SDM volume 3, "IDT Descriptors" (6.11)'),
        _shown(_gate_bits(low, kind)),
        tuple(_gate_problems(low, kind)),
    )


def _gate_kind(protected: str) -> str:
    if "interrupt" in protected:
        return "The CPU clears RFLAGS.IF on the way: no interrupts until IRET or STI."
    return "RFLAGS.IF stays as it is." if "trap" in protected else ""


def _gate_problems(low: int, kind: int) -> Iterator[str]:
    if low >> 16 & 0xFFFC == 0:
        yield "the selector is null: using the gate gives #GP."
    if kind < 8:
        yield "long mode does not have this type: there, using it gives #GP."


def _gate_bits(low: int, kind: int) -> Iterator[Bits]:
    is_task, is_16_bit = kind == TASK_GATE, kind < 8 and kind != TASK_GATE
    yield _field(low, "offset 15:0" if not is_task else "-", 0, 16, "where it goes" if not is_task else "reserved")
    yield _field(low, "selector", 16, 16, f"{'a TSS' if is_task else 'a code segment'}, entry {low >> 19 & 0x1FFF}")
    yield _field(low, "IST", 32, 3, "long mode: the stack of the TSS to switch to, 0 none (call gates: a count)")
    yield _field(low, "-", 35, 5, "0 in gates of the IDT; call gates: bits 36:35 belong to the count")
    yield _field(low, "type", 40, 4, SYSTEM_TYPES[kind][0])
    yield _field(low, "S", 44, 1, "0: a system descriptor")
    yield from _dpl_and_present(low)
    unused = is_task or is_16_bit
    yield _field(low, "-" if unused else "offset 31:16", 48, 16, "reserved" if unused else "where it goes")


# ---- fields ----


def _shown(fields: Iterator[Bits]) -> tuple[Bits, ...]:
    """Return ``fields`` without reserved ones that are zero, as they should be."""
    return tuple(field for field in fields if field.raw or not field.name.startswith("-"))


def _field(value: int, name: str, shift: int, width: int, meaning: str) -> Bits:
    mask = (1 << width) - 1
    label = f"{name}={value >> shift & mask:#x}" if width > 1 else f"{name}={value >> shift & 1}"
    return Bits(label, value & mask << shift, meaning)


def _limit_and_base(low: int) -> Iterator[Bits]:
    yield _field(low, "limit 15:0", 0, 16, "the last offset")
    yield _field(low, "base 23:0", 16, 24, "where it begins")
    yield _field(low, "limit 19:16", 48, 4, "the last offset")
    yield _field(low, "base 31:24", 56, 8, "where it begins")


def _dpl_and_present(low: int) -> Iterator[Bits]:
    yield _field(low, "DPL", 45, 2, "privilege level: the ring it belongs to")
    yield _field(low, "P", 47, 1, "present")
