"""pykvm.devices.fwcfg: items by selector and data, and the same by DMA, as QEMU's specification has it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.fwcfg import REGISTERS, ZEROS, Control, FwCfg, Key, Offset
from pykvm.errors import ConfigurationError, GuestMemoryError

RAM = 4 * 1024 * 1024
DESCRIPTOR = 0x1000  # where the tests put it
TARGET = 0x2000
FILES = {"etc/one": b"first", "opt/org.example/two": bytes(range(256))}


class Guest:
    """An fw_cfg device and a guest with 4 MiB of memory that uses it."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.memory = bytearray(b"\xee" * RAM)
        self.largest_write = 0
        self.chip = FwCfg(self._read, self._write, ram_size=RAM, cpus=2, files=FILES if files is None else files)

    def _read(self, gpa: int, size: int) -> bytes:
        if gpa + size > RAM:
            raise GuestMemoryError("no memory there", gpa)
        return bytes(self.memory[gpa : gpa + size])

    def _write(self, gpa: int, data: bytes) -> None:
        if gpa + len(data) > RAM:
            raise GuestMemoryError("no memory there", gpa)
        self.largest_write = max(self.largest_write, len(data))
        self.memory[gpa : gpa + len(data)] = data

    def select(self, key: int) -> None:
        self.chip.write(Offset.SELECTOR, key.to_bytes(2, "little"))

    def data(self, size: int) -> bytes:
        return b"".join(self.chip.read(Offset.DATA, 1) for _ in range(size))

    def item(self, key: int, size: int) -> bytes:
        self.select(key)
        return self.data(size)

    def start(self, descriptor: int) -> None:
        self.chip.write(Offset.DMA_HIGH, (descriptor >> 32).to_bytes(4, "big"))
        self.chip.write(Offset.DMA_LOW, (descriptor & 0xFFFF_FFFF).to_bytes(4, "big"))

    def transfer(self, control: Control, length: int = 0, address: int = TARGET, key: int = 0) -> Control:
        self.memory[DESCRIPTOR : DESCRIPTOR + 16] = struct.pack(">IIQ", key << 16 | control.value, length, address)
        self.start(DESCRIPTOR)
        return Control(int.from_bytes(self.memory[DESCRIPTOR : DESCRIPTOR + 4], "big"))

    def at_target(self, size: int) -> bytes:
        return bytes(self.memory[TARGET : TARGET + size])


DONE = Control(0)
FETCH = Control.SELECT | Control.READ


# ---- selector and data ----


def test_after_reset_the_signature_is_selected() -> None:
    assert Guest().data(4) == b"QEMU"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (Key.SIGNATURE, b"QEMU"),
        (Key.ID, b"\x03\0\0\0"),
        (Key.RAM_SIZE, RAM.to_bytes(8, "little")),
        (Key.NB_CPUS, b"\x02\0"),
        (Key.MAX_CPUS, b"\x02\0"),
        (Key.FILE_FIRST, b"first"),
    ],
)
def test_an_item_is_read_byte_by_byte(key: Key, value: bytes) -> None:
    assert Guest().item(key, len(value)) == value


def test_beyond_an_items_end_there_are_zeros() -> None:
    assert Guest().item(Key.SIGNATURE, 7) == b"QEMU\0\0\0"


@pytest.mark.parametrize("key", [0x0002, 0x0022, 0x8000, 0xFFFF])
def test_an_item_that_there_is_not_reads_as_zeros(key: int) -> None:
    assert Guest().item(key, 4) == bytes(4)


def test_selecting_an_item_again_starts_it_again() -> None:
    guest = Guest()
    assert guest.item(Key.SIGNATURE, 2) == b"QE"
    assert guest.data(1) == b"M"
    assert guest.item(Key.SIGNATURE, 2) == b"QE"


def test_the_write_channels_bit_of_a_selector_means_nothing() -> None:
    assert Guest().item(Key.WRITE_CHANNEL | Key.FILE_FIRST, 5) == b"first"


def test_the_selector_takes_16_bits_at_once_and_is_not_read() -> None:
    guest = Guest()
    guest.chip.write(Offset.SELECTOR, b"\x20")
    guest.chip.write(Offset.SELECTOR, b"\x20\0\0\0")
    assert guest.data(4) == b"QEMU"
    assert guest.chip.read(Offset.SELECTOR, 1) == b"\0"


def test_writing_to_the_data_register_changes_nothing() -> None:
    guest = Guest()
    guest.chip.write(Offset.DATA, b"X")
    assert guest.data(4) == b"QEMU"


def test_the_directory_lists_the_files_in_order() -> None:
    guest = Guest()
    assert guest.item(Key.FILE_DIR, 4) == b"\0\0\0\x02"
    entries = [struct.unpack(">IHH56s", guest.data(64)) for _ in FILES]
    assert [(size, key, name.rstrip(b"\0").decode()) for size, key, _, name in entries] == [
        (5, 0x20, "etc/one"),
        (256, 0x21, "opt/org.example/two"),
    ]
    assert [reserved for _, _, reserved, _ in entries] == [0, 0]


def test_without_files_the_directory_is_empty() -> None:
    assert Guest(files={}).item(Key.FILE_DIR, 5) == bytes(5)


# ---- DMA ----


def test_the_dma_address_register_reads_as_a_signature() -> None:
    chip = Guest().chip
    assert chip.read(Offset.DMA_HIGH, 8) == b"QEMU CFG"
    assert chip.read(Offset.DMA_HIGH, 4) + chip.read(Offset.DMA_LOW, 4) == b"QEMU CFG"
    assert int.from_bytes(chip.read(Offset.DMA_HIGH, 8), "big") == 0x5145_4D55_2043_4647


def test_a_transfer_copies_an_item_into_guest_memory() -> None:
    guest = Guest()
    assert guest.transfer(FETCH, 5, key=Key.FILE_FIRST) == DONE
    assert guest.at_target(6) == b"first\xee"


def test_a_transfer_without_select_goes_on_where_the_last_one_ended() -> None:
    guest = Guest()
    guest.transfer(FETCH, 2, key=Key.FILE_FIRST)
    assert guest.transfer(Control.READ, 3) == DONE
    assert guest.at_target(3) == b"rst"
    assert guest.data(1) == b"\0"


def test_ports_and_dma_share_the_position() -> None:
    guest = Guest()
    assert guest.item(Key.FILE_FIRST, 1) == b"f"
    guest.transfer(Control.READ, 2)
    assert guest.at_target(2) == b"ir"
    assert guest.data(2) == b"st"


def test_skip_goes_on_without_writing() -> None:
    guest = Guest()
    assert guest.transfer(Control.SELECT | Control.SKIP, 3, key=Key.FILE_FIRST) == DONE
    assert guest.at_target(3) == b"\xee" * 3
    assert guest.data(2) == b"st"


def test_skip_stops_at_the_items_end() -> None:
    guest = Guest()
    assert guest.transfer(Control.SELECT | Control.SKIP, 0xFFFF_FFFF, key=Key.FILE_FIRST) == DONE
    assert guest.data(1) == b"\0"


def test_select_alone_selects() -> None:
    guest = Guest()
    assert guest.transfer(Control.SELECT, 100, key=Key.FILE_FIRST) == DONE
    assert guest.data(5) == b"first"
    assert guest.at_target(1) == b"\xee"


def test_read_goes_before_write_and_skip() -> None:
    guest = Guest()
    assert guest.transfer(FETCH | Control.SKIP | Control.WRITE, 5, key=Key.FILE_FIRST) == DONE
    assert guest.at_target(5) == b"first"


def test_a_guest_cannot_write_an_item() -> None:
    guest = Guest()
    assert guest.transfer(Control.SELECT | Control.WRITE, 5, key=Key.FILE_FIRST) == Control.ERROR
    assert guest.item(Key.FILE_FIRST, 5) == b"first"


def test_a_transfer_reads_zeros_beyond_an_items_end() -> None:
    guest = Guest()
    assert guest.transfer(FETCH, 5 + 0x1_8000, key=Key.FILE_FIRST) == DONE
    assert guest.at_target(5 + 0x1_8000 + 1) == b"first" + bytes(0x1_8000) + b"\xee"


def test_a_transfer_of_too_many_zeros_is_an_error_and_writes_nothing() -> None:
    guest = Guest()
    assert guest.transfer(FETCH, 5 + ZEROS, key=Key.FILE_FIRST) == DONE
    guest.memory[TARGET] = 0xEE
    for length in (5 + ZEROS + 1, 0xFFFF_FFFF):
        assert guest.transfer(FETCH, length, key=Key.FILE_FIRST) == Control.ERROR
    assert guest.at_target(1) == b"\xee"
    assert guest.largest_write <= 0x1_0000


@pytest.mark.parametrize("address", [RAM, RAM - 4, 2**64 - 1])
def test_a_transfer_to_where_no_memory_is_is_an_error(address: int) -> None:
    guest = Guest()
    assert guest.transfer(FETCH, 5, address, key=Key.FILE_FIRST) == Control.ERROR
    assert guest.transfer(FETCH, 5, key=Key.FILE_FIRST) == DONE


@pytest.mark.parametrize("descriptor", [RAM, 2**64 - 1])
def test_a_descriptor_where_no_memory_is_has_no_effect(descriptor: int) -> None:
    guest = Guest()
    guest.start(descriptor)
    assert guest.memory == b"\xee" * RAM


def test_of_a_descriptor_at_the_end_of_memory_the_control_word_says_error() -> None:
    guest = Guest()
    guest.start(RAM - 8)
    assert guest.memory[-8:-4] == b"\0\0\0\x01"


def test_the_high_half_of_the_address_is_forgotten_after_a_transfer() -> None:
    guest = Guest()
    guest.start(1 << 32 | DESCRIPTOR)
    guest.memory[DESCRIPTOR : DESCRIPTOR + 16] = struct.pack(">IIQ", 0x20 << 16 | FETCH.value, 5, TARGET)
    guest.chip.write(Offset.DMA_LOW, DESCRIPTOR.to_bytes(4, "big"))
    assert guest.at_target(5) == b"first"


def test_the_whole_address_can_be_written_at_once() -> None:
    guest = Guest()
    guest.memory[DESCRIPTOR : DESCRIPTOR + 16] = struct.pack(">IIQ", 0x20 << 16 | FETCH.value, 5, TARGET)
    guest.chip.write(Offset.DMA_HIGH, DESCRIPTOR.to_bytes(8, "big"))
    assert guest.at_target(5) == b"first"


@given(st.binary(max_size=300), st.lists(st.integers(0, 100), max_size=8))
def test_a_file_is_the_same_by_dma_and_by_port(content: bytes, lengths: list[int]) -> None:
    by_port, by_dma = Guest({"f": content}), Guest({"f": content})
    by_port.select(Key.FILE_FIRST)
    by_dma.transfer(Control.SELECT, key=Key.FILE_FIRST)
    for length in lengths:
        assert by_dma.transfer(Control.READ, length) == DONE
        assert by_dma.at_target(length) == by_port.data(length)


# ---- hostile guests, and wrong use ----

widths = st.sampled_from([1, 2, 3, 4, 8])
written = widths.flatmap(lambda size: st.binary(min_size=size, max_size=size))
small = st.integers(0, 0x40).map(lambda value: value.to_bytes(4, "big"))


@given(
    st.lists(st.tuples(st.integers(0, REGISTERS + 8), widths | written | small), max_size=40),
    st.binary(min_size=0x50, max_size=0x50),
)
def test_no_access_sequence_raises(sequence: list[tuple[int, int | bytes]], memory: bytes) -> None:
    guest = Guest()
    guest.memory[: len(memory)] = memory  # where most transfers find their descriptors
    for offset, access in sequence:
        if isinstance(access, int):
            assert len(guest.chip.read(offset, access)) == access
        else:
            guest.chip.write(offset, access)
    assert len(guest.memory) == RAM


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1) | st.integers(0, RAM))
def test_any_descriptor_ends_in_done_or_error(control: int, length: int, address: int) -> None:
    guest = Guest()
    guest.memory[DESCRIPTOR : DESCRIPTOR + 16] = struct.pack(">IIQ", control, length, address)
    guest.start(DESCRIPTOR)
    assert len(guest.memory) == RAM
    assert bytes(guest.memory[DESCRIPTOR : DESCRIPTOR + 4]) in (b"\0\0\0\0", b"\0\0\0\x01")


@pytest.mark.parametrize("name", ["", "x" * 56, "umläut", "new\nline", "nul\0"])
def test_a_name_that_the_directory_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 55 printable ASCII characters"):
        Guest({name: b""})


def test_the_longest_name_fits() -> None:
    guest = Guest({"x" * 55: b""})
    guest.select(Key.FILE_DIR)
    assert guest.data(4 + 64)[12:] == b"x" * 55 + b"\0"


def test_more_files_than_there_are_keys_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="too many"):
        Guest({f"file{number}": b"" for number in range(0x4000)})


@pytest.mark.parametrize(("ram_size", "cpus"), [(-1, 1), (2**64, 1), (RAM, 65536), (RAM, -1)])
def test_a_figure_that_does_not_fit_is_refused(ram_size: int, cpus: int) -> None:
    with pytest.raises(ConfigurationError, match="does not fit"):
        FwCfg(lambda gpa, size: b"", lambda gpa, data: None, ram_size=ram_size, cpus=cpus)
