"""A page-table entry bit by bit, on every level of every paging mode.

See: Intel SDM volume 3, sections 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level and 5-level), 4.9 (memory types), 4.6.2
(protection keys). Leaves out what the other levels allow: see ``pykvm.x86.walk``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pykvm.errors import ConfigurationError
from pykvm.observe.explaining.explanation import Bits, Explanation
from pykvm.observe.explaining.lookup import find_name, parse_number
from pykvm.units import Gpa, format_size
from pykvm.x86.paging import LevelFormat, Paging, PagingMode, Pte
from pykvm.x86.walk import is_page, page_address, reserved_bits

__all__ = ["MODES", "explain", "explain_entry"]

MODES = {
    "32-BIT": PagingMode.BITS32,
    "PAE": PagingMode.PAE,
    "LONG": PagingMode.LONG4,
    "LONG5": PagingMode.LONG5,
}
ADDRESS = 0x000F_FFFF_FFFF_F000  # bits 51:12
PROTECTION_KEY = 0xF << 59
PAT_OF_A_BIG_PAGE = 1 << 12
FLAGS: tuple[tuple[Pte, str, str], ...] = (
    (Pte.P, "P", "present"),
    (Pte.W, "W", "writable, if all levels say so"),
    (Pte.U, "U", "ring 3 may use it, if all levels say so"),
    (Pte.PWT, "PWT", "write-through; a part of the memory type's index"),
    (Pte.PCD, "PCD", "not cached; a part of the memory type's index"),
    (Pte.A, "A", "accessed: the CPU has used the entry"),
)
ABSENT: tuple[tuple[Pte, str, str], ...] = (
    (Pte.P, "no P", "clear: not present, and all other bits are for software"),
    (Pte.W, "no W", "clear: read only (ring 0 may write all the same unless CR0.WP)"),
    (Pte.U, "no U", "clear: ring 0 to 2 only"),
)


def explain(words: Sequence[str]) -> Explanation:
    """Return what an entry means: its value, its level (pt, pd, pdpt, pml4, pml5) and its mode (32-bit, pae, long).

    Without a level it is the lowest, without a mode long mode's. Raises: ConfigurationError.
    """
    if not 1 <= len(words) <= 3:
        raise ConfigurationError("give an entry, and its level and mode if they matter, as 0x83 pd long")
    mode = PagingMode.LONG4
    level = "PT"
    for word in words[1:]:
        name = find_name(word.replace("-", ""), ["PT", "PD", "PDPT", "PML4", "PML5", "32BIT", *MODES], "level or mode")
        if name == "32BIT" or name in MODES:
            mode = MODES["32-BIT" if name == "32BIT" else name]
        else:
            level = name
    if level == "PML5":
        mode = PagingMode.LONG5
    entry = parse_number(words[0], 8 * mode.entry_size, f"an entry of {mode.value}")
    return explain_entry(entry, _form(mode, level), mode)


def explain_entry(entry: int, form: LevelFormat, mode: PagingMode = PagingMode.LONG4) -> Explanation:
    """Return what ``entry`` means in a table of the level ``form`` of ``mode``, with EFER.NXE and CR4.PSE set."""
    paging = Paging(mode, Gpa(0), nxe=mode is not PagingMode.BITS32)
    present = bool(entry & Pte.P.value)
    is_leaf = is_page(paging, form, entry)
    wrong = []
    reserved = entry & reserved_bits(paging, form, entry) if present else 0
    if reserved:
        wrong.append(f"bits {reserved:#x} are set: reserved here. {_punishment(form, mode)}")
    return Explanation(
        f"pte {entry:#x}, {form.name} of {mode.value}: {_summary(paging, form, entry, is_leaf)}",
        f"One entry covers {format_size(form.page_size)}; bits {form.shift + form.bits - 1} to {form.shift} of the "
        "linear address choose it.",
        advice=_advice(entry, present, form, is_leaf),
        see=(f'Intel SDM volume 3, "Paging" ({_section(mode)})', "pykvm.x86.walk: from CR3 to the page"),
        bits=tuple(_bits(paging, form, entry, is_leaf, reserved)),
        wrong=tuple(wrong),
    )


def _punishment(form: LevelFormat, mode: PagingMode) -> str:
    if form.name == "PDPT" and mode is PagingMode.PAE:
        return "Intel's CPUs read it when CR3 is loaded, and give #GP; AMD's when it is used: a page fault with RSVD."
    return "Using the entry is a page fault with RSVD."


def _form(mode: PagingMode, name: str) -> LevelFormat:
    for form in mode.levels:
        if form.name == name:
            return form
    known = ", ".join(form.name.lower() for form in mode.levels)
    raise ConfigurationError(f"{mode.value} has no {name.lower()}: it has {known}")


def _summary(paging: Paging, form: LevelFormat, entry: int, is_leaf: bool) -> str:
    if not entry & Pte.P.value:
        return "not present"
    if is_leaf:
        return f"a page of {format_size(form.page_size)} at {page_address(paging, form, entry):#x}"
    levels = paging.mode.levels
    below = levels[levels.index(form) + 1].name
    return f"a {below} at {entry & ADDRESS:#x}"


def _advice(entry: int, present: bool, form: LevelFormat, is_leaf: bool) -> tuple[str, ...]:
    if not present:
        return ("Whoever uses it takes a page fault; CR2 has the address.",)
    other = f"As an entry of another level it means something else: pykvm explain pte {entry:#x} "
    return (other + ("pd" if form.name == "PT" else "pt"),) if not is_leaf or form.name == "PT" else ()


def _section(mode: PagingMode) -> str:
    return {PagingMode.BITS32: "4.3", PagingMode.PAE: "4.4"}.get(mode, "4.5")


def _bits(paging: Paging, form: LevelFormat, entry: int, is_leaf: bool, reserved: int) -> Iterator[Bits]:
    if not entry & Pte.P.value:
        yield Bits(*_absent(ABSENT[0]))
        yield Bits("-", entry, "for software")
        return
    is_pdpte = paging.mode is PagingMode.PAE and form.name == "PDPT"
    rest = entry & ~reserved
    for field in _fields(paging, form, is_leaf, is_pdpte):
        raw = rest & field.raw
        rest &= ~raw
        if raw:
            yield Bits(field.name, raw, field.meaning)
    if not is_pdpte:
        for flag, name, meaning in ABSENT[1:]:
            if not entry & flag.value:
                yield Bits(name, 0, meaning)
    if rest:
        yield Bits("-", rest, "ignored by the CPU, for software")
    if reserved:
        yield Bits("-", reserved, "reserved")


def _absent(flag: tuple[Pte, str, str]) -> tuple[str, int, str]:
    return flag[1], 0, flag[2]


def _fields(paging: Paging, form: LevelFormat, is_leaf: bool, is_pdpte: bool) -> Iterator[Bits]:
    """Yield the fields of an entry, with all their bits set."""
    for flag, name, meaning in FLAGS:
        if not is_pdpte or flag in (Pte.P, Pte.PWT, Pte.PCD):
            yield Bits(name, flag.value, meaning)
    if is_leaf:
        yield Bits("D", Pte.D.value, "dirty: the CPU has written to the page")
        yield Bits("G", Pte.G.value, "global: stays in the TLB when CR3 changes, with CR4.PGE")
        if form.name == "PT":
            yield Bits("PAT", Pte.PS.value, "a part of the memory type's index")
        else:
            yield Bits("PS", Pte.PS.value, f"page size: a page of {format_size(form.page_size)}, not a table")
            yield Bits("PAT", PAT_OF_A_BIG_PAGE, "a part of the memory type's index")
    yield from _address(paging, form, is_leaf)
    if paging.mode is not PagingMode.BITS32 and not is_pdpte:
        yield Bits("NX", Pte.NX.value, "no execute, with EFER.NXE")
    if is_leaf and paging.mode in (PagingMode.LONG4, PagingMode.LONG5):
        yield Bits("key", PROTECTION_KEY, "the protection key, with CR4.PKE or CR4.PKS; else for software")


def _address(paging: Paging, form: LevelFormat, is_leaf: bool) -> Iterator[Bits]:
    mask = ADDRESS if paging.mode is not PagingMode.BITS32 else ADDRESS & 0xFFFF_FFFF
    if not is_leaf:
        yield Bits("address", mask, "where the next table is")
        return
    yield Bits("address", mask & -form.page_size, "where the page is")
    if paging.mode is PagingMode.BITS32 and form.name == "PD":
        yield Bits("address 39:32", 0xFF << 13, "where the page is, above 4 GiB")
