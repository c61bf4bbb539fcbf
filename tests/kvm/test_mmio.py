"""Accesses where no memory is, or memory that may not be written: sizes 1 to 8, and accesses across the border."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import UnansweredReadError
from pykvm.kvm import (
    Exit,
    Hlt,
    InternalError,
    InternalErrorSuberror,
    IoIn,
    MmioRead,
    MmioWrite,
    ReadExit,
    Shutdown,
)
from pykvm.units import Gpa

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

HOLE = Gpa(0x20000)  # where RAM ends, and FS points: see conftest.py
HLT = b"\xf4"

# At FS:SI, which is the hole; %fs is the prefix 64.
LOAD = {
    1: bytes.fromhex("64 8a 04"),  # mov %fs:(%si), %al
    2: bytes.fromhex("64 8b 04"),  # mov %fs:(%si), %ax
    4: bytes.fromhex("66 64 8b 04"),  # mov %fs:(%si), %eax
}
STORE = {
    1: bytes.fromhex("64 88 04"),  # mov %al, %fs:(%si)
    2: bytes.fromhex("64 89 04"),  # mov %ax, %fs:(%si)
    4: bytes.fromhex("66 64 89 04"),  # mov %eax, %fs:(%si)
}

# In long mode, at (%rdi).
LOAD_8 = bytes.fromhex("48 8b 07")  # mov (%rdi), %rax
STORE_8 = bytes.fromhex("48 89 07")  # mov %rax, (%rdi)


def enter_long_mode(guest: RealModeGuest) -> None:
    """Put the vCPU into 64-bit mode, the first GiB mapped to itself by pages of 2 MiB."""
    present_writable, page_2m = 0b11, 1 << 7
    guest.write(0x1000, struct.pack("<Q", 0x2000 | present_writable))  # PML4[0]
    guest.write(0x2000, struct.pack("<Q", 0x3000 | present_writable))  # PDPT[0]
    guest.write(0x3000, struct.pack("<512Q", *(n << 21 | page_2m | present_writable for n in range(512))))  # PD
    sregs = guest.vcpu.get_sregs()
    sregs.cr3 = 0x1000
    sregs.cr4 |= 1 << 5  # PAE
    sregs.cr0 |= 1 << 31 | 1  # PG, PE
    sregs.efer |= 1 << 10 | 1 << 8  # LMA, LME
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.base, segment.limit, segment.g, segment.selector = 0, 0xFFFF_FFFF, 1, 0x10
        segment.s = segment.present = 1
        segment.type, segment.db, segment.l = 3, 1, 0  # data, read-write
    sregs.cs.type, sregs.cs.db, sregs.cs.l, sregs.cs.selector = 11, 0, 1, 8  # 64-bit code
    sregs.tr.type, sregs.tr.present, sregs.tr.s = 11, 1, 0  # a busy TSS, which 64-bit mode insists on
    guest.vcpu.set_sregs(sregs)


class Device:
    """Bytes in the hole, and what was done to them."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.base = HOLE

    def answer(self, exit: ReadExit) -> bytes:
        assert isinstance(exit, MmioRead)
        start = exit.address - self.base
        return bytes(self.content[start : start + exit.size])

    def take(self, exits: list[Exit]) -> bytes:
        for exit in exits:
            assert isinstance(exit, MmioWrite)
            start = exit.address - self.base
            self.content[start : start + exit.size] = exit.data
        return bytes(self.content)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("offset", [0, 3, 0x1000])
def test_a_write_arrives_with_its_address_and_bytes_low_byte_first(
    bare_guest: RealModeGuest, size: int, offset: int
) -> None:
    bare_guest.load(STORE[size], HLT, rsi=offset, rax=0x44332211)
    assert bare_guest.run() == [MmioWrite(Gpa(HOLE + offset), bytes([0x11, 0x22, 0x33, 0x44][:size]))]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("offset", [0, 3, 0x1000])
def test_the_answer_to_a_read_arrives_low_byte_first(bare_guest: RealModeGuest, size: int, offset: int) -> None:
    bare_guest.load(LOAD[size], HLT, rsi=offset, rax=0xEEEE_EEEE)
    assert bare_guest.run(lambda exit: b"\x11\x22\x33\x44"[:size]) == [MmioRead(Gpa(HOLE + offset), size)]
    assert bare_guest.regs.rax == {1: 0xEEEE_EE11, 2: 0xEEEE_2211, 4: 0x4433_2211}[size]


def test_eight_bytes_are_written_at_once(bare_guest: RealModeGuest) -> None:
    enter_long_mode(bare_guest)
    bare_guest.load(STORE_8, HLT, rdi=0x30_0008, rax=0x8877_6655_4433_2211)
    assert bare_guest.run() == [MmioWrite(Gpa(0x30_0008), bytes.fromhex("1122334455667788"))]


def test_eight_bytes_are_read_at_once(bare_guest: RealModeGuest) -> None:
    enter_long_mode(bare_guest)
    bare_guest.load(LOAD_8, HLT, rdi=0x30_0008)
    assert bare_guest.run(lambda exit: bytes.fromhex("1122334455667788")) == [MmioRead(Gpa(0x30_0008), 8)]
    assert bare_guest.regs.rax == 0x8877_6655_4433_2211


@pytest.mark.parametrize("inside", range(1, 8))
def test_a_read_across_the_end_of_ram_takes_each_byte_from_where_it_is(bare_guest: RealModeGuest, inside: int) -> None:
    enter_long_mode(bare_guest)
    bare_guest.write(HOLE - 8, b"ABCDEFGH")
    bare_guest.load(LOAD_8, HLT, rdi=HOLE - inside)
    device = Device(b"abcdefgh")
    exits = bare_guest.run(device.answer)
    assert all(isinstance(exit, MmioRead) and exit.address >= HOLE for exit in exits)
    assert bare_guest.regs.rax.to_bytes(8, "little") == b"ABCDEFGH"[8 - inside :] + b"abcdefgh"[: 8 - inside]


@pytest.mark.parametrize("inside", range(1, 8))
def test_a_write_across_the_end_of_ram_puts_each_byte_where_it_belongs(bare_guest: RealModeGuest, inside: int) -> None:
    enter_long_mode(bare_guest)
    bare_guest.write(HOLE - 8, b"........")
    bare_guest.load(STORE_8, HLT, rdi=HOLE - inside, rax=int.from_bytes(b"ABCDEFGH", "little"))
    device = Device(b"........")
    after = device.take(bare_guest.run())
    assert bare_guest.read(HOLE - 8, 8) + after == b"." * (8 - inside) + b"ABCDEFGH" + b"." * inside


def test_complete_pending_finishes_a_read_without_running_further(bare_guest: RealModeGuest) -> None:
    bare_guest.load(LOAD[4], b"\x43", HLT)  # inc %bx
    exit = bare_guest.vcpu.run()
    assert isinstance(exit, MmioRead)
    bare_guest.vcpu.complete(exit, b"\x88\x77\x66\x55")
    assert bare_guest.vcpu.complete_pending() is None
    assert (bare_guest.regs.rip, bare_guest.regs.rax, bare_guest.regs.rbx) == (0x8000 + len(LOAD[4]), 0x5566_7788, 0)
    assert bare_guest.run() == []
    assert bare_guest.regs.rbx == 1


@pytest.mark.parametrize("inside", range(1, 8))
def test_complete_pending_finishes_a_read_across_the_end_of_ram(bare_guest: RealModeGuest, inside: int) -> None:
    enter_long_mode(bare_guest)
    bare_guest.write(HOLE - 8, b"ABCDEFGH")
    bare_guest.load(LOAD_8, HLT, rdi=HOLE - inside)
    device = Device(b"abcdefgh")
    exit: Exit | None = bare_guest.vcpu.run()
    while exit is not None:  # one exit for each part that the kernel splits the access into
        assert isinstance(exit, MmioRead)
        bare_guest.vcpu.complete(exit, device.answer(exit))
        exit = bare_guest.vcpu.complete_pending()
    assert bare_guest.regs.rip == 0x8000 + len(LOAD_8)
    assert bare_guest.regs.rax.to_bytes(8, "little") == b"ABCDEFGH"[8 - inside :] + b"abcdefgh"[: 8 - inside]


def test_an_access_across_two_pages_of_the_hole_is_finished_part_by_part(bare_guest: RealModeGuest) -> None:
    enter_long_mode(bare_guest)
    bare_guest.load(LOAD_8, STORE_8, HLT, rdi=0x30_0FFD)
    device = Device(b"abcdefgh")
    device.base = Gpa(0x30_0FFD)
    read: list[Exit] = []
    exit: Exit | None = bare_guest.vcpu.run()
    while isinstance(exit, MmioRead):
        read.append(exit)
        bare_guest.vcpu.complete(exit, device.answer(exit))
        exit = bare_guest.vcpu.complete_pending()
    assert exit is None
    assert bare_guest.regs.rax.to_bytes(8, "little") == b"abcdefgh"
    assert sum(exit.size for exit in read if isinstance(exit, MmioRead)) == 8
    device.content[:] = bytes(8)
    assert device.take(bare_guest.run()) == b"abcdefgh"


def test_an_unanswered_read_is_an_error_and_the_answer_may_still_come(bare_guest: RealModeGuest) -> None:
    bare_guest.load(LOAD[2], HLT)
    exit = bare_guest.vcpu.run()
    assert isinstance(exit, MmioRead)
    for use in (bare_guest.vcpu.run, bare_guest.vcpu.complete_pending):
        with pytest.raises(UnansweredReadError, match="was not answered"):
            use()
    with pytest.raises(UnansweredReadError, match="wants 2 bytes, not 1"):
        bare_guest.vcpu.complete(exit, b"\0")
    with pytest.raises(UnansweredReadError, match="is not waiting"):
        bare_guest.vcpu.complete(IoIn(0, 2), b"\0\0")
    bare_guest.vcpu.complete(exit, b"\x34\x12")
    assert bare_guest.vcpu.run() == Hlt()
    assert bare_guest.regs.rax == 0x1234


def test_a_read_modify_write_is_a_read_and_then_a_write(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("64 fe 04"), HLT)  # incb %fs:(%si)
    assert bare_guest.run(lambda exit: b"\x41") == [MmioRead(HOLE, 1), MmioWrite(HOLE, b"\x42")]


def test_a_string_move_into_the_hole_loses_no_byte(bare_guest: RealModeGuest) -> None:
    sregs = bare_guest.vcpu.get_sregs()
    sregs.es.base, sregs.es.selector = HOLE, HOLE >> 4
    bare_guest.vcpu.set_sregs(sregs)
    bare_guest.write(0x10000, bytes(range(100)))
    bare_guest.load(bytes.fromhex("f3 a4"), HLT, rcx=100)  # rep movsb
    assert Device(bytes(100)).take(bare_guest.run()) == bytes(range(100))


def test_a_string_move_out_of_the_hole_loses_no_byte(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("64 f3 a4"), HLT, rcx=100)  # rep movsb %fs:(%si), %es:(%di)
    bare_guest.run(Device(bytes(range(100))).answer)
    assert bare_guest.read(0x10000, 100) == bytes(range(100))


def test_code_cannot_be_fetched_from_the_hole(bare_guest: RealModeGuest) -> None:
    sregs = bare_guest.vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = HOLE, HOLE >> 4
    bare_guest.vcpu.set_sregs(sregs)
    bare_guest.load(HLT, rip=0x100)
    exit = bare_guest.vcpu.run()
    assert isinstance(exit, InternalError)
    assert exit.suberror == InternalErrorSuberror.EMULATION


def test_an_exception_that_nothing_can_handle_is_a_shutdown(bare_guest: RealModeGuest) -> None:
    enter_long_mode(bare_guest)
    sregs = bare_guest.vcpu.get_sregs()
    sregs.idt.limit = 0
    bare_guest.vcpu.set_sregs(sregs)
    bare_guest.load(bytes.fromhex("0f 0b"))  # ud2
    assert bare_guest.vcpu.run() == Shutdown()
