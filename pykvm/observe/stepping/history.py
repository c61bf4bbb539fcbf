"""``History``: what was before, as far back as its bytes reach; the oldest goes first.

    moment 0 --entry 1--> moment 1 --entry 2--> moment 2 = now

Each entry keeps the moment before it, what it did, and what it changed in memory. Leaves out how to go back: see
``stepper``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pykvm.errors import ConfigurationError
from pykvm.machine.moment import Moment
from pykvm.observe.stepping.step import Step, Stretch

__all__ = ["Entry", "History"]

ENTRY_SIZE = 2500  # bytes: an entry with its registers, but for what is counted below
CHANGE_SIZE = 150


@dataclass(frozen=True, slots=True)
class Entry:
    """``done`` led from ``before`` to the next entry's moment, or to now."""

    before: Moment
    done: Step | Stretch

    @property
    def size(self) -> int:
        """Return about how many bytes it takes."""
        changes = sum(CHANGE_SIZE + 2 * len(change.new) for change in self.done.changes)
        return ENTRY_SIZE + self.before.size + changes


class History:
    """At most ``limit`` bytes of entries. Raises: ConfigurationError if that is below 0."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ConfigurationError(f"a history has 0 bytes or more, not {limit}")
        self._limit = limit
        self._entries: deque[Entry] = deque()
        self._size = 0
        self.position = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Return about how many bytes the entries take."""
        return self._size

    @property
    def oldest(self) -> int:
        """Return the earliest position that is kept."""
        return self.position - len(self._entries)

    def add(self, entry: Entry) -> None:
        """Add the newest, and drop the oldest if they have become too many."""
        self._entries.append(entry)
        self._size += entry.size
        self.position += 1
        while self._entries and self._size > self._limit:
            self._size -= self._entries.popleft().size

    def pop(self) -> Entry | None:
        """Take the newest away and return it; None if there is none."""
        if not self._entries:
            return None
        entry = self._entries.pop()
        self._size -= entry.size
        self.position -= 1
        return entry

    @property
    def newest(self) -> Entry | None:
        """Return the newest."""
        return self._entries[-1] if self._entries else None

    def last(self, count: int) -> tuple[Entry, ...]:
        """Return the newest ``count``, oldest first."""
        return tuple(reversed(tuple(islice(reversed(self._entries), max(0, count)))))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._size = 0
