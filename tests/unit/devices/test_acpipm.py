"""pykvm.devices.acpipm: ACPI's fixed hardware, register by register, as the specification has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import ManualClock, acpipm
from pykvm.devices.acpipm import FREQUENCY, AcpiPm, Offset, Pm1Cnt, Pm1En, Pm1Sts
from pykvm.devices.clock import SECOND, Alarm
from pykvm.memory import platform
from pykvm.testing import DeviceBench, Wire

HALF = 1 << 23
SLP_S0, SLP_S3, SLP_S5 = (typ << 10 for typ in (platform.SLP_TYP_S0, platform.SLP_TYP_S3, platform.SLP_TYP_S5))
SLP_EN = Pm1Cnt.SLP_EN.value


def when(tick: int) -> int:
    """Return the first ns at which PM_TMR has counted to ``tick``."""
    return -(-tick * SECOND // FREQUENCY)


class Pc(DeviceBench):
    """The power management block with a guest at its ports and a test at its clock, its line and its button."""

    def __init__(self, *, acpi: bool = True) -> None:
        super().__init__()
        self.irq = self.line()
        self.levels = self.irq.levels
        self.sleeps: list[int] = []
        self.pm = AcpiPm(self.clock, self.irq, self.sleeps.append)
        self.pio.register(self.pm, platform.PM1_EVENT, acpipm.REGISTERS)
        self.pio.register(self.pm.smi_command, platform.SMI_COMMAND, acpipm.SMI_REGISTERS)
        if acpi:
            self.out(platform.SMI_COMMAND, platform.ACPI_ENABLE, 1)

    def out(self, port: int, value: int, size: int = 2) -> None:
        self.pio.write(port, value.to_bytes(size, "little"))

    def inp(self, port: int, size: int = 2) -> int:
        return int.from_bytes(self.pio.read(port, size), "little")

    def enable(self, events: Pm1En) -> None:
        self.out(0x602, events.value)

    def status(self) -> Pm1Sts:
        return Pm1Sts(self.inp(0x600))


# ---- ports and reset ----


def test_the_registers_are_where_the_tables_say_that_they_are() -> None:
    assert platform.PM1_EVENT + Offset.PM1_EN == 0x602
    assert platform.PM1_EVENT + Offset.PM1_CNT == platform.PM1_CONTROL == 0x604
    assert platform.PM1_EVENT + Offset.PM_TMR == platform.PM_TIMER == 0x608


def test_after_reset_everything_is_0_and_the_line_is_low() -> None:
    pc = Pc(acpi=False)
    assert [pc.inp(port) for port in range(0x600, 0x60C, 2)] == [0] * 6
    assert (pc.levels, pc.sleeps) == ([], [])


# ---- SMI_CMD ----


def test_acpi_enable_sets_sci_en_at_once_and_acpi_disable_clears_it() -> None:
    pc = Pc(acpi=False)
    pc.out(0xB2, 0xF1, 1)
    assert pc.inp(0x604) == Pm1Cnt.SCI_EN.value
    pc.out(0xB2, 0xF0, 1)
    assert pc.inp(0x604) == 0


def test_other_commands_have_no_effect_and_both_ports_are_kept() -> None:
    pc = Pc()
    for command in set(range(256)) - {platform.ACPI_ENABLE, platform.ACPI_DISABLE}:
        pc.out(0xB2, command, 1)
    pc.out(0xB2, 0xF034, 2)
    assert pc.inp(0xB2, 2) == 0xF034
    assert pc.inp(0x604) == Pm1Cnt.SCI_EN.value


def test_before_acpi_enable_no_event_interrupts_and_then_one_that_waits_does() -> None:
    pc = Pc(acpi=False)
    pc.enable(Pm1En.PWRBTN_EN)
    pc.pm.press_power_button()
    assert pc.levels == []
    pc.out(0xB2, 0xF1, 1)
    assert pc.levels == [True]
    pc.out(0xB2, 0xF0, 1)
    assert pc.levels == [True, False]


# ---- PM1_STS and PM1_EN ----


def test_a_1_takes_a_status_bit_away_and_a_0_leaves_it() -> None:
    pc = Pc()
    pc.pm.wake(by_rtc=False)
    assert pc.status() == Pm1Sts.WAK_STS | Pm1Sts.PWRBTN_STS
    pc.out(0x600, 0)
    assert pc.status() == Pm1Sts.WAK_STS | Pm1Sts.PWRBTN_STS
    pc.out(0x600, Pm1Sts.PWRBTN_STS.value)
    assert pc.status() == Pm1Sts.WAK_STS
    pc.out(0x600, 0xFFFF)
    assert pc.status() == Pm1Sts(0)


def test_writing_a_status_bit_never_sets_one() -> None:
    pc = Pc()
    pc.out(0x600, 0xFFFF)
    assert pc.inp(0x600) == 0


@pytest.mark.parametrize(("port", "kept"), [(0x602, 0x0721), (0x604, 0x1C03)])
def test_a_register_reads_back_the_bits_that_it_has(port: int, kept: int) -> None:
    pc = Pc()
    for value in (0xDFFF, 0x0000, 0x5555, 0x8AAA):  # without SLP_EN
        pc.out(port, value)
        assert pc.inp(port) == value & kept


def test_the_power_button_interrupts_until_its_status_is_taken_away() -> None:
    pc = Pc()
    pc.enable(Pm1En.PWRBTN_EN)
    pc.pm.press_power_button()
    assert pc.levels == [True]
    pc.pm.press_power_button()
    assert pc.levels == [True]
    pc.out(0x600, Pm1Sts.PWRBTN_STS.value)
    assert pc.levels == [True, False]


def test_an_event_that_is_not_enabled_is_only_shown() -> None:
    pc = Pc()
    pc.pm.press_power_button()
    assert (pc.status(), pc.levels) == (Pm1Sts.PWRBTN_STS, [])
    pc.enable(Pm1En.PWRBTN_EN)
    assert pc.levels == [True]
    pc.enable(Pm1En(0))
    assert pc.levels == [True, False]


def test_the_rtcs_alarm_is_an_event_as_well() -> None:
    pc = Pc()
    pc.enable(Pm1En.RTC_EN)
    pc.pm.rtc_alarm()
    assert (pc.status(), pc.levels) == (Pm1Sts.RTC_STS, [True])


def test_a_write_that_clears_a_status_and_enables_it_does_not_interrupt_in_between() -> None:
    pc = Pc()
    pc.pm.press_power_button()
    pc.out(0x600, Pm1Sts.PWRBTN_STS.value | Pm1En.PWRBTN_EN.value << 16, 4)
    assert pc.levels == []


# ---- sleeping ----


@pytest.mark.parametrize(("slp_typ", "state"), [(SLP_S3, 3), (SLP_S5, 5)])
def test_slp_en_asks_for_the_state_that_slp_typ_names(slp_typ: int, state: int) -> None:
    pc = Pc()
    pc.out(0x604, slp_typ | Pm1Cnt.SCI_EN.value)
    assert pc.sleeps == []
    pc.out(0x604, slp_typ | SLP_EN | Pm1Cnt.SCI_EN.value)
    assert pc.sleeps == [state]
    assert pc.inp(0x604) == slp_typ | Pm1Cnt.SCI_EN.value, "SLP_EN reads as 0"


def test_powering_off_works_as_in_qemu() -> None:
    pc = Pc(acpi=False)
    pc.out(0x604, 0x2000)
    assert pc.sleeps == [5]


@pytest.mark.parametrize("slp_typ", sorted(set(range(8)) - {platform.SLP_TYP_S3, platform.SLP_TYP_S5}))
def test_a_slp_typ_of_any_other_state_does_nothing(slp_typ: int) -> None:
    pc = Pc()
    pc.out(0x604, slp_typ << 10 | SLP_EN)
    assert pc.sleeps == []


def test_the_high_byte_alone_puts_to_sleep_and_the_low_byte_alone_does_not() -> None:
    pc = Pc()
    pc.out(0x604, 0xFF, 1)
    assert pc.sleeps == []
    pc.out(0x605, (SLP_S3 | SLP_EN) >> 8, 1)
    assert pc.sleeps == [3]


def test_one_write_is_one_sleep_after_all_its_other_effects() -> None:
    pc = Pc()
    seen: list[tuple[int, bytes]] = []
    pm = AcpiPm(ManualClock(), pc.irq, lambda state: seen.append((state, pm.read(Offset.PM1_EN, 4))))
    pm.write(Offset.PM1_EN, ((SLP_S3 | SLP_EN) << 16 | Pm1En.RTC_EN.value).to_bytes(4, "little"))
    assert seen == [(3, (SLP_S3 << 16 | Pm1En.RTC_EN.value).to_bytes(4, "little"))]


@pytest.mark.parametrize(("by_rtc", "cause"), [(True, Pm1Sts.RTC_STS), (False, Pm1Sts.PWRBTN_STS)])
def test_waking_shows_that_it_was_and_why_and_keeps_the_rest(by_rtc: bool, cause: Pm1Sts) -> None:
    pc = Pc()
    pc.enable(Pm1En.RTC_EN | Pm1En.PWRBTN_EN)
    pc.out(0x604, SLP_S3 | SLP_EN | Pm1Cnt.SCI_EN.value)
    pc.pm.wake(by_rtc)
    assert pc.status() == Pm1Sts.WAK_STS | cause
    assert pc.levels == [True]
    pc.out(0x600, cause.value)
    assert pc.levels == [True, False], "WAK_STS interrupts nobody"
    assert pc.inp(0x604) == SLP_S3 | Pm1Cnt.SCI_EN.value


def test_rtc_en_says_whether_the_rtc_may_wake_the_machine() -> None:
    pc = Pc()
    assert not pc.pm.wakes_by_rtc
    pc.enable(Pm1En.RTC_EN)
    assert pc.pm.wakes_by_rtc


# ---- the PM timer ----


def test_the_timer_counts_at_3_579545_mhz() -> None:
    pc = Pc()
    pc.clock.advance(SECOND)
    assert pc.inp(0x608, 4) == 3_579_545
    pc.clock.advance(279)  # ns: a tick takes 279.4
    assert pc.inp(0x608, 4) == 3_579_545
    pc.clock.advance(1)
    assert pc.inp(0x608, 4) == 3_579_546


def test_the_timer_has_24_bits() -> None:
    pc = Pc()
    pc.clock.advance(when(2 * HALF) - 1)
    assert pc.inp(0x608, 4) == 0xFF_FFFF
    pc.clock.advance(1)
    assert pc.inp(0x608, 4) == 0


def test_the_timer_can_be_read_in_parts() -> None:
    pc = Pc()
    pc.clock.advance(when(0x12_3456))
    assert [pc.inp(0x608, 1), pc.inp(0x609, 1), pc.inp(0x60A, 2), pc.inp(0x60A, 1)] == [0x56, 0x34, 0x12, 0x12]


def test_the_timer_cannot_be_written() -> None:
    pc = Pc()
    pc.out(0x608, 0x1234, 4)
    assert pc.inp(0x608, 4) == 0


def test_tmr_sts_is_set_whenever_bit_23_changes() -> None:
    pc = Pc()
    for half in range(1, 5):
        pc.clock.advance(when(half * HALF) - pc.clock.now() - 1)
        assert pc.status() == Pm1Sts(0)
        pc.clock.advance(1)
        assert pc.status() == Pm1Sts.TMR_STS
        pc.out(0x600, Pm1Sts.TMR_STS.value)
        assert pc.status() == Pm1Sts(0)


def test_with_tmr_en_that_interrupts() -> None:
    pc = Pc()
    pc.enable(Pm1En.TMR_EN)
    for half in range(1, 5):
        pc.clock.advance(when(half * HALF) - pc.clock.now() - 1)
        assert pc.levels == [True, False] * (half - 1)
        pc.clock.advance(1)
        assert pc.levels[-1]
        pc.out(0x600, Pm1Sts.TMR_STS.value)


def test_changes_that_nobody_served_count_once() -> None:
    pc = Pc()
    pc.enable(Pm1En.TMR_EN)
    pc.clock.advance(when(7 * HALF))
    assert pc.levels == [True]
    pc.out(0x600, Pm1Sts.TMR_STS.value)
    assert (pc.status(), pc.levels) == (Pm1Sts(0), [True, False])
    pc.clock.advance(when(8 * HALF) - pc.clock.now())
    assert pc.levels == [True, False, True]


def test_a_change_that_came_before_tmr_en_interrupts_as_soon_as_it_is_enabled() -> None:
    pc = Pc()
    pc.clock.advance(when(HALF))
    assert pc.levels == []
    pc.enable(Pm1En.TMR_EN)
    assert pc.levels == [True]


def test_a_change_that_came_before_acpi_enable_interrupts_as_soon_as_the_events_are_the_kernels() -> None:
    pc = Pc(acpi=False)
    pc.enable(Pm1En.TMR_EN)
    pc.clock.advance(when(HALF))
    assert pc.levels == []
    pc.out(0xB2, 0xF1, 1)
    assert pc.levels == [True]


def test_the_clock_is_asked_for_one_call_at_most_however_often_tmr_en_is_switched() -> None:
    calls: list[int] = []

    class CountingClock(ManualClock):
        def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
            calls.append(when)
            return super().call_at(when, callback)

    pm = AcpiPm(CountingClock(), Wire(), lambda state: None)
    pm.write(Offset.PM1_CNT, b"\x01")
    assert calls == []
    for _ in range(100):
        pm.write(Offset.PM1_EN, b"\x01")
        pm.write(Offset.PM1_EN, b"\x00")
    assert calls == [when(HALF)]


# ---- a hostile guest ----

accesses = st.lists(
    st.tuples(
        st.integers(0, acpipm.REGISTERS + 8),
        st.binary(min_size=1, max_size=8),
        st.booleans(),
        st.sampled_from([0, 1, when(HALF), 3 * SECOND]),
    ),
    max_size=60,
)


@given(accesses)
def test_no_sequence_of_accesses_of_any_width_leaves_an_invalid_state(
    accesses: list[tuple[int, bytes, bool, int]],
) -> None:
    pc = Pc()
    for offset, data, is_write, delay in accesses:
        pc.clock.advance(delay)
        if is_write:
            pc.pm.write(offset, data)
        else:
            assert len(pc.pm.read(offset, len(data))) == len(data)
        sts, en, cnt = pc.inp(0x600), pc.inp(0x602), pc.inp(0x604)
        Pm1Sts(sts), Pm1En(en), Pm1Cnt(cnt)  # each of them raises for a bit that there is not
        assert pc.inp(0x606) == 0
        assert pc.inp(0x608, 4) == pc.clock.now() * FREQUENCY // SECOND % (1 << 24)
        assert bool(pc.levels and pc.levels[-1]) == bool(cnt & 1 and sts & en)
    assert all(before != after for before, after in zip(pc.levels, pc.levels[1:], strict=False))
    assert set(pc.sleeps) <= {3, 5}


@given(st.lists(st.tuples(st.integers(0, acpipm.SMI_REGISTERS + 6), st.binary(min_size=1, max_size=8))))
def test_no_sequence_of_smi_commands_does_more_than_switch_sci_en(accesses: list[tuple[int, bytes]]) -> None:
    pc = Pc(acpi=False)
    for offset, data in accesses:
        pc.pm.smi_command.write(offset, data)
        assert len(pc.pm.smi_command.read(offset, len(data))) == len(data)
    assert pc.inp(0x604) in (0, Pm1Cnt.SCI_EN.value)
