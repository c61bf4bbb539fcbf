"""pykvm.devices.pit against a small model that counts tick by tick: any sequence of accesses and of passing time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pykvm.devices.clock import SECOND, ManualClock
from pykvm.devices.irq import Disconnected
from pykvm.devices.pit import ALARM_INTERVAL, PIT_HZ, Pit

bytes_ = st.integers(0, 0xFF)
widths = st.sampled_from([1, 2, 4, 8])
modes = st.integers(0, 7)
numbers = st.integers(0, 2)

# Counts whose ends are reached by the little time that passes, and which are odd or even, short or with two bytes.
counts = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x19, 0x100, 0x101, 0x1234]) | st.integers(0, 0xFFFF)
times = st.sampled_from([0, 1, 2, 3]) | st.integers(0, 40) | st.sampled_from([255, 256, 300, 3000])


class Counter:
    """One counter, with the registers that the data sheet's block diagram shows, moved by one tick at a time."""

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.program(0x36)

    def program(self, word: int) -> None:
        self.word = word & 0x3F
        self.mode = {6: 2, 7: 3}.get(word >> 1 & 7, word >> 1 & 7)
        self.bcd = bool(word & 1)
        self.bytes_of_count = {1: [0], 2: [1], 3: [0, 1]}[word >> 4 & 3]
        self.writing, self.reading = list(self.bytes_of_count), list(self.bytes_of_count)
        self.buffer = [0, 0]
        self.cr: int | None = None  # count register
        self.ce = 0  # counting element
        self.size = 0  # the count that CE was loaded from
        self.out = self.mode != 0
        self.counting = False  # CE has been loaded, and nothing has stopped it
        self.strobe_armed = False
        self.load_next = False
        self.null = True
        self.count_latch: int | None = None
        self.status_latch: int | None = None

    @property
    def wrap(self) -> int:
        return 10_000 if self.bcd else 65_536

    # -- one tick --

    def load(self) -> None:
        assert self.cr is not None
        self.size = self.cr
        self.ce = self.cr
        self.null = self.load_next = False
        self.counting = True

    def tick(self) -> None:
        if self.load_next:
            self.load()
            self.strobe_armed = True
            self.out = self.mode not in (0, 1)
            if self.mode == 3:
                self.ce -= self.ce % 2
            if self.mode in (0, 1, 4, 5) and self.ce == 0:
                raise AssertionError("0 stands for the greatest count")
            if self.mode in (2, 3) and not self.gate:
                self.counting = False
            return
        if not self.counting or not (self.gate or self.mode in (1, 5)):
            return
        {2: self.tick_rate, 3: self.tick_square}.get(self.mode, self.tick_once)()

    def tick_once(self) -> None:
        self.ce = (self.ce - 1) % self.wrap
        ended = self.ce == 0 and self.strobe_armed
        if self.mode in (0, 1):
            self.out = self.out or ended
        else:
            self.out = not ended
        if ended:
            self.strobe_armed = False

    def reload(self) -> None:
        """Take the count register again: a new count comes into force at the end of a cycle, or of its half."""
        if self.null:
            self.load()
        self.ce = self.size

    def tick_rate(self) -> None:
        if self.ce == 1:
            self.reload()
        else:
            self.ce -= 1
        self.out = self.ce != 1 or self.size == 1

    def tick_square(self) -> None:
        # The high half of an odd count shows a 0 at its end; the others end when they would come to it.
        last = 0 if self.out and self.size % 2 else 2
        if self.ce != last:
            self.ce -= 2
            return
        low_is_next = self.out and self.size != 1
        self.reload()
        self.ce -= self.ce % 2
        self.out = not low_is_next or self.size == 1

    # -- pins and registers --

    def set_gate(self, level: bool) -> None:
        rose, fell, self.gate = level and not self.gate, self.gate and not level, level
        if rose and self.mode in (1, 2, 3, 5) and self.cr is not None:
            self.load_next = True
        if fell and self.mode in (2, 3):
            self.out = True
            self.counting = False

    def write(self, value: int) -> None:
        which = self.writing.pop(0)
        self.buffer[which] = value
        if self.writing:
            if self.mode == 0:
                self.counting = self.out = self.load_next = False
            return
        self.writing = list(self.bytes_of_count)
        written = self.buffer[1] << 8 | self.buffer[0]
        if self.bcd:
            written = sum(int(digit, 16) * 10**n for n, digit in enumerate(reversed(f"{written:04x}")))
        first = self.cr is None
        self.cr = written % self.wrap or self.wrap
        self.null = True
        if self.mode in (0, 4) or (self.mode in (2, 3) and first):
            self.load_next = True

    def shown(self) -> int:
        value = self.ce % self.wrap
        return int(f"{value:04d}", 16) if self.bcd else value

    def latch(self, count: bool, status: bool) -> None:
        if count and self.count_latch is None:
            self.count_latch = self.shown()
        if status and self.status_latch is None:
            self.status_latch = self.out << 7 | self.null << 6 | self.word

    def read(self) -> int:
        if self.status_latch is not None:
            value, self.status_latch = self.status_latch, None
            return value
        count = self.shown() if self.count_latch is None else self.count_latch
        which = self.reading.pop(0)
        if not self.reading:
            self.reading = list(self.bytes_of_count)
            self.count_latch = None
        return count >> 8 * which & 0xFF


class Model:
    """The chip, and port 0x61."""

    def __init__(self) -> None:
        self.counters = [Counter(True), Counter(True), Counter(False)]
        self.ticks = 0
        self.port = 0
        self.rises: list[int] = []  # when OUT of counter 0 rose

    def advance(self, ticks: int) -> None:
        for _ in range(ticks - self.ticks):
            self.ticks += 1
            before = self.counters[0].out
            for counter in self.counters:
                counter.tick()
            if self.counters[0].out and not before:
                self.rises.append(self.ticks)

    def read(self, offset: int) -> int:
        return 0xFF if offset == 3 else self.counters[offset].read()

    def write(self, offset: int, value: int) -> None:
        before = self.counters[0].out
        if offset < 3:
            self.counters[offset].write(value)
        elif value >> 6 == 3:
            for n, counter in enumerate(self.counters):
                if value >> n & 2:
                    counter.latch(count=not value & 0x20, status=not value & 0x10)
        elif value & 0x30:
            self.counters[value >> 6].program(value)
        else:
            self.counters[value >> 6].latch(count=True, status=False)
        if self.counters[0].out and not before:
            self.rises.append(self.ticks)


class PitAgainstModel(RuleBasedStateMachine):
    """Does the same to the chip and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.level = False
        self.edges: list[tuple[int, int]] = []  # when IRQ 0 rose, in nanoseconds, and how often OUT had by then
        self.model = Model()
        self.chip = Pit(self.clock, self)

    def set_level(self, level: bool) -> None:
        if level and not self.level:
            self.catch_up()
            self.edges.append((self.clock.now(), len(self.model.rises)))
        self.level = level

    def catch_up(self) -> None:
        self.model.advance(self.clock.now() * PIT_HZ // SECOND)

    @rule(offset=st.integers(0, 7), size=widths)
    def read(self, offset: int, size: int) -> None:
        expected = bytes(self.model.read((offset + n) % 4) for n in range(size))
        assert self.chip.read(offset, size) == expected

    @precondition(lambda self: self.model.ticks % 4 == 0)  # rarely: most of it undoes what is going on
    @rule(offset=st.integers(0, 7), data=st.binary(min_size=1, max_size=8))
    def write(self, offset: int, data: bytes) -> None:
        for n, value in enumerate(data):
            self.model.write((offset + n) % 4, value)
            self.chip.write(offset + n, data[n : n + 1])

    @rule(mode=modes, count=counts)
    def program_2(self, mode: int, count: int) -> None:
        self.program(2, 3, mode, False, count)

    @rule(count=counts)
    def load_2(self, count: int) -> None:
        self.load(2, count)

    @rule(number=numbers, access=st.integers(0, 3), mode=modes, bcd=st.booleans(), count=st.none() | counts)
    def program(self, number: int, access: int, mode: int, bcd: bool, count: int | None) -> None:
        self.write(3, bytes((number << 6 | access << 4 | mode << 1 | bcd,)))
        if count is not None:
            self.load(number, count)

    @rule(number=numbers, count=counts)
    def load(self, number: int, count: int) -> None:
        for which in list(self.model.counters[number].writing):
            self.write(number, bytes((count >> 8 * which & 0xFF,)))

    @rule(flags=st.integers(0xC0, 0xFF))
    def read_back(self, flags: int) -> None:
        self.write(3, bytes((flags,)))

    @rule(level=st.booleans())
    def set_gate_2(self, level: bool) -> None:
        self.write_port_61(int(level))

    @rule()
    def trigger_2(self) -> None:
        self.write_port_61(0)
        self.write_port_61(1)

    @rule(value=bytes_)
    def write_port_61(self, value: int) -> None:
        self.model.port = value & 0x0F
        self.model.counters[2].set_gate(bool(value & 1))
        self.chip.port61.write(0, bytes((value,)))

    @rule(ticks=st.integers(1, 9))
    def advance_a_little(self, ticks: int) -> None:
        self.advance(ticks, 1)

    @rule(ticks=times, nanoseconds=st.integers(0, 1000))
    def advance(self, ticks: int, nanoseconds: int) -> None:
        self.clock.advance(ticks * SECOND // PIT_HZ + nanoseconds)
        self.catch_up()

    @invariant()
    def the_pins_are_the_same(self) -> None:
        assert [self.chip.output(n) for n in range(3)] == [counter.out for counter in self.model.counters]
        refresh = self.model.ticks // 18 % 2
        assert self.chip.port61.read(0, 1)[0] == self.model.port | refresh << 4 | self.model.counters[2].out << 5

    @invariant()
    def irq_0_rises_with_out_late_by_the_alarm_interval_at_most(self) -> None:
        seen = [count for _, count in self.edges]
        assert all(before < after for before, after in zip([0, *seen], seen, strict=False)), "no edge without a rise"
        missed = self.model.rises[seen[-1] if seen else 0 :]
        if missed:
            due = -(-missed[0] * SECOND // PIT_HZ)
            assert self.clock.now() < due + ALARM_INTERVAL

    @invariant()
    def an_edge_stands_for_a_rise_of_the_last_alarm_interval(self) -> None:
        for when, count in self.edges[-1:]:
            assert when - self.model.rises[count - 1] * SECOND // PIT_HZ <= ALARM_INTERVAL


TestPitAgainstModel = PitAgainstModel.TestCase
TestPitAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


accesses = st.tuples(st.integers(0, 2**16), widths | st.binary(min_size=1, max_size=8), st.integers(0, SECOND // 100))


@given(st.lists(accesses, max_size=60))
def test_no_access_sequence_raises_or_takes_a_wrong_number_of_bytes(
    sequence: list[tuple[int, int | bytes, int]],
) -> None:
    clock = ManualClock()
    pit = Pit(clock, Disconnected())
    for offset, access, nanoseconds in sequence:
        for device in (pit, pit.port61):
            if isinstance(access, int):
                assert len(device.read(offset, access)) == access
            else:
                device.write(offset, access)
        clock.advance(nanoseconds)


@given(st.integers(0, 0xFFFF), st.sampled_from([2, 3]), st.lists(st.integers(0, SECOND // 10), max_size=20))
def test_edges_never_drift_from_the_ticks_however_time_passes(count: int, mode: int, steps: list[int]) -> None:
    count = max(count, 60) if count else 0x10000  # slower than the alarms may come
    rises: list[int] = []

    class Line:
        level = False

        def set_level(self, level: bool) -> None:
            if level and not self.level:
                rises.append(clock.now() * PIT_HZ // SECOND)
            self.level = level

    clock = ManualClock()
    pit = Pit(clock, Line())
    pit.write(3, bytes((0x30 | mode << 1,)))
    for byte in (count & 0xFFFF).to_bytes(2, "little"):
        pit.write(0, bytes((byte,)))
    for step in steps:
        clock.advance(step)
    last = clock.now() * PIT_HZ // SECOND
    assert rises == list(range(count + 1, last + 1, count))
