"""pykvm.devices.ioapic: the 82093AA, register by register, as the data sheet has it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pykvm.devices.ioapic import PINS, DeliveryMode, Entry, Index, IoApic, Offset, Redirection
from pykvm.errors import ConfigurationError

EDGE, LEVEL = 0, Redirection.LEVEL_TRIGGERED.value
MASKED, ACTIVE_LOW, REMOTE_IRR = Redirection.MASKED.value, Redirection.ACTIVE_LOW.value, Redirection.REMOTE_IRR.value
VECTOR, PIN = 0x41, 5
MESSAGE = (0xFEE00000, VECTOR)
LEVEL_MESSAGE = (0xFEE00000, 0xC000 | VECTOR)


class Chip:
    """An I/O APIC with a guest at one end, devices at another, and the messages it sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.changes: list[tuple[Entry, ...]] = []
        self.chip = IoApic(lambda address, data: self.sent.append((address, data)), self.on_change)

    def on_change(self) -> None:
        self.changes.append(self.chip.entries)

    def read(self, index: int) -> int:
        self.select(index)
        return int.from_bytes(self.chip.read(Offset.IOWIN, 4), "little")

    def write(self, index: int, value: int) -> None:
        self.select(index)
        self.chip.write(Offset.IOWIN, value.to_bytes(4, "little"))

    def select(self, index: int) -> None:
        self.chip.write(Offset.IOREGSEL, index.to_bytes(4, "little"))

    def program(self, flags: int, *, pin: int = PIN, vector: int = VECTOR, destination: int = 0) -> None:
        """Write an entry as an operating system does it: the half with the mask last."""
        self.write(Index.TABLE + 2 * pin + 1, destination << 24)
        self.write(Index.TABLE + 2 * pin, flags | vector)

    def entry(self, pin: int = PIN) -> int:
        low, high = self.read(Index.TABLE + 2 * pin), self.read(Index.TABLE + 2 * pin + 1)
        return high << 32 | low

    def set_level(self, level: bool, pin: int = PIN) -> None:
        self.chip.line(pin).set_level(level)

    def pulse(self, pin: int = PIN) -> None:
        self.set_level(True, pin)
        self.set_level(False, pin)


def delivery(mode: DeliveryMode) -> int:
    return mode.value << 8


# ---- registers ----


def test_after_reset_all_pins_are_masked_and_nothing_was_sent() -> None:
    chip = Chip()
    assert [chip.entry(pin) for pin in range(PINS)] == [MASKED] * PINS
    assert all(entry.masked and not entry.level for entry in chip.chip.entries)
    assert (chip.sent, chip.changes, len(chip.chip.entries)) == ([], [], PINS)


def test_the_version_register_tells_the_version_and_the_last_pin() -> None:
    chip = Chip()
    assert chip.read(Index.VERSION) == 0x0017_0020
    chip.write(Index.VERSION, 0)
    assert chip.read(Index.VERSION) == 0x0017_0020


def test_the_id_has_four_bits_and_the_arbitration_id_follows_it() -> None:
    chip = Chip()
    assert chip.read(Index.ID) == 0
    chip.write(Index.ID, 0xFFFFFFFF)
    assert (chip.read(Index.ID), chip.read(Index.ARBITRATION)) == (0x0F000000, 0x0F000000)
    chip.write(Index.ARBITRATION, 0)
    assert chip.read(Index.ARBITRATION) == 0x0F000000


def test_ioregsel_reads_back_one_byte() -> None:
    chip = Chip()
    chip.chip.write(Offset.IOREGSEL, b"\x12\x34\x56\x78")
    assert chip.chip.read(Offset.IOREGSEL, 4) == b"\x12\x00\x00\x00"


def test_an_entry_keeps_what_can_be_written() -> None:
    chip = Chip()
    chip.write(Index.TABLE + 2 * PIN, 0xFFFFFFFF)
    chip.write(Index.TABLE + 2 * PIN + 1, 0xFFFFFFFF)
    read_only = (Redirection.DELIVERY_STATUS | Redirection.REMOTE_IRR).value
    assert chip.entry() == 0xFF000000_0001FFFF & ~read_only
    assert chip.entry(PIN + 1) == MASKED


@pytest.mark.parametrize("index", [0x03, 0x0F, Index.TABLE + 2 * PINS, 0xFF])
def test_a_register_that_does_not_exist_reads_as_0_and_takes_nothing(index: int) -> None:
    chip = Chip()
    chip.write(index, 0xFFFFFFFF)
    assert chip.read(index) == 0
    assert chip.changes == []


# ---- messages ----


@pytest.mark.parametrize("mode", DeliveryMode)
def test_a_message_has_vector_and_delivery_mode_in_its_data(mode: DeliveryMode) -> None:
    chip = Chip()
    chip.program(delivery(mode))
    chip.pulse()
    assert chip.sent == [(0xFEE00000, mode.value << 8 | VECTOR)]


def test_a_message_has_the_destination_and_its_mode_in_its_address() -> None:
    chip = Chip()
    chip.program(EDGE, destination=0x5A)
    chip.pulse()
    chip.program(Redirection.LOGICAL_DESTINATION.value, destination=0xFF)
    chip.pulse()
    assert chip.sent == [(0xFEE5A000, VECTOR), (0xFEEFF004, VECTOR)]


@pytest.mark.parametrize("pin", range(PINS))
def test_each_pin_has_its_entry(pin: int) -> None:
    chip = Chip()
    for number in range(PINS):
        chip.program(EDGE, pin=number, vector=0x30 + number)
    chip.pulse(pin)
    assert chip.sent == [(0xFEE00000, 0x30 + pin)]


# ---- edges ----


def test_a_rising_edge_is_sent_once_however_long_the_line_is_high() -> None:
    chip = Chip()
    chip.program(EDGE)
    chip.set_level(True)
    chip.set_level(True)
    assert chip.sent == [MESSAGE]
    chip.pulse()
    assert chip.sent == [MESSAGE]
    chip.pulse()
    assert chip.sent == [MESSAGE] * 2


def test_an_edge_at_a_masked_pin_is_lost() -> None:
    chip = Chip()
    chip.program(MASKED)
    chip.set_level(True)
    chip.program(EDGE)
    assert chip.sent == []


def test_active_low_a_falling_edge_is_sent() -> None:
    chip = Chip()
    chip.set_level(True)
    chip.program(ACTIVE_LOW)
    chip.set_level(False)
    chip.set_level(True)
    assert chip.sent == [MESSAGE]


def test_an_edge_waits_for_no_eoi() -> None:
    chip = Chip()
    chip.program(EDGE)
    chip.set_level(True)
    assert not chip.entry() & REMOTE_IRR
    chip.chip.eoi(VECTOR)
    assert chip.sent == [MESSAGE]


@pytest.mark.parametrize("mode", [DeliveryMode.SMI, DeliveryMode.NMI, DeliveryMode.INIT, DeliveryMode.EXT_INT])
def test_what_no_eoi_follows_is_an_edge_whatever_the_entry_says(mode: DeliveryMode) -> None:
    chip = Chip()
    chip.program(delivery(mode) | LEVEL)
    for _ in range(2):
        chip.pulse()
    assert chip.sent == [(0xFEE00000, mode.value << 8 | VECTOR)] * 2
    assert not chip.chip.entries[PIN].level


# ---- levels ----


def test_a_level_is_sent_and_held_back_by_remote_irr() -> None:
    chip = Chip()
    chip.program(LEVEL)
    chip.set_level(True)
    assert chip.entry() & REMOTE_IRR
    chip.pulse()
    chip.set_level(True)
    assert chip.sent == [LEVEL_MESSAGE]


def test_a_level_that_is_still_high_at_the_eoi_is_sent_again() -> None:
    chip = Chip()
    chip.program(LEVEL)
    chip.set_level(True)
    chip.chip.eoi(VECTOR)
    assert chip.sent == [LEVEL_MESSAGE] * 2
    chip.set_level(False)
    chip.chip.eoi(VECTOR)
    assert chip.sent == [LEVEL_MESSAGE] * 2
    assert not chip.entry() & REMOTE_IRR


def test_the_eoi_of_another_vector_ends_nothing() -> None:
    chip = Chip()
    chip.program(LEVEL)
    chip.set_level(True)
    chip.chip.eoi(VECTOR + 1)
    assert chip.sent == [LEVEL_MESSAGE]
    assert chip.entry() & REMOTE_IRR


def test_an_eoi_is_for_every_pin_with_the_vector() -> None:
    chip = Chip()
    for pin in (3, 4):
        chip.program(LEVEL, pin=pin)
        chip.set_level(True, pin)
    chip.chip.eoi(VECTOR)
    assert chip.sent == [LEVEL_MESSAGE] * 4


def test_the_eoi_register_does_the_same() -> None:
    chip = Chip()
    chip.program(LEVEL)
    chip.set_level(True)
    chip.chip.write(Offset.EOI, VECTOR.to_bytes(4, "little"))
    assert chip.sent == [LEVEL_MESSAGE] * 2


def test_a_level_at_a_masked_pin_is_sent_when_it_is_unmasked() -> None:
    chip = Chip()
    chip.program(LEVEL | MASKED)
    chip.set_level(True)
    assert chip.sent == []
    chip.program(LEVEL)
    assert chip.sent == [LEVEL_MESSAGE]


def test_masking_a_pin_in_service_keeps_remote_irr_until_the_eoi() -> None:
    chip = Chip()
    chip.program(LEVEL)
    chip.set_level(True)
    chip.program(LEVEL | MASKED)
    assert chip.entry() & REMOTE_IRR
    chip.chip.eoi(VECTOR)
    assert not chip.entry() & REMOTE_IRR
    chip.program(LEVEL)
    assert chip.sent == [LEVEL_MESSAGE] * 2


def test_making_the_pin_an_edge_and_a_level_again_ends_the_interrupt_as_linux_does_it() -> None:
    chip = Chip()
    chip.program(LEVEL)
    chip.set_level(True)
    chip.set_level(False)
    chip.program(EDGE | MASKED)
    chip.program(LEVEL)
    assert not chip.entry() & REMOTE_IRR
    chip.set_level(True)
    assert chip.sent == [LEVEL_MESSAGE] * 2


def test_active_low_a_low_level_is_sent() -> None:
    chip = Chip()
    chip.set_level(True)
    chip.program(LEVEL | ACTIVE_LOW)
    assert chip.sent == []
    chip.set_level(False)
    assert chip.sent == [LEVEL_MESSAGE]
    chip.set_level(True)
    chip.chip.eoi(VECTOR)
    assert chip.sent == [LEVEL_MESSAGE]


# ---- what the machine learns ----


def test_entries_say_what_each_pin_sends() -> None:
    chip = Chip()
    chip.program(LEVEL, destination=1)
    assert chip.chip.entries[PIN] == Entry(address=0xFEE01000, data=0xC000 | VECTOR, masked=False, level=True)
    chip.set_level(True)
    assert chip.sent == [(0xFEE01000, 0xC000 | VECTOR)]


def test_on_change_hears_of_changes_only() -> None:
    chip = Chip()
    chip.program(LEVEL)
    assert [entries[PIN].masked for entries in chip.changes] == [False]
    chip.program(LEVEL)
    chip.set_level(True)
    chip.chip.eoi(VECTOR)
    chip.write(Index.ID, 0x01000000)
    assert len(chip.changes) == 1
    chip.program(LEVEL | MASKED, destination=2)
    assert len(chip.changes) == 3


def test_on_change_comes_before_the_message_so_that_its_eoi_is_not_missed() -> None:
    order = []
    chip = IoApic(lambda address, data: order.append("send"), lambda: order.append("change"))
    chip.line(0).set_level(True)
    chip.write(Offset.IOREGSEL, bytes((Index.TABLE,)))
    chip.write(Offset.IOWIN, (LEVEL | VECTOR).to_bytes(4, "little"))
    assert order == ["change", "send"]


# ---- the wires, and accesses of other widths ----


@pytest.mark.parametrize("pin", [-1, PINS, 255])
def test_there_is_no_line_beyond_the_last_pin(pin: int) -> None:
    with pytest.raises(ConfigurationError, match=f"no pin {pin}"):
        Chip().chip.line(pin)


def test_a_narrow_read_gives_its_part_of_the_register() -> None:
    chip = Chip()
    chip.select(Index.VERSION)
    assert chip.chip.read(Offset.IOWIN, 1) == b"\x20"
    assert chip.chip.read(Offset.IOWIN + 2, 2) == b"\x17\x00"
    assert chip.chip.read(Offset.IOWIN - 2, 8) == b"\x00\x00\x20\x00\x17\x00\x00\x00"


def test_a_narrow_write_to_iowin_is_lost() -> None:
    chip = Chip()
    chip.select(Index.ID)
    for offset, data in ((Offset.IOWIN, b"\xff"), (Offset.IOWIN + 3, b"\xff"), (Offset.IOWIN + 1, b"\xff" * 4)):
        chip.chip.write(offset, data)
    assert chip.read(Index.ID) == 0


def test_a_byte_is_enough_for_ioregsel_and_eoi() -> None:
    chip = Chip()
    chip.program(LEVEL)
    chip.set_level(True)
    chip.chip.write(Offset.EOI, bytes((VECTOR,)))
    assert len(chip.sent) == 2
    chip.chip.write(Offset.IOREGSEL, bytes((Index.VERSION,)))
    assert chip.chip.read(Offset.IOWIN, 1) == b"\x20"


def test_of_eight_bytes_each_register_takes_its_four() -> None:
    chip = Chip()
    chip.select(Index.ID)
    chip.chip.write(Offset.IOWIN, b"\x00\x00\x00\x05\xff\xff\xff\xff")
    assert chip.read(Index.ID) == 0x05000000


# ---- any sequence of accesses ----

offsets = st.sampled_from([0x00, 0x10, 0x10, 0x40, 0x0E, 0x12, 0x3F]) | st.integers(0, 0xFFF)
pins = st.sampled_from([0, 1, 23])
vectors = st.sampled_from([0, 0x41, 0xFF])


class IoApicAgainstModel(RuleBasedStateMachine):
    """Lets guest and devices do anything, and keeps account of what must be true of what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.told: tuple[Entry, ...] | None = None
        self.in_service: set[int] = set()  # pins whose level was sent and not ended yet
        self.lines = [False] * PINS
        self.chip = IoApic(self.send, self.on_change)
        self.told = self.chip.entries

    def send(self, address: int, data: int) -> None:
        assert address >> 20 == 0xFEE
        assert data & ~0xC7FF == 0
        assert any(entry.address == address and entry.data == data and not entry.masked for entry in self.chip.entries)

    def on_change(self) -> None:
        assert self.chip.entries != self.told, "it hears of changes only"
        self.told = self.chip.entries

    @rule(offset=offsets, size=st.integers(1, 8))
    def read(self, offset: int, size: int) -> None:
        assert len(self.chip.read(offset, size)) == size

    @rule(offset=offsets, data=st.binary(min_size=1, max_size=8))
    def write(self, offset: int, data: bytes) -> None:
        self.chip.write(offset, data)

    @rule(pin=pins, vector=vectors, flags=st.integers(0, 0xFFFFFFFF), high=st.integers(0, 0xFFFFFFFF))
    def program(self, pin: int, vector: int, flags: int, high: int) -> None:
        for index, value in ((0x11 + 2 * pin, high), (0x10 + 2 * pin, flags & ~0xFF | vector)):
            self.chip.write(0x00, bytes((index,)))
            self.chip.write(0x10, value.to_bytes(4, "little"))

    @rule(pin=pins, level=st.booleans())
    def set_level(self, pin: int, level: bool) -> None:
        self.chip.line(pin).set_level(level)
        self.lines[pin] = level

    @rule(vector=vectors)
    def eoi(self, vector: int) -> None:
        self.chip.eoi(vector)

    def entry(self, pin: int) -> int:
        select = self.chip.read(0x00, 1)
        halves = []
        for index in (0x10 + 2 * pin, 0x11 + 2 * pin):
            self.chip.write(0x00, bytes((index,)))
            halves.append(int.from_bytes(self.chip.read(0x10, 4), "little"))
        self.chip.write(0x00, select)
        return halves[1] << 32 | halves[0]

    @invariant()
    def the_machine_knows_the_entries(self) -> None:
        assert self.told == self.chip.entries

    @invariant()
    def an_active_level_that_is_not_masked_is_in_service_and_an_edge_never_is(self) -> None:
        for pin in (0, 1, 23):
            entry = self.entry(pin)
            vector, mode, low, irr, level, masked = (
                entry & 0xFF,
                entry >> 8 & 7,
                bool(entry >> 13 & 1),
                bool(entry >> 14 & 1),
                bool(entry >> 15 & 1),
                bool(entry >> 16 & 1),
            )
            waits = level and mode in (0, 1)
            message = vector | mode << 8 | (0xC000 if waits else 0)
            address = 0xFEE00000 | entry >> 56 << 12 | (entry >> 11 & 1) << 2
            assert self.chip.entries[pin] == Entry(address, message, masked, waits)
            assert not irr or waits
            if waits and not masked and self.lines[pin] != low:
                assert irr


TestIoApicAgainstModel = IoApicAgainstModel.TestCase
TestIoApicAgainstModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 2**12), st.integers(1, 8) | st.binary(min_size=1, max_size=8)), max_size=60))
def test_no_access_sequence_of_any_width_raises(sequence: list[tuple[int, int | bytes]]) -> None:
    chip = IoApic(lambda address, data: None)
    for offset, access in sequence:
        if isinstance(access, int):
            assert len(chip.read(offset, access)) == access
        else:
            chip.write(offset, access)
