"""pykvm.devices.pit and pit_counter: the 8254, mode by mode, as the data sheet has it."""

from __future__ import annotations

import itertools

import pytest

from pykvm.devices.clock import SECOND, ManualClock
from pykvm.devices.pit import ALARM_INTERVAL, PIT_HZ, Offset, Pit, PortB, ReadBack
from pykvm.devices.pit_counter import Access, Mode, Status

BOTH = Access.BOTH


class Pc:
    """A timer, its clock and IRQ 0; the counter that a test speaks of is 2, whose pins it sees, unless it says so."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.level = False
        self.edges: list[int] = []  # when IRQ 0 rose, in ticks
        self.pit = Pit(self.clock, self)
        self.gate(True)

    def set_level(self, level: bool) -> None:
        if level and not self.level:
            self.edges.append(self.pit.ticks)
        self.level = level

    def goto(self, tick: int) -> None:
        """Let time pass until the clock has ticked ``tick`` times."""
        self.clock.advance(-(-tick * SECOND // PIT_HZ) - self.clock.now())
        assert self.pit.ticks == tick

    def tick(self, times: int = 1) -> None:
        self.goto(self.pit.ticks + times)

    def gate(self, level: bool) -> None:
        self.pit.port61.write(0, bytes((PortB.GATE2.value if level else 0,)))

    def trigger(self) -> None:
        self.gate(False)
        self.gate(True)

    def control(self, value: int) -> None:
        self.pit.write(Offset.CONTROL, bytes((value,)))

    def program(self, mode: Mode, *, access: Access = BOTH, counter: int = 2, bcd: bool = False) -> None:
        self.control(counter << 6 | access.value << 4 | mode.value << 1 | bcd)

    def load(self, count: int, counter: int = 2) -> None:
        """Write both bytes of a count."""
        for byte in count.to_bytes(2, "little"):
            self.write(byte, counter)

    def write(self, byte: int, counter: int = 2) -> None:
        self.pit.write(counter, bytes((byte,)))

    def read(self, counter: int = 2) -> int:
        return self.pit.read(counter, 1)[0]

    def count(self, counter: int = 2) -> int:
        return self.read(counter) | self.read(counter) << 8

    def status(self, counter: int = 2) -> int:
        self.control((ReadBack.READ_BACK | ReadBack.NO_COUNT).value | 2 << counter)
        return self.read(counter)

    def null_count(self) -> bool:
        return bool(self.status() & Status.NULL_COUNT.value)

    @property
    def out(self) -> bool:
        return bool(self.pit.port61.read(0, 1)[0] & PortB.OUT2.value)

    def watch(self, ticks: int) -> tuple[str, list[int]]:
        """Return OUT (as L and H) and the count at each of the next ticks."""
        outs, counts = "", []
        for _ in range(ticks):
            self.tick()
            outs += "H" if self.out else "L"
            counts.append(self.count())
        return outs, counts


# ---- the control word, and how a count is written and read ----


@pytest.mark.parametrize("mode", Mode)
def test_a_control_word_sets_out_at_once_low_in_mode_0_and_high_in_the_others(mode: Mode) -> None:
    pc = Pc()
    pc.program(mode)
    assert pc.out == (mode is not Mode.INTERRUPT_ON_TERMINAL_COUNT)
    assert pc.null_count()


@pytest.mark.parametrize(
    ("access", "written", "initial"),
    [
        (Access.LOW, b"\x12", 0x0012),
        (Access.HIGH, b"\x12", 0x1200),
        (Access.BOTH, b"\x34\x12", 0x1234),
        (Access.BOTH, b"\x00\x00", 0),
    ],
)
def test_a_count_is_written_as_the_control_word_says(access: Access, written: bytes, initial: int) -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR, access=access)
    for byte in written:
        assert pc.null_count()
        pc.write(byte)
    assert pc.null_count()
    pc.tick()
    assert not pc.null_count()
    pc.control(0x80)
    expected = {Access.LOW: b"\x12", Access.HIGH: b"\x12"}.get(access, initial.to_bytes(2, "little"))
    assert bytes(pc.read() for _ in expected) == expected


def test_a_count_of_0_is_the_greatest() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(0)
    pc.tick(0x10000)
    assert not pc.out
    pc.tick()
    assert pc.out


def test_in_bcd_the_count_has_four_decimal_digits() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT, bcd=True)
    pc.load(0x1000)
    pc.tick(2)
    assert pc.count() == 0x0999
    pc.goto(1001)
    assert (pc.count(), pc.out) == (0, True)
    pc.tick()
    assert pc.count() == 0x9999


def test_in_bcd_a_count_of_0_is_10_000() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT, bcd=True)
    pc.load(0)
    pc.tick(10_000)
    assert not pc.out
    pc.tick()
    assert pc.out


@pytest.mark.parametrize("mode", [Mode.RATE_GENERATOR, Mode.SQUARE_WAVE])
def test_modes_6_and_7_are_modes_2_and_3_and_the_status_shows_what_was_written(mode: Mode) -> None:
    pc, other = Pc(), Pc()
    pc.program(mode)
    other.control(0xB0 | (mode.value | 4) << 1)
    assert other.status() & 0x3F == 0x30 | (mode.value | 4) << 1
    pc.load(5)
    other.load(5)
    assert pc.watch(12) == other.watch(12)


def test_the_control_port_cannot_be_read() -> None:
    assert Pc().pit.read(Offset.CONTROL, 1) == b"\xff"


def test_the_four_registers_repeat_at_higher_offsets() -> None:
    pc = Pc()
    pc.pit.write(7, bytes((0x80 | Access.LOW.value << 4,)))
    pc.pit.write(6, b"\x55")
    pc.tick()
    assert pc.pit.read(10, 1) == b"\x55"


# ---- mode 0: interrupt on terminal count ----


def test_mode_0_raises_out_n_plus_1_ticks_after_the_count_was_written() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(4)
    assert pc.watch(7) == ("LLLLHHH", [4, 3, 2, 1, 0, 0xFFFF, 0xFFFE])


def test_mode_0_waits_while_gate_is_low() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(3)
    pc.tick(2)
    pc.gate(False)
    assert pc.watch(3) == ("LLL", [2, 2, 2])
    pc.gate(True)
    assert pc.watch(3) == ("LHH", [1, 0, 0xFFFF])


def test_mode_0_loads_a_count_while_gate_is_low() -> None:
    pc = Pc()
    pc.gate(False)
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(2)
    assert pc.watch(2) == ("LL", [2, 2])
    pc.gate(True)
    assert pc.watch(2) == ("LH", [1, 0]), "no tick is lost to loading it"


def test_mode_0_stops_at_the_first_byte_of_a_new_count_and_goes_on_with_the_second() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(2)
    pc.tick(5)
    assert pc.out
    pc.write(3)
    assert not pc.out
    assert pc.watch(2) == ("LL", [0xFFFE, 0xFFFE])
    pc.write(0)
    assert pc.watch(4) == ("LLLH", [3, 2, 1, 0])


def test_mode_0_does_not_load_a_count_of_which_another_one_has_begun_to_take_the_place() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(2)
    pc.write(5)
    assert pc.watch(4) == ("LLLL", [0, 0, 0, 0])


# ---- mode 1: hardware retriggerable one-shot ----


def test_mode_1_lowers_out_for_n_ticks_after_a_trigger() -> None:
    pc = Pc()
    pc.program(Mode.ONE_SHOT)
    pc.load(3)
    pc.tick(4)
    assert (pc.out, pc.null_count()) == (True, True)
    pc.trigger()
    assert pc.watch(5) == ("LLLHH", [3, 2, 1, 0, 0xFFFF])


def test_mode_1_can_be_triggered_again_with_a_new_count_and_needs_no_gate_in_between() -> None:
    pc = Pc()
    pc.program(Mode.ONE_SHOT)
    pc.load(3)
    pc.trigger()
    pc.tick(2)
    pc.load(5)
    pc.gate(False)
    assert pc.watch(1) == ("L", [1]), "neither a new count nor GATE has an effect by itself"
    pc.gate(True)
    assert pc.watch(6) == ("LLLLLH", [5, 4, 3, 2, 1, 0])


def test_a_trigger_before_the_first_count_has_no_effect() -> None:
    pc = Pc()
    pc.program(Mode.ONE_SHOT)
    pc.trigger()
    assert pc.watch(3)[0] == "HHH"


# ---- mode 2: rate generator ----


def test_mode_2_lowers_out_for_the_last_of_n_ticks() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR)
    pc.load(3)
    assert pc.watch(8) == ("HHLHHLHH", [3, 2, 1, 3, 2, 1, 3, 2])


def test_mode_2_takes_a_new_count_at_the_end_of_the_cycle() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR)
    pc.load(4)
    pc.tick(2)
    pc.load(2)
    assert pc.null_count()
    assert pc.watch(6) == ("HLHLHL", [2, 1, 2, 1, 2, 1])
    assert not pc.null_count()


def test_mode_2_holds_out_high_while_gate_is_low_and_begins_again() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR)
    pc.load(3)
    pc.tick(3)
    assert not pc.out
    pc.gate(False)
    assert pc.out
    assert pc.watch(3) == ("HHH", [1, 1, 1])
    pc.gate(True)
    assert pc.watch(4) == ("HHLH", [3, 2, 1, 3])


@pytest.mark.parametrize("mode", [Mode.RATE_GENERATOR, Mode.SQUARE_WAVE])
def test_a_count_of_1_which_the_data_sheet_forbids_leaves_out_high(mode: Mode) -> None:
    pc = Pc()
    pc.program(mode)
    pc.load(1)
    assert pc.watch(5)[0] == "HHHHH"


# ---- mode 3: square wave ----


def test_mode_3_with_an_even_count_is_high_for_half_of_it() -> None:
    pc = Pc()
    pc.program(Mode.SQUARE_WAVE)
    pc.load(4)
    assert pc.watch(9) == ("HHLLHHLLH", [4, 2, 4, 2, 4, 2, 4, 2, 4])


def test_mode_3_with_an_odd_count_is_high_one_tick_longer() -> None:
    pc = Pc()
    pc.program(Mode.SQUARE_WAVE)
    pc.load(5)
    assert pc.watch(10) == ("HHHLLHHHLL", [4, 2, 0, 4, 2, 4, 2, 0, 4, 2])


def test_mode_3_takes_a_new_count_at_the_end_of_the_half_cycle() -> None:
    pc = Pc()
    pc.program(Mode.SQUARE_WAVE)
    pc.load(6)
    pc.tick(2)
    pc.load(4)
    assert pc.watch(6) == ("HLLHHL", [2, 4, 2, 4, 2, 4])


def test_mode_3_begins_again_high_after_gate_was_low() -> None:
    pc = Pc()
    pc.program(Mode.SQUARE_WAVE)
    pc.load(4)
    pc.tick(3)
    assert not pc.out
    pc.gate(False)
    assert pc.out
    pc.gate(True)
    assert pc.watch(5) == ("HHLLH", [4, 2, 4, 2, 4])


def test_mode_3_takes_a_new_count_after_the_forbidden_1_as_a_whole_cycle() -> None:
    pc = Pc()
    pc.program(Mode.SQUARE_WAVE)
    pc.load(1)
    pc.tick(3)
    pc.load(4)
    assert pc.watch(5) == ("HHLLH", [4, 2, 4, 2, 4])


# ---- mode 4 and 5: strobes ----


def test_mode_4_lowers_out_for_one_tick_n_plus_1_ticks_after_the_count_was_written_and_once() -> None:
    pc = Pc()
    pc.program(Mode.SOFTWARE_STROBE)
    pc.load(3)
    assert pc.watch(6) == ("HHHLHH", [3, 2, 1, 0, 0xFFFF, 0xFFFE])


def test_mode_4_is_triggered_again_by_a_new_count_and_waits_while_gate_is_low() -> None:
    pc = Pc()
    pc.program(Mode.SOFTWARE_STROBE)
    pc.load(3)
    pc.tick(2)
    pc.load(2)
    assert pc.watch(2) == ("HH", [2, 1])
    pc.gate(False)
    assert pc.watch(2) == ("HH", [1, 1])
    pc.gate(True)
    assert pc.watch(2) == ("LH", [0, 0xFFFF])


def test_mode_5_strobes_n_ticks_after_each_trigger() -> None:
    pc = Pc()
    pc.program(Mode.HARDWARE_STROBE)
    pc.load(2)
    assert pc.watch(4)[0] == "HHHH"
    pc.trigger()
    assert pc.watch(4) == ("HHLH", [2, 1, 0, 0xFFFF])
    pc.trigger()
    pc.tick(2)
    pc.trigger()
    assert pc.watch(4) == ("HHLH", [2, 1, 0, 0xFFFF])


# ---- latches and read-back ----


def test_a_latched_count_stays_until_it_is_read_and_a_second_latch_is_ignored() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR)
    pc.load(0x1234)
    pc.tick()
    pc.control(0x80)
    pc.tick(100)
    pc.control(0x80)
    assert pc.count() == 0x1234
    assert pc.count() == 0x1234 - 100


def test_a_latch_leaves_the_other_counters_alone() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR)
    pc.load(100)
    pc.tick()
    pc.control(0x40)
    pc.tick(10)
    assert pc.count() == 90


def test_programming_a_counter_drops_its_latches() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR)
    pc.load(0x1234)
    pc.tick()
    pc.control((ReadBack.READ_BACK | ReadBack.COUNTER_2).value)
    pc.program(Mode.RATE_GENERATOR)
    pc.load(0x4321)
    pc.tick()
    assert pc.count() == 0x4321


def test_a_read_goes_through_both_bytes_with_other_accesses_in_between() -> None:
    pc = Pc()
    pc.gate(False)
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(0x1234)
    pc.tick()
    assert pc.read() == 0x34
    pc.write(0x78)
    assert pc.read() == 0x12
    pc.write(0x56)
    pc.tick()
    assert pc.count() == 0x5678


def test_read_back_latches_counts_of_several_counters_at_one_moment() -> None:
    pc = Pc()
    for counter in range(3):
        pc.program(Mode.RATE_GENERATOR, counter=counter)
        pc.load(1000 * (counter + 1), counter)
    pc.tick()
    pc.control((ReadBack.READ_BACK | ReadBack.NO_STATUS | ReadBack.COUNTER_0 | ReadBack.COUNTER_2).value)
    pc.tick(10)
    assert [pc.count(counter) for counter in range(3)] == [1000, 1990, 3000]


def test_read_back_of_both_gives_the_status_first() -> None:
    pc = Pc()
    pc.program(Mode.SQUARE_WAVE)
    pc.load(0x1235)
    pc.tick()
    pc.control((ReadBack.READ_BACK | ReadBack.COUNTER_2).value)
    pc.tick(5)
    assert pc.read() == Status.OUT.value | BOTH.value << 4 | Mode.SQUARE_WAVE.value << 1
    assert pc.count() == 0x1234


def test_a_latched_status_is_of_the_moment_of_the_first_latch() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(2)
    command = (ReadBack.READ_BACK | ReadBack.NO_COUNT | ReadBack.COUNTER_2).value
    pc.control(command)
    pc.tick(5)
    pc.control(command)
    assert pc.read() == Status.NULL_COUNT.value | BOTH.value << 4
    assert pc.status() == Status.OUT.value | BOTH.value << 4


def test_a_read_back_of_nothing_latches_nothing() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR)
    pc.load(100)
    pc.tick()
    pc.control((ReadBack.READ_BACK | ReadBack.NO_COUNT | ReadBack.NO_STATUS | ReadBack.COUNTER_2).value)
    pc.tick(10)
    assert pc.count() == 90


# ---- IRQ 0 ----


def test_before_it_is_programmed_the_timer_is_silent() -> None:
    pc = Pc()
    pc.clock.advance(10 * SECOND)
    assert (pc.edges, pc.level) == ([], False)


@pytest.mark.parametrize("mode", [Mode.RATE_GENERATOR, Mode.SQUARE_WAVE])
def test_a_periodic_counter_makes_one_rising_edge_a_cycle(mode: Mode) -> None:
    pc = Pc()
    pc.program(mode, counter=0)
    pc.load(1001, 0)
    pc.goto(5006)
    assert pc.edges == [1002, 2003, 3004, 4005, 5006]


def test_mode_0_makes_one_edge() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT, counter=0)
    pc.load(1000, 0)
    pc.goto(200_000)
    assert pc.edges == [1001]
    assert pc.level


def test_a_strobe_makes_an_edge_at_its_end() -> None:
    pc = Pc()
    pc.program(Mode.SOFTWARE_STROBE, counter=0)
    pc.load(1000, 0)
    pc.goto(200_000)
    assert pc.edges == [1002]


def test_a_count_written_during_the_strobe_ends_it() -> None:
    pc = Pc()
    pc.program(Mode.SOFTWARE_STROBE, counter=0)
    pc.load(1000, 0)
    pc.goto(1001)
    pc.load(1000, 0)
    pc.goto(200_000)
    assert pc.edges == [1002, 2003]


@pytest.mark.parametrize("mode", [Mode.ONE_SHOT, Mode.HARDWARE_STROBE])
def test_what_gate_triggers_makes_no_edge_for_gate_0_is_always_high(mode: Mode) -> None:
    pc = Pc()
    pc.program(mode, counter=0)
    pc.load(1000, 0)
    pc.goto(200_000)
    assert pc.edges == []


def test_raising_out_by_a_control_word_is_an_edge() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT, counter=0)
    pc.program(Mode.RATE_GENERATOR, counter=0)
    assert pc.edges == [0]


def test_reprogramming_cancels_the_edges_of_before() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR, counter=0)
    pc.load(1000, 0)
    pc.goto(500)
    pc.program(Mode.RATE_GENERATOR, counter=0)
    pc.goto(10_000)
    assert pc.edges == []
    pc.load(2000, 0)
    pc.goto(13_000)
    assert pc.edges == [12_001]


def test_the_other_counters_make_no_edges() -> None:
    pc = Pc()
    for counter in (1, 2):
        pc.program(Mode.RATE_GENERATOR, counter=counter)
        pc.load(100, counter)
    pc.goto(10_000)
    assert pc.edges == []


def test_a_thousand_seconds_have_no_drift() -> None:
    pc = Pc()
    pc.program(Mode.RATE_GENERATOR, counter=0)
    pc.load(59659, 0)  # 20 Hz, nearly
    pc.clock.advance(1000 * SECOND)
    assert len(pc.edges) == (1000 * PIT_HZ - 1) // 59659
    assert all(tick % 59659 == 1 for tick in pc.edges)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("mode", Mode)
def test_a_hostile_count_does_not_keep_the_host_busy(mode: Mode, count: int) -> None:
    pc = Pc()
    pc.program(mode, counter=0)
    pc.load(count, 0)
    pc.clock.advance(SECOND // 100)
    assert len(pc.edges) <= SECOND // 100 // ALARM_INTERVAL + 1
    if mode in (Mode.RATE_GENERATOR, Mode.SQUARE_WAVE) and count > 1:
        assert len(pc.edges) == SECOND // 100 // ALARM_INTERVAL, "it is slow, not dead"


class LateClock(ManualClock):
    """A clock that jumps."""

    def jump(self, nanoseconds: int) -> None:
        self._now += nanoseconds


def test_edges_that_pass_while_the_alarm_is_late_become_one() -> None:
    pc = Pc()
    pc.clock = clock = LateClock()
    pc.pit = Pit(clock, pc)
    pc.program(Mode.RATE_GENERATOR, counter=0)
    pc.load(1000, 0)
    clock.jump(SECOND)
    clock.advance(0)
    assert len(pc.edges) == 1
    pc.tick(1000)
    assert len(pc.edges) == 2
    assert pc.edges[1] % 1000 == 1, "and the next one comes when it would have come"


def test_an_edge_that_has_passed_is_seen_by_an_access_before_the_alarm() -> None:
    pc = Pc()
    pc.clock = clock = LateClock()
    pc.pit = Pit(clock, pc)
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT, counter=0)
    pc.load(1000, 0)
    clock.jump(SECOND)
    pc.read(0)
    assert len(pc.edges) == 1
    clock.advance(SECOND)
    assert len(pc.edges) == 1


# ---- port 0x61 ----


def test_port_61_keeps_the_four_bits_that_can_be_written() -> None:
    pc = Pc()
    pc.pit.port61.write(0, b"\xff")
    assert pc.pit.port61.read(0, 1)[0] & 0xCF == 0x0F
    pc.pit.port61.write(0, b"\x00")
    assert pc.pit.port61.read(0, 1)[0] & 0xCF == 0


def test_gate_2_is_low_until_port_61_raises_it() -> None:
    clock = ManualClock()
    pit = Pit(clock, Pc())
    pit.write(Offset.CONTROL, bytes((0x80 | Access.LOW.value << 4,)))
    pit.write(Offset.COUNTER_2, b"\x0a")
    clock.advance(SECOND)
    assert not pit.output(2)
    pit.port61.write(0, bytes((PortB.GATE2.value,)))
    clock.advance(SECOND)
    assert pit.output(2)


def test_the_refresh_bit_changes_every_15_microseconds() -> None:
    pc = Pc()
    seen = []
    for _ in range(1000):
        seen.append(pc.pit.port61.read(0, 1)[0] & PortB.REFRESH.value)
        pc.clock.advance(1000)
    changes = sum(before != after for before, after in itertools.pairwise(seen))
    assert changes == 1_000_000 // 15_085


def test_the_calibration_loop_by_which_linux_measures_the_tsc_sees_50_milliseconds() -> None:
    pc = Pc()
    pc.program(Mode.INTERRUPT_ON_TERMINAL_COUNT)
    pc.load(PIT_HZ // 20)
    start = pc.clock.now()
    while not pc.out:
        pc.clock.advance(10_000)
    assert 50_000_000 <= pc.clock.now() - start <= 50_010_000
