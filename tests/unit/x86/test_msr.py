"""MSRs by name and back, and a wrong name gets a better one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.x86.msr import Msr, msr_name, parse_msr


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0x10, "IA32_TIME_STAMP_COUNTER"),
        (0x1B, "IA32_APIC_BASE"),
        (0x277, "IA32_PAT"),
        (0x201, "IA32_MTRR_PHYSMASK0"),
        (0x212, "IA32_MTRR_PHYSBASE9"),
        (0x401, "IA32_MC0_STATUS"),
        (0x6E0, "IA32_TSC_DEADLINE"),
        (0x817, "IA32_X2APIC_ISR7"),
        (0x830, "IA32_X2APIC_ICR"),
        (0xC000_0080, "IA32_EFER"),
        (0xC000_0102, "IA32_KERNEL_GS_BASE"),
        (0x4B56_4D01, "MSR_KVM_SYSTEM_TIME_NEW"),
        (0x8B, "IA32_BIOS_SIGN_ID"),
        (0x1234, "0x1234"),
    ],
)
def test_an_msr_has_the_manuals_name_or_its_number(index: int, name: str) -> None:
    assert msr_name(index) == name


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("IA32_EFER", 0xC000_0080),
        ("ia32_efer", 0xC000_0080),
        (" efer ", 0xC000_0080),
        ("TSC", 0x10),
        ("IA32_TSC", 0x10),
        ("mtrr_physbase1", 0x202),
        ("MSR_KVM_WALL_CLOCK_NEW", 0x4B56_4D00),
        ("kvm_steal_time", 0x4B56_4D03),
        ("patch_level", 0x8B),
        ("0x10", 0x10),
        ("16", 0x10),
        ("0xffffffff", 0xFFFF_FFFF),
    ],
)
def test_an_msr_can_be_named_in_any_case_without_its_prefix_or_by_number(text: str, index: int) -> None:
    assert parse_msr(text) == index


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("IA32_EFFER", "no MSR called 'IA32_EFFER': did you mean IA32_EFER"),
        ("lstr", "did you mean IA32_LSTAR"),
        ("", "no MSR called ''"),
        ("qqqqqqqq", "write its number"),
        ("9" * 5000, "write 0x10, 16 or IA32_TSC"),
        ("0x1234g", "write 0x10, 16 or IA32_TSC"),
        ("0x100000000", "has 32 bits"),
        ("-1", "has 32 bits"),
    ],
)
def test_a_wrong_name_is_refused_with_what_may_be_meant(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        parse_msr(text)


@given(st.sampled_from(Msr))
def test_every_member_is_found_by_its_name_and_has_one(msr: Msr) -> None:
    assert parse_msr(msr.name) == msr
    assert msr_name(msr) == msr.name


@given(st.integers(0, (1 << 32) - 1) | st.integers(0, 0x1000))
def test_what_a_name_stands_for_is_what_it_was_made_from(index: int) -> None:
    assert parse_msr(msr_name(index)) == index


@settings(max_examples=30)  # looking for close names takes its time
@given(st.text(max_size=30))
def test_no_text_gives_anything_but_an_msr_or_the_error(text: str) -> None:
    try:
        assert 0 <= parse_msr(text) < 1 << 32
    except ConfigurationError as error:
        assert repr(text) in str(error) or "32 bits" in str(error)
