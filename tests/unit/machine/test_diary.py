"""The bytes of memory that changed between two looks, and back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.errors import KvmError
from pykvm.kvm import Vm
from pykvm.machine.diary import Diary, MemoryChange, differences
from pykvm.machine.dirty import DirtyPages
from pykvm.memory import GuestMemory
from pykvm.units import PAGE_SIZE, Gpa, KiB

PAGE = Gpa(0x3000)


class FakeVm:
    """Says of pages what a test wants; ``lost`` is what a ring that ran over does."""

    def __init__(self) -> None:
        self.pages: set[Gpa] = set()
        self.lost = False

    def log_dirty_pages(self) -> None:
        pass

    def take_dirty_pages(self) -> set[Gpa]:
        pages, self.pages = self.pages, set()
        if self.lost:
            self.lost = False
            raise KvmError("KVM_RESET_DIRTY_RINGS", 105)
        return pages


class Lab:
    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.kvm = FakeVm()
        vm = cast("Vm", self.kvm)
        self.dirty = DirtyPages(vm)
        self.diary = Diary(vm, self.dirty, (memory,))

    def guest_writes(self, gpa: int, data: bytes) -> None:
        region = self.memory.find(gpa)
        assert region is not None
        region.mapping[gpa - region.gpa : gpa - region.gpa + len(data)] = data
        self.kvm.pages |= {Gpa(page) for page in range(gpa & -PAGE_SIZE, gpa + len(data), PAGE_SIZE)}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with GuestMemory(64 * KiB) as memory:
        yield Lab(memory)


def test_what_the_guest_wrote_is_told_once(lab: Lab) -> None:
    lab.guest_writes(0x3010, b"abc")
    assert lab.diary.look() == (MemoryChange(Gpa(0x3010), b"\0\0\0", b"abc"),)
    assert lab.diary.look() == ()


def test_what_was_written_as_it_was_is_no_change(lab: Lab) -> None:
    lab.guest_writes(0x3010, b"\0\0")
    assert lab.diary.look() == ()


def test_what_the_host_wrote_is_told_too(lab: Lab) -> None:
    lab.memory.write(Gpa(0x5000), b"x")
    view = lab.memory.view(Gpa(0x6000), 4)
    view[1] = 7
    assert [change.gpa for change in lab.diary.look()] == [0x5000, 0x6001]
    view[1] = 8
    assert lab.diary.look() == (MemoryChange(Gpa(0x6001), b"\7", b"\x08"),)
    view.release()


def test_a_write_across_pages_is_a_change_of_each(lab: Lab) -> None:
    lab.guest_writes(0x3FFE, b"abcd")
    assert [(change.gpa, change.new) for change in lab.diary.look()] == [(0x3FFE, b"ab"), (0x4000, b"cd")]


def test_a_ring_that_ran_over_makes_it_look_at_everything(lab: Lab) -> None:
    lab.guest_writes(0x3010, b"a")
    lab.kvm.lost = True
    assert [change.gpa for change in lab.diary.look()] == [0x3010]


def test_undoing_the_changes_makes_memory_what_it_was(lab: Lab) -> None:
    lab.guest_writes(0x3010, b"abc")
    first = lab.diary.look()
    lab.guest_writes(0x3011, b"X")
    lab.guest_writes(0x7000, b"\1" * 5000)
    second = lab.diary.look()
    lab.diary.undo(second)
    assert lab.memory.read(0x3010, 3) == b"abc"
    assert lab.memory.read(0x7000, 5000) == bytes(5000)
    lab.diary.undo(first)
    assert lab.memory.read(0x3010, 3) == bytes(3)
    assert lab.diary.look() == (), "what it undid is nothing new"


def test_who_leaves_is_told_no_more(lab: Lab) -> None:
    other = lab.dirty.join()
    lab.diary.leave()
    lab.diary.leave()
    lab.guest_writes(0x3000, b"a")
    lab.dirty.collect()
    assert other == {0x3000}
    assert not lab.dirty.is_shared


pages = st.lists(st.tuples(st.integers(0, PAGE_SIZE - 1), st.binary(min_size=1, max_size=100)), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=pages, new=pages)
def test_differences_lead_from_the_old_to_the_new(old: list[tuple[int, bytes]], new: list[tuple[int, bytes]]) -> None:
    before, after = _page(old), _page(new)
    changes = list(differences(PAGE, before, after))
    patched = bytearray(before)
    for change in changes:
        start = change.gpa - PAGE
        assert before[start : start + len(change.old)] == change.old
        assert change.old[0] != change.new[0]
        assert change.old[-1] != change.new[-1]
        assert len(change.old) == len(change.new)
        patched[start : start + len(change.new)] = change.new
    assert bytes(patched) == after
    assert all(first.gpa + len(first.new) < second.gpa for first, second in pairwise(changes))


def _page(writes: list[tuple[int, bytes]]) -> bytes:
    page = bytearray(PAGE_SIZE)
    for start, data in writes:
        page[start : start + len(data)] = data[: PAGE_SIZE - start]
    return bytes(page)
