"""The source as rows, with the signs of the listing: ``=>`` at the line the guest is in, ``B`` at a breakpoint.

A line may have code in several places, or none. Leaves out where sources are found: see ``pykvm.boot.lines``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pykvm.boot.lines import LineTable, SourceLine
from pykvm.cli.stepper.listing import gutter
from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.rows import Kind, Row, fit

__all__ = ["SourceView"]

TAB = 8


@dataclass
class SourceView:
    """A window on the source that follows the guest; ``file`` is empty while there is none to show."""

    file: str = ""
    cursor: int = 1  # a line, counted from 1
    _top: int = 1

    def show(self, look: Look, address: int) -> bool:
        """Put the cursor at the line that ``address`` is from; return whether there is a source to show."""
        table = _table(look)
        found = None if table is None else table.find(address)
        if table is None or found is None or not table.source(found.file):
            self.file = ""
            return False
        self.file, self.cursor = found.file, found.line
        return True

    def move(self, look: Look, by: int) -> None:
        """Move the cursor ``by`` lines, up if that is negative."""
        table = _table(look)
        last = 1 if table is None else len(table.source(self.file))
        self.cursor = max(1, min(self.cursor + by, last))

    def address(self, look: Look) -> int | None:
        """Return where the code of the cursor's line begins, None if it has none."""
        table = _table(look)
        addresses = () if table is None else table.addresses(self.file, self.cursor)
        return addresses[0] if addresses else None

    def rows(self, look: Look, breakpoints: Collection[int], height: int, width: int) -> list[Row]:
        """Return ``height`` rows of ``width`` columns at most around the cursor, moved no more than is needed."""
        table = _table(look)
        if table is None:
            return []
        source = table.source(self.file)
        if not self._top <= self.cursor < self._top + height:
            self._top = max(1, self.cursor - height // 3)
        self._top = max(1, min(self._top, len(source) + 1 - height))
        here = table.find(look.rip)
        stops = {table.find(address) for address in breakpoints}
        return [
            fit(self._row(SourceLine(self.file, number), source[number - 1], here, stops), width)
            for number in range(self._top, min(self._top + height, len(source) + 1))
        ]

    def _row(self, line: SourceLine, text: str, here: SourceLine | None, stops: Collection[SourceLine | None]) -> Row:
        signs = gutter(line == here, line.line == self.cursor, line in stops)
        return (*signs, (f"{line.line:>4} ", Kind.FAINT), (text.expandtabs(TAB), Kind.TEXT))


def _table(look: Look) -> LineTable | None:
    return None if look.image is None else look.image.lines
