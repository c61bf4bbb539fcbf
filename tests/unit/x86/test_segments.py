"""pykvm.x86.segments: descriptors bit by bit, and the tables made of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import Segment
from pykvm.memory import GuestMemory
from pykvm.units import Gpa
from pykvm.x86 import Gate, Gdt, Idt, code_segment, data_segment, decode_descriptor, encode_descriptor
from pykvm.x86.segments import encode_tss32, encode_tss64, real_mode_segment, task_segment


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("64K") as memory:
        yield memory


# The values that every bootloader has, with the accessed bit set.
@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        (code_segment(32), 0x00CF9B000000FFFF),
        (data_segment(), 0x00CF93000000FFFF),
        (code_segment(64), 0x00AF9B000000FFFF),
        (code_segment(16), 0x008F9B000000FFFF),
        (code_segment(32, dpl=3), 0x00CFFB000000FFFF),
        (code_segment(64, dpl=3), 0x00AFFB000000FFFF),
        (data_segment(dpl=3), 0x00CFF3000000FFFF),
        (task_segment(0x3000, 103), 0x00008B0030000067),
        (real_mode_segment(0x1234), 0x000093012340FFFF),
    ],
)
def test_known_descriptors(segment: Segment, descriptor: int) -> None:
    assert encode_descriptor(segment) == descriptor
    decoded = decode_descriptor(descriptor, segment.selector)
    assert decoded == segment


@given(st.integers(0, (1 << 64) - 1))
def test_every_descriptor_survives_decoding_and_encoding(descriptor: int) -> None:
    assert encode_descriptor(decode_descriptor(descriptor)) == descriptor


@pytest.mark.parametrize(
    ("segment", "words"),
    [(Segment(limit=0x123456, g=1), "does not end on a page"), (Segment(limit=0x100000), "needs G = 1")],
)
def test_a_limit_that_cannot_be_encoded_is_refused(segment: Segment, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        encode_descriptor(segment)


def test_a_code_segment_has_a_width_that_exists() -> None:
    with pytest.raises(ConfigurationError, match="not 8"):
        code_segment(8)


def test_a_gdt_starts_with_the_null_descriptor_and_gives_selectors(memory: GuestMemory) -> None:
    gdt = Gdt()
    assert gdt.add(code_segment(32)) == 0x08
    assert gdt.add(data_segment(dpl=3)) == 0x10 | 3
    assert gdt.add(task_segment(0x3000, 103)) == 0x18
    table = gdt.write(memory, Gpa(0x1000))
    assert (table.base, table.limit) == (0x1000, 4 * 8 - 1)
    assert memory.read_u64(0x1000) == 0
    assert memory.read_u64(0x1008) == 0x00CF9B000000FFFF


def test_a_system_descriptor_of_long_mode_has_a_second_half(memory: GuestMemory) -> None:
    gdt = Gdt()
    assert gdt.add_system64(task_segment(0x1234_5678_9ABC, 103)) == 0x08
    gdt.write(memory, Gpa(0x1000))
    assert memory.read_u64(0x1010) == 0x1234
    assert decode_descriptor(memory.read_u64(0x1008)).base == 0x5678_9ABC


def test_gates_have_their_handler_in_pieces() -> None:
    gate = Gate(0x1122_3344_5566_7788, selector=0x08, dpl=3, ist=2)
    assert gate.encode64().hex() == "88770800" + "02ee" + "6655" + "44332211" + "00000000"
    assert Gate(0x11223344, is_trap=True).encode32().hex() == "44330800" + "008f" + "2211"


@pytest.mark.parametrize(("long", "size"), [(False, 8), (True, 16)])
def test_an_idt_has_256_gates_of_which_only_those_set_are_present(memory: GuestMemory, long: bool, size: int) -> None:
    idt = Idt()
    idt.set(14, Gate(0x100000))
    table = idt.write(memory, Gpa(0x2000), long=long)
    assert (table.base, table.limit) == (0x2000, 256 * size - 1)
    present = [vector for vector in range(256) if memory.read_u8(0x2000 + vector * size + 5) & 0x80]
    assert present == [14]


@pytest.mark.parametrize("vector", [-1, 256])
def test_a_vector_that_does_not_exist_is_refused(vector: int) -> None:
    with pytest.raises(ConfigurationError, match="0 to 255"):
        Idt().set(vector, Gate(0))


def test_a_tss_holds_the_stack_of_ring_0_and_no_io_map() -> None:
    for tss, stack in ((encode_tss32(0x6000), slice(4, 8)), (encode_tss64(0x6000), slice(4, 12))):
        assert len(tss) == 104
        assert int.from_bytes(tss[stack], "little") == 0x6000
        assert int.from_bytes(tss[102:], "little") == 104
    assert encode_tss32(0x6000, 0x10)[8] == 0x10
