"""A VGA in text mode 3: the registers that say what of text memory is shown, and where the cursor is.

    port            register
    0x3c0           attribute controller: index, then data, in turns; 0x3c1 reads the data
    0x3c2 / 0x3cc   miscellaneous output: written here / read there
    0x3c4  0x3c5    sequencer: index, data
    0x3c6 - 0x3c9   DAC: pixel mask, read index, write index, data (red, green, blue in turns)
    0x3ce  0x3cf    graphics controller: index, data
    0x3d4  0x3d5    CRT controller: index, data
    0x3da           input status 1

The characters are plain guest memory, 32 KiB at 0xb8000: writing them is no exit, and costs nothing. Here they are only
looked at. See: IBM VGA Technical Reference, "Registers"; for the values after reset, the BIOS's for mode 3. Leaves out
what a screen of 80x25 characters does not need: graphics modes, fonts, other sizes, the palette (the sixteen colours
are always the usual ones), blanking, and the monochrome ports at 0x3b4. Their registers keep what is written.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import BYTE, Bool, Choice, Mask, Memory, Number
from pykvm.devices.screen import COLUMNS, ROWS, Cell, Screen
from pykvm.devices.state import Remembered, Stateful
from pykvm.memory import layout

__all__ = ["PORT", "REGISTERS", "TEXT_MEMORY", "TEXT_SIZE", "AttributeMode", "Crtc", "InputStatus", "Offset", "Vga"]

PORT = 0x3C0
REGISTERS = 0x20
TEXT_MEMORY, TEXT_SIZE = layout.VGA_TEXT, layout.VGA_TEXT_SIZE


class Offset(enum.IntEnum):
    """Where the registers are, from ``PORT`` on. Some share an offset: reading and writing differ."""

    ATTRIBUTE = 0x00  # written: index and data in turns; read: the index
    ATTRIBUTE_DATA = 0x01
    MISC_WRITE = INPUT_STATUS_0 = 0x02
    SEQUENCER_INDEX = 0x04
    SEQUENCER_DATA = 0x05
    DAC_MASK = 0x06
    DAC_READ_INDEX = DAC_STATE = 0x07
    DAC_WRITE_INDEX = 0x08
    DAC_DATA = 0x09
    FEATURE_READ = 0x0A
    MISC_READ = 0x0C
    GRAPHICS_INDEX = 0x0E
    GRAPHICS_DATA = 0x0F
    CRTC_INDEX = 0x14
    CRTC_DATA = 0x15
    INPUT_STATUS_1 = FEATURE_WRITE = 0x1A


class Crtc(enum.IntEnum):
    """The CRT controller's registers that matter here. A start or a location counts characters, not bytes."""

    CURSOR_START = 0x0A  # bits 4 to 0: the first scan line of a character that the cursor covers; bit 5: no cursor
    CURSOR_END = 0x0B  # bits 4 to 0: the last one
    START_HIGH = 0x0C  # the character at the screen's top left
    START_LOW = 0x0D
    CURSOR_HIGH = 0x0E
    CURSOR_LOW = 0x0F


class AttributeMode(enum.Flag):
    """Attribute controller register 0x10, Attribute Mode Control.

       7     6     5    4     3    2    1     0
    +-----+-----+-----+---+-----+-----+----+----+
    |P54S |PCLK | PPM | - |BLINK| LGE |MONO|GFX |
    +-----+-----+-----+---+-----+-----+----+----+
    """

    GFX = 1 << 0
    MONO = 1 << 1
    LGE = 1 << 2  # box drawing characters go on into the ninth column of pixels
    BLINK = 1 << 3  # an attribute's bit 7 makes the character blink; else it is the background's fourth bit
    PPM = 1 << 5
    PCLK = 1 << 6
    P54S = 1 << 7


class InputStatus(enum.Flag):
    """Input Status 1.

      7   6   5   4    3   2   1    0
    +---+---+---+---+----+---+---+----+
    | 0 | 0 | 0 | 0 | VR | 0 | 0 | DD |
    +---+---+---+---+----+---+---+----+
    """

    DD = 1 << 0  # display disabled: the beam goes back, from line to line or to the top
    VR = 1 << 3  # vertical retrace: to the top


CHARACTERS = TEXT_SIZE // 2  # that text memory has; after the last one comes the first one
CURSOR_OFF = 1 << 5  # in CURSOR_START
SCAN_LINE_BITS = 0x1F
ATTRIBUTE_MODE = 0x10
ATTRIBUTE_INDEX_BITS, ATTRIBUTE_REGISTERS = 0x3F, 0x20  # the index's bit 5 switches the palette on
INDEXED = 0x100  # registers that an index of 8 bits reaches
DAC_BITS, DAC_SIZE = 0x3F, 0x300
DAC_READING = 0b11  # DAC state; 0b00 is writing

READ_NAMES: dict[int, str] = {
    Offset.ATTRIBUTE: "attribute index",
    Offset.INPUT_STATUS_0: "input status 0",
    Offset.DAC_MASK: "DAC mask",
    Offset.DAC_STATE: "DAC state",
    Offset.DAC_WRITE_INDEX: "DAC write index",
    Offset.DAC_DATA: "DAC data",
    Offset.FEATURE_READ: "feature control",
    Offset.MISC_READ: "misc output",
    Offset.INPUT_STATUS_1: "input status 1",
}
WRITTEN_NAMES: dict[int, str] = {
    **READ_NAMES,
    Offset.MISC_WRITE: "misc output",
    Offset.DAC_READ_INDEX: "DAC read index",
    Offset.FEATURE_WRITE: "feature control",
}
INDEXED_NAMES: dict[int, str] = {
    Offset.SEQUENCER_INDEX: "sequencer",
    Offset.SEQUENCER_DATA: "sequencer",
    Offset.GRAPHICS_INDEX: "graphics",
    Offset.GRAPHICS_DATA: "graphics",
    Offset.CRTC_INDEX: "CRTC",
    Offset.CRTC_DATA: "CRTC",
}
CRTC_NAMES: dict[int, str] = {register: register.name.lower().replace("_", " ") for register in Crtc}

# How a BIOS leaves the registers in mode 3.
MISC = 0x67
CRTC = bytes.fromhex("5f4f508255 81bf1f004f 0d0e000000 009c8e8f28 1f96b9a3ff")
SEQUENCER = bytes.fromhex("0300030002")
GRAPHICS = bytes.fromhex("000000000010 0e00ff")
ATTRIBUTES = bytes.fromhex("0001020304051407 38393a3b3c3d3e3f 0c000f0800")


class IndexedRegisters(Stateful):
    """Many registers behind two ports, an index and the data of the register that it selects."""

    remembers: ClassVar[Remembered] = {"index": BYTE, "_values": Memory(INDEXED)}

    def __init__(self, values: bytes) -> None:
        self.index = 0
        self._values = bytearray(values.ljust(INDEXED, b"\0"))

    def __getitem__(self, index: int) -> int:
        return self._values[index]

    @property
    def data(self) -> int:
        """Return the register that is selected."""
        return self._values[self.index]

    @data.setter
    def data(self, value: int) -> None:
        self._values[self.index] = value

    def pair(self, high: int) -> int:
        """Return the 16 bits of the registers ``high`` and, after it, low."""
        return self._values[high] << 8 | self._values[high + 1]


class Vga(ByteRegisters, Stateful):
    """A VGA. ``read_memory(offset, size)`` returns bytes of the 32 KiB at ``TEXT_MEMORY``, and only of these."""

    name = "VGA"
    remembers: ClassVar[Remembered] = {
        "_attribute_index": Mask(ATTRIBUTE_INDEX_BITS),
        "_attribute_data_next": Bool(),
        "_misc": BYTE,
        "_feature": BYTE,
        "_in_retrace": Bool(),
    }
    parts = ("_crtc", "_sequencer", "_graphics", "_attributes", "_dac")

    def __init__(self, read_memory: Callable[[int, int], bytes]) -> None:
        self._read_memory = read_memory
        self._crtc = IndexedRegisters(CRTC)
        self._sequencer = IndexedRegisters(SEQUENCER)
        self._graphics = IndexedRegisters(GRAPHICS)
        self._attributes = IndexedRegisters(ATTRIBUTES)
        self._attribute_index = ATTRIBUTE_REGISTERS  # with the bit that switches the palette on
        self._attribute_data_next = False
        self._misc = MISC
        self._feature = 0
        self._in_retrace = False
        self._dac = Dac()

    # ---- what is shown ----

    def text(self) -> str:
        """Return what is on the screen, without colours: see ``Screen.text``."""
        return self.snapshot().text()

    def snapshot(self) -> Screen:
        """Return what the screen shows now."""
        text = self._shown_text()
        blinking = AttributeMode.BLINK.value & self._attributes[ATTRIBUTE_MODE] != 0
        # There are few different cells on a screen: each is made once.
        known: dict[bytes, Cell] = {}
        for position in range(0, len(text), 2):
            pair = text[position : position + 2]
            if pair not in known:
                known[pair] = Cell.decode(pair[0], pair[1], blinking=blinking)
        cells = [known[text[position : position + 2]] for position in range(0, len(text), 2)]
        rows = tuple(tuple(cells[first : first + COLUMNS]) for first in range(0, ROWS * COLUMNS, COLUMNS))
        return Screen(rows, self._cursor())

    def _shown_text(self) -> bytes:
        first = self._crtc.pair(Crtc.START_HIGH) % CHARACTERS * 2
        size = ROWS * COLUMNS * 2
        text = self._read_memory(first, min(size, TEXT_SIZE - first))
        return text if len(text) == size else text + self._read_memory(0, size - len(text))

    def _cursor(self) -> tuple[int, int] | None:
        start, end = self._crtc[Crtc.CURSOR_START], self._crtc[Crtc.CURSOR_END]
        if start & CURSOR_OFF or start & SCAN_LINE_BITS > end & SCAN_LINE_BITS:
            return None
        position = (self._crtc.pair(Crtc.CURSOR_HIGH) - self._crtc.pair(Crtc.START_HIGH)) % CHARACTERS
        return divmod(position, COLUMNS) if position < ROWS * COLUMNS else None

    # ---- the guest's side ----

    def read_register(self, offset: int) -> int:
        """Return the register at ``offset``; where there is none, all ones."""
        match offset:
            case Offset.ATTRIBUTE:
                return self._attribute_index
            case Offset.ATTRIBUTE_DATA:
                return self._attributes.data
            case Offset.INPUT_STATUS_0:
                return 0
            case Offset.DAC_MASK | Offset.DAC_STATE | Offset.DAC_WRITE_INDEX | Offset.DAC_DATA:
                return self._dac.read(offset)
            case Offset.FEATURE_READ:
                return self._feature
            case Offset.MISC_READ:
                return self._misc
            case Offset.INPUT_STATUS_1:
                return self._read_input_status_1()
            case _:
                return self._read_indexed(offset)

    def write_register(self, offset: int, value: int) -> None:
        """Write the register at ``offset``; where there is none, the value is lost."""
        match offset:
            case Offset.ATTRIBUTE:
                self._write_attribute(value)
            case Offset.MISC_WRITE:
                self._misc = value
            case Offset.DAC_MASK | Offset.DAC_READ_INDEX | Offset.DAC_WRITE_INDEX | Offset.DAC_DATA:
                self._dac.write(offset, value)
            case Offset.FEATURE_WRITE:
                self._feature = value
            case _:
                self._write_indexed(offset, value)

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the register, and of those behind an index the one that it selects."""
        match offset:
            case Offset.ATTRIBUTE if is_write and self._attribute_data_next:
                return f"attribute {self._attributes.index:#04x}"
            case Offset.ATTRIBUTE_DATA:
                return f"attribute {self._attributes.index:#04x}"
        if offset in INDEXED_NAMES:
            return self._indexed_name(offset)
        return (WRITTEN_NAMES if is_write else READ_NAMES).get(offset, f"+{offset:#04x}")

    def _indexed_name(self, offset: int) -> str:
        name, registers = INDEXED_NAMES[offset], self._indexed(offset)
        if registers is None or offset & 1 == 0:
            return f"{name} index"
        if registers is self._crtc and registers.index in CRTC_NAMES:
            return f"{name} {CRTC_NAMES[registers.index]}"
        return f"{name} {registers.index:#04x}"

    def _read_input_status_1(self) -> int:
        # Guests wait here for the beam to go back, or for it to have gone. No picture is drawn, so time plays no role:
        # each read finds the other state, and nobody waits for more than two.
        self._attribute_data_next = False
        self._in_retrace = not self._in_retrace
        return (InputStatus.VR | InputStatus.DD).value if self._in_retrace else 0

    def _write_attribute(self, value: int) -> None:
        if self._attribute_data_next:
            self._attributes.data = value
        else:
            self._attribute_index = value & ATTRIBUTE_INDEX_BITS
            self._attributes.index = value % ATTRIBUTE_REGISTERS
        self._attribute_data_next = not self._attribute_data_next

    def _indexed(self, offset: int) -> IndexedRegisters | None:
        match offset:
            case Offset.SEQUENCER_INDEX | Offset.SEQUENCER_DATA:
                return self._sequencer
            case Offset.GRAPHICS_INDEX | Offset.GRAPHICS_DATA:
                return self._graphics
            case Offset.CRTC_INDEX | Offset.CRTC_DATA:
                return self._crtc
            case _:
                return None

    def _read_indexed(self, offset: int) -> int:
        registers = self._indexed(offset)
        if registers is None:
            return 0xFF
        return registers.data if offset & 1 else registers.index

    def _write_indexed(self, offset: int, value: int) -> None:
        registers = self._indexed(offset)
        if registers is None:
            return
        if offset & 1:
            registers.data = value
        else:
            registers.index = value


class Dac(Stateful):
    """The digital-to-analogue converter's 256 colours, 6 bits each of red, green and blue: kept, and not shown."""

    remembers: ClassVar[Remembered] = {
        "_values": Memory(DAC_SIZE),
        "_position": Number(DAC_SIZE - 1),
        "_mask": BYTE,
        "_state": Choice(0, DAC_READING),
    }

    def __init__(self) -> None:
        self._values = bytearray(DAC_SIZE)
        self._position = 0  # of the next component
        self._mask = 0xFF
        self._state = 0

    def read(self, offset: int) -> int:
        """Return the register at ``offset``; the data register goes on to the next component."""
        match offset:
            case Offset.DAC_MASK:
                return self._mask
            case Offset.DAC_STATE:
                return self._state
            case Offset.DAC_WRITE_INDEX:
                return self._position // 3
            case _:
                return self._values[self._next()]

    def write(self, offset: int, value: int) -> None:
        """Write the register at ``offset``; the data register goes on to the next component."""
        match offset:
            case Offset.DAC_MASK:
                self._mask = value
            case Offset.DAC_READ_INDEX | Offset.DAC_WRITE_INDEX:
                self._position = value * 3
                self._state = DAC_READING if offset == Offset.DAC_READ_INDEX else 0
            case _:
                self._values[self._next()] = value & DAC_BITS

    def _next(self) -> int:
        position, self._position = self._position, (self._position + 1) % len(self._values)
        return position
