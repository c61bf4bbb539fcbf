"""pykvm.boot.dwarf: line tables of every version are read as pyelftools reads them, and hostile ones come to an end."""

from __future__ import annotations

import posixpath
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import bundled_guests
from pykvm.boot.dwarf import MOST_FILES, MOST_ROWS, DwarfError, read_rows
from pykvm.boot.elf import elf_sections

Location = tuple[int, str, int]  # address, file's name, line

SECTIONS = (".debug_line", ".debug_str", ".debug_line_str")
PROGRAM = """
static int twice(int value) { return value * 2; }
int _start(int value)
{
    for (int index = 0; index < value; index++)
        value += twice(index);
    return value;
}
"""


def our_rows(elf: bytes) -> list[Location]:
    sections = elf_sections(elf, SECTIONS, len(elf))
    rows = read_rows(*(sections.get(name, b"") for name in SECTIONS))
    return [(row.start, posixpath.basename(row.file), row.line) for row in rows]


def their_rows(elf: bytes) -> list[Location]:
    dwarf = ELFFile(BytesIO(elf)).get_dwarf_info()
    rows = []
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        assert program is not None
        first = 0 if program["version"] >= 5 else 1
        for entry in program.get_entries():
            if entry.state is not None and not entry.state.end_sequence and entry.state.line:
                file = program["file_entry"][entry.state.file - first]
                rows.append((entry.state.address, posixpath.basename(file.name.decode()), entry.state.line))
    return rows


def test_the_bundled_guests_tables_are_as_pyelftools_reads_them() -> None:
    for guest in bundled_guests():
        elf = guest.image.read_bytes()
        assert sorted(our_rows(elf)) == sorted(their_rows(elf)), guest.name


def compile_program(folder: Path, *options: str) -> bytes:
    (folder / "a.c").write_text(PROGRAM)
    command = ["gcc", "-ffreestanding", "-nostdlib", "-static", "-no-pie", *options, "a.c", "-o", "a"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "a").read_bytes()


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@needs_gcc
@pytest.mark.parametrize("options", ["-gdwarf-2", "-gdwarf-3", "-gdwarf-4", "-gdwarf-5"])
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_compiled_tables_are_as_pyelftools_reads_them(tmp_path: Path, options: str, level: str) -> None:
    elf = compile_program(tmp_path, options, level)
    rows = our_rows(elf)
    assert {file for _, file, _ in rows} == {"a.c"}
    assert sorted(rows) == sorted(their_rows(elf))


@needs_gcc
def test_a_table_with_wide_offsets_says_the_same(tmp_path: Path) -> None:
    wide = compile_program(tmp_path, "-gdwarf64", "-gdwarf-5")
    assert our_rows(wide) == our_rows(compile_program(tmp_path, "-gdwarf-5")) != []


# ---- tables made by hand ----


def unit(program: bytes, *, version: int = 3, names: bytes = b"\0a.c\0\0\0\0\0", line_range: int = 14) -> bytes:
    header = (
        bytes([1, *([1] if version >= 4 else []), 1, 0xFB, line_range, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1]) + names
    )
    rest = version.to_bytes(2, "little") + (b"\x08\0" if version == 5 else b"")
    body = rest + len(header).to_bytes(4, "little") + header + program
    return len(body).to_bytes(4, "little") + body


def set_address(address: int) -> bytes:
    return b"\0\x09\x02" + address.to_bytes(8, "little")


ADVANCE_ONE_BYTE_ONE_LINE = bytes([13 + 14 + 6])
END = b"\0\x01\x01"


def test_a_row_reaches_to_the_next_and_the_last_to_the_end() -> None:
    program = set_address(0x1000) + b"\x01" + ADVANCE_ONE_BYTE_ONE_LINE + b"\x02\x03" + END
    rows = list(read_rows(unit(program)))
    assert [(row.start, row.size, row.file, row.line) for row in rows] == [(0x1000, 1, "a.c", 1), (0x1001, 3, "a.c", 2)]


def test_an_opcode_of_a_later_standard_is_skipped_with_its_arguments() -> None:
    program = set_address(0x1000) + b"\x0c\x85\x01" + b"\x01" + b"\x02\x03" + END
    assert [(row.start, row.size) for row in read_rows(unit(program))] == [(0x1000, 3)]


def test_code_of_no_line_has_no_row() -> None:
    program = set_address(0x1000) + b"\x03\x7f" + b"\x01" + b"\x02\x03" + END
    assert list(read_rows(unit(program))) == []


def test_addresses_that_go_back_make_a_row_of_no_bytes() -> None:
    program = set_address(0x1000) + b"\x01" + set_address(0x10) + b"\x01" + b"\x02\x03" + END
    assert [(row.start, row.size) for row in read_rows(unit(program))] == [(0x1000, 0), (0x10, 3)]


def test_units_follow_each_other() -> None:
    program = set_address(0x1000) + b"\x01" + ADVANCE_ONE_BYTE_ONE_LINE + END
    assert len(list(read_rows(unit(program) * 3))) == 3 * 2


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (b"\xff", "cut short"),
        (unit(b"")[:-1], "cut short"),
        (unit(b"", version=6), "version 6"),
        (unit(b"", line_range=0), "line_range"),
        (unit(b"\x02" + b"\x80" * 10), "10 bytes"),
        (unit(b"\0\xff\x01"), "cut short"),
        (unit(b"", names=b"\0a.c\0\x07\0\0\0"), "directory 7"),
        (unit(b"", names=b"\0a.c"), "no end"),
        (unit(b"", names=b"\0" + b"a" * 2000 + b"\0\0\0\0\0"), "1024 bytes"),
        (unit(b"", version=5, names=b"\0" + b"\xff" * 8 + b"\x7f"), "too many names"),
        (unit(b"", version=5, names=b"\1\1\x0f" + b"\xff" * 8 + b"\x7f"), "too many names"),
        (unit(b"", version=5, names=b"\1\1\x1f\1\0\0\0\7"), "outside its section"),
        (unit(b"", version=5, names=b"\1\1\x7e\1\0"), "form 0x7e"),
    ],
)
def test_what_is_malformed_is_refused_with_a_reason(section: bytes, problem: str) -> None:
    with pytest.raises(DwarfError, match=problem):
        list(read_rows(section))


def test_a_table_without_end_is_cut_off() -> None:
    rows = read_rows(unit(b"\x01" * (MOST_ROWS + 10)))
    with pytest.raises(DwarfError, match="rows"):
        sum(1 for _ in rows)


def test_names_without_end_are_cut_off() -> None:
    with pytest.raises(DwarfError, match="names"):
        list(read_rows(unit(b"", names=b"\0" + b"a\0\0\0\0" * (MOST_FILES + 1) + b"\0")))


@given(st.binary(max_size=60), st.integers(2, 5), st.binary(max_size=40) | st.just(b"\0a.c\0\0\0\0\0"))
def test_any_bytes_are_a_table_or_malformed(program: bytes, version: int, names: bytes) -> None:
    try:
        rows = list(read_rows(unit(program, version=version, names=names)))
    except DwarfError:
        return
    assert all(row.size >= 0 and row.line > 0 and 0 <= row.start < 1 << 64 for row in rows)
