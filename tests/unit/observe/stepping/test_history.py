"""The history of a stepper: in order, bounded, and the oldest goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import Regs, Sregs
from pykvm.machine.control import Requests
from pykvm.machine.diary import MemoryChange
from pykvm.machine.moment import Moment, Rest
from pykvm.observe.stepping.history import Entry, History
from pykvm.observe.stepping.step import Step
from pykvm.units import Gpa

MOMENT = Moment((), None, {}, Rest(Requests(), {}, {}, 0, 0), 0, (), 1000)


def entry(number: int, changed: int = 0) -> Entry:
    state = Regs(), Sregs()
    changes = (MemoryChange(Gpa(0), bytes(changed), bytes(changed)),) if changed else ()
    return Entry(MOMENT, Step(number, 0, 0, None, state, state, changes))


def test_what_came_last_is_undone_first() -> None:
    history = History(1 << 20)
    entries = [entry(number) for number in range(1, 5)]
    for one in entries:
        history.add(one)
    assert (history.position, history.oldest, len(history)) == (4, 0, 4)
    assert history.last(2) == tuple(entries[2:])
    assert history.last(10) == tuple(entries)
    assert [history.pop() for _ in range(5)] == [*entries[::-1], None]
    assert (history.position, history.size) == (0, 0)


@given(limit=st.integers(0, 100_000), changed=st.lists(st.integers(0, 5000), max_size=40))
def test_it_never_takes_more_than_it_may(limit: int, changed: list[int]) -> None:
    history = History(limit)
    for number, size in enumerate(changed, 1):
        history.add(entry(number, size))
        assert history.size <= limit
        assert history.position == number
        assert history.position - history.oldest == len(history)
    kept = [one.done.number for one in history.last(100)]
    assert kept == list(range(history.oldest + 1, len(changed) + 1))


def test_clearing_forgets_and_stays_where_it_is() -> None:
    history = History(1 << 20)
    history.add(entry(1))
    history.clear()
    assert (history.position, history.oldest, history.size, history.newest) == (1, 1, 0, None)


def test_fewer_than_no_bytes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a history has 0 bytes or more, not -1"):
        History(-1)
