"""pykvm.devices.clock: the clock that only a test advances."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import ManualClock


def test_time_passes_only_by_advance() -> None:
    clock = ManualClock()
    assert clock.now() == clock.now() == 0
    clock.advance(5)
    assert clock.now() == 5


def test_a_call_happens_at_its_time_and_once() -> None:
    clock, seen = ManualClock(), []
    clock.call_at(10, lambda: seen.append(clock.now()))
    clock.advance(9)
    assert seen == []
    clock.advance(90)
    clock.advance(90)
    assert seen == [10]


def test_a_cancelled_call_does_not_happen() -> None:
    clock, seen = ManualClock(), []
    alarm = clock.call_at(10, lambda: seen.append(1))
    alarm.cancel()
    alarm.cancel()
    clock.advance(20)
    assert seen == []


def test_a_call_due_in_the_past_happens_at_the_next_advance() -> None:
    clock, seen = ManualClock(), []
    clock.advance(10)
    clock.call_at(3, lambda: seen.append(clock.now()))
    assert seen == []
    clock.advance(0)
    assert seen == [10]


def test_a_call_can_ask_for_the_next_one() -> None:
    clock, seen = ManualClock(), []

    def tick() -> None:
        seen.append(clock.now())
        clock.call_at(clock.now() + 10, tick)

    clock.call_at(10, tick)
    clock.advance(35)
    assert seen == [10, 20, 30]


@given(st.lists(st.integers(0, 100)))
def test_calls_happen_in_order_of_time_and_then_of_asking(times: list[int]) -> None:
    clock = ManualClock()
    seen: list[tuple[int, int]] = []
    for number, when in enumerate(times):
        clock.call_at(when, lambda number=number, when=when: seen.append((when, number)))  # type: ignore[misc]
    clock.advance(100)
    assert seen == sorted((when, number) for number, when in enumerate(times))
