"""DWARF's line tables: which source line each address came from, from a section that may lie.

A compiler does not store the table but a program that prints it, a *line number program* for each source file:

    .debug_line   +--------------------------+
                  | unit_length, version     |  2 to 5
                  | how to read the program  |  line_base, line_range, opcode_base
                  | directories, files       |  version 5 keeps most names in .debug_line_str
                  | program                  |  opcodes for a machine with a few registers: address, file, line
                  +--------------------------+
                  | the next unit            |

An opcode up to ``opcode_base`` sets a register; one above it adds to address and line at once, and writes a row. A file
may be hostile: nothing is read outside its section, every count is checked against the bytes that are left, and a
table has an end. See: DWARF 5, section 6.2 (line number information). pyelftools could read all this; but it takes long
to import, and follows a file's own counts wherever they lead. Leaves out columns, and instructions in bundles.
"""

from __future__ import annotations

import enum
import posixpath
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["MOST_FILES", "MOST_ROWS", "DwarfError", "Row", "read_rows"]

# More is a large program's table, which would hold a report up, or a hostile file's.
MOST_ROWS = 500_000
MOST_FILES = 20_000
LONGEST_NAME = 1024
LONGEST_LEB = 10  # bytes of a number of 64 bits
ADDRESS_MASK = (1 << 64) - 1

DWARF64 = 0xFFFFFFFF  # a unit_length of this says that the real one follows, in 8 bytes
LAST_OPCODE = 255


class Lns(enum.IntEnum):
    """Standard opcodes, DW_LNS_*; those that only set registers left out here are skipped with their arguments."""

    EXTENDED = 0
    COPY = 1
    ADVANCE_PC = 2
    ADVANCE_LINE = 3
    SET_FILE = 4
    NEGATE_STMT = 6
    CONST_ADD_PC = 8
    FIXED_ADVANCE_PC = 9


class Lne(enum.IntEnum):
    """Extended opcodes, DW_LNE_*: they follow a zero byte and a length."""

    END_SEQUENCE = 1
    SET_ADDRESS = 2


class Lnct(enum.IntEnum):
    """What a field of a directory's or file's entry is, DW_LNCT_*."""

    PATH = 1
    DIRECTORY_INDEX = 2


class Form(enum.IntEnum):
    """How such a field is stored, DW_FORM_*."""

    DATA2 = 0x05
    DATA4 = 0x06
    DATA8 = 0x07
    STRING = 0x08
    BLOCK = 0x09
    DATA1 = 0x0B
    STRP = 0x0E
    UDATA = 0x0F
    DATA16 = 0x1E
    LINE_STRP = 0x1F


FIXED_SIZES = {Form.DATA1: 1, Form.DATA2: 2, Form.DATA4: 4, Form.DATA8: 8, Form.DATA16: 16}


class DwarfError(ValueError):
    """The section is malformed, or too large; for ``lines``, which makes do with what came before."""


class Row(NamedTuple):
    """The ``size`` bytes of code at ``start`` are of ``line`` (counted from 1) in ``file``, a path.

    A row may have no bytes: a compiler marks the places where a statement would begin, had it left something of it.
    ``statement`` says whether this is a good place for a breakpoint.
    """

    start: int
    size: int
    file: str
    line: int
    statement: bool


def read_rows(section: bytes, strings: bytes = b"", line_strings: bytes = b"") -> Iterator[Row]:
    """Yield the rows of .debug_line, unit by unit; ``strings`` is .debug_str, ``line_strings`` is .debug_line_str.

    Addresses are as the linker gave them out. Raises: DwarfError where ``section`` is malformed, or has more than
    MOST_ROWS rows or MOST_FILES names.
    """
    reader = _Reader(section, 0, len(section))
    rows = names = 0
    while reader.left:
        unit = _Unit(reader, {Form.STRP: strings, Form.LINE_STRP: line_strings})
        names += len(unit.directories) + len(unit.files)
        _check(names <= MOST_FILES, f"there are more than {MOST_FILES} names")
        for row in unit.rows():
            rows += 1
            _check(rows <= MOST_ROWS, f"there are more than {MOST_ROWS} rows")
            yield row


class _Unit:
    """A unit of ``section``: its header is read when it is made, its program when ``rows`` is called."""

    def __init__(self, section: _Reader, strings: dict[Form, bytes]) -> None:
        self.strings = strings
        length, self.offset_size = section.uint(4), 4
        if length == DWARF64:
            length, self.offset_size = section.uint(8), 8
        self.reader = section.part(length)
        self.version = self.reader.uint(2)
        _check(2 <= self.version <= 5, f"version {self.version} is unknown")
        if self.version == 5:
            self.reader.skip(2)  # address_size, segment_selector_size
        self._read_header(self.reader.part(self.reader.uint(self.offset_size)))

    def _read_header(self, header: _Reader) -> None:
        self.instruction_size = header.byte()
        if self.version >= 4:
            header.skip(1)  # maximum_operations_per_instruction: x86 bundles none
        self.statement = header.byte() != 0
        line_base = header.byte()
        self.line_base = line_base - 256 if line_base > 127 else line_base
        self.line_range = header.byte()
        _check(self.line_range != 0, "line_range is 0")
        self.opcode_base = header.byte()
        self.arguments = [0, *(header.byte() for _ in range(self.opcode_base - 1))]
        if self.version == 5:
            self.directories = [name for name, _ in self._entries(header)]
            self.files = [self._path(*entry) for entry in self._entries(header)]
        else:
            # Directory 0 is where the compiler ran, which only .debug_info knows; files are counted from 1.
            self.directories = ["", *_names(header)]
            self.files = ["", *(self._path(*entry) for entry in _old_files(header))]

    def _entries(self, header: _Reader) -> Iterator[tuple[str, int]]:
        """Yield the names that a table of version 5 has, each with its directory's number."""
        formats = [(header.uleb(), header.uleb()) for _ in range(header.byte())]
        count = header.uleb()
        _check(count <= min(header.left if formats else 0, MOST_FILES), "it has too many names")
        for _ in range(count):
            fields = {content: self._field(header, form) for content, form in formats}
            name, directory = fields.get(Lnct.PATH), fields.get(Lnct.DIRECTORY_INDEX)
            yield name if isinstance(name, str) else "", directory if isinstance(directory, int) else 0

    def _field(self, header: _Reader, form: int) -> str | int:
        match form:
            case Form.STRING:
                return header.name()
            case Form.STRP | Form.LINE_STRP:
                strings = self.strings[Form(form)]
                offset = header.uint(self.offset_size)
                _check(offset < len(strings), "a name is outside its section")
                return _Reader(strings, offset, len(strings)).name()
            case Form.UDATA:
                return header.uleb()
            case Form.BLOCK:
                header.skip(header.uleb())
                return 0
        _check(form in FIXED_SIZES, f"form {form:#x} is unknown")
        return header.uint(FIXED_SIZES[Form(form)])

    def _path(self, name: str, directory: int) -> str:
        _check(directory < len(self.directories), f"{name} is in directory {directory}, which does not exist")
        return posixpath.normpath(posixpath.join(self.directories[0], self.directories[directory], name))

    # ---- the program ----

    def rows(self) -> Iterator[Row]:
        """Yield the rows that the program writes, but for those that are of no line or no file."""
        before = None
        for now in self._states():
            if before is not None and before.line > 0 and before.file < len(self.files):
                size = max(now.address - before.address, 0)
                yield Row(before.address, size, self.files[before.file], before.line, before.statement)
            before = None if now.last else now

    def _states(self) -> Iterator[_State]:
        """Yield the registers wherever the program writes a row."""
        reader, base, width, scale = self.reader, self.opcode_base, self.line_range, self.instruction_size
        address, file, line, statement = 0, 1, 1, self.statement
        while reader.left:
            opcode = reader.byte()
            if opcode >= base:
                advance, step = divmod(opcode - base, width)
                address = (address + advance * scale) & ADDRESS_MASK
                line += self.line_base + step
                yield _State(address, file, line, statement)
                continue
            match opcode:
                case Lns.EXTENDED:
                    extended = reader.part(reader.uleb())
                    code = extended.byte()
                    if code == Lne.END_SEQUENCE:
                        yield _State(address, file, line, statement, True)
                        address, file, line, statement = 0, 1, 1, self.statement
                    elif code == Lne.SET_ADDRESS:
                        address = extended.uint(extended.left) & ADDRESS_MASK
                case Lns.COPY:
                    yield _State(address, file, line, statement)
                case Lns.ADVANCE_PC:
                    address = (address + reader.uleb() * scale) & ADDRESS_MASK
                case Lns.ADVANCE_LINE:
                    line += reader.sleb()
                case Lns.SET_FILE:
                    file = reader.uleb()
                case Lns.NEGATE_STMT:
                    statement = not statement
                case Lns.CONST_ADD_PC:
                    address = (address + (LAST_OPCODE - base) // width * scale) & ADDRESS_MASK
                case Lns.FIXED_ADVANCE_PC:
                    address = (address + reader.uint(2)) & ADDRESS_MASK
                case _:
                    for _ in range(self.arguments[opcode]):
                        reader.uleb()


class _State(NamedTuple):
    """The machine's registers when it writes a row; ``last`` is true behind a sequence's last byte of code."""

    address: int
    file: int
    line: int
    statement: bool
    last: bool = False


class _Reader:
    """A way through ``data`` from ``position`` to ``end``, both of which lie in it. Raises: DwarfError at the end."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = end

    @property
    def left(self) -> int:
        return self.end - self.position

    def skip(self, size: int) -> None:
        _check(size <= self.end - self.position, "it is cut short")
        self.position += size

    def part(self, size: int) -> _Reader:
        """Return a reader for the next ``size`` bytes, and skip them."""
        start = self.position
        self.skip(size)
        return _Reader(self.data, start, self.position)

    def byte(self) -> int:
        position = self.position
        _check(position < self.end, "it is cut short")
        self.position = position + 1
        return self.data[position]

    def uint(self, size: int) -> int:
        start = self.position
        self.skip(size)
        return int.from_bytes(self.data[start : self.position], "little")

    def uleb(self) -> int:
        """Return a number in LEB128: seven bits a byte, the lowest first, the top bit says that there is more."""
        return self._leb()[0]

    def sleb(self) -> int:
        value, bits = self._leb()
        return value - (1 << bits) if value >> (bits - 1) else value

    def _leb(self) -> tuple[int, int]:
        value = 0
        for index in range(LONGEST_LEB):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, 7 * (index + 1)
        raise DwarfError(f"a number has more than {LONGEST_LEB} bytes")

    def name(self) -> str:
        """Return the string up to a zero byte, whatever bytes it has."""
        end = self.data.find(b"\0", self.position, self.end)
        _check(end >= 0, "a name has no end")
        _check(end - self.position <= LONGEST_NAME, f"a name has more than {LONGEST_NAME} bytes")
        name = self.data[self.position : end].decode("utf-8", "surrogateescape")
        self.position = end + 1
        return name


def _names(header: _Reader) -> Iterator[str]:
    """Yield names up to an empty one."""
    while name := header.name():
        yield name


def _old_files(header: _Reader) -> Iterator[tuple[str, int]]:
    """Yield the files' names before version 5, each with its directory's number; times and sizes follow them."""
    for name in _names(header):
        directory, _, _ = header.uleb(), header.uleb(), header.uleb()
        yield name, directory


def _check(sound: bool, problem: str) -> None:
    if not sound:
        raise DwarfError(f".debug_line is malformed: {problem}")
