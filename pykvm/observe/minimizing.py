"""From a recording that diverges to the smallest one that does so in the same way.

First everything after the divergence goes, then by delta debugging whatever before it the divergence does not need:
halves, quarters, eighths and so on of the lines are left out for a try, until no single line can be. The same
divergence is one of the same exit with the same two answers: leaving out a write may well make a device answer
something else, but that is another difference. See: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing
Input" (2002). Leaves out making the lines themselves smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pykvm.errors import RecordingError
from pykvm.machine import Stopped
from pykvm.observe.divergence import Divergence
from pykvm.observe.recording import EndLine, Line, Recording
from pykvm.observe.replaying import replay
from pykvm.observe.workbench import Workbench

__all__ = ["MOST_LINES", "Minimized", "minimize"]

MOST_LINES = 3_000_000  # replayed in all: half a minute or so


@dataclass(frozen=True, slots=True)
class Minimized:
    """A smaller ``recording`` with the same ``divergence``, found by so many ``replays``.

    ``is_smallest`` says that it needs every one of its lines: else the search was given up before its end.
    """

    recording: Recording
    divergence: Divergence
    replays: int
    is_smallest: bool


def minimize(
    recording: Recording,
    devices: Callable[[Workbench], object] | None = None,
    *,
    board: bool = True,
    limit: int = MOST_LINES,
) -> Minimized:
    """Return the smallest recording that diverges as ``recording`` does; ``devices`` and ``board`` as for ``replay``.

    ``devices`` is called for every try, and is to make its devices anew. After ``limit`` replayed lines the best so far
    is returned.

    Raises: RecordingError if ``recording`` does not diverge.
    """
    first = replay(recording, devices, board=board).divergence
    if first is None:
        raise RecordingError(f"{recording.name}: does not diverge: there is nothing to minimize")
    search = _Search(recording, first, lambda smaller: replay(smaller, devices, board=board).divergence, limit)
    search.run()
    return Minimized(search.recording(search.kept), search.divergence, search.replays, not search.is_over)


class _Search:
    """The search: ``kept`` are the lines before the divergence that are still there."""

    def __init__(
        self, recording: Recording, first: Divergence, find: Callable[[Recording], Divergence | None], limit: int
    ) -> None:
        place = first.place
        last = place.position if place.last is None else place.last
        self.kept: Sequence[Line] = recording.lines[: place.position]
        self.divergence = first
        self.replays = 1
        self._recording = recording
        self._tail = recording.lines[place.position : last + 1]
        self._find = find
        self._left = limit

    @property
    def is_over(self) -> bool:
        """Return whether so much was tried that it has to be enough."""
        return self._left <= 0

    def recording(self, lines: Sequence[Line]) -> Recording:
        """Return ``lines`` and the divergence after them as a recording."""
        tail = self._tail
        if not isinstance(tail[-1], EndLine):
            tail = (*tail, EndLine(tail[-1].time, Stopped()))
        return replace(self._recording, lines=(*lines, *tail))

    def run(self) -> None:
        """Make ``kept`` as small as can be."""
        self._try(self.kept)  # how it diverges once everything after it is gone
        parts = 2
        while self.kept and not self.is_over:
            size = -(-len(self.kept) // parts)
            if self._leave_out_one_of(size):
                parts = max(parts - 1, 2)
            elif size == 1:
                return
            else:
                parts = min(2 * parts, len(self.kept))

    def _leave_out_one_of(self, size: int) -> bool:
        """Leave out every part of ``size`` lines that can be; return whether there was one."""
        found = False
        start = 0
        while start < len(self.kept) and not self.is_over:
            rest = (*self.kept[:start], *self.kept[start + size :])
            if self._try(rest):
                self.kept, found = rest, True
            else:
                start += size
        return found

    def _try(self, lines: Sequence[Line]) -> bool:
        smaller = self.recording(lines)
        self.replays += 1
        self._left -= len(smaller.lines)
        try:
            found = self._find(smaller)
        except RecordingError:  # an event that makes no sense without what was left out
            return False
        if found is None or not found.is_like(self.divergence) or found.place.position != len(lines):
            return False
        self.divergence = found
        return True
