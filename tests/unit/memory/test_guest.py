"""pykvm.memory: regions, holes, views, and a plain bytearray as the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ClosedError, ConfigurationError, GuestMemoryError, InUseError
from pykvm.memory import GuestMemory, RegionKind, layout
from pykvm.units import GiB, KiB, MiB

PAGE = 4096
SPAN = 6 * PAGE


def small_memory() -> GuestMemory:
    """RAM 0-2 pages, RAM 2-3, a hole, ROM at 4, an alias of the first page at 5."""
    memory = GuestMemory()
    first = memory.add_ram(0, 2 * PAGE, name="low")
    memory.add_ram(2 * PAGE, PAGE, name="middle")
    memory.add_rom(4 * PAGE, b"\x55" * 100, name="rom")
    memory.add_alias(5 * PAGE, first, size=PAGE, name="mirror")
    return memory


# ---- against a model ----

ACCESSES = st.lists(
    st.tuples(st.integers(0, SPAN + PAGE), st.binary(max_size=300), st.booleans()),
    max_size=30,
)


@given(ACCESSES)
def test_memory_behaves_as_a_bytearray_with_a_hole_a_rom_and_a_mirror(accesses: list[tuple[int, bytes, bool]]) -> None:
    rom = (b"\x55" * 100).ljust(PAGE, b"\xff")
    model = bytearray(3 * PAGE)

    def expected(address: int, size: int) -> bytes | None:
        image = bytes(model) + bytes(PAGE) + rom + bytes(model[:PAGE])
        in_hole = address < 4 * PAGE and address + size > 3 * PAGE
        return None if in_hole or address + size > SPAN or address >= SPAN else image[address : address + size]

    with small_memory() as memory:
        for address, data, is_write in accesses:
            size = len(data)
            there = expected(address, size) if size else b""
            if size == 0:
                continue
            if not is_write:
                if there is None:
                    with pytest.raises(GuestMemoryError):
                        memory.read(address, size)
                else:
                    assert memory.read(address, size) == there
            elif there is None or (address < 5 * PAGE and address + size > 4 * PAGE):
                with pytest.raises(GuestMemoryError):
                    memory.write(address, data)
            else:
                memory.write(address, data)
                target = address - 5 * PAGE if address >= 5 * PAGE else address
                model[target : target + size] = data
        assert memory.read(0, 3 * PAGE) == bytes(model)


# ---- regions ----


def test_a_size_makes_ram_from_address_zero() -> None:
    with GuestMemory("1M") as memory:
        (region,) = memory.regions
        assert (region.name, region.gpa, region.size, region.kind) == ("ram", 0, MiB, RegionKind.RAM)
        assert str(region) == "ram 0x0-0xfffff (1 MiB)"


def test_ram_that_does_not_fit_below_the_hole_goes_on_at_4_gib() -> None:
    with GuestMemory("4G") as memory:
        low, high = memory.regions
        assert (low.gpa, low.end) == (0, layout.MMIO_HOLE_START)
        assert (high.gpa, high.size) == (4 * GiB, GiB)


def test_find_knows_the_borders_of_a_region() -> None:
    with small_memory() as memory:
        found = [memory.find(address) for address in (0, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE - 1, 3 * PAGE, 4 * PAGE)]
        assert [region.name if region else None for region in found] == ["low", "low", "middle", "middle", None, "rom"]


@pytest.mark.parametrize(
    ("define", "words"),
    [
        (lambda m: m.add_ram(PAGE, PAGE), "overlaps low"),
        (lambda m: m.add_ram(SPAN - 1, PAGE), "not a multiple of the page size"),
        (lambda m: m.add_ram(SPAN, 100), "not a multiple of the page size"),
        (lambda m: m.add_ram(SPAN, 0), "holds nothing"),
        (lambda m: m.add_ram(-PAGE, PAGE), "outside"),
        (lambda m: m.add_ram(1 << 52, PAGE), "outside the 52-bit"),
        (lambda m: m.add_rom(SPAN, b""), "holds nothing"),
        (lambda m: m.add_alias(SPAN, m.regions[0], offset=PAGE, size=2 * PAGE), "has no whole pages"),
        (lambda m: m.add_alias(SPAN, m.regions[0], offset=8), "not a multiple|has no whole pages"),
    ],
)
def test_a_region_that_cannot_be_is_refused_and_changes_nothing(
    define: Callable[[GuestMemory], object], words: str
) -> None:
    with small_memory() as memory:
        before = memory.regions
        with pytest.raises(GuestMemoryError, match=words):
            define(memory)
        assert memory.regions == before


def test_an_alias_must_be_of_this_memory() -> None:
    refused = pytest.raises(GuestMemoryError, match="not part of this memory")
    with small_memory() as memory, GuestMemory("4K") as other, refused:
        memory.add_alias(SPAN, other.regions[0])


@pytest.mark.parametrize("size", ["lots", "16X", ""])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ConfigurationError, match="not a size"):
        GuestMemory(size)


def test_more_than_the_host_can_give_is_refused() -> None:
    with pytest.raises(GuestMemoryError, match="the host has no"):
        GuestMemory(1 << 51)


# ---- errors name the address and the region ----


def test_an_access_to_a_hole_names_the_nearest_region() -> None:
    with small_memory() as memory:
        with pytest.raises(GuestMemoryError, match=r"0x3000 is in no region; the nearest is middle 0x2000-0x2fff") as e:
            memory.read(3 * PAGE, 4)
        assert (e.value.address, e.value.region) == (3 * PAGE, None)


def test_a_write_to_a_rom_names_it() -> None:
    with small_memory() as memory:
        with pytest.raises(GuestMemoryError, match=r"rom 0x4000-0x4fff .* is read-only") as caught:
            memory.write(4 * PAGE, b"x")
        assert caught.value.region == "rom"


def test_a_write_that_fails_writes_nothing() -> None:
    with small_memory() as memory:
        with pytest.raises(GuestMemoryError):
            memory.write(3 * PAGE - 2, b"abcd")
        assert memory.read(3 * PAGE - 2, 2) == b"\0\0"


def test_memory_without_regions_says_so() -> None:
    with GuestMemory() as memory, pytest.raises(GuestMemoryError, match="this memory has none"):
        memory.read(0, 1)


def test_a_negative_size_is_refused() -> None:
    with small_memory() as memory, pytest.raises(GuestMemoryError, match="not below 0"):
        memory.read(0, -1)


# ---- typed access ----


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_numbers_are_little_endian_and_must_fit(bits: int) -> None:
    with GuestMemory("4K") as memory:
        read, write = getattr(memory, f"read_u{bits}"), getattr(memory, f"write_u{bits}")
        value = 0x8877665544332211 & ((1 << bits) - 1)
        write(8, value)
        assert read(8) == value
        assert memory.read(8, bits // 8) == value.to_bytes(bits // 8, "little")
        for wrong in (1 << bits, -1):
            with pytest.raises(GuestMemoryError, match="does not fit"):
                write(8, wrong)


def test_a_string_ends_at_its_nul_at_the_limit_or_raises_at_the_end_of_memory() -> None:
    with GuestMemory("4K") as memory:
        memory.write(100, b"hello\0world")
        assert memory.read_string(100) == b"hello"
        assert memory.read_string(106, limit=3) == b"wor"
        memory.write(PAGE - 3, b"abc")
        with pytest.raises(GuestMemoryError):
            memory.read_string(PAGE - 3)


# ---- views ----


def test_a_view_is_the_memory_itself() -> None:
    with GuestMemory("4K") as memory, memory.view(16, 4) as view:
        view[0] = 7
        assert memory.read_u8(16) == 7
        memory.write_u8(17, 9)
        assert view[1] == 9


def test_a_view_of_a_rom_is_read_only() -> None:
    with small_memory() as memory, memory.view(4 * PAGE, 4) as view, pytest.raises(TypeError):
        view[0] = 1


def test_a_view_cannot_cross_regions() -> None:
    with small_memory() as memory, pytest.raises(GuestMemoryError, match="cannot cross the end of low"):
        memory.view(2 * PAGE - 1, 2)


def test_memory_cannot_be_closed_under_a_view_and_can_be_later() -> None:
    memory = small_memory()
    view = memory.view(4 * PAGE, 8)
    with pytest.raises(InUseError, match="view"):
        memory.close()
    memory.write_u8(0, 1)  # nothing is half closed
    assert memory.read(5 * PAGE, 1) == b"\x01"
    view.release()
    memory.close()


def test_closing_twice_is_no_error_and_a_closed_memory_says_so() -> None:
    memory = small_memory()
    memory.close()
    memory.close()
    assert memory.closed
    for call in (lambda: memory.read(0, 1), lambda: memory.write(0, b"x"), lambda: memory.add_ram(64 * KiB, PAGE)):
        with pytest.raises(ClosedError, match="closed"):
            call()
