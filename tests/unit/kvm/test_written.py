"""Copying saved pages over those that a bitmap names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._shim import ffi, lib
from pykvm.errors import KvmError
from pykvm.kvm.dirty import DirtyLog
from pykvm.kvm.written import WrittenPages
from pykvm.units import PAGE_SIZE, Gpa

ALL = (1 << 64) - 1


def put_back(before: list[int], bits: int, saved: dict[int, int]) -> tuple[int, list[int]]:
    """Return how many of the pages ``before``, each of one number, were put back, and the pages then."""
    memory = ffi.new("uint8_t[]", b"".join(bytes([number]) * PAGE_SIZE for number in before))
    words = (len(before) + 63) // 64
    bitmap = ffi.new("uint64_t[]", [bits >> 64 * word & ALL for word in range(words)])
    pages = {number: bytes([value]) * PAGE_SIZE for number, value in saved.items()}
    table = ffi.new("void *[]", len(before))
    for number, data in pages.items():
        table[number] = ffi.from_buffer("char[]", data)
    done = lib.pykvm_put_back(memory, len(before), bitmap, table)
    after = bytes(ffi.buffer(memory))[: len(before) * PAGE_SIZE]
    found = [after[start : start + PAGE_SIZE] for start in range(0, len(after), PAGE_SIZE)]
    assert all(page == page[:1] * PAGE_SIZE for page in found)
    return done, [page[0] for page in found]


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=130),
    st.integers(0, (1 << 192) - 1),
    st.dictionaries(st.integers(0, 129), st.integers(1, 255)),
)
def test_pages_with_a_bit_become_what_was_saved_and_all_others_stay(
    before: list[int], bits: int, saved: dict[int, int]
) -> None:
    saved = {number: value for number, value in saved.items() if number < len(before)}
    done, after = put_back(before, bits, saved)
    expected = [saved.get(page, 0) if bits >> page & 1 else number for page, number in enumerate(before)]
    assert after == expected
    assert done == (bits & ((1 << len(before)) - 1)).bit_count()


def test_bits_beyond_the_last_page_name_none() -> None:
    assert put_back([7] * 65, ALL << 65, {}) == (0, [7] * 65)


def test_a_kernel_that_refuses_to_tell_is_an_error_and_nothing_is_copied() -> None:
    log = DirtyLog(0, Gpa(0x1000), PAGE_SIZE)
    memory = ffi.new("uint8_t[]", b"\1" * PAGE_SIZE)
    pages = WrittenPages(-1, [(log, memory)], [(Gpa(0x1000), bytes(PAGE_SIZE))])
    with pytest.raises(KvmError, match=r"KVM_GET_DIRTY_LOG\(gpa=0x1000\)"):
        pages.put_back()
    assert set(bytes(ffi.buffer(memory, PAGE_SIZE))) == {1}
