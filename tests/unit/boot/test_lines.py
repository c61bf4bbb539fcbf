"""pykvm.boot.lines: an address leads to the line it was assembled from, and a line to its code and its text."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.boot import Image, LineTable, SourceLine, assemble, bundled_guests, flat_image, open_image, source_line
from pykvm.boot.dwarf import Row
from pykvm.boot.lines import MOST_SOURCE

SOURCE = """\
        .globl _start
_start: nop
        nop
        hlt
"""


def small_file(folder: Path, text: str = SOURCE) -> Path:
    path = folder / "small.S"
    path.write_text(text)
    return path


# ---- from an address ----


def test_each_instruction_of_a_file_has_its_line(tmp_path: Path) -> None:
    image = assemble(small_file(tmp_path))
    assert [source_line(image, image.entry + offset) for offset in range(3)] == [f"small.S:{n}" for n in (2, 3, 4)]


def test_every_byte_of_an_instruction_has_its_line() -> None:
    image = assemble("mov $1, %eax\nhlt")
    assert [source_line(image, image.entry + offset) for offset in range(6)] == ["<text>:1"] * 5 + ["<text>:2"]


def test_text_without_a_file_is_called_text() -> None:
    image = assemble(SOURCE)
    assert source_line(image, image.entry) == "<text>:2"


def test_an_address_outside_the_code_has_no_line(tmp_path: Path) -> None:
    image = assemble(small_file(tmp_path))
    assert source_line(image, image.entry - 1) is None
    assert source_line(image, image.entry + 3) is None
    assert image.lines.find(0) is image.lines.find(-1) is image.lines.find(1 << 64) is None


def test_a_flat_binary_has_no_lines() -> None:
    image = flat_image(b"\xf4")
    assert source_line(image, image.entry) is None
    assert image.lines.files == ()


def test_code_of_an_included_file_has_that_files_lines(tmp_path: Path) -> None:
    (tmp_path / "more.inc").write_text("nop\ncli\n")
    image = assemble(small_file(tmp_path, '_start: nop\n.include "more.inc"\nhlt\n'))
    lines = [image.lines.find(image.entry + offset) for offset in range(4)]
    assert list(map(str, lines)) == ["small.S:1", "more.inc:1", "more.inc:2", "small.S:3"]
    assert [line and image.lines.text(line) for line in lines] == ["_start: nop", "nop", "cli", "hlt"]


def test_a_table_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image = assemble(SOURCE)
    table = image.lines
    monkeypatch.setattr(LineTable, "of", None)
    assert image.lines is table


def test_an_image_with_a_table_is_the_same_image() -> None:
    image, other = assemble(SOURCE), assemble(SOURCE)
    assert image.lines.files
    assert image == other
    assert hash(image) == hash(other)
    assert pickle.loads(pickle.dumps(image)) == image
    assert replace(image, elf=b"").lines.files == ()


# ---- from a line ----


def test_a_line_leads_to_its_code_and_back(tmp_path: Path) -> None:
    image = assemble(small_file(tmp_path))
    table = image.lines
    (file,) = table.files
    assert table.lines(file) == (2, 3, 4)
    assert [table.addresses(file, line) for line in (1, 2, 3, 4, 5)] == [
        (),
        (image.entry,),
        (image.entry + 1,),
        (image.entry + 2,),
        (),
    ]


def test_a_line_of_several_instructions_begins_once() -> None:
    image = assemble("nop; nop; nop\nhlt")
    assert image.lines.addresses("<text>", 1) == (image.entry,)


def test_a_line_that_was_copied_begins_at_every_copy() -> None:
    rows = [Row(0x10, 2, "a.c", 7, True), Row(0x12, 2, "a.c", 8, True), Row(0x14, 2, "a.c", 7, True)]
    assert LineTable(rows).addresses("a.c", 7) == (0x10, 0x14)


def test_a_line_of_which_nothing_is_left_begins_where_it_would_have() -> None:
    table = LineTable([Row(0x10, 0, "a.c", 7, True), Row(0x10, 4, "a.c", 8, True)])
    assert table.addresses("a.c", 7) == (0x10,)
    assert table.find(0x10) == SourceLine("a.c", 8)


def test_no_statement_begins_in_the_middle_of_another() -> None:
    table = LineTable([Row(0x10, 4, "a.c", 7, False)])
    assert table.addresses("a.c", 7) == ()
    assert str(table.find(0x13)) == "a.c:7"


def test_a_file_is_found_by_the_end_of_its_path() -> None:
    table = LineTable([Row(0, 1, "/home/me/src/a.c", 1, True), Row(1, 1, "b/ba.c", 1, True)])
    assert table.find_file("a.c") == table.find_file("src/a.c") == "/home/me/src/a.c"
    assert table.find_file("ba.c") == "b/ba.c"
    assert table.find_file(".c") is None


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=30))
def test_find_is_the_row_that_an_address_lies_in(parts: list[tuple[int, int]]) -> None:
    starts = [sum(size for size, _ in parts[:index]) for index in range(len(parts))]
    rows = [Row(start, size, "a.c", line, True) for start, (size, line) in zip(starts, parts, strict=True)]
    table = LineTable(reversed(rows))
    for row in rows:
        for address in range(row.start, row.start + row.size):
            assert table.find(address) == SourceLine("a.c", row.line)
    assert table.find(sum(size for size, _ in parts)) is None


# ---- what a line says ----


def test_a_line_of_a_file_says_what_the_file_says(tmp_path: Path) -> None:
    image = assemble(small_file(tmp_path))
    assert image.lines.text(SourceLine("small.S", 4)) == "        hlt"
    assert image.lines.source("small.S") == tuple(SOURCE.splitlines())


def test_a_line_of_a_text_says_what_the_text_says() -> None:
    image = assemble(SOURCE)
    assert image.lines.text(SourceLine("<text>", 2)) == "_start: nop"


def test_a_snippet_of_the_kit_knows_its_text_from_the_disk_too(tmp_path: Path) -> None:
    from pykvm.testing.assembly import Assembler

    for _ in range(2):  # assembled, and then read back
        image = Assembler(tmp_path).assemble("nop\nhlt", mode="long")
        assert image.lines.text(SourceLine("<text>", 2)) == "hlt"


def test_lines_beyond_the_file_say_nothing(tmp_path: Path) -> None:
    image = assemble(small_file(tmp_path))
    assert [image.lines.text(SourceLine("small.S", line)) for line in (-1, 0, 5)] == [None] * 3
    assert image.lines.text(SourceLine("other.S", 1)) is None


def test_a_file_that_has_gone_says_nothing(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    image = assemble(path)
    path.unlink()
    assert source_line(image, image.entry) == "small.S:2"
    assert image.lines.text(SourceLine("small.S", 2)) is None


def test_control_characters_of_a_source_are_escaped_and_bytes_that_are_no_text_replaced(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    image = assemble(path)
    path.write_bytes(b"\tnop # \x1b[2J\n\xff\r\n")
    assert image.lines.source("small.S") == ("\tnop # \\x1b[2J", "\ufffd")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_ordinary_file_is_not_read(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "a.c")
    assert LineTable([Row(0, 1, "a.c", 1, True)], folder=tmp_path).source("a.c") == ()


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/maps", "/proc/self/mem", "a\0b", "/" + "a" * 5000])
def test_a_hostile_name_is_no_source(path: str) -> None:
    assert LineTable([Row(0, 1, path, 1, True)], folder=Path("/")).text(SourceLine(path, 1)) is None


def test_sources_are_read_up_to_a_limit(tmp_path: Path) -> None:
    with (tmp_path / "a.c").open("wb") as file:
        file.truncate(MOST_SOURCE + 1)
    assert LineTable([Row(0, 1, "a.c", 1, True)], folder=tmp_path).source("a.c") == ()


def test_a_relative_name_without_a_folder_is_not_sought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert LineTable([Row(0, 1, "small.S", 1, True)]).source("small.S") == ()


@pytest.mark.parametrize("guest", bundled_guests(), ids=lambda guest: guest.name)
def test_every_bundled_guest_has_its_source_beside_it(guest: object) -> None:
    from pykvm.boot import BundledGuest

    assert isinstance(guest, BundledGuest)
    table = open_image(guest.image, name=guest.name).lines
    assert table.files
    for file in table.files:
        text = table.source(file)
        assert all(0 < line <= len(text) for line in table.lines(file)), file
        assert all(table.addresses(file, line) for line in table.lines(file))


# ---- damage ----


@cache
def small_image() -> Image:
    return assemble(SOURCE)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_debugging_information_is_no_information(data: st.DataObject) -> None:
    image = small_image()
    damaged = bytearray(image.elf)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    table = replace(image, elf=bytes(damaged)).lines
    line = table.find(image.entry)
    assert line is None or table.text(line) is None or isinstance(table.text(line), str)
