"""A text screen as a value: 80x25 characters with their colours, and where the cursor is.

In the VGA's text memory a character is two bytes, its code in code page 437 and its attribute:

      7     6   5   4     3   2   1   0
    +-----+-----------+---------------+
    |BLINK| background|   foreground  |     BLINK: or the background's fourth bit, as the mode control register says
    +-----+-----------+---------------+

See: IBM VGA Technical Reference, "Alphanumeric Modes". Leaves out how the screen came about: ``vga`` has the registers,
and whoever draws it has fonts.
"""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.errors import ConfigurationError

__all__ = ["COLUMNS", "PALETTE", "ROWS", "Cell", "Screen", "decode_character"]

ROWS, COLUMNS = 25, 80

# The sixteen colours as (red, green, blue), 0 to 255. From 8 on they are the bright ones; 6 is brown, for a monitor
# makes of dark yellow what it should be: half the green.
PALETTE = (
    *((0x00, 0x00, 0x00), (0x00, 0x00, 0xAA), (0x00, 0xAA, 0x00), (0x00, 0xAA, 0xAA)),
    *((0xAA, 0x00, 0x00), (0xAA, 0x00, 0xAA), (0xAA, 0x55, 0x00), (0xAA, 0xAA, 0xAA)),
    *((0x55, 0x55, 0x55), (0x55, 0x55, 0xFF), (0x55, 0xFF, 0x55), (0x55, 0xFF, 0xFF)),
    *((0xFF, 0x55, 0x55), (0xFF, 0x55, 0xFF), (0xFF, 0xFF, 0x55), (0xFF, 0xFF, 0xFF)),
)

# Python's code page 437 has control characters below 0x20 and at 0x7f; a PC shows these.
LOW_CHARACTERS = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
HOUSE, BLANK = 0x7F, 0xFF

FOREGROUND_BITS, BACKGROUND_BITS, BACKGROUND_SHIFT, BLINK = 0x0F, 0x07, 4, 0x80


@dataclass(frozen=True, slots=True)
class Cell:
    """One character; ``foreground`` and ``background`` are colours, 0 to 15, as ``PALETTE`` lists them."""

    character: str = " "
    foreground: int = 7
    background: int = 0
    blink: bool = False

    @classmethod
    def decode(cls, code: int, attribute: int, *, blinking: bool = True) -> Cell:
        """Return what the two bytes in text memory show. ``blinking`` says what attribute bit 7 is good for."""
        background = attribute >> BACKGROUND_SHIFT
        if blinking:
            background &= BACKGROUND_BITS
        blink = blinking and bool(attribute & BLINK)
        return cls(decode_character(code), attribute & FOREGROUND_BITS, background, blink)


@dataclass(frozen=True, slots=True)
class Screen:
    """What a screen shows: 25 rows of 80 cells, and the cursor as (row, column), or None if it is not to be seen.

    Raises: ConfigurationError if it has another size, or the cursor is outside.
    """

    rows: tuple[tuple[Cell, ...], ...]
    cursor: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if len(self.rows) != ROWS or any(len(row) != COLUMNS for row in self.rows):
            raise ConfigurationError(f"a screen has {ROWS} rows of {COLUMNS} cells each")
        if self.cursor is not None and not (0 <= self.cursor[0] < ROWS and 0 <= self.cursor[1] < COLUMNS):
            raise ConfigurationError(f"the cursor at {self.cursor} is outside of {ROWS} rows and {COLUMNS} columns")

    def text(self) -> str:
        """Return the characters, a line for each row, without blanks at the end of a row, and rows at the screen's."""
        lines = ("".join(cell.character for cell in row).rstrip(" ") for row in self.rows)
        return "\n".join(lines).rstrip("\n")


def decode_character(code: int) -> str:
    """Return the Unicode character that shows what a PC shows for ``code``, 0 to 0xff, of code page 437.

    Two codes besides 0x20 are blank, 0 and 0xff: both come out as a space.
    """
    if code < len(LOW_CHARACTERS):
        return LOW_CHARACTERS[code]
    if code == HOUSE:
        return "⌂"
    return " " if code == BLANK else bytes((code,)).decode("cp437")
