"""A guest's text screen in a terminal, still or live, and as a picture.

Leaves out blinking in a picture, and of the font there what is neither Latin nor a box: that is a hollow rectangle.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pykvm.devices.screen import COLUMNS, PALETTE, ROWS, Cell, Screen
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:  # both take long to load, and most runs need neither
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import ImageFont
    from rich.console import Console
    from rich.live import Live
    from rich.style import Style
    from rich.text import Text

__all__ = ["CELL_HEIGHT", "CELL_WIDTH", "INSTALL", "LiveScreen", "rich_screen", "save_png"]

INSTALL = "pip install 'pykvm-hypervisor[screenshot]'"

CELL_WIDTH, CELL_HEIGHT = 9, 16  # pixels, as on a VGA
CURSOR_TOP = 13  # pixels from the top of its cell, down to the last but one
FONT_WIDTH, FONT_HEIGHT = 6, 11  # of Pillow's own font, which is stretched to a cell
MIDDLE_X, MIDDLE_Y = 4, 7  # of a cell, where the lines of a box cross

# Filled rectangles, as (left, top, right, bottom), the last pixel included.
BLOCKS = {
    "█": (0, 0, 8, 15),
    "▄": (0, 8, 8, 15),
    "▀": (0, 0, 8, 7),
    "▌": (0, 0, 3, 15),
    "▐": (4, 0, 8, 15),
    "■": (1, 5, 7, 11),
    "▬": (0, 6, 8, 10),
    "•": (3, 6, 5, 9),
    "∙": (3, 7, 4, 8),
    "░": (0, 0, 8, 15),
    "▒": (0, 0, 8, 15),
    "▓": (0, 0, 8, 15),
}
SHADES = {"░": 64, "▒": 128, "▓": 192}  # how much of the foreground there is, of 255
SOLID = 255
HOLLOW = (2, 3, 6, 11)

# The lines of a box: how many go up, down, left and right from the middle of the cell.
BOXES = """
    │1100 ┤1110 ╡1120 ╢2210 ╖0210 ╕0120 ╣2220 ║2200 ╗0220 ╝2020 ╜2010 ╛1020 ┐0110
    └1001 ┴1011 ┬0111 ├1101 ─0011 ┼1111 ╞1102 ╟2201 ╚2002 ╔0202 ╩2022 ╦0222 ╠2202 ═0022 ╬2222
    ╧1022 ╨2011 ╤0122 ╥0211 ╙2001 ╘1002 ╒0102 ╓0201 ╫2211 ╪1122 ┘1010 ┌0101
"""


# ---- in a terminal ----


def rich_screen(screen: Screen, height: int = ROWS) -> Text:
    """Return ``screen`` with its colours, as ``height`` lines of 80 characters; the cursor's colours are swapped.

    If there is room for fewer than all rows, the last ones that are in use are shown. On a console narrower than 80
    columns print it with ``no_wrap=True, overflow="crop"``: rich forgets that the text asks for it.
    """
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop")
    styles: dict[tuple[Cell, bool], Style] = {}
    for row in shown_rows(screen, height):
        if text:
            text.append("\n")
        column = screen.cursor[1] if screen.cursor is not None and screen.cursor[0] == row else None
        for style, characters in _runs(screen.rows[row], column, styles):
            text.append(characters, style)
    return text


def shown_rows(screen: Screen, height: int) -> range:
    """Return which rows to show where there is room for ``height`` of them: at least one."""
    height = max(1, min(height, ROWS))
    used = [number for number, row in enumerate(screen.rows) if any(cell.character != " " for cell in row)]
    last = max([height - 1, *used, *(screen.cursor or ())[:1]])
    return range(last + 1 - height, last + 1)


def _runs(row: tuple[Cell, ...], cursor: int | None, styles: dict[tuple[Cell, bool], Style]) -> list[tuple[Style, str]]:
    """Return ``row`` as pieces of one style each."""
    shown = [(cell, column == cursor) for column, cell in enumerate(row)]
    for cell, is_cursor in shown:
        if (cell, is_cursor) not in styles:
            styles[cell, is_cursor] = _style(cell, is_cursor)
    groups = groupby(shown, lambda pair: styles[pair])
    return [(style, "".join(cell.character for cell, _ in pairs)) for style, pairs in groups]


def _style(cell: Cell, is_cursor: bool) -> Style:
    from rich.color import Color
    from rich.style import Style

    foreground, background = (Color.from_rgb(*PALETTE[number]) for number in (cell.foreground, cell.background))
    return Style(color=foreground, bgcolor=background, blink=cell.blink, reverse=is_cursor)


class LiveScreen:
    """A screen that is shown in a terminal as it changes, from ``with`` to its end; the last one stays to be read.

    ``console`` is where: stdout if it is None. If that is no terminal, only the last screen is printed, at the end.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._live: Live | None = None
        self._shown: Screen | None = None

    def update(self, screen: Screen) -> None:
        """Show ``screen``; does nothing if it is what is shown, or outside of ``with``."""
        if self._live is None or screen == self._shown:
            return
        self._shown = screen
        height = self._live.console.height if self._live.console.is_terminal else ROWS
        self._live.update(rich_screen(screen, height), refresh=True)

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        # What pykvm says on stderr is shown above the screen if that is where stderr goes, and else goes there.
        self._live = Live(
            console=self._console or Console(),
            auto_refresh=False,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._shown = None


# ---- as a picture ----


def save_png(screen: Screen, path: str | Path) -> None:
    """Write a picture of ``screen``, 720x400 pixels, to the file ``path`` in PNG format.

    Raises: ConfigurationError if Pillow is not installed, or the file cannot be written.
    """
    try:
        picture = _draw(screen)
    except ImportError:
        raise ConfigurationError(f"a screenshot needs Pillow, which is not installed: {INSTALL}") from None
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    try:
        Path(path).write_bytes(encoded.getvalue())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"{path}: cannot write the screenshot: {reason}; choose another file") from None


def check_can_save(path: str | Path) -> None:
    """Raise ConfigurationError now if ``save_png`` would after a run, as far as can be foreseen."""
    if importlib.util.find_spec("PIL") is None:
        raise ConfigurationError(f"a screenshot needs Pillow, which is not installed: {INSTALL}")
    reason = _why_not_writable(Path(path))
    if reason:
        raise ConfigurationError(f"{path}: cannot write the screenshot: {reason}; choose another file")


def _why_not_writable(path: Path) -> str:
    try:
        if path.is_dir():
            return "it is a folder"
        if not path.parent.is_dir():
            return f"there is no folder {path.parent}"
        is_writable = os.access(path if path.exists() else path.parent, os.W_OK)
    except (OSError, ValueError) as error:  # a name that is too long is no file's
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return "" if is_writable else "permission denied"


def _draw(screen: Screen) -> Picture:
    from PIL import Image, ImageFont

    picture = Image.new("RGB", (COLUMNS * CELL_WIDTH, ROWS * CELL_HEIGHT))
    font = ImageFont.load_default_imagefont()
    glyphs: dict[str, Picture] = {}
    for row, cells in enumerate(screen.rows):
        for column, cell in enumerate(cells):
            if cell.character not in glyphs:
                glyphs[cell.character] = _glyph(cell.character, font)
            left, top = column * CELL_WIDTH, row * CELL_HEIGHT
            foreground = PALETTE[cell.foreground]
            picture.paste(PALETTE[cell.background], (left, top, left + CELL_WIDTH, top + CELL_HEIGHT))
            picture.paste(foreground, (left, top), glyphs[cell.character])
            if screen.cursor == (row, column):
                picture.paste(foreground, (left, top + CURSOR_TOP, left + CELL_WIDTH, top + CELL_HEIGHT - 1))
    return picture


def _glyph(character: str, font: ImageFont) -> Picture:
    """Return a cell's shape: 255 where there is foreground, 0 where there is background."""
    from PIL import Image, ImageDraw

    glyph = Image.new("L", (CELL_WIDTH, CELL_HEIGHT))
    draw = ImageDraw.Draw(glyph)
    box = BOXES.find(character)
    if character == " ":
        pass
    elif character in BLOCKS:
        draw.rectangle(BLOCKS[character], fill=SHADES.get(character, SOLID))
    elif box >= 0 and not character.isdecimal():
        _draw_box(draw, *map(int, BOXES[box + 1 : box + 5]))
    elif ord(character) > 0xFF:
        draw.rectangle(HOLLOW, outline=SOLID)
    else:
        small = Image.new("L", (FONT_WIDTH, FONT_HEIGHT))
        ImageDraw.Draw(small).text((0, 0), character, font=font, fill=SOLID)
        glyph = small.resize(glyph.size, Image.Resampling.BILINEAR)
    return glyph


def _draw_box(draw: ImageDraw, up: int, down: int, left: int, right: int) -> None:
    """Draw the lines that meet in the middle. A double one is three pixels wide, with the one between taken out."""
    x, y = MIDDLE_X, MIDDLE_Y
    across, along = int(2 in (left, right)), int(2 in (up, down))  # how far the middle reaches
    arms = (
        (up, (x, 0, x, y), (x - 1, 0, x + 1, y + across), (x, 0, x, y - int(left == right == 2))),
        (down, (x, y, x, 15), (x - 1, y - across, x + 1, 15), (x, y + int(left == right == 2), x, 15)),
        (left, (0, y, x, y), (0, y - 1, x + along, y + 1), (0, y, x - int(up == down == 2), y)),
        (right, (x, y, 8, y), (x - along, y - 1, 8, y + 1), (x + int(up == down == 2), y, 8, y)),
    )
    for count, _, band, _ in arms:
        if count == 2:
            draw.rectangle(band, fill=SOLID)
    for count, line, _, _ in arms:
        if count == 2:
            draw.rectangle(line, fill=0)
    for count, _, _, line in arms:
        if count == 1:
            draw.rectangle(line, fill=SOLID)
