"""``Image``: a guest as bytes for guest-physical addresses, an entry point and the mode to start it in.

Every format (ELF, flat, assembly) becomes one of these, so that whoever runs a guest need not know what file it came
from. An Image that exists is sound: its segments do not overlap, and its entry lies in one of them. Leaves out the
CPU's state at entry: see ``pykvm.x86.modes``.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from pykvm.errors import ImageError
from pykvm.names import did_you_mean
from pykvm.units import MiB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pykvm.boot.lines import LineTable
    from pykvm.boot.protocol import BootProtocol
    from pykvm.memory import GuestMemory
    from pykvm.units import Gpa
    from pykvm.x86 import Mode

__all__ = ["Image", "Segment", "Symbol", "choose_entry", "printable"]

ADDRESS_LIMIT = 1 << 52  # MAXPHYADDR is at most 52 (SDM volume 3, section 4.1.4)
CLEARING_STEP = MiB


@dataclass(frozen=True, slots=True)
class Segment:
    """``memory_size`` bytes at guest-physical ``gpa``: ``data``, and zeros after it (what a linker calls .bss)."""

    gpa: Gpa
    data: bytes = field(repr=False)
    memory_size: int

    @property
    def end(self) -> int:
        """Return the address after the last byte."""
        return self.gpa + self.memory_size

    def __str__(self) -> str:
        return f"{self.gpa:#x}-{self.end - 1:#x}"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name for the ``size`` bytes at ``address``, which is linear: as the guest's code has it."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """A guest, ready to be loaded.

    ``name`` is for messages, ``entry`` the linear address of the first instruction, ``mode`` what the CPU is to be in
    there, ``symbols`` are sorted by address, ``format`` says what the image was made from ("ELF64", "flat binary"),
    ``elf`` is the file itself if it was an ELF, for its debugging information, and ``protocol`` says what the guest
    finds when it starts, if that is more than a mode. ``folder`` is where sources with relative names are, ``source``
    the assembly text of a guest that has no file.

    Raises: ImageError if the segments overlap, leave the 52-bit address space, or do not hold the entry.
    """

    name: str
    segments: tuple[Segment, ...] = field(repr=False)
    entry: int
    mode: Mode
    symbols: tuple[Symbol, ...] = field(default=(), repr=False)
    format: str = ""
    elf: bytes = field(default=b"", repr=False, compare=False)
    protocol: BootProtocol | None = field(default=None, compare=False)
    folder: Path | None = field(default=None, repr=False, compare=False)
    source: str = field(default="", repr=False, compare=False)
    _lines: LineTable | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.segments:
            raise ImageError(f"{self.name}: there is nothing in it to load")
        for segment in self.segments:
            self._check_segment(segment)
        for below, above in pairwise(sorted(self.segments, key=lambda segment: segment.gpa)):
            if above.gpa < below.end:
                raise ImageError(f"{self.name}: its segments {below} and {above} overlap")
        if not any(segment.gpa <= self.entry < segment.end for segment in self.segments):
            raise ImageError(
                f"{self.name}: the entry {self.entry:#x} is in none of its segments ({_list(self.segments)}): "
                "give another entry"
            )

    @property
    def lines(self) -> LineTable:
        """Return the table of source lines, which is read when it is first asked for."""
        from pykvm.boot.lines import LineTable

        table = self._lines
        if table is None:
            table = LineTable.of(self)
            object.__setattr__(self, "_lines", table)  # a value all the same: the table says nothing that elf does not
        return table

    def load(self, memory: GuestMemory) -> None:
        """Write all segments into ``memory``; what follows a segment's data is zeroed.

        Raises: ImageError if a segment is not all in RAM; nothing is written then.
        """
        for segment in self.segments:
            self._check_room(segment, memory)
        for segment in self.segments:
            memory.write(segment.gpa, segment.data)
            _clear(memory, segment.gpa + len(segment.data), segment.end)

    def symbol_at(self, address: int) -> str | None:
        """Return the linear ``address`` in the source's words, ``"main+0x12"``; None if it belongs to no symbol."""
        position = bisect_right(self.symbols, address, key=lambda symbol: symbol.address)
        if position == 0:
            return None
        symbol = self.symbols[position - 1]
        offset = address - symbol.address
        if offset and offset >= symbol.size:
            return None
        return f"{symbol.name}+{offset:#x}" if offset else symbol.name

    def _check_segment(self, segment: Segment) -> None:
        if segment.gpa < 0 or segment.end > ADDRESS_LIMIT:
            raise ImageError(f"{self.name}: its segment {segment} is outside the 52-bit physical address space")
        if segment.memory_size < max(len(segment.data), 1):
            raise ImageError(
                f"{self.name}: its segment at {segment.gpa:#x} has {len(segment.data)} bytes of data "
                f"for {segment.memory_size} bytes of memory"
            )

    def _check_room(self, segment: Segment, memory: GuestMemory) -> None:
        address: int = segment.gpa
        while address < segment.end:
            region = memory.find(address)
            if region is None:
                there = ", ".join(str(region) for region in memory.regions) or "none"
                raise ImageError(
                    f"{self.name}: {segment} does not fit into guest memory, {address:#x} is outside; there is {there}"
                )
            if region.readonly:
                raise ImageError(f"{self.name}: {segment} cannot be loaded: {region} is read-only")
            address = region.end


def choose_entry(name: str, entry: int | str | None, default: int, symbols: Sequence[Symbol]) -> int:
    """Return the address that ``entry`` means: a linear address, a symbol's name, or None for ``default``.

    Raises: ImageError if ``symbols`` of the image ``name`` has no such name.
    """
    if entry is None:
        return default
    if isinstance(entry, int):
        return entry
    addresses = {symbol.name: symbol.address for symbol in symbols}
    if entry in addresses:
        return addresses[entry]
    if not addresses:
        raise ImageError(f"{name}: there is no symbol {entry!r}, nor any other: give the entry as an address")
    close = did_you_mean(entry, addresses, most=1)
    raise ImageError(f"{name}: there is no symbol {entry!r} to start at{close and '; ' + close}")


def printable(name: str) -> str:
    """Return ``name``, which a stranger chose, with what a terminal would obey (control characters) escaped."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def _clear(memory: GuestMemory, start: int, end: int) -> None:
    """Zero ``start`` to ``end``. Fresh RAM is zero already, and reading it costs the host no page: writing would."""
    for address in range(start, end, CLEARING_STEP):
        zeros = bytes(min(CLEARING_STEP, end - address))
        if memory.read(address, len(zeros)) != zeros:
            memory.write(address, zeros)


def _list(segments: Sequence[Segment]) -> str:
    shown = ", ".join(str(segment) for segment in segments[:4])
    return f"{shown}, ..." if len(segments) > 4 else shown
