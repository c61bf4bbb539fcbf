"""pykvm.devices.doorbell: a bell and its counter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import Doorbell
from pykvm.devices.doorbell import COUNT, PORT, REGISTERS, SIZE
from pykvm.testing import DeviceBench


def count(bell: Doorbell) -> int:
    return int.from_bytes(bell.read(COUNT, 4), "little")


def test_it_starts_unrung() -> None:
    assert count(Doorbell()) == 0


@pytest.mark.parametrize("data", [b"\0", b"\xff", b"\0\0", b"\xff\xff\xff\xff"])
def test_a_write_is_one_ring_whatever_its_value_and_width(data: bytes) -> None:
    bell = Doorbell()
    bell.write(0, data)
    assert bell.rings == count(bell) == 1


def test_rings_that_were_heard_elsewhere_are_added() -> None:
    bell = Doorbell()
    bell.ring()
    bell.ring(999)
    assert count(bell) == 1000


def test_the_counter_has_32_bits() -> None:
    bell = Doorbell()
    bell.ring(2**32 - 1)
    bell.ring(2)
    assert count(bell) == 1


def test_the_counter_cannot_be_written() -> None:
    bell = Doorbell()
    bell.write(COUNT, b"\xff\xff\xff\xff")
    assert count(bell) == 0


def test_the_bell_reads_as_ones_and_the_counter_by_any_width() -> None:
    bell = Doorbell()
    bell.ring(0x1122_3344)
    assert bell.read(0, SIZE) == b"\xff" * 4
    assert bell.read(2, 4) == b"\xff\xff\x44\x33"
    assert [bell.read(COUNT + at, 1)[0] for at in range(4)] == [0x44, 0x33, 0x22, 0x11]


@given(st.lists(st.tuples(st.integers(-8, REGISTERS + 8), st.sampled_from([1, 2, 4, 8]), st.booleans())))
def test_no_access_by_the_bus_upsets_it(accesses: list[tuple[int, int, bool]]) -> None:
    bell = Doorbell()
    bus = DeviceBench(pio={PORT: (bell, REGISTERS)}).pio
    for offset, size, is_write in accesses:
        if is_write:
            bus.write(PORT + offset, b"\xa5" * size)
        else:
            assert len(bus.read(PORT + offset, size)) == size
    rings = [1 for offset, size, is_write in accesses if is_write and offset < SIZE and offset + size > 0]
    assert bell.rings == len(rings)
