"""The memory map and the room in it, against a model: a set of taken addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot.memorymap import E820Entry, E820Type, Room, memory_map
from pykvm.errors import ImageError
from pykvm.memory import GuestMemory
from pykvm.units import GiB, MiB

RAM, RESERVED = E820Type.RAM, E820Type.RESERVED


def test_a_small_machine_has_low_memory_and_the_rest_from_1_mib_on() -> None:
    with GuestMemory("16M") as memory:
        assert memory_map(memory) == (
            E820Entry(0, 0x9FC00, RAM),
            E820Entry(0x9FC00, 0x60400, RESERVED),
            E820Entry(0x10_0000, 15 * MiB, RAM),
        )


def test_memory_goes_on_above_4_gib_and_a_rom_is_reserved() -> None:
    with GuestMemory("4G") as memory:
        memory.add_rom(0xFFFF_0000, b"\xf4", "bios")
        *_, high, rom, beyond = memory_map(memory)
    assert (high.end, high.type) == (3 * GiB, RAM)
    assert rom == E820Entry(0xFFFF_0000, 0x1000, RESERVED)
    assert beyond == E820Entry(4 * GiB, GiB, RAM)


def test_less_memory_than_a_pc_has_is_all_ram() -> None:
    with GuestMemory("64K") as memory:
        assert memory_map(memory) == (E820Entry(0, 0x1_0000, RAM),)


@given(
    sizes=st.lists(st.integers(0, 0x9000), max_size=12),
    image=st.tuples(st.integers(0, 0x20_0000), st.integers(1, 0x1_0000)),
    align=st.sampled_from([1, 16, 4096]),
)
def test_nothing_that_is_put_overlaps_anything(sizes: list[int], image: tuple[int, int], align: int) -> None:
    with GuestMemory("2M") as memory:
        used = [range(image[0], image[0] + image[1])]
        room = Room(memory, used)
        for size in sizes:
            data = bytes([len(used)]) * size
            gpa = room.put(data, "it", (range(0x9_0000, 0x9_F000), range(0x10_0000, 1 << 32)), align)
            place = range(gpa, gpa + max(size, 1))
            assert gpa % align == 0
            assert memory.read(gpa, size) == data
            assert not any(place.start < other.stop and other.start < place.stop for other in used)
            used.append(place)


def test_no_room_is_an_error_that_says_for_what() -> None:
    with (
        GuestMemory("1M") as memory,
        pytest.raises(ImageError, match="no room for the module m"),
    ):
        Room(memory, ()).put(bytes(2 * MiB), "the module m", (range(0, 1 << 32),))
