"""Rows of text as aligned columns: wrapped at a terminal's width, one line a row for a pipe or a file.

Leaves out headings and frames.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["print_rows"]

UNLIMITED = 10_000  # columns of a pipe
NARROWEST = 30  # what the last column gets at least; a terminal without so much room wraps for itself
GAP = 2

STYLES = {"works": "green", "yes": "green", "no": "yellow", "hangs": "red"}


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows``, which all have the same number of cells, on stdout. Only the last column is ever wrapped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    fixed = 0
    for column in list(zip(*rows, strict=True))[:-1]:
        table.add_column(no_wrap=True)
        fixed += max(map(len, column)) + GAP
    table.add_column(overflow="fold")
    for row in rows:
        # Text, not str: rich would take "[...]" for its own markup.
        table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    console = Console(highlight=False)
    console.width = max(console.width, fixed + NARROWEST) if sys.stdout.isatty() else UNLIMITED
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())
