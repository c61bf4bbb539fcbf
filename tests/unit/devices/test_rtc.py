"""pykvm.devices.rtc and rtctime: the MC146818, register by register, as its data sheet has it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from pykvm.devices import ManualClock, rtc
from pykvm.devices.clock import SECOND, Alarm
from pykvm.devices.rtc import UIP_TIME, RegA, RegB, RegC, Register, Rtc, cmos_memory
from pykvm.devices.rtctime import Byte
from pykvm.errors import ConfigurationError
from pykvm.testing import DeviceBench, Wire
from pykvm.units import GiB, KiB, MiB

START = datetime(2024, 2, 28, 23, 59, 58, tzinfo=UTC)  # a Wednesday in a leap year
MS, US = 1_000_000, 1_000
INDEX, DATA = 0, 1
UNTIL_1024_HZ = 976_562 + 1  # ns, rounded up

TIME = (Byte.CENTURY, Byte.YEAR, Byte.MONTH, Byte.DATE, Byte.DAY_OF_WEEK, Byte.HOURS, Byte.MINUTES, Byte.SECONDS)


class CountingClock(ManualClock):
    """Counts the calls it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
        self.calls += 1
        return super().call_at(when, callback)


class LateClock(ManualClock):
    """Shows a time at which it should have called already."""

    late = 0

    def now(self) -> int:
        return super().now() + self.late


class Pc:
    """An RTC with a guest at its ports and a test at its clock and its line."""

    def __init__(self, start: datetime = START, b: RegB = RegB.HOURS24) -> None:
        self.clock = CountingClock()
        self.irq = Wire()
        self.levels = self.irq.levels
        self.alarms = 0
        self.chip = Rtc(self.clock, self.irq, start, on_alarm=self._alarm)
        if b != RegB.HOURS24:
            self.write(Register.B, b.value)

    def _alarm(self) -> None:
        self.alarms += 1

    def read(self, register: int) -> int:
        self.chip.write(INDEX, bytes((register,)))
        return self.chip.read(DATA, 1)[0]

    def write(self, register: int, value: int) -> None:
        self.chip.write(INDEX, bytes((register,)))
        self.chip.write(DATA, bytes((value,)))

    def b(self, bits: RegB) -> None:
        self.write(Register.B, bits.value)

    def c(self) -> RegC:
        return RegC(self.read(Register.C))

    def time(self) -> str:
        return " ".join(f"{self.read(byte):02x}" for byte in TIME)

    def set_alarm(self, hours: int, minutes: int, seconds: int) -> None:
        self.write(Byte.HOURS_ALARM, hours)
        self.write(Byte.MINUTES_ALARM, minutes)
        self.write(Byte.SECONDS_ALARM, seconds)


# ---- after power-on ----


def test_it_is_where_a_pc_has_it() -> None:
    assert (rtc.PORT, rtc.REGISTERS, rtc.IRQ) == (0x70, 2, 8)


def test_it_starts_at_the_time_it_is_given_in_bcd_and_24_hours() -> None:
    assert Pc().time() == "20 24 02 28 04 23 59 58"


def test_a_start_in_another_time_zone_is_shown_in_utc() -> None:
    start = START.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert Pc(start).time() == Pc().time()
    assert Pc(START.replace(tzinfo=None)).time() == Pc().time()


def test_the_fraction_of_the_start_counts() -> None:
    pc = Pc(START.replace(microsecond=750_000))
    pc.clock.advance(250 * MS - 1)
    assert pc.read(Byte.SECONDS) == 0x58
    pc.clock.advance(1)
    assert pc.read(Byte.SECONDS) == 0x59


def test_a_clock_that_already_runs_has_its_time_added_to_the_start() -> None:
    clock = ManualClock()
    clock.advance(2 * SECOND)
    chip = Rtc(clock, Wire(), START)
    chip.write(INDEX, bytes((Byte.DATE,)))
    assert chip.read(DATA, 1) == b"\x29"


@pytest.mark.parametrize(
    ("register", "value"), [(Register.A, 0x26), (Register.B, 0x02), (Register.C, 0x00), (Register.D, 0x80)]
)
def test_the_control_registers_are_as_firmware_leaves_them(register: Register, value: int) -> None:
    pc = Pc()
    assert pc.read(register) == value
    assert pc.levels == []


# ---- ports ----


def test_a_word_written_to_the_index_port_is_an_index_and_its_data() -> None:
    bus = DeviceBench(pio={rtc.PORT: (Pc().chip, rtc.REGISTERS)}).pio
    bus.write(0x70, b"\x40\x5a")
    assert bus.read(0x70, 2) == b"\xff\x5a"
    assert bus.read(0x70, 4) == b"\xff\x5a\xff\xff"


def test_bit_7_of_the_index_port_masks_the_nmi_and_is_no_part_of_the_index() -> None:
    pc = Pc()
    assert not pc.chip.nmi_masked
    assert pc.read(0x80 | Register.D) == 0x80
    assert pc.chip.nmi_masked
    pc.read(Register.D)
    assert not pc.chip.nmi_masked


def test_reading_does_not_move_the_index() -> None:
    pc = Pc()
    pc.read(Register.D)
    assert pc.chip.read(DATA, 1) == pc.chip.read(DATA, 1) == b"\x80"


# ---- memory ----


def test_every_byte_that_is_not_the_clocks_is_memory() -> None:
    pc = Pc()
    plain = [place for place in range(0x0E, rtc.SIZE) if place != Byte.CENTURY]
    for place in plain:
        pc.write(place, place ^ 0xA5)
    assert [pc.read(place) for place in plain] == [place ^ 0xA5 for place in plain]


def test_memory_starts_as_given() -> None:
    chip = Rtc(ManualClock(), Wire(), START, {0x10: 0x40, 0x7F: 0xFF})
    chip.write(0, b"\x10")
    assert chip.read(1, 1) == b"\x40"
    chip.write(0, b"\x7f")
    assert chip.read(1, 1) == b"\xff"
    chip.write(0, b"\x0e")
    assert chip.read(1, 1) == b"\x00"


@pytest.mark.parametrize("place", [-1, 0, 0x0A, 0x0D, 0x32, 0x80])
def test_memory_that_is_the_clocks_or_not_there_cannot_be_given(place: int) -> None:
    with pytest.raises(ConfigurationError, match=r"CMOS memory has no byte .* it has 0xe-0x7f"):
        Rtc(ManualClock(), Wire(), START, {place: 0})


@pytest.mark.parametrize("value", [-1, 256])
def test_memory_takes_bytes_only(value: int) -> None:
    with pytest.raises(ConfigurationError, match="takes 0 to 255"):
        Rtc(ManualClock(), Wire(), START, {0x10: value})


# ---- the time ----


def test_a_second_carries_into_minutes_hours_day_of_week_date_and_month() -> None:
    pc = Pc()
    pc.clock.advance(SECOND)
    assert pc.time() == "20 24 02 28 04 23 59 59"
    pc.clock.advance(SECOND)
    assert pc.time() == "20 24 02 29 05 00 00 00"
    pc.clock.advance(24 * 3600 * SECOND)
    assert pc.time() == "20 24 03 01 06 00 00 00"


@pytest.mark.parametrize(
    ("start", "after"),
    [
        (datetime(1999, 12, 31, 23, 59, 59), "20 00 01 01 07 00 00 00"),
        (datetime(2023, 2, 28, 23, 59, 59), "20 23 03 01 04 00 00 00"),
        (datetime(2000, 2, 28, 23, 59, 59), "20 00 02 29 03 00 00 00"),
        (datetime(2100, 2, 28, 23, 59, 59), "21 00 03 01 02 00 00 00"),
        (datetime(9999, 12, 31, 23, 59, 59), "00 00 01 01 07 00 00 00"),
        (datetime(2024, 3, 2, 23, 59, 59), "20 24 03 03 01 00 00 00"),
    ],
)
def test_the_calendar_is_gregorian_and_has_four_digits(start: datetime, after: str) -> None:
    pc = Pc(start)
    pc.clock.advance(SECOND)
    assert pc.time() == after


def test_years_can_pass_between_two_looks() -> None:
    pc = Pc()
    later = timedelta(days=146_097 * 3 + 12_345, seconds=54_321)
    pc.clock.advance(int(later.total_seconds()) * SECOND)
    then = START + later
    weekday = then.isoweekday() % 7 + 1
    assert pc.time() == then.strftime(f"{then.year // 100} %y %m %d {weekday:02} %H %M %S")


@pytest.mark.parametrize(("hour", "byte"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)])
def test_in_12_hour_mode_bit_7_of_the_hours_is_pm(hour: int, byte: int) -> None:
    pc = Pc(b=RegB.SET)
    pc.write(Byte.HOURS, byte)
    pc.write(Byte.MINUTES, 0x30)
    pc.b(RegB(0))
    pc.clock.advance(SECOND)
    assert pc.read(Byte.HOURS) == byte
    pc.b(RegB.SET)
    pc.clock.advance(1)
    pc.write(Byte.MINUTES, 0x59)
    pc.write(Byte.SECONDS, 0x59)
    pc.b(RegB(0))
    pc.clock.advance(SECOND)
    after = (hour + 1) % 24
    assert pc.read(Byte.HOURS) == int(str(after % 12 or 12), 16) | (0x80 if after >= 12 else 0)


def test_in_binary_mode_no_digit_has_four_bits_of_its_own() -> None:
    pc = Pc(b=RegB.SET | RegB.DM | RegB.HOURS24)
    for byte, value in zip(TIME, (20, 24, 2, 28, 4, 23, 59, 58), strict=True):
        pc.write(byte, value)
    pc.b(RegB.DM | RegB.HOURS24)
    pc.clock.advance(SECOND)
    assert pc.time() == "14 18 02 1c 04 17 3b 3b"
    pc.clock.advance(SECOND)
    assert pc.time() == "14 18 02 1d 05 00 00 00"


def test_changing_the_format_leaves_the_bytes_as_they_are() -> None:
    pc = Pc()
    before = pc.time()
    pc.b(RegB.DM)
    assert pc.time() == before


def test_what_the_guest_sets_shifts_the_time() -> None:
    pc = Pc(b=RegB.SET | RegB.HOURS24)
    for byte, value in zip(TIME, (0x19, 0x95, 0x08, 0x24, 0x05, 0x12, 0x00, 0x00), strict=True):
        pc.write(byte, value)
    pc.b(RegB.HOURS24)
    pc.clock.advance(61 * SECOND)
    assert pc.time() == "19 95 08 24 05 12 01 01"


def test_while_set_is_on_nothing_is_updated() -> None:
    pc = Pc(b=RegB.SET | RegB.HOURS24)
    before = pc.time()
    pc.clock.advance(1000 * SECOND)
    assert pc.time() == before
    assert RegC.UF not in pc.c()


def test_after_set_the_divider_has_gone_on() -> None:
    pc = Pc(b=RegB.SET | RegB.HOURS24)
    pc.clock.advance(1900 * MS)
    pc.b(RegB.HOURS24)
    pc.clock.advance(100 * MS)
    assert pc.read(Byte.SECONDS) == 0x59


def test_the_time_can_be_written_byte_by_byte_without_set_as_long_as_no_update_comes_between() -> None:
    pc = Pc(datetime(2023, 2, 1, 0, 0, 0))
    pc.write(Byte.DATE, 0x31)  # there is no such day in February, but:
    pc.write(Byte.MONTH, 0x03)
    pc.clock.advance(SECOND)
    assert (pc.read(Byte.MONTH), pc.read(Byte.DATE)) == (0x03, 0x31)


def test_the_day_of_week_counts_for_itself() -> None:
    pc = Pc()
    pc.write(Byte.DAY_OF_WEEK, 7)
    pc.clock.advance(2 * SECOND)
    assert pc.read(Byte.DAY_OF_WEEK) == 1


@pytest.mark.parametrize(
    ("byte", "wrong", "after"),
    [
        (Byte.SECONDS, 0x7F, "20 24 02 29 05 00 00 00"),
        (Byte.MINUTES, 0xFF, "20 24 02 28 04 23 59 59"),
        (Byte.HOURS, 0x24, "20 24 02 28 04 23 59 59"),
        (Byte.DAY_OF_WEEK, 0x00, "20 24 02 28 01 23 59 59"),
        (Byte.DATE, 0x31, "20 24 02 29 04 23 59 59"),
        (Byte.DATE, 0x00, "20 24 02 01 04 23 59 59"),
        (Byte.MONTH, 0x00, "20 24 01 28 04 23 59 59"),
        (Byte.MONTH, 0xFF, "20 24 12 28 04 23 59 59"),
        (Byte.YEAR, 0xFF, "20 99 02 28 04 23 59 59"),
        (Byte.CENTURY, 0xAA, "99 24 02 28 04 23 59 59"),
    ],
)
def test_an_impossible_value_becomes_the_nearest_possible_one_at_the_next_update(
    byte: Byte, wrong: int, after: str
) -> None:
    pc = Pc()
    pc.write(byte, wrong)
    assert pc.read(byte) == wrong
    pc.clock.advance(SECOND)
    assert pc.time() == after


def test_bit_7_of_the_seconds_cannot_be_written() -> None:
    pc = Pc()
    pc.write(Byte.SECONDS, 0xA1)
    assert pc.read(Byte.SECONDS) == 0x21


# ---- register A ----


def test_uip_is_set_for_the_last_244_us_before_an_update() -> None:
    pc = Pc()
    pc.clock.advance(SECOND - UIP_TIME - 1)
    assert RegA.UIP not in RegA(pc.read(Register.A))
    pc.clock.advance(1)
    assert RegA.UIP in RegA(pc.read(Register.A))
    pc.clock.advance(UIP_TIME - 1)
    assert RegA.UIP in RegA(pc.read(Register.A))
    assert pc.read(Byte.SECONDS) == 0x58
    pc.clock.advance(1)
    assert RegA.UIP not in RegA(pc.read(Register.A))
    assert pc.read(Byte.SECONDS) == 0x59


def test_uip_is_never_set_while_set_is_on() -> None:
    pc = Pc(b=RegB.SET)
    pc.clock.advance(SECOND - 1)
    assert RegA.UIP not in RegA(pc.read(Register.A))


def test_uip_cannot_be_written() -> None:
    pc = Pc()
    pc.write(Register.A, 0xAF)
    assert pc.read(Register.A) == 0x2F


@pytest.mark.parametrize("divider", [0b000, 0b001, 0b011, 0b100, 0b101, 0b110, 0b111])
def test_with_any_time_base_but_the_pcs_the_divider_stands_still(divider: int) -> None:
    pc = Pc()
    pc.b(RegB.HOURS24 | RegB.PIE | RegB.AIE | RegB.UIE)
    pc.write(Register.A, divider << 4 | 6)
    before = pc.time()
    pc.clock.advance(10 * SECOND - 1)
    assert (pc.time(), pc.c(), pc.read(Register.A)) == (before, RegC(0), divider << 4 | 6)


def test_the_first_update_comes_half_a_second_after_the_divider_is_let_go() -> None:
    pc = Pc()
    pc.write(Register.A, 0x76)
    pc.clock.advance(12_345_678_901)
    pc.write(Register.A, 0x26)
    pc.clock.advance(SECOND // 2 - 1)
    assert pc.read(Byte.SECONDS) == 0x58
    pc.clock.advance(1)
    assert pc.read(Byte.SECONDS) == 0x59
    pc.clock.advance(SECOND)
    assert pc.read(Byte.SECONDS) == 0x00


# ---- registers B, C and D ----


def test_register_b_reads_back_what_was_written() -> None:
    pc = Pc()
    for value in (0x00, 0x7F, 0x8F, 0x55):
        pc.write(Register.B, value)
        assert pc.read(Register.B) == value


def test_setting_set_takes_uie_away() -> None:
    pc = Pc()
    pc.b(RegB.SET | RegB.UIE | RegB.HOURS24)
    assert RegB(pc.read(Register.B)) == RegB.SET | RegB.HOURS24


def test_c_and_d_cannot_be_written() -> None:
    pc = Pc()
    for register, value in ((Register.C, 0x00), (Register.D, 0x80)):
        pc.write(register, 0x7F)
        assert pc.read(register) == value


def test_reading_c_clears_it_and_takes_the_line_low() -> None:
    pc = Pc()
    pc.b(RegB.HOURS24 | RegB.UIE)
    pc.clock.advance(SECOND)
    assert pc.levels == [True]
    assert pc.c() == RegC.IRQF | RegC.UF | RegC.PF
    assert pc.levels == [True, False]
    assert pc.c() == RegC(0)


def test_a_wide_read_that_begins_at_the_index_port_clears_c_too() -> None:
    pc = Pc()
    pc.clock.advance(SECOND)
    pc.chip.write(INDEX, bytes((Register.C,)))
    assert pc.chip.read(INDEX, 2) == bytes((0xFF, (RegC.UF | RegC.PF).value))
    assert pc.chip.read(DATA, 1) == b"\0"


def test_flags_are_set_whether_enabled_or_not_and_enabling_one_takes_the_line_high_at_once() -> None:
    pc = Pc()
    pc.clock.advance(SECOND)
    assert pc.levels == []
    pc.b(RegB.HOURS24 | RegB.UIE)
    assert pc.levels == [True]
    pc.b(RegB.HOURS24)
    assert pc.levels == [True, False]
    assert pc.c() == RegC.UF | RegC.PF, "disabling clears no flag"


# ---- the periodic interrupt ----


@pytest.mark.parametrize(
    ("rate", "period"),  # the data sheet's table, in ns
    [
        (1, 3_906_250),
        (2, 7_812_500),
        (3, 122_070.3125),
        (4, 244_140.625),
        (5, 488_281.25),
        (6, 976_562.5),
        (7, 1_953_125),
        (8, 3_906_250),
        (9, 7_812_500),
        (10, 15_625_000),
        (11, 31_250_000),
        (12, 62_500_000),
        (13, 125_000_000),
        (14, 250_000_000),
        (15, 500_000_000),
    ],
)
def test_the_rate_selects_the_period(rate: int, period: float) -> None:
    pc = Pc()
    pc.write(Register.A, 0x20 | rate)
    pc.b(RegB.HOURS24 | RegB.PIE)
    for number in range(1, 5):
        pc.clock.advance(-int(-number * period // 1) - pc.clock.now() - 1)
        assert pc.levels == [True, False] * (number - 1)
        pc.clock.advance(1)
        assert pc.levels == [*[True, False] * (number - 1), True]
        assert RegC.PF in pc.c()


def test_rate_0_is_no_period() -> None:
    pc = Pc()
    pc.write(Register.A, 0x20)
    pc.b(RegB.HOURS24 | RegB.PIE)
    pc.clock.advance(10 * SECOND)
    assert RegC.PF not in pc.c()
    assert pc.levels == []


def test_periods_that_nobody_served_count_once_and_cost_no_calls() -> None:
    pc = Pc()
    pc.write(Register.A, 0x23)
    pc.b(RegB.HOURS24 | RegB.PIE)
    pc.clock.advance(10 * SECOND)
    assert pc.levels == [True]
    assert pc.clock.calls <= 2
    assert RegC.PF in pc.c()
    assert pc.c() == RegC(0)


def test_periods_come_with_set_on_as_well() -> None:
    pc = Pc(b=RegB.SET | RegB.PIE)
    pc.clock.advance(UNTIL_1024_HZ)
    assert pc.c() == RegC.IRQF | RegC.PF


def test_enabling_and_disabling_again_and_again_asks_the_clock_for_few_calls() -> None:
    pc = Pc()
    pc.set_alarm(0xC0, 0xC0, 0xC0)
    for _ in range(1000):
        pc.b(RegB.HOURS24 | RegB.AIE)
        pc.b(RegB.HOURS24 | RegB.PIE)
        pc.b(RegB.HOURS24)
    assert pc.clock.calls <= 2


def test_without_an_enabled_interrupt_the_clock_is_asked_for_no_call() -> None:
    pc = Pc()
    pc.read(Register.C)
    pc.clock.advance(5 * SECOND)
    pc.read(Register.C)
    pc.write(Byte.SECONDS_ALARM, 0x30)
    assert pc.clock.calls == 0


# ---- the alarm ----


def test_the_alarm_comes_when_hours_minutes_and_seconds_match() -> None:
    pc = Pc()
    pc.set_alarm(0x00, 0x01, 0x02)
    pc.b(RegB.HOURS24 | RegB.AIE)
    pc.clock.advance((2 + 62) * SECOND - 1)
    assert pc.levels == []
    pc.clock.advance(1)
    assert (pc.levels, pc.alarms) == ([True], 1)
    assert RegC.AF in pc.c()
    pc.clock.advance(24 * 3600 * SECOND - 1)
    assert RegC.AF not in pc.c()
    pc.clock.advance(1)
    assert RegC.AF in pc.c()
    assert pc.alarms == 2


@pytest.mark.parametrize("code", [0xC0, 0xDB, 0xFF])
@pytest.mark.parametrize(
    ("alarm", "seconds"),  # from 23:59:58 on; None is don't care
    [
        ((None, None, None), [1, 2, 3]),
        ((None, None, 0x05), [7, 67, 127]),
        ((None, 0x01, 0x05), [67, 67 + 3600]),
        ((None, 0x00, None), [2, 3, 4]),
        ((0x23, None, None), [1, 2 + 23 * 3600]),
        ((0x01, None, 0x00), [2 + 3600, 62 + 3600]),
    ],
)
def test_a_byte_from_0xc0_on_matches_always(code: int, alarm: tuple[int | None, ...], seconds: list[int]) -> None:
    pc = Pc()
    hours, minutes, second = (code if byte is None else byte for byte in alarm)
    pc.set_alarm(hours, minutes, second)
    pc.b(RegB.HOURS24 | RegB.AIE)
    for when in seconds:
        pc.clock.advance(when * SECOND - pc.clock.now() - 1)
        assert not pc.levels or not pc.levels[-1]
        pc.clock.advance(1)
        assert pc.levels[-1]
        pc.c()


@pytest.mark.parametrize("alarm", [(0x24, 0x00, 0x00), (0x0A, 0xC0, 0xC0), (0xC0, 0x60, 0xC0), (0xC0, 0xC0, 0x99)])
def test_an_alarm_that_no_time_matches_never_comes(alarm: tuple[int, int, int]) -> None:
    pc = Pc()
    pc.set_alarm(*alarm)
    pc.b(RegB.HOURS24 | RegB.AIE)
    pc.clock.advance(3 * 24 * 3600 * SECOND)
    assert (RegC.AF in pc.c(), pc.alarms) == (False, 0)


def test_the_alarm_matches_in_the_format_of_the_time() -> None:
    pc = Pc(b=RegB.SET | RegB.DM)  # binary, 12 hours
    for byte, value in ((Byte.HOURS, 0x80 | 11), (Byte.MINUTES, 59), (Byte.SECONDS, 50)):
        pc.write(byte, value)
    pc.set_alarm(12, 0xFF, 10)  # 12 a.m. is midnight
    pc.b(RegB.DM | RegB.AIE)
    pc.clock.advance(20 * SECOND - 1)
    assert pc.alarms == 0
    pc.clock.advance(1)
    assert pc.alarms == 1


def test_an_alarm_that_is_set_later_is_waited_for_instead() -> None:
    pc = Pc()
    pc.set_alarm(0x00, 0x00, 0x10)
    pc.b(RegB.HOURS24 | RegB.AIE)
    pc.write(Byte.SECONDS_ALARM, 0x20)
    pc.clock.advance(22 * SECOND - 1)
    assert pc.levels == []
    pc.clock.advance(1)
    assert pc.levels == [True]


def test_an_alarm_that_is_not_enabled_is_reported_to_nobody_but_sets_its_flag() -> None:
    pc = Pc()
    pc.set_alarm(0xFF, 0xFF, 0xFF)
    pc.clock.advance(5 * SECOND)
    assert (pc.alarms, pc.levels) == (0, [])
    assert RegC.AF in pc.c()


def test_an_alarm_during_a_long_absence_is_found() -> None:
    pc = Pc()
    pc.set_alarm(0x12, 0x00, 0x00)
    pc.clock.advance(12 * 3600 * SECOND)
    assert RegC.AF not in pc.c()
    pc.clock.advance(30 * 24 * 3600 * SECOND)
    assert RegC.AF in pc.c()


def test_while_set_is_on_no_alarm_comes() -> None:
    pc = Pc()
    pc.set_alarm(0xFF, 0xFF, 0xFF)
    pc.b(RegB.HOURS24 | RegB.AIE | RegB.SET)
    pc.clock.advance(5 * SECOND)
    assert pc.levels == []
    pc.b(RegB.HOURS24 | RegB.AIE)
    pc.clock.advance(SECOND)
    assert pc.levels == [True]


# ---- the update-ended interrupt ----


def test_an_interrupt_follows_each_update() -> None:
    pc = Pc()
    pc.b(RegB.HOURS24 | RegB.UIE)
    for _ in range(3):
        pc.clock.advance(SECOND - 1)
        assert RegC.UF not in pc.c()
        pc.clock.advance(1)
        assert pc.levels[-1]
        assert RegC.UF in pc.c()


def test_a_clock_that_calls_late_brings_no_interrupt_twice() -> None:
    irq, clock = Wire(), LateClock()
    chip = Rtc(clock, irq, START)
    chip.write(INDEX, bytes((Register.B, (RegB.HOURS24 | RegB.UIE).value)))
    clock.late = 10 * SECOND
    clock.advance(SECOND)
    assert irq.levels == [True]
    chip.write(INDEX, bytes((Register.C,)))
    chip.read(DATA, 1)
    chip.write(INDEX, bytes((Byte.SECONDS,)))
    assert chip.read(DATA, 1) == b"\x09"
    assert irq.levels == [True, False]


def test_an_interrupt_that_the_clock_has_not_called_for_yet_still_reaches_the_line_before_c_is_read() -> None:
    irq, clock = Wire(), LateClock()
    chip = Rtc(clock, irq, START)
    chip.write(INDEX, bytes((Register.B, (RegB.HOURS24 | RegB.UIE).value)))
    clock.late = SECOND
    chip.write(INDEX, bytes((Register.C,)))
    assert RegC.IRQF in RegC(chip.read(DATA, 1)[0])
    assert irq.levels == [True, False]


# ---- what firmware leaves in the memory ----


def words(memory: dict[int, int], *places: int) -> list[int]:
    return [memory[place] | memory[place + 1] << 8 for place in places]


@pytest.mark.parametrize(
    ("size", "base", "extended", "above_16m", "above_4g"),
    [
        (4 * KiB, 4, 0, 0, 0),
        (640 * KiB, 640, 0, 0, 0),
        (1 * MiB, 640, 0, 0, 0),
        (16 * MiB, 640, 15 * 1024, 0, 0),
        (17 * MiB, 640, 16 * 1024, 16, 0),
        (64 * MiB, 640, 63 * 1024, 48 * 16, 0),
        (65 * MiB, 640, 0xFFFF, 49 * 16, 0),
        (3 * GiB, 640, 0xFFFF, (3072 - 16) * 16, 0),
        (5 * GiB, 640, 0xFFFF, (3072 - 16) * 16, 2 * 1024 * 16),
        (1 << 52, 640, 0xFFFF, (3072 - 16) * 16, 0xFF_FFFF),
    ],
)
def test_cmos_memory_says_how_much_ram_there_is(
    size: int, base: int, extended: int, above_16m: int, above_4g: int
) -> None:
    memory = cmos_memory(size, cpus=1)
    assert words(memory, 0x15, 0x17, 0x30, 0x34) == [base, extended, extended, above_16m]
    assert memory[0x5B] | memory[0x5C] << 8 | memory[0x5D] << 16 == above_4g


def test_cmos_memory_says_how_many_cpus_there_are_and_fits_into_the_chip() -> None:
    memory = cmos_memory(64 * MiB, cpus=4)
    assert memory[0x5F] == 3
    chip = Rtc(ManualClock(), Wire(), START, memory)
    chip.write(INDEX, b"\x5f")
    assert chip.read(DATA, 1) == b"\x03"


@pytest.mark.parametrize(("size", "cpus"), [(0, 1), (-1, 1), (MiB, 0), (MiB, 257)])
def test_cmos_memory_of_no_pc_is_refused(size: int, cpus: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 256 CPUs"):
        cmos_memory(size, cpus)
