"""Time, as the devices know it: a clock that counts nanoseconds and can call back.

A device never asks the host for the time. It is given a ``Clock``, so that a test, or a replay, can turn the hands.
Leaves out the clock that follows real time: the machine has it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["SECOND", "Alarm", "Clock", "ManualClock"]

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

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """A clock that goes on only by ``advance()``: for tests."""

    def __init__(self) -> None:
        self._now = 0
        self._due: list[_Due] = []
        self._numbers = itertools.count()

    def now(self) -> int:
        """Return the nanoseconds it was advanced by so far."""
        return self._now

    def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
        """Call ``callback`` during the ``advance()`` that reaches ``when``."""
        due = _Due(when, next(self._numbers), callback)
        heapq.heappush(self._due, due)
        return due

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, and make the calls that are due, each at its time and in order."""
        end = self._now + nanoseconds
        while self._due and self._due[0].when <= end:
            due = heapq.heappop(self._due)
            self._now = max(self._now, due.when)
            if due.callback is not None:
                due.callback()
        self._now = end
