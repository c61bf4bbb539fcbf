r"""A snapshot's file: a document that says everything but memory, and the pages of memory that are not zeros.

    pykvm snapshot, format 1\n
    <length of the document> <SHA-256 of the document> <SHA-256 of the pages>\n
    <the document: JSON>\n
    <the pages, 4096 bytes each>

The document's ``pages`` says where they belong: runs of [guest-physical address, how many], ascending. The file ends
with the last page. Who reads one trusts nothing: every length is held against the file's size before anything is read,
and what is there against the checksums.

A file appears under its name only when it is complete and on the disk: it is written beside it and renamed. Leaves out
what the document says: see ``snapshot``. Leaves out compression: the files are for tests, and sparse.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from pykvm.devices.fields import Json
from pykvm.errors import SnapshotError
from pykvm.units import PAGE_SIZE, Gpa

__all__ = ["FORMAT", "read_snapshot", "write_snapshot"]

FORMAT = 1
MAGIC = b"pykvm snapshot, format "
LONGEST_LINE = 256
LONGEST_DOCUMENT = 1 << 26  # bytes: state of CPUs and devices, and 2 MiB of a guest's output as hexadecimal digits
LAST_PAGE = 1 << 52
LENGTHS = re.compile(rb"(0|[1-9][0-9]{0,9}) ([0-9a-f]{64}) ([0-9a-f]{64})\n")


def write_snapshot(path: Path, document: Mapping[str, Json], pages: Mapping[Gpa, bytes]) -> None:
    """Write a file, in the place of whatever is there, or fail and leave that alone.

    Raises: SnapshotError if it cannot be written, or the document holds what JSON has no words for.
    """
    addresses = sorted(pages)
    text = _encode({**document, "pages": [list(run) for run in _runs(addresses)]})
    digest = hashlib.sha256()
    for address in addresses:
        digest.update(pages[address])
    lengths = f"{len(text)} {hashlib.sha256(text).hexdigest()} {digest.hexdigest()}\n"
    try:
        with _appearing(path) as file:
            file.write(b"%b%d\n" % (MAGIC, FORMAT))
            file.write(lengths.encode())
            file.write(text + b"\n")
            file.writelines(pages[address] for address in addresses)
    except OSError as error:
        raise SnapshotError(f"the snapshot cannot be written to {path}: {error.strerror}") from error


def read_snapshot(path: Path) -> tuple[dict[str, Json], dict[Gpa, bytes]]:
    """Return the document and the pages of a file. It takes no more memory than the file is large, and some.

    Raises: SnapshotError if it cannot be read, is no snapshot, or not as it was written.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except OSError as error:
        raise SnapshotError(f"the snapshot {path} cannot be read: {error.strerror}") from error


# ---- writing ----


def _encode(document: Mapping[str, Json]) -> bytes:
    try:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"the state of a device is not plain data, and cannot be written: {error}") from error


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the name ``path`` once all is well, and otherwise is gone."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _runs(addresses: list[Gpa]) -> Iterator[tuple[int, int]]:
    """Return adjoining pages together: where they start, and how many."""
    start = count = 0
    for address in addresses:
        if count and address == start + count * PAGE_SIZE:
            count += 1
            continue
        if count:
            yield start, count
        start, count = address, 1
    if count:
        yield start, count


# ---- reading ----


def _read(file: BinaryIO, path: Path) -> tuple[dict[str, Json], dict[Gpa, bytes]]:
    size = os.fstat(file.fileno()).st_size
    _check_format(file.readline(LONGEST_LINE), path)
    lengths = LENGTHS.fullmatch(file.readline(LONGEST_LINE))
    if lengths is None:
        raise _damaged(path, "its second line is not one of lengths and checksums")
    length = int(lengths[1])
    if length > LONGEST_DOCUMENT or file.tell() + length + 1 > size:
        raise _damaged(path, f"it has {size} bytes, too few for a document of {length}")
    text = file.read(length)
    if hashlib.sha256(text).hexdigest() != lengths[2].decode() or file.read(1) != b"\n":
        raise _damaged(path, "its document does not fit its checksum")
    document = _decode(text, path)
    addresses = _addresses(document.pop("pages", None), size - file.tell(), path)
    return document, _read_pages(file, addresses, lengths[3].decode(), path)


def _check_format(line: bytes, path: Path) -> None:
    number = line.removeprefix(MAGIC).removesuffix(b"\n")
    if not line.startswith(MAGIC) or not line.endswith(b"\n") or not re.fullmatch(rb"[1-9][0-9]{0,8}", number):
        raise SnapshotError(f"{path} is not a snapshot: its first line is not '{MAGIC.decode()}{FORMAT}'")
    if int(number) != FORMAT:
        raise SnapshotError(
            f"{path} has format {int(number)}, and this version of pykvm reads format {FORMAT}: "
            "use the version that wrote it, or take the snapshot anew"
        )


def _decode(text: bytes, path: Path) -> dict[str, Json]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its document is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _damaged(path, "its document is not an object")
    return document


def _addresses(runs: object, room: int, path: Path) -> list[Gpa]:
    """Return where the pages belong that follow in ``room`` bytes."""
    addresses: list[Gpa] = []
    end = 0
    for run in runs if isinstance(runs, list) else [None]:
        if not isinstance(run, list) or len(run) != 2 or not all(type(number) is int for number in run):
            raise _damaged(path, "its 'pages' are not runs of an address and a number")
        start, count = run
        if start % PAGE_SIZE or start < end or count < 1 or count > room // PAGE_SIZE or start >= LAST_PAGE:
            raise _damaged(path, f"its 'pages' {start:#x}, {count} are misplaced, or more than the file has")
        end = start + count * PAGE_SIZE
        room -= count * PAGE_SIZE
        addresses += map(Gpa, range(start, end, PAGE_SIZE))
    if room:
        raise _damaged(path, f"it has {abs(room)} bytes that belong to no page")
    return addresses


def _read_pages(file: BinaryIO, addresses: list[Gpa], checksum: str, path: Path) -> dict[Gpa, bytes]:
    digest = hashlib.sha256()
    pages: dict[Gpa, bytes] = {}
    for address in addresses:
        page = file.read(PAGE_SIZE)
        digest.update(page)
        pages[address] = page
    if digest.hexdigest() != checksum:
        raise _damaged(path, "its pages do not fit their checksum")
    return pages


def _damaged(path: Path, how: str) -> SnapshotError:
    return SnapshotError(f"the snapshot {path} is damaged: {how}; take it anew")
