"""What RAM there is, as a PC's firmware tells it (E820), and where in it there is room.

    0x0000_0000  RAM        640 KiB less the last one, which a BIOS keeps for its extended data area
    0x0009_fc00  reserved   that, the screens, ROMs, and the firmware's tables
    0x0010_0000  RAM        up to its end, or the MMIO hole at 3 GiB; and on from 4 GiB

Multiboot, Linux's zero page and INT 15h hand the same entries to a guest, each in a format of its own. See: ACPI
specification 4.0, section 14 (system address map interfaces). Leaves out memory for ACPI: its tables are in the
reserved part.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from pykvm.errors import ImageError
from pykvm.memory import GuestMemory, RegionKind
from pykvm.units import Gpa, align_down, align_up, format_size

__all__ = ["EXTENDED_BIOS_DATA", "HIGH_MEMORY", "E820Entry", "E820Type", "Room", "memory_map"]

EXTENDED_BIOS_DATA = Gpa(0x9_FC00)
HIGH_MEMORY = Gpa(0x10_0000)


class E820Type(enum.Enum):
    """What a range of addresses is."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True, slots=True)
class E820Entry:
    """``size`` bytes at guest-physical ``base``."""

    base: int
    size: int
    type: E820Type

    @property
    def end(self) -> int:
        """Return the address after the last byte."""
        return self.base + self.size


def memory_map(memory: GuestMemory) -> tuple[E820Entry, ...]:
    """Return what there is in ``memory``, lowest address first; holes are left out."""
    return tuple(entry for region in memory.regions for entry in _entries(region.gpa, region.end, region.kind))


def _entries(start: int, end: int, kind: RegionKind) -> Iterator[E820Entry]:
    borders = sorted({start, end, *(at for at in (EXTENDED_BIOS_DATA, HIGH_MEMORY) if start < at < end)})
    for base, stop in pairwise(borders):
        is_legacy = EXTENDED_BIOS_DATA <= base < HIGH_MEMORY
        is_ram = kind is RegionKind.RAM and not is_legacy
        yield E820Entry(base, stop - base, E820Type.RAM if is_ram else E820Type.RESERVED)


class Room:
    """The RAM of ``memory`` that nobody has taken yet: neither an image nor what was put beside it before."""

    def __init__(self, memory: GuestMemory, taken: Iterable[range]) -> None:
        self._memory = memory
        self._ram = [entry for entry in memory_map(memory) if entry.type is E820Type.RAM]
        self._taken = sorted((used for used in taken if used), key=lambda used: used.start)

    def put(self, data: bytes, what: str, within: Iterable[range], align: int = 16, *, highest: bool = False) -> Gpa:
        """Write ``data`` to the lowest free place in the first of the ranges ``within`` that has one; return where.

        With ``highest`` it is the highest. ``align`` is a power of two. Raises: ImageError, with ``what``, if there is
        no room.
        """
        size = max(len(data), 1)
        for wanted in within:
            gpa = (self._find_highest if highest else self._find)(size, wanted, align)
            if gpa is not None:
                insort(self._taken, range(gpa, gpa + size), key=lambda used: used.start)
                self._memory.write(gpa, data)
                return gpa
        raise ImageError(f"there is no room for {what} ({format_size(size)}): give the machine more memory")

    def _find(self, size: int, wanted: range, align: int) -> Gpa | None:
        for entry in self._ram:
            base = align_up(max(entry.base, wanted.start), align)
            end = min(entry.end, wanted.stop)
            for used in self._taken:
                if used.start < base + size and base < used.stop:
                    base = align_up(used.stop, align)
            if base + size <= end:
                return Gpa(base)
        return None

    def _find_highest(self, size: int, wanted: range, align: int) -> Gpa | None:
        for entry in reversed(self._ram):
            base = align_down(min(entry.end, wanted.stop) - size, align)
            for used in reversed(self._taken):
                if used.start < base + size and base < used.stop:
                    base = align_down(used.start - size, align)
            if base >= max(entry.base, wanted.start):
                return Gpa(base)
        return None
