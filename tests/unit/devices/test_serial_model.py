"""pykvm.devices.serial against a small model: any sequence of accesses, on either end of the line."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pykvm.devices import Disconnected, Serial
from pykvm.devices.serial import Iir, Msr

bytes_ = st.integers(0, 0xFF)
widths = st.sampled_from([1, 2, 4, 8])
offsets = st.integers(0, 15)

# Values that switch something, so that random ones do not drown them.
telling = st.sampled_from([0x00, 0x01, 0x07, 0x0B, 0x0F, 0x10, 0x1F, 0x40, 0x80, 0x81, 0xC1, 0xFF]) | bytes_


class Model:
    """The 16550A written down again, in the plainest way: lists, and bit numbers straight from the data sheet."""

    def __init__(self) -> None:
        self.fifo: list[list[int]] = []  # [byte, errors], errors as LSR bits
        self.shown = 0  # errors in LSR
        self.plain = {1: 0, 3: 0, 4: 0, 7: 0}  # IER, LCR, MCR, SCR
        self.divisor = [12, 0]
        self.fifo_mode = False
        self.trigger = 1
        self.thr_interrupt = False
        self.far = self.lines = 0xB0
        self.deltas = 0
        self.sent: list[int] = []

    @property
    def dlab(self) -> bool:
        return self.plain[3] >= 0x80

    @property
    def loop(self) -> bool:
        return self.plain[4] >= 0x10

    @property
    def depth(self) -> int:
        return 16 if self.fifo_mode else 1

    def pending(self) -> int:
        enabled = self.plain[1]
        if enabled & 4 and self.shown:
            return 6
        if enabled & 1 and self.fifo:
            return 12 if self.fifo_mode and len(self.fifo) < self.trigger else 4
        if enabled & 2 and self.thr_interrupt:
            return 2
        return 0 if enabled & 8 and self.deltas else 1

    def line(self) -> bool:
        return bool(self.plain[4] & 0x18 == 0x08 and self.pending() != 1)

    def arrive(self, byte: int, errors: int = 0) -> None:
        if len(self.fifo) == self.depth:
            self.shown |= 0x02
            if self.fifo_mode:
                return
            self.fifo.clear()
        self.fifo.append([byte, errors])
        self.surface()

    def surface(self) -> None:
        if self.fifo:
            self.shown |= self.fifo[0][1]
            self.fifo[0][1] = 0

    def wire(self) -> None:
        mcr, lines = self.plain[4], self.far
        if self.loop:
            # CTS is bit 4, DSR 5, RI 6, DCD 7; RTS is bit 1, DTR 0, OUT1 2, OUT2 3.
            lines = (mcr >> 1 & 1) << 4 | (mcr & 1) << 5 | (mcr >> 2 & 1) << 6 | (mcr >> 3 & 1) << 7
        changed, went_off = lines ^ self.lines, self.lines & ~lines
        self.deltas |= (changed >> 4) & 0b1011 | (went_off >> 4) & 0b0100
        self.lines = lines

    def read(self, offset: int) -> int:
        if offset < 2 and self.dlab:
            return self.divisor[offset]
        if offset in self.plain:
            return self.plain[offset]
        return {0: self.read_rbr, 2: self.read_iir, 5: self.read_lsr, 6: self.read_msr}[offset]()

    def read_rbr(self) -> int:
        if not self.fifo:
            return 0
        byte = self.fifo.pop(0)[0]
        self.surface()
        return byte

    def read_iir(self) -> int:
        value = self.pending()
        if value == 2:
            self.thr_interrupt = False
        return value + (0xC0 if self.fifo_mode else 0)

    def read_lsr(self) -> int:
        bad = self.fifo_mode and (self.shown & 0x1C or any(errors for _, errors in self.fifo))
        value = 0x60 + self.shown + (1 if self.fifo else 0) + (0x80 if bad else 0)
        self.shown = 0
        return value

    def read_msr(self) -> int:
        value = self.lines + self.deltas
        self.deltas = 0
        return value

    def write(self, offset: int, value: int) -> None:
        if offset < 2 and self.dlab:
            self.divisor[offset] = value
        elif offset == 0:
            self.thr_interrupt = True
            if self.loop:
                self.arrive(value)
            else:
                self.sent.append(value)
        elif offset == 1:
            self.thr_interrupt |= bool(value & 2 and not self.plain[1] & 2)
            self.plain[1] = value & 0x0F
        elif offset == 2:
            on = bool(value & 1)
            if on != self.fifo_mode or value & 3 == 3:
                self.fifo.clear()
                self.shown &= 0x02
            self.fifo_mode = on
            self.trigger = [1, 4, 8, 14][value >> 6] if on else 1
        elif offset == 3:
            rising = value & 0x40 and not self.plain[3] & 0x40
            self.plain[3] = value
            if rising and self.loop:
                self.arrive(0, 0x18)
        elif offset == 4:
            self.plain[4] = value & 0x1F
            self.wire()
        elif offset == 7:
            self.plain[7] = value


class SerialAgainstModel(RuleBasedStateMachine):
    """Does the same to the chip and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        self.level = False
        self.chip = Serial(self.sent.extend, irq=self)
        self.model = Model()

    def set_level(self, level: bool) -> None:
        assert level != self.level, "the line is told of changes only"
        self.level = level

    @rule(offset=offsets, size=widths)
    def read(self, offset: int, size: int) -> None:
        expected = bytes(self.model.read((offset + n) % 8) for n in range(size))
        assert self.chip.read(offset, size) == expected

    @rule(offset=offsets, value=telling)
    def write_one(self, offset: int, value: int) -> None:
        self.chip.write(offset, bytes((value,)))
        self.model.write(offset % 8, value)

    @rule(offset=offsets, data=widths.flatmap(lambda size: st.binary(min_size=size, max_size=size)))
    def write(self, offset: int, data: bytes) -> None:
        self.chip.write(offset, data)
        for n, value in enumerate(data):
            self.model.write((offset + n) % 8, value)

    @rule(data=st.binary(max_size=20))
    def receive(self, data: bytes) -> None:
        room = 0 if self.model.loop else self.model.depth - len(self.model.fifo)
        assert self.chip.room == room
        assert self.chip.receive(data) == min(len(data), room)
        if not self.model.loop:
            for byte in data:
                self.model.arrive(byte)

    @rule()
    def receive_break(self) -> None:
        self.chip.receive_break()
        if not self.model.loop:
            self.model.arrive(0, 0x18)

    @rule(lines=bytes_)
    def set_modem_lines(self, lines: int) -> None:
        self.chip.set_modem_lines(Msr(lines))
        self.model.far = lines & 0xF0
        self.model.wire()

    @invariant()
    def the_same_was_sent(self) -> None:
        assert self.sent == self.model.sent

    @invariant()
    def the_same_interrupt_is_pending(self) -> None:
        assert self.chip.pending_interrupt is Iir(self.model.pending())
        assert self.level == self.model.line()


TestSerialAgainstModel = SerialAgainstModel.TestCase
TestSerialAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


accesses = st.lists(st.tuples(st.integers(0, 2**16), widths | st.binary(min_size=1, max_size=8)), max_size=60)


@given(accesses, st.binary(max_size=200))
def test_no_access_sequence_raises_or_fills_more_than_the_fifo(
    sequence: list[tuple[int, int | bytes]], data: bytes
) -> None:
    waiting = list(data)

    def source(limit: int) -> bytes:
        taken, waiting[:limit] = waiting[:limit], []
        return bytes(taken)

    chip = Serial(lambda sent: None, source, Disconnected())
    for offset, access in sequence:
        if isinstance(access, int):
            assert len(chip.read(offset, access)) == access
        else:
            chip.write(offset, access)
        assert 0 <= chip.room <= 16


@given(st.binary(min_size=1, max_size=300), st.booleans(), st.integers(0, 3))
def test_whatever_is_sent_in_loopback_within_the_fifo_comes_back(data: bytes, fifos: bool, trigger: int) -> None:
    chip = Serial(lambda sent: None)
    chip.write(2, bytes((fifos | trigger << 6,)))
    chip.write(4, b"\x10")
    depth = 16 if fifos else 1
    received = b""
    for start in range(0, len(data), depth):
        for byte in data[start : start + depth]:
            chip.write(0, bytes((byte,)))
        while chip.read(5, 1)[0] & 0x01:
            received += chip.read(0, 1)
    assert received == data
