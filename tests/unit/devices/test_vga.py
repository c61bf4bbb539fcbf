"""pykvm.devices.vga: the registers of a VGA in text mode, and what they make of text memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.screen import Cell
from pykvm.devices.vga import PORT, REGISTERS, TEXT_SIZE, AttributeMode, Crtc, InputStatus, Offset, Vga

MODE_CONTROL = 0x10  # an attribute register


class Card:
    """A VGA with its text memory. ``asked`` is what the VGA read of it."""

    def __init__(self) -> None:
        self.memory = bytearray(b" \x07" * (TEXT_SIZE // 2))
        self.asked: list[tuple[int, int]] = []
        self.chip = Vga(self._read_memory)

    def _read_memory(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= TEXT_SIZE, "only text memory may be read"
        self.asked.append((offset, size))
        return bytes(self.memory[offset : offset + size])

    def put(self, character: int, text: bytes, attribute: int = 7) -> None:
        for position, code in enumerate(text):
            at = (character + position) * 2 % TEXT_SIZE
            self.memory[at : at + 2] = bytes((code, attribute))

    def read(self, offset: int) -> int:
        return self.chip.read(offset, 1)[0]

    def write(self, offset: int, *values: int) -> None:
        for value in values:
            self.chip.write(offset, bytes((value,)))

    def set_crtc(self, index: int, value: int) -> None:
        self.write(Offset.CRTC_INDEX, index)
        self.write(Offset.CRTC_DATA, value)

    def set_pair(self, high: Crtc, value: int) -> None:
        self.set_crtc(high, value >> 8)
        self.set_crtc(high + 1, value & 0xFF)

    def set_attribute_register(self, index: int, value: int) -> None:
        self.read(Offset.INPUT_STATUS_1)
        self.write(Offset.ATTRIBUTE, index, value)


# ---- what is shown ----


def test_what_is_in_text_memory_is_shown() -> None:
    card = Card()
    card.put(0, b"Hello")
    card.put(80, b"World", attribute=0x1F)
    screen = card.chip.snapshot()
    assert screen.text() == "Hello\nWorld"
    assert screen.rows[1][0] == Cell("W", foreground=15, background=1)
    assert screen.rows[0][79] == Cell(" ", foreground=7, background=0)


def test_all_25_rows_are_shown_and_no_more() -> None:
    card = Card()
    card.put(24 * 80 + 79, b"xy")
    assert card.chip.snapshot().text() == "\n" * 24 + " " * 79 + "x"


def test_the_start_address_scrolls_by_characters() -> None:
    card = Card()
    card.put(160, b"third row")
    card.set_pair(Crtc.START_HIGH, 160)
    assert card.chip.snapshot().text() == "third row"


def test_after_the_last_character_of_text_memory_comes_the_first() -> None:
    card = Card()
    card.put(TEXT_SIZE // 2 - 2, b"wrap")
    card.set_pair(Crtc.START_HIGH, TEXT_SIZE // 2 - 2)
    assert card.chip.snapshot().text() == "wrap"


def test_a_start_address_beyond_text_memory_wraps() -> None:
    card = Card()
    card.put(1, b"one")
    card.set_pair(Crtc.START_HIGH, TEXT_SIZE // 2 + 1)
    assert card.chip.snapshot().text() == "one"


@given(st.integers(0, 0xFFFF))
def test_whatever_the_start_address_a_whole_screen_is_read_from_text_memory_alone(start: int) -> None:
    card = Card()
    card.set_pair(Crtc.START_HIGH, start)
    card.chip.snapshot()
    assert sum(size for _, size in card.asked) == 80 * 25 * 2


def test_the_mode_control_register_chooses_between_blinking_and_bright_backgrounds() -> None:
    card = Card()
    card.put(0, b"x", attribute=0xF0)
    assert card.chip.snapshot().rows[0][0] == Cell("x", foreground=0, background=7, blink=True)
    card.set_attribute_register(MODE_CONTROL, AttributeMode.LGE.value)
    assert card.chip.snapshot().rows[0][0] == Cell("x", foreground=0, background=15)


# ---- the cursor ----


def test_after_reset_the_cursor_is_at_the_top_left() -> None:
    assert Card().chip.snapshot().cursor == (0, 0)


def test_the_cursor_location_is_a_row_and_a_column() -> None:
    card = Card()
    card.set_pair(Crtc.CURSOR_HIGH, 24 * 80 + 79)
    assert card.chip.snapshot().cursor == (24, 79)


def test_a_cursor_after_the_last_row_is_not_seen() -> None:
    card = Card()
    card.set_pair(Crtc.CURSOR_HIGH, 25 * 80)
    assert card.chip.snapshot().cursor is None


def test_the_cursor_location_counts_from_the_start_of_memory_not_of_the_screen() -> None:
    card = Card()
    card.set_pair(Crtc.START_HIGH, 80)
    assert card.chip.snapshot().cursor is None
    card.set_pair(Crtc.CURSOR_HIGH, 85)
    assert card.chip.snapshot().cursor == (0, 5)


def test_the_cursor_is_found_where_the_screen_wraps() -> None:
    card = Card()
    card.set_pair(Crtc.START_HIGH, TEXT_SIZE // 2 - 80)
    card.set_pair(Crtc.CURSOR_HIGH, 3)
    assert card.chip.snapshot().cursor == (1, 3)


def test_bit_5_of_cursor_start_switches_the_cursor_off() -> None:
    card = Card()
    card.set_crtc(Crtc.CURSOR_START, 0x20)
    assert card.chip.snapshot().cursor is None
    card.set_crtc(Crtc.CURSOR_START, 0x00)
    assert card.chip.snapshot().cursor == (0, 0)


def test_a_cursor_that_ends_above_its_start_is_not_seen() -> None:
    card = Card()
    card.set_crtc(Crtc.CURSOR_START, 10)
    card.set_crtc(Crtc.CURSOR_END, 9)
    assert card.chip.snapshot().cursor is None
    card.set_crtc(Crtc.CURSOR_END, 10)
    assert card.chip.snapshot().cursor == (0, 0)


# ---- indexed registers ----


@pytest.mark.parametrize(
    ("index", "data"),
    [
        (Offset.CRTC_INDEX, Offset.CRTC_DATA),
        (Offset.SEQUENCER_INDEX, Offset.SEQUENCER_DATA),
        (Offset.GRAPHICS_INDEX, Offset.GRAPHICS_DATA),
    ],
)
def test_an_indexed_register_keeps_what_is_written(index: Offset, data: Offset) -> None:
    card = Card()
    for register in range(0x100):
        card.write(index, register)
        card.write(data, register ^ 0xA5)
    for register in range(0x100):
        card.write(index, register)
        assert (card.read(index), card.read(data)) == (register, register ^ 0xA5)


def test_a_word_written_to_the_index_port_is_index_and_data() -> None:
    card = Card()
    card.chip.write(Offset.CRTC_INDEX, bytes((Crtc.CURSOR_LOW, 42)))
    assert card.chip.snapshot().cursor == (0, 42)


@pytest.mark.parametrize(("register", "value"), [(0x00, 0x5F), (0x09, 0x4F), (0x0A, 0x0D), (0x13, 0x28), (0x18, 0xFF)])
def test_after_reset_the_crt_controller_is_in_mode_3(register: int, value: int) -> None:
    card = Card()
    card.write(Offset.CRTC_INDEX, register)
    assert card.read(Offset.CRTC_DATA) == value


# ---- the attribute controller ----


def test_the_attribute_port_takes_index_and_data_in_turns() -> None:
    card = Card()
    card.set_attribute_register(0x03, 0x2A)
    assert (card.read(Offset.ATTRIBUTE), card.read(Offset.ATTRIBUTE_DATA)) == (0x03, 0x2A)


def test_reading_input_status_1_makes_the_next_write_an_index() -> None:
    card = Card()
    card.read(Offset.INPUT_STATUS_1)
    card.write(Offset.ATTRIBUTE, 0x05)  # and no data after it
    card.set_attribute_register(0x06, 0x3F)
    card.read(Offset.INPUT_STATUS_1)
    card.write(Offset.ATTRIBUTE, 0x05)
    assert card.read(Offset.ATTRIBUTE_DATA) == 0x05
    card.read(Offset.INPUT_STATUS_1)
    card.write(Offset.ATTRIBUTE, 0x06)
    assert card.read(Offset.ATTRIBUTE_DATA) == 0x3F


def test_the_attribute_index_keeps_the_bit_that_switches_the_palette_on() -> None:
    card = Card()
    card.set_attribute_register(0x20 | MODE_CONTROL, 0x00)
    assert card.read(Offset.ATTRIBUTE) == 0x30
    card.put(0, b"x", attribute=0x80)
    assert card.chip.snapshot().rows[0][0].background == 8


# ---- the others ----


def test_a_guest_that_waits_for_the_retrace_finds_it_and_its_end() -> None:
    card = Card()
    states = [card.read(Offset.INPUT_STATUS_1) for _ in range(4)]
    in_retrace = (InputStatus.VR | InputStatus.DD).value
    assert states == [in_retrace, 0, in_retrace, 0]


def test_the_miscellaneous_output_register_is_read_elsewhere_than_written() -> None:
    card = Card()
    assert card.read(Offset.MISC_READ) == 0x67
    card.write(Offset.MISC_WRITE, 0xE3)
    assert card.read(Offset.MISC_READ) == 0xE3
    assert card.read(Offset.INPUT_STATUS_0) == 0


def test_the_feature_control_register_is_read_elsewhere_than_written() -> None:
    card = Card()
    card.write(Offset.FEATURE_WRITE, 0x03)
    assert card.read(Offset.FEATURE_READ) == 0x03


def test_the_dac_takes_three_components_a_colour_and_goes_on_to_the_next() -> None:
    card = Card()
    card.write(Offset.DAC_WRITE_INDEX, 7)
    card.write(Offset.DAC_DATA, 1, 2, 3, 4, 5, 6)
    assert (card.read(Offset.DAC_STATE), card.read(Offset.DAC_WRITE_INDEX)) == (0, 9)
    card.write(Offset.DAC_READ_INDEX, 7)
    assert card.read(Offset.DAC_STATE) == 3
    assert [card.read(Offset.DAC_DATA) for _ in range(6)] == [1, 2, 3, 4, 5, 6]


def test_after_the_dacs_last_colour_comes_the_first() -> None:
    card = Card()
    card.write(Offset.DAC_WRITE_INDEX, 0xFF)
    card.write(Offset.DAC_DATA, 1, 2, 3, 4)
    card.write(Offset.DAC_READ_INDEX, 0)
    assert card.read(Offset.DAC_DATA) == 4


def test_a_component_of_the_dac_has_six_bits() -> None:
    card = Card()
    card.write(Offset.DAC_WRITE_INDEX, 0)
    card.write(Offset.DAC_DATA, 0xFF)
    card.write(Offset.DAC_READ_INDEX, 0)
    assert card.read(Offset.DAC_DATA) == 0x3F


def test_the_dac_mask_is_kept() -> None:
    card = Card()
    assert card.read(Offset.DAC_MASK) == 0xFF
    card.write(Offset.DAC_MASK, 0x0F)
    assert card.read(Offset.DAC_MASK) == 0x0F


@pytest.mark.parametrize("port", [0x3CB, 0x3CD, 0x3D0, 0x3DF])
def test_where_no_register_is_reads_give_all_ones_and_writes_are_lost(port: int) -> None:
    card = Card()
    card.write(port - PORT, 0)
    assert card.read(port - PORT) == 0xFF


widths = st.sampled_from([1, 2, 3, 4, 8])
written = widths.flatmap(lambda size: st.binary(min_size=size, max_size=size))
offsets = st.integers(0, REGISTERS + 8) | st.sampled_from(list(Offset))


@given(st.lists(st.tuples(offsets, widths | written), max_size=80))
def test_no_access_sequence_raises_or_reads_outside_of_text_memory(sequence: list[tuple[int, int | bytes]]) -> None:
    card = Card()
    for offset, access in sequence:
        if isinstance(access, int):
            assert len(card.chip.read(offset, access)) == access
        else:
            card.chip.write(offset, access)
    screen = card.chip.snapshot()
    assert screen.text() == ""
