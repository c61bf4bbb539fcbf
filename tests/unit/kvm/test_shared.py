"""Mapping what a descriptor shares, here a file's pages."""

from __future__ import annotations

import os

import pytest

from pykvm._shim import ffi
from pykvm.errors import KvmError
from pykvm.kvm.shared import SharedPages
from pykvm.units import PAGE_SIZE


def test_pages_are_shared_until_they_are_closed() -> None:
    fd = os.memfd_create("shared", os.MFD_CLOEXEC)
    os.pwrite(fd, b"second page", PAGE_SIZE)
    os.ftruncate(fd, 2 * PAGE_SIZE)
    pages = SharedPages(fd, 1, PAGE_SIZE)
    view = ffi.buffer(ffi.cast("uint8_t *", pages.start), PAGE_SIZE)
    assert bytes(view[:11]) == b"second page"
    view[0:1] = b"S"
    assert os.pread(fd, 1, PAGE_SIZE) == b"S"
    os.close(fd)
    assert bytes(view[:6]) == b"Second", "the mapping holds the file"
    pages.close()
    pages.close()
    assert pages.closed


def test_what_cannot_be_mapped_is_explained() -> None:
    with pytest.raises(KvmError, match=r"mmap\(fd=-1, page=64, size=0x1000\): EBADF"):
        SharedPages(-1, 64, PAGE_SIZE)
