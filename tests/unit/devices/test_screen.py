"""pykvm.devices.screen: bytes of text memory as characters and colours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.screen import COLUMNS, PALETTE, ROWS, Cell, Screen, decode_character
from pykvm.errors import ConfigurationError

codes = st.integers(0, 0xFF)


def screen_of(*lines: str, cursor: tuple[int, int] | None = None) -> Screen:
    padded = [*lines, *[""] * (ROWS - len(lines))]
    return Screen(tuple(tuple(map(Cell, line.ljust(COLUMNS))) for line in padded), cursor)


# ---- characters ----


@pytest.mark.parametrize(
    ("code", "character"),
    [
        *[(0x01, "☺"), (0x03, "♥"), (0x10, "►"), (0x18, "↑"), (0x1F, "▼"), (0x41, "A"), (0x7E, "~"), (0x7F, "⌂")],
        *[(0x80, "Ç"), (0x9C, "£"), (0xB3, "│"), (0xC9, "╔"), (0xDB, "█"), (0xE3, "π"), (0xFE, "■")],
    ],
)
def test_a_code_is_what_a_pc_shows_for_it(code: int, character: str) -> None:
    assert decode_character(code) == character


@pytest.mark.parametrize("code", [0x00, 0x20, 0xFF])
def test_three_codes_are_blank(code: int) -> None:
    assert decode_character(code) == " "


def test_all_other_codes_are_different_and_can_be_printed() -> None:
    characters = [decode_character(code) for code in range(0x100)]
    assert len(set(characters)) == 0x100 - 2
    assert all(len(character) == 1 and character.isprintable() for character in characters)


# ---- attributes ----


def test_an_attribute_has_the_foreground_in_its_low_half_and_the_background_above() -> None:
    assert Cell.decode(0x41, 0x1E) == Cell("A", foreground=14, background=1)


def test_bit_7_of_an_attribute_blinks() -> None:
    assert Cell.decode(0x41, 0x9E, blinking=True) == Cell("A", foreground=14, background=1, blink=True)


def test_without_blinking_bit_7_is_the_backgrounds_fourth_bit() -> None:
    assert Cell.decode(0x41, 0x9E, blinking=False) == Cell("A", foreground=14, background=9)


@given(codes, codes, st.booleans())
def test_any_two_bytes_are_a_cell_with_colours_of_the_palette(code: int, attribute: int, blinking: bool) -> None:
    cell = Cell.decode(code, attribute, blinking=blinking)
    assert 0 <= cell.foreground < len(PALETTE)
    assert 0 <= cell.background < len(PALETTE)
    assert cell.blink <= blinking


# ---- the whole screen ----


def test_text_leaves_out_blanks_at_the_end_of_rows_and_empty_rows_at_the_end() -> None:
    assert screen_of("", "  one  ", "", "two").text() == "\n  one\n\ntwo"


def test_an_empty_screen_has_no_text() -> None:
    assert screen_of().text() == ""


def test_screens_are_equal_if_all_that_is_seen_is_equal() -> None:
    assert screen_of("a", cursor=(0, 1)) == screen_of("a", cursor=(0, 1))
    assert screen_of("a", cursor=(0, 1)) != screen_of("a", cursor=(0, 2))
    assert screen_of("a") != screen_of("b")


def test_a_screen_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="25 rows of 80"):
        Screen(((Cell(),) * COLUMNS,) * (ROWS - 1))
    with pytest.raises(ConfigurationError, match="25 rows of 80"):
        Screen(((Cell(),) * (COLUMNS + 1),) * ROWS)


@pytest.mark.parametrize("cursor", [(ROWS, 0), (0, COLUMNS), (-1, 0)])
def test_a_cursor_outside_of_the_screen_is_refused(cursor: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match="outside"):
        screen_of(cursor=cursor)
