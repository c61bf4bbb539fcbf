"""Statistics in human words, and a file of statistics made by hand."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pykvm._shim import lib
from pykvm.errors import ConfigurationError
from pykvm.kvm import Statistic, StatKind, StatsFd, StatUnit

NAME_SIZE = 16


def statistic(
    *values: int,
    unit: StatUnit = StatUnit.NONE,
    base: int = 10,
    exponent: int = 0,
    kind: StatKind = StatKind.CUMULATIVE,
    bucket_size: int = 0,
) -> Statistic:
    return Statistic("it", values, unit, base, exponent, kind, bucket_size)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (statistic(1234567), "it: 1,234,567"),
        (statistic(5, exponent=3), "it: 5 x 10^3"),
        (statistic(8192, unit=StatUnit.BYTES), "it: 8 KiB"),
        (statistic(3, unit=StatUnit.BYTES, base=2, exponent=20), "it: 3 MiB"),
        (statistic(1500, unit=StatUnit.SECONDS, exponent=-9), "it: 1,500 ns"),
        (statistic(2, unit=StatUnit.SECONDS), "it: 2 s"),
        (statistic(2, unit=StatUnit.SECONDS, base=2, exponent=-4), "it: 2 x 2^-4 seconds"),
        (statistic(7, unit=StatUnit.CYCLES), "it: 7 cycles"),
        (statistic(1, unit=StatUnit.BOOLEAN), "it: yes"),
        (statistic(0, unit=StatUnit.BOOLEAN), "it: no"),
        (statistic(0, 0, 0, kind=StatKind.LOG_HIST), "it: none"),
        (
            statistic(1, 2, 0, 4, 5, kind=StatKind.LOG_HIST, unit=StatUnit.SECONDS, exponent=-9),
            "it: 1 from 0 to below 1 ns, 2 from 1 to below 2 ns, 4 from 4 to below 8 ns, 5 from 8 ns up",
        ),
        (
            statistic(1, 0, 3, kind=StatKind.LINEAR_HIST, bucket_size=10),
            "it: 1 from 0 to below 10, 3 from 20 up",
        ),
    ],
)
def test_a_statistic_is_told_in_words(value: Statistic, words: str) -> None:
    assert str(value) == words


def test_a_scalar_has_a_value() -> None:
    assert statistic(42).value == 42


def test_a_histogram_has_values_only() -> None:
    with pytest.raises(ConfigurationError, match="it is a histogram of 2 buckets: use values"):
        _ = statistic(1, 2, kind=StatKind.LOG_HIST).value


def describe(flags: int, exponent: int, size: int, offset: int, bucket_size: int, name: bytes) -> bytes:
    return struct.pack("<IhHII16s", flags, exponent, size, offset, bucket_size, name)


def make_file(path: Path, descriptors: list[bytes], data: bytes) -> int:
    """Return a descriptor of a file as KVM_GET_STATS_FD's, with a gap between its parts."""
    header, id, gap = 24, b"kvm-1".ljust(NAME_SIZE, b"\0"), b"????"
    table = b"".join(descriptors)
    start = header + len(id) + len(gap)
    fields = struct.pack("<6I", 0, NAME_SIZE, len(descriptors), header, start, start + len(table) + len(gap))
    path.write_bytes(fields + id + gap + table + gap + data)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def test_a_file_is_read_as_it_describes_itself(tmp_path: Path) -> None:
    peak_bytes = lib.KVM_STATS_TYPE_PEAK | lib.KVM_STATS_UNIT_BYTES | lib.KVM_STATS_BASE_POW2
    histogram = lib.KVM_STATS_TYPE_LINEAR_HIST
    descriptors = [describe(peak_bytes, 10, 1, 16, 0, b"memory"), describe(histogram, 0, 2, 0, 50, b"a_name_of_16_chr")]
    fd = make_file(tmp_path / "stats", descriptors, struct.pack("<3Q", 1, 2, 1 << 63))
    with StatsFd(fd, "a test") as stats:
        assert stats.read() == {
            "memory": Statistic("memory", (1 << 63,), StatUnit.BYTES, 2, 10, StatKind.PEAK, 0),
            "a_name_of_16_chr": Statistic("a_name_of_16_chr", (1, 2), StatUnit.NONE, 10, 0, StatKind.LINEAR_HIST, 50),
        }


def test_kinds_and_units_of_later_kernels_are_left_out(tmp_path: Path) -> None:
    descriptors = [
        describe(lib.KVM_STATS_TYPE_MASK, 0, 1, 0, 0, b"kind"),
        describe(lib.KVM_STATS_UNIT_MASK, 0, 1, 8, 0, b"unit"),
        describe(0, 0, 1, 16, 0, b"known"),
    ]
    fd = make_file(tmp_path / "stats", descriptors, struct.pack("<3Q", 1, 2, 3))
    with StatsFd(fd, "a test") as stats:
        assert {name: statistic.value for name, statistic in stats.read().items()} == {"known": 3}


def test_a_file_without_statistics_is_empty(tmp_path: Path) -> None:
    with StatsFd(make_file(tmp_path / "stats", [], b""), "a test") as stats:
        assert stats.read() == {}
