"""pykvm.cli.screen: a screen in a terminal and as a picture."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pykvm.cli.screen import BOXES, CELL_HEIGHT, CELL_WIDTH, LiveScreen, rich_screen, save_png, shown_rows
from pykvm.devices.screen import COLUMNS, PALETTE, ROWS, Cell, Screen, decode_character
from pykvm.errors import ConfigurationError


def screen_of(*rows: list[Cell], cursor: tuple[int, int] | None = None) -> Screen:
    padded = [*rows, *[[]] * (ROWS - len(rows))]
    return Screen(tuple((*row, *[Cell()] * (COLUMNS - len(row))) for row in padded), cursor)


def cells(text: str, foreground: int = 7, background: int = 0, *, blink: bool = False) -> list[Cell]:
    return [Cell(character, foreground, background, blink) for character in text]


def terminal(height: int = 30) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system="truecolor", width=80, height=height)
    return console, output


def printed(screen: Screen) -> str:
    console, output = terminal()
    console.print(rich_screen(screen))
    return output.getvalue()


# ---- in a terminal ----


def test_all_rows_are_80_characters_wide() -> None:
    text = rich_screen(screen_of(cells("hello"), cells("x" * 80)))
    assert [len(line) for line in text.plain.split("\n")] == [COLUMNS] * ROWS


def test_every_character_of_code_page_437_takes_one_column() -> None:
    from rich.cells import cell_len

    assert {cell_len(decode_character(code)) for code in range(0x100)} == {1}


@pytest.mark.parametrize("number", range(16))
def test_a_colour_is_the_palettes(number: int) -> None:
    red, green, blue = PALETTE[number]
    assert f"38;2;{red};{green};{blue};48;2;0;0;170m#" in printed(
        screen_of(cells("#", foreground=number, background=1))
    )
    assert f"38;2;0;170;0;48;2;{red};{green};{blue}m#" in printed(
        screen_of(cells("#", foreground=2, background=number))
    )


def test_what_blinks_blinks() -> None:
    assert "\x1b[5;" in printed(screen_of(cells("!", blink=True)))
    assert "\x1b[5;" not in printed(screen_of(cells("!")))


def test_the_cursor_has_its_colours_swapped_and_nothing_else_has() -> None:
    shown = printed(screen_of(cells("abc"), cursor=(0, 1)))
    assert re.findall(r"\x1b\[7;[\d;]+m(.)\x1b", shown) == ["b"]
    assert "\x1b[7;" not in printed(screen_of(cells("abc")))


def test_text_that_looks_like_markup_is_shown_as_it_is() -> None:
    assert "[bold]:smile:" in printed(screen_of(cells("[bold]:smile:")))


def test_a_low_terminal_shows_the_last_rows_that_are_in_use() -> None:
    assert shown_rows(screen_of(), 30) == range(0, 25)
    assert shown_rows(screen_of(cells("x")), 10) == range(0, 10)
    assert shown_rows(screen_of(*[cells("x")] * 20), 10) == range(10, 20)
    assert shown_rows(screen_of(cells("x"), cursor=(24, 0)), 24) == range(1, 25)
    assert shown_rows(screen_of(cells("x")), 0) == range(0, 1)


# ---- live ----


def test_a_live_screen_is_drawn_again_only_if_it_changed() -> None:
    console, output = terminal()
    with LiveScreen(console) as live:
        live.update(screen_of(cells("one")))
        once = len(output.getvalue())
        live.update(screen_of(cells("one")))
        assert len(output.getvalue()) == once
        live.update(screen_of(cells("two")))
        assert len(output.getvalue()) > once
    assert "one" in output.getvalue()
    assert output.getvalue().rindex("two") > output.getvalue().rindex("one")


def test_a_live_screen_gives_the_terminals_cursor_back_even_after_an_error() -> None:
    console, output = terminal()
    with pytest.raises(ZeroDivisionError), LiveScreen(console) as live:
        live.update(screen_of(cells("one")))
        raise ZeroDivisionError
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert hidden in output.getvalue()
    assert output.getvalue().rindex(shown) > output.getvalue().rindex(hidden)


def test_a_live_screen_is_not_higher_than_the_terminal() -> None:
    console, output = terminal(height=5)
    with LiveScreen(console) as live:
        live.update(screen_of(*(cells(f"row {number}") for number in range(ROWS))))
    assert re.findall(r"row \d+", output.getvalue())[-5:] == [f"row {number}" for number in range(20, 25)]
    assert "row 3 " not in output.getvalue()


def test_where_there_is_no_terminal_only_the_last_screen_is_printed() -> None:
    output = io.StringIO()
    with LiveScreen(Console(file=output, width=80)) as live:
        live.update(screen_of(cells("one")))
        live.update(screen_of(cells("two")))
    assert output.getvalue().split() == ["two"]


def test_a_narrow_terminal_cuts_rows_off() -> None:
    output = io.StringIO()
    with LiveScreen(Console(file=output, width=40)) as live:
        live.update(screen_of(cells("x" * 80), cells("y")))
    assert [line.rstrip() for line in output.getvalue().splitlines()] == ["x" * 40, "y", *[""] * (ROWS - 2)]


def test_outside_of_with_an_update_does_nothing() -> None:
    console, output = terminal()
    live = LiveScreen(console)
    live.update(screen_of(cells("one")))
    assert output.getvalue() == ""


# ---- as a picture ----


def picture_of(screen: Screen, directory: Path) -> Image.Image:
    save_png(screen, directory / "screen.png")
    with Image.open(directory / "screen.png") as picture:
        assert picture.format == "PNG"
        return picture.convert("RGB")


def cell_of(picture: Image.Image, row: int, column: int) -> list[tuple[int, ...]]:
    """Return a cell's pixels, from left to right and from top to bottom."""
    left, top = column * CELL_WIDTH, row * CELL_HEIGHT
    cell = picture.crop((left, top, left + CELL_WIDTH, top + CELL_HEIGHT)).tobytes()
    return [tuple(cell[first : first + 3]) for first in range(0, len(cell), 3)]


def test_a_picture_has_the_size_of_a_vgas_text_mode(tmp_path: Path) -> None:
    assert picture_of(screen_of(), tmp_path).size == (720, 400)


def test_every_background_and_foreground_is_the_palettes(tmp_path: Path) -> None:
    rows = [
        [Cell("█", column, row) if row % 2 else Cell(" ", column, row) for column in range(16)] for row in range(16)
    ]
    picture = picture_of(screen_of(*rows), tmp_path)
    for row in range(16):
        for column in range(16):
            assert set(cell_of(picture, row, column)) == {PALETTE[column if row % 2 else row]}


def test_a_letter_is_drawn_in_its_foreground_on_its_background(tmp_path: Path) -> None:
    pixels = cell_of(picture_of(screen_of(cells("A", foreground=15, background=1)), tmp_path), 0, 0)
    assert pixels.count(PALETTE[1]) > len(pixels) // 3
    assert max(pixels) == PALETTE[15]


def test_all_letters_and_digits_look_different(tmp_path: Path) -> None:
    text = "".join(chr(code) for code in range(0x21, 0x7F))
    picture = picture_of(screen_of(cells(text[:80]), cells(text[80:])), tmp_path)
    assert len({tuple(cell_of(picture, n // 80, n % 80)) for n in range(len(text))}) == len(text)


def test_every_character_of_code_page_437_can_be_drawn(tmp_path: Path) -> None:
    codes = [decode_character(code) for code in range(0x100)]
    picture = picture_of(
        screen_of(*(cells("".join(codes[first : first + 64])) for first in range(0, 256, 64))), tmp_path
    )
    for number, character in enumerate(codes):
        is_blank = len(set(cell_of(picture, number // 64, number % 64))) == 1
        assert is_blank == (character in " █░▒▓"), character


def test_the_lines_of_boxes_meet_at_the_edges_of_cells(tmp_path: Path) -> None:
    picture = picture_of(screen_of(cells("┌─┬┐"), cells("│x├┤"), cells("╔═╦╗"), cells("╚═╩╝")), tmp_path)

    def edge(row: int, column: int, x: int) -> list[bool]:
        return [any(cell_of(picture, row, column)[y * CELL_WIDTH + x]) for y in range(CELL_HEIGHT)]

    for row, column in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0)):
        assert any(edge(row, column, CELL_WIDTH - 1))
        assert edge(row, column, CELL_WIDTH - 1) == edge(row, column + 1, 0)


def lines_by_name(character: str) -> str:
    """Return the lines of a box drawing character as its Unicode name says."""
    parts = unicodedata.name(character).removeprefix("BOX DRAWINGS ").split(" AND ")
    default = 2 if parts[0].startswith("DOUBLE") else 1
    lines = {"UP": 0, "DOWN": 0, "LEFT": 0, "RIGHT": 0}
    for part in parts:
        count = 2 if "DOUBLE" in part else 1 if {"SINGLE", "LIGHT"} & set(part.split()) else default
        ends = {"VERTICAL": ["UP", "DOWN"], "HORIZONTAL": ["LEFT", "RIGHT"]}
        for word in part.split():
            for end in ends.get(word, [word] if word in lines else []):
                lines[end] = count
    return "".join(map(str, lines.values()))


def test_the_lines_of_all_boxes_are_as_their_names_say() -> None:
    table = {entry[0]: entry[1:] for entry in BOXES.split()}
    named = [decode_character(code) for code in range(0xB3, 0xDB)]
    assert table == {character: lines_by_name(character) for character in named}


def test_the_cursor_is_an_underline_in_the_foreground(tmp_path: Path) -> None:
    picture = picture_of(screen_of(cells("  ", foreground=14), cursor=(0, 1)), tmp_path)
    rows = [set(cell_of(picture, 0, 1)[y * CELL_WIDTH : (y + 1) * CELL_WIDTH]) for y in range(CELL_HEIGHT)]
    assert [y for y, colours in enumerate(rows) if colours == {PALETTE[14]}] == [13, 14]
    assert set(cell_of(picture, 0, 0)) == {PALETTE[0]}


def test_a_file_of_any_name_becomes_a_png(tmp_path: Path) -> None:
    save_png(screen_of(), str(tmp_path / "screen.jpg"))
    assert (tmp_path / "screen.jpg").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "reason"), [("no/such/screen.png", "No such file"), ("", "Is a directory"), ("a\0b", "null byte")]
)
def test_a_file_that_cannot_be_written_is_an_error_that_names_it(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot write the screenshot: .*{reason}") as raised:
        save_png(screen_of(), f"{tmp_path}/{name}")
    assert str(tmp_path) in str(raised.value)


def test_without_pillow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'pykvm-hypervisor\[screenshot\]'"):
        save_png(screen_of(), tmp_path / "screen.png")
    assert not list(tmp_path.iterdir())


def test_importing_it_loads_neither_rich_nor_pillow() -> None:
    program = "import sys, pykvm.cli.screen; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert not {"rich", "PIL"} & set(ran.stdout.split())
