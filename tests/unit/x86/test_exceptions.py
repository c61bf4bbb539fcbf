from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.x86.exceptions import (
    EXCEPTIONS,
    ExceptionClass,
    describe_error_code,
    leads_to_double_fault,
    vector_name,
)

DE, UD, DF, NP, GP, PF = 0, 6, 8, 11, 13, 14


def test_the_table_has_every_vector_in_its_place() -> None:
    assert [exception.vector for exception in EXCEPTIONS] == list(range(32))


def test_exactly_the_manuals_exceptions_push_an_error_code() -> None:
    assert [e.vector for e in EXCEPTIONS if e.has_error_code] == [8, 10, 11, 12, 13, 14, 17, 21, 29, 30]


def test_mnemonics_are_unique() -> None:
    mnemonics = [exception.mnemonic for exception in EXCEPTIONS if exception.mnemonic]
    assert len(set(mnemonics)) == len(mnemonics) == 22


def test_a_vector_without_meaning_is_reserved() -> None:
    assert [e.vector for e in EXCEPTIONS if e.kind is ExceptionClass.RESERVED] == [15, *range(22, 28), 31]


@pytest.mark.parametrize(
    ("vector", "name"),
    [
        (6, "#UD (invalid opcode)"),
        (2, "non-maskable interrupt"),
        (15, "reserved exception"),
        (32, "interrupt 0x20"),
        (-1, "interrupt -0x1"),
    ],
)
def test_a_vector_has_a_name(vector: int, name: str) -> None:
    assert vector_name(vector) == name


@pytest.mark.parametrize(
    ("first", "second", "double"),
    [
        (GP, NP, True),
        (PF, PF, True),
        (PF, GP, True),
        (GP, PF, False),  # the page fault is handled, then #GP happens again
        (UD, GP, False),
        (PF, UD, False),
        (DF, GP, False),  # that is the triple fault
        (DE, DE, True),
        (0x20, GP, False),
    ],
)
def test_two_exceptions_make_a_double_fault_only_if_both_are_serious(first: int, second: int, double: bool) -> None:
    assert leads_to_double_fault(first, second) is double


@pytest.mark.parametrize(
    ("vector", "code", "text"),
    [
        (PF, 0x0, "a read by ring 0: the page is not present"),
        (PF, 0x7, "a write by ring 3: the page forbids it"),
        (PF, 0x14, "an instruction fetch by ring 3: the page is not present"),
        (PF, 0x9, "a read by ring 0: a reserved bit is set in a page-table entry"),
        (PF, 0x25, "a read by ring 3: the page's protection key forbids it"),
        (GP, 0, "no selector is to blame"),
        (GP, 0x28, "GDT selector 0x28"),
        (NP, 0x0C, "LDT selector 0x8"),
        (GP, 0x82, "IDT vector 16 (#MF (x87 floating-point error))"),
        (GP, 0x103, "IDT vector 32 (interrupt 0x20) while delivering an event from outside the program"),
        (21, 3, "an indirect branch to an instruction that is no ENDBRANCH"),
        (21, 9, "cause 0x9"),
        (DF, 0, "0x0"),
        (UD, 0, ""),
        (0x20, 5, ""),
    ],
)
def test_an_error_code_is_put_into_words(vector: int, code: int, text: str) -> None:
    assert describe_error_code(vector, code) == text


@given(st.integers(-5, 300), st.integers(-(1 << 40), 1 << 70))
def test_any_error_code_of_any_vector_can_be_described(vector: int, code: int) -> None:
    describe_error_code(vector, code)
    vector_name(vector)
