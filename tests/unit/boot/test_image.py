"""Images: what cannot be one, what they do to guest memory, and the names of addresses."""

from __future__ import annotations

import pytest

from pykvm.boot.image import Image, Segment, Symbol
from pykvm.errors import ImageError
from pykvm.memory import GuestMemory
from pykvm.units import Gpa, KiB
from pykvm.x86 import Mode


def image(*segments: Segment, entry: int | None = None, symbols: tuple[Symbol, ...] = ()) -> Image:
    start = segments[0].gpa if entry is None else entry
    return Image("guest", segments, start, Mode.LONG, symbols)


def segment(gpa: int, data: bytes, memory_size: int | None = None) -> Segment:
    return Segment(Gpa(gpa), data, len(data) if memory_size is None else memory_size)


def test_loading_writes_every_segment_at_its_address() -> None:
    with GuestMemory(64 * KiB) as memory:
        image(segment(0x1000, b"code"), segment(0x5000, b"data")).load(memory)
        assert memory.read(0x1000, 5) == b"code\0"
        assert memory.read(0x5000, 4) == b"data"


def test_loading_zeroes_what_follows_the_data_and_nothing_else() -> None:
    with GuestMemory(16 * KiB) as memory:
        memory.write(0, b"\xaa" * 16 * KiB)
        image(segment(0x1000, b"code", 0x1003)).load(memory)
        assert memory.read(0xFFF, 5) == b"\xaacode"
        assert memory.read(0x1004, 0xFFF) == bytes(0xFFF)
        assert memory.read(0x2003, 1) == b"\xaa"


def test_a_segment_may_cross_from_one_region_into_the_next() -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 4 * KiB)
        memory.add_ram(4 * KiB, 4 * KiB)
        image(segment(0xFFE, b"code")).load(memory)
        assert memory.read(0xFFE, 4) == b"code"


@pytest.mark.parametrize("gpa", [0x10000, 0xFFFD, 0xD000_0000])
def test_a_segment_outside_memory_is_refused_and_nothing_is_written(gpa: int) -> None:
    with GuestMemory(64 * KiB) as memory:
        with pytest.raises(ImageError, match=rf"{gpa:#x}.*does not fit.*ram 0x0-0xffff"):
            image(segment(0x1000, b"code"), segment(gpa, b"data")).load(memory)
        assert memory.read(0x1000, 4) == bytes(4)


def test_a_segment_that_claims_a_terabyte_is_refused_at_once() -> None:
    with GuestMemory(64 * KiB) as memory, pytest.raises(ImageError, match="does not fit"):
        image(segment(0x1000, b"code", 1 << 40)).load(memory)


def test_a_segment_in_a_rom_is_refused() -> None:
    with GuestMemory() as memory:
        memory.add_rom(0, b"bios", "bios")
        with pytest.raises(ImageError, match=r"bios 0x0-0xfff .* is read-only"):
            image(segment(0, b"code")).load(memory)


def test_overlapping_segments_are_refused_by_both_their_addresses() -> None:
    with pytest.raises(ImageError, match="0x1000-0x1003 and 0x1003-0x1006 overlap"):
        image(segment(0x1003, b"data"), segment(0x1000, b"code"))


@pytest.mark.parametrize(
    "bad", [segment(0, b""), segment(0, b"code", 3), segment(-1, b"code"), segment((1 << 52) - 1, b"code")]
)
def test_an_impossible_segment_is_refused(bad: Segment) -> None:
    with pytest.raises(ImageError, match="segment"):
        image(bad)


def test_an_image_without_segments_is_refused() -> None:
    with pytest.raises(ImageError, match="nothing in it to load"):
        Image("guest", (), 0, Mode.LONG)


@pytest.mark.parametrize("entry", [0xFFF, 0x1004, -1])
def test_an_entry_outside_all_segments_is_refused(entry: int) -> None:
    with pytest.raises(ImageError, match=r"entry .* is in none of its segments"):
        image(segment(0x1000, b"code"), entry=entry)


def test_an_address_is_named_by_the_symbol_it_belongs_to() -> None:
    symbols = (Symbol("_start", 0x1000, 0x10), Symbol("main", 0x1020, 0x8), Symbol("end", 0x1030, 0))
    named = image(segment(0x1000, bytes(0x40)), symbols=symbols)
    assert named.symbol_at(0x1000) == "_start"
    assert named.symbol_at(0x1007) == "_start+0x7"
    assert named.symbol_at(0x1027) == "main+0x7"
    assert named.symbol_at(0x1030) == "end"
    for outside in (0, 0xFFF, 0x1010, 0x1028, 0x1031, 1 << 63):
        assert named.symbol_at(outside) is None
