"""What was counted, as data and as columns of text."""

from __future__ import annotations

import re

import pytest

from pykvm.devices import Bus
from pykvm.kvm import Hlt, IoIn, IoOut, MmioRead, MsrExitReason, Rdmsr, Statistic, StatKind, StatUnit
from pykvm.observe.statistics import ExitTimes, StatisticsResult
from pykvm.observe.statistics.counters import _gain
from pykvm.observe.statistics.result import _duration
from pykvm.observe.statistics.statistics import summarize
from pykvm.units import Gpa

INVAL = MsrExitReason.INVAL.value
HEADINGS = ["exit", "where", "count", "time", "user p50", "user p99", "guest p50", "guest p99", "bytes"]


class Named:
    """A device whose registers have names."""

    name = "lamp"

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        pass

    def register_name(self, offset: int, is_write: bool) -> str:
        return "" if offset else "colour" if is_write else "status"


class Plain:
    """A device that has a name alone."""

    name = "wall"
    read, write = Named.read, Named.write


@pytest.fixture
def buses() -> tuple[Bus, Bus]:
    pio, mmio = Bus("port", 1 << 16), Bus("MMIO", 1 << 52)
    pio.register(Named(), 0x300, 2)
    mmio.register(Plain(), 0xA000, 16)
    return pio, mmio


def counted(*exits: object) -> ExitTimes:
    clock = iter(range(1, 10**9, 1000))
    times = ExitTimes(clock=lambda: next(clock))
    for exit in exits:
        times.enter(0)
        times.exit(0, exit)  # type: ignore[arg-type]
    times.leave(0)
    return times


def test_places_are_called_by_device_and_register(buses: tuple[Bus, Bus]) -> None:
    ports = (IoOut(0x300), IoIn(0x300), IoIn(0x301), IoIn(0x999))
    others = (MmioRead(Gpa(0xA004), 4), Rdmsr(0x174, INVAL), Rdmsr(0x99, INVAL), Hlt())
    found = summarize(counted(*ports, *others).times, *buses)
    assert {(row.reason, row.where) for row in found} == {
        ("io out", "0x300 lamp colour"),
        ("io in", "0x300 lamp status"),
        ("io in", "0x301 lamp"),
        ("io in", "0x999 nobody"),
        ("mmio read", "0xa004 wall"),
        ("rdmsr", "0x174 IA32_SYSENTER_CS"),
        ("rdmsr", "0x99"),
        ("hlt", ""),
    }


def test_what_took_longest_comes_first_and_shares_are_the_whole(buses: tuple[Bus, Bus]) -> None:
    found = summarize(counted(IoOut(0x300), IoOut(0x300), IoIn(0x300), Hlt()).times, *buses)
    assert found[0].reason == "io out"
    assert sum(row.share for row in found) == pytest.approx(1)
    assert [row.place for row in found if row.reason == "hlt"] == [None]


def test_others_are_said_to_be_others(buses: tuple[Bus, Bus]) -> None:
    times = ExitTimes(places=1)
    for port in (1, 2, 3):
        times.exit(0, IoIn(port))
    found = summarize(times.times, *buses)
    assert {(row.place, row.where, row.count) for row in found} == {(1, "0x1 nobody", 1), (None, "others", 2)}


def test_nothing_counted_is_a_line() -> None:
    assert str(StatisticsResult(())) == "0 exits, 0 ns in user space, 0 ns in the kernel and the guest"


def test_columns_are_aligned(buses: tuple[Bus, Bus]) -> None:
    counters = {"VM": (), "vCPU 0": (statistic("exits", 7), statistic("halt_exits", 1234))}
    result = StatisticsResult(summarize(counted(IoOut(0x300), Hlt()).times, *buses), counters)
    lines = str(result).splitlines()
    assert lines[0] == "2 exits, 2.0 us in user space, 2.0 us in the kernel and the guest"
    table = lines[2:5]
    assert re.split(r"  +", table[0]) == HEADINGS
    assert len({len(line) for line in table}) == 1
    assert lines[5:] == [
        "",
        "KVM's own counters of the VM",
        "  all 0",
        "",
        "KVM's own counters of the vCPU 0",
        "  exits           7",
        "  halt_exits  1,234",
    ]


def test_a_table_has_an_end(buses: tuple[Bus, Bus]) -> None:
    result = StatisticsResult(summarize(counted(*map(IoIn, range(100))).times, *buses))
    assert len(str(result).splitlines()) < 50
    assert str(result).splitlines()[-1] == "and 60 more, 60.0% of the time"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.0 us"),
        (999_949, "999.9 us"),
        (999_950, "1.0 ms"),
        (2_500_000_000, "2.50 s"),
    ],
)
def test_durations_have_the_unit_that_fits(nanoseconds: int, text: str) -> None:
    assert _duration(nanoseconds) == text


def statistic(name: str, *values: int, kind: StatKind = StatKind.CUMULATIVE) -> Statistic:
    return Statistic(name, values, StatUnit.NONE, 10, 0, kind, 0)


def test_what_only_grows_is_told_by_how_much_it_grew() -> None:
    assert _gain(statistic("exits", 5), statistic("exits", 9)).value == 4
    histogram = _gain(statistic("h", 1, 2, kind=StatKind.LOG_HIST), statistic("h", 1, 5, kind=StatKind.LOG_HIST))
    assert histogram.values == (0, 3)


@pytest.mark.parametrize("kind", [StatKind.INSTANT, StatKind.PEAK])
def test_what_comes_and_goes_is_told_as_it_is(kind: StatKind) -> None:
    assert _gain(statistic("pages", 5, kind=kind), statistic("pages", 3, kind=kind)).value == 3
