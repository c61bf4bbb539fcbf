"""pykvm.devices.debugcon: the port that prints."""

from __future__ import annotations

from pykvm.devices import Bus, DebugConsole, debugcon
from pykvm.testing import DeviceBench


def plugged_in() -> tuple[Bus, list[bytes]]:
    printed: list[bytes] = []
    return DeviceBench(pio={debugcon.PORT: (DebugConsole(printed.append), 1)}).pio, printed


def test_each_byte_written_is_printed_as_it_comes() -> None:
    bus, printed = plugged_in()
    for byte in (b"o", b"k", b"\x00", b"\xff"):
        bus.write(0xE9, byte)
    assert printed == [b"o", b"k", b"\x00", b"\xff"]


def test_reading_gives_0xe9_by_which_a_guest_finds_it() -> None:
    bus, printed = plugged_in()
    assert bus.read(0xE9, 1) == b"\xe9"
    assert printed == []


def test_it_answers_0xe9_at_another_port_too() -> None:
    bench = DeviceBench(pio={0x402: (DebugConsole(print), 1)})
    assert bench.pio.read(0x402, 1) == b"\xe9"


def test_of_a_word_only_the_low_byte_is_printed_for_the_high_one_goes_to_the_next_port() -> None:
    bus, printed = plugged_in()
    bus.write(0xE9, b"ab")
    assert printed == [b"a"]
    assert bus.read(0xE9, 2) == b"\xe9\xff"
