"""Time, as the devices know it: a clock that counts nanoseconds and can call back.

A device never asks the host for the time. It is given a ``Clock``, so that a test, or a replay, can turn the hands.
Leaves out the clock that follows real time: the machine has it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["SECOND", "Alarm", "AlarmQueue", "Clock", "ManualClock"]

SECOND = 1_000_000_000  # nanoseconds


class Alarm(Protocol):
    """A call that is due at some time."""

    def cancel(self) -> None:
        """See to it that the call does not happen; does nothing if it has happened, or was cancelled."""


class Clock(Protocol):
    """A clock. It stands still while the machine is paused."""

    def now(self) -> int:
        """Return the nanoseconds since the machine was made. It never goes back."""

    def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
        """Call ``callback`` once, as soon as the clock shows ``when`` or later, and never before this has returned.

        No device is being accessed at that moment, so that ``callback`` may change one.
        """


@dataclass(order=True, slots=True)
class _Due:
    when: int
    number: int  # calls due at the same time happen in the order in which they were asked for
    callback: Callable[[], None] | None = field(compare=False)
    queue: AlarmQueue = field(compare=False)

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self.queue.forget_cancelled()


class AlarmQueue:
    """The calls a clock has promised, the next one first: what every ``Clock`` is made of."""

    def __init__(self) -> None:
        self._due: list[_Due] = []
        self._numbers = itertools.count()
        self._cancelled = 0

    def add(self, when: int, callback: Callable[[], None]) -> Alarm:
        """Promise to call ``callback`` at ``when``."""
        due = _Due(when, next(self._numbers), callback, self)
        heapq.heappush(self._due, due)
        return due

    def next_time(self) -> int | None:
        """Return when the next call is due, or None if there is none."""
        while self._due and self._due[0].callback is None:
            heapq.heappop(self._due)
            self._cancelled -= 1
        return self._due[0].when if self._due else None

    def pop(self) -> Callable[[], None] | None:
        """Take the next call off the queue and return it, or None if there is none."""
        if self.next_time() is None:
            return None
        due = heapq.heappop(self._due)
        callback, due.callback = due.callback, None
        return callback

    def take_due(self, end: int) -> Iterator[tuple[int, Callable[[], None]]]:
        """Take the calls off the queue that are due at ``end``, each with its time; those it makes due come, too."""
        while (when := self.next_time()) is not None and when <= end:
            callback = self.pop()
            if callback is not None:
                yield when, callback

    def clear(self) -> None:
        """Forget all calls."""
        self._due.clear()
        self._cancelled = 0

    def forget_cancelled(self) -> None:
        """Take note that one more was cancelled. A guest can set and cancel an alarm a million times a second."""
        self._cancelled += 1
        if self._cancelled > len(self._due) // 2 + 16:
            self._due = [due for due in self._due if due.callback is not None]
            heapq.heapify(self._due)
            self._cancelled = 0


class ManualClock:
    """A clock that goes on only by ``advance()``: for tests."""

    def __init__(self) -> None:
        self._now = 0
        self._alarms = AlarmQueue()

    def now(self) -> int:
        """Return the nanoseconds it was advanced by so far."""
        return self._now

    def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
        """Call ``callback`` during the ``advance()`` that reaches ``when``."""
        return self._alarms.add(when, callback)

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, and make the calls that are due, each at its time and in order."""
        end = self._now + nanoseconds
        for when, callback in self._alarms.take_due(end):
            self._now = max(self._now, when)
            callback()
        self._now = end
