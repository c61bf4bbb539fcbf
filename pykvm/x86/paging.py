"""Page tables: the formats of all paging modes, and a builder that writes them into guest memory.

    mode      levels (bits of the address each takes)           pages
    32-bit    PD 31:22, PT 21:12                                4 KiB, 4 MiB
    PAE       PDPT 31:30, PD 29:21, PT 20:12                    4 KiB, 2 MiB
    4-level   PML4 47:39, PDPT 38:30, PD 29:21, PT 20:12        4 KiB, 2 MiB, 1 GiB
    5-level   PML5 56:48, then as 4-level                       4 KiB, 2 MiB, 1 GiB

An entry, 64 bits in all modes but the first, where it is the low 32:

    63  62     52 51                 12 11  9  8  7   6  5   4   3   2   1   0
    +--+---------+---------------------+-----+--+--+---+---+---+---+---+---+---+
    |NX| ignored | address 51:12       | ign.| G|PS| D | A |PCD|PWT| U | W | P |
    +--+---------+---------------------+-----+--+--+---+---+---+---+---+---+---+

See: Intel SDM volume 3, sections 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level and 5-level). Walking them is in
``pykvm.x86.walk``. Leaves out protection keys.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pykvm.errors import PagingError
from pykvm.kvm.structs import Sregs
from pykvm.memory import GuestMemory
from pykvm.units import PAGE_SIZE, Gpa, KiB, format_size, is_aligned
from pykvm.x86.registers import Cr0, Cr4, Efer

__all__ = ["FrameAllocator", "LevelFormat", "PageTables", "Paging", "PagingMode", "Pte"]


class Pte(enum.Flag, boundary=enum.KEEP):
    """The bits of a page-table entry, on all levels."""

    P = 1 << 0  # present: the other bits mean something
    W = 1 << 1  # writable
    U = 1 << 2  # ring 3 may use it
    PWT = 1 << 3  # write-through
    PCD = 1 << 4  # not cached
    A = 1 << 5  # accessed: set by the CPU
    D = 1 << 6  # dirty: set by the CPU when it writes
    PS = 1 << 7  # page size: the entry is a big page, not a table
    G = 1 << 8  # global: kept in the TLB when CR3 changes
    NX = 1 << 63  # no execute, if EFER.NXE is set


@dataclass(frozen=True, slots=True)
class LevelFormat:
    """A level of a paging mode: its table's name, the lowest address bit it takes, and how many bits it takes."""

    name: str
    shift: int
    bits: int
    may_be_page: bool

    @property
    def page_size(self) -> int:
        """Return the bytes that one entry covers."""
        return 1 << self.shift

    def index(self, gva: int) -> int:
        """Return which entry of the table ``gva`` takes."""
        return gva >> self.shift & ((1 << self.bits) - 1)


_LEVELS_64 = (
    LevelFormat("PML5", 48, 9, False),
    LevelFormat("PML4", 39, 9, False),
    LevelFormat("PDPT", 30, 9, True),
    LevelFormat("PD", 21, 9, True),
    LevelFormat("PT", 12, 9, True),
)


class PagingMode(enum.Enum):
    """How linear addresses are translated."""

    NONE = "no paging"
    BITS32 = "32-bit paging"
    PAE = "PAE paging"
    LONG4 = "4-level paging"
    LONG5 = "5-level paging"

    @property
    def levels(self) -> tuple[LevelFormat, ...]:
        """Return the levels, the root first."""
        return _LEVELS[self]

    @property
    def entry_size(self) -> int:
        """Return the bytes of an entry."""
        return 4 if self is PagingMode.BITS32 else 8

    @property
    def address_bits(self) -> int:
        """Return how many bits of a linear address are translated."""
        return {PagingMode.LONG4: 48, PagingMode.LONG5: 57}.get(self, 32)

    def is_canonical(self, gva: int) -> bool:
        """Return whether ``gva`` is an address in this mode: in the 64-bit ones the upper bits repeat the highest."""
        if self in (PagingMode.LONG4, PagingMode.LONG5):
            top = gva >> (self.address_bits - 1)
            return top in (0, (1 << (65 - self.address_bits)) - 1)
        return 0 <= gva < 1 << 32


_LEVELS: dict[PagingMode, tuple[LevelFormat, ...]] = {
    PagingMode.NONE: (),
    PagingMode.BITS32: (LevelFormat("PD", 22, 10, True), LevelFormat("PT", 12, 10, True)),
    PagingMode.PAE: (
        LevelFormat("PDPT", 30, 2, False),
        LevelFormat("PD", 21, 9, True),
        LevelFormat("PT", 12, 9, True),
    ),
    PagingMode.LONG4: _LEVELS_64[1:],
    PagingMode.LONG5: _LEVELS_64,
}


@dataclass(frozen=True, slots=True)
class Paging:
    """What the control registers say about translation: the mode, the root table, and which entry bits count."""

    mode: PagingMode
    root: Gpa
    nxe: bool = True
    pse: bool = True

    @classmethod
    def of(cls, sregs: Sregs) -> Paging:
        """Return what ``sregs`` sets up (SDM volume 3, section 4.1.1)."""
        nxe, pse = bool(sregs.efer & Efer.NXE.value), bool(sregs.cr4 & Cr4.PSE.value)
        if not sregs.cr0 & Cr0.PG.value:
            return cls(PagingMode.NONE, Gpa(0))
        if sregs.efer & Efer.LMA.value:
            mode = PagingMode.LONG5 if sregs.cr4 & Cr4.LA57.value else PagingMode.LONG4
            return cls(mode, Gpa(sregs.cr3 & 0x000F_FFFF_FFFF_F000), nxe)
        if sregs.cr4 & Cr4.PAE.value:
            return cls(PagingMode.PAE, Gpa(sregs.cr3 & 0xFFFF_FFE0), nxe)
        return cls(PagingMode.BITS32, Gpa(sregs.cr3 & 0xFFFF_F000), False, pse)


class FrameAllocator:
    """Gives out page frames from ``start`` to ``end`` (guest-physical), one after the other; none is given back."""

    def __init__(self, start: int, end: int) -> None:
        self._start = self._next = start
        self._end = end

    @property
    def used(self) -> range:
        """Return the addresses given out so far."""
        return range(self._start, self._next)

    def allocate(self) -> Gpa:
        """Return the next frame. Raises: PagingError when there is none left."""
        if self._next + PAGE_SIZE > self._end:
            room = format_size(self._end - self._start)
            raise PagingError(
                f"{room} for page tables at {self._start:#x} are not enough: map less, or use bigger pages"
            )
        frame = Gpa(self._next)
        self._next += PAGE_SIZE
        return frame


class PageTables:
    """Builds page tables of ``mode`` in ``memory``, in frames that ``frames`` gives; starts with nothing mapped."""

    def __init__(self, memory: GuestMemory, mode: PagingMode, frames: FrameAllocator) -> None:
        if mode is PagingMode.NONE:
            raise PagingError("without paging there are no page tables to build")
        self.mode = mode
        self._memory = memory
        self._frames = frames
        self.root = self._new_table()

    @property
    def cr3(self) -> int:
        """Return the value for CR3."""
        return self.root

    def _repr_html_(self) -> str:
        from pykvm.x86.walk import page_map

        return page_map(self._memory, Paging(self.mode, self.root))._repr_html_()

    def map(
        self,
        gva: int,
        gpa: int,
        size: int,
        page_size: int = 4 * KiB,
        *,
        writable: bool = True,
        user: bool = False,
        executable: bool = True,
    ) -> None:
        """Map ``size`` bytes of linear addresses from ``gva`` on to guest-physical ``gpa``, in pages of ``page_size``.

        All of them are multiples of ``page_size``, which is 4 KiB, 2 MiB, 4 MiB or 1 GiB as the mode allows. Pages
        that are not executable need EFER.NXE in the guest, and there are none in 32-bit paging.

        Raises: PagingError; entries written before the one that fails stay.
        """
        depth = self._depth_of(page_size)
        self._check_range(gva, gpa, size, page_size)
        flags = Pte.P | (Pte.W if writable else Pte(0)) | (Pte.U if user else Pte(0))
        if depth < len(self.mode.levels) - 1:
            flags |= Pte.PS
        if not executable:
            if self.mode is PagingMode.BITS32:
                raise PagingError("32-bit paging has no NX bit: every page is executable", gva)
            flags |= Pte.NX
        level = self.mode.levels[depth]
        while size > 0:
            table = self._table_for(gva, depth, user)
            first = level.index(gva)
            count = min(size // page_size, (1 << level.bits) - first)
            self._fill(table, first, [(gpa + n * page_size) | flags.value for n in range(count)], gva)
            gva, gpa, size = gva + count * page_size, gpa + count * page_size, size - count * page_size

    def _new_table(self) -> Gpa:
        table = self._frames.allocate()
        self._memory.write(table, bytes(PAGE_SIZE))
        return table

    def _depth_of(self, page_size: int) -> int:
        sizes = {level.page_size: depth for depth, level in enumerate(self.mode.levels) if level.may_be_page}
        if page_size not in sizes:
            known = ", ".join(format_size(size) for size in sorted(sizes))
            raise PagingError(f"{self.mode.value} has no pages of {format_size(page_size)}: it has {known}")
        return sizes[page_size]

    def _check_range(self, gva: int, gpa: int, size: int, page_size: int) -> None:
        for name, value in (("linear address", gva), ("physical address", gpa), ("size", size)):
            if not is_aligned(value, page_size):
                raise PagingError(f"the {name} {value:#x} is not a multiple of the page size {page_size:#x}", gva)
        last = gva + size - 1
        if size <= 0 or not all(map(self.mode.is_canonical, (gva, last))) or gva >> 63 != last >> 63:
            raise PagingError(f"{gva:#x} and {size:#x} bytes on are not addresses in {self.mode.value}", gva)
        if gpa < 0 or gpa + size > 1 << (32 if self.mode is PagingMode.BITS32 else 52):
            raise PagingError(f"the physical address {gpa:#x} is beyond what {self.mode.value} can name", gva)

    def _table_for(self, gva: int, depth: int, user: bool) -> Gpa:
        """Return the table of level ``depth`` that ``gva`` goes through, making those that are missing."""
        table = self.root
        for level in self.mode.levels[:depth]:
            where = table + level.index(gva) * self.mode.entry_size
            entry = self._read(where)
            if entry & Pte.PS.value and level.may_be_page:
                raise PagingError(f"{gva:#x} is mapped already, by a page of {format_size(level.page_size)}", gva)
            if not entry & Pte.P.value:
                entry = self._new_table() | self._directory_flags(level)
            if user and not self._is_pdpte(level):
                entry |= Pte.U.value  # a page is for ring 3 if every level says so
            self._write(where, entry)
            table = Gpa(entry & 0x000F_FFFF_FFFF_F000)
        return table

    def _directory_flags(self, level: LevelFormat) -> int:
        # W and U are reserved in a PDPTE of PAE paging (SDM volume 3, table 4-8).
        return Pte.P.value if self._is_pdpte(level) else (Pte.P | Pte.W).value

    def _is_pdpte(self, level: LevelFormat) -> bool:
        return self.mode is PagingMode.PAE and level.name == "PDPT"

    def _fill(self, table: Gpa, first: int, entries: list[int], gva: int) -> None:
        size = self.mode.entry_size
        where, length = table + first * size, len(entries) * size
        if any(self._memory.read(where, length)):
            raise PagingError(f"some of the {len(entries)} pages from {gva:#x} on are mapped already", gva)
        self._memory.write(where, b"".join(entry.to_bytes(size, "little") for entry in entries))

    def _read(self, where: int) -> int:
        return int.from_bytes(self._memory.read(where, self.mode.entry_size), "little")

    def _write(self, where: int, entry: int) -> None:
        self._memory.write(where, entry.to_bytes(self.mode.entry_size, "little"))
