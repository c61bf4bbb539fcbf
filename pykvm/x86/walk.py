"""Walking page tables: where a linear address leads, level by level, and the whole map as ranges.

The tables belong to the guest and may hold anything: they may lie in a hole, point at themselves, set reserved bits.
A walk never raises for that, but says what the CPU would mind; a dump does bounded work. See: Intel SDM volume 3,
sections 4.3 to 4.5 (formats), 4.6 (access rights), 4.7 (page faults). Leaves out the TLB, in which older entries may
live on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pykvm.errors import GuestMemoryError
from pykvm.markup import preformatted, table
from pykvm.memory import GuestMemory
from pykvm.units import PAGE_SIZE, Gpa, format_size
from pykvm.x86.paging import LevelFormat, Paging, PagingMode, Pte

__all__ = [
    "Level",
    "Mapping",
    "PageMap",
    "Walk",
    "dump",
    "is_page",
    "mappings",
    "page_address",
    "page_map",
    "read_linear",
    "reserved_bits",
    "walk",
]

ADDRESS_MASK = 0x000F_FFFF_FFFF_F000  # bits 51:12

# A page of 4 MiB may lie above 4 GiB: its entry's bits 20:13 are address bits 39:32 (PSE-36; SDM volume 3, table 4-4).
PSE36_SHIFT, PSE36_MASK = 13, 0xFF

# Bounds for a dump: hostile tables can describe 2**48 bytes of map in one page.
MOST_TABLES = 4096
MOST_RANGES = 1000


@dataclass(frozen=True, slots=True)
class Level:
    """One step of a walk: the entry ``index`` of the table called ``name``, which lies at ``entry_gpa``."""

    name: str
    index: int
    entry_gpa: Gpa
    entry: int
    page_size: int | None = None  # set if the entry maps a page

    def __str__(self) -> str:
        names = [flag.name for flag in (Pte.P, Pte.W, Pte.U, Pte.NX) if self.entry & flag.value and flag.name]
        size = [_short_size(self.page_size)] if self.page_size and self.name != "PT" else []
        return " ".join([f"{self.name}[{self.index}]", f"{self.entry:#x}", *names, *size])


@dataclass(frozen=True, slots=True)
class Walk:
    """Where ``gva`` leads: ``gpa``, or None and the ``reason`` in words.

    ``writable``, ``user`` and ``executable`` are what all levels together allow; ``page_size`` is in bytes.
    """

    gva: int
    levels: tuple[Level, ...]
    gpa: Gpa | None
    reason: str = ""
    page_size: int = 0
    writable: bool = True
    user: bool = True
    executable: bool = True

    def __str__(self) -> str:
        end = f"not mapped: {self.reason}" if self.gpa is None else f"gpa {self.gpa:#x}"
        return " -> ".join([f"{self.gva:#x}", *map(str, self.levels), end])

    def _repr_html_(self) -> str:
        end = f"is not mapped: {self.reason}" if self.gpa is None else f"is guest-physical {self.gpa:#x}"
        rows = [(each.name, str(each.index), each.entry_gpa, each.entry, _flags(each.entry)) for each in self.levels]
        return table(["table", "index", "entry at", "entry", "flags"], rows, f"linear {self.gva:#x} {end}")


@dataclass(frozen=True, slots=True)
class Mapping:
    """A run of mapped linear addresses with the same rights, in pages of one size."""

    gva: int
    gpa: Gpa
    size: int
    page_size: int
    writable: bool
    user: bool
    executable: bool

    @property
    def rights(self) -> str:
        """Return who may do what: ``"RW- user"``."""
        who = "user" if self.user else "supervisor"
        return f"R{'W' if self.writable else '-'}{'X' if self.executable else '-'} {who}"

    def __str__(self) -> str:
        page = _short_size(self.page_size)
        return f"{self.gva:#x}-{self.gva + self.size - 1:#x} -> {self.gpa:#x} {page} {self.rights}"


@dataclass(frozen=True, slots=True)
class PageMap:
    """Where all linear addresses lead, lowest first; ``complete`` is False if there are more than ``MOST_RANGES``."""

    mode: PagingMode
    ranges: tuple[Mapping, ...]
    complete: bool = True

    def __str__(self) -> str:
        if self.mode is PagingMode.NONE:
            return "no paging: linear addresses are physical addresses"
        more = [] if self.complete else [f"... more than {MOST_RANGES} ranges"]
        return "\n".join([*map(str, self.ranges), *more]) or f"{self.mode.value}, and nothing is mapped"

    def _repr_html_(self) -> str:
        if not self.ranges:
            return preformatted(str(self))
        rows = [
            (each.gva, each.gva + each.size - 1, each.gpa, _short_size(each.page_size), each.rights)
            for each in self.ranges
        ]
        return table(["from linear", "to", "guest-physical", "pages", "rights"], rows, self.mode.value)


def walk(memory: GuestMemory, paging: Paging, gva: int) -> Walk:
    """Return where ``gva`` leads through the tables that ``paging`` points at; never raises for what they hold."""
    if paging.mode is PagingMode.NONE:
        return Walk(gva, (), Gpa(gva & 0xFFFF_FFFF), page_size=4096)
    if not paging.mode.is_canonical(gva):
        return Walk(gva, (), None, f"{gva:#x} is not canonical in {paging.mode.value}")
    levels: list[Level] = []
    table, rights = paging.root, _Rights()
    for form in paging.mode.levels:
        step = _read_entry(memory, paging, form, table, form.index(gva))
        if isinstance(step, str):
            return Walk(gva, tuple(levels), None, step)
        levels.append(step)
        problem = _why_not(paging, form, step)
        if problem:
            return Walk(gva, tuple(levels), None, problem)
        rights = rights.through(paging, form, step.entry)
        if step.page_size:
            gpa = Gpa(page_address(paging, form, step.entry) | gva & (step.page_size - 1))
            return Walk(gva, tuple(levels), gpa, "", step.page_size, rights.writable, rights.user, rights.executable)
        table = Gpa(step.entry & ADDRESS_MASK)
    raise AssertionError("the last level always maps a page")


def read_linear(memory: GuestMemory, paging: Paging, address: int, size: int) -> bytes:
    """Return up to ``size`` bytes from linear ``address`` on: as many as are mapped and memory; rights do not count."""
    space = 1 << (64 if paging.mode.address_bits > 32 else 32)
    found = b""
    while len(found) < size:
        here = (address + len(found)) % space
        part = _read_in_page(memory, paging, here, min(size - len(found), PAGE_SIZE - here % PAGE_SIZE))
        if not part:
            break
        found += part
    return found


def mappings(memory: GuestMemory, paging: Paging) -> Iterator[Mapping]:
    """Yield what is mapped, lowest address first, adjoining pages joined; reads at most ``MOST_TABLES`` tables."""
    joined: Mapping | None = None
    for page in _Reader(memory, paging).pages(0, paging.root, 0, _Rights()):
        if joined is None:
            joined = page
        elif _adjoin(joined, page):
            joined = _join(joined, page)
        else:
            yield joined
            joined = page
    if joined is not None:
        yield joined


def page_map(memory: GuestMemory, paging: Paging) -> PageMap:
    """Return the whole map, ``MOST_RANGES`` ranges of it at most."""
    if paging.mode is PagingMode.NONE:
        return PageMap(paging.mode, ())
    ranges = tuple(islice(mappings(memory, paging), MOST_RANGES + 1))
    return PageMap(paging.mode, ranges[:MOST_RANGES], len(ranges) <= MOST_RANGES)


def dump(memory: GuestMemory, paging: Paging) -> str:
    """Return the map as text, a range a line: ``0x0-0x3fffffff -> 0x0 2M RWX supervisor``."""
    return str(page_map(memory, paging))


def _read_in_page(memory: GuestMemory, paging: Paging, address: int, size: int) -> bytes:
    """Return ``size`` bytes of one page, or none: memory begins and ends with whole pages."""
    gpa = walk(memory, paging, address).gpa
    return b"" if gpa is None or memory.find(gpa) is None else memory.read(gpa, size)


@dataclass(frozen=True, slots=True)
class _Rights:
    writable: bool = True
    user: bool = True
    executable: bool = True

    def through(self, paging: Paging, form: LevelFormat, entry: int) -> _Rights:
        """Return the rights after one more entry: each level can only take away."""
        if paging.mode is PagingMode.PAE and form.name == "PDPT":
            return self  # has no right bits
        no_execute = paging.nxe and paging.mode is not PagingMode.BITS32 and bool(entry & Pte.NX.value)
        return _Rights(
            self.writable and bool(entry & Pte.W.value),
            self.user and bool(entry & Pte.U.value),
            self.executable and not no_execute,
        )


def _read_entry(memory: GuestMemory, paging: Paging, form: LevelFormat, table: int, index: int) -> Level | str:
    where = table + index * paging.mode.entry_size
    try:
        entry = int.from_bytes(memory.read(where, paging.mode.entry_size), "little")
    except GuestMemoryError:
        return f"the {form.name} at {table:#x} is outside guest memory"
    return Level(form.name, index, Gpa(where), entry, form.page_size if is_page(paging, form, entry) else None)


def is_page(paging: Paging, form: LevelFormat, entry: int) -> bool:
    """Return whether ``entry`` of a table of the level ``form`` maps a page, if it is present; else it is a table's."""
    if form.name == "PT":
        return True
    big = form.may_be_page and bool(entry & Pte.PS.value)
    return big and (paging.pse or paging.mode is not PagingMode.BITS32)


def page_address(paging: Paging, form: LevelFormat, entry: int) -> int:
    """Return the guest-physical address of the page that ``entry`` of a table of the level ``form`` maps."""
    address = entry & ADDRESS_MASK & ~(form.page_size - 1)
    if paging.mode is PagingMode.BITS32 and form.name == "PD":
        address |= (entry >> PSE36_SHIFT & PSE36_MASK) << 32
    return address


def _why_not(paging: Paging, form: LevelFormat, level: Level) -> str:
    """Return why the CPU would raise a page fault at this entry, or an empty string."""
    here = f"{level.name}[{level.index}]"
    if not level.entry & Pte.P.value:
        return f"{here} is not present"
    reserved = reserved_bits(paging, form, level.entry)
    if level.entry & reserved:
        return f"{here} has reserved bits set: {level.entry & reserved:#x}"
    return ""


def reserved_bits(paging: Paging, form: LevelFormat, entry: int) -> int:
    """Return which bits must be clear in such an ``entry`` of a table of the level ``form`` if it is present."""
    is_big_page = form.name != "PT" and is_page(paging, form, entry)
    if paging.mode is PagingMode.BITS32:
        return 1 << 21 if is_big_page else 0  # SDM volume 3, table 4-4
    reserved = 0 if paging.nxe else Pte.NX.value
    if paging.mode is PagingMode.PAE:
        reserved |= 0x7FF0_0000_0000_0000  # bits 62:52
        if form.name == "PDPT":
            return reserved | Pte.NX.value | 0x1E6  # bits 63, 8:5 and 2:1 (table 4-8)
    if not form.may_be_page:
        return reserved | Pte.PS.value  # PML4 and PML5 entries (table 4-15)
    if is_big_page:
        reserved |= form.page_size - 1 & ~0x1FFF  # address bits below the page size, except bit 12, which is PAT
    return reserved


class _Reader:
    """Reads tables for ``mappings``, and stops when it has read enough of them."""

    def __init__(self, memory: GuestMemory, paging: Paging) -> None:
        self._memory = memory
        self._paging = paging
        self._budget = MOST_TABLES

    def pages(self, depth: int, table: int, gva: int, rights: _Rights) -> Iterator[Mapping]:
        form = self._paging.mode.levels[depth]
        self._budget -= 1
        for index in range(1 << form.bits):
            step = _read_entry(self._memory, self._paging, form, table, index)
            if isinstance(step, str):
                return
            if _why_not(self._paging, form, step):
                continue
            start = self._sign_extend(gva | index << form.shift)
            through = rights.through(self._paging, form, step.entry)
            if step.page_size:
                address = Gpa(page_address(self._paging, form, step.entry))
                size = step.page_size
                yield Mapping(start, address, size, size, through.writable, through.user, through.executable)
            elif self._budget > 0:
                yield from self.pages(depth + 1, step.entry & ADDRESS_MASK, start, through)

    def _sign_extend(self, gva: int) -> int:
        bits = self._paging.mode.address_bits
        if bits > 32 and gva >> (bits - 1) & 1:
            return gva | ((1 << 64) - (1 << bits))
        return gva


def _adjoin(first: Mapping, second: Mapping) -> bool:
    return (
        second.gva == first.gva + first.size
        and second.gpa == first.gpa + first.size
        and second.page_size == first.page_size
        and (second.writable, second.user, second.executable) == (first.writable, first.user, first.executable)
    )


def _join(first: Mapping, second: Mapping) -> Mapping:
    rights = first.writable, first.user, first.executable
    return Mapping(first.gva, first.gpa, first.size + second.size, first.page_size, *rights)


def _flags(entry: int) -> str:
    return " ".join(flag.name for flag in Pte if entry & flag.value and flag.name)


def _short_size(size: int) -> str:
    return format_size(size).replace(" ", "").removesuffix("iB")
