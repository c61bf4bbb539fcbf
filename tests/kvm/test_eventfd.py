"""ioeventfd: a guest's write signals a descriptor, without an exit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm import IoOut, MmioWrite
from pykvm.units import Gpa

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

HOLE = Gpa(0x20000)  # where FS points: see conftest.py
HLT = b"\xf4"
OUT_AL = bytes.fromhex("b0 07 e6 80")  # mov $7, %al; out %al, $0x80
OUT_AX = bytes.fromhex("b8 07 00 e7 80")  # mov $7, %ax; out %ax, $0x80
OUT_9 = bytes.fromhex("b0 09 e6 80")  # mov $9, %al; out %al, $0x80
STORE = bytes.fromhex("b0 07 64 88 04")  # mov $7, %al; mov %al, %fs:(%si)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_a_port_write_signals_and_does_not_exit(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True)
    bare_guest.load(OUT_AL, OUT_9, HLT)
    assert bare_guest.run() == []
    assert os.eventfd_read(eventfd) == 2


def test_a_write_of_another_size_is_an_exit(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True)
    bare_guest.load(OUT_AX, OUT_AL, HLT)
    assert bare_guest.run() == [IoOut(0x80, 2, 1, b"\x07\x00")]
    assert os.eventfd_read(eventfd) == 1


def test_size_0_means_any_size(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(0x80, 0, eventfd, pio=True)
    bare_guest.load(OUT_AX, OUT_AL, HLT)
    assert bare_guest.run() == []
    assert os.eventfd_read(eventfd) == 2


def test_only_the_matching_value_signals(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True, datamatch=7)
    bare_guest.load(OUT_9, OUT_AL, HLT)
    assert bare_guest.run() == [IoOut(0x80, 1, 1, b"\x09")]
    assert os.eventfd_read(eventfd) == 1


def test_each_value_may_have_its_own_descriptor(bare_guest: RealModeGuest, eventfd: int) -> None:
    other = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True, datamatch=7)
    bare_guest.vm.ioeventfd(0x80, 1, other, pio=True, datamatch=9)
    bare_guest.load(OUT_9, OUT_AL, OUT_9, HLT)
    assert bare_guest.run() == []
    assert (os.eventfd_read(eventfd), os.eventfd_read(other)) == (1, 2)
    os.close(other)


def test_a_memory_write_signals_and_does_not_exit(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(HOLE + 0x10, 1, eventfd)
    bare_guest.load(STORE, HLT, rsi=0x10)
    assert bare_guest.run() == []
    assert os.eventfd_read(eventfd) == 1
    bare_guest.load(STORE, HLT, rsi=0x11)
    assert bare_guest.run() == [MmioWrite(Gpa(HOLE + 0x11), b"\x07")]


def test_a_memory_write_may_be_matched_too(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(HOLE, 1, eventfd, datamatch=8)
    bare_guest.load(STORE, HLT)
    assert bare_guest.run() == [MmioWrite(HOLE, b"\x07")]
    bare_guest.vm.ioeventfd(HOLE, 1, eventfd, datamatch=7)
    bare_guest.load(STORE, HLT)
    assert bare_guest.run() == []
    assert os.eventfd_read(eventfd) == 1


def test_a_deassigned_address_exits_again(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True, datamatch=7)
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True, datamatch=7, deassign=True)
    bare_guest.load(OUT_AL, HLT)
    assert bare_guest.run() == [IoOut(0x80, 1, 1, b"\x07")]


def test_an_address_that_is_taken_is_explained(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True)
    with pytest.raises(KvmError, match=r"KVM_IOEVENTFD\(address=0x80, .*EEXIST: another ioeventfd watches the same"):
        bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True)


def test_ending_what_never_began_is_explained(bare_guest: RealModeGuest, eventfd: int) -> None:
    bare_guest.vm.ioeventfd(0x80, 1, eventfd, pio=True)
    with pytest.raises(KvmError, match="ENOENT: no ioeventfd watches that"):
        bare_guest.vm.ioeventfd(0x80, 1, eventfd, deassign=True)


def test_what_is_no_eventfd_is_explained(bare_guest: RealModeGuest) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(KvmError, match="EINVAL: fd is no eventfd"):
        bare_guest.vm.ioeventfd(0x80, 1, null, pio=True)
    os.close(null)
    with pytest.raises(KvmError, match="EBADF"):
        bare_guest.vm.ioeventfd(0x80, 1, 1 << 20, pio=True)


@pytest.mark.parametrize("size", [-1, 3, 16])
def test_a_size_no_write_has_is_refused(bare_guest: RealModeGuest, eventfd: int, size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"watches writes of 1, 2, 4 or 8 bytes, or 0 for any, not {size}"):
        bare_guest.vm.ioeventfd(0x80, size, eventfd, pio=True)


@pytest.mark.parametrize(("size", "datamatch"), [(1, 256), (2, -1), (8, 1 << 64)])
def test_a_value_no_write_of_that_size_has_is_refused(
    bare_guest: RealModeGuest, eventfd: int, size: int, datamatch: int
) -> None:
    with pytest.raises(ConfigurationError, match=f"a write of {size} bytes never has the value {datamatch:#x}"):
        bare_guest.vm.ioeventfd(0x80, size, eventfd, pio=True, datamatch=datamatch)


def test_a_value_without_a_size_is_refused(bare_guest: RealModeGuest, eventfd: int) -> None:
    with pytest.raises(ConfigurationError, match="a datamatch needs a size"):
        bare_guest.vm.ioeventfd(0x80, 0, eventfd, pio=True, datamatch=0)


@pytest.mark.parametrize(("address", "fd"), [(-1, 0), (1 << 64, 0), (0, 1 << 31)])
def test_a_number_that_does_not_fit_is_refused(bare_guest: RealModeGuest, address: int, fd: int) -> None:
    with pytest.raises(ConfigurationError, match=r"KVM_IOEVENTFD: .*fit"):
        bare_guest.vm.ioeventfd(address, 1, fd)
