from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import DisassemblyError
from pykvm.x86.disassembly import Instruction, disassemble, instruction_at

WIDTHS = (16, 32, 64)


def test_an_instruction_has_its_address_its_bytes_and_its_text() -> None:
    assert disassemble(b"\xee\xf4", 0x1000, 64) == [
        Instruction(0x1000, b"\xee", "outb", "%al, %dx"),
        Instruction(0x1001, b"\xf4", "hlt", ""),
    ]


@pytest.mark.parametrize(
    ("width", "text"),
    [(16, ["movw $1, %ax", "addb %al, (%bx, %si)"]), (32, ["movl $1, %eax"]), (64, ["movl $1, %eax"])],
)
def test_the_width_decides_what_bytes_mean(width: int, text: list[str]) -> None:
    instructions = disassemble(b"\xb8\x01\x00\x00\x00", 0, width)
    assert [f"{i.mnemonic} {i.operands}" for i in instructions] == text


def test_a_jump_names_its_target() -> None:
    assert disassemble(b"\xeb\xfe", 0x1000, 64)[0].operands == "0x1000"


def test_a_byte_that_is_no_instruction_is_data_and_decoding_goes_on() -> None:
    assert [str(i) for i in disassemble(b"\x06\xf4", 0, 64)] == ["0x0  06  .byte 0x06", "0x1  f4  hlt"]


def test_an_instruction_cut_off_by_the_end_is_data() -> None:
    assert instruction_at(b"\x0f", 7, 64) == Instruction(7, b"\x0f", ".byte", "0x0f")


def test_no_code_gives_no_instruction() -> None:
    assert disassemble(b"", 0, 64) == []
    assert instruction_at(b"", 0, 64) is None


def test_the_first_instruction_is_that_of_the_whole_list() -> None:
    code = b"\x48\x8b\x04\x25\x00\x10\x00\x00\xf4"
    assert instruction_at(code, 0, 64) == disassemble(code, 0, 64)[0]


@pytest.mark.parametrize("width", [0, 8, 128])
def test_an_unknown_width_is_refused(width: int) -> None:
    with pytest.raises(DisassemblyError, match="16, 32 or 64"):
        disassemble(b"\x90", 0, width)


@given(st.binary(max_size=64), st.integers(0, (1 << 64) - 1), st.sampled_from(WIDTHS))
def test_every_byte_of_any_code_is_in_exactly_one_instruction(code: bytes, address: int, width: int) -> None:
    instructions = disassemble(code, address, width)
    assert b"".join(i.bytes for i in instructions) == code
    expected = address
    for instruction in instructions:
        assert instruction.address == expected % (1 << 64)
        expected += len(instruction.bytes)


def test_importing_does_not_load_capstone() -> None:
    program = "import sys, pykvm.x86.disassembly; sys.exit('capstone' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
