"""ELF files: the executables that linkers for x86 make, 32-bit and 64-bit.

A loader needs little of one: the program headers say which bytes go where, the header says where to start. Symbols
are read for people, who like ``main+0x12`` better than an address. A file may be hostile: an offset is checked
against the file's size before it is followed, every table is read once, and nothing is as large as a field claims.

See: System V ABI, chapters 4 and 5, and its supplements for i386 and x86-64; the records are in ``elf_structs``.
Leaves out relocation and dynamic linking, which are an operating system's work. Line tables are read by
``dwarf``. pyelftools could read all this; but it takes 30 ms to import, half of what a whole run takes, and follows
the file's own counts and lengths wherever they lead.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from pykvm.boot.elf_structs import ELF32, ELF64, ElfClass, Header, ProgramHeader, Record, SectionHeader, SymbolEntry, T
from pykvm.boot.image import Image, Segment, Symbol, choose_entry, printable
from pykvm.errors import ImageError
from pykvm.units import Gpa, KiB, MiB, align_up, format_size
from pykvm.x86 import Mode

__all__ = ["ELF_MAGIC", "elf_image", "elf_notes", "elf_sections"]

ELF_MAGIC = b"\x7fELF"
IDENT_SIZE = 16  # e_ident; byte 4 is the class, byte 5 the byte order
CLASSES = {1: ELF32, 2: ELF64}
LITTLE_ENDIAN = 1

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_386, EM_X86_64 = 3, 62
PN_XNUM = 0xFFFF  # so many program headers that their number is elsewhere
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
SHT_SYMTAB, SHT_NOBITS = 2, 8
SHF_COMPRESSED = 1 << 11
SHN_UNDEF, SHN_LORESERVE = 0, 0xFF00  # between them are real sections
STB_LOCAL = 0
NOTE = struct.Struct("<III")  # sizes of name and content, and the type; then both, each filled up to 4 bytes
STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2

MACHINES = {EM_386: "i386", EM_X86_64: "x86-64", 8: "MIPS", 20: "PowerPC", 40: "Arm", 183: "AArch64", 243: "RISC-V"}
MACHINE_OF = {ELF32.name: EM_386, ELF64.name: EM_X86_64}
MODE_OF = {ELF32.name: Mode.PROTECTED, ELF64.name: Mode.LONG}
REFUSED_TYPES = {
    ET_REL: "is an object file: link it first, with ld",
    ET_DYN: "is position-independent, and nobody here would relocate it: link it with -no-pie",
}

# A small file can name the same bytes in 65,534 segments, and the same name in a million symbols.
MAX_DATA = 256 * MiB
MAX_SYMBOLS = 300_000  # Linux has some 200,000
MAX_NAME = 256
MAX_NOTES = 64 * KiB  # bytes of them


def elf_image(
    data: bytes, *, name: str = "ELF file", mode: Mode | None = None, entry: int | str | None = None
) -> Image:
    """Return the ELF file ``data`` as an image: its PT_LOAD segments at their physical addresses, and its symbols.

    ``mode`` is by default long mode for ELF64 and protected mode for ELF32; ``entry``, a linear address or a symbol,
    takes the place of the file's own. Raises: ImageError if it is not an executable for x86, or is malformed.
    """
    return _ElfFile(name, data).image(mode, entry)


def elf_notes(data: bytes) -> list[tuple[bytes, int, bytes]]:
    """Return the notes in the PT_NOTE segments of ``data``: owner, type and content. No sound ELF file has none."""
    try:
        return _ElfFile("", data).notes()
    except ImageError:
        return []


def elf_sections(data: bytes, names: Sequence[str], limit: int) -> dict[str, bytes]:
    """Return what is in the sections of the ELF file ``data`` called ``names``, the first of each name.

    What has more than ``limit`` bytes, or is compressed, is left out. Raises: ImageError if the file is malformed.
    """
    return dict(_ElfFile("ELF file", data).contents(names, limit))


class _ElfFile:
    """An ELF file's bytes, and the way through them. ``name`` is for messages."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.data = data
        self.elf_class = self._read_class()
        self.header = self._read_header()

    def image(self, mode: Mode | None, entry: int | str | None) -> Image:
        headers = self._load_headers()
        segments = tuple(Segment(Gpa(h.paddr), self.data[h.offset : h.offset + h.filesz], h.memsz) for h in headers)
        symbols = self._symbols()
        start = choose_entry(self.name, entry, _physical(self.header.entry, headers), symbols)
        mode = mode or MODE_OF[self.elf_class.name]
        return Image(self.name, segments, start, mode, symbols, self.elf_class.name, self.data)

    def notes(self) -> list[tuple[bytes, int, bytes]]:
        header = self.header
        table = self._table("program headers", self.elf_class.program, header.phoff, header.phnum, header.phentsize)
        return [
            note
            for entry in table
            if entry.type == PT_NOTE
            for note in _notes(self.data[entry.offset : entry.offset + min(entry.filesz, MAX_NOTES)])
        ]

    # ---- what kind of file it is ----

    def _read_class(self) -> ElfClass:
        if not self.data.startswith(ELF_MAGIC):
            raise self._error("is no ELF file: its first bytes are not 7f 45 4c 46")
        self._check_range(0, IDENT_SIZE, "the ELF header")
        number, byte_order = self.data[4:6]
        if number not in CLASSES:
            raise self._error(f"has ELF class {number}: there are 1 (32-bit) and 2 (64-bit)")
        if byte_order != LITTLE_ENDIAN:
            raise self._error("is not little-endian: it was built for another machine than x86")
        return CLASSES[number]

    def _read_header(self) -> Header:
        self._check_range(IDENT_SIZE, self.elf_class.header.size, "the ELF header")
        header = self.elf_class.header.read(self.data, IDENT_SIZE, 1)[0]
        wanted = MACHINE_OF[self.elf_class.name]
        if header.machine != wanted:
            machine = MACHINES.get(header.machine, f"machine {header.machine}")
            raise self._error(
                f"is an {self.elf_class.name} file for {machine}: pykvm runs those for {MACHINES[wanted]}"
            )
        if header.type != ET_EXEC:
            raise self._error(
                REFUSED_TYPES.get(header.type, f"has ELF type {header.type}: only executables (2) can run")
            )
        return header

    # ---- segments ----

    def _load_headers(self) -> list[ProgramHeader]:
        header = self.header
        if header.phnum >= PN_XNUM:
            raise self._error(f"has {PN_XNUM} program headers or more: no guest needs them")
        table = self._table("program headers", self.elf_class.program, header.phoff, header.phnum, header.phentsize)
        if any(entry.type == PT_INTERP for entry in table):
            raise self._error("is dynamically linked: it is an operating system's program, not a guest")
        headers = [entry for entry in table if entry.type == PT_LOAD and entry.memsz]
        for entry in headers:
            if entry.filesz > entry.memsz:
                raise self._error(f"its segment at {entry.paddr:#x} has more bytes in the file than in memory")
            self._check_range(entry.offset, entry.filesz, f"the segment at {entry.paddr:#x}")
        if sum(entry.filesz for entry in headers) > MAX_DATA:
            raise self._error(f"its segments have more than {format_size(MAX_DATA)} of data")
        return headers

    # ---- sections ----

    def contents(self, names: Sequence[str], limit: int) -> Iterator[tuple[str, bytes]]:
        sections = self._section_headers()
        if self.header.shstrndx >= len(sections):
            return
        strings = sections[self.header.shstrndx]
        self._check_range(strings.offset, strings.size, "the string table")
        wanted = set(names)
        for section in sections:
            if section.size > limit or section.flags & SHF_COMPRESSED or section.type == SHT_NOBITS:
                continue
            name = self._string(strings, section.name)
            if name in wanted:
                wanted.remove(name)
                self._check_range(section.offset, section.size, name)
                yield name, self.data[section.offset : section.offset + section.size]

    def _section_headers(self) -> list[SectionHeader]:
        header = self.header
        if not header.shoff:
            return []
        return self._table("section headers", self.elf_class.section, header.shoff, header.shnum, header.shentsize)

    # ---- symbols ----

    def _symbols(self) -> tuple[Symbol, ...]:
        sections = self._section_headers()
        table = next((section for section in sections if section.type == SHT_SYMTAB), None)
        if table is None:
            return ()
        strings = self._strings(table, sections)
        entries = [entry for entry in self._symbol_entries(table) if _names_a_place(entry, sections)]
        entries.sort(key=lambda entry: (entry.value, entry.info >> 4 != STB_LOCAL))
        return _with_sizes([(self._string(strings, entry.name), entry) for entry in entries], sections)

    def _symbol_entries(self, table: SectionHeader) -> list[SymbolEntry]:
        count = table.size // self.elf_class.symbol.size
        if count > MAX_SYMBOLS:
            raise self._error(f"has {count} symbols: more than {MAX_SYMBOLS} are not read")
        return self._table("symbols", self.elf_class.symbol, table.offset, count, table.entsize)

    def _strings(self, table: SectionHeader, sections: Sequence[SectionHeader]) -> SectionHeader:
        if table.link >= len(sections):
            raise self._error(f"is malformed: its symbols have their names in section {table.link} of {len(sections)}")
        strings = sections[table.link]
        self._check_range(strings.offset, strings.size, "the string table")
        return strings

    def _string(self, strings: SectionHeader, offset: int) -> str:
        if offset >= strings.size:
            raise self._error(f"is malformed: a symbol's name is at {offset:#x} of {strings.size:#x} bytes of names")
        start = strings.offset + offset
        limit = min(start + MAX_NAME, strings.offset + strings.size)
        end = self.data.find(b"\0", start, limit)
        return printable(self.data[start : limit if end < 0 else end].decode("utf-8", "replace"))

    # ---- bounds ----

    def _table(self, what: str, record: Record[T], offset: int, count: int, size: int) -> list[T]:
        """Return ``count`` records at ``offset``, each of which has ``size`` bytes according to the file."""
        if count and size != record.size:
            raise self._error(
                f"is malformed: its {what} have {size} bytes each, in {self.elf_class.name} they have {record.size}"
            )
        self._check_range(offset, count * record.size, f"its {what}")
        return record.read(self.data, offset, count)

    def _check_range(self, offset: int, size: int, what: str) -> None:
        if offset + size > len(self.data):
            end = offset + size
            raise self._error(f"is truncated: the file has {len(self.data):#x} bytes, and {what} would end at {end:#x}")

    def _error(self, problem: str) -> ImageError:
        return ImageError(f"{self.name}: {problem}")


def _notes(segment: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield what is in a PT_NOTE segment, up to the first note that does not fit."""
    at = 0
    while at + NOTE.size <= len(segment):
        name_size, size, kind = NOTE.unpack_from(segment, at)
        content = at + NOTE.size + align_up(name_size, 4)
        end = content + align_up(size, 4)
        if content + size > len(segment):
            return
        yield (
            segment[at + NOTE.size : at + NOTE.size + name_size].rstrip(b"\0"),
            kind,
            segment[content : content + size],
        )
        at = end


def _physical(entry: int, headers: Sequence[ProgramHeader]) -> int:
    """Return the virtual address ``entry`` as a physical one: at the start no page tables of the guest's own exist."""
    if any(header.paddr <= entry < header.paddr + header.memsz for header in headers):
        return entry  # linked to run where it is loaded, or (as Linux does) an entry that is physical already
    for header in headers:
        if header.vaddr <= entry < header.vaddr + header.memsz:
            return entry - header.vaddr + header.paddr
    return entry


def _names_a_place(entry: SymbolEntry, sections: Sequence[SectionHeader]) -> bool:
    """Return whether ``entry`` is a label: not a constant, a file's name, or another file's symbol."""
    in_section = SHN_UNDEF < entry.shndx < min(SHN_LORESERVE, len(sections))
    return in_section and entry.info & 0xF in (STT_NOTYPE, STT_OBJECT, STT_FUNC) and entry.name != 0


def _with_sizes(named: Sequence[tuple[str, SymbolEntry]], sections: Sequence[SectionHeader]) -> tuple[Symbol, ...]:
    """Return the sorted symbols. A label in assembly has no size: it reaches to the next, or to its section's end."""
    values = [entry.value for _, entry in named]
    symbols = []
    for name, entry in named:
        section = sections[entry.shndx]
        following = bisect_right(values, entry.value)
        end = min([section.addr + section.size, *values[following : following + 1]])
        symbols.append(Symbol(name, entry.value, entry.size or max(0, end - entry.value)))
    return tuple(symbols)
