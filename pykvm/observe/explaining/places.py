"""A range of ports or addresses, with what is there and its registers by name.

Leaves out which ranges there are: see ``ports`` and ``addresses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.observe.explaining.explanation import Explanation, Located

__all__ = ["Part", "Place", "describe", "find", "neighbours"]


@dataclass(frozen=True, slots=True)
class Part:
    """A register, or a run of them: ``size`` bytes from ``offset`` on."""

    offset: int
    name: str
    meaning: str
    size: int = 1


@dataclass(frozen=True, slots=True)
class Place:
    """What is at ``size`` ports or addresses from ``base`` on; ``condition`` says on which machines, "" for all."""

    base: int
    size: int
    title: str
    what: str
    see: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    condition: str = ""
    advice: str = ""

    @property
    def end(self) -> int:
        """Return the port or address after the last one."""
        return self.base + self.size

    @property
    def span(self) -> str:
        """Return "0x3f8 to 0x3ff", or "0x80" for a single one."""
        return f"{self.base:#x}" if self.size == 1 else f"{self.base:#x} to {self.end - 1:#x}"

    def part(self, number: int) -> Part | None:
        """Return the part that ``number`` is in, or None."""
        offset = number - self.base
        return next((part for part in self.parts if part.offset <= offset < part.offset + part.size), None)


def find(places: Sequence[Place], number: int) -> Place | None:
    """Return the place that ``number`` is in, the smallest if there are several, or None."""
    found = [place for place in places if place.base <= number < place.end]
    return min(found, key=lambda place: place.size, default=None)


def neighbours(places: Sequence[Place], number: int) -> str:
    """Return in words what is next to ``number`` on either side."""
    below = max((place for place in places if place.end <= number), key=lambda place: place.end, default=None)
    above = min((place for place in places if place.base > number), key=lambda place: place.base, default=None)
    words = [f"{place.title} at {place.span}" for place in (below, above) if place is not None]
    return f"Next to it: {'; '.join(words)}." if words else ""


def describe(kind: str, number: int, place: Place) -> Explanation:
    """Return the explanation of ``number``, a port or an address as ``kind`` says, which is in ``place``."""
    part = place.part(number)
    title = f"{kind} {number:#x}: {place.title}" + (f", {part.name}" if part else "")
    here = f" {part.name}: {part.meaning}." if part else ""
    return Explanation(
        title,
        f"{place.what} It is at {place.span}.{here}",
        place.condition,
        (place.advice,),
        place.see,
        registers=tuple(Located(place.base + other.offset, other.name, other.meaning) for other in place.parts),
    )
