"""Exits and their times, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Shutdown, Wrmsr
from pykvm.observe.statistics import ExitTimes
from pykvm.observe.statistics.times import NOWHERE, OTHERS, Times
from pykvm.testing.strategies import exits as any_exit
from pykvm.units import Gpa

OUT = IoOut(0x3F8, data=b"x")


class Lab:
    """Exit times with a clock that stands still but for what the test says."""

    def __init__(self, places: int = 256) -> None:
        self.now = 1000
        self.times = ExitTimes(places, lambda: self.now)

    def guest(self, duration: int, cpu: int = 0) -> None:
        self.times.enter(cpu)
        self.now += duration

    def handle(self, exit: Exit, duration: int, cpu: int = 0) -> None:
        self.times.exit(cpu, exit)
        self.now += duration

    def one(self, reason: str) -> Times:
        [found] = [times for times in self.times.times if times.reason == reason]
        return found


def test_time_is_told_apart_at_the_exit() -> None:
    lab = Lab()
    for _ in range(3):
        lab.guest(100)
        lab.handle(OUT, 7)
    lab.times.leave(0)
    out = lab.one("io out")
    assert (out.count, out.bytes, out.place) == (3, 3, 0x3F8)
    assert (out.guest.total, out.guest.count) == (300, 3)
    assert (out.user.total, out.user.count) == (21, 3)


def test_an_entry_that_was_interrupted_is_part_of_the_next() -> None:
    lab = Lab()
    lab.guest(10)
    lab.guest(20)  # KVM_RUN returned for a tick, of which nobody is told
    lab.handle(OUT, 5)
    assert lab.one("io out").guest.total == 30


def test_what_ended_without_an_exit_is_time_too() -> None:
    lab = Lab()
    lab.guest(500)
    lab.times.leave(0)
    last = lab.one("no exit")
    assert (last.count, last.guest.total, last.place) == (0, 500, NOWHERE)


def test_time_between_runs_belongs_to_nobody() -> None:
    lab = Lab()
    lab.guest(10)
    lab.handle(Hlt(), 3)
    lab.times.leave(0)
    lab.now += 10_000
    lab.times.exit(0, OUT)  # the instruction is finished after the run
    lab.now += 10_000
    lab.guest(20)
    lab.handle(Hlt(), 4)
    lab.times.leave(0)
    assert (lab.one("hlt").guest.total, lab.one("hlt").user.total) == (30, 7)
    assert (lab.one("io out").count, lab.one("io out").user.total, lab.one("io out").guest.total) == (1, 0, 0)


def test_leaving_twice_or_without_having_entered_is_nothing() -> None:
    lab = Lab()
    lab.times.leave(0)
    lab.guest(1)
    lab.times.leave(0)
    lab.times.leave(0)
    assert lab.one("no exit").guest.count == 1


def test_handling_begins_with_the_first_write_that_was_kept_back() -> None:
    lab = Lab()
    lab.guest(100)
    for _ in range(2):
        lab.times.coalesced(0, IoOut(0x80, data=b"ab"))
        lab.now += 5
    lab.handle(OUT, 1)
    lab.guest(0)
    assert (lab.one("coalesced out").count, lab.one("coalesced out").bytes) == (2, 4)
    assert (lab.one("io out").guest.total, lab.one("io out").user.total) == (100, 11)


def test_writes_kept_back_without_an_exit_pay_for_themselves() -> None:
    lab = Lab()
    lab.guest(100)
    lab.times.coalesced(0, MmioWrite(Gpa(0xB8000), b"x"))
    lab.now += 5
    lab.guest(20)
    lab.times.leave(0)
    assert lab.one("coalesced mmio").user.total == 5


@pytest.mark.parametrize(
    ("exit", "reason", "place", "size"),
    [
        (IoIn(0x60, 1, 5), "io in", 0x60, 5),
        (IoOut(0x3F8, 2, 2, b"abcd"), "io out", 0x3F8, 4),
        (MmioRead(Gpa(0xFED0_0000), 8), "mmio read", 0xFED0_0000, 8),
        (MmioWrite(Gpa(0xFED0_0000), b"1234"), "mmio write", 0xFED0_0000, 4),
        (Rdmsr(0x174, 1), "rdmsr", 0x174, 8),
        (Wrmsr(0x174, 1, 1), "wrmsr", 0x174, 8),
        (Hlt(), "hlt", NOWHERE, 0),
        (Shutdown(), "shutdown", NOWHERE, 0),
    ],
)  # fmt: skip
def test_exits_are_counted_by_reason_and_place(exit: Exit, reason: str, place: int, size: int) -> None:
    lab = Lab()
    lab.handle(exit, 0)
    [times] = lab.times.times
    assert (times.reason, times.place, times.count, times.bytes) == (reason, place, 1, size)


@given(st.lists(st.tuples(st.integers(0, 1), any_exit()), max_size=30))
def test_every_exit_is_counted_once_and_all_time_is_somebodys(events: list[tuple[int, Exit]]) -> None:
    lab = Lab()
    for cpu, exit in events:
        lab.guest(7, cpu)
        lab.handle(exit, 3, cpu)
        lab.times.leave(cpu)
    lab.times.tick()
    assert sum(times.count for times in lab.times.times) == len(events)
    assert sum(times.user.total + times.guest.total for times in lab.times.times) == 10 * len(events)


def test_a_guest_that_sweeps_all_addresses_fills_no_memory() -> None:
    lab = Lab(places=10)
    for address in range(5000):
        lab.guest(1)
        lab.handle(MmioWrite(Gpa(address), b"x"), 1)
        lab.guest(1)
        lab.handle(IoIn(address), 1)
    times = lab.times.times
    assert len(times) <= 12
    others = {found.reason: found.count for found in times if found.place == OTHERS}
    assert sum(found.count for found in times) == 10_000
    assert others == {"mmio write": 4995, "io in": 4995}


def test_cpus_are_counted_together_at_the_same_place() -> None:
    lab = Lab()
    for cpu in (0, 1, 5):
        lab.guest(cpu, cpu)
        lab.handle(OUT, 0, cpu)
    assert (lab.one("io out").count, lab.one("io out").guest.total) == (3, 6)


@pytest.mark.parametrize("places", [0, -1])
def test_no_places_are_refused(places: int) -> None:
    with pytest.raises(ConfigurationError, match=f"1 place at least, not {places}"):
        ExitTimes(places)
