"""pykvm.devices.pic against a small model: any sequence of accesses, line changes and acknowledgements."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pykvm.devices.pic import PicPair

bytes_ = st.integers(0, 0xFF)
widths = st.sampled_from([1, 2, 4, 8])
irqs = st.sampled_from([irq for irq in range(16) if irq != 2])
numbers = st.integers(0, 1)

# OCW2 with each command and level, OCW3 with each flag. What begins an initialisation is rare, for it ends all else.
commands = st.builds(
    lambda command, level: command << 5 | level, st.integers(0, 7), st.integers(0, 7)
) | st.sampled_from([0x0A, 0x0B, 0x0C, 0x0E, 0x48, 0x68, 0x68, 0x20, 0x20, 0x20, 0xA0])
masks = st.sampled_from([0x00, 0x00, 0x01, 0x02, 0x04, 0x08, 0xFB, 0xFF]) | bytes_
any_bytes = st.lists(commands | masks.map(lambda value: value & ~0x10) | bytes_, min_size=1, max_size=8).map(bytes)


class Chip:
    """One 8259A written down again, with a list of eight for each register."""

    def __init__(self, master: bool) -> None:
        self.master = master
        self.high, self.latched, self.service, self.masked, self.elcr = ([False] * 8 for _ in range(5))
        self.int = False
        self.todo: list[int] | None = None  # numbers of the ICWs still to come; None: ICW1 has never come
        self.base = 0
        self.start_over(0)

    def start_over(self, icw1: int) -> None:
        self.latched, self.service, self.masked = [False] * 8, [False] * 8, [False] * 8
        self.ltim = bool(icw1 & 8)
        self.order = list(range(8))
        self.icw3 = 0 if self.master else 7
        self.aeoi = self.sfnm = self.smm = self.turns = self.shows_isr = self.poll = False

    def is_level(self, n: int) -> bool:
        return self.ltim or self.elcr[n]

    def requested(self, n: int) -> bool:
        return self.high[n] if self.is_level(n) else self.latched[n]

    def blocks(self, n: int) -> bool:
        return self.service[n] and not (self.smm and self.masked[n])

    def best(self) -> int | None:
        if self.todo != []:
            return None
        wanted = [n for n in self.order if self.requested(n) and not self.masked[n]]
        blocking = [n for n in self.order if self.blocks(n)]
        if not wanted:
            return None
        if not blocking:
            return wanted[0]
        place, limit = self.order.index(wanted[0]), self.order.index(blocking[0])
        same = place == limit and self.sfnm and self.master and self.icw3 >> wanted[0] & 1
        return wanted[0] if place < limit or same else None

    def wire(self, n: int, level: bool) -> None:
        if level and not self.high[n] and not self.is_level(n):
            self.latched[n] = True
        self.high[n] = level

    def make_lowest(self, n: int) -> None:
        while self.order[-1] != n:
            self.order.append(self.order.pop(0))

    def accept(self) -> int:
        n = self.best()
        if n is None:
            return 7
        self.latched[n] = False
        if not self.aeoi:
            self.service[n] = True
        elif self.turns:
            self.make_lowest(n)
        return n

    def command(self, value: int) -> None:
        if value & 0x10:
            self.start_over(value)
            self.todo = [2] + ([] if value & 2 else [3]) + ([4] if value & 1 else [])
        elif value & 0x08:
            if value & 0x40:
                self.smm = bool(value & 0x20)
            if value & 2:
                self.shows_isr = bool(value & 1)
            self.poll = bool(value & 4)
        else:
            self.ocw2(bool(value & 0x80), bool(value & 0x40), bool(value & 0x20), value & 7)

    def ocw2(self, rotate: bool, specific: bool, eoi: bool, level: int) -> None:
        if not eoi and not specific:
            self.turns = rotate
        elif not eoi and rotate:
            self.make_lowest(level)
        elif eoi:
            found = [level] if specific else [n for n in self.order if self.blocks(n)][:1]
            for n in found:
                self.service[n] = False
                if rotate:
                    self.make_lowest(n)

    def data(self, value: int) -> None:
        if not self.todo:
            self.masked = [bool(value >> n & 1) for n in range(8)]
            return
        number = self.todo.pop(0)
        if number == 2:
            self.base = value // 8 * 8
        elif number == 3:
            self.icw3 = value if self.master else value % 8
        else:
            self.aeoi, self.sfnm = bool(value & 2), bool(value & 16)


def as_byte(bits: list[bool]) -> int:
    return sum(1 << n for n, bit in enumerate(bits) if bit)


class Model:
    """Two of them, and the wire between."""

    def __init__(self) -> None:
        self.chips = [Chip(master=True), Chip(master=False)]

    def settle(self) -> None:
        """Let the outputs follow from the inputs: the slave's first, for it is an input of the master."""
        master, slave = self.chips
        slave.int = slave.best() is not None
        master.wire(2, slave.int)
        master.int = master.best() is not None

    def accept(self, number: int) -> int:
        chip = self.chips[number]
        if number == 1 and chip.best() is not None:
            self.chips[0].wire(2, False)  # INTA takes INT back before it may come again
        return chip.accept()

    def acknowledge(self) -> int:
        master, slave = self.chips
        n = self.accept(0)
        vector = master.base + n
        if n == 2 and master.icw3 & 4:
            vector = slave.base + self.accept(1) if slave.icw3 == 2 else 0xFF
        self.settle()
        return vector

    def read(self, number: int, offset: int) -> int:
        chip = self.chips[number]
        if chip.poll:
            chip.poll = False
            value = 0 if chip.best() is None else 0x80 + self.accept(number)
            self.settle()
            return value
        if offset % 2:
            return as_byte(chip.masked)
        return as_byte(chip.service if chip.shows_isr else [chip.requested(n) for n in range(8)])

    def write(self, number: int, offset: int, value: int) -> None:
        chip = self.chips[number]
        (chip.data if offset % 2 else chip.command)(value)
        self.settle()

    def write_elcr(self, number: int, value: int) -> None:
        chip = self.chips[number]
        chip.elcr = [bool(value >> n & 1) and n not in ([0, 1, 2], [0, 5])[number] for n in range(8)]
        for n in range(8):
            if chip.elcr[n]:
                chip.latched[n] = False
        self.settle()

    def set_line(self, irq: int, level: bool) -> None:
        self.chips[irq // 8].wire(irq % 8, level)
        self.settle()


class PicAgainstModel(RuleBasedStateMachine):
    """Does the same to the pair and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.intr = False
        self.step = 0
        self.pair = PicPair(self.on_output)
        self.devices = (self.pair.master, self.pair.slave)
        self.model = Model()

    def on_output(self, level: bool) -> None:
        assert level != self.intr, "INTR is told of changes only"
        self.intr = level

    @initialize(icw1=st.sampled_from([0x11, 0x19]), icw4=st.sampled_from([0x01, 0x03, 0x11]))
    def initialise_as_a_pc(self, icw1: int, icw4: int) -> None:
        for number, words in enumerate(([icw1, 0x20, 4, icw4], [icw1, 0x28, 2, icw4])):
            self.initialise(number, words)

    @precondition(lambda self: self.step % 8 == 0)
    @rule(number=numbers, icw1=st.integers(0x10, 0x1F), words=st.lists(masks, max_size=3))
    def initialise_somehow(self, number: int, icw1: int, words: list[int]) -> None:
        self.initialise(number, [icw1, *words])

    def initialise(self, number: int, words: list[int]) -> None:
        for place, word in enumerate(words):
            self.write(number, min(place, 1), bytes((word,)))

    @rule(number=numbers, offset=st.integers(0, 3), size=widths)
    def read(self, number: int, offset: int, size: int) -> None:
        expected = bytes(self.model.read(number, offset + n) for n in range(size))
        assert self.devices[number].read(offset, size) == expected

    @rule(number=numbers, offset=st.integers(0, 3), data=any_bytes)
    def write(self, number: int, offset: int, data: bytes) -> None:
        self.devices[number].write(offset, data)
        for n, value in enumerate(data):
            self.model.write(number, offset + n, value)

    @rule(number=numbers, value=commands)
    def command(self, number: int, value: int) -> None:
        self.write(number, 0, bytes((value,)))

    @rule(number=numbers, value=masks)
    def write_data(self, number: int, value: int) -> None:
        self.write(number, 1, bytes((value,)))

    @rule(number=numbers)
    def mask_what_is_in_service(self, number: int) -> None:
        self.write_data(number, as_byte(self.model.chips[number].service))

    @rule(number=numbers, value=masks)
    def write_elcr(self, number: int, value: int) -> None:
        self.pair.elcr.write(number, bytes((value,)))
        self.model.write_elcr(number, value)

    @rule(irq=irqs, level=st.booleans())
    def set_line(self, irq: int, level: bool) -> None:
        self.pair.line(irq).set_level(level)
        self.model.set_line(irq, level)

    @rule(irq=irqs)
    def pulse(self, irq: int) -> None:
        self.set_line(irq, True)
        self.set_line(irq, False)

    @rule()
    def acknowledge(self) -> None:
        assert self.pair.acknowledge() == self.model.acknowledge()

    @invariant()
    def count_steps(self) -> None:
        self.step += 1

    @invariant()
    def the_registers_are_the_same(self) -> None:
        for number, (device, chip) in enumerate(zip(self.devices, self.model.chips, strict=True)):
            assert device.irr == as_byte([chip.requested(n) for n in range(8)])
            assert (device.isr, device.imr) == (as_byte(chip.service), as_byte(chip.masked))
            assert self.pair.elcr.read(number, 1)[0] == as_byte(chip.elcr)

    @invariant()
    def intr_is_the_same(self) -> None:
        assert self.pair.output == self.intr == self.model.chips[0].int


TestPicAgainstModel = PicAgainstModel.TestCase
TestPicAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(numbers, st.integers(0, 2**16), widths | st.binary(min_size=1, max_size=8)), max_size=60))
def test_no_access_sequence_before_any_initialisation_raises(sequence: list[tuple[int, int, int | bytes]]) -> None:
    pair = PicPair(lambda level: None)
    for number, offset, access in sequence:
        for device in ((pair.master, pair.slave)[number], pair.elcr):
            if isinstance(access, int):
                assert len(device.read(offset, access)) == access
            else:
                device.write(offset, access)
        assert 0 <= pair.acknowledge() <= 0xFF


@given(st.permutations([irq for irq in range(16) if irq != 2]))
def test_whatever_the_order_of_requests_each_is_served_once(order: list[int]) -> None:
    pair = PicPair(lambda level: None)
    for chip, words in ((pair.master, b"\x20\x04\x01"), (pair.slave, b"\x28\x02\x01")):
        chip.write(0, b"\x11")
        for word in words:
            chip.write(1, bytes((word,)))
    for irq in order:
        pair.line(irq).set_level(True)
    served = []
    while pair.output:
        served.append(pair.acknowledge() - 0x20)
        if served[-1] >= 8:
            pair.slave.write(0, b"\x20")
        pair.master.write(0, b"\x20")
    assert served == [0, 1, *range(8, 16), 3, 4, 5, 6, 7]
