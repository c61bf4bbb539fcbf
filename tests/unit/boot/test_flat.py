"""Flat binaries: where they go by default, and what can be said instead."""

from __future__ import annotations

import pytest

from pykvm.boot.flat import flat_image
from pykvm.errors import ImageError
from pykvm.x86 import Mode


def test_a_flat_binary_is_real_mode_code_at_0x8000() -> None:
    image = flat_image(b"\xf4")
    assert (image.mode, image.entry, image.segments[0].gpa, image.segments[0].data) == (
        Mode.REAL,
        0x8000,
        0x8000,
        b"\xf4",
    )


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.REAL])
def test_in_every_other_mode_it_goes_to_one_megabyte(mode: Mode) -> None:
    assert flat_image(b"\xf4", mode=mode).entry == 0x10_0000


def test_load_address_and_entry_can_be_given() -> None:
    image = flat_image(bytes(512), load=0x7C00, entry=0x7C03)
    assert (image.segments[0].gpa, image.entry) == (0x7C00, 0x7C03)


def test_nothing_is_no_guest() -> None:
    with pytest.raises(ImageError, match="is empty"):
        flat_image(b"")


def test_a_flat_binary_has_no_symbol_to_start_at() -> None:
    with pytest.raises(ImageError, match="there is no symbol 'main', nor any other: give the entry as an address"):
        flat_image(b"\xf4", entry="main")


def test_an_entry_outside_is_refused() -> None:
    with pytest.raises(ImageError, match="entry 0x9000 is in none"):
        flat_image(b"\xf4", entry=0x9000)
