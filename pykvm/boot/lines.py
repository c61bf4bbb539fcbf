"""Source lines: which line of which file an instruction came from, as the ELF's DWARF line table tells.

The table is read only when somebody asks, which is when a guest has crashed; reading it is pyelftools' work. See:
DWARF 5, section 6.2 (line number information). Leaves out variables, types and inlined functions.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pykvm.boot.image import Image, printable
from pykvm.units import MiB

if TYPE_CHECKING:
    from elftools.dwarf.lineprogram import LineProgram

__all__ = ["source_line"]

# More than this is a large program's table: reading it would hold a report up.
LONGEST_TABLE = 4 * MiB

STANDARD_INPUT = "{standard input}"  # what GNU as calls a source without a file


def source_line(image: Image, address: int) -> str | None:
    """Return ``"guest.S:14"`` for the instruction at linear ``address``, or None if nothing is known about it."""
    if not image.elf:
        return None
    try:
        line = _find(image.elf, address)
    # A file may be damaged on purpose, and pyelftools lets whatever goes wrong inside it through.
    except Exception:
        return None
    return line and line.replace(STANDARD_INPUT, image.name)


def _find(elf: bytes, address: int) -> str | None:
    from elftools.elf.elffile import ELFFile

    file = ELFFile(BytesIO(elf))
    table = file.get_section_by_name(".debug_line")
    if table is None or table["sh_size"] > LONGEST_TABLE:
        return None
    dwarf = file.get_dwarf_info()
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        found = None if program is None else _find_in(program, address)
        if found is not None:
            return found
    return None


def _find_in(program: LineProgram, address: int) -> str | None:
    # A row says what is true from its address up to the next row's.
    row = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if row is not None and row.address <= address < state.address:
            return f"{_file_name(program, row.file)}:{row.line}"
        row = None if state.end_sequence else state
    return None


def _file_name(program: LineProgram, number: int) -> str:
    # Files are counted from 1 up to DWARF 4, and from 0 since.
    files = program["file_entry"]
    name: bytes = files[number if program["version"] >= 5 else number - 1].name
    return printable(PurePosixPath(name.decode("utf-8", "replace")).name)
