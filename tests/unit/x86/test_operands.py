"""pykvm.x86.operands: what an instruction is about to read and write."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.kvm import Regs, Sregs
from pykvm.memory import GuestMemory
from pykvm.x86 import Mode, set_up
from pykvm.x86.operands import Access, MemoryAccess, memory_accesses, register_value, stack_width

READ, WRITE = Access.READ, Access.WRITE
BOTH = READ | WRITE


def state(mode: Mode, **registers: int) -> tuple[Regs, Sregs]:
    with GuestMemory("1M") as memory:
        made = set_up(mode, Sregs(), memory, 0x8000)
    for name, value in registers.items():
        setattr(made.regs, name, value)
    return made.regs, made.sregs


def accesses(code: str, mode: Mode = Mode.LONG, **registers: int) -> list[tuple[int, int, Access, str]]:
    found = memory_accesses(bytes.fromhex(code), *state(mode, **registers))
    return [(one.address, one.size, one.access, one.segment) for one in found]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("8b 44 8b 08", (0x5000 + 4 * 0x10 + 8, 4, READ, "ds")),  # mov 8(%rbx,%rcx,4), %eax
        ("48 89 03", (0x5000, 8, WRITE, "ds")),
        ("c6 03 01", (0x5000, 1, WRITE, "ds")),
        ("01 03", (0x5000, 4, BOTH, "ds")),  # add %eax, (%rbx)
        ("39 03", (0x5000, 4, READ, "ds")),  # cmp
        ("f0 0f b1 0b", (0x5000, 4, BOTH, "ds")),  # lock cmpxchg
        ("87 0b", (0x5000, 4, BOTH, "ds")),  # xchg
        ("8b 45 00", (0x6000, 4, READ, "ss")),  # mov (%rbp), %eax
        ("48 8b 05 10 00 00 00", (0x8000 + 7 + 0x10, 8, READ, "ds")),  # mov 0x10(%rip), %rax
        ("a0 88 77 66 55 44 33 22 11", (0x1122334455667788, 1, READ, "ds")),
        ("0f 01 13", (0x5000, 10, READ, "ds")),  # lgdt
        ("0f 01 03", (0x5000, 10, WRITE, "ds")),  # sgdt
        ("ff 23", (0x5000, 8, READ, "ds")),  # jmp *(%rbx)
        ("ff 2b", (0x5000, 6, READ, "ds")),  # ljmp *(%rbx): offset and selector
        ("f3 0f 7f 03", (0x5000, 16, WRITE, "ds")),  # movdqu
        ("0f ab 03", (0x5000 + 4 * 3, 4, BOTH, "ds")),  # bts: bit 0x64 is in the fourth double word
        ("d7", (0x5000 + 0x64, 1, READ, "ds")),  # xlat
        ("67 8b 03", (0x5000, 4, READ, "ds")),  # mov (%ebx), %eax
    ],
)
def test_an_operand_is_where_its_registers_say(code: str, expected: tuple[int, int, Access, str]) -> None:
    assert accesses(code, rbx=0x5000, rcx=0x10, rbp=0x6000, rax=0x64) == [expected]


@pytest.mark.parametrize(("code", "size"), [("aa", 1), ("66 ab", 2), ("ab", 4), ("48 ab", 8), ("f3 aa", 1)])
def test_stos_writes(code: str, size: int) -> None:
    assert accesses(code, rdi=0x5000, rcx=1) == [(0x5000, size, WRITE, "es")]


@pytest.mark.parametrize("code", ["48 8d 03", "0f 1f 03", "0f 18 03", "0f 01 3b", "90", "0f 0b", "b8 01 00 00 00", ""])
def test_an_address_that_is_not_used_is_no_access(code: str) -> None:
    assert accesses(code, rbx=0x5000) == []


def test_fs_and_gs_have_bases_in_64_bit_code_and_no_other_segment_has() -> None:
    regs, sregs = state(Mode.LONG, rbx=0x10)
    sregs.gs.base, sregs.ds.base = 0x1_0000_0000, 0x9000
    (by_gs,) = memory_accesses(bytes.fromhex("65 8b 03"), regs, sregs)
    (by_ds,) = memory_accesses(bytes.fromhex("8b 03"), regs, sregs)
    assert by_gs == MemoryAccess(0x1_0000_0010, 4, READ, "gs", 0x10)
    assert by_ds.address == 0x10


def test_real_mode_adds_the_segments_base_and_cuts_the_offset_to_16_bits() -> None:
    regs, sregs = state(Mode.REAL, rbx=0xFFFF, rsi=3)
    sregs.ds.base = 0x1_0000
    assert memory_accesses(bytes.fromhex("8b 00"), regs, sregs)[0].address == 0x1_0002  # mov (%bx,%si), %ax


def test_linear_addresses_of_32_bit_code_wrap() -> None:
    assert accesses("8b 43 08", Mode.PROTECTED, rbx=0xFFFF_FFFC) == [(4, 4, READ, "ds")]


@pytest.mark.parametrize(
    ("code", "mode", "expected"),
    [
        ("50", Mode.LONG, (0x7000 - 8, 8, WRITE)),  # push %rax
        ("66 50", Mode.LONG, (0x7000 - 2, 2, WRITE)),
        ("50", Mode.PROTECTED, (0x7000 - 4, 4, WRITE)),
        ("50", Mode.REAL, (0x7000 - 2, 2, WRITE)),
        ("6a 01", Mode.LONG, (0x7000 - 8, 8, WRITE)),
        ("9c", Mode.LONG, (0x7000 - 8, 8, WRITE)),  # pushf
        ("0f a0", Mode.LONG, (0x7000 - 8, 8, WRITE)),  # push %fs
        ("0f a9", Mode.LONG, (0x7000, 8, READ)),  # pop %gs
        ("60", Mode.PROTECTED, (0x7000 - 32, 32, WRITE)),  # pusha
        ("61", Mode.REAL, (0x7000, 16, READ)),  # popa
        ("e8 00 00 00 00", Mode.LONG, (0x7000 - 8, 8, WRITE)),  # call
        ("ff d0", Mode.LONG, (0x7000 - 8, 8, WRITE)),  # call *%rax
        ("9a 00 00 10 00 08 00", Mode.PROTECTED, (0x7000 - 8, 8, WRITE)),  # lcall
        ("c3", Mode.LONG, (0x7000, 8, READ)),
        ("cb", Mode.LONG, (0x7000, 8, READ)),  # lret: two words of 4 bytes
        ("48 cb", Mode.LONG, (0x7000, 16, READ)),  # lretq
        ("58", Mode.LONG, (0x7000, 8, READ)),
        ("c9", Mode.LONG, (0x6000, 8, READ)),  # leave
        ("48 cf", Mode.LONG, (0x7000, 40, READ)),  # iretq
        ("cf", Mode.PROTECTED, (0x7000, 12, READ)),
        ("cf", Mode.REAL, (0x7000, 6, READ)),
        ("c8 10 00 00", Mode.LONG, (0x7000 - 8, 8, WRITE)),  # enter
    ],
)
def test_the_stack_is_an_operand_too(code: str, mode: Mode, expected: tuple[int, int, Access]) -> None:
    regs, sregs = state(mode, rsp=0x7000, rbp=0x6000)
    (one,) = memory_accesses(bytes.fromhex(code), regs, sregs)
    assert (one.address, one.size, one.access) == expected
    assert one.is_stack
    assert one.segment == "ss"


def test_a_push_from_memory_reads_before_it_writes() -> None:
    assert accesses("ff 33", rbx=0x5000, rsp=0x7000) == [(0x5000, 8, READ, "ds"), (0x6FF8, 8, WRITE, "ss")]


def test_a_pop_into_memory_by_rsp_takes_the_address_behind_what_it_pops() -> None:
    assert accesses("8f 04 24", rsp=0x7000)[0] == (0x7008, 8, WRITE, "ss")


def test_a_string_instruction_has_its_next_element_until_its_counter_is_0() -> None:
    expected = [(0x6000, 1, WRITE, "es"), (0x5000, 1, READ, "ds")]
    assert accesses("f3 a4", rsi=0x5000, rdi=0x6000, rcx=3) == expected
    assert accesses("a4", rsi=0x5000, rdi=0x6000, rcx=0) == expected
    assert accesses("f3 a4", rsi=0x5000, rdi=0x6000, rcx=0) == []
    assert accesses("6c", rdi=0x6000) == [(0x6000, 1, WRITE, "es")]  # insb
    assert accesses("6e", rsi=0x5000) == [(0x5000, 1, READ, "ds")]  # outsb


def test_vex_instructions_are_not_taken_for_pushes() -> None:
    assert accesses("c5 f8 58 03", rbx=0x5000) == [(0x5000, 16, READ, "ds")]  # vaddps (%rbx), %xmm0, %xmm0


@pytest.mark.parametrize(("name", "value"), [("rax", 0x1122334455667788), ("eax", 0x55667788), ("ah", 0x77)])
def test_a_part_of_a_register_is_cut_out(name: str, value: int) -> None:
    assert register_value(Regs(rax=0x1122334455667788), name) == value


def test_every_part_of_r15_has_a_name() -> None:
    regs = Regs(r15=0x1122334455667788)
    assert [register_value(regs, name) for name in ("r15d", "r15w", "r15b")] == [0x55667788, 0x7788, 0x88]


def test_the_stack_is_as_wide_as_ss_says_but_in_64_bit_code() -> None:
    assert [stack_width(*state(mode)) for mode in (Mode.REAL, Mode.PROTECTED, Mode.LONG)] == [16, 32, 64]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=15), st.sampled_from(list(Mode)), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 20))
def test_any_bytes_with_any_registers_have_accesses_inside_the_address_space(
    code: bytes, mode: Mode, number: int, small: int
) -> None:
    regs, sregs = state(mode, rax=number, rbx=small, rcx=number, rsp=number, rbp=small, rsi=number, rdi=number)
    for one in memory_accesses(code, regs, sregs):
        assert 0 <= one.address < 1 << 64
        assert one.size > 0
        assert one.access
