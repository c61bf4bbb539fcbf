"""An MC146818 real-time clock and the PC's CMOS memory, register by register.

    port    write                                   read
    0x70    which register; bit 7 masks the NMI     all ones
    0x71    that register                           that register

    register 0-9, 0x32   the time, and the alarm: see ``pykvm.devices.rtctime``
    register A-D         control and status, drawn below
    the others           memory that a battery keeps; a PC's firmware leaves the size of RAM there

The clock is a divider that counts a 32.768 kHz crystal; once a second it starts an update, in which the bytes of the
time go on by one second. Updates take no time here. See: MC146818A data sheet (Motorola). Leaves out other crystals
(with any time base but the PC's the divider stands still), the square wave and daylight saving time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import ClassVar

from pykvm.devices import rtctime
from pykvm.devices.clock import SECOND, Alarm, Clock
from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import TIME, Bool, Mask, Maybe, Memory, Number
from pykvm.devices.irq import IrqLine
from pykvm.devices.rtctime import Byte, Format
from pykvm.devices.state import Remembered, Stateful
from pykvm.errors import ConfigurationError
from pykvm.memory import layout
from pykvm.units import KiB, MiB

__all__ = [
    "IRQ",
    "PORT",
    "REGISTERS",
    "SIZE",
    "UIP_TIME",
    "RegA",
    "RegB",
    "RegC",
    "RegD",
    "Register",
    "Rtc",
    "cmos_memory",
]

PORT = 0x70  # where a PC has it
REGISTERS = 2
IRQ = 8
SIZE = 128  # bytes of CMOS memory, those of the clock included
UIP_TIME = 244_000  # ns between UIP and the update that it announces
CRYSTAL = 32_768  # Hz


class Register(enum.IntEnum):
    """The registers that are not the time: their numbers."""

    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D


class RegA(enum.Flag):
    """Register A. A write does not change UIP.

      7     6     5     4     3     2     1     0
    +-----+-----+-----+-----+-----+-----+-----+-----+
    | UIP | DV2 | DV1 | DV0 | RS3 | RS2 | RS1 | RS0 |
    +-----+-----+-----+-----+-----+-----+-----+-----+
    """

    RS0 = 1 << 0  # RS: rate of the periodic interrupt; 0 is none, 3 is 8192 Hz, 6 is 1024 Hz, 15 is 2 Hz
    RS1 = 1 << 1
    RS2 = 1 << 2
    RS3 = 1 << 3
    DV0 = 1 << 4  # DV: 010 counts a 32.768 kHz crystal, 11x holds the divider at 0
    DV1 = 1 << 5
    DV2 = 1 << 6
    UIP = 1 << 7  # an update is near: the time is not to be read now


class RegB(enum.Flag):
    """Register B.

      7     6     5     4     3     2     1     0
    +-----+-----+-----+-----+-----+-----+-----+-----+
    | SET | PIE | AIE | UIE |SQWE | DM  |24/12| DSE |
    +-----+-----+-----+-----+-----+-----+-----+-----+
    """

    DSE = 1 << 0  # daylight saving; kept, without effect
    HOURS24 = 1 << 1  # off: 12 hours and p.m.
    DM = 1 << 2  # binary; off: BCD
    SQWE = 1 << 3  # square wave output; kept, without effect
    UIE = 1 << 4  # interrupt after each update
    AIE = 1 << 5  # interrupt when the time meets the alarm
    PIE = 1 << 6  # periodic interrupt
    SET = 1 << 7  # no updates: the guest sets the time; setting it takes UIE away


class RegC(enum.Flag):
    """Register C: what has happened, enabled or not. Reading clears it all; it cannot be written.

      7     6     5     4    3   2   1   0
    +-----+-----+-----+----+---+---+---+---+
    |IRQF | PF  | AF  | UF | 0 | 0 | 0 | 0 |
    +-----+-----+-----+----+---+---+---+---+
    """

    UF = 1 << 4  # an update; each of the three has the place of its enable bit in register B
    AF = 1 << 5  # the alarm
    PF = 1 << 6  # a period
    IRQF = 1 << 7  # one of them is enabled: the interrupt line is high


class RegD(enum.Flag):
    """Register D; it cannot be written.

      7    6   5   4   3   2   1   0
    +----+---+---+---+---+---+---+---+
    |VRT | 0 | 0 | 0 | 0 | 0 | 0 | 0 |
    +----+---+---+---+---+---+---+---+
    """

    VRT = 1 << 7  # valid RAM and time: the battery is good


# What every access needs, as plain numbers: an enum's value costs more than the access.
A, B, C, D = (int(register) for register in Register)
UIP, RATE = RegA.UIP.value, (RegA.RS3 | RegA.RS2 | RegA.RS1 | RegA.RS0).value
DIVIDER, RUNNING = (RegA.DV2 | RegA.DV1 | RegA.DV0).value, RegA.DV1.value
SET, PIE, AIE, UIE = RegB.SET.value, RegB.PIE.value, RegB.AIE.value, RegB.UIE.value
PF, AF, UF, IRQF = RegC.PF.value, RegC.AF.value, RegC.UF.value, RegC.IRQF.value
NMI_MASK, INDEX = 0x80, SIZE - 1  # in port 0x70
SECONDS_BITS = 0x7F  # the data sheet: bit 7 of the seconds cannot be written

REGISTER_NAMES = {
    **{int(byte): byte.name.lower().replace("_", " ") for byte in Byte},
    **{int(register): f"register {register.name}" for register in Register},
}

# As a PC's firmware leaves them: the divider runs, 1024 Hz; BCD, 24 hours.
FIRMWARE_A, FIRMWARE_B = (RegA.DV1 | RegA.RS2 | RegA.RS1).value, RegB.HOURS24.value


class Rtc(ByteRegisters, Stateful):
    """A real-time clock that shows ``start`` (UTC) at the clock's 0, until the guest sets it.

    ``irq8`` is its interrupt line; it is set only when its level changes. ``ram`` is what the CMOS memory holds: bytes
    by register number (see ``cmos_memory``). ``on_alarm`` is called when the alarm takes the line high, which is what
    can wake a sleeping machine.

    Raises: ConfigurationError if ``ram`` has a value or a place that the CMOS memory has not.
    """

    name = "rtc"
    remembers: ClassVar[Remembered] = {
        "_index": Number(INDEX),
        "_nmi_masked": Bool(),
        "_flags": Mask(PF | AF | UF),
        "_level": Bool(),
        "_alarm_level": Bool(),
        "_due": Maybe(TIME),
        "_cmos": Memory(SIZE),
        "_zero": TIME,
        "_second": TIME,
        "_period": TIME,
    }

    def __init__(
        self,
        clock: Clock,
        irq8: IrqLine,
        start: datetime,
        ram: Mapping[int, int] | None = None,
        on_alarm: Callable[[], None] | None = None,
    ) -> None:
        self._clock = clock
        self._irq8 = irq8
        self._on_alarm = on_alarm
        self._index = 0
        self._nmi_masked = False
        self._flags = 0  # PF, AF and UF of register C
        self._level = False
        self._alarm_level = False  # AF and AIE
        self._due: int | None = None  # when the clock is to call
        self._alarm: Alarm | None = None
        self._cmos = bytearray(SIZE)
        self._cmos[A], self._cmos[B], self._cmos[D] = FIRMWARE_A, FIRMWARE_B, RegD.VRT.value
        for place, value in (ram or {}).items():
            self._cmos[_checked_place(place)] = _checked_value(place, value)
        utc = start if start.tzinfo is None else start.astimezone(UTC)
        rtctime.set_time(self._cmos, self._format, utc)
        self._zero = -utc.microsecond * 1000  # when the divider was 0
        self._second, self._period = 0, 0  # how many updates and periods it had given at the last look
        self._catch_up()
        self._flags = 0

    def _restored(self) -> None:
        self._alarm = None if self._due is None else self._clock.call_at(self._due, self._wake)

    @property
    def nmi_masked(self) -> bool:
        """Return whether bit 7 of port 0x70 keeps NMIs from the CPU."""
        return self._nmi_masked

    # ---- the guest's side ----

    def read_register(self, offset: int) -> int:
        """Return the port at ``offset``. There is one address line: the two ports repeat at higher offsets."""
        if offset & 1 == 0:
            return 0xFF  # the chip has no way to tell
        self._catch_up()
        return self._read_cmos(self._index)

    def write_register(self, offset: int, value: int) -> None:
        """Write ``value`` into the port at ``offset``. Registers C and D cannot be written."""
        if offset & 1 == 0:
            self._index, self._nmi_masked = value & INDEX, bool(value & NMI_MASK)
            return
        self._catch_up()
        self._write_cmos(self._index, value)
        self._update_interrupt()

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the register that the index selects."""
        if offset & 1 == 0:
            return "index"
        if self._index in REGISTER_NAMES:
            return REGISTER_NAMES[self._index]
        return f"CMOS {self._index:#04x}"

    def _read_cmos(self, index: int) -> int:
        if index == A:
            return self._cmos[A] | (UIP if self._update_is_near() else 0)
        if index == C:
            return self._read_c()
        return self._cmos[index]

    def _read_c(self) -> int:
        value = self._flags | (IRQF if self._level else 0)
        self._flags = 0
        self._update_interrupt()
        return value

    def _write_cmos(self, index: int, value: int) -> None:
        if index == A:
            self._write_a(value & ~UIP)
        elif index == B:
            self._cmos[B] = value & ~UIE if value & SET else value
        elif index == Byte.SECONDS:
            self._cmos[index] = value & SECONDS_BITS
        elif index not in (C, D):
            self._cmos[index] = value

    def _write_a(self, value: int) -> None:
        was_running = self._is_running
        self._cmos[A] = value
        if self._is_running and not was_running:
            # The data sheet: the first update comes half a second after the divider is let go.
            self._zero = self._clock.now() - SECOND // 2
        self._look_at_divider()

    # ---- the divider ----

    @property
    def _is_running(self) -> bool:
        return self._cmos[A] & DIVIDER == RUNNING

    @property
    def _updates(self) -> bool:
        return self._is_running and not self._cmos[B] & SET

    @property
    def _format(self) -> Format:
        return Format(bool(self._cmos[B] & RegB.DM.value), bool(self._cmos[B] & RegB.HOURS24.value))

    def _catch_up(self) -> None:
        """Do what the chip has done by itself since the last look: updates, and their flags."""
        if not self._is_running:
            return
        second, period, flags = self._second, self._period, self._flags
        self._look_at_divider()
        if self._period > period:
            self._flags |= PF
        if self._second > second and self._updates:
            self._update(self._second - second)
        if self._flags != flags:
            self._update_interrupt()

    def _look_at_divider(self) -> None:
        elapsed = self._clock.now() - self._zero
        self._second = elapsed // SECOND
        self._period = (elapsed * CRYSTAL // SECOND) >> self._period_shift if self._cmos[A] & RATE else 0

    def _update(self, seconds: int) -> None:
        alarm = rtctime.seconds_to_alarm(self._cmos, self._format)
        if alarm is not None and alarm <= seconds:
            self._flags |= AF
        self._flags |= UF
        rtctime.advance(self._cmos, self._format, seconds)

    def _update_is_near(self) -> bool:
        return self._updates and (self._clock.now() - self._zero) % SECOND >= SECOND - UIP_TIME

    @property
    def _period_shift(self) -> int:
        # A period is 1 << shift ticks of the crystal. The table in the data sheet: rates 1 and 2, which would be faster
        # than this crystal allows, are those of 8 and 9.
        rate = self._cmos[A] & RATE
        return rate + 6 if rate <= 2 else rate - 1

    # ---- interrupts ----

    def _update_interrupt(self) -> None:
        pending = self._flags & self._cmos[B]  # an interrupt's flag and its enable bit have the same place
        level, alarm_level = bool(pending & (PF | AF | UF)), bool(pending & AF)
        alarm_rises = alarm_level and not self._alarm_level
        self._alarm_level = alarm_level
        if level != self._level:
            self._level = level
            self._irq8.set_level(level)
        self._arrange_wake_up()
        if alarm_rises and self._on_alarm is not None:
            self._on_alarm()

    def _arrange_wake_up(self) -> None:
        """Have the clock call when the next enabled interrupt is due.

        An earlier call than needed is left as it is, and finds nothing to do: a guest that enables and disables an
        interrupt again and again must not fill the clock's list of calls. While an interrupt's flag is set its next
        one changes nothing, and so the calls are never more than the guest serves.
        """
        due = self._next_interrupt()
        if due is None or (self._due is not None and self._due <= due):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._due, self._alarm = due, self._clock.call_at(due, self._wake)

    def _wake(self) -> None:
        self._due = self._alarm = None
        self._catch_up()
        self._update_interrupt()

    def _next_interrupt(self) -> int | None:
        """Return when the next interrupt that is enabled, and not pending already, comes: ns, or None."""
        if not self._is_running:
            return None
        awaited = self._cmos[B] & ~self._flags
        due = []
        if awaited & PIE and self._cmos[A] & RATE:
            ticks = (self._period + 1) << self._period_shift
            due.append(self._zero - (-ticks * SECOND // CRYSTAL))  # rounded up
        if awaited & UIE and self._updates:
            due.append(self._zero + (self._second + 1) * SECOND)
        if awaited & AIE and self._updates:
            alarm = rtctime.seconds_to_alarm(self._cmos, self._format)
            if alarm is not None:
                due.append(self._zero + (self._second + alarm) * SECOND)
        return min(due, default=None)


def cmos_memory(ram_size: int, cpus: int) -> dict[int, int]:
    """Return what a PC's firmware leaves in CMOS memory about ``ram_size`` bytes of RAM and the number of CPUs.

        0x15, 0x16               KiB below 640 KiB
        0x17, 0x18; 0x30, 0x31   KiB from 1 MiB on, as far as 16 bits go
        0x34, 0x35               64 KiB from 16 MiB up to the MMIO hole
        0x5b, 0x5c, 0x5d         64 KiB from 4 GiB on
        0x5f                     CPUs beside the first

    The first two are a PC's, the others those of QEMU and Bochs, which SeaBIOS and some kernels read.

    Raises: ConfigurationError if there is no RAM, or not 1 to 256 CPUs.
    """
    if ram_size <= 0 or not 1 <= cpus <= 256:
        raise ConfigurationError(f"no PC has {cpus} CPUs and {ram_size} bytes of RAM: have 1 to 256 CPUs, and some RAM")
    low = min(ram_size, layout.MMIO_HOLE_START)
    base = min(low, 640 * KiB) // KiB
    extended = min(max(low - MiB, 0) // KiB, 0xFFFF)
    above_16m = max(low - 16 * MiB, 0) // (64 * KiB)
    above_4g = min((ram_size - low) // (64 * KiB), 0xFF_FFFF)
    numbers = ((0x15, base, 2), (0x17, extended, 2), (0x30, extended, 2), (0x34, above_16m, 2), (0x5B, above_4g, 3))
    memory = {0x5F: cpus - 1}
    for place, number, size in numbers:
        memory |= dict(enumerate(number.to_bytes(size, "little"), place))
    return memory


def _checked_place(place: int) -> int:
    if Register.D < place < SIZE and place != Byte.CENTURY:
        return place
    raise ConfigurationError(
        f"CMOS memory has no byte {place:#x} to give: it has 0xe-{SIZE - 1:#x} without the century, {Byte.CENTURY:#x}"
    )


def _checked_value(place: int, value: int) -> int:
    if 0 <= value <= 0xFF:
        return value
    raise ConfigurationError(f"{value} does not fit into byte {place:#x} of CMOS memory: it takes 0 to 255")
