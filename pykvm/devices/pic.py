"""Two 8259A interrupt controllers, a master and a slave behind its input 2, as in a PC AT.

    IRQ 0  timer     ----> IR0 +--------+        IRQ 8  clock ----> IR0 +-------+
    IRQ 1  keyboard  ----> IR1 | master |        ...                    | slave |
                           IR2 |        | <------------------------ INT |       |
    IRQ 3 ... IRQ 7  ----> IR7 |        | INT -> the CPU's INTR pin     +-------+

A chip has a command port and a data port, and tells what is written to them by its bits and by its order:

    command   bit 4 is 1              ICW1  begins an initialisation; then the data port gets
    data      ICW2  vectors           ICW3  cascade, unless ICW1 says SNGL    ICW4  modes, if ICW1 says IC4
    command   bits 4 and 3 are 00     OCW2  end of interrupt, priorities
    command   bits 4 and 3 are 01     OCW3  what the next reads give, special mask mode
    data      otherwise               OCW1  the mask

A request goes from IRR (requested) to ISR (in service) when the CPU acknowledges it, and leaves ISR by an end of
interrupt (EOI). What is in service holds back everything of its own and of lower priority.

See: Intel 8259A data sheet (order 231468); for ELCR, Intel 82371AB (PIIX4) data sheet, section 4.2.2. An edge stays
requested until it is acknowledged, as with the controllers inside chipsets; a bare 8259A forgets it if the line falls
too early. Leaves out the vectors of an MCS-80/85 system (they are formed as for an 8086) and buffered mode.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import BYTE, Bool, Choice, Flags, Mask, Member, Number, Queue
from pykvm.devices.irq import IrqLine
from pykvm.devices.state import Remembered, Stateful
from pykvm.errors import ConfigurationError

__all__ = [
    "CASCADE",
    "ELCR",
    "IRQS",
    "MASTER",
    "REGISTERS",
    "SLAVE",
    "Elcr",
    "Icw1",
    "Icw4",
    "Ocw2",
    "Ocw3",
    "Offset",
    "Pic",
    "PicPair",
]

MASTER, SLAVE, ELCR = 0x20, 0xA0, 0x4D0  # where a PC has them
REGISTERS = 2  # each of the three
IRQS = 16
CASCADE = 2  # the master's input that the slave's output is wired to
SPURIOUS = 7  # what a chip answers if the request has gone by the time the CPU asks

INPUTS = 8  # of one chip
ALL = 0xFF
VECTOR_BITS = 0b1111_1000  # of ICW2; the others are the number of the input
LEVEL_BITS = 0b0000_0111  # of OCW2, and of a slave's ICW3
POLL_HIT = 1 << 7
FLOATING = 0xFF  # the vector that the CPU sees when no chip drives the bus
# The timer, the keyboard, the cascade, the clock and the coprocessor are edges for ever.
ELCR_WRITABLE = (0b1111_1000, 0b1101_1110)


class Offset(enum.IntEnum):
    """Where the registers of one chip are."""

    COMMAND = 0
    DATA = 1


class Icw1(enum.Flag):
    """Initialization Command Word 1.

      7   6   5   4    3    2    1    0
    +---+---+---+---+----+----+----+----+
    | - | - | - | 1 |LTIM| ADI|SNGL| IC4|
    +---+---+---+---+----+----+----+----+
    """

    IC4 = 1 << 0  # ICW4 will follow
    SNGL = 1 << 1  # there is no other chip, and no ICW3
    ADI = 1 << 2  # MCS-80/85 only
    LTIM = 1 << 3  # all inputs are level-triggered
    INIT = 1 << 4


class Icw4(enum.Flag):
    """Initialization Command Word 4.

      7   6   5    4    3    2    1    0
    +---+---+---+----+----+----+----+----+
    | 0 | 0 | 0 |SFNM| BUF| M/S|AEOI| uPM|
    +---+---+---+----+----+----+----+----+
    """

    UPM = 1 << 0  # an 8086 system
    AEOI = 1 << 1  # an interrupt ends by itself when it has been acknowledged
    MASTER = 1 << 2  # buffered mode only
    BUF = 1 << 3
    SFNM = 1 << 4  # special fully nested mode: a slave in service may request again


class Ocw2(enum.Enum):
    """Operation Command Word 2: what to do, for which level L.

      7   6   5   4   3   2   1   0
    +---+---+---+---+---+-----------+
    | R | SL|EOI| 0 | 0 |     L     |      R: rotate   SL: for level L, else for the highest in service
    +---+---+---+---+---+-----------+
    """

    CLEAR_ROTATE_IN_AEOI = 0b000 << 5
    EOI = 0b001 << 5
    NOTHING = 0b010 << 5
    SPECIFIC_EOI = 0b011 << 5
    SET_ROTATE_IN_AEOI = 0b100 << 5
    ROTATE_ON_EOI = 0b101 << 5
    SET_PRIORITY = 0b110 << 5  # L becomes the lowest
    ROTATE_ON_SPECIFIC_EOI = 0b111 << 5


class Ocw3(enum.Flag):
    """Operation Command Word 3. ESMM and RR say whether SMM and RIS are meant.

      7   6    5   4   3   2   1   0
    +---+----+---+---+---+---+---+---+
    | 0 |ESMM|SMM| 0 | 1 | P | RR|RIS|
    +---+----+---+---+---+---+---+---+
    """

    RIS = 1 << 0  # the command port reads as ISR, else as IRR
    RR = 1 << 1
    P = 1 << 2  # poll: the next read acknowledges
    OCW3 = 1 << 3
    SMM = 1 << 5  # special mask mode: what is in service and masked holds nothing back
    ESMM = 1 << 6


class _Awaited(enum.Enum):
    ICW2 = 2
    ICW3 = 3
    ICW4 = 4


class Pic(ByteRegisters, Stateful):
    """One 8259A. ``on_output`` hears of each change of its INT pin, which is low until ICW1 to ICW4 are complete."""

    remembers: ClassVar[Remembered] = {
        "output": Bool(),
        "_lines": BYTE,
        "_edges": BYTE,
        "_isr": BYTE,
        "_imr": BYTE,
        "_elcr": BYTE,
        "_initialised": Bool(),
        "_awaited": Queue(Member(_Awaited), len(_Awaited)),
        "_vector_base": Mask(VECTOR_BITS),
        "_level_triggered_by_icw1": Choice(0, ALL),
        "_lowest": Number(INPUTS - 1),
        "_slaves": BYTE,
        "_cascade_id": Mask(LEVEL_BITS),
        "_special_mask": Bool(),
        "_rotate_in_aeoi": Bool(),
        "_read_isr": Bool(),
        "_poll": Bool(),
        "_icw4": Flags(Icw4.UPM | Icw4.AEOI | Icw4.MASTER | Icw4.BUF | Icw4.SFNM),
    }

    def __init__(self, name: str, on_output: Callable[[bool], None], *, is_master: bool) -> None:
        self.name = name
        self.output = False
        self._on_output = on_output
        self._is_master = is_master
        self._lines = 0  # the levels of the inputs; in this and what follows bit n is input n
        self._edges = 0  # rising edges that wait to be acknowledged
        self._isr = self._imr = self._elcr = 0
        self._initialised = False
        self._awaited: deque[_Awaited] = deque()
        self._reset(Icw1(0))
        self._vector_base = 0

    def _reset(self, icw1: Icw1) -> None:
        # The data sheet's list of what ICW1 does. The edge detectors are reset too: a line that is high stays unseen.
        self._level_triggered_by_icw1 = ALL if Icw1.LTIM in icw1 else 0
        self._edges = self._isr = self._imr = 0
        self._lowest = INPUTS - 1
        self._slaves, self._cascade_id = 0, LEVEL_BITS
        self._special_mask = self._rotate_in_aeoi = self._read_isr = self._poll = False
        self._icw4 = Icw4(0)

    # ---- the state, for tests and reports ----

    @property
    def irr(self) -> int:
        """Return the Interrupt Request Register: bit n is input n."""
        by_level = self._level_triggered
        return self._edges & ~by_level | self._lines & by_level

    @property
    def isr(self) -> int:
        """Return the In-Service Register."""
        return self._isr

    @property
    def imr(self) -> int:
        """Return the Interrupt Mask Register: 1 is masked."""
        return self._imr

    @property
    def is_ready(self) -> bool:
        """Return whether the chip has been initialised, and is not in the middle of it."""
        return self._initialised and not self._awaited

    # ---- the inputs ----

    @property
    def elcr(self) -> int:
        """Return which inputs the Edge/Level Control Register makes level-triggered."""
        return self._elcr

    @elcr.setter
    def elcr(self, inputs: int) -> None:
        self._elcr = inputs & ALL
        self._edges &= ~self._elcr
        self._update_output()

    @property
    def _level_triggered(self) -> int:
        return self._elcr | self._level_triggered_by_icw1

    def set_line(self, number: int, level: bool) -> None:
        """Drive input ``number`` (0 to 7) high or low."""
        bit = 1 << number
        if level:
            self._edges |= bit & ~self._lines & ~self._level_triggered
            self._lines |= bit
        else:
            self._lines &= ~bit
        self._update_output()

    # ---- the CPU's side ----

    def acknowledge(self) -> int:
        """Take the request that comes first into service, and return its input; ``SPURIOUS`` if there is none."""
        number = self._next()
        self._set_output(False)  # the CPU's INTA takes INT back; another request makes a new edge of it
        if number is None:
            return SPURIOUS
        self._edges &= ~(1 << number)
        if Icw4.AEOI not in self._icw4:
            self._isr |= 1 << number
        elif self._rotate_in_aeoi:
            self._lowest = number
        self._update_output()
        return number

    def vector(self, number: int) -> int:
        """Return the vector of input ``number``."""
        return self._vector_base | number

    def has_slave(self, number: int) -> bool:
        """Return whether ICW3 told this master that a slave is at input ``number``."""
        return bool(self._slaves & 1 << number)

    def answers_to(self, number: int) -> bool:
        """Return whether ICW3 told this slave that it is at the master's input ``number``."""
        return self._cascade_id == number

    # ---- the guest's side ----

    def read_register(self, offset: int) -> int:
        """Return IMR from the data port, IRR or ISR from the command port; after a poll command, the poll word."""
        if self._poll:
            self._poll = False
            return self._read_poll_word()
        if offset & Offset.DATA:
            return self._imr
        return self._isr if self._read_isr else self.irr

    def write_register(self, offset: int, value: int) -> None:
        """Take an ICW or an OCW."""
        if offset & Offset.DATA:
            self._write_data(value)
        elif value & Icw1.INIT.value:
            self._write_icw1(Icw1(value & ~0b1110_0000))
        elif value & Ocw3.OCW3.value:
            self._write_ocw3(Ocw3(value & ~0b1000_0000))
        else:
            self._write_ocw2(Ocw2(value & ~0b0001_1111), value & LEVEL_BITS)
        self._update_output()

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return what is read; of what is written, what the chip expects: at the command port it tells by the bits."""
        if offset % REGISTERS == Offset.COMMAND:
            return "command" if is_write else "poll" if self._poll else "ISR" if self._read_isr else "IRR"
        if is_write and self._awaited:
            return self._awaited[0].name
        return "OCW1" if is_write else "IMR"

    def _read_poll_word(self) -> int:
        return 0 if self._next() is None else POLL_HIT | self.acknowledge()

    def _write_data(self, value: int) -> None:
        if not self._awaited:
            self._imr = value
            return
        match self._awaited.popleft():
            case _Awaited.ICW2:
                self._vector_base = value & VECTOR_BITS
            case _Awaited.ICW3 if self._is_master:
                self._slaves = value
            case _Awaited.ICW3:
                self._cascade_id = value & LEVEL_BITS
            case _Awaited.ICW4:
                self._icw4 = Icw4(value & ~0b1110_0000)

    def _write_icw1(self, icw1: Icw1) -> None:
        self._reset(icw1)
        self._initialised = True
        self._awaited = deque((_Awaited.ICW2,))
        if Icw1.SNGL not in icw1:
            self._awaited.append(_Awaited.ICW3)
        if Icw1.IC4 in icw1:
            self._awaited.append(_Awaited.ICW4)

    def _write_ocw2(self, command: Ocw2, level: int) -> None:
        match command:
            case Ocw2.EOI:
                self._end(self._highest_in_service())
            case Ocw2.ROTATE_ON_EOI:
                self._end(self._highest_in_service(), rotate=True)
            case Ocw2.SPECIFIC_EOI:
                self._end(level)
            case Ocw2.ROTATE_ON_SPECIFIC_EOI:
                self._end(level, rotate=True)
            case Ocw2.SET_PRIORITY:
                self._lowest = level
            case Ocw2.SET_ROTATE_IN_AEOI | Ocw2.CLEAR_ROTATE_IN_AEOI:
                self._rotate_in_aeoi = command is Ocw2.SET_ROTATE_IN_AEOI

    def _write_ocw3(self, ocw3: Ocw3) -> None:
        if Ocw3.ESMM in ocw3:
            self._special_mask = Ocw3.SMM in ocw3
        if Ocw3.RR in ocw3:
            self._read_isr = Ocw3.RIS in ocw3
        self._poll = Ocw3.P in ocw3

    # ---- priorities ----

    def _by_priority(self) -> list[int]:
        return [(self._lowest + 1 + place) % INPUTS for place in range(INPUTS)]

    @property
    def _holding_back(self) -> int:
        return self._isr & ~self._imr if self._special_mask else self._isr

    def _next(self) -> int | None:
        requests = self.irr & ~self._imr
        if not requests or not self.is_ready:
            return None
        # The master cannot see which of the slave's inputs it is: let the slave decide whether it comes first.
        may_interrupt_themselves = self._slaves if Icw4.SFNM in self._icw4 else 0
        for number in self._by_priority():
            bit = 1 << number
            if self._holding_back & bit:
                return number if requests & may_interrupt_themselves & bit else None
            if requests & bit:
                return number
        return None

    def _highest_in_service(self) -> int | None:
        # In special mask mode, the data sheet says, what is masked is not found by an EOI that names no level.
        return next((number for number in self._by_priority() if self._holding_back & 1 << number), None)

    def _end(self, number: int | None, *, rotate: bool = False) -> None:
        if number is None:
            return
        self._isr &= ~(1 << number)
        if rotate:
            self._lowest = number

    # ---- the output ----

    def _update_output(self) -> None:
        self._set_output(self._next() is not None)

    def _set_output(self, level: bool) -> None:
        if level != self.output:
            self.output = level
            self._on_output(level)


class Elcr(ByteRegisters, Stateful):
    """The Edge/Level Control Registers: a 1 makes an interrupt level-triggered. Offset 0 is IRQ 0 to 7, 1 the rest."""

    name = "elcr"
    remembers: ClassVar[Remembered] = {}  # the chips do

    def __init__(self, master: Pic, slave: Pic) -> None:
        self._chips = (master, slave)

    def read_register(self, offset: int) -> int:
        """Return which inputs are level-triggered."""
        return self._chips[offset % REGISTERS].elcr

    def write_register(self, offset: int, value: int) -> None:
        """Choose which inputs are level-triggered; some can only be edges."""
        self._chips[offset % REGISTERS].elcr = value & ELCR_WRITABLE[offset % REGISTERS]

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return which of the two it is."""
        return f"ELCR{offset % REGISTERS + 1}"


@dataclass(frozen=True, slots=True)
class _Input:
    chip: Pic
    number: int

    def set_level(self, level: bool) -> None:
        self.chip.set_line(self.number, level)


class PicPair(Stateful):
    """The pair. ``on_output`` hears of each change of the INTR pin; it must not call back into the pair."""

    name = "pic"
    remembers: ClassVar[Remembered] = {}
    parts = ("master", "slave", "elcr")

    def __init__(self, on_output: Callable[[bool], None]) -> None:
        self.master = Pic("pic master", on_output, is_master=True)
        self.slave = Pic("pic slave", lambda level: self.master.set_line(CASCADE, level), is_master=False)
        self.elcr = Elcr(self.master, self.slave)

    @property
    def output(self) -> bool:
        """Return the level of the INTR pin."""
        return self.master.output

    def line(self, irq: int) -> IrqLine:
        """Return the wire to interrupt ``irq``, 0 to 15 without 2.

        Raises: ConfigurationError if it is none of these.
        """
        if irq not in range(IRQS):
            raise ConfigurationError(f"there is no IRQ {irq}: the two 8259A have 0 to {IRQS - 1}")
        if irq == CASCADE:
            raise ConfigurationError(f"IRQ {CASCADE} is taken: the slave 8259A is wired to it; what was there is IRQ 9")
        return _Input(self.slave if irq >= INPUTS else self.master, irq % INPUTS)

    def acknowledge(self) -> int:
        """Do what the CPU's two INTA pulses do, and return the vector: a spurious one if nothing is requested.

        ICW3 decides who drives the bus with the vector. If it named a slave that does not know its own number, nobody
        does, and the vector is 0xff.
        """
        number = self.master.acknowledge()
        if number != CASCADE or not self.master.has_slave(number):
            return self.master.vector(number)
        if not self.slave.answers_to(number):
            return FLOATING
        return self.slave.vector(self.slave.acknowledge())
