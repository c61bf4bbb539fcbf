from __future__ import annotations

from enum import Flag

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.kvm.structs import DescriptorTable, Regs, Segment, Sregs
from pykvm.x86.registers import ApicBase, Cr0, Cr3, Cr4, Dr6, Dr7, Efer, Rflags, describe, format_registers

KINDS = (ApicBase, Cr0, Cr3, Cr4, Dr6, Dr7, Efer, Rflags)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Cr0, 0x8005_0033, "[PG AM WP NE ET MP PE]"),
        (Cr0, 0, "[-]"),
        (Cr4, 0x20, "[PAE]"),
        (Efer, 0x500, "[LMA LME]"),
        (Rflags, 0x246, "[IF ZF PF]"),
    ],
)
def test_flags_are_named_from_the_highest_bit_down(kind: type[Flag], value: int, text: str) -> None:
    assert describe(kind, value) == text


def test_unknown_bits_stay_visible_as_one_number() -> None:
    assert describe(Cr4, 1 << 63 | 1 << 40 | 0x20) == "[PAE 0x8000010000000000]"


def test_a_field_of_several_bits_shows_its_value() -> None:
    assert describe(Rflags, 0x3202) == "[IOPL=3 IF]"
    assert describe(Rflags, 0x1002) == "[IOPL=1]"
    assert describe(Dr7, 0xD_0402) == "[LEN0=3 RW0=1 G0]"


@pytest.mark.parametrize(("kind", "value"), [(Rflags, 0x2), (Dr6, 0xFFFF_0FF0), (Dr7, 0x400)])
def test_bits_that_are_always_set_say_nothing(kind: type[Flag], value: int) -> None:
    assert describe(kind, value) == "[-]"


def test_dr6_tells_of_a_bus_lock_by_a_clear_bit() -> None:
    assert describe(Dr6, 0xFFFF_07F1) == "[BLD B0]"


def test_an_address_is_not_taken_for_flags() -> None:
    assert describe(Cr3, 0x1234_5018) == "[PCD PWT]"
    assert describe(ApicBase, 0xFEE0_0900) == "[EN BSP]"


def test_bits_of_two_registers_do_not_mix() -> None:
    with pytest.raises(TypeError):
        Cr0.PG | Cr4.PAE  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_takes_any_value_a_guest_can_write(kind: type[Flag]) -> None:
    assert kind(0xFFFF_FFFF_FFFF_FFFF).value == 0xFFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_names_share_a_bit(kind: type[Flag]) -> None:
    values = [member.value for member in kind.__members__.values()]
    assert sum(values) == sum(1 << bit for bit in range(64) if any(value >> bit & 1 for value in values))


@given(st.sampled_from(KINDS), st.integers(-(1 << 70), 1 << 70))
def test_describe_takes_any_number(kind: type[Flag], value: int) -> None:
    assert describe(kind, value).startswith("[")


LONG_MODE = Sregs(
    cs=Segment(0, 0xFFFF_FFFF, 0x8, 11, 1, 0, 0, 1, 1, 1),
    ss=Segment(0, 0xFFFF_FFFF, 0x10, 3, 1, 3, 1, 1, 0, 1),
    ds=Segment(unusable=1),
    tr=Segment(0x3000, 0x67, 0x30, 11, 1),
    ldt=Segment(type=2, present=0),
    gdt=DescriptorTable(0x1000, 0x3F),
    cr0=0x8000_0011,
    cr3=0x1_0000,
    cr4=0x20,
    efer=0x500,
)


def test_the_block_shows_every_register() -> None:
    regs = Regs(**{name: 0xABC0 + number for number, name in enumerate(Regs.__dataclass_fields__)})
    text = format_registers(regs, LONG_MODE)
    words = text.split()
    for name in Regs.__dataclass_fields__:
        assert words[words.index(name) + 1] == f"{getattr(regs, name):#x}"
    for name in Sregs.__dataclass_fields__:
        assert name in words or name == "interrupt_bitmap"


def test_the_block_decodes_flags_and_segments() -> None:
    lines = format_registers(Regs(rip=0x1007, rsp=0x8000), LONG_MODE).splitlines()
    assert lines[0] == "rip 0x1007 rflags 0x2 [-]"
    assert "cr0       0x80000011 [PG ET PE]" in lines
    assert "efer      0x500      [LMA LME]" in lines
    assert "cs  0x8  base 0x0    limit 0xffffffff code r-x 64-bit DPL 0" in lines
    assert "ss  0x10 base 0x0    limit 0xffffffff data rw- 32-bit DPL 3" in lines
    assert "ds  0x0  base 0x0    limit 0x0        unusable" in lines
    assert "tr  0x30 base 0x3000 limit 0x67       TSS busy DPL 0" in lines
    assert "ldt 0x0  base 0x0    limit 0x0        LDT DPL 0 not present" in lines
    assert "gdt      base 0x1000 limit 0x3f" in lines


def test_the_columns_of_the_general_registers_are_aligned() -> None:
    lines = format_registers(Regs(rax=0x1234_5678_9ABC_DEF0, r9=5), Sregs()).splitlines()[1:5]
    assert [line.index(name) for line, name in zip(lines, ("rbx", "rdi", "r9", "r13"), strict=True)] == [23] * 4


def test_no_line_ends_in_blanks() -> None:
    assert all(line == line.rstrip() for line in format_registers(Regs(), Sregs()).splitlines())


def test_an_unknown_system_type_is_shown_as_a_number() -> None:
    assert "system type 5" in format_registers(Regs(), Sregs(tr=Segment(type=5, present=1)))


segments = st.builds(Segment, **{name: st.integers(-9, 1 << 70) for name in Segment.__dataclass_fields__})


@given(segments, st.integers(-(1 << 70), 1 << 70))
def test_the_block_takes_any_values(segment: Segment, value: int) -> None:
    assert format_registers(Regs(rflags=value), Sregs(cs=segment, tr=segment, cr0=value, efer=value))
