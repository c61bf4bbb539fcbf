"""ACPI's fixed hardware: power management events, sleeping, the PM timer, and the port that hands them over.

    port     register       writing
    0x600    PM1_STS        a 1 takes that bit away, a 0 leaves it
    0x602    PM1_EN         which of them interrupt
    0x604    PM1_CNT        SCI_EN, and going to sleep
    0x608    PM_TMR         nothing: 24 bits that count at 3.579545 MHz, from the machine's start

    0xb2     SMI_CMD        ACPI_ENABLE or ACPI_DISABLE sets or clears SCI_EN at once: here is no firmware in between
    0xb3     APM status     kept, without effect

The SCI, an interrupt by level, is high while SCI_EN is on and a bit is set in both PM1_STS and PM1_EN. All registers
take accesses of any width. See: ACPI specification 4.0, section 4.7.3. Leaves out general-purpose events, S1, S2 and
S4, what a bus master or a global lock would report (BM_STS, GBL_STS never come), and the reset register, which is not
power management's. While the machine sleeps the clock must go on, or nothing but the button can wake it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.clock import SECOND, Clock
from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import TIME, Bool, Mask, Maybe, Memory, Number
from pykvm.devices.irq import IrqLine
from pykvm.devices.state import Remembered, Stateful
from pykvm.memory import platform

__all__ = ["FREQUENCY", "REGISTERS", "SMI_REGISTERS", "AcpiPm", "Offset", "Pm1Cnt", "Pm1En", "Pm1Sts", "SmiCommand"]

REGISTERS = 12  # ports from PM1_EVENT on
SMI_REGISTERS = 2  # ports from SMI_COMMAND on
FREQUENCY = 3_579_545  # Hz: three times what the PIT counts
TIMER_BITS = 24


class Offset(enum.IntEnum):
    """Where the registers are, from PM1_EVENT on; what is between PM1_CNT and PM_TMR reads as 0."""

    PM1_STS = 0
    PM1_EN = 2
    PM1_CNT = platform.PM1_CONTROL - platform.PM1_EVENT
    PM_TMR = platform.PM_TIMER - platform.PM1_EVENT


class Pm1Sts(enum.Flag):
    """PM1 Status.

     15    14..11   10     9      8     7 6    5      4    3..1   0
    +----+--------+-----+------+------+-----+------+-----+-----+-----+
    |WAK |   0    | RTC |SLPBTN|PWRBTN|  0  | GBL  | BM  |  0  | TMR |
    +----+--------+-----+------+------+-----+------+-----+-----+-----+
    """

    TMR_STS = 1 << 0  # the highest bit of PM_TMR has changed, one way or the other
    BM_STS = 1 << 4
    GBL_STS = 1 << 5
    PWRBTN_STS = 1 << 8
    SLPBTN_STS = 1 << 9
    RTC_STS = 1 << 10  # the RTC's alarm
    WAK_STS = 1 << 15  # the machine was asleep; it interrupts nobody


class Pm1En(enum.Flag):
    """PM1 Enable: the same places as in PM1 Status.

     15..11    10     9      8     7 6    5    4..1   0
    +-------+-----+------+------+-----+------+-----+-----+
    |   0   | RTC |SLPBTN|PWRBTN|  0  | GBL  |  0  | TMR |
    +-------+-----+------+------+-----+------+-----+-----+
    """

    TMR_EN = 1 << 0
    GBL_EN = 1 << 5
    PWRBTN_EN = 1 << 8
    SLPBTN_EN = 1 << 9
    RTC_EN = 1 << 10  # and it may wake the machine


class Pm1Cnt(enum.Flag):
    """PM1 Control.

    15 14   13    12..10   9..3    2       1       0
    +-----+------+-------+------+-------+------+------+
    |  0  |SLP_EN|SLP_TYP|  0   |GBL_RLS|BM_RLD|SCI_EN|
    +-----+------+-------+------+-------+------+------+
    """

    SCI_EN = 1 << 0  # events are the kernel's (an SCI), not the firmware's (an SMI)
    BM_RLD = 1 << 1  # kept, without effect
    GBL_RLS = 1 << 2  # tells the firmware that the global lock is free; reads as 0, there is none to tell
    SLP_TYP0 = 1 << 10  # SLP_TYP: which sleep, by the numbers in the DSDT
    SLP_TYP1 = 1 << 11
    SLP_TYP2 = 1 << 12
    SLP_EN = 1 << 13  # go to sleep; reads as 0


SLP_TYP_SHIFT = 10
SLEEP_STATES = {platform.SLP_TYP_S3: 3, platform.SLP_TYP_S5: 5}

# What every access needs, as plain numbers: an enum's value costs more than the access.

STS_BITS, EN_BITS = sum(flag.value for flag in Pm1Sts), sum(flag.value for flag in Pm1En)
SLP_TYP = (Pm1Cnt.SLP_TYP0 | Pm1Cnt.SLP_TYP1 | Pm1Cnt.SLP_TYP2).value
CNT_BITS = (Pm1Cnt.SCI_EN | Pm1Cnt.BM_RLD).value | SLP_TYP
SCI_EN, SLP_EN, TMR_EN, TMR_STS = Pm1Cnt.SCI_EN.value, Pm1Cnt.SLP_EN.value, Pm1En.TMR_EN.value, Pm1Sts.TMR_STS.value
HALF = 1 << TIMER_BITS - 1  # ticks between two changes of PM_TMR's highest bit


REGISTER_NAMES: dict[int, str] = {register: register.name for register in Offset}


class AcpiPm(Stateful):
    """The power management block, at ``platform.PM1_EVENT``; ``smi_command`` is the device that belongs beside it.

    ``sci`` is the interrupt line (``platform.SCI_IRQ``); it is set only when its level changes. ``on_sleep`` is called
    with 3 or 5 when the guest asks for S3 or S5, after the write has had its other effects; with the SLP_TYP of any
    other state, nothing happens.
    """

    name = "acpi pm"
    remembers: ClassVar[Remembered] = {
        "_sts": Mask(STS_BITS),
        "_en": Mask(EN_BITS),
        "_cnt": Mask(CNT_BITS),
        "_level": Bool(),
        "_halves": Number(2**31),  # of which the nanoseconds are a TIME
        "_due": Maybe(TIME),
    }
    parts = ("smi_command",)

    def __init__(self, clock: Clock, sci: IrqLine, on_sleep: Callable[[int], None]) -> None:
        self._clock = clock
        self._sci = sci
        self._on_sleep = on_sleep
        self._sts = self._en = self._cnt = 0
        self._level = False
        self._halves = self._ticks() // HALF  # how often PM_TMR's highest bit had changed at the last look
        self._due: int | None = None  # when the clock is to call
        self.smi_command = SmiCommand(self._set_sci_enable)

    def _restored(self) -> None:
        if self._due is not None:
            self._clock.call_at(self._due, self._timer_changed)

    # ---- the machine's side ----

    def press_power_button(self) -> None:
        """Press the button. A guest that does not listen takes no notice; a machine asleep is to be woken, too."""
        self._raise(Pm1Sts.PWRBTN_STS)

    def rtc_alarm(self) -> None:
        """Report that the RTC's alarm has come (``Rtc``'s ``on_alarm``), to a machine that is awake."""
        self._raise(Pm1Sts.RTC_STS)

    @property
    def wakes_by_rtc(self) -> bool:
        """Return whether the guest lets the RTC's alarm wake it: RTC_EN. The power button always may."""
        return bool(self._en & Pm1En.RTC_EN.value)

    @property
    def pending(self) -> Pm1Sts:
        """Return the events that have come, are enabled, and were not taken away: a guest does not sleep on these."""
        return Pm1Sts(self._sts & self._en)

    def wake(self, by_rtc: bool) -> None:
        """Report why the machine is awake again: the RTC's alarm, or else the power button. All else is kept."""
        self._raise(Pm1Sts.WAK_STS | (Pm1Sts.RTC_STS if by_rtc else Pm1Sts.PWRBTN_STS))

    # ---- the guest's side ----

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, of registers as they all are at one moment."""
        ticks = self._look_at_timer()
        registers = struct.pack("<HHHxxI", self._sts, self._en, self._cnt, ticks % (1 << TIMER_BITS))
        return registers[offset : offset + size].ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Write the bytes from ``offset`` on; those of PM_TMR cannot be written."""
        self._look_at_timer()
        sleep = False
        for position, value in enumerate(data, offset):
            register, shift = position & ~1, 8 * (position & 1)
            if register == Offset.PM1_STS:
                self._sts &= ~(value << shift)
            elif register == Offset.PM1_EN:
                self._en = _with_byte(self._en, value, shift) & EN_BITS
            elif register == Offset.PM1_CNT:
                self._cnt = _with_byte(self._cnt, value, shift) & CNT_BITS
                sleep |= bool(value << shift & SLP_EN)
        self._update_sci()
        if sleep:
            self._sleep()

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the register that has the byte at ``offset``."""
        return "PM_TMR" if offset & ~3 == Offset.PM_TMR else REGISTER_NAMES.get(offset & ~1, f"+{offset:#x}")

    # ---- inside ----

    def _sleep(self) -> None:
        state = SLEEP_STATES.get((self._cnt & SLP_TYP) >> SLP_TYP_SHIFT)
        if state is not None:
            self._on_sleep(state)

    def _set_sci_enable(self, on: bool) -> None:
        self._cnt = self._cnt | SCI_EN if on else self._cnt & ~SCI_EN
        self._look_at_timer()
        self._update_sci()

    def _raise(self, status: Pm1Sts) -> None:
        self._sts |= status.value
        self._update_sci()

    def _ticks(self) -> int:
        return self._clock.now() * FREQUENCY // SECOND

    def _look_at_timer(self) -> int:
        ticks = self._ticks()
        halves = ticks // HALF
        if halves != self._halves:
            self._halves = halves
            self._sts |= TMR_STS
        return ticks

    def _update_sci(self) -> None:
        # WAK_STS has no enable bit, and so takes no part.
        level = bool(self._cnt & SCI_EN and self._sts & self._en)
        if level != self._level:
            self._level = level
            self._sci.set_level(level)
        self._arrange_call()

    def _arrange_call(self) -> None:
        """Have the clock call when TMR_STS is set next, if that is to interrupt and is not set already.

        A call that is no longer needed is left to come, and finds nothing to do: it is never more than one.
        """
        if self._due is not None or not (self._cnt & SCI_EN and self._en & TMR_EN and not self._sts & TMR_STS):
            return
        tick = (self._halves + 1) * HALF
        self._due = -(-tick * SECOND // FREQUENCY)  # rounded up
        self._clock.call_at(self._due, self._timer_changed)

    def _timer_changed(self) -> None:
        self._due = None
        self._look_at_timer()
        self._update_sci()


class SmiCommand(ByteRegisters, Stateful):
    """SMI_CMD and the APM status port, at ``platform.SMI_COMMAND``; ``set_sci_enable`` hears of ACPI's commands."""

    name = "smi command"
    remembers: ClassVar[Remembered] = {"_kept": Memory(SMI_REGISTERS)}

    def __init__(self, set_sci_enable: Callable[[bool], None]) -> None:
        self._set_sci_enable = set_sci_enable
        self._kept = bytearray(SMI_REGISTERS)

    def read_register(self, offset: int) -> int:
        """Return what was written last."""
        return self._kept[offset & 1]

    def write_register(self, offset: int, value: int) -> None:
        """Keep ``value``; at SMI_CMD, do as it says. A command that is not ACPI's has no effect."""
        self._kept[offset & 1] = value
        if offset & 1 == 0 and value in (platform.ACPI_ENABLE, platform.ACPI_DISABLE):
            self._set_sci_enable(value == platform.ACPI_ENABLE)

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return which of the two it is."""
        return "APM status" if offset & 1 else "SMI_CMD"


def _with_byte(register: int, value: int, shift: int) -> int:
    return register & ~(0xFF << shift) | value << shift
