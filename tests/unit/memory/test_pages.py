"""Guest memory page by page: pictures of it, what is written, and putting it back; a whole copy is the model."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from pykvm.memory import GuestMemory
from pykvm.memory.pages import ZERO_PAGE, PageImage, PageTable, differing
from pykvm.units import PAGE_SIZE, Gpa

PAGES = 150  # more than two chunks


def some_memory() -> GuestMemory:
    """RAM of PAGES pages, a hole, a ROM, and a mirror of RAM's pages 1 and 2."""
    memory = GuestMemory()
    ram = memory.add_ram(0, PAGES * PAGE_SIZE)
    memory.add_rom(200 * PAGE_SIZE, b"\x90")
    memory.add_alias(300 * PAGE_SIZE, ram, PAGE_SIZE, 2 * PAGE_SIZE)
    return memory


def page(number: int) -> Gpa:
    return Gpa(number * PAGE_SIZE)


def contents(memory: GuestMemory) -> list[bytes]:
    return [memory.read(region.gpa, region.size) for region in memory.regions]


# ---- pictures ----


def test_a_picture_as_seen_has_pages_at_the_addresses_of_their_mirrors_too() -> None:
    with some_memory() as memory:
        memory.write(page(1), b"\1")
        memory.write(page(5), b"\2")
        table = PageTable(memory)
        image = table.capture()
        seen = dict(table.as_seen(image))
        assert set(seen) == {page(1), page(5), page(200), page(300)}
        assert all(memory.read(gpa, PAGE_SIZE) == data for gpa, data in seen.items())


def test_a_picture_has_the_pages_that_are_not_zeros_and_each_once() -> None:
    with some_memory() as memory:
        memory.write(page(64) - 1, b"\1\2")
        memory.write(page(301), b"\3")  # page 2, by its mirror
        assert set(PageTable(memory).capture()) == {page(2), page(63), page(64), page(200)}


def test_a_page_that_was_zeroed_is_in_no_picture() -> None:
    with some_memory() as memory:
        table = PageTable(memory)
        memory.write_u8(0x10, 1)
        before = table.capture()
        memory.write_u8(0x10, 0)
        assert (
            table.capture_again(before, [page(0)]) == table.capture() == {page(200): b"\x90".ljust(PAGE_SIZE, b"\xff")}
        )


def test_pictures_share_what_did_not_change() -> None:
    with some_memory() as memory:
        table = PageTable(memory)
        memory.write_u8(page(3), 1)
        memory.write_u8(page(4), 1)
        before = table.capture()
        memory.write_u8(page(4), 2)
        after = table.capture_again(before, [page(3), page(4)])
        assert after[page(3)] is before[page(3)]
        assert after[page(4)][0] == 2
        assert before[page(4)][0] == 1


def test_a_picture_of_two_memories_has_both() -> None:
    with some_memory() as memory, GuestMemory() as screen:
        screen.add_ram(page(400), PAGE_SIZE)
        screen.write_u8(page(400), 7)
        assert page(400) in PageTable(memory, screen).capture()


WRITES = st.lists(
    st.tuples(
        st.sampled_from([0, page(1), page(2) - 3, page(63), page(64), page(149), page(300), page(301)]),
        st.binary(min_size=1, max_size=5),
    ),
    max_size=8,
)


def write(memory: GuestMemory, writes: list[tuple[int, bytes]]) -> None:
    for address, data in writes:
        memory.write(address, data)


@given(WRITES, WRITES, WRITES)
def test_what_was_written_is_put_back_and_no_more_need_be(
    first: list[tuple[int, bytes]], second: list[tuple[int, bytes]], third: list[tuple[int, bytes]]
) -> None:
    with some_memory() as memory:
        table, log = PageTable(memory), memory.log_writes()
        write(memory, first)
        one, like_one = table.capture(), contents(memory)
        log.take()
        write(memory, second)
        changed = set(table.owners(log.take()))
        two, like_two = table.capture_again(one, changed), contents(memory)
        assert two == table.capture()
        table.put_back(one, changed)
        assert contents(memory) == like_one
        write(memory, third)
        table.put_back(two, {*table.owners(log.take()), *differing(one, two)})
        assert contents(memory) == like_two
        table.put_back_different(one)
        assert contents(memory) == like_one


@given(
    st.dictionaries(st.integers(0, 5).map(page), st.sampled_from([b"a", b"b"])),
    st.dictionaries(st.integers(0, 5).map(page), st.sampled_from([b"a", b"b"])),
)
def test_two_pictures_differ_where_they_say(one: PageImage, other: PageImage) -> None:
    everywhere = {*one, *other}
    assert sorted(differing(one, other)) == sorted(p for p in everywhere if one.get(p) != other.get(p))


def test_what_is_alike_already_is_not_written() -> None:
    with some_memory() as memory:
        table = PageTable(memory)
        memory.write_u8(page(5), 5)
        image = table.capture()
        memory.write_u8(page(6), 6)
        table.put_back_different(image, [page(5), page(6)])
        assert memory.read_u8(page(6)) == 0
        assert memory.read_u8(page(5)) == 5


# ---- what the host writes ----


def test_every_write_is_logged_by_its_pages_once() -> None:
    with some_memory() as memory:
        log = memory.log_writes()
        memory.write(page(2) - 1, b"\0\0")
        memory.write_u32(page(7) + 8, 1)
        assert log.take() == {page(1), page(2), page(7)}
        assert log.take() == set()


def test_a_write_that_is_refused_is_not_logged() -> None:
    with some_memory() as memory:
        log = memory.log_writes()
        for address in (page(150), page(200)):
            try:
                memory.write(address, b"\0")
            except Exception:
                continue
        assert log.take() == set()


def test_each_log_has_its_own_pages_and_ends_with_its_owner() -> None:
    with some_memory() as memory:
        one, other = memory.log_writes(), memory.log_writes()
        memory.write_u8(0, 1)
        assert one.take() == {page(0)}
        memory.write_u8(page(1), 1)
        assert other.take() == {page(0), page(1)}
        del one, other
        gc.collect()
        memory.write_u8(page(2), 1)


def test_a_view_counts_as_written_and_a_roms_does_not() -> None:
    with some_memory() as memory:
        with memory.view(page(2) - 4, 8):
            pass
        with memory.view(page(200), 8):
            pass
        assert set(memory.viewed_pages()) == {page(1), page(2)}


def test_views_of_one_region_cost_no_memory_of_their_own() -> None:
    with some_memory() as memory:
        for number in range(0, 100, 2):
            memory.view(page(number), 1).release()
        assert set(memory.viewed_pages()) == set(map(page, range(99)))


# ---- another memory ----


def test_a_memory_made_alike_has_the_same_regions_of_its_own() -> None:
    with some_memory() as memory, memory.make_alike() as other:
        assert other.regions == memory.regions
        memory.write_u8(page(1), 1)
        assert other.read(page(1), 1) == b"\0"
        assert other.read(page(200), 4) == bytes(4)
        other.write_u8(page(301), 9)
        assert other.read_u8(page(2)) == 9
        PageTable(other).put_back_different(PageTable(memory).capture())
        assert contents(other) == contents(memory)
        assert PageTable(other).capture().get(page(0), ZERO_PAGE) == ZERO_PAGE
