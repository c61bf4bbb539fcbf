"""pykvm.devices.debugexit: the port that ends a run."""

from __future__ import annotations

import pytest

from pykvm.devices import Bus, DebugExit, debugexit
from pykvm.testing import DeviceBench


def plugged_in() -> tuple[Bus, list[int]]:
    values: list[int] = []
    return DeviceBench(pio={debugexit.PORT: (DebugExit(values.append), debugexit.REGISTERS)}).pio, values


def test_it_is_where_qemu_users_expect_it() -> None:
    assert debugexit.PORT == 0xF4


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_write_of_any_width_is_one_unsigned_value(size: int) -> None:
    bus, values = plugged_in()
    value = (1 << 8 * size) - 2
    bus.write(0xF4, value.to_bytes(size, "little"))
    assert values == [value]


def test_a_write_at_a_later_port_counts_as_well() -> None:
    bus, values = plugged_in()
    bus.write(0xF7, b"\x05")
    assert values == [5]


def test_each_write_is_reported() -> None:
    bus, values = plugged_in()
    for value in (0, 1, 0):
        bus.write(0xF4, bytes((value,)))
    assert values == [0, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_reading_gives_all_ones_and_ends_nothing(size: int) -> None:
    bus, values = plugged_in()
    assert bus.read(0xF4, size) == b"\xff" * size
    assert values == []
