"""A snapshot's file: what goes in comes out, and anything else is refused in words."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.devices.fields import Json
from pykvm.errors import SnapshotError
from pykvm.machine.snapshot_file import FORMAT, read_snapshot, write_snapshot
from pykvm.units import PAGE_SIZE, Gpa

DOCUMENT: dict[str, Json] = {"shape": {"cpus": 1}, "text": "\u00e9\ud800", "numbers": [0, 1 << 63]}
PAGES = {Gpa(page * PAGE_SIZE): bytes([page % 251]) * PAGE_SIZE for page in (1, 2, 3, 7, 1 << 20)}
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "boot.snapshot"


@pytest.fixture
def good(path: Path) -> bytes:
    write_snapshot(path, DOCUMENT, PAGES)
    return path.read_bytes()


def handmade(document: str, pages: bytes = b"", first: bytes = b"pykvm snapshot, format 1\n") -> bytes:
    """Return a file whose lengths and checksums are right, whatever it says."""
    text = document.encode("utf-8", "surrogatepass")
    lengths = f"{len(text)} {hashlib.sha256(text).hexdigest()} {hashlib.sha256(pages).hexdigest()}\n"
    return first + lengths.encode() + text + b"\n" + pages


# ---- writing and reading ----


def test_what_is_written_is_read(path: Path, good: bytes) -> None:
    assert read_snapshot(path) == (DOCUMENT, PAGES)


def test_the_first_line_says_what_it_is_and_the_second_is_text_too(good: bytes) -> None:
    first, second, document = good.split(b"\n")[:3]
    assert first == b"pykvm snapshot, format %d" % FORMAT
    assert second.split()[0] == str(len(document)).encode()
    assert json.loads(document)["pages"] == [[0x1000, 3], [0x7000, 1], [0x1_0000_0000, 1]]


def test_pages_of_zeros_take_no_room(path: Path) -> None:
    write_snapshot(path, {}, {})
    assert path.stat().st_size < 500
    assert read_snapshot(path) == ({}, {})


def test_the_same_snapshot_is_the_same_file(path: Path, good: bytes) -> None:
    write_snapshot(path, DOCUMENT, dict(reversed(PAGES.items())))
    assert path.read_bytes() == good


# ---- all or nothing ----


def test_a_new_file_takes_the_place_of_the_old_at_once(path: Path, good: bytes) -> None:
    reader = path.open("rb")
    write_snapshot(path, {"new": True}, {})
    assert reader.read() == good  # who had opened the old one has all of it
    reader.close()
    assert read_snapshot(path) == ({"new": True}, {})
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_written_leaves_the_old_file_alone(
    path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotError, match=r"cannot be written to .*boot.snapshot: No space left"):
        write_snapshot(path, {"new": True}, {})
    assert path.read_bytes() == good
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"cannot be written .*No such file or directory"):
        write_snapshot(tmp_path / "nowhere" / "x", {}, {})
    with pytest.raises(SnapshotError, match="cannot be read: No such file or directory"):
        read_snapshot(tmp_path / "x")
    with pytest.raises(SnapshotError, match="cannot be read: Is a directory"):
        read_snapshot(tmp_path)


def test_a_file_is_for_its_owner_alone(path: Path, good: bytes) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # a guest's memory may hold anything


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, float("nan")])
def test_a_state_that_is_not_plain_data_is_refused(path: Path, value: object) -> None:
    with pytest.raises(SnapshotError, match="not plain data"):
        write_snapshot(path, {"devices": value}, {})  # type: ignore[dict-item]
    assert not path.exists()


# ---- anything else ----


@FUZZ
@given(st.data())
def test_any_changed_byte_is_refused(path: Path, good: bytes, data: st.DataObject) -> None:
    position = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(good) - 1)))
    changed = bytearray(good)
    changed[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    with pytest.raises(SnapshotError):
        read_snapshot(path)


@FUZZ
@given(st.data())
def test_any_end_too_soon_or_too_late_is_refused(path: Path, good: bytes, data: st.DataObject) -> None:
    size = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(good) - 1), st.just(len(good) + 1)))
    path.write_bytes(good[:size].ljust(size, b"\0"))
    with pytest.raises(SnapshotError):
        read_snapshot(path)


@FUZZ
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused(path: Path, data: bytes) -> None:
    for start in (b"", b"pykvm snapshot, format 1\n"):
        path.write_bytes(start + data)
        with pytest.raises(SnapshotError):
            read_snapshot(path)


def test_a_foreign_file_is_named_as_such(path: Path) -> None:
    path.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(SnapshotError, match="is not a snapshot: its first line is not 'pykvm snapshot, format 1'"):
        read_snapshot(path)


def test_a_future_format_is_named_as_such(path: Path) -> None:
    path.write_bytes(handmade("{}", first=b"pykvm snapshot, format 2\n"))
    with pytest.raises(SnapshotError, match="has format 2, and this version of pykvm reads format 1"):
        read_snapshot(path)


def test_a_length_beyond_the_file_is_refused_before_anything_is_read(path: Path) -> None:
    digest = b"0" * 64
    for length in (b"9999999999", b"67108864", b"5"):
        path.write_bytes(b"pykvm snapshot, format 1\n" + length + b" " + digest + b" " + digest + b"\n{}\n")
        with pytest.raises(SnapshotError, match="too few for a document"):
            read_snapshot(path)


@pytest.mark.parametrize(
    ("document", "pages"),
    [
        ('{"pages": [[0, 1]]}', b""),
        ('{"pages": []}', bytes(PAGE_SIZE)),
        ('{"pages": [[0, 1]]}', bytes(PAGE_SIZE + 1)),
        ('{"pages": [[1, 1]]}', bytes(PAGE_SIZE)),
        ('{"pages": [[-4096, 1]]}', bytes(PAGE_SIZE)),
        ('{"pages": [[0, 0]]}', b""),
        ('{"pages": [[0, -1]]}', b""),
        ('{"pages": [[0, 1], [0, 1]]}', bytes(2 * PAGE_SIZE)),
        ('{"pages": [[8192, 1], [0, 1]]}', bytes(2 * PAGE_SIZE)),
        ('{"pages": [[0, 1000000000000000]]}', bytes(PAGE_SIZE)),
        ('{"pages": [[4503599627370496, 1]]}', bytes(PAGE_SIZE)),
        ('{"pages": [[0, 1.0]]}', bytes(PAGE_SIZE)),
        ('{"pages": [[false, true]]}', bytes(PAGE_SIZE)),
        ('{"pages": [["0", 1]]}', bytes(PAGE_SIZE)),
        ('{"pages": [[0]]}', bytes(PAGE_SIZE)),
        ('{"pages": {}}', b""),
        ("{}", b""),
        ("[]", b""),
        ("null", b""),
        ("", b""),
        ('{"pages": []', b""),
        ("[" * 100_000, b""),
        ('{"pages": ' + "9" * 5000 + "}", b""),
        ("\ud800", b""),
    ],
)
def test_a_document_that_lies_under_a_good_checksum_is_refused(path: Path, document: str, pages: bytes) -> None:
    path.write_bytes(handmade(document, pages))
    with pytest.raises(SnapshotError, match="is damaged"):
        read_snapshot(path)


def test_a_handmade_file_is_as_good_as_any(path: Path) -> None:
    path.write_bytes(handmade('{"pages": [[4096, 1]]}', b"\1" * PAGE_SIZE))
    assert read_snapshot(path) == ({}, {Gpa(0x1000): b"\1" * PAGE_SIZE})
