"""Names that people mistype: what they may have meant.

Leaves out what a name is for, and what to say if nothing is like it: whoever knows the names knows that.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["closest", "did_you_mean"]


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """Return ``"did you mean a or b?"``: up to ``most`` of ``known`` that look like ``name``; empty if none does."""
    close = closest(name, known, most)
    return f"did you mean {' or '.join(close)}?" if close else ""


def closest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return up to ``most`` of ``known`` that look like ``name``, the closest first."""
    from difflib import get_close_matches  # for people who mistype: nobody else waits for it

    return get_close_matches(name, list(known), n=most)
