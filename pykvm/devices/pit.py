"""An 8254 timer as a PC has it, and the port that it shares with the speaker.

    counter  port  GATE             OUT
    0        0x40  high             IRQ 0, whose controller takes the rising edge
    1        0x41  high             memory refresh, which nothing here needs
    2        0x42  port 0x61 bit 0  port 0x61 bit 5, and the speaker
    -        0x43  write only       control words

A control word says what a counter does (see ``pykvm.devices.pit_counter``), or is a command to latch:

      7   6   5   4   3   2   1   0
    +---+---+---+---+---+---+---+---+
    |counter| 0 | 0 | -   -   -   - |      counter latch: keep the count until it has been read
    +---+---+---+---+---+---+---+---+
    | 1 | 1 |/CO|/ST| C2| C1| C0| 0 |      read-back: keep count (/CO=0) or status (/ST=0) of counters C2 to C0
    +---+---+---+---+---+---+---+---+

Time is exact: the clock has ticked now * 1193182 // 10**9 times, however often and however late it is asked. The alarm
for IRQ 0 goes off at most once in ``ALARM_INTERVAL``, so that a guest with a count of 2 does not keep the host busy
596,591 times a second; edges that pass meanwhile become one, as do those that pass while an alarm is late. That OUT
has fallen shows at the line no later than before it rises again.

See: Intel 8254 data sheet (order 231164); IBM PC AT Technical Reference, "System Timers" and "Port B". Leaves out
the sound.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from pykvm.devices.clock import SECOND, Alarm, Clock
from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import TIME, Bool, Mask, Maybe
from pykvm.devices.irq import IrqLine
from pykvm.devices.pit_counter import Control, Counter
from pykvm.devices.state import Remembered, Stateful

__all__ = ["ALARM_INTERVAL", "PIT_HZ", "PORT", "PORT_B", "REGISTERS", "Offset", "Pit", "Port61", "PortB", "ReadBack"]

PORT, REGISTERS = 0x40, 4  # where a PC has the timer
PORT_B = 0x61
PIT_HZ = 1_193_182
ALARM_INTERVAL = 50_000  # nanoseconds

FLOATING = 0xFF  # what a read of the control port gives
READ_BACK = 3  # instead of a counter's number
REFRESH_TICKS = 18  # of the clock, between two refreshes of a PC's memory


class Offset(enum.IntEnum):
    """Where the registers are."""

    COUNTER_0 = 0
    COUNTER_1 = 1
    COUNTER_2 = 2
    CONTROL = 3


class ReadBack(enum.Flag):
    """The read-back command; see above."""

    COUNTER_0 = 1 << 1
    COUNTER_1 = 1 << 2
    COUNTER_2 = 1 << 3
    NO_STATUS = 1 << 4
    NO_COUNT = 1 << 5
    READ_BACK = 0b11 << 6


class PortB(enum.Flag):
    """Port 0x61, which IBM calls Port B.

       7     6    5      4      3     2       1      0
    +------+-----+----+-------+-----+-----+-------+-----+
    |PARITY|IOCHK|OUT2|REFRESH|ENABLES_OFF|SPEAKER|GATE2|
    +------+-----+----+-------+-----+-----+-------+-----+
    """

    GATE2 = 1 << 0
    SPEAKER = 1 << 1  # lets OUT2 through to the speaker
    ENABLES_OFF = 0b11 << 2  # of the checks of memory and of the I/O channel, which never fail here
    REFRESH = 1 << 4  # changes at each memory refresh
    OUT2 = 1 << 5
    IOCHK = 1 << 6
    PARITY = 1 << 7


WRITABLE = (PortB.GATE2 | PortB.SPEAKER | PortB.ENABLES_OFF).value


class Pit(ByteRegisters, Stateful):
    """The timer: ``clock`` is the time, ``irq0`` the wire that OUT of counter 0 drives.

    ``port61`` is a device of its own, of one register.
    """

    name = "pit"
    remembers: ClassVar[Remembered] = {"_irq0_level": Bool(), "_due": Maybe(TIME), "_earliest": TIME}
    parts = ("_counters", "port61")

    def __init__(self, clock: Clock, irq0: IrqLine) -> None:
        self._clock = clock
        self._irq0 = irq0
        self._counters = (Counter(gate=True), Counter(gate=True), Counter(gate=False))
        # OUT is high before it is programmed, of which the line is not told: nobody is to take that for an edge.
        self._irq0_level = True
        self._alarm: Alarm | None = None
        self._due: int | None = None  # when it goes off
        self._earliest = 0  # when the next one may
        self.port61 = Port61(self)

    def _restored(self) -> None:
        self._alarm = None if self._due is None else self._clock.call_at(self._due, self._on_alarm)

    # ---- the guest's side ----

    def read_register(self, offset: int) -> int:
        """Return a byte of a counter's count or status. The control port cannot be read."""
        number = offset % REGISTERS
        if number == Offset.CONTROL:
            return FLOATING
        self._settle()
        return self._counters[number].read()

    def write_register(self, offset: int, value: int) -> None:
        """Take a byte of a count, or a control word."""
        number = offset % REGISTERS
        self._settle()
        if number == Offset.CONTROL:
            self._write_control(value)
        else:
            self._counters[number].write(value)
        self._drive_irq0()
        self._arm()

    def _write_control(self, value: int) -> None:
        number = value >> 6
        if number == READ_BACK:
            self._read_back(ReadBack(value & ~1))
        elif value & Control.ACCESS.value:
            self._counters[number].program(value)
        else:
            self._counters[number].latch_count()

    def _read_back(self, command: ReadBack) -> None:
        for counter, flag in zip(
            self._counters, (ReadBack.COUNTER_0, ReadBack.COUNTER_1, ReadBack.COUNTER_2), strict=True
        ):
            if flag not in command:
                continue
            if ReadBack.NO_COUNT not in command:
                counter.latch_count()
            if ReadBack.NO_STATUS not in command:
                counter.latch_status()

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return which counter it is."""
        number = offset % REGISTERS
        return "control word" if number == Offset.CONTROL else f"counter {number}"

    # ---- the pins ----

    @property
    def ticks(self) -> int:
        """Return how often the input clock has ticked."""
        return self._clock.now() * PIT_HZ // SECOND

    def output(self, number: int) -> bool:
        """Return the level of OUT of counter ``number``, 0 to 2."""
        self._settle()
        return self._counters[number].output

    def set_gate2(self, level: bool) -> None:
        """Drive the pin GATE of counter 2 high or low."""
        self._settle()
        self._counters[2].set_gate(level)

    # ---- time, and IRQ 0 ----

    def _settle(self) -> None:
        tick = self.ticks
        rose, _, _ = (counter.advance(tick) for counter in self._counters)
        if rose:
            self._set_irq0(False)
            self._set_irq0(True)
        self._drive_irq0()

    def _drive_irq0(self) -> None:
        self._set_irq0(self._counters[0].output)

    def _set_irq0(self, level: bool) -> None:
        if level != self._irq0_level:
            self._irq0_level = level
            self._irq0.set_level(level)

    def _arm(self) -> None:
        rise = self._counters[0].next_rise()
        # Rounded up: at that nanosecond the tick has happened.
        due = None if rise is None else max(-(-rise * SECOND // PIT_HZ), self._earliest)
        if due == self._due:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._due = due
        self._alarm = None if due is None else self._clock.call_at(due, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = self._due = None
        self._earliest = self._clock.now() + ALARM_INTERVAL
        self._settle()
        self._arm()


class Port61(ByteRegisters, Stateful):
    """Port 0x61 of a PC: GATE and OUT of counter 2, the speaker, and the refresh toggle by which old software waits."""

    name = "port 0x61"
    remembers: ClassVar[Remembered] = {"_written": Mask(WRITABLE)}

    def __init__(self, pit: Pit) -> None:
        self._pit = pit
        self._written = 0

    def read_register(self, offset: int) -> int:
        """Return what was written, with OUT2 and REFRESH as they are now."""
        value = self._written
        if self._pit.output(Offset.COUNTER_2):
            value |= PortB.OUT2.value
        if self._pit.ticks // REFRESH_TICKS % 2:
            value |= PortB.REFRESH.value
        return value

    def write_register(self, offset: int, value: int) -> None:
        """Set GATE2, the speaker's gate and the enables."""
        self._written = value & WRITABLE
        self._pit.set_gate2(bool(value & PortB.GATE2.value))

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return nothing: it is one register."""
        return ""
