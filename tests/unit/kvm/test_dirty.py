"""The dirty ring in memory of our own, and bitmaps as pages."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._shim import ffi, lib
from pykvm.errors import KvmError
from pykvm.kvm import dirty
from pykvm.kvm.dirty import DirtyRing, collect, logged_pages, why_no_dirty_ring
from pykvm.units import PAGE_SIZE, Gpa

if TYPE_CHECKING:
    from pykvm._shim import CData

ENTRIES = 8
DIRTY = lib.KVM_DIRTY_GFN_F_DIRTY
RESET = lib.KVM_DIRTY_GFN_F_RESET


def make_ring(*dirty: int) -> CData:
    ring = ffi.new("struct kvm_dirty_gfn[]", ENTRIES)
    for position in range(ENTRIES):
        ring[position].slot, ring[position].offset = 3, 100 + position
        ring[position].flags = DIRTY if position in dirty else 0
    return ring


def flags(ring: CData) -> list[int]:
    return [ring[position].flags for position in range(ENTRIES)]


def test_dirty_entries_are_collected_up_to_the_first_that_is_not() -> None:
    ring = make_ring(0, 1, 2, 4)
    assert collect(ring, ENTRIES, 0) == [(3, 100), (3, 101), (3, 102)]
    assert flags(ring)[:5] == [DIRTY | RESET] * 3 + [0, DIRTY]


def test_collecting_goes_on_round_the_end() -> None:
    ring = make_ring(6, 7, 0)
    assert [offset for _, offset in collect(ring, ENTRIES, 6)] == [106, 107, 100]


def test_an_entry_is_collected_once() -> None:
    ring = make_ring(0)
    assert len(collect(ring, ENTRIES, 0)) == 1
    assert collect(ring, ENTRIES, 0) == []


def test_a_full_ring_is_collected_once_round() -> None:
    assert len(collect(make_ring(*range(ENTRIES)), ENTRIES, 3)) == ENTRIES


def test_a_ring_without_a_free_entry_may_have_lost_some(monkeypatch: pytest.MonkeyPatch) -> None:
    full = make_ring(*range(ENTRIES))

    class Pages:
        start = full

        def __init__(self, fd: int, page: int, size: int, calls: object) -> None:
            pass

    monkeypatch.setattr(dirty, "SharedPages", Pages)
    ring = DirtyRing(-1, ENTRIES * ffi.sizeof("struct kvm_dirty_gfn"))
    with pytest.raises(KvmError, match=r"ENOBUFS: a dirty ring ran over, .* or use the dirty log") as caught:
        ring.harvest()
    assert caught.value.errno == errno.ENOBUFS


@given(st.sets(st.integers(0, 999)))
def test_a_bitmap_is_the_pages_whose_bits_are_set(pages: set[int]) -> None:
    bitmap = sum(1 << page for page in pages)
    words = [bitmap >> 64 * number & (1 << 64) - 1 for number in range(16)]
    gpa = Gpa(0x10_0000)
    assert list(logged_pages(words, gpa)) == [gpa + page * PAGE_SIZE for page in sorted(pages)]


@pytest.mark.parametrize(
    ("size", "most", "has_vcpus", "enabled", "why"),
    [
        (4096, 0, False, 0, "this host's KVM has no dirty ring: use the dirty log"),
        (4096, 1 << 20, True, 0, "only before the first vCPU"),
        (4096, 1 << 20, False, 8192, "dirty rings of 8192 bytes already"),
        (5000, 1 << 20, False, 0, "5000 bytes is not a power of two"),
        (-4096, 1 << 20, False, 0, "-4096 bytes is not a power of two"),
        (1 << 21, 1 << 20, False, 0, "at most 1048576 bytes here"),
        (2048, 1 << 20, False, 0, "2048 bytes are too few"),
    ],
)
def test_what_the_kernel_minds_about_a_ring_is_told(
    size: int, most: int, has_vcpus: bool, enabled: int, why: str
) -> None:
    assert why in why_no_dirty_ring(size, most, has_vcpus, enabled)[errno.EINVAL]
