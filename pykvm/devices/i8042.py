"""The keyboard controller of a PC, an 8042 with IBM's program in it: it sits between the guest and the keyboard.

    port   read                        write
    0x60   output buffer               a byte for the keyboard, or the parameter of a command
    0x64   status                      a command to the controller:

    20-3f  read RAM; 20 is the command byte       c0     read the input port
    60-7f  write RAM, parameter                   d0     read the output port
    a7 a8  disable, enable the auxiliary port     d1     write the output port, parameter: A20, reset
    a9     test it: 00, no fault                  d2 d3  put the parameter into the output buffer, as if the keyboard
    aa     test the controller: 55, passed               (d2) or the auxiliary device (d3) had sent it
    ab     test the keyboard port: 00, no fault   d4     send the parameter to the auxiliary device
    ad ae  disable, enable the keyboard           dd df  close, open the A20 gate
    e0     read the lines to the keyboard         f0-ff  pulse output port bits that are 0 in the command; fe: reset

Nothing takes time here: a command is obeyed at once, so that the input buffer is never full, and the keyboard's next
byte is in the output buffer as soon as that is empty. It starts as firmware leaves it: interrupt and translation on.
See: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller". Leaves out a mouse:
what is sent to the auxiliary device times out, and IRQ 12 is not wired. Leaves out the keyboard lock, and A20's effect
(see resetcontrol.py). Other commands do nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import BYTE, Bool, Mask, Maybe, Memory, Tuple
from pykvm.devices.irq import IrqLine
from pykvm.devices.keyboard import Keyboard, Response
from pykvm.devices.resetcontrol import A20Gate
from pykvm.devices.scancodes import BREAK_BIT, BREAK_PREFIX, TRANSLATION
from pykvm.devices.state import Remembered, Stateful

__all__ = [
    "DATA_PORT",
    "I8042",
    "STATUS_PORT",
    "Command",
    "CommandByte",
    "InputLines",
    "OutputPort",
    "Port",
    "Status",
]

DATA_PORT = 0x60
STATUS_PORT = 0x64
RAM_SIZE = 32


class Status(enum.Flag):
    """Status register.

       7      6     5    4     3    2   1   0
    +------+-------+---+------+---+---+---+---+
    |PARITY|TIMEOUT|AUX|UNLOCK|CMD|SYS|IBF|OBF|
    +------+-------+---+------+---+---+---+---+
    """

    OBF = 1 << 0  # output buffer full: a byte can be read at 0x60
    IBF = 1 << 1  # input buffer full: never, see above
    SYS = 1 << 2  # the command byte's bit of this name
    CMD = 1 << 3  # the last write was to 0x64
    UNLOCK = 1 << 4  # the keyboard lock is open
    AUX = 1 << 5  # the byte that can be read is the auxiliary device's
    TIMEOUT = 1 << 6  # or stands for an answer that did not come
    PARITY = 1 << 7


class CommandByte(enum.Flag):
    """Command byte: byte 0 of the controller's RAM.

      7    6      5       4      3   2    1    0
    +---+-----+-------+-------+----+---+----+---+
    | 0 |XLATE|AUX_OFF|KBD_OFF|  - |SYS|INT2|INT|
    +---+-----+-------+-------+----+---+----+---+
    """

    INT = 1 << 0  # IRQ 1 when a byte comes into the output buffer
    INT2 = 1 << 1  # IRQ 12 when one of the auxiliary device does
    SYS = 1 << 2  # the self-test has passed: a warm start
    KBD_OFF = 1 << 4
    AUX_OFF = 1 << 5
    XLATE = 1 << 6  # translate scan codes from set 2 to set 1


class OutputPort(enum.Flag):
    """Output port: the pins by which the controller moves other things. Only RESET and A20 can be written.

       7    6    5     4   3   2   1    0
    +----+-----+-----+----+---+---+---+-----+
    |DATA|CLOCK|IRQ12|IRQ1| - | - |A20|RESET|
    +----+-----+-----+----+---+---+---+-----+
    """

    RESET = 1 << 0  # 0 resets the CPU
    A20 = 1 << 1  # the gate is open
    IRQ1 = 1 << 4  # a byte of the keyboard or the controller waits
    IRQ12 = 1 << 5  # a byte of the auxiliary device waits
    CLOCK = 1 << 6  # the lines to the keyboard: low stops it
    DATA = 1 << 7


class InputLines(enum.Flag):
    """Test inputs: the same two lines, read back.

      7   6   5   4   3   2    1    0
    +---+---+---+---+---+---+----+-----+
    | 0 | 0 | 0 | 0 | 0 | 0 |DATA|CLOCK|
    +---+---+---+---+---+---+----+-----+
    """

    CLOCK = 1 << 0
    DATA = 1 << 1


class Command(enum.IntEnum):
    """Commands to the controller, written at 0x64. The ones up to a range's LAST differ in their low bits."""

    READ_RAM = 0x20
    READ_RAM_LAST = 0x3F
    WRITE_RAM = 0x60
    WRITE_RAM_LAST = 0x7F
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    TEST_CONTROLLER = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    WRITE_OUTPUT_BUFFER = 0xD2
    WRITE_AUX_OUTPUT_BUFFER = 0xD3
    WRITE_AUX = 0xD4
    CLOSE_A20 = 0xDD
    OPEN_A20 = 0xDF
    READ_TEST_INPUTS = 0xE0
    PULSE = 0xF0
    RESET = 0xFE


# What every access needs, as plain numbers: an enum's value costs more than the access.
OBF, AUX = Status.OBF.value, Status.AUX.value
SYS, KBD_OFF, AUX_OFF = CommandByte.SYS.value, CommandByte.KBD_OFF.value, CommandByte.AUX_OFF.value
INT, XLATE = CommandByte.INT.value, CommandByte.XLATE.value

AUX_FULL = (Status.OBF | Status.AUX).value
AUX_TIMED_OUT = (Status.OBF | Status.AUX | Status.TIMEOUT).value
AS_FIRMWARE_LEAVES_IT = (CommandByte.INT | CommandByte.SYS | CommandByte.AUX_OFF | CommandByte.XLATE).value

NO_FAULT = 0x00
CONTROLLER_TEST_PASSED = 0x55
INPUT_PORT = 0x80  # bit 7: the keyboard lock is open
RAM_BITS = RAM_SIZE - 1
RESET_PIN = OutputPort.RESET.value


class Port(ByteRegisters, Stateful):
    """One of the controller's two ports: the address between them is another device's."""

    remembers: ClassVar[Remembered] = {}  # the controller does

    def __init__(
        self, name: str, read: Callable[[], int], write: Callable[[int], None], names: tuple[str, str] = ("", "")
    ) -> None:
        self.name = name
        self._names = names  # of what is read, and of what is written
        self._read = read
        self._write = write

    def read_register(self, offset: int) -> int:
        """Read the port."""
        return self._read()

    def write_register(self, offset: int, value: int) -> None:
        """Write the port."""
        self._write(value)

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return what is read or written there."""
        return self._names[is_write]


class I8042(Stateful):
    """The keyboard controller. ``data`` is its port 0x60, ``status`` its port 0x64; each is one register.

    ``irq1`` is high while a byte that is not the auxiliary device's waits to be read, if the command byte allows it; it
    is set only when its level changes. ``on_reset`` is called when the guest asks for a reset.
    """

    name = "i8042"
    remembers: ClassVar[Remembered] = {
        "_irq1_level": Bool(),
        "_output": BYTE,
        "_output_status": Mask(AUX_TIMED_OUT),
        "_waiting": Maybe(Tuple(BYTE, Mask(AUX_TIMED_OUT))),
        "_after_break_prefix": Bool(),
        "_parameter_of": Maybe(BYTE),
        "_last_was_command": Bool(),
        "_ram": Memory(RAM_SIZE),
    }
    parts = ("data", "status")

    def __init__(
        self,
        keyboard: Keyboard,
        irq1: IrqLine,
        on_reset: Callable[[], None],
        a20: A20Gate | None = None,
    ) -> None:
        self.data = Port("i8042", self._read_data, self._write_data, ("output buffer", "input buffer"))
        self.status = Port("i8042", self._read_status, self._write_command, ("status", "command"))
        self.a20 = A20Gate() if a20 is None else a20
        self._keyboard = keyboard
        self._irq1 = irq1
        self._on_reset = on_reset
        self._irq1_level = False
        self._output = 0  # the output buffer keeps its last byte
        self._output_status = 0  # OBF, AUX and TIMEOUT
        self._waiting: tuple[int, int] | None = None  # an answer of the controller, and its _output_status
        self._after_break_prefix = False
        self._parameter_of: int | None = None  # the command that waits for its parameter
        self._last_was_command = False
        self._ram = bytearray(RAM_SIZE)
        self._ram[0] = AS_FIRMWARE_LEAVES_IT
        keyboard.connect(self._refill)

    # ---- the two ports ----

    def _read_data(self) -> int:
        value = self._output
        self._output_status = 0
        self._update_interrupt()  # low, before the next byte makes it high again: an edge for each
        self._refill()
        return value

    def _read_status(self) -> int:
        status = Status.UNLOCK
        if self._last_was_command:
            status |= Status.CMD
        return status.value | self._output_status | self._ram[0] & SYS  # SYS is the same bit in both

    def _write_data(self, value: int) -> None:
        self._last_was_command = False
        command, self._parameter_of = self._parameter_of, None
        if command is None:
            self._ram[0] &= ~KBD_OFF  # a byte can only be sent with the clock on, so it goes on
            self._keyboard.send(value)
        else:
            self._take_parameter(command, value)
        self._refill()

    def _write_command(self, value: int) -> None:
        self._last_was_command = True
        self._parameter_of = None  # of a command before, it will not come any more
        self._obey(value)
        self._refill()

    # ---- the output buffer ----

    def _answer(self, value: int, status: int = OBF) -> None:
        # It waits while the output buffer is full, where there is room for one; the last answer counts.
        self._waiting = (value, status)

    def _refill(self) -> None:
        """Put the next byte into the output buffer if that is empty: the controller's answer, or a keyboard's byte."""
        if not self._output_status:
            if self._waiting is not None:
                self._output, self._output_status = self._waiting
                self._waiting = None
            elif not self._ram[0] & KBD_OFF:
                self._take_from_keyboard()
        self._update_interrupt()

    def _take_from_keyboard(self) -> None:
        byte = self._keyboard.take()
        if byte == BREAK_PREFIX and self._ram[0] & XLATE:
            self._after_break_prefix = True
            byte = self._keyboard.take()
        if byte is not None:
            self._output, self._output_status = self._translate(byte), OBF

    def _translate(self, byte: int) -> int:
        after_break_prefix, self._after_break_prefix = self._after_break_prefix, False
        if not self._ram[0] & XLATE:
            return byte
        return TRANSLATION[byte] | (BREAK_BIT if after_break_prefix else 0)

    def _update_interrupt(self) -> None:
        level = bool(self._output_status and not self._output_status & AUX and self._ram[0] & INT)
        if level != self._irq1_level:
            self._irq1_level = level
            self._irq1.set_level(level)

    # ---- commands ----

    def _obey(self, command: int) -> None:
        match command:
            case _ if Command.READ_RAM <= command <= Command.READ_RAM_LAST:
                self._answer(self._ram[command & RAM_BITS])
            case _ if Command.WRITE_RAM <= command <= Command.WRITE_RAM_LAST:
                self._parameter_of = command
            case (
                Command.WRITE_OUTPUT_PORT
                | Command.WRITE_OUTPUT_BUFFER
                | Command.WRITE_AUX_OUTPUT_BUFFER
                | Command.WRITE_AUX
            ):
                self._parameter_of = command
            case Command.DISABLE_AUX:
                self._ram[0] |= AUX_OFF
            case Command.ENABLE_AUX:
                self._ram[0] &= ~AUX_OFF
            case Command.DISABLE_KEYBOARD:
                self._ram[0] |= KBD_OFF
            case Command.ENABLE_KEYBOARD:
                self._ram[0] &= ~KBD_OFF
            case Command.TEST_CONTROLLER:
                self._test()
            case Command.TEST_KEYBOARD | Command.TEST_AUX:
                self._answer(NO_FAULT)
            case Command.READ_INPUT_PORT:
                self._answer(INPUT_PORT)
            case Command.READ_OUTPUT_PORT:
                self._answer(self._output_port().value)
            case Command.READ_TEST_INPUTS:
                self._answer(self._test_inputs().value)
            case Command.CLOSE_A20:
                self.a20.is_open = False
            case Command.OPEN_A20:
                self.a20.is_open = True
            case _ if command >= Command.PULSE and not command & RESET_PIN:
                self._on_reset()

    def _take_parameter(self, command: int, value: int) -> None:
        match command:
            case Command.WRITE_OUTPUT_PORT:
                self._write_output_port(OutputPort(value & (OutputPort.RESET | OutputPort.A20).value))
            case Command.WRITE_OUTPUT_BUFFER:
                self._answer(value)
            case Command.WRITE_AUX_OUTPUT_BUFFER:
                self._answer(value, AUX_FULL)
            case Command.WRITE_AUX:
                self._answer(Response.RESEND, AUX_TIMED_OUT)  # nothing is there, and this is how that is told
            case _:  # one of WRITE_RAM
                self._ram[command & RAM_BITS] = value

    def _test(self) -> None:
        # The program starts over: what was in the output buffer is gone. The command byte stays, which not all do.
        self._output_status = 0
        self._update_interrupt()
        self._ram[0] |= SYS
        self._answer(CONTROLLER_TEST_PASSED)

    # ---- pins ----

    def _output_port(self) -> OutputPort:
        pins = OutputPort.RESET | OutputPort.DATA
        if self.a20.is_open:
            pins |= OutputPort.A20
        if not self._ram[0] & KBD_OFF:
            pins |= OutputPort.CLOCK
        if self._output_status:
            pins |= OutputPort.IRQ12 if self._output_status & AUX else OutputPort.IRQ1
        return pins

    def _write_output_port(self, pins: OutputPort) -> None:
        self.a20.is_open = OutputPort.A20 in pins
        if OutputPort.RESET not in pins:
            self._on_reset()

    def _test_inputs(self) -> InputLines:
        clock = InputLines(0) if self._ram[0] & KBD_OFF else InputLines.CLOCK
        return InputLines.DATA | clock
