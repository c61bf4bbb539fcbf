"""Memory as rows of hexadecimal and characters: by linear address, with a ``*`` in front of each byte that changed.

``??`` is a byte that is not there: not mapped, or no memory. Leaves out device memory, whose reads have effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pykvm.cli.stepper.look import ADDRESSES, Look
from pykvm.cli.stepper.rows import Kind, Piece, Row

__all__ = ["MemoryView", "memory_rows"]

MOST_WIDE, LESS_WIDE = 16, 8  # bytes in a row, where there is room
SHORT, LONG = 8, 16  # digits of an address


@dataclass
class MemoryView:
    """A window on memory from linear ``address`` on; it remembers what it showed, and so sees what changed."""

    address: int = 0
    _shown: dict[int, int | None] = field(default_factory=dict)
    _earlier: dict[int, int | None] = field(default_factory=dict)
    _step: int | None = None

    def rows(self, look: Look, height: int, width: int) -> list[Row]:
        """Return ``height`` rows of ``width`` columns at most."""
        per_row = self.bytes_in_row(width)
        found = look.read(self.address, height * per_row)
        if look.step != self._step:
            self._earlier, self._step = self._shown, look.step
        self._shown = {(self.address + offset) % ADDRESSES: byte for offset, byte in enumerate(found)}
        return memory_rows(self.address, found, per_row, self._earlier)

    def scroll(self, by_bytes: int) -> None:
        """Move the window; linear addresses begin anew after the last one."""
        self.address = (self.address + by_bytes) % ADDRESSES

    def bytes_in_row(self, width: int) -> int:
        """Return how many bytes a row of ``width`` columns has room for: 16 or 8."""
        needed = _digits(self.address) + len(" xx") * MOST_WIDE + len("  ") + MOST_WIDE
        return MOST_WIDE if needed <= width else LESS_WIDE


def memory_rows(
    address: int, found: Sequence[int | None], per_row: int, earlier: Mapping[int, int | None]
) -> list[Row]:
    """Return ``found``, the bytes from ``address`` on, as rows; ``earlier`` has what some of them were, by address."""
    digits = _digits(address)
    rows = []
    for start in range(0, len(found), per_row):
        here = (address + start) % ADDRESSES
        part = found[start : start + per_row]
        cells = [_cell(byte, earlier.get((here + offset) % ADDRESSES, byte)) for offset, byte in enumerate(part)]
        text = "".join("." if byte is None or not 0x20 <= byte < 0x7F else chr(byte) for byte in part)
        rows.append(((f"{here:0{digits}x}", Kind.LABEL), *cells, (f"  {text}", Kind.TEXT)))
    return rows


def _cell(byte: int | None, earlier: int | None) -> Piece:
    if byte is None:
        return (" ??", Kind.FAINT)
    return (f" {byte:02x}", Kind.TEXT) if byte == earlier else (f"*{byte:02x}", Kind.CHANGED)


def _digits(address: int) -> int:
    return SHORT if address < 1 << 32 else LONG
