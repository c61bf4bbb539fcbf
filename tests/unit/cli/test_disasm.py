"""``pykvm disasm`` shows all of a guest's code, however much that is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import bundled_guests
from pykvm.cli import disasm
from pykvm.cli.main import main
from pykvm.x86 import disassemble

MIB = 1 << 20


@given(code=st.binary(max_size=200), width=st.sampled_from([16, 32, 64]))
def test_code_in_chunks_reads_as_the_whole_does(code: bytes, width: int) -> None:
    assert list(disasm.instructions(code, 0x1000, width)) == disassemble(code, 0x1000, width)


@given(seed=st.binary(min_size=1, max_size=40), width=st.sampled_from([16, 32, 64]))
def test_a_border_of_chunks_cuts_no_instruction(seed: bytes, width: int) -> None:
    code = seed * (2 * disasm.CHUNK // len(seed))
    assert list(disasm.instructions(code, 0x1000, width)) == disassemble(code, 0x1000, width)


@pytest.mark.parametrize("bundled", bundled_guests(), ids=lambda bundled: bundled.name)
def test_every_bundled_guest_can_be_disassembled(bundled: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["disasm", getattr(bundled, "name", "")]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("_start:\n")
    assert output.err == ""


def test_a_flat_binary_is_shown_at_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\xb0\x07\xe6\xf4\xf4")
    assert main(["disasm", str(path)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["8000", "b0", "07", "movb", "$7,", "%al"],
        ["8002", "e6", "f4", "outb", "%al,", "$0xf4"],
        ["8004", "f4", "hlt"],
    ]


def test_the_mode_decides_the_width_of_the_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\xb8\x01\x00\x00\x00")
    assert main(["disasm", str(path), "--mode", "long"]) == 0
    assert "movl $1, %eax" in capsys.readouterr().out
    assert main(["disasm", str(path), "--mode", "long", "--bits", "16"]) == 0
    assert "movw $1, %ax" in capsys.readouterr().out


def test_load_and_entry_move_the_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\x90\xf4")
    assert main(["disasm", str(path), "--load", "0x7c00", "--entry", "0x7c01"]) == 0
    assert capsys.readouterr().out.split() == ["7c01", "f4", "hlt"]


def test_count_stops_early_in_a_file_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(bytes(200 * MIB))
    assert main(["disasm", str(path), "--count", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_symbol_that_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    source = tmp_path / "guest.S"
    source.write_text(".code64\n.globl _start\n_start: nop\nstra\u00dfe: hlt\n")
    shown = subprocess.run(
        [sys.executable, "-m", "pykvm.cli.main", "disasm", str(source)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "stra\\xdfe:" in shown.stdout
