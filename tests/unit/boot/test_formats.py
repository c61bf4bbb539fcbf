"""Formats by content and by name, and what goes with a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from pykvm.boot import BootModule, BootOptions, open_image
from pykvm.boot.formats import FORMATS
from pykvm.errors import ImageError


def file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_format_that_is_named_wins_over_what_the_content_looks_like(tmp_path: Path) -> None:
    path = file(tmp_path, "guest.S", b"\x7fELF")
    assert open_image(path, format="flat").format == "flat binary"
    with pytest.raises(ImageError, match="ELF"):
        open_image(path)


def test_an_unknown_format_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = file(tmp_path, "guest", b"\xf4")
    with pytest.raises(ImageError, match="did you mean flat"):
        open_image(path, format="flatt")
    with pytest.raises(ImageError, match="there are assembly,"):
        open_image(path, format="qcow2")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (BootOptions(append="quiet"), "--append"),
        (BootOptions(initrd=b"x"), "--initrd"),
        (BootOptions(modules=(BootModule("m", b"x"),)), "--module"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused(tmp_path: Path, options: BootOptions, word: str) -> None:
    path = file(tmp_path, "guest", b"\xf4")
    with pytest.raises(ImageError, match=f"flat binary, to which nobody could give .*{word}"):
        open_image(path, options=options)


def test_every_format_has_a_name_and_a_summary() -> None:
    names = [format.name for format in FORMATS]
    assert len(set(names)) == len(names)
    assert all(format.summary for format in FORMATS)
