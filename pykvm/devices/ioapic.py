"""An 82093AA I/O APIC: 24 pins, each with an entry that says which interrupt it sends to which local APIC.

    address  register
    +0x00    IOREGSEL  which register IOWIN shows     00 ID, 01 version, 02 arbitration ID,
    +0x10    IOWIN     that register                  10 and 11 the entry of pin 0, low and high half, 12 and 13 ...
    +0x40    EOI       the vector of an interrupt that has ended

An edge is sent once, and lost if the pin is masked. A level is sent and sets Remote IRR, which holds it back until
the local APIC tells by the EOI that it was served; if the pin is still active by then, it is sent again. What is sent
is a message: a write of ``data`` to ``address``, as a PCI device sends it.

See: Intel 82093AA data sheet (order 290566); for EOI, which version 0x20 added, Intel ICH data sheets, "APIC Indirect
Registers"; Intel SDM volume 3, section "Message Signalled Interrupts". Messages leave at once, so that Delivery Status
is always idle. Leaves out the APIC bus, and with it what the arbitration ID is for.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from pykvm.devices.fields import BYTE, Mask, Tuple
from pykvm.devices.irq import IrqLine
from pykvm.devices.state import Remembered, Stateful
from pykvm.errors import ConfigurationError
from pykvm.memory import platform

__all__ = ["BASE", "PINS", "SIZE", "DeliveryMode", "Entry", "Index", "IoApic", "Offset", "Redirection"]

BASE, SIZE = platform.IO_APIC, 0x1000
PINS = 24
MSI_ADDRESS = 0xFEE00000  # messages to local APICs

VERSION = 0x20  # the first one with an EOI register
ID_BITS = 0b1111 << 24
WORD = 4  # bytes of a register
REGISTER_BITS = 0xFFFFFFFF
ALL_PINS = (1 << PINS) - 1


class Offset(enum.IntEnum):
    """Where the registers are that the CPU sees."""

    IOREGSEL = 0x00
    IOWIN = 0x10
    EOI = 0x40


class Index(enum.IntEnum):
    """What IOREGSEL selects. From ``TABLE`` on, each pin has two registers."""

    ID = 0x00
    VERSION = 0x01
    ARBITRATION = 0x02
    TABLE = 0x10


class DeliveryMode(enum.Enum):
    """What an entry makes of an interrupt; the numbers left out are reserved."""

    FIXED = 0b000
    LOWEST_PRIORITY = 0b001
    SMI = 0b010
    NMI = 0b100
    INIT = 0b101
    EXT_INT = 0b111  # its vector comes from an 8259A


class Redirection(enum.Flag):
    """An entry of the redirection table.

     63       56 55  17   16   15   14   13   12   11   10   8 7      0
    +-----------+------+----+----+----+----+----+----+-------+--------+
    |destination| 0    |MASK|TRIG|RIRR| POL|STAT|DEST| DELIV.| vector |
    +-----------+------+----+----+----+----+----+----+-------+--------+
    """

    VECTOR = 0xFF
    DELIVERY_MODE = 0b111 << 8
    LOGICAL_DESTINATION = 1 << 11
    DELIVERY_STATUS = 1 << 12
    ACTIVE_LOW = 1 << 13
    REMOTE_IRR = 1 << 14
    LEVEL_TRIGGERED = 1 << 15
    MASKED = 1 << 16
    DESTINATION = 0xFF << 56


class MsiAddress(enum.Flag):
    """The address of a message.

     31      20 19      12 11      4   3    2   1  0
    +----------+----------+---------+----+----+------+
    |  0xfee   |destinat. | 0       |  RH|  DM| 0  0 |
    +----------+----------+---------+----+----+------+
    """

    LOGICAL_DESTINATION = 1 << 2  # DM
    REDIRECTION_HINT = 1 << 3


class MsiData(enum.Flag):
    """The data of a message.

     31    16  15    14   13  11 10   8 7      0
    +--------+-----+-----+------+------+--------+
    | 0      |LEVEL|ASRT |  0   |DELIV.| vector |
    +--------+-----+-----+------+------+--------+
    """

    ASSERT = 1 << 14
    LEVEL_TRIGGERED = 1 << 15


SELECTED_NAMES: dict[int, str] = {Index.ID: "IOAPICID", Index.VERSION: "IOAPICVER", Index.ARBITRATION: "IOAPICARB"}

DESTINATION_SHIFT, MSI_DESTINATION_SHIFT = 56, 12
WRITABLE = (
    Redirection.VECTOR
    | Redirection.DELIVERY_MODE
    | Redirection.LOGICAL_DESTINATION
    | Redirection.ACTIVE_LOW
    | Redirection.LEVEL_TRIGGERED
    | Redirection.MASKED
    | Redirection.DESTINATION
).value
# Only these are acknowledged by a local APIC; the data sheet wants the others to be edges, so that is what they are.
ACKNOWLEDGED = (DeliveryMode.FIXED.value, DeliveryMode.LOWEST_PRIORITY.value)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a pin sends: ``data`` to ``address``, unless it is ``masked``; ``level`` if its EOI is waited for."""

    address: int
    data: int
    masked: bool
    level: bool


class _Pin:
    """One pin, with its entry of the redirection table."""

    def __init__(self, send: Callable[[int, int], None]) -> None:
        self._send = send
        self.line = False
        self.remote_irr = False
        self.written = Redirection.MASKED.value
        self.entry = self._decode()

    @property
    def value(self) -> int:
        return self.written | (Redirection.REMOTE_IRR.value if self.remote_irr else 0)

    @property
    def vector(self) -> int:
        return self.written & Redirection.VECTOR.value

    @property
    def _active(self) -> bool:
        return self.line != bool(self.written & Redirection.ACTIVE_LOW.value)

    def write(self, value: int) -> None:
        self.written = value & WRITABLE
        self.entry = self._decode()
        if not self.entry.level:
            self.remote_irr = False  # by which software ends an interrupt where there is no EOI register

    def set_level(self, level: bool) -> None:
        was_active, self.line = self._active, level
        if self.entry.level:
            self.send_level()
        elif self._active and not was_active and not self.entry.masked:
            self._send(self.entry.address, self.entry.data)

    def send_level(self) -> None:
        """Send the message if the pin waits to be served, and has not been sent yet."""
        entry = self.entry
        if entry.level and self._active and not entry.masked and not self.remote_irr:
            self.remote_irr = True
            self._send(entry.address, entry.data)

    def end(self) -> None:
        self.remote_irr = False
        self.send_level()

    def _decode(self) -> Entry:
        written, address = self.written, MSI_ADDRESS
        delivery = (written & Redirection.DELIVERY_MODE.value) >> 8
        level = bool(written & Redirection.LEVEL_TRIGGERED.value) and delivery in ACKNOWLEDGED
        address |= written >> DESTINATION_SHIFT << MSI_DESTINATION_SHIFT
        if written & Redirection.LOGICAL_DESTINATION.value:
            address |= MsiAddress.LOGICAL_DESTINATION.value
        # Vector and delivery mode are at the same place in both.
        data = written & (Redirection.VECTOR | Redirection.DELIVERY_MODE).value
        if level:
            data |= (MsiData.LEVEL_TRIGGERED | MsiData.ASSERT).value
        return Entry(address, data, bool(written & Redirection.MASKED.value), level)


class IoApic(Stateful):
    """The chip. ``send(address, data)`` delivers a message; ``on_change`` hears when ``entries`` have changed.

    Neither may call back into the chip. Registers are 32 bits wide, and a write to IOWIN that is not a whole aligned
    word is lost; IOREGSEL and EOI have but one byte, which any write may carry.
    """

    name = "ioapic"
    remembers: ClassVar[Remembered] = {
        "_select": BYTE,
        "_id": Mask(ID_BITS),
        "_table": Tuple(*[Mask(WRITABLE)] * PINS),
        "_lines": Mask(ALL_PINS),
        "_remote_irrs": Mask(ALL_PINS),
    }

    def __init__(self, send: Callable[[int, int], None], on_change: Callable[[], None] | None = None) -> None:
        self._on_change = on_change
        self._select = 0
        self._id = 0
        self._pins = tuple(_Pin(send) for _ in range(PINS))

    # ---- the state ----

    @property
    def _table(self) -> tuple[int, ...]:
        return tuple(pin.written for pin in self._pins)

    @_table.setter
    def _table(self, table: tuple[int, ...]) -> None:
        # Before the other two: a pin that becomes an edge's loses its Remote IRR.
        changed = [(pin, written) for pin, written in zip(self._pins, table, strict=True) if pin.written != written]
        for pin, written in changed:
            pin.write(written)
        if changed and self._on_change is not None:
            self._on_change()

    @property
    def _lines(self) -> int:
        return sum(1 << number for number, pin in enumerate(self._pins) if pin.line)

    @_lines.setter
    def _lines(self, lines: int) -> None:
        for number, pin in enumerate(self._pins):
            pin.line = bool(lines >> number & 1)

    @property
    def _remote_irrs(self) -> int:
        return sum(1 << number for number, pin in enumerate(self._pins) if pin.remote_irr)

    @_remote_irrs.setter
    def _remote_irrs(self, remote_irrs: int) -> None:
        for number, pin in enumerate(self._pins):
            pin.remote_irr = bool(remote_irrs >> number & 1)

    # ---- the pins ----

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Return what each pin sends."""
        return tuple(pin.entry for pin in self._pins)

    def line(self, pin: int) -> IrqLine:
        """Return the wire to ``pin``, 0 to 23. Raises: ConfigurationError if there is no such pin."""
        if pin not in range(PINS):
            raise ConfigurationError(f"the I/O APIC has no pin {pin}: it has 0 to {PINS - 1}")
        return self._pins[pin]

    def eoi(self, vector: int) -> None:
        """Take a local APIC's word that it has served ``vector``; a pin that is active still sends it again."""
        for pin in self._pins:
            if pin.entry.level and pin.vector == vector:
                pin.end()

    # ---- the guest's side ----

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes of the registers from ``offset`` on, with 0 for those in between."""
        first = offset // WORD
        last = (offset + size - 1) // WORD
        words = b"".join(self._read_word(WORD * word).to_bytes(WORD, "little") for word in range(first, last + 1))
        return words[offset % WORD :][:size]

    def write(self, offset: int, data: bytes) -> None:
        """Write the registers from ``offset`` on, each with the part of ``data`` that falls on it."""
        while data:
            room = WORD - offset % WORD
            self._write_word(offset, data[:room])
            offset, data = offset + room, data[room:]

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the register, and in IOWIN the one that IOREGSEL selects, by the names of the data sheet."""
        match offset // WORD * WORD:
            case Offset.IOREGSEL:
                return "IOREGSEL"
            case Offset.IOWIN:
                return f"IOWIN {self._selected_name()}"
            case Offset.EOI:
                return "EOI"
        return f"+{offset:#x}"

    def _selected_name(self) -> str:
        number, high = divmod(self._select - Index.TABLE, 2)
        if number in range(PINS):
            return f"IOREDTBL{number} {'high' if high else 'low'}"
        return SELECTED_NAMES.get(self._select, f"{self._select:#04x}")

    def _read_word(self, offset: int) -> int:
        match offset:
            case Offset.IOREGSEL:
                return self._select
            case Offset.IOWIN:
                return self._read_selected()
            case _:
                return 0

    def _write_word(self, offset: int, data: bytes) -> None:
        match offset:
            case Offset.IOREGSEL:
                self._select = data[0]
            case Offset.IOWIN if len(data) == WORD:
                self._write_selected(int.from_bytes(data, "little"))
            case Offset.EOI:
                self.eoi(data[0])

    def _read_selected(self) -> int:
        match self._select:
            case Index.ID | Index.ARBITRATION:  # writing the ID writes both
                return self._id
            case Index.VERSION:
                return PINS - 1 << 16 | VERSION
        number, high = divmod(self._select - Index.TABLE, 2)
        if number not in range(PINS):
            return 0
        return self._pins[number].value >> (32 if high else 0) & REGISTER_BITS

    def _write_selected(self, value: int) -> None:
        if self._select == Index.ID:
            self._id = value & ID_BITS
        number, high = divmod(self._select - Index.TABLE, 2)
        if number in range(PINS):
            self._write_half(self._pins[number], value, high=bool(high))

    def _write_half(self, pin: _Pin, value: int, *, high: bool) -> None:
        before, old = pin.entry, pin.value
        pin.write(value << 32 | old & REGISTER_BITS if high else old & ~REGISTER_BITS | value)
        if pin.entry != before and self._on_change is not None:
            self._on_change()
        pin.send_level()  # a pin that was masked may have been active for long
