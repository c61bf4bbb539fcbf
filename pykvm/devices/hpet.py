"""The HPET's main counter: 100 million ticks a second, in 64 bits of memory.

    offset   register
    0x000    GCAP_ID      capabilities, and how long a tick is
    0x010    GEN_CONF     whether the counter runs
    0x020    GINTR_STA    which timers have interrupted: none
    0x0f0    MAIN_CNT     the counter; it can be written while it stands
    0x100    TIM0_CONF    the one timer, which has no interrupt to be routed to
    0x108    TIM0_COMP    its comparator

See: IA-PC HPET Specification 1.0a, chapter 2.3. Leaves out interrupts: a guest finds a clock here, and looks for its
timer interrupts elsewhere (the specification has at least three timers, and here is the one that GCAP_ID cannot deny).
"""

from __future__ import annotations

import enum
from typing import ClassVar

from pykvm.devices.clock import SECOND, Clock
from pykvm.devices.fields import TIME, Mask, Number
from pykvm.devices.state import Remembered, Stateful
from pykvm.memory import platform

__all__ = ["BASE", "FREQUENCY", "GCAP_ID", "PERIOD", "SIZE", "Capability", "Configuration", "Hpet", "Offset"]

BASE = platform.HPET
SIZE = 0x400  # bytes
FREQUENCY = 100_000_000  # ticks a second
PERIOD = 10**15 // FREQUENCY  # femtoseconds a tick


class Offset(enum.IntEnum):
    """Where the registers are, from ``BASE`` on. Each has 8 bytes, which can be accessed as two times 4."""

    GCAP_ID = 0x000
    GEN_CONF = 0x010
    GINTR_STA = 0x020
    MAIN_CNT = 0x0F0
    TIM0_CONF = 0x100
    TIM0_COMP = 0x108


class Capability(enum.Flag):
    """General Capabilities and ID Register, the bits that stand for themselves.

     63              32 31          16     15    14     13     12           8 7       0
    +------------------+--------------+---------+---+---------+--------------+---------+
    |COUNTER_CLK_PERIOD|  VENDOR_ID   |LEG_ROUTE| 0 |SIZE_CAP |   NUM_TIM    | REV_ID  |
    +------------------+--------------+---------+---+---------+--------------+---------+
    """

    SIZE_CAP = 1 << 13  # the counter has 64 bits
    LEG_ROUTE = 1 << 15  # can take the places of PIT and RTC


class Configuration(enum.Flag):
    """General Configuration Register; LEG_RT cannot be set here."""

    ENABLE = 1 << 0  # the counter runs
    LEG_RT = 1 << 1  # timers take the places of PIT and RTC


REVISION, VENDOR, VENDOR_SHIFT = 0x01, 0x8086, 16
PERIOD_SHIFT = 32
LAST_TIMER = 0  # NUM_TIM: the number of the last timer, not how many there are
GCAP_ID = PERIOD << PERIOD_SHIFT | VENDOR << VENDOR_SHIFT | Capability.SIZE_CAP.value | LAST_TIMER << 8 | REVISION

ENABLE = Configuration.ENABLE.value
TIMER_SIZE_CAP = 1 << 5  # TIM0_CONF: the comparator has 64 bits; no interrupt route in bits 63 to 32
REGISTER_SIZE = 8  # bytes
COUNTER_BITS = 2**64 - 1
REGISTER_NAMES: dict[int, str] = {register: register.name for register in Offset}
TICK = SECOND // FREQUENCY  # nanoseconds


class Hpet(Stateful):
    """The HPET; ``clock`` says how late it is. After reset the counter stands at 0."""

    name = "HPET"
    remembers: ClassVar[Remembered] = {
        "_configuration": Mask(ENABLE),
        "_counter": Number(COUNTER_BITS),
        "_started": TIME,
        "_comparator": Number(COUNTER_BITS),
    }

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._configuration = 0
        self._counter = 0  # when it was last set, or stopped
        self._started = 0  # the clock's time when it was last started
        self._comparator = COUNTER_BITS

    @property
    def counter(self) -> int:
        """Return the main counter: ticks, modulo 2**64."""
        if not self._configuration & ENABLE:
            return self._counter
        return self._counter + (self._clock.now() - self._started) // TICK & COUNTER_BITS

    # ---- the guest's side ----

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes: of one register, unless the access crosses into the next."""
        answer = b""
        while len(answer) < size:
            register, position = self._locate(offset + len(answer))
            answer += self._read(register).to_bytes(REGISTER_SIZE, "little")[position:]
        return answer[:size]

    def write(self, offset: int, data: bytes) -> None:
        """Write as much of the registers as ``data`` has; the other bytes of them stay."""
        while data:
            register, position = self._locate(offset)
            part = data[: REGISTER_SIZE - position]
            value = bytearray(self._read(register).to_bytes(REGISTER_SIZE, "little"))
            value[position : position + len(part)] = part
            self._write(register, int.from_bytes(value, "little"))
            offset, data = offset + len(part), data[len(part) :]

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the register, and its half if that is the high one."""
        register, position = self._locate(offset)
        name = REGISTER_NAMES.get(register, f"+{register:#05x}")
        return f"{name} high" if position >= REGISTER_SIZE // 2 else name

    def _locate(self, offset: int) -> tuple[int, int]:
        """Return where the register is that has ``offset``, and which of its bytes that is."""
        position = offset % REGISTER_SIZE
        return offset - position, position

    def _read(self, register: int) -> int:
        match register:
            case Offset.GCAP_ID:
                return GCAP_ID
            case Offset.GEN_CONF:
                return self._configuration
            case Offset.MAIN_CNT:
                return self.counter
            case Offset.TIM0_CONF:
                return TIMER_SIZE_CAP
            case Offset.TIM0_COMP:
                return self._comparator
            case _:
                return 0

    def _write(self, register: int, value: int) -> None:
        match register:
            case Offset.GEN_CONF:
                self._configure(value & ENABLE)
            case Offset.MAIN_CNT if not self._configuration & ENABLE:
                self._counter = value
            case Offset.TIM0_COMP:
                self._comparator = value

    def _configure(self, configuration: int) -> None:
        if configuration == self._configuration:
            return
        self._counter, self._started = self.counter, self._clock.now()
        self._configuration = configuration
