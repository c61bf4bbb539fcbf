"""pykvm.boot.mptable: what a kernel finds that looks for an MP table the way the specification tells it to."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot.mptable import mp_table
from pykvm.errors import ConfigurationError
from pykvm.memory import platform
from pykvm.units import MiB

CPUS = st.integers(1, 255)
SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


class Kernel:
    """A small parser that knows nothing of the writer, on memory that holds the table and nothing else."""

    def __init__(self, cpus: int) -> None:
        self.memory = bytearray(MiB)
        for gpa, data in mp_table(cpus):
            self.memory[gpa : gpa + len(data)] = data
        self.pointer = self.find()
        at = int.from_bytes(self.pointer[4:8], "little")
        size = int.from_bytes(self.memory[at + 4 : at + 6], "little")
        self.table = bytes(self.memory[at : at + size])
        assert self.table[:4] == b"PCMP"
        assert sum(self.table) % 256 == 0

    def find(self) -> bytes:
        places = [at for at in range(0xF0000, 0x100000, 16) if self.memory[at : at + 4] == b"_MP_"]
        assert len(places) == 1
        pointer = bytes(self.memory[places[0] : places[0] + 16 * self.memory[places[0] + 8]])
        assert sum(pointer) % 256 == 0
        return pointer

    def entries(self, type: int) -> list[bytes]:
        return [entry for entry in self.all_entries() if entry[0] == type]

    def all_entries(self) -> list[bytes]:
        found, at = [], 44
        while at < len(self.table):
            size = SIZES[self.table[at]]
            found.append(self.table[at : at + size])
            at += size
        assert at == len(self.table)
        return found


@given(cpus=CPUS)
def test_a_kernel_finds_the_table_and_an_entry_for_every_cpu_the_first_of_which_is_the_boot_processor(
    cpus: int,
) -> None:
    kernel = Kernel(cpus)
    processors = kernel.entries(0)
    assert [entry[1] for entry in processors] == list(range(cpus))
    assert [entry[3] for entry in processors] == [0b11] + [0b01] * (cpus - 1)


@given(cpus=CPUS)
def test_the_header_counts_the_entries_which_are_in_the_order_of_their_types(cpus: int) -> None:
    kernel = Kernel(cpus)
    types = [entry[0] for entry in kernel.all_entries()]
    assert types == sorted(types)
    assert int.from_bytes(kernel.table[34:36], "little") == len(types)


def test_the_pointer_says_1_4_and_virtual_wire_mode() -> None:
    pointer = Kernel(1).pointer
    assert len(pointer) == 16
    assert pointer[9] == 4
    assert pointer[11:] == bytes(5), "no default configuration, no IMCR"


def test_the_header_names_the_local_apics_address() -> None:
    table = Kernel(1).table
    assert table[6] == 4
    assert int.from_bytes(table[36:40], "little") == 0xFEE0_0000
    assert table[40:44] == bytes(4), "no extended table"


def test_a_processor_has_an_apic_and_an_fpu() -> None:
    (entry,) = Kernel(1).entries(0)
    _, _, version, _, signature, features = struct.unpack("<BBBBII8x", entry)
    assert version & 0xF0 == 0x10, "a local APIC that is part of the CPU"
    assert signature >> 8 & 0xF == 6
    assert features == 1 << 0 | 1 << 9


def test_there_is_one_isa_bus_and_one_io_apic() -> None:
    kernel = Kernel(2)
    assert kernel.entries(1) == [struct.pack("<BB6s", 1, 0, b"ISA   ")]
    assert kernel.entries(2) == [struct.pack("<BBBBI", 2, 0, 0x11, 1, 0xFEC0_0000)]


def test_isa_interrupts_have_the_pin_of_their_number_but_the_timer_has_pin_2() -> None:
    fields = [struct.unpack("<BBHBBBB", entry) for entry in Kernel(1).entries(3)]
    assert {irq: pin for _, _, _, _, irq, _, pin in fields} == {0: 2} | {n: n for n in range(1, 16) if n != 2}
    assert {(type, bus, apic) for _, type, _, bus, _, apic, _ in fields} == {(0, 0, 0)}


def test_only_the_sci_is_not_as_isa_has_it() -> None:
    fields = [struct.unpack("<BBHBBBB", entry) for entry in Kernel(1).entries(3)]
    assert {irq: flags for _, _, flags, _, irq, _, _ in fields if flags} == {9: 0b1101}, "by level, active high"


def test_the_pic_comes_in_at_lint0_and_the_nmi_at_lint1_of_every_cpu() -> None:
    assert Kernel(4).entries(4) == [
        struct.pack("<BBHBBBB", 4, 3, 0, 0, 0, 0xFF, 0),
        struct.pack("<BBHBBBB", 4, 1, 0, 0, 0, 0xFF, 1),
    ]


def test_the_table_of_the_most_cpus_fits_into_the_bios_area() -> None:
    (pointer_at, pointer), (at, data) = mp_table(255)
    assert pointer_at == platform.MP_TABLE == 0xF0000
    assert pointer_at + len(pointer) == at
    assert at + len(data) <= 0x100000


def test_tables_are_made_once() -> None:
    assert mp_table(4) is mp_table(4)


@pytest.mark.parametrize("cpus", [0, -1, 256])
def test_a_number_of_cpus_that_has_no_apic_ids_is_refused(cpus: int) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot describe {cpus} CPUs: have 1 to 255"):
        mp_table(cpus)
