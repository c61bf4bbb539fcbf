from __future__ import annotations

import pytest

from pykvm.observe.gdbstub import HostFile

DATA = bytes(range(256)) * 40


@pytest.fixture
def file() -> HostFile:
    return HostFile("09-hello", DATA)


def test_gdb_reads_the_file_piece_by_piece(file: HostFile) -> None:
    assert file.name == b"/09-hello"
    assert file.handle(b"setfs:0", 100) == b"F0"
    assert file.handle(b"open:" + file.name.hex().encode() + b",0,1c0", 100) == b"F3"
    read = b""
    while piece := file.handle(b"pread:3,1000,%x" % len(read), 1000).partition(b";")[2]:
        assert len(piece) <= 1000
        read += piece
    assert read == DATA
    assert file.handle(b"close:3", 100) == b"F0"


def test_its_status_says_how_long_it_is(file: HostFile) -> None:
    head, _, status = file.handle(b"fstat:3", 100).partition(b";")
    assert (head, len(status)) == (b"F40", 64)
    assert int.from_bytes(status[28:36], "big") == len(DATA)


@pytest.mark.parametrize("name", [b"/etc/passwd", b"", b"09-hello", b"/09-hello/../x"])
def test_there_is_no_other_file(name: bytes, file: HostFile) -> None:
    assert file.handle(b"open:" + name.hex().encode() + b",0,0", 100) == b"F-1,2"


def test_it_is_not_opened_for_writing(file: HostFile) -> None:
    assert file.handle(b"open:" + file.name.hex().encode() + b",601,1c0", 100) == b"F-1,d"


@pytest.mark.parametrize("operation", [b"pread:4,1,0", b"fstat:4", b"close:4"])
def test_there_is_one_descriptor(operation: bytes, file: HostFile) -> None:
    assert file.handle(operation, 100) == b"F-1,9"


@pytest.mark.parametrize("operation", [b"unlink:2f", b"pwrite:3,0,x", b"readlink:2f", b"", b"x"])
def test_nothing_else_can_be_done(operation: bytes, file: HostFile) -> None:
    assert file.handle(operation, 100) == b""


@pytest.mark.parametrize("operation", [b"open:", b"open:2f,0", b"open:2,0,0", b"pread:3", b"pread:3,-1,0", b"fstat:x"])
def test_what_is_malformed_is_refused(operation: bytes, file: HostFile) -> None:
    with pytest.raises(ValueError, match=r"number|hexadecimal|values to unpack"):
        file.handle(operation, 100)


def test_a_guest_without_an_elf_file_has_none() -> None:
    none = HostFile("boot.bin", b"")
    assert none.name == b""
    assert none.handle(b"open:,0,0", 100) == b"F-1,2"
    assert none.handle(b"pread:3,1,0", 100) == none.handle(b"fstat:3", 100) == b"F-1,9"
