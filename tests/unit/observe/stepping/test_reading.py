"""What a stepper reads of the code to come."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.memory import GuestMemory
from pykvm.observe.stepping.reading import Reader
from pykvm.units import Gpa
from pykvm.x86 import CpuState
from tests.unit.observe.stepping.conftest import CODE


def test_the_instruction_at_rip_is_read_in_any_mode(memory: GuestMemory, reader: Reader, state: CpuState) -> None:
    memory.write(Gpa(CODE), b"\x90\xf4")
    found = reader.next(state.regs, state.sregs)
    assert found.instruction is not None
    assert (found.address, found.instruction.mnemonic, found.successors) == (CODE, "nop", frozenset((CODE + 1,)))


@pytest.mark.parametrize(
    ("code", "is_hlt", "repeats", "is_iret", "is_plain"),
    [
        ("f4", True, False, False, True),
        ("f3 a4", False, True, False, True),
        ("f2 48 ae", False, True, False, True),
        ("67 f3 66 a5", False, True, False, True),
        ("a4", False, False, False, True),
        ("f3 90", False, False, False, True),  # pause
        ("48 cf", False, False, True, True),
        ("cf", False, False, False, True),
        ("0f 30", False, False, False, False),  # wrmsr
        ("0f 01 f8", False, False, False, False),  # swapgs
        ("0f 23 c0", False, False, False, False),  # mov to DR0
        ("0f 21 c0", False, False, False, False),  # mov from DR0, which DR7.GD may forbid
        ("0f 22 c0", False, False, False, True),  # mov to CR0
        ("0f 10 c1", False, False, False, False),  # SSE
        ("c5 f8 77", False, False, False, False),  # vzeroupper
        ("d9 e8", False, False, False, False),  # x87
        ("0f 84 00 00 00 00", False, False, False, True),
    ],
)
def test_what_kind_of_instruction_it_is(
    memory: GuestMemory,
    reader: Reader,
    long: CpuState,
    code: str,
    is_hlt: bool,
    repeats: bool,
    is_iret: bool,
    is_plain: bool,
) -> None:
    memory.write(Gpa(CODE), bytes.fromhex(code))
    found = reader.next(long.regs, long.sregs)
    assert (found.is_hlt, found.repeats, found.is_iret, found.is_plain) == (is_hlt, repeats, is_iret, is_plain)


@pytest.mark.parametrize(
    ("code", "successors"),
    [
        ("eb fe", {CODE, CODE + 2}),
        ("74 10", {CODE + 2, CODE + 0x12}),
        ("e8 fb 00 00 00", {CODE + 5, CODE + 0x100}),
        ("e2 fe", {CODE, CODE + 2}),
        ("f3 a4", {CODE, CODE + 2}),
        ("ff e0", {CODE + 2}),
    ],
)
def test_where_it_may_lead(
    memory: GuestMemory, reader: Reader, long: CpuState, code: str, successors: set[int]
) -> None:
    memory.write(Gpa(CODE), bytes.fromhex(code))
    assert reader.next(long.regs, long.sregs).successors == successors


def test_where_there_is_no_memory_there_is_no_instruction(reader: Reader, long: CpuState) -> None:
    for address in (0x4000_0000, 0x8000_0000_0000_0000, 1 << 63, (1 << 64) - 1):
        found = reader.at(address, 64, long.sregs)
        assert (found.instruction, found.is_hlt, found.repeats) == (None, False, False)


def test_code_at_the_end_of_memory_is_read_as_far_as_it_goes(
    memory: GuestMemory, reader: Reader, long: CpuState
) -> None:
    memory.write(Gpa(0xF_FFFF), b"\x90")
    found = reader.at(0xF_FFFF, 64, long.sregs)
    assert found.instruction is not None
    assert found.instruction.mnemonic == "nop"


def test_code_that_changes_is_read_anew(memory: GuestMemory, reader: Reader, long: CpuState) -> None:
    memory.write(Gpa(CODE), b"\x90")
    reader.next(long.regs, long.sregs)
    memory.write(Gpa(CODE), b"\xf4")
    assert reader.next(long.regs, long.sregs).is_hlt


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(code=st.binary(max_size=15), width=st.sampled_from([16, 32, 64]))
def test_any_bytes_are_read(memory: GuestMemory, long: CpuState, code: bytes, width: int) -> None:
    memory.write(Gpa(CODE), code.ljust(15, b"\0"))
    found = Reader(memory).at(CODE, width, long.sregs)
    assert found.instruction is not None
    assert found.instruction.bytes == memory.read(CODE, len(found.instruction.bytes))
