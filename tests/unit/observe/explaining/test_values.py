"""Numbers are taken apart bit by bit, and nothing of them is lost."""

from __future__ import annotations

from functools import reduce
from operator import or_

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.observe.explaining import KINDS, Explanation, explain, format_explanation
from pykvm.observe.explaining.registers import REGISTERS

VALUES = st.integers(0, (1 << 64) - 1)
BITS = [kind.name for kind in KINDS if kind.is_bits]
NUMBERS = [kind.name for kind in KINDS if not kind.is_bits]
FORMS = [
    *[["pt"], ["pd"], ["pdpt"], ["pml4"], ["pml5"]],
    *[[level, "pae"] for level in ("pt", "pd", "pdpt")],
    *[["long"], ["long5"], ["pml5", "long5"], ["pml4", "long5"]],
]


def together(explanation: Explanation) -> int:
    """Return all bits of ``explanation``, put together."""
    return reduce(or_, (field.raw for field in explanation.bits), 0)


def bits_of(*words: str) -> dict[str, int]:
    return {field.name: field.raw for field in explain(words).bits}


@pytest.mark.parametrize("kind", BITS)
@given(value=VALUES)
def test_the_bits_put_together_are_the_value(kind: str, value: int) -> None:
    explanation = explain([kind, hex(value)])
    assert together(explanation) == value
    assert format_explanation(explanation)


@pytest.mark.parametrize("kind", BITS)
@given(value=VALUES)
def test_no_bit_is_named_twice(kind: str, value: int) -> None:
    assert sum(field.raw for field in explain([kind, hex(value)]).bits) == value


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
@given(value=VALUES)
def test_an_entry_of_any_level_is_taken_apart(form: list[str], value: int) -> None:
    assert together(explain(["pte", hex(value), *form])) == value


@pytest.mark.parametrize("level", ["pt", "pd"])
@given(value=st.integers(0, (1 << 32) - 1))
def test_an_entry_of_32_bit_paging_is_taken_apart(level: str, value: int) -> None:
    assert together(explain(["pte", hex(value), level, "32-bit"])) == value


@given(low=VALUES, high=VALUES)
def test_a_descriptor_of_16_bytes_is_taken_apart(low: int, high: int) -> None:
    assert together(explain(["descriptor", hex(low), hex(high)])) == low


@given(vector=st.sampled_from([8, 10, 11, 12, 13, 14, 17, 21, 29, 30]), value=VALUES)
def test_an_error_code_is_taken_apart(vector: int, value: int) -> None:
    assert together(explain(["error-code", str(vector), hex(value)])) == value


@given(value=VALUES)
def test_a_failed_entry_is_taken_apart(value: int) -> None:
    assert together(explain(["fail-entry", hex(value)])) == value


@pytest.mark.parametrize("kind", NUMBERS)
@given(value=VALUES)
def test_any_number_is_explained_or_refused(kind: str, value: int) -> None:
    try:
        assert format_explanation(explain([kind, str(value)]))
    except ConfigurationError as error:
        assert str(error)


# ---- what is wrong with a value ----


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("efer 0x400", "LMA is set without LME"),
        ("efer 0x2", "reserved"),
        ("cr0 0x80000000", "PG is set without PE"),
        ("cr0 0x20000000", "NW is set without CD"),
        ("cr4 0x8000", "reserved"),
        ("cr4 0x20000", "PCIDE is set while EFER.LMA is clear"),
        ("cr4 0x80000", "KVM does not offer"),
        ("cr3 0x10000000000000", "physical address"),
        ("rflags 0x0", "bit 1 is clear"),
        ("rflags 0xa", "reserved"),
        ("dr7 0x100000400", "bits 63 to 32"),
        ("apic_base 0xfee00400", "EXTD is set without EN"),
        ("descriptor 0x00ef9a000000ffff", "L and D are both set"),
        ("descriptor 0x0000880000000000", "reserved"),
        ("pte 0x1000000000000081 pml4", "reserved"),
        ("pte 0x3001 pdpt pae", ""),
        ("pte 0x200081 pd 32-bit", "reserved"),
        ("msr IA32_EFER 0x400", "LMA is set without LME"),
    ],
)
def test_what_contradicts_itself_is_named(words: str, complaint: str) -> None:
    wrong = explain(words.split()).wrong
    assert complaint in " ".join(wrong)
    assert bool(wrong) is bool(complaint)


@pytest.mark.parametrize(
    "words",
    [
        "efer 0x500",
        "efer 0xd01",
        "efer 0x0",
        "cr0 0x80050033",
        "cr0 0x60000010",
        "cr3 0x1000",
        "cr4 0x20",
        "cr4 0x3406e0",
        "rflags 0x2",
        "rflags 0x202",
        "dr6 0xffff0ff0",
        "dr7 0x400",
        "apic_base 0xfee00900",
        "descriptor 0x00cf9a000000ffff",
        "descriptor 0x00af9b000000ffff",
        "pte 0x8000000000001063",
        "pte 0x83 pd",
        "pte 0x0",
    ],
)
def test_usual_values_are_right(words: str) -> None:
    assert explain(words.split()).wrong == ()


# ---- single values ----


def test_a_registers_bits_are_named() -> None:
    assert bits_of("cr4", "0x20") == {"PAE": 0x20}
    assert bits_of("efer", "0x500") == {"LME": 0x100, "LMA": 0x400}
    assert bits_of("rflags", "0x202") == {"IF": 0x200, "-": 0x2}
    assert bits_of("rflags", "0x3002") == {"IOPL=3": 0x3000, "-": 0x2}
    assert bits_of("cr3", "0x1018") == {"PWT": 0x8, "PCD": 0x10, "address": 0x1000}


def test_bits_can_be_given_by_name() -> None:
    assert explain(["cr4", "PAE|PGE"]) == explain(["cr4", "pae", "pge"]) == explain(["cr4", "0xa0"])
    assert explain(["CR4.PAE"]) == explain(["cr4", "0x20"])


@pytest.mark.parametrize("name", REGISTERS)
def test_a_register_alone_shows_all_its_bits(name: str) -> None:
    assert len(explain([name]).bits) == len(REGISTERS[name].kind.__members__)


def test_what_a_clear_bit_of_dr6_says_is_shown() -> None:
    assert "no BLD" in bits_of("dr6", "0xffff07f1")
    assert "no BLD" not in bits_of("dr6", "0xffff0ff1")


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("descriptor 0x00cf9a000000ffff", "code, execute and read, 32-bit, DPL 0"),
        ("descriptor 0x00affa000000ffff", "code, execute and read, 64-bit"),
        ("descriptor 0x00cff2000000ffff", "data, read and write, 32-bit stack, DPL 3"),
        ("descriptor 0x00008b0030000067 0", "32-bit TSS, busy (long mode: 64-bit TSS, busy)"),
        ("descriptor 0x00008e0000081000", "32-bit interrupt gate"),
        ("descriptor 0x00008f0000081000", "32-bit trap gate"),
        ("descriptor 0x0000850000300000", "task gate"),
        ("descriptor 0x0", "the null descriptor"),
        ("pte 0x0", "not present"),
        ("pte 0x1063", "a page of 4 KiB at 0x1000"),
        ("pte 0x83 pd", "a page of 2 MiB at 0x0"),
        ("pte 0x40000083 pdpt", "a page of 1 GiB at 0x40000000"),
        ("pte 0x2003 pml4", "a PDPT at 0x2000"),
        ("pte 0x2003 pml5", "a PML4 at 0x2000"),
        ("pte 0x400083 pd 32-bit", "a page of 4 MiB at 0x400000"),
        ("pte 0x3001 pdpt pae", "a PD at 0x3000"),
        ("error-code pf 0x2", "a write by ring 0: the page is not present"),
        ("error-code #GP 0x112", "IDT vector 34"),
        ("error-code 13 0x10", "GDT selector 0x10"),
        ("error-code cp 3", "ENDBRANCH"),
        ("fail-entry 0x80000021", "invalid guest state, VT-x"),
        ("fail-entry 0x80000022", "MSR loading, VT-x"),
        ("fail-entry 7", "VM-instruction error 7, VT-x"),
        ("fail-entry -1", "VMEXIT_INVALID (-1), AMD-V"),
        ("fail-entry 0xffffffff", "VMEXIT_INVALID (-1), AMD-V"),
        ("fail-entry 0x80000063", "an unknown reason, VT-x"),
        ("fail-entry 0x63", "an unknown reason"),
        ("status 125", "the guest crashed"),
        ("status 85", "a debug exit"),
        ("status 4", "none of pykvm's"),
        ("exception 32", "an interrupt"),
        ("port 0x3fd", "a 16550A, LSR"),
        ("port 0x2f8", "nothing here; on PCs the serial port COM2"),
        ("port 0x1234", "nothing"),
        ("address 0xfee00300", "the local APIC, ICR low"),
        ("address 0xc0001000", "nothing in particular"),
        ("address 0xffffffff80000000", "nothing in particular"),
        ("address 0x100000000", "guest memory from 4 GiB on"),
        ("cpuid sse4.2", "leaf 0x1, ECX bit 20"),
        ("cpuid 0x12345", "cpuid leaf 0x12345"),
        ("msr 0x1234", "none that pykvm knows"),
        ("msr 0x1b 0xfee00900", "IA32_APIC_BASE, 0xfee00900"),
        ("exit 28", "KVM_EXIT_ARM_NISV"),
        ("exit 200", "none that pykvm knows"),
        ("internal-error 9", "none that pykvm knows"),
        ("cap 9999", "none that pykvm knows"),
    ],
)
def test_a_value_is_summed_up_in_the_title(words: str, title: str) -> None:
    assert title in explain(words.split()).title


def test_a_gate_says_where_it_goes() -> None:
    assert "Selector 0x8, offset 0x1000" in explain(["descriptor", "0x00008e0000081000"]).what
    assert "offset 0xffffffff81001000" in explain(["descriptor", "0x81008e0000081000", "0xffffffff"]).what


def test_a_system_descriptor_of_long_mode_has_its_whole_base() -> None:
    assert "Base 0xffff888000003000, limit 0x67" in explain(["descriptor", "0x00008b0030000067", "0xffff8880"]).what


def test_an_msr_without_a_value_shows_its_bits() -> None:
    assert {field.name for field in explain(["msr", "efer"]).bits} > {"LME", "LMA", "NXE"}
    assert explain(["msr", "IA32_PAT"]).bits == ()
