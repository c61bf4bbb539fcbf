"""pykvm.boot.lines: an address leads to the line it was assembled from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.boot import Image, assemble, flat_image, source_line

SOURCE = """\
        .globl _start
_start: nop
        nop
        hlt
"""


def test_each_instruction_of_a_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "small.S"
    path.write_text(SOURCE)
    image = assemble(path)
    assert [source_line(image, image.entry + offset) for offset in range(3)] == [f"small.S:{n}" for n in (2, 3, 4)]


def test_text_without_a_file_is_called_text() -> None:
    image = assemble(SOURCE)
    assert source_line(image, image.entry) == "<text>:2"


def test_an_address_outside_the_code_has_no_line(tmp_path: Path) -> None:
    path = tmp_path / "small.S"
    path.write_text(SOURCE)
    image = assemble(path)
    assert source_line(image, image.entry - 1) is None
    assert source_line(image, image.entry + 3) is None


def test_a_flat_binary_has_no_lines() -> None:
    image = flat_image(b"\xf4")
    assert source_line(image, image.entry) is None


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
    line = source_line(replace(image, elf=bytes(damaged)), image.entry)
    assert line is None or isinstance(line, str)
