from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.units import PAGE_SIZE, GiB, KiB, MiB, align_down, align_up, format_size, is_aligned, parse_size

values = st.integers(0, 1 << 64)
alignments = st.integers(0, 40).map(lambda bits: 1 << bits)


def test_units_are_powers_of_two() -> None:
    assert (KiB, MiB, GiB, PAGE_SIZE) == (2**10, 2**20, 2**30, 2**12)


@given(values, alignments)
def test_aligning_moves_to_the_nearest_multiple_on_its_side(value: int, alignment: int) -> None:
    assert align_down(value, alignment) <= value <= align_up(value, alignment)
    assert align_up(value, alignment) - align_down(value, alignment) in (0, alignment)
    assert align_down(value, alignment) % alignment == align_up(value, alignment) % alignment == 0


@given(values, alignments)
def test_an_aligned_value_is_its_own_neighbour(value: int, alignment: int) -> None:
    assert (
        is_aligned(value, alignment) is (align_down(value, alignment) == value) is (align_up(value, alignment) == value)
    )


def test_the_default_alignment_is_a_page() -> None:
    assert (align_down(0x1FFF), align_up(0x1001), is_aligned(0x3000), is_aligned(0x3001)) == (
        0x1000,
        0x2000,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0x1000", 0x1000),
        ("16M", 16 * MiB),
        ("512KiB", 512 * KiB),
        ("2 gb", 2 * GiB),
        (" 1k ", KiB),
        ("5B", 5),
        (123, 123),
    ],
)
def test_a_size_is_read_with_its_unit(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5M", "16T", "16 M M", "0x", "1e6", "\N{ARABIC-INDIC DIGIT ONE}"])
def test_what_is_no_size_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(ConfigurationError, match="such as 16M"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (5, "5 bytes"), (KiB, "1 KiB"), (1536, "1536 bytes"), (3 * MiB, "3 MiB"), (4096 * MiB, "4 GiB")],
)
def test_a_size_is_written_in_the_largest_unit_that_divides_it(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(1, 1 << 50).map(lambda number: number * KiB))
def test_a_written_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size
