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
def test_out_arrives_with_its_port_size_and_bytes_low_byte_first(bare_guest: RealModeGuest, size: int) -> None:
    bare_guest.load(OUT[size], HLT, rdx=PORT, rax=0x44332211)
    assert bare_guest.run() == [IoOut(PORT, size, 1, bytes([0x11, 0x22, 0x33, 0x44][:size]))]


@pytest.mark.parametrize("size", SIZES)
def test_the_answer_to_in_arrives_low_byte_first_and_leaves_the_rest_of_rax_alone(
    bare_guest: RealModeGuest, size: int
) -> None:
    bare_guest.load(IN[size], HLT, rdx=PORT, rax=0xEEEE_EEEE)
    assert bare_guest.run(lambda exit: b"\x11\x22\x33\x44"[:size]) == [IoIn(PORT, size, 1)]
    assert bare_guest.regs.rax == {1: 0xEEEE_EE11, 2: 0xEEEE_2211, 4: 0x4433_2211}[size]


def test_a_port_may_be_named_by_the_instruction(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("e4 60 e6 80 f4"))  # in $0x60, %al; out %al, $0x80; hlt
    assert bare_guest.run(lambda exit: b"Z") == [IoIn(0x60, 1, 1), IoOut(0x80, 1, 1, b"Z")]


@pytest.mark.parametrize("port", [0, 0xFFFF])
def test_the_first_and_the_last_port_are_ports_like_others(bare_guest: RealModeGuest, port: int) -> None:
    bare_guest.load(OUT[1], IN[1], HLT, rdx=port, rax=0x41)
    assert bare_guest.run(lambda exit: b"B") == [IoOut(port, 1, 1, b"A"), IoIn(port, 1, 1)]
    assert bare_guest.regs.rax == 0x42


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_rep_outs_sends_every_byte_in_order(bare_guest: RealModeGuest, size: int, count: int) -> None:
    data = pattern(size * count)
    bare_guest.write(DATA, data)
    bare_guest.load(REP_OUTS[size], HLT, rdx=PORT, rcx=count)
    exits = bare_guest.run()
    assert all(isinstance(exit, IoOut) and (exit.port, exit.size) == (PORT, size) for exit in exits)
    assert all(isinstance(exit, IoOut) and len(exit.data) == exit.size * exit.count for exit in exits)
    assert b"".join(exit.data for exit in exits if isinstance(exit, IoOut)) == data
    assert (bare_guest.regs.rcx, bare_guest.regs.rsi) == (0, size * count)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_rep_ins_takes_every_byte_in_order(bare_guest: RealModeGuest, size: int, count: int) -> None:
    data = pattern(size * count)
    given = 0

    def answer(exit: ReadExit) -> bytes:
        nonlocal given
        assert isinstance(exit, IoIn)
        assert (exit.port, exit.size) == (PORT, size)
        start, given = given, given + exit.size * exit.count
        return data[start:given]

    bare_guest.write(DATA, b"\xcc" * (len(data) + 8))
    bare_guest.load(REP_INS[size], HLT, rdx=PORT, rcx=count)
    bare_guest.run(answer)
    assert given == len(data), "asked for every byte once"
    assert bare_guest.read(DATA, len(data) + 8) == data + b"\xcc" * 8
    assert (bare_guest.regs.rcx, bare_guest.regs.rdi) == (0, size * count)


@pytest.mark.parametrize("size", SIZES)
def test_a_string_instruction_may_run_downwards(bare_guest: RealModeGuest, size: int) -> None:
    bare_guest.write(DATA, pattern(size * 5))
    bare_guest.load(b"\xfd", REP_OUTS[size], HLT, rdx=PORT, rcx=5, rsi=size * 4)  # std
    items = [pattern(size * 5)[n * size : n * size + size] for n in reversed(range(5))]
    assert b"".join(exit.data for exit in bare_guest.run() if isinstance(exit, IoOut)) == b"".join(items)


def test_a_string_instruction_of_no_length_does_nothing(bare_guest: RealModeGuest) -> None:
    bare_guest.load(REP_OUTS[1], REP_INS[1], HLT, rdx=PORT, rcx=0)
    assert bare_guest.run() == []


def test_running_on_without_an_answer_is_an_error_and_the_answer_may_still_come(bare_guest: RealModeGuest) -> None:
    bare_guest.load(IN[1], HLT, rdx=PORT)
    exit = bare_guest.vcpu.run()
    assert isinstance(exit, IoIn)
    for _ in range(2):
        with pytest.raises(UnansweredReadError, match=r"IoIn\(port=1016.* was not answered"):
            bare_guest.vcpu.run()
    with pytest.raises(UnansweredReadError, match="was not answered"):
        bare_guest.vcpu.complete_pending()
    bare_guest.vcpu.complete(exit, b"\x07")
    assert bare_guest.vcpu.run() == Hlt()
    assert bare_guest.regs.rax == 7


@pytest.mark.parametrize("answer", [b"", b"\x01", b"\x01\x02\x03", b"\x01\x02\x03\x04"])
def test_an_answer_of_the_wrong_length_is_refused(bare_guest: RealModeGuest, answer: bytes) -> None:
    bare_guest.load(IN[2], HLT, rdx=PORT)
    exit = bare_guest.vcpu.run()
    assert isinstance(exit, IoIn)
    with pytest.raises(UnansweredReadError, match=f"wants 2 bytes, not {len(answer)}"):
        bare_guest.vcpu.complete(exit, answer)
    bare_guest.vcpu.complete(exit, b"\x01\x02")
    assert bare_guest.run() == []
    assert bare_guest.regs.rax == 0x0201


def test_a_second_answer_is_refused(bare_guest: RealModeGuest) -> None:
    bare_guest.load(IN[1], HLT, rdx=PORT)
    exit = bare_guest.vcpu.run()
    assert isinstance(exit, IoIn)
    bare_guest.vcpu.complete(exit, b"\x01")
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        bare_guest.vcpu.complete(exit, b"\x02")
    assert bare_guest.run() == []
    assert bare_guest.regs.rax == 1


def test_an_answer_to_another_exit_is_refused(bare_guest: RealModeGuest) -> None:
    bare_guest.load(IN[1], HLT, rdx=PORT)
    exit = bare_guest.vcpu.run()
    assert exit == IoIn(PORT, 1, 1)
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        bare_guest.vcpu.complete(IoIn(PORT + 1, 1, 1), b"\x01")


def test_an_answer_that_nobody_waits_for_is_refused(bare_guest: RealModeGuest) -> None:
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        bare_guest.vcpu.complete(IoIn(PORT, 1, 1), b"\x01")
    bare_guest.load(OUT[1], HLT, rdx=PORT)
    assert isinstance(bare_guest.vcpu.run(), IoOut)
    with pytest.raises(UnansweredReadError, match="is not waiting for an answer"):
        bare_guest.vcpu.complete(IoIn(PORT, 1, 1), b"\x01")


# ---- what the registers say in the middle ----


@pytest.mark.parametrize("size", SIZES)
def test_complete_pending_finishes_an_in_without_running_further(bare_guest: RealModeGuest, size: int) -> None:
    bare_guest.load(IN[size], b"\x43", HLT, rdx=PORT)  # inc %bx
    exit = bare_guest.vcpu.run()
    assert isinstance(exit, IoIn)
    bare_guest.vcpu.complete(exit, b"\x88\x77\x66\x55"[:size])
    assert bare_guest.vcpu.complete_pending() is None
    regs = bare_guest.regs
    assert regs.rip == 0x8000 + len(IN[size])
    assert regs.rax == {1: 0x88, 2: 0x7788, 4: 0x5566_7788}[size]
    assert regs.rbx == 0, "the next instruction has not run"
    assert bare_guest.vcpu.complete_pending() is None, "asking again changes nothing"
    assert bare_guest.run() == []
    assert bare_guest.regs.rbx == 1


def test_complete_pending_finishes_an_out(bare_guest: RealModeGuest) -> None:
    bare_guest.load(OUT[1], b"\x43", HLT, rdx=PORT)  # inc %bx
    assert isinstance(bare_guest.vcpu.run(), IoOut)
    assert bare_guest.vcpu.complete_pending() is None
    assert (bare_guest.regs.rip, bare_guest.regs.rbx) == (0x8001, 0)
    assert bare_guest.run() == []
    assert bare_guest.regs.rbx == 1


@pytest.mark.parametrize("size", SIZES)
def test_complete_pending_tells_the_truth_in_the_middle_of_rep_ins(bare_guest: RealModeGuest, size: int) -> None:
    count = 5000
    data = pattern(size * count)
    bare_guest.load(REP_INS[size], HLT, rdx=PORT, rcx=count)
    given, exit = 0, bare_guest.vcpu.run()
    while isinstance(exit, IoIn):
        take = exit.size * exit.count
        bare_guest.vcpu.complete(exit, data[given : given + take])
        given += take
        following = bare_guest.vcpu.complete_pending()
        if following is None:
            regs = bare_guest.regs
            assert regs.rdi == given, "DI is behind the last byte that arrived"
            assert regs.rcx == count - given // size
            assert bare_guest.read(DATA, given) == data[:given]
            # With CX = 0 the CPU may or may not have moved on: executing the instruction once more does nothing.
            assert regs.rip == 0x8000 or (regs.rip, regs.rcx) == (0x8000 + len(REP_INS[size]), 0)
            exit = bare_guest.vcpu.run()
        else:
            exit = following
    assert exit == Hlt()
    assert bare_guest.read(DATA, len(data)) == data


@pytest.mark.parametrize("size", SIZES)
def test_rep_outs_completed_one_exit_at_a_time_loses_no_byte(bare_guest: RealModeGuest, size: int) -> None:
    data = pattern(size * 300)
    bare_guest.write(DATA, data)
    bare_guest.load(REP_OUTS[size], HLT, rdx=PORT, rcx=300)
    sent, exit = b"", bare_guest.vcpu.run()
    while isinstance(exit, IoOut):
        sent += exit.data
        exit = bare_guest.vcpu.complete_pending() or bare_guest.vcpu.run()
    assert exit == Hlt()
    assert sent == data


def test_complete_pending_has_nothing_to_do_before_the_first_run(bare_guest: RealModeGuest) -> None:
    before = bare_guest.regs
    assert bare_guest.vcpu.complete_pending() is None
    assert bare_guest.regs == before


def test_complete_pending_after_hlt_does_not_run_the_guest(bare_guest: RealModeGuest) -> None:
    bare_guest.load(HLT, b"\x43", HLT)  # inc %bx
    assert bare_guest.vcpu.run() == Hlt()
    assert bare_guest.vcpu.complete_pending() is None
    assert bare_guest.regs.rbx == 0
