"""A serial port on its own, from both ends."""

from __future__ import annotations

from pykvm.devices.serial import FIFO_SIZE, Fcr, Ier, Lsr, Mcr, Offset
from pykvm.testing import LoneSerial, Wire


def test_what_the_guest_writes_comes_out() -> None:
    serial = LoneSerial()
    for byte in b"Hi":
        serial.write(Offset.THR, bytes((byte,)))
    assert serial.text == "Hi"
    assert serial.sent == b"Hi"


def test_what_is_typed_is_read_byte_by_byte() -> None:
    serial = LoneSerial()
    serial.type(b"ok")
    assert [serial.read(Offset.RBR, 1), serial.read(Offset.RBR, 1)] == [b"o", b"k"]
    assert serial.read(Offset.LSR, 1)[0] & Lsr.DR.value == 0


def test_more_than_the_fifo_holds_is_not_lost() -> None:
    serial = LoneSerial()
    serial.write(Offset.FCR, bytes((Fcr.ENABLE.value,)))
    text = bytes(range(3 * FIFO_SIZE))
    serial.type(text)
    got = bytearray()
    while serial.read(Offset.LSR, 1)[0] & Lsr.DR.value:
        got += serial.read(Offset.RBR, 1)
    assert got == text


def test_typing_raises_the_interrupt_line_if_the_guest_asked_for_it() -> None:
    serial = LoneSerial()
    serial.type(b"a")
    assert not serial.irq.level
    serial.write(Offset.IER, bytes((Ier.ERBFI.value,)))
    serial.write(Offset.MCR, bytes((Mcr.OUT2.value,)))
    assert serial.irq.level
    serial.read(Offset.RBR, 1)
    assert (serial.irq.level, serial.irq.rose) == (False, 1)


def test_a_wire_keeps_every_level_it_was_told_and_counts_those_that_rose() -> None:
    wire = Wire()
    for level in (False, True, True, False, True):
        wire.set_level(level)
    assert wire.levels == [False, True, True, False, True]
    assert (wire.level, wire.rose) == (True, 2)
