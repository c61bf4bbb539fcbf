"""IN and OUT: every size, and string instructions of every length, both directions."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import UnansweredReadError
from pykvm.kvm import Hlt, IoIn, IoOut, ReadExit
from pykvm.units import Gpa

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

DATA = Gpa(0x10000)  # where DS and ES point: see conftest.py
PORT = 0x3F8
SIZES = (1, 2, 4)
COUNTS = (1, 5, 300, 5000)

HLT = b"\xf4"
OUT = {
    1: bytes.fromhex("ee"),  # out %al, (%dx)
    2: bytes.fromhex("ef"),  # out %ax, (%dx)
    4: bytes.fromhex("66 ef"),  # out %eax, (%dx)
}
IN = {
    1: bytes.fromhex("ec"),  # in (%dx), %al
    2: bytes.fromhex("ed"),  # in (%dx), %ax
    4: bytes.fromhex("66 ed"),  # in (%dx), %eax
}
REP_OUTS = {
    1: bytes.fromhex("f3 6e"),  # rep outsb (%si), (%dx)
    2: bytes.fromhex("f3 6f"),  # rep outsw
    4: bytes.fromhex("66 f3 6f"),  # rep outsl
}
REP_INS = {
    1: bytes.fromhex("f3 6c"),  # rep insb (%dx), (%di)
    2: bytes.fromhex("f3 6d"),  # rep insw
    4: bytes.fromhex("66 f3 6d"),  # rep insl
}


def pattern(size: int) -> bytes:
    """Return ``size`` bytes of which no two neighbouring words are equal, whatever the width."""
    return b"".join(struct.pack("<H", n & 0xFFFF) for n in range(0x1234, 0x1234 + (size + 1) // 2))[:size]


@pytest.mark.parametrize("size", SIZES)
def test_out_arrives_with_its_port_size_and_bytes_low_byte_first(guest: RealModeGuest, size: int) -> None:
    guest.load(OUT[size], HLT, rdx=PORT, rax=0x44332211)
    assert guest.run() == [IoOut(PORT, size, 1, bytes([0x11, 0x22, 0x33, 0x44][:size]))]


@pytest.mark.parametrize("size", SIZES)
def test_the_answer_to_in_arrives_low_byte_first_and_leaves_the_rest_of_rax_alone(
    guest: RealModeGuest, size: int
) -> None:
    guest.load(IN[size], HLT, rdx=PORT, rax=0xEEEE_EEEE)
    assert guest.run(lambda exit: b"\x11\x22\x33\x44"[:size]) == [IoIn(PORT, size, 1)]
    assert guest.regs.rax == {1: 0xEEEE_EE11, 2: 0xEEEE_2211, 4: 0x4433_2211}[size]


def test_a_port_may_be_named_by_the_instruction(guest: RealModeGuest) -> None:
    guest.load(bytes.fromhex("e4 60 e6 80 f4"))  # in $0x60, %al; out %al, $0x80; hlt
    assert guest.run(lambda exit: b"Z") == [IoIn(0x60, 1, 1), IoOut(0x80, 1, 1, b"Z")]


@pytest.mark.parametrize("port", [0, 0xFFFF])
def test_the_first_and_the_last_port_are_ports_like_others(guest: RealModeGuest, port: int) -> None:
    guest.load(OUT[1], IN[1], HLT, rdx=port, rax=0x41)
    assert guest.run(lambda exit: b"B") == [IoOut(port, 1, 1, b"A"), IoIn(port, 1, 1)]
    assert guest.regs.rax == 0x42


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_rep_outs_sends_every_byte_in_order(guest: RealModeGuest, size: int, count: int) -> None:
    data = pattern(size * count)
    guest.write(DATA, data)
    guest.load(REP_OUTS[size], HLT, rdx=PORT, rcx=count)
    exits = guest.run()
    assert all(isinstance(exit, IoOut) and (exit.port, exit.size) == (PORT, size) for exit in exits)
    assert all(isinstance(exit, IoOut) and len(exit.data) == exit.size * exit.count for exit in exits)
    assert b"".join(exit.data for exit in exits if isinstance(exit, IoOut)) == data
    assert (guest.regs.rcx, guest.regs.rsi) == (0, size * count)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_rep_ins_takes_every_byte_in_order(guest: RealModeGuest, size: int, count: int) -> None:
    data = pattern(size * count)
    given = 0

    def answer(exit: ReadExit) -> bytes:
        nonlocal given
        assert isinstance(exit, IoIn)
        assert (exit.port, exit.size) == (PORT, size)
        start, given = given, given + exit.size * exit.count
        return data[start:given]

    guest.write(DATA, b"\xcc" * (len(data) + 8))
    guest.load(REP_INS[size], HLT, rdx=PORT, rcx=count)
    guest.run(answer)
    assert given == len(data), "asked for every byte once"
    assert guest.read(DATA, len(data) + 8) == data + b"\xcc" * 8
    assert (guest.regs.rcx, guest.regs.rdi) == (0, size * count)


@pytest.mark.parametrize("size", SIZES)
def test_a_string_instruction_may_run_downwards(guest: RealModeGuest, size: int) -> None:
    guest.write(DATA, pattern(size * 5))
    guest.load(b"\xfd", REP_OUTS[size], HLT, rdx=PORT, rcx=5, rsi=size * 4)  # std
    items = [pattern(size * 5)[n * size : n * size + size] for n in reversed(range(5))]
    assert b"".join(exit.data for exit in guest.run() if isinstance(exit, IoOut)) == b"".join(items)


def test_a_string_instruction_of_no_length_does_nothing(guest: RealModeGuest) -> None:
    guest.load(REP_OUTS[1], REP_INS[1], HLT, rdx=PORT, rcx=0)
    assert guest.run() == []


def test_running_on_without_an_answer_is_an_error_and_the_answer_may_still_come(guest: RealModeGuest) -> None:
    guest.load(IN[1], HLT, rdx=PORT)
    exit = guest.vcpu.run()
    assert isinstance(exit, IoIn)
    for _ in range(2):
        with pytest.raises(UnansweredReadError, match=r"IoIn\(port=1016.* was not answered"):
            guest.vcpu.run()
    with pytest.raises(UnansweredReadError, match="was not answered"):
        guest.vcpu.complete_pending()
    guest.vcpu.complete(exit, b"\x07")
    assert guest.vcpu.run() == Hlt()
    assert guest.regs.rax == 7


@pytest.mark.parametrize("answer", [b"", b"\x01", b"\x01\x02\x03", b"\x01\x02\x03\x04"])
def test_an_answer_of_the_wrong_length_is_refused(guest: RealModeGuest, answer: bytes) -> None:
    guest.load(IN[2], HLT, rdx=PORT)
    exit = guest.vcpu.run()
    assert isinstance(exit, IoIn)
    with pytest.raises(UnansweredReadError, match=f"wants 2 bytes, not {len(answer)}"):
        guest.vcpu.complete(exit, answer)
    guest.vcpu.complete(exit, b"\x01\x02")
    assert guest.run() == []
    assert guest.regs.rax == 0x0201


def test_a_second_answer_is_refused(guest: RealModeGuest) -> None:
    guest.load(IN[1], HLT, rdx=PORT)
    exit = guest.vcpu.run()
    assert isinstance(exit, IoIn)
    guest.vcpu.complete(exit, b"\x01")
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        guest.vcpu.complete(exit, b"\x02")
    assert guest.run() == []
    assert guest.regs.rax == 1


def test_an_answer_to_another_exit_is_refused(guest: RealModeGuest) -> None:
    guest.load(IN[1], HLT, rdx=PORT)
    exit = guest.vcpu.run()
    assert exit == IoIn(PORT, 1, 1)
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        guest.vcpu.complete(IoIn(PORT + 1, 1, 1), b"\x01")


def test_an_answer_that_nobody_waits_for_is_refused(guest: RealModeGuest) -> None:
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        guest.vcpu.complete(IoIn(PORT, 1, 1), b"\x01")
    guest.load(OUT[1], HLT, rdx=PORT)
    assert isinstance(guest.vcpu.run(), IoOut)
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        guest.vcpu.complete(IoIn(PORT, 1, 1), b"\x01")


# ---- what the registers say in the middle ----


@pytest.mark.parametrize("size", SIZES)
def test_complete_pending_finishes_an_in_without_running_further(guest: RealModeGuest, size: int) -> None:
    guest.load(IN[size], b"\x43", HLT, rdx=PORT)  # inc %bx
    exit = guest.vcpu.run()
    assert isinstance(exit, IoIn)
    guest.vcpu.complete(exit, b"\x88\x77\x66\x55"[:size])
    assert guest.vcpu.complete_pending() is None
    regs = guest.regs
    assert regs.rip == 0x8000 + len(IN[size])
    assert regs.rax == {1: 0x88, 2: 0x7788, 4: 0x5566_7788}[size]
    assert regs.rbx == 0, "the next instruction has not run"
    assert guest.vcpu.complete_pending() is None, "asking again changes nothing"
    assert guest.run() == []
    assert guest.regs.rbx == 1


def test_complete_pending_finishes_an_out(guest: RealModeGuest) -> None:
    guest.load(OUT[1], b"\x43", HLT, rdx=PORT)  # inc %bx
    assert isinstance(guest.vcpu.run(), IoOut)
    assert guest.vcpu.complete_pending() is None
    assert (guest.regs.rip, guest.regs.rbx) == (0x8001, 0)
    assert guest.run() == []
    assert guest.regs.rbx == 1


@pytest.mark.parametrize("size", SIZES)
def test_complete_pending_tells_the_truth_in_the_middle_of_rep_ins(guest: RealModeGuest, size: int) -> None:
    count = 5000
    data = pattern(size * count)
    guest.load(REP_INS[size], HLT, rdx=PORT, rcx=count)
    given, exit = 0, guest.vcpu.run()
    while isinstance(exit, IoIn):
        take = exit.size * exit.count
        guest.vcpu.complete(exit, data[given : given + take])
        given += take
        following = guest.vcpu.complete_pending()
        if following is None:
            regs = guest.regs
            assert regs.rdi == given, "DI is behind the last byte that arrived"
            assert regs.rcx == count - given // size
            assert guest.read(DATA, given) == data[:given]
            # With CX = 0 the CPU may or may not have moved on: executing the instruction once more does nothing.
            assert regs.rip == 0x8000 or (regs.rip, regs.rcx) == (0x8000 + len(REP_INS[size]), 0)
            exit = guest.vcpu.run()
        else:
            exit = following
    assert exit == Hlt()
    assert guest.read(DATA, len(data)) == data


@pytest.mark.parametrize("size", SIZES)
def test_rep_outs_completed_one_exit_at_a_time_loses_no_byte(guest: RealModeGuest, size: int) -> None:
    data = pattern(size * 300)
    guest.write(DATA, data)
    guest.load(REP_OUTS[size], HLT, rdx=PORT, rcx=300)
    sent, exit = b"", guest.vcpu.run()
    while isinstance(exit, IoOut):
        sent += exit.data
        exit = guest.vcpu.complete_pending() or guest.vcpu.run()
    assert exit == Hlt()
    assert sent == data


def test_complete_pending_has_nothing_to_do_before_the_first_run(guest: RealModeGuest) -> None:
    before = guest.regs
    assert guest.vcpu.complete_pending() is None
    assert guest.regs == before


def test_complete_pending_after_hlt_does_not_run_the_guest(guest: RealModeGuest) -> None:
    guest.load(HLT, b"\x43", HLT)  # inc %bx
    assert guest.vcpu.run() == Hlt()
    assert guest.vcpu.complete_pending() is None
    assert guest.regs.rbx == 0
