"""The ELF loader: real files that GNU as and ld made, files built here field by field, and damaged ones."""

from __future__ import annotations

import io
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot.assembler import build_text
from pykvm.boot.elf import (
    EM_386,
    EM_X86_64,
    ET_EXEC,
    MAX_DATA,
    MAX_SYMBOLS,
    PT_INTERP,
    PT_LOAD,
    SHT_SYMTAB,
    elf_image,
    elf_sections,
)
from pykvm.boot.elf_structs import ELF32, ELF64, ElfClass, Header
from pykvm.boot.image import Image
from pykvm.errors import ImageError
from pykvm.memory import GuestMemory
from pykvm.units import KiB
from pykvm.x86 import Mode

SOURCE = """
        .set    CONSTANT, 0x100001
        .globl  main, _start
helper: ret
_start: call    main
main:   mov     $message, %esi
        hlt
        .size   main, . - main
        .data
message: .asciz "hello"
        .bss
        .balign 16
stack:  .skip   0x5000
top:
"""


@cache
def real_elf(mode: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "guest.elf"
        build_text(SOURCE, output, mode=mode)
        return output.read_bytes()


MODES = pytest.mark.parametrize("mode", ["protected", "long"])


# ---- files of real tools ----


@MODES
def test_a_section_is_found_by_its_name(mode: str) -> None:
    sections = ELFFile(io.BytesIO(real_elf(mode))).iter_sections()
    theirs = {section.name: section.data() for section in sections if section.name in (".text", ".debug_line")}
    assert elf_sections(real_elf(mode), [".text", ".debug_line", ".bss", ".nowhere"], MAX_DATA) == theirs


def test_a_section_that_is_too_long_is_left_out() -> None:
    assert elf_sections(real_elf("long"), [".text"], 1) == {}


def test_a_compressed_section_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "guest.elf").write_bytes(real_elf("long"))
    (tmp_path / "zeros").write_bytes(bytes(1000))
    for option in ("--update-section=.debug_str=zeros", "--compress-debug-sections=zlib"):
        subprocess.run(["objcopy", option, "guest.elf"], cwd=tmp_path, check=True, capture_output=True)
    data = (tmp_path / "guest.elf").read_bytes()
    section = ELFFile(io.BytesIO(data)).get_section_by_name(".debug_str")
    assert section is not None
    assert section.compressed
    assert elf_sections(data, [".debug_str"], MAX_DATA) == {}


@MODES
def test_segments_and_symbols_are_those_that_pyelftools_sees(mode: str) -> None:
    image = elf_image(real_elf(mode))
    other = ELFFile(io.BytesIO(real_elf(mode)))
    loads = [item for item in other.iter_segments() if item["p_type"] == "PT_LOAD"]
    assert [(s.gpa, s.data, s.memory_size) for s in image.segments] == [
        (item["p_paddr"], item.data(), item["p_memsz"]) for item in loads
    ]
    table = other.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    labels = {s.name: s["st_value"] for s in table.iter_symbols()}
    assert {s.name: s.address for s in image.symbols} == {
        name: labels[name] for name in ("helper", "_start", "main", "message", "stack", "top")
    }
    assert image.entry == other["e_entry"] == labels["_start"]


def test_the_class_decides_the_mode_unless_one_is_given() -> None:
    assert (elf_image(real_elf("long")).mode, elf_image(real_elf("long")).format) == (Mode.LONG, "ELF64")
    assert (elf_image(real_elf("protected")).mode, elf_image(real_elf("protected")).format) == (Mode.PROTECTED, "ELF32")
    assert elf_image(real_elf("protected"), mode=Mode.PAE).mode is Mode.PAE


@MODES
def test_a_loaded_file_has_its_data_and_a_zeroed_bss(mode: str) -> None:
    image = elf_image(real_elf(mode))
    with GuestMemory("2M") as memory:
        memory.write(0x10_0000, b"\xaa" * 0x8000)
        image.load(memory)
        addresses = {symbol.name: symbol.address for symbol in image.symbols}
        assert memory.read_string(addresses["message"]) == b"hello"
        assert memory.read(addresses["stack"], 0x5000) == bytes(0x5000)
        assert memory.read(addresses["top"], 1) == b"\xaa"


@MODES
def test_a_label_reaches_to_the_next_one_and_the_last_to_its_sections_end(mode: str) -> None:
    image = elf_image(real_elf(mode))
    assert image.symbol_at(image.entry + 1) == "_start+0x1"
    stack = next(symbol.address for symbol in image.symbols if symbol.name == "stack")
    assert image.symbol_at(stack + 0x4FFF) == "stack+0x4fff"
    assert image.symbol_at(stack + 0x5000) == "top"
    assert image.symbol_at(stack + 0x5001) is None


def test_the_entry_can_be_a_symbol() -> None:
    data = real_elf("long")
    assert elf_image(data, entry="helper").entry == 0x10_0000
    with pytest.raises(ImageError, match=r"there is no symbol 'mian' to start at; did you mean main\?"):
        elf_image(data, entry="mian")


def test_a_stripped_file_runs_without_symbols(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(real_elf("long"))
    subprocess.run(["strip", path], check=True)
    image = elf_image(path.read_bytes())
    assert image.symbols == ()
    assert image.segments == elf_image(real_elf("long")).segments


# ---- files built field by field ----

MACHINES = {ELF32.name: EM_386, ELF64.name: EM_X86_64}
CODE = b"\x90\xf4"


def program(elf_class: ElfClass = ELF64, **fields: int) -> bytes:
    values = {"type": PT_LOAD, "paddr": 0x1000, "vaddr": 0x1000, "filesz": 2, "memsz": 2} | fields
    names = elf_class.program.make([0] * 8)._fields
    return elf_class.program.layout.pack(*(values.get(name, 0) for name in names))


def section(**fields: int) -> bytes:
    names = ELF64.section.make([0] * 10)._fields
    return ELF64.section.layout.pack(*(fields.get(name, 0) for name in names))


def elf(*programs: bytes, elf_class: ElfClass = ELF64, tail: bytes = CODE, ident: bytes = b"", **fields: int) -> bytes:
    """Return an ELF file: header, program headers, ``tail``."""
    size = 16 + elf_class.header.size
    values = {
        "type": ET_EXEC,
        "machine": MACHINES[elf_class.name],
        "entry": 0x1000,
        "phoff": size,
        "phentsize": elf_class.program.size,
        "phnum": len(programs),
        "shentsize": elf_class.section.size,
    } | fields
    header = elf_class.header.layout.pack(*(values.get(name, 0) for name in Header._fields))
    magic = ident or b"\x7fELF" + bytes([1 if elf_class is ELF32 else 2, 1, 1])
    return magic.ljust(16, b"\0") + header + b"".join(programs) + tail


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        elf_image(data, name="guest.elf")
    message = str(caught.value)
    assert message.startswith("guest.elf: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("elf_class", [ELF32, ELF64])
def test_a_segment_goes_to_its_physical_address(elf_class: ElfClass) -> None:
    data = elf(program(elf_class, offset=0, vaddr=0xC000_1000, paddr=0x1000), elf_class=elf_class)
    (segment,) = elf_image(data).segments
    assert (segment.gpa, segment.data, segment.memory_size) == (0x1000, b"\x7fE", 2)


def test_a_virtual_entry_becomes_a_physical_one() -> None:
    assert elf_image(elf(program(vaddr=0xFFFF_FFFF_8000_1000), entry=0xFFFF_FFFF_8000_1001)).entry == 0x1001
    assert elf_image(elf(program(vaddr=0xFFFF_FFFF_8000_1000), entry=0x1001)).entry == 0x1001


def test_segments_without_size_and_of_other_types_are_passed_over() -> None:
    data = elf(program(), program(filesz=0, memsz=0), program(type=0x6474_E551, filesz=1 << 60))
    assert len(elf_image(data).segments) == 1


def test_a_segment_may_have_no_bytes_in_the_file() -> None:
    segments = elf_image(elf(program(), program(paddr=0x2000, filesz=0, memsz=1 << 50))).segments
    assert [len(segment.data) for segment in segments] == [2, 0]
    assert segments[1].memory_size == 1 << 50


def test_other_classes_byte_orders_and_machines_are_refused() -> None:
    assert "ELF class 3" in refusal(elf(program(), ident=b"\x7fELF\x03\x01"))
    assert "not little-endian" in refusal(elf(program(), ident=b"\x7fELF\x02\x02"))
    assert "ELF64 file for AArch64: pykvm runs those for x86-64" in refusal(elf(program(), machine=183))
    assert "machine 4711" in refusal(elf(program(), machine=4711))
    assert "ELF32 file for x86-64" in refusal(elf(program(ELF32), elf_class=ELF32, machine=EM_X86_64))


def test_only_executables_are_taken() -> None:
    assert "object file: link it" in refusal(elf(program(), type=1))
    assert "position-independent" in refusal(elf(program(), type=3))
    assert "ELF type 4" in refusal(elf(program(), type=4))
    assert "dynamically linked" in refusal(elf(program(), program(type=PT_INTERP)))


def test_a_file_with_nothing_to_load_is_refused() -> None:
    assert "nothing in it to load" in refusal(elf())
    assert "nothing in it to load" in refusal(elf(program(memsz=0, filesz=0)))


def test_segments_that_overlap_are_refused() -> None:
    assert "0x1000-0x1001 and 0x1001-0x1002 overlap" in refusal(elf(program(), program(paddr=0x1001)))


def test_segments_outside_the_address_space_are_refused() -> None:
    assert "52-bit" in refusal(elf(program(), program(paddr=(1 << 64) - 1, memsz=(1 << 64) - 1)))


def test_an_entry_in_no_segment_is_refused() -> None:
    assert "the entry 0x0 is in none of its segments (0x1000-0x1001)" in refusal(elf(program(), entry=0))


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_every_truncation_is_refused(mode: str) -> None:
    data = real_elf(mode)
    for size in range(0, len(data), 7):
        refusal(data[:size])


def test_tables_and_segments_beyond_the_end_of_the_file_are_refused() -> None:
    assert "is truncated" in refusal(elf(program(), phoff=1 << 63))
    assert "is truncated" in refusal(elf(program(), phnum=0xFFFE))
    assert "is truncated" in refusal(elf(program(), shoff=1 << 63, shnum=1))
    assert "is truncated" in refusal(elf(program(offset=(1 << 64) - 1)))
    assert "is truncated" in refusal(elf(program(filesz=1 << 40, memsz=1 << 40)))


def test_tables_that_contradict_themselves_are_refused() -> None:
    assert "65535 program headers or more" in refusal(elf(program(), phnum=0xFFFF))
    assert "its program headers have 0 bytes each, in ELF64 they have 56" in refusal(elf(program(), phentsize=0))
    assert "more bytes in the file than in memory" in refusal(elf(program(memsz=1)))


def test_a_small_file_cannot_ask_for_a_lot_of_memory() -> None:
    size = 64 * KiB
    programs = [program(paddr=i * size, filesz=size, memsz=size) for i in range(MAX_DATA // size + 1)]
    assert "more than 256 MiB of data" in refusal(elf(*programs, tail=bytes(size)))


def with_symbols(symbols: bytes, strings: bytes, **table: int) -> bytes:
    """Return a file with a section of code, ``symbols`` and ``strings``; ``table`` changes the symbols' header."""
    start = 16 + ELF64.header.size + ELF64.program.size
    fields = {
        "type": SHT_SYMTAB,
        "offset": start,
        "size": len(symbols),
        "link": 2,
        "entsize": ELF64.symbol.size,
    } | table
    sections = [
        section(addr=0x1000, size=2),
        section(**fields),
        section(offset=start + len(symbols), size=len(strings)),
        section(addr=0x1000, size=2),
    ]
    contents = symbols + strings
    return elf(program(), shoff=start + len(contents), shnum=4, tail=contents + b"".join(sections))


def symbol(name: int = 1, value: int = 0x1000, size: int = 0, shndx: int = 3) -> bytes:
    return ELF64.symbol.layout.pack(name, 0, 0, shndx, value, size)


def names(data: bytes) -> list[str]:
    return [item.name for item in elf_image(data).symbols]


def test_only_labels_are_symbols() -> None:
    absolute, undefined, nameless = symbol(shndx=0xFFF1), symbol(shndx=0), symbol(name=0)
    assert names(with_symbols(symbol() + absolute + undefined + nameless, b"\0main\0")) == ["main"]
    assert names(with_symbols(symbol(shndx=4), b"\0main\0")) == []


def test_names_cannot_control_a_terminal_and_need_no_end() -> None:
    assert names(with_symbols(symbol(), b"\0a\x1b[2J\xff\n")) == ["a\\x1b[2J\\ufffd\\n"]
    assert [len(name) for name in names(with_symbols(symbol() * 2, b"\0" + b"a" * 5000))] == [256, 256]


def test_damaged_symbol_tables_are_refused() -> None:
    assert "names in section 9 of 4" in refusal(with_symbols(symbol(), b"\0main\0", link=9))
    assert "a symbol's name is at 0x64 of 0x6" in refusal(with_symbols(symbol(name=100), b"\0main\0"))
    assert "symbols have 0 bytes each" in refusal(with_symbols(symbol(), b"\0main\0", entsize=0))
    assert "is truncated" in refusal(with_symbols(symbol(), b"\0main\0", offset=1 << 63))
    assert f"more than {MAX_SYMBOLS} are not read" in refusal(with_symbols(symbol(), b"\0main\0", size=1 << 63))


def test_a_symbol_table_that_is_its_own_string_table_is_no_loop() -> None:
    assert len(names(with_symbols(symbol(), b"\0main\0", link=1))) == 1


# ---- random damage ----


def check_all_is_well_or_refused(data: bytes) -> None:
    """Load ``data`` and use it in every way: the only error is ImageError, with one line."""
    try:
        image: Image = elf_image(data, name="guest.elf")
        assert sum(len(segment.data) for segment in image.segments) <= MAX_DATA
        image.symbol_at(image.entry)
        with GuestMemory("2M") as memory:
            image.load(memory)
    except ImageError as error:
        assert "\n" not in str(error)


@given(
    mode=st.sampled_from(["protected", "long"]),
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), min_size=1, max_size=8),
    in_header=st.booleans(),
)
def test_flipped_bits_never_crash_the_loader(mode: str, flips: list[tuple[int, int]], in_header: bool) -> None:
    data = bytearray(real_elf(mode))
    size = 0xB0 if in_header else len(data)
    for position, bit in flips:
        data[position % size] ^= 1 << bit
    check_all_is_well_or_refused(bytes(data))


@given(
    mode=st.sampled_from(["protected", "long"]),
    position=st.integers(0, 1 << 16),
    value=st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255),
    length=st.integers(1, 8),
    size=st.integers(0, 1 << 16),
)
def test_overwritten_fields_and_truncations_never_crash_the_loader(
    mode: str, position: int, value: int, length: int, size: int
) -> None:
    data = bytearray(real_elf(mode))
    start = position % len(data)
    data[start : start + length] = bytes([value]) * length
    check_all_is_well_or_refused(bytes(data[: size % (2 * len(data))]))


@given(
    fields=st.dictionaries(st.sampled_from(Header._fields[2:]), st.integers(0, 0xFFFF)), tail=st.binary(max_size=300)
)
def test_random_headers_never_crash_the_loader(fields: dict[str, int], tail: bytes) -> None:
    check_all_is_well_or_refused(elf(program(), elf_class=ELF64, tail=tail, ident=b"", **fields))
