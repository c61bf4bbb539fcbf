"""The records of an ELF file, with the fields in the file's order, for both classes: ELF32 and ELF64.

    +-------------+ 0        what the file is, where the two tables are, where to start
    | Header      |
    +-------------+ phoff    ProgramHeader[phnum]: "these bytes of the file go to that address in memory"
    |             |
    | contents    |
    |             |
    +-------------+ shoff    SectionHeader[shnum]: the linker's and the debugger's view of the contents
    |             |
    +-------------+

A field has the ELF specification's name without its prefix: ``paddr`` is ``p_paddr``. The classes differ in the width
of addresses, offsets and sizes (4 or 8 bytes) and, in two records, in the order of the fields: ELF64 moves the narrow
ones to the front, so that the wide ones are aligned.

See: System V ABI, chapters 4 (object files) and 5 (program loading). Leaves out big-endian files: x86 has none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

__all__ = [
    "ELF32",
    "ELF64",
    "ElfClass",
    "Header",
    "ProgramHeader",
    "ProgramHeader32",
    "ProgramHeader64",
    "Record",
    "SectionHeader",
    "Symbol32",
    "Symbol64",
    "SymbolEntry",
]

T = TypeVar("T")


class Header(NamedTuple):
    """Elf_Ehdr after its first 16 bytes, ``e_ident``: magic, class, byte order."""

    type: int  # ET_*: object, executable, shared
    machine: int  # EM_*
    version: int
    entry: int  # virtual address of the first instruction
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class ProgramHeader32(NamedTuple):
    """Elf32_Phdr: a segment, ``filesz`` bytes at ``offset`` in the file and ``memsz`` bytes in memory."""

    type: int  # PT_*
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    flags: int  # PF_R, PF_W, PF_X
    align: int


class ProgramHeader64(NamedTuple):
    """Elf64_Phdr: the same with ``flags`` in front."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class SectionHeader(NamedTuple):
    """Elf_Shdr: a section. ``link`` is the index of another one: for a symbol table, its strings."""

    name: int
    type: int  # SHT_*
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


class Symbol32(NamedTuple):
    """Elf32_Sym: ``name`` is an offset in the string table, ``info`` binding (bits 7 to 4) and type (bits 3 to 0)."""

    name: int
    value: int
    size: int
    info: int
    other: int
    shndx: int  # the section it belongs to, or SHN_*


class Symbol64(NamedTuple):
    """Elf64_Sym: the same in another order."""

    name: int
    info: int
    other: int
    shndx: int
    value: int
    size: int


ProgramHeader = ProgramHeader32 | ProgramHeader64
SymbolEntry = Symbol32 | Symbol64


@dataclass(frozen=True, slots=True)
class Record(Generic[T]):
    """How one kind of record lies in the file: its ``struct`` format, and what makes a value of the fields."""

    layout: struct.Struct
    make: Callable[[Iterable[int]], T]

    @property
    def size(self) -> int:
        """Return the record's size in bytes."""
        return self.layout.size

    def read(self, data: bytes, offset: int, count: int) -> list[T]:
        """Return ``count`` records that lie one after the other at ``offset`` of ``data``, which must hold them."""
        table = memoryview(data)[offset : offset + count * self.size]
        return [self.make(fields) for fields in self.layout.iter_unpack(table)]


@dataclass(frozen=True, slots=True)
class ElfClass:
    """The records of one class, ``name`` as in ``Image.format``."""

    name: str
    header: Record[Header]
    program: Record[ProgramHeader]
    section: Record[SectionHeader]
    symbol: Record[SymbolEntry]


# In a format, I and Q are the fields that ELF64 widened; H is always 2 bytes, B one.
ELF32 = ElfClass(
    name="ELF32",
    header=Record(struct.Struct("<HHIIIIIHHHHHH"), Header._make),
    program=Record(struct.Struct("<IIIIIIII"), ProgramHeader32._make),
    section=Record(struct.Struct("<IIIIIIIIII"), SectionHeader._make),
    symbol=Record(struct.Struct("<IIIBBH"), Symbol32._make),
)
ELF64 = ElfClass(
    name="ELF64",
    header=Record(struct.Struct("<HHIQQQIHHHHHH"), Header._make),
    program=Record(struct.Struct("<IIQQQQQQ"), ProgramHeader64._make),
    section=Record(struct.Struct("<IIQQQQIIQQ"), SectionHeader._make),
    symbol=Record(struct.Struct("<IBBHQQ"), Symbol64._make),
)
