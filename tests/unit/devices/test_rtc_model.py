"""pykvm.devices.rtc against a small model: any sequence of accesses, of any width, and any time between them."""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pykvm.devices import ManualClock
from pykvm.devices.clock import SECOND
from pykvm.devices.rtc import Rtc

START = datetime(2023, 12, 31, 23, 59, 30)
CLOCK_REGISTERS = [*range(14), 0x32]

bytes_ = st.integers(0, 0xFF)
widths = st.sampled_from([1, 2, 4, 8])
registers = st.sampled_from([*CLOCK_REGISTERS, 0x0B, 0x0B, 0x0A, 0x0C, 0x0C, 0x40])

# Values that switch something, or that are a time, so that random ones do not drown them.
telling = st.sampled_from([0x00, 0x02, 0x12, 0x22, 0x23, 0x26, 0x2F, 0x42, 0x59, 0x72, 0x76, 0x82, 0xC0, 0xFF]) | bytes_

# Around the moments at which something happens: a period, UIP, an update.
times = (
    st.sampled_from([0, 1, 122_071, SECOND // 2, SECOND - 244_000, SECOND - 1, SECOND, 7 * SECOND])
    | st.integers(0, 3 * SECOND)
    | st.integers(0, 90 * SECOND)
)


class Model:
    """The MC146818 written down again, in the plainest way: it lives through every second, one after the other."""

    def __init__(self, start: datetime) -> None:
        self.cmos = [0] * 128
        self.cmos[0x0A], self.cmos[0x0B], self.cmos[0x0D] = 0x26, 0x02, 0x80
        self.index = 0
        self.nmi_masked = False
        self.divider = Fraction(0)  # seconds since the divider was 0
        self.put(start, start.year, start.isoweekday() % 7 + 1)

    # ---- bytes ----

    def encode(self, value: int) -> int:
        return value if self.cmos[0x0B] & 4 else int(str(value), 16)

    def decode(self, byte: int) -> int:
        return byte if self.cmos[0x0B] & 4 else (byte >> 4) * 10 + byte % 16

    def encode_hour(self, hour: int) -> int:
        if self.cmos[0x0B] & 2:
            return self.encode(hour)
        return self.encode([12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11][hour % 12]) + (128 if hour > 11 else 0)

    def decode_hour(self, byte: int) -> int:
        if self.cmos[0x0B] & 2:
            return min(self.decode(byte), 23)
        hour = min(self.decode(byte % 128), 12)
        return (0 if hour == 12 else hour) + (12 if byte >= 128 else 0)

    def put(self, time: datetime, year: int, weekday: int) -> None:
        values = {0: time.second, 2: time.minute, 6: weekday, 7: time.day, 8: time.month, 9: year % 100}
        for place, value in (values | {0x32: year // 100}).items():
            self.cmos[place] = self.encode(value)
        self.cmos[4] = self.encode_hour(time.hour)

    # ---- time ----

    @property
    def running(self) -> bool:
        return self.cmos[0x0A] & 0x70 == 0x20

    @property
    def updating(self) -> bool:
        return self.running and self.cmos[0x0B] < 0x80

    def advance(self, nanoseconds: int) -> None:
        if not self.running:
            return
        before, self.divider = self.divider, self.divider + Fraction(nanoseconds, SECOND)
        rate = self.cmos[0x0A] & 0x0F
        if rate:
            frequency = {1: 256, 2: 128}.get(rate, 65536 >> rate)
            if self.divider * frequency // 1 > before * frequency // 1:
                self.cmos[0x0C] |= 0x40
        if self.updating:
            for _ in range(int(self.divider // 1 - before // 1)):
                self.update()

    def update(self) -> None:
        def field(place: int, low: int, high: int) -> int:
            return max(low, min(self.decode(self.cmos[place]), high))

        year = field(0x32, 0, 99) * 100 + field(9, 0, 99)
        alike = 2000 + year % 400
        month = field(8, 1, 12)
        day = field(7, 1, calendar.monthrange(alike, month)[1])
        before = datetime(alike, month, day, self.decode_hour(self.cmos[4]), field(2, 0, 59), field(0, 0, 59))
        after = before + timedelta(seconds=1)
        weekday = field(6, 1, 7)
        if after.day != before.day:
            weekday = weekday % 7 + 1
        self.put(after, (year + after.year - before.year) % 10000, weekday)
        self.cmos[0x0C] |= 0x10
        if all(self.cmos[place + 1] >= 0xC0 or self.cmos[place] == self.cmos[place + 1] for place in (0, 2, 4)):
            self.cmos[0x0C] |= 0x20

    @property
    def line(self) -> bool:
        return bool(self.cmos[0x0C] & self.cmos[0x0B] & 0x70)

    # ---- ports ----

    def read(self, offset: int) -> int:
        if offset % 2 == 0:
            return 0xFF
        value = self.cmos[self.index]
        if self.index == 0x0A and self.updating and self.divider % 1 >= 1 - Fraction(244, 1_000_000):
            value |= 0x80
        if self.index == 0x0C:
            value |= 0x80 if self.line else 0
            self.cmos[0x0C] = 0
        return value

    def write(self, offset: int, value: int) -> None:
        if offset % 2 == 0:
            self.index, self.nmi_masked = value % 128, value >= 128
        elif self.index == 0x0A:
            was_running = self.running
            self.cmos[0x0A] = value & 0x7F
            if self.running and not was_running:
                self.divider = Fraction(1, 2)
        elif self.index == 0x0B:
            self.cmos[0x0B] = value & 0xEF if value & 0x80 else value
        elif self.index == 0:
            self.cmos[0] = value & 0x7F
        elif self.index not in (0x0C, 0x0D):
            self.cmos[self.index] = value


class RtcAgainstModel(RuleBasedStateMachine):
    """Does the same to the chip and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.level = False
        self.chip = Rtc(self.clock, self, START)
        self.model = Model(START)

    def set_level(self, level: bool) -> None:
        assert level != self.level, "the line is told of changes only"
        self.level = level

    @rule(nanoseconds=times)
    def pass_time(self, nanoseconds: int) -> None:
        self.clock.advance(nanoseconds)
        self.model.advance(nanoseconds)

    @rule(register=registers)
    def read_register(self, register: int) -> None:
        self.write(0, bytes((register,)))
        self.read(1, 1)

    @rule(register=registers, value=telling)
    def write_register(self, register: int, value: int) -> None:
        self.write(0, bytes((register, value)))

    @rule(hours=telling, minutes=telling, seconds=telling, b=telling)
    def set_alarm(self, hours: int, minutes: int, seconds: int, b: int) -> None:
        for register, value in ((5, hours), (3, minutes), (1, seconds), (0x0B, b)):
            self.write(0, bytes((register, value)))

    @rule(offset=st.integers(0, 9), size=widths)
    def read(self, offset: int, size: int) -> None:
        expected = bytes(self.model.read(offset + n) for n in range(size))
        assert self.chip.read(offset, size) == expected

    @rule(offset=st.integers(0, 9), data=widths.flatmap(lambda size: st.binary(min_size=size, max_size=size)))
    def write(self, offset: int, data: bytes) -> None:
        self.chip.write(offset, data)
        for n, value in enumerate(data):
            self.model.write(offset + n, value)

    @rule()
    def read_everything(self) -> None:
        for register in range(128):
            self.read_register(register)

    @invariant()
    def the_line_has_the_same_level(self) -> None:
        assert self.level == self.model.line

    @invariant()
    def the_nmi_is_masked_alike(self) -> None:
        assert self.chip.nmi_masked == self.model.nmi_masked


RtcAgainstModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRtcAgainstModel = RtcAgainstModel.TestCase


class Silent:
    def set_level(self, level: bool) -> None:
        pass


def shown(chip: Rtc) -> list[int]:
    values = []
    for register in (0x32, 9, 8, 7, 6, 4, 2, 0):
        chip.write(0, bytes((register,)))
        values.append(chip.read(1, 1)[0])
    return values


@given(
    start=st.datetimes(datetime(1900, 1, 1), datetime(3000, 1, 1)),
    seconds=st.integers(0, 6000 * 365 * 24 * 3600),
)
def test_however_much_time_passes_the_chip_shows_what_python_reckons(start: datetime, seconds: int) -> None:
    clock = ManualClock()
    chip = Rtc(clock, Silent(), start)
    clock.advance(seconds * SECOND)
    then = start + timedelta(seconds=seconds)
    expected = [then.year // 100, then.year % 100, then.month, then.day, then.isoweekday() % 7 + 1]
    expected += [then.hour, then.minute, then.second]
    assert shown(chip) == [int(str(value), 16) for value in expected]


@given(hours=telling, minutes=telling, seconds=telling, b=st.sampled_from([0x20, 0x22, 0x24, 0x26]))
def test_an_alarm_comes_when_the_model_that_lives_through_every_second_says_so(
    hours: int, minutes: int, seconds: int, b: int
) -> None:
    model = Model(START)
    clock, alarms = ManualClock(), []
    chip = Rtc(clock, Silent(), START, on_alarm=lambda: alarms.append(clock.now()))
    for register, value in ((5, hours), (3, minutes), (1, seconds), (0x0B, b)):
        chip.write(0, bytes((register, value)))
        model.write(0, register)
        model.write(1, value)
    clock.advance(1000 * SECOND)
    expected = None
    for second in range(1, 1001):
        model.advance(SECOND)
        if model.cmos[0x0C] & 0x20:
            expected = second * SECOND
            break
    assert alarms == ([] if expected is None else [expected])
