"""Source lines: which line of which file an instruction came from, where each line's code is, and what the line says.

An image's table is read from its ELF file by ``dwarf`` when it is first asked for (``image.lines``); an image without
debugging information has an empty one. Sources are only read where they are ordinary files of a bounded size, for
their names come from a file that may be hostile. Leaves out variables, types and inlined functions.
"""

from __future__ import annotations

import os
import posixpath
import stat
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pykvm.boot.dwarf import DwarfError, Row, read_rows
from pykvm.boot.elf import elf_sections
from pykvm.boot.image import Image, printable
from pykvm.errors import ImageError
from pykvm.units import MiB

__all__ = ["LineTable", "SourceLine", "source_line"]

SECTIONS = (".debug_line", ".debug_str", ".debug_line_str")
LONGEST_SECTION = 4 * MiB  # a large program's: reading it would hold a report up
MOST_SOURCE = 32 * MiB  # of all the sources that one table reads

STANDARD_INPUT = "{standard input}"  # what GNU as calls a source without a file


@dataclass(frozen=True, slots=True, order=True)
class SourceLine:
    """Line ``line``, counted from 1, of ``file``: a path as the compiler had it, or ``<text>``."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{posixpath.basename(self.file)}:{self.line}"


def source_line(image: Image, address: int) -> str | None:
    """Return ``"guest.S:14"`` for the instruction at linear ``address``, or None if nothing is known about it."""
    line = image.lines.find(address)
    return None if line is None else str(line)


class LineTable:
    """The source lines of a guest's code, for each address and back. Addresses are linear; ``files`` are the names."""

    def __init__(
        self, rows: Iterable[Row] = (), *, folder: Path | None = None, texts: Mapping[str, str] | None = None
    ) -> None:
        """Make a table of ``rows``, as far as they are sound.

        ``folder`` is where files with relative names are, ``texts`` are sources that are in no file, by name.
        """
        self._texts = {name: _lines(text) for name, text in (texts or {}).items()}
        self._folder = folder
        self._room = MOST_SOURCE
        self._names: dict[str, str] = {}  # as shown, by the path in the ELF file
        self._paths: dict[str, str] = {}  # and back
        self._places: dict[str, dict[int, list[int]]] = {}  # file, line: where statements begin
        self._ranges: list[tuple[int, int, str, int]] = []  # start, end, file, line
        self._add(rows)
        self._ranges.sort()
        self._starts = [start for start, *_ in self._ranges]

    @classmethod
    def of(cls, image: Image) -> LineTable:
        """Return the table of ``image``: empty if it has no debugging information, or none that can be read."""
        texts = {image.name: image.source} if image.source else {}
        return cls(_rows(image), folder=image.folder, texts=texts)

    def _add(self, rows: Iterable[Row]) -> None:
        place = None
        for row in rows:
            file = self._name(row.file)
            if row.size:
                self._ranges.append((row.start, row.start + row.size, file, row.line))
            if row.statement and place != (file, row.line):
                self._places.setdefault(file, {}).setdefault(row.line, []).append(row.start)
            place = file, row.line

    def _name(self, path: str) -> str:
        name = self._names.get(path)
        if name is None:
            name = self._names[path] = printable(path)
            self._paths[name] = path
        return name

    # ---- from an address ----

    def find(self, address: int) -> SourceLine | None:
        """Return the line that the code at ``address`` came from, or None if nothing is known about it."""
        position = bisect_right(self._starts, address) - 1
        if position < 0:
            return None
        _, end, file, line = self._ranges[position]
        return SourceLine(file, line) if address < end else None

    # ---- from a line ----

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the files that code came from, in the table's order."""
        return tuple(self._places)

    def find_file(self, name: str) -> str | None:
        """Return the file that somebody calls ``name``: by its path, or by the end of it, as ``guest.S``."""
        if name in self._places:
            return name
        return next((file for file in self._places if file.endswith(f"/{name}")), None)

    def lines(self, file: str) -> tuple[int, ...]:
        """Return the numbers of the lines of ``file`` that have code, ascending."""
        return tuple(sorted(self._places.get(file, ())))

    def addresses(self, file: str, line: int) -> tuple[int, ...]:
        """Return where code of ``line`` begins, ascending; a compiler may have copied it to several places, or none."""
        return tuple(sorted(set(self._places.get(file, {}).get(line, ()))))

    # ---- what it says ----

    def text(self, line: SourceLine) -> str | None:
        """Return what ``line`` says, printable but for tabs, or None if its file cannot be read."""
        text = self.source(line.file)
        return text[line.line - 1] if 0 < line.line <= len(text) else None

    def source(self, file: str) -> tuple[str, ...]:
        """Return all lines of ``file``, printable but for tabs; none if it cannot be read, or is no ordinary file."""
        if file not in self._texts:
            text = self._read(file) if file in self._paths else ""
            self._texts[file] = _lines(text) if text else ()
        return self._texts[file]

    def _read(self, file: str) -> str:
        path = self._paths[file]
        if self._folder is None and not path.startswith("/"):
            return ""
        text = _read_source((self._folder or Path("/")) / path, self._room)
        self._room -= len(text)
        return text.decode("utf-8", "replace")


def _rows(image: Image) -> Iterator[Row]:
    """Yield the rows of ``image``, up to where its debugging information is malformed."""
    try:
        sections = elf_sections(image.elf, SECTIONS, LONGEST_SECTION) if image.elf else {}
        for row in read_rows(*(sections.get(name, b"") for name in SECTIONS)):
            standard_input = posixpath.basename(row.file) == STANDARD_INPUT
            yield row._replace(file=image.name) if standard_input else row
    except (ImageError, DwarfError):
        return


def _read_source(path: Path, limit: int) -> bytes:
    """Return what is in the ordinary file ``path``, or nothing if it is none, cannot be read, or is too large."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        # O_NONBLOCK and the second look: the file may have become a FIFO since the first.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            # What the kernel makes up while it is read, as in /proc, says that it has no size.
            return file.read(status.st_size) if stat.S_ISREG(status.st_mode) and status.st_size <= limit else b""
    except (OSError, ValueError):
        return b""


def _lines(text: str) -> tuple[str, ...]:
    """Return the lines of ``text`` as assemblers count them, with what a terminal would obey escaped."""
    lines = text.removesuffix("\n").split("\n")
    return tuple("\t".join(map(printable, line.removesuffix("\r").split("\t"))) for line in lines)
