"""The time in an MC146818's bytes: how it is written there, how it goes on, and when it meets the alarm.

    byte   0     1     2     3     4     5     6     7     8     9    0x32
         +-----+-----+-----+-----+-----+-----+-----+-----+-----+----+----+
         | sec |alarm| min |alarm|hour |alarm| day |date |month|year|cent|      day: of the week, Sunday is 1
         +-----+-----+-----+-----+-----+-----+-----+-----+-----+----+----+

In BCD (each digit has four bits) or binary; hours from 0 to 23, or from 1 to 12 with bit 7 for p.m. An impossible
value, which a guest can write, counts from the next update on as the nearest possible one.

See: MC146818A data sheet (Motorola), "Time, calendar and alarm locations"; ACPI specification 4.0, section 4.7.2.4, for
the century, which follows the format of the rest. Leaves out the chip's own calendar, in which every fourth year is a
leap year: this one is Gregorian, which differs first in 2100; and daylight saving time.
"""

from __future__ import annotations

import calendar
import enum
from dataclasses import dataclass
from datetime import datetime, timedelta

from pykvm.memory.platform import CMOS_CENTURY

__all__ = ["DONT_CARE", "Byte", "Format", "advance", "seconds_to_alarm", "set_time"]

DONT_CARE = 0xC0  # an alarm byte with both of these bits matches always
PM = 0x80
SECONDS_A_DAY = 24 * 60 * 60

# The Gregorian calendar repeats after 400 years, and 10,000 years are 25 times that: so dates can be reckoned in one
# cycle that datetime has, and the year 9999 is followed by the year 0000, as four digits have it.
CYCLE = 400
CYCLE_SECONDS = 146_097 * SECONDS_A_DAY
YEARS = 10_000


class Byte(enum.IntEnum):
    """Where each part of the time is in CMOS memory."""

    SECONDS = 0
    SECONDS_ALARM = 1
    MINUTES = 2
    MINUTES_ALARM = 3
    HOURS = 4
    HOURS_ALARM = 5
    DAY_OF_WEEK = 6
    DATE = 7
    MONTH = 8
    YEAR = 9
    CENTURY = CMOS_CENTURY


@dataclass(frozen=True, slots=True)
class Format:
    """How the bytes are written: what DM and 24/12 in register B say."""

    binary: bool = False
    hours24: bool = True

    def encode(self, value: int) -> int:
        """Return the byte for ``value``, 0 to 99."""
        return value if self.binary else value // 10 << 4 | value % 10

    def decode(self, byte: int) -> int:
        """Return the value of ``byte``; one that is no BCD has a value all the same, up to 165."""
        return byte if self.binary else (byte >> 4) * 10 + (byte & 0x0F)

    def encode_hour(self, hour: int) -> int:
        """Return the byte for ``hour``, 0 to 23."""
        if self.hours24:
            return self.encode(hour)
        return self.encode(hour % 12 or 12) | (PM if hour >= 12 else 0)

    def decode_hour(self, byte: int) -> int:
        """Return the hour in ``byte``, 0 to 23."""
        if self.hours24:
            return min(self.decode(byte), 23)
        return min(self.decode(byte & ~PM), 12) % 12 + (12 if byte & PM else 0)


def set_time(cmos: bytearray, format: Format, time: datetime) -> None:
    """Write ``time`` into ``cmos``, with the day of the week that belongs to it."""
    _write(cmos, format, time, time.year, time.isoweekday() % 7)


def advance(cmos: bytearray, format: Format, seconds: int) -> None:
    """Let the time in ``cmos`` go on by ``seconds``, however many. The day of the week counts for itself."""
    cycles, seconds = divmod(seconds, CYCLE_SECONDS)
    year, before = _read(cmos, format)
    after = before + timedelta(seconds=seconds)
    days = (after.date() - before.date()).days
    weekday = (_clamp(format.decode(cmos[Byte.DAY_OF_WEEK]), 1, 7) - 1 + days) % 7
    # A cycle is a whole number of weeks (146,097 = 7 * 20,871), so it leaves the day of the week alone.
    _write(cmos, format, after, (year + after.year - before.year + cycles * CYCLE) % YEARS, weekday)


def seconds_to_alarm(cmos: bytearray, format: Format) -> int | None:
    """Return after how many seconds, 1 to 86400, the time meets the alarm next, or None if it never does."""
    hours = _matches(cmos[Byte.HOURS_ALARM], [format.encode_hour(hour) for hour in range(24)])
    minutes = _matches(cmos[Byte.MINUTES_ALARM], [format.encode(minute) for minute in range(60)])
    seconds = _matches(cmos[Byte.SECONDS_ALARM], [format.encode(second) for second in range(60)])
    if not (any(hours) and any(minutes) and any(seconds)):
        return None
    _, time = _read(cmos, format)
    now = (time.hour * 60 + time.minute) * 60 + time.second
    then = now + 1
    while True:  # goes over at most a day's hours, an hour's minutes and a minute's seconds
        if not hours[then // 3600 % 24]:
            then = (then // 3600 + 1) * 3600
        elif not minutes[then // 60 % 60]:
            then = (then // 60 + 1) * 60
        elif not seconds[then % 60]:
            then += 1
        else:
            return then - now


def _matches(alarm: int, bytes_: list[int]) -> list[bool]:
    return [alarm & DONT_CARE == DONT_CARE or alarm == byte for byte in bytes_]


def _read(cmos: bytearray, format: Format) -> tuple[int, datetime]:
    """Return the year, 0 to 9999, and the time in a year of the same kind that datetime has."""

    def value(byte: Byte, low: int, high: int) -> int:
        return _clamp(format.decode(cmos[byte]), low, high)

    year = value(Byte.CENTURY, 0, 99) * 100 + value(Byte.YEAR, 0, 99)
    alike = year % CYCLE + CYCLE
    month = value(Byte.MONTH, 1, 12)
    date = value(Byte.DATE, 1, calendar.monthrange(alike, month)[1])
    minute, second = value(Byte.MINUTES, 0, 59), value(Byte.SECONDS, 0, 59)
    return year, datetime(alike, month, date, format.decode_hour(cmos[Byte.HOURS]), minute, second)


def _write(cmos: bytearray, format: Format, time: datetime, year: int, weekday: int) -> None:
    cmos[Byte.SECONDS] = format.encode(time.second)
    cmos[Byte.MINUTES] = format.encode(time.minute)
    cmos[Byte.HOURS] = format.encode_hour(time.hour)
    cmos[Byte.DAY_OF_WEEK] = format.encode(weekday + 1)
    cmos[Byte.DATE] = format.encode(time.day)
    cmos[Byte.MONTH] = format.encode(time.month)
    cmos[Byte.YEAR] = format.encode(year % 100)
    cmos[Byte.CENTURY] = format.encode(year // 100)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
