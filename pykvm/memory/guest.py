"""``GuestMemory``: what a guest finds at each guest-physical address, as the host sees it.

It is a list of regions, each backed by anonymous host memory: RAM, read-only ROM, and aliases, which show another
region's bytes at a second address. Everything between regions is a hole, where the guest's accesses become MMIO exits.
Nothing here knows KVM: a region's ``buffer`` is what KVM_SET_USER_MEMORY_REGION is given.

See: Documentation/virt/kvm/api.rst, KVM_SET_USER_MEMORY_REGION. Leaves out what a guest address means after paging: see
``pykvm.x86.paging``.
"""

from __future__ import annotations

import enum
import mmap
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from pykvm.errors import ClosedError, GuestMemoryError, InUseError
from pykvm.markup import table
from pykvm.memory import layout
from pykvm.units import PAGE_SIZE, Gpa, align_down, align_up, format_size, is_aligned, parse_size

__all__ = ["GuestMemory", "Region", "RegionKind", "WriteLog"]

ADDRESS_LIMIT = 1 << 52  # MAXPHYADDR is at most 52 (SDM volume 3, section 4.1.4)
ROM_FILL = b"\xff"  # what an empty ROM chip reads as


class RegionKind(enum.Enum):
    """What a region is to the guest."""

    RAM = "ram"
    ROM = "rom"
    ALIAS = "alias"


@dataclass(frozen=True, slots=True)
class Region:
    """A run of whole pages: ``size`` bytes at guest-physical ``gpa``.

    ``mapping`` is the host memory behind it, from ``offset`` on; it belongs to the GuestMemory.
    """

    name: str
    gpa: Gpa
    size: int
    kind: RegionKind
    readonly: bool
    mapping: mmap.mmap = field(repr=False, compare=False)
    offset: int = 0

    @property
    def buffer(self) -> memoryview:
        """Return a writable view of the host memory, page-aligned: what KVM_SET_USER_MEMORY_REGION is given.

        Unlike those of ``GuestMemory``, its writes are not logged.
        """
        return memoryview(self.mapping)[self.offset : self.offset + self.size]

    @property
    def end(self) -> Gpa:
        """Return the address after the last byte."""
        return Gpa(self.gpa + self.size)

    def __str__(self) -> str:
        return f"{self.name} {self.gpa:#x}-{self.end - 1:#x} ({format_size(self.size)})"


class WriteLog:
    """The pages of a GuestMemory that were written through it, by everybody but the guest."""

    def __init__(self) -> None:
        self._pages: set[Gpa] = set()

    def add(self, gpa: int, size: int) -> None:
        """Take note that ``size`` bytes at ``gpa`` are written."""
        self._pages.update(map(Gpa, range(align_down(gpa), gpa + size, PAGE_SIZE)))

    @property
    def has_pages(self) -> bool:
        """Return whether there is anything to ``take``."""
        return bool(self._pages)

    def take(self) -> set[Gpa]:
        """Return the pages written since the last call, by the addresses they were written at."""
        if not self._pages:
            return self._pages
        pages, self._pages = self._pages, set()
        return pages


class GuestMemory:
    """The guest's physical memory: a context manager that unmaps it when nobody needs it any more.

    With a ``size`` (bytes or "16M") it starts with RAM from address 0 on; what does not fit below the MMIO hole at 3
    GiB goes on at 4 GiB. Pages are not touched, and so cost nothing, before somebody writes to them.

    Raises: GuestMemoryError, ConfigurationError.
    """

    def __init__(self, size: int | str | None = None) -> None:
        self._regions: list[Region] = []
        self._starts: list[int] = []
        self._logs: weakref.WeakSet[WriteLog] = weakref.WeakSet()
        self._viewed: dict[Gpa, range] = {}  # by region: from the first byte that a view was made of to the last
        self._closed = False
        if size is not None:
            self._add_split_ram(parse_size(size))

    # ---- what is where ----

    @property
    def regions(self) -> tuple[Region, ...]:
        """Return the regions, lowest address first."""
        return tuple(self._regions)

    def _repr_html_(self) -> str:
        rows = [(each.gpa, each.end - 1, format_size(each.size), each.name, each.kind.value) for each in self._regions]
        return table(["first byte", "last byte", "size", "name", "kind"], rows, "guest-physical memory")

    def find(self, gpa: int) -> Region | None:
        """Return the region that holds ``gpa``, or None for a hole."""
        position = bisect_right(self._starts, gpa) - 1
        if position >= 0 and gpa < self._regions[position].end:
            return self._regions[position]
        return None

    def add_ram(self, gpa: int, size: int, name: str = "ram") -> Region:
        """Add ``size`` bytes of zeroed RAM at ``gpa``, both multiples of 4096. Raises: GuestMemoryError."""
        self._check_region(gpa, size, name)
        return self._insert(Region(name, Gpa(gpa), size, RegionKind.RAM, False, _map(size, name)))

    def add_rom(self, gpa: int, data: bytes, name: str = "rom") -> Region:
        """Add a ROM with the content ``data``, filled up to whole pages with 0xff, at ``gpa``.

        A guest's write to it is an MMIO exit and changes nothing. Raises: GuestMemoryError.
        """
        size = align_up(len(data))
        self._check_region(gpa, size, name)
        mapping = _map(size, name)
        mapping[:] = data.ljust(size, ROM_FILL)
        return self._insert(Region(name, Gpa(gpa), size, RegionKind.ROM, True, mapping))

    def add_alias(self, gpa: int, of: Region, offset: int = 0, size: int | None = None, name: str = "alias") -> Region:
        """Show ``size`` bytes of the region ``of``, from ``offset`` on (by default all of it), at ``gpa`` as well.

        Raises: GuestMemoryError if ``of`` is not one of this memory's regions, or has no such part.
        """
        size = of.size - offset if size is None else size
        self._check_region(gpa, size, name)
        if of not in self._regions:
            raise GuestMemoryError(f"{name}: cannot be an alias of {of}, which is not part of this memory", gpa)
        if not is_aligned(offset) or not 0 <= offset <= of.size - size:
            raise GuestMemoryError(f"{name}: {of} has no whole pages {offset:#x}-{offset + size - 1:#x}", gpa, of.name)
        return self._insert(Region(name, Gpa(gpa), size, RegionKind.ALIAS, of.readonly, of.mapping, of.offset + offset))

    # ---- access ----

    def read(self, gpa: int, size: int) -> bytes:
        """Return ``size`` bytes at ``gpa``, across adjoining regions. Raises: GuestMemoryError, ClosedError."""
        return b"".join(self._parts(gpa, size, "read"))

    def write(self, gpa: int, data: bytes) -> None:
        """Write ``data`` at ``gpa``, across adjoining regions; nothing is written unless all of it can be.

        Raises: GuestMemoryError if a part of it is a hole or a ROM; ClosedError.
        """
        done = 0
        parts = self._parts(gpa, len(data), "write")
        for log in self._logs:
            log.add(gpa, len(data))
        for part in parts:
            part[:] = data[done : done + len(part)]
            done += len(part)

    def view(self, gpa: int, size: int) -> memoryview:
        """Return ``size`` bytes at ``gpa``, all in one region, without copying; read-only for a ROM.

        The memory cannot be closed before the view is released: use it as a context manager. Raises: GuestMemoryError.
        """
        region = self._region_at(gpa, size, "view")
        if gpa + size > region.end:
            raise GuestMemoryError(f"{_span(gpa, size)}: a view cannot cross the end of {region}", gpa, region.name)
        view = region.buffer[gpa - region.gpa : gpa - region.gpa + size]
        if region.readonly:
            return view.toreadonly()
        self._note_view(region, gpa, size)
        return view

    def read_string(self, gpa: int, limit: int = PAGE_SIZE) -> bytes:
        """Return the bytes at ``gpa`` up to a NUL, or ``limit`` bytes if there is none. Raises: GuestMemoryError."""
        text = bytearray()
        while len(text) < limit:
            here = gpa + len(text)
            chunk = self.read(here, min(64, limit - len(text), self._region_at(here, 1, "read").end - here))
            text += chunk
            if 0 in chunk:
                return bytes(text[: text.index(0)])
        return bytes(text)

    def read_u8(self, gpa: int) -> int:
        """Return the byte at ``gpa``."""
        return self._read_int(gpa, 1)

    def read_u16(self, gpa: int) -> int:
        """Return the 16-bit little-endian number at ``gpa``."""
        return self._read_int(gpa, 2)

    def read_u32(self, gpa: int) -> int:
        """Return the 32-bit little-endian number at ``gpa``."""
        return self._read_int(gpa, 4)

    def read_u64(self, gpa: int) -> int:
        """Return the 64-bit little-endian number at ``gpa``."""
        return self._read_int(gpa, 8)

    def write_u8(self, gpa: int, value: int) -> None:
        """Write a byte. Raises: GuestMemoryError if ``value`` does not fit."""
        self._write_int(gpa, value, 1)

    def write_u16(self, gpa: int, value: int) -> None:
        """Write 16 bits, little-endian. Raises: GuestMemoryError if ``value`` does not fit."""
        self._write_int(gpa, value, 2)

    def write_u32(self, gpa: int, value: int) -> None:
        """Write 32 bits, little-endian. Raises: GuestMemoryError if ``value`` does not fit."""
        self._write_int(gpa, value, 4)

    def write_u64(self, gpa: int, value: int) -> None:
        """Write 64 bits, little-endian. Raises: GuestMemoryError if ``value`` does not fit."""
        self._write_int(gpa, value, 8)

    # ---- what snapshots ask ----

    def log_writes(self) -> WriteLog:
        """Return a log of what ``write`` and its like write from now on, for as long as somebody keeps it."""
        log = WriteLog()
        self._logs.add(log)
        return log

    @property
    def has_views(self) -> bool:
        """Return whether a writable view was ever made."""
        return bool(self._viewed)

    def viewed_pages(self) -> Iterator[Gpa]:
        """Return the pages that a writable view was made of: nobody knows whether, or when, they are written."""
        for viewed in self._viewed.values():
            yield from map(Gpa, range(align_down(viewed.start), viewed.stop, PAGE_SIZE))

    def make_alike(self) -> GuestMemory:
        """Return a new memory with the same regions, all of zeros, even the ROMs."""
        new = GuestMemory()
        mappings: dict[int, mmap.mmap] = {}
        for region in self._regions:
            key = id(region.mapping)
            if key not in mappings:
                mappings[key] = _map(len(region.mapping), region.name)
            new._insert(replace(region, mapping=mappings[key]))
        return new

    # ---- closing ----

    @property
    def closed(self) -> bool:
        """Return whether ``close()`` has run."""
        return self._closed

    def close(self) -> None:
        """Unmap everything; does nothing the second time.

        Raises: InUseError while a view is alive or a VM holds the memory; nothing is unmapped then.
        """
        if self._closed:
            return
        mappings = {id(region.mapping): region.mapping for region in self._regions}.values()
        for mapping in mappings:
            _check_unused(mapping)
        self._closed = True
        for mapping in mappings:
            mapping.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside ----

    def _add_split_ram(self, size: int) -> None:
        low = min(size, layout.MMIO_HOLE_START)
        self.add_ram(0, low)
        if size > low:
            self.add_ram(layout.MMIO_HOLE_END, size - low, "ram above 4 GiB")

    def _check_region(self, gpa: int, size: int, name: str) -> None:
        self._check_open()
        for what, value in (("address", gpa), ("size", size)):
            if not is_aligned(value):
                raise GuestMemoryError(
                    f"{name}: the {what} {value:#x} is not a multiple of the page size 0x1000", gpa, name
                )
        if size <= 0:
            raise GuestMemoryError(
                f"{name}: a region of {size} bytes holds nothing: give it at least one page", gpa, name
            )
        if gpa < 0 or gpa + size > ADDRESS_LIMIT:
            raise GuestMemoryError(
                f"{name}: {_span(gpa, size)} is outside the 52-bit physical address space", gpa, name
            )
        for other in self._regions:
            if gpa < other.end and other.gpa < gpa + size:
                raise GuestMemoryError(f"{name}: {_span(gpa, size)} overlaps {other}", gpa, other.name)

    def _insert(self, region: Region) -> Region:
        position = bisect_right(self._starts, region.gpa)
        self._regions.insert(position, region)
        self._starts.insert(position, region.gpa)
        return region

    def _region_at(self, gpa: int, size: int, verb: str) -> Region:
        self._check_open()
        region = self.find(gpa)
        if region is None:
            raise GuestMemoryError(
                f"cannot {verb} {_span(gpa, size)}: {gpa:#x} is in no region{self._nearest(gpa)}", gpa
            )
        return region

    def _note_view(self, region: Region, gpa: int, size: int) -> None:
        before = self._viewed.get(region.gpa, range(gpa, gpa + size))
        self._viewed[region.gpa] = range(min(before.start, gpa), max(before.stop, gpa + size))

    def _parts(self, gpa: int, size: int, verb: str) -> list[memoryview]:
        """Return writable views that together are ``size`` bytes at ``gpa``."""
        if size < 0:
            raise GuestMemoryError(f"cannot {verb} {size} bytes at {gpa:#x}: a size is not below 0", gpa)
        parts: list[memoryview] = []
        end = gpa + size
        while gpa < end or not parts:
            region = self._region_at(gpa, end - gpa, verb)
            if verb == "write" and region.readonly:
                raise GuestMemoryError(f"cannot write {_span(gpa, end - gpa)}: {region} is read-only", gpa, region.name)
            stop = min(end, region.end)
            parts.append(region.buffer[gpa - region.gpa : stop - region.gpa])
            gpa = stop
        return parts

    def _nearest(self, gpa: int) -> str:
        if not self._regions:
            return "; this memory has none"
        nearest = min(self._regions, key=lambda region: max(region.gpa - gpa, gpa - region.end + 1))
        return f"; the nearest is {nearest}"

    def _read_int(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.read(gpa, size), "little")

    def _write_int(self, gpa: int, value: int, size: int) -> None:
        try:
            data = value.to_bytes(size, "little")
        except OverflowError:
            raise GuestMemoryError(f"{value:#x} does not fit into {size * 8} bits at {gpa:#x}", gpa) from None
        self.write(gpa, data)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this guest memory is closed: create a new one")


def _map(size: int, name: str) -> mmap.mmap:
    # With MAP_NORESERVE a guest may have more memory than the host has free; Python knows the name from 3.13 on.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return mmap.mmap(-1, size, flags=flags)
    except (OSError, OverflowError) as error:
        raise GuestMemoryError(f"{name}: the host has no {format_size(size)} to give: {error}", region=name) from error


def _check_unused(mapping: mmap.mmap) -> None:
    try:
        mapping.resize(len(mapping))  # changes nothing, and fails while anybody has a view: mmap has no better question
    except BufferError:
        raise InUseError(
            "guest memory cannot be unmapped while a view of it is alive or a VM has it: release the view, close the VM"
        ) from None


def _span(gpa: int, size: int) -> str:
    return f"{gpa:#x}-{gpa + max(size, 1) - 1:#x}"
