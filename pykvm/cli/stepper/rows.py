"""Rows: what a pane shows, as pieces of text that each say what they are.

A view makes them of a guest's state without knowing of any screen, and so a test can read them as text. What matters is
in the text itself, a sign in front of what changed or where the guest is: colour only helps. Leaves out which colours.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

__all__ = ["Kind", "Piece", "Row", "fit", "plain", "row"]


class Kind(enum.Enum):
    """What a piece of text is."""

    TEXT = "text"
    CHANGED = "changed"  # since the guest last stood still
    CURRENT = "current"  # where the guest is
    BREAKPOINT = "breakpoint"
    LABEL = "label"  # a name
    FAINT = "faint"  # what is only there to be complete
    BAD = "bad"  # an end that nobody wants


Piece = tuple[str, Kind]
Row = tuple[Piece, ...]


def row(text: str, kind: Kind = Kind.TEXT) -> Row:
    """Return a row of one piece."""
    return ((text, kind),)


def plain(rows: Iterable[Row]) -> str:
    """Return ``rows`` as lines of text, without blanks at their ends."""
    return "\n".join("".join(text for text, _ in pieces).rstrip() for pieces in rows)


def fit(pieces: Row, width: int) -> Row:
    """Return as much of a row as fits into ``width`` columns; a last "…" says that there is more."""
    if sum(len(text) for text, _ in pieces) <= width:
        return pieces
    room, kept = width - 1, []
    for text, kind in pieces:
        kept.append((text[:room], kind))
        room -= len(text)
        if room <= 0:
            break
    return (*kept, ("…", Kind.FAINT))
