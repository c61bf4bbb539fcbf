from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.observe.gdbstub.layout import Architecture, Register, layout_of, target_xml
from pykvm.observe.gdbstub.registers import CpuRegisters, get_register, put_register
from tests.unit.observe.gdbstub.conftest import long_mode, protected_mode, real_mode

ARCHITECTURES = list(Architecture)


def named(name: str, architecture: Architecture = Architecture.X86_64) -> Register:
    return next(register for register in layout_of(architecture) if register.name == name)


def value(cpu: CpuRegisters, name: str, architecture: Architecture = Architecture.X86_64) -> int:
    return int.from_bytes(get_register(cpu, named(name, architecture)), "little")


def put(cpu: CpuRegisters, name: str, number: int, architecture: Architecture = Architecture.X86_64) -> CpuRegisters:
    register = named(name, architecture)
    return put_register(cpu, register, number.to_bytes(register.size, "little"))


# ---- what gdb is told ----


@pytest.mark.parametrize(
    ("cpu", "architecture"),
    [
        (real_mode(), Architecture.I8086),
        (protected_mode(), Architecture.I386),
        (long_mode(), Architecture.X86_64),
    ],
)
def test_the_mode_chooses_the_architecture(cpu: CpuRegisters, architecture: Architecture) -> None:
    assert Architecture.of(cpu.regs, cpu.sregs) is architecture


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_description_lists_the_registers_of_the_layout_in_its_order(architecture: Architecture) -> None:
    root = ElementTree.fromstring(target_xml(architecture))
    assert root.findtext("architecture") == architecture.value
    described = [(reg.get("name"), int(reg.get("bitsize", ""))) for reg in root.iter("reg")]
    assert described == [(register.name, register.bits) for register in layout_of(architecture)]
    assert len({name for name, _ in described}) == len(described)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_flags_fit_their_registers(architecture: Architecture) -> None:
    root = ElementTree.fromstring(target_xml(architecture))
    flags = {flags.get("id"): flags for flags in root.iter("flags")}
    assert {"eflags_flags", "cr0_flags", "cr4_flags", "efer_flags"} <= set(flags)
    for kind in flags.values():
        for field in kind.iter("field"):
            assert int(field.get("end", "")) < 8 * int(kind.get("size", ""))


@pytest.mark.parametrize(
    ("architecture", "features"),
    [
        (Architecture.I8086, {"org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse"}),
        (
            Architecture.X86_64,
            {"org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse", "org.gnu.gdb.i386.segments"},
        ),
    ],
)
def test_what_gdb_insists_on_stands_in_its_own_features(architecture: Architecture, features: set[str]) -> None:
    root = ElementTree.fromstring(target_xml(architecture))
    assert {feature.get("name", "") for feature in root.iter("feature")} == features | {"org.pykvm.x86.system"}


# ---- values ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("cpu", [real_mode(), protected_mode(), long_mode()])
def test_every_register_has_as_many_bytes_as_its_layout_says(architecture: Architecture, cpu: CpuRegisters) -> None:
    assert all(len(get_register(cpu, register)) == register.size for register in layout_of(architecture))


@pytest.mark.parametrize(
    ("cpu", "name", "expected"),
    [
        (real_mode(base=0x7C00, rip=0x12), "eip", 0x7C12),
        (real_mode(base=0xF_FFF0, rip=0xFFFF), "eip", 0x10_FFEF),
        (protected_mode(base=0x1_0000, rip=0x20), "eip", 0x1_0020),
        (real_mode(base=0x7C00), "cs", 0x7C0),
        (real_mode(base=0x7C00), "cs_base", 0x7C00),
    ],
)
def test_pc_is_linear(cpu: CpuRegisters, name: str, expected: int) -> None:
    assert value(cpu, name, Architecture.I8086) == expected


def test_in_long_mode_pc_is_rip_whatever_the_base() -> None:
    cpu = long_mode(rip=0xFFFF_8000_0000_0000)
    cpu.sregs.cs.base = 0x1000
    assert value(cpu, "rip") == 0xFFFF_8000_0000_0000


def test_pc_is_set_by_its_linear_address() -> None:
    cpu = put(real_mode(base=0x7C00), "eip", 0x7C34, Architecture.I8086)
    assert cpu.regs.rip == 0x34
    assert put(long_mode(), "rip", 1 << 63).regs.rip == 1 << 63


def test_pc_cannot_leave_the_segment_of_real_mode() -> None:
    with pytest.raises(ConfigurationError, match=r"0x20000 is not in the 64 KiB from CS.base 0x7c00 on: set \$cs"):
        put(real_mode(base=0x7C00), "eip", 0x2_0000, Architecture.I8086)


def test_in_real_mode_a_segment_register_brings_its_base() -> None:
    cpu = put(real_mode(), "ds", 0x1234, Architecture.I8086)
    assert (cpu.sregs.ds.selector, cpu.sregs.ds.base) == (0x1234, 0x1_2340)


@pytest.mark.parametrize("name", ["cs", "ss", "tr", "ldt"])
def test_a_descriptor_is_not_loaded_behind_the_guests_back(name: str) -> None:
    with pytest.raises(ConfigurationError, match="let the guest do it"):
        put(long_mode(), name, 0x33)


@given(st.sampled_from(ARCHITECTURES), st.data())
def test_what_is_put_into_a_register_is_there_and_nothing_else_changes(
    architecture: Architecture, data: st.DataObject
) -> None:
    names = ("eip", "rip", "cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr", "ftag")
    plain = [register for register in layout_of(architecture) if register.name not in names]
    register = data.draw(st.sampled_from(plain))
    new = data.draw(st.binary(min_size=register.size, max_size=register.size))
    before = long_mode(rax=1, rsp=2)
    after = put_register(before, register, new)
    if register.name not in ("fiseg", "foseg", "fctrl", "fstat", "fop"):  # of 16 bits, shown as 32
        assert get_register(after, register) == new
    same = [other for other in plain if other != register]
    assert [get_register(after, other) for other in same] == [get_register(before, other) for other in same]


def test_the_same_value_changes_nothing() -> None:
    cpu = long_mode()
    for register in layout_of(Architecture.X86_64):
        assert put_register(cpu, register, get_register(cpu, register)) is cpu


def test_a_32_bit_value_clears_the_upper_half_as_the_cpu_does() -> None:
    assert put(long_mode(rax=-1 % (1 << 64)), "eax", 5, Architecture.I386).regs.rax == 5


@pytest.mark.parametrize("size", [0, 1, 9])
def test_a_value_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ConfigurationError, match="rax has 8 bytes"):
        put_register(long_mode(), named("rax"), bytes(size))


# ---- x87 and SSE ----


def test_an_empty_x87_unit_has_an_empty_tag_word() -> None:
    assert value(long_mode(), "ftag") == 0xFFFF


def test_the_tag_word_goes_by_the_registers_number_and_tells_zero_from_other_numbers() -> None:
    one = 0x3FFF_8000_0000_0000_0000
    cpu = put(put(put(long_mode(), "fstat", 6 << 11), "st0", one), "ftag", 0x0FFF)  # TOP = 6: ST0 is register 6
    assert value(cpu, "ftag") == 0b01_00 << 12 | 0xFFF  # register 7 is ST1, and 0


def test_what_was_not_in_use_counts_once_it_is_written() -> None:
    cpu = put(long_mode(), "xmm3", 1 << 127)
    assert cpu.xsave[512] == 0b11
    assert value(cpu, "xmm3") == 1 << 127
    assert cpu.xsave[160 + 48 : 160 + 64] == bytes(15) + b"\x80"
    assert value(cpu, "mxcsr") == 0x1F80
