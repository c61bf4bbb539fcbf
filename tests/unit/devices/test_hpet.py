"""pykvm.devices.hpet: the main counter, as the IA-PC HPET specification has it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import SECOND, ManualClock
from pykvm.devices.hpet import FREQUENCY, SIZE, Capability, Configuration, Hpet, Offset

ENABLE = Configuration.ENABLE.value


class Timer:
    """An HPET and a clock that the test turns."""

    def __init__(self, *, running: bool = False) -> None:
        self.clock = ManualClock()
        self.chip = Hpet(self.clock)
        if running:
            self.write(Offset.GEN_CONF, ENABLE)

    def read(self, register: int, size: int = 8) -> int:
        return int.from_bytes(self.chip.read(register, size), "little")

    def write(self, register: int, value: int, size: int = 8) -> None:
        self.chip.write(register, value.to_bytes(size, "little"))


def test_the_capabilities_say_how_long_a_tick_is() -> None:
    femtoseconds = Timer().read(Offset.GCAP_ID) >> 32
    assert femtoseconds == 10_000_000
    assert 10**15 // femtoseconds == FREQUENCY


def test_the_capabilities_have_a_64_bit_counter_and_one_timer_and_a_revision() -> None:
    capabilities = Timer().read(Offset.GCAP_ID, 4)
    assert capabilities & Capability.SIZE_CAP.value
    assert not capabilities & Capability.LEG_ROUTE.value
    assert capabilities >> 8 & 0x1F == 0
    assert capabilities & 0xFF != 0
    assert capabilities >> 16 == 0x8086


def test_the_capabilities_cannot_be_written() -> None:
    timer = Timer()
    before = timer.read(Offset.GCAP_ID)
    timer.write(Offset.GCAP_ID, 0)
    assert timer.read(Offset.GCAP_ID) == before


def test_after_reset_the_counter_stands_at_zero() -> None:
    timer = Timer()
    timer.clock.advance(SECOND)
    assert (timer.read(Offset.GEN_CONF), timer.read(Offset.MAIN_CNT)) == (0, 0)


def test_the_counter_runs_while_enabled() -> None:
    timer = Timer(running=True)
    timer.clock.advance(SECOND)
    assert timer.read(Offset.MAIN_CNT) == FREQUENCY
    timer.clock.advance(10)
    assert timer.read(Offset.MAIN_CNT) == FREQUENCY + 1


def test_the_counter_keeps_its_value_while_it_stands() -> None:
    timer = Timer(running=True)
    timer.clock.advance(1000)
    timer.write(Offset.GEN_CONF, 0)
    timer.clock.advance(SECOND)
    assert timer.read(Offset.MAIN_CNT) == 100
    timer.write(Offset.GEN_CONF, ENABLE)
    timer.clock.advance(1000)
    assert timer.read(Offset.MAIN_CNT) == 200


def test_enabling_a_running_counter_changes_nothing() -> None:
    timer = Timer(running=True)
    for _ in range(10):
        timer.clock.advance(9)  # less than a tick
        timer.write(Offset.GEN_CONF, ENABLE)
    assert timer.read(Offset.MAIN_CNT) == 9


def test_a_standing_counter_can_be_set() -> None:
    timer = Timer()
    timer.write(Offset.MAIN_CNT, 0x0123_4567_89AB_CDEF)
    assert timer.read(Offset.MAIN_CNT) == 0x0123_4567_89AB_CDEF
    timer.write(Offset.GEN_CONF, ENABLE)
    timer.clock.advance(10)
    assert timer.read(Offset.MAIN_CNT) == 0x0123_4567_89AB_CDF0


def test_a_running_counter_cannot_be_set() -> None:
    timer = Timer(running=True)
    timer.write(Offset.MAIN_CNT, 1234)
    assert timer.read(Offset.MAIN_CNT) == 0


def test_after_the_last_value_the_counter_starts_again() -> None:
    timer = Timer()
    timer.write(Offset.MAIN_CNT, 2**64 - 1)
    timer.write(Offset.GEN_CONF, ENABLE)
    timer.clock.advance(20)
    assert timer.read(Offset.MAIN_CNT) == 1


def test_a_register_can_be_accessed_by_halves() -> None:
    timer = Timer()
    timer.write(Offset.MAIN_CNT, 0x1111_1111, 4)
    timer.write(Offset.MAIN_CNT + 4, 0x2222_2222, 4)
    assert timer.read(Offset.MAIN_CNT) == 0x2222_2222_1111_1111
    assert timer.read(Offset.MAIN_CNT + 4, 4) == 0x2222_2222


def test_interrupts_cannot_take_the_places_of_other_timers() -> None:
    timer = Timer()
    timer.write(Offset.GEN_CONF, (Configuration.ENABLE | Configuration.LEG_RT).value)
    assert timer.read(Offset.GEN_CONF) == ENABLE


def test_the_timer_has_no_interrupt_it_could_be_routed_to() -> None:
    timer = Timer()
    timer.write(Offset.TIM0_CONF, 2**64 - 1)
    configuration = timer.read(Offset.TIM0_CONF)
    assert configuration >> 32 == 0, "INT_ROUTE_CAP"
    assert configuration & 0b100 == 0, "INT_ENB_CNF"
    assert configuration & 0x8000 == 0, "FSB_INT_DEL_CAP"


def test_the_comparator_keeps_what_is_written() -> None:
    timer = Timer()
    assert timer.read(Offset.TIM0_COMP) == 2**64 - 1
    timer.write(Offset.TIM0_COMP, 42)
    assert timer.read(Offset.TIM0_COMP) == 42


def test_no_interrupt_is_ever_pending() -> None:
    timer = Timer(running=True)
    timer.write(Offset.TIM0_COMP, 1)
    timer.clock.advance(SECOND)
    assert timer.read(Offset.GINTR_STA) == 0


@pytest.mark.parametrize("register", [0x008, 0x0F8, 0x120, 0x3F8])
def test_where_no_register_is_there_are_zeros(register: int) -> None:
    timer = Timer()
    timer.write(register, 2**64 - 1)
    assert timer.read(register) == 0


widths = st.sampled_from([1, 2, 3, 4, 8])
written = widths.flatmap(lambda size: st.binary(min_size=size, max_size=size))
offsets = st.integers(0, SIZE + 8) | st.sampled_from(list(Offset))


@given(st.lists(st.tuples(offsets, widths | written, st.integers(0, 100)), max_size=40))
def test_no_access_sequence_raises_and_the_counter_has_64_bits(sequence: list[tuple[int, int | bytes, int]]) -> None:
    timer = Timer()
    for offset, access, nanoseconds in sequence:
        timer.clock.advance(nanoseconds)
        if isinstance(access, int):
            assert len(timer.chip.read(offset, access)) == access
        else:
            timer.chip.write(offset, access)
        assert 0 <= timer.chip.counter < 2**64


@given(st.lists(st.integers(0, 10**12), max_size=20))
def test_a_running_counter_never_goes_back(steps: list[int]) -> None:
    timer = Timer(running=True)
    last = 0
    for step in steps:
        timer.clock.advance(step)
        assert timer.chip.counter == timer.clock.now() // 10 >= last
        last = timer.chip.counter
