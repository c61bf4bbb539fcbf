"""The coalesced ring in memory of our own: wrapping round, and what makes no sense."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._shim import ffi
from pykvm.errors import MalformedExitError
from pykvm.kvm import IoOut, MmioWrite
from pykvm.kvm.coalesced import drain
from pykvm.units import Gpa

if TYPE_CHECKING:
    from pykvm._shim import CData

ENTRIES = 5
SIZE = ffi.sizeof("struct kvm_coalesced_mmio_ring") + ENTRIES * ffi.sizeof("struct kvm_coalesced_mmio")


def make_ring(first: int, last: int) -> CData:
    ring = ffi.new("struct kvm_coalesced_mmio_ring *", {"coalesced_mmio": ENTRIES})
    ring.first, ring.last = first, last
    for position in range(ENTRIES):
        fill(ring, position, 0x80 + position, b"x", pio=True)
    return ring


def fill(ring: CData, position: int, address: int, data: bytes, *, pio: bool) -> None:
    entry = ring.coalesced_mmio[position]
    entry.phys_addr, entry.len, entry.pio = address, len(data), pio
    entry.data[0 : len(data)] = list(data)


@given(first=st.integers(0, ENTRIES - 1), last=st.integers(0, ENTRIES - 1))
def test_entries_from_first_to_last_come_out_wherever_they_lie(first: int, last: int) -> None:
    ring = make_ring(first, last)
    expected = [(first + n) % ENTRIES for n in range((last - first) % ENTRIES)]
    assert drain(ring, SIZE) == [IoOut(0x80 + position, 1, 1, b"x") for position in expected]
    assert ring.first == ring.last == last
    assert drain(ring, SIZE) == []


def test_ports_and_memory_are_told_apart() -> None:
    ring = make_ring(0, 2)
    fill(ring, 0, 0x3F8, b"ab", pio=True)
    fill(ring, 1, 0xB8000, b"12345678", pio=False)
    assert drain(ring, SIZE) == [IoOut(0x3F8, 2, 1, b"ab"), MmioWrite(Gpa(0xB8000), b"12345678")]


@pytest.mark.parametrize(("first", "last"), [(0, ENTRIES), (ENTRIES, 0), (0, 0xFFFF_FFFF), (0xFFFF_FFFF, 1)])
def test_a_position_outside_the_ring_is_malformed(first: int, last: int) -> None:
    with pytest.raises(MalformedExitError, match=f"says {first} to {last}, but has {ENTRIES} entries"):
        drain(make_ring(first, last), SIZE)


def test_a_write_of_more_than_8_bytes_is_malformed() -> None:
    ring = make_ring(0, 1)
    ring.coalesced_mmio[0].len = 9
    with pytest.raises(MalformedExitError, match="a write of 9 bytes"):
        drain(ring, SIZE)
