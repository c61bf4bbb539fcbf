"""pykvm.machine.journal: time in steps, and what comes from outside told before it has an effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm.devices import ManualClock
from pykvm.machine import LastExits
from pykvm.machine.journal import NO_MACHINE, Event, Input, Journal, MemoryRead, Rings, StepClock, Tap
from pykvm.observe import Recorder


class Told:
    """A journal that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, bool]] = []

    def tell(self, event: Event, *, inside: bool) -> None:
        self.events.append((event, inside))

    def exit(self, *arguments: object) -> None: ...
    def tick(self) -> None: ...
    def answer(self, *arguments: object) -> None: ...
    def interrupt(self, *arguments: object) -> None: ...
    def coalesced(self, *arguments: object) -> None: ...
    def begin(self, *arguments: object) -> None: ...
    def end(self, *arguments: object) -> None: ...


def tap(inside: bool = False) -> tuple[Tap, Told]:
    told = Told()
    return Tap(told, ManualClock(), lambda: inside), told


# ---- the clock ----


def test_time_stands_still_between_steps() -> None:
    source = ManualClock()
    clock = StepClock(source, lambda: None)
    source.advance(5)
    assert clock.now() == 0
    assert (clock.step(), clock.now()) == (5, 5)


def test_an_alarm_that_is_due_asks_for_a_step_and_is_called_in_it_at_its_time() -> None:
    source, seen = ManualClock(), list[int]()
    clock = StepClock(source, lambda: seen.append(clock.step()))
    clock.call_at(3, lambda: seen.append(clock.now()))
    source.advance(10)
    assert seen == [3, 3]
    assert clock.now() == 3


def test_an_alarm_in_a_step_that_came_anyway_asks_for_no_other() -> None:
    source, asked, called = ManualClock(), list[int](), list[int]()
    clock = StepClock(source, lambda: asked.append(clock.step()))
    source.advance(2)
    clock.call_at(1, lambda: called.append(clock.now()))
    clock.step()
    source.advance(10)
    assert (asked, called) == ([], [1])


def test_a_cancelled_alarm_is_never_heard_of() -> None:
    source, asked, called = ManualClock(), list[int](), list[int]()
    clock = StepClock(source, lambda: asked.append(clock.step()))
    alarm = clock.call_at(3, lambda: called.append(1))
    alarm.cancel()
    alarm.cancel()
    source.advance(10)
    clock.step()
    assert (asked, called) == ([], [])


def test_an_alarm_may_set_the_next() -> None:
    source, seen = ManualClock(), list[int]()
    clock = StepClock(source, lambda: None)

    def again() -> None:
        seen.append(clock.now())
        clock.call_at(clock.now() + 2, again)

    clock.call_at(1, again)
    source.advance(6)
    clock.step()
    assert seen == [1, 3, 5]


# ---- what is told ----


@pytest.mark.parametrize("inside", [False, True])
def test_input_is_told_and_so_is_that_there_was_none_for_an_exit(inside: bool) -> None:
    wire, told = tap(inside)
    chunks = [b"", b"abc"]
    read = wire.serial_input(lambda limit: chunks.pop(0))
    assert read is not None
    assert (read(2), read(2)) == (b"", b"ab")
    in_vain = [(Input(b""), True)] if inside else []
    assert told.events == [*in_vain, (Input(b"ab"), inside)]


def test_without_input_there_is_nothing_to_tell() -> None:
    assert tap()[0].serial_input(None) is None


def test_memory_and_doorbells_are_told() -> None:
    wire, told = tap()
    rung: list[tuple[int, int]] = []
    assert wire.dma_read(lambda gpa, size: bytes(size))(0x1000, 2) == b"\0\0"
    wire.doorbell(0x5D0, lambda times: rung.append((times, len(told.events))))(3)
    assert told.events == [(MemoryRead(0x1000, b"\0\0"), False), (Rings(0x5D0, 3), False)]
    assert rung == [(3, 2)]  # told first


def test_a_recorder_is_a_journal_and_another_observer_is_none(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run") as recorder:
        assert isinstance(recorder, Journal)
    assert not isinstance(LastExits(), Journal)
    assert NO_MACHINE.cpus == 1
