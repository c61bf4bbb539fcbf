"""Opening a file: what kind it is, and every way in which it can be no guest."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.boot.assembler import build_text
from pykvm.boot.detection import MAX_FILE, open_image
from pykvm.errors import ImageError
from pykvm.units import GiB
from pykvm.x86 import Mode


@pytest.fixture
def elf(tmp_path: Path) -> Path:
    path = tmp_path / "guest"
    build_text(".globl _start\n_start: nop\nother: hlt\n", path)
    return path


def test_an_elf_file_is_known_by_its_content(elf: Path) -> None:
    image = open_image(elf)
    assert (image.format, image.mode, image.entry, image.name) == ("ELF64", Mode.LONG, 0x10_0000, str(elf))
    assert open_image(str(elf), entry="other").entry == 0x10_0001
    assert open_image(elf.rename(elf.with_suffix(".S"))).format == "ELF64"


@pytest.mark.parametrize("suffix", [".S", ".s"])
def test_a_source_is_assembled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"guest{suffix}"
    path.write_text(".code16\nhlt\n")
    image = open_image(path)
    assert (image.mode, image.entry, image.segments[0].data, image.name) == (Mode.REAL, 0x8000, b"\xf4", str(path))
    assert open_image(path, load=0x7C00).entry == 0x7C00


def test_everything_else_is_a_flat_binary(tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(b"\x7fEL")
    image = open_image(path, load=0x9000, mode=Mode.PROTECTED)
    assert (image.format, image.mode, image.entry) == ("flat binary", Mode.PROTECTED, 0x9000)


def test_an_elf_file_cannot_be_moved(elf: Path) -> None:
    with pytest.raises(ImageError, match="says itself where it goes"):
        open_image(elf, load=0x1000)


# ---- what is no guest ----


def refusal(path: Path | str) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nosuch.bin") == f"{tmp_path / 'nosuch.bin'}: there is no such file"
    assert "no such file" in refusal(tmp_path / "nosuch.S")
    assert "Not a directory" in refusal("/dev/null/guest")


def test_an_empty_file(tmp_path: Path) -> None:
    for name in ("guest.bin", "guest.S"):
        (tmp_path / name).touch()
        assert "is empty" in refusal(tmp_path / name)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make", "what"), [(make_directory, "is a directory"), (os.mkfifo, "is a FIFO"), (make_socket, "is a socket")]
)
def test_a_file_that_is_no_ordinary_one(make: Callable[[Path], None], what: str, tmp_path: Path) -> None:
    for name in ("guest", "guest.S"):
        make(tmp_path / name)
        assert what in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device(name: str) -> None:
    assert f"{name}: is a device" in refusal(name)


def test_a_link_to_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "guest").symlink_to("fifo")
    assert "is a FIFO" in refusal(tmp_path / "guest")


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "guest").symlink_to("guest")
    assert "symbolic links" in refusal(tmp_path / "guest")


@pytest.mark.parametrize("size", [3 * GiB, MAX_FILE + 1])
def test_a_huge_file_is_not_read(size: int, tmp_path: Path) -> None:
    for name in ("guest.bin", "guest.S"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        assert "has more than 256 MiB" in refusal(tmp_path / name)


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pykvm.boot.detection

    (tmp_path / "guest").write_bytes(bytes(100))
    monkeypatch.setattr(pykvm.boot.detection, "MAX_FILE", 99)
    monkeypatch.setattr(pykvm.boot.detection, "_check_stat", lambda status, name: None)
    assert "has more than 99 bytes" in refusal(tmp_path / "guest")


def test_names_that_no_file_can_have() -> None:
    assert refusal("a\0b").startswith("a\\x00b: cannot be read")
    assert refusal("a" * 5000).endswith("File name too long")
    assert "is a directory" in refusal("")


def test_a_name_with_control_characters_is_escaped(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a\x1b[2J\nb").endswith("a\\x1b[2J\\nb: there is no such file")
    assert "\\udcff" in refusal(os.fsdecode(b"\xff"))


def test_a_refused_permission_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guest.bin").write_bytes(b"\xf4")

    def refuse(path: object, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "you may not read it" in refusal(tmp_path / "guest.bin")


def test_the_heavy_imports_wait_until_they_are_needed() -> None:
    heavy = ("elftools", "capstone", "subprocess")
    program = f"import sys, pykvm.boot; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_exported_name_can_be_imported() -> None:
    import pykvm.boot

    assert all(getattr(pykvm.boot, name) is not None for name in pykvm.boot.__all__)
    assert dir(pykvm.boot) == sorted(pykvm.boot.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pykvm.boot.nonsense
