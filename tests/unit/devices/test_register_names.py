"""Every device of the board names its registers, whatever is asked, and asking changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import (
    I8042,
    Bus,
    Disconnected,
    Keyboard,
    ManualClock,
    Range,
    Rtc,
    Serial,
    Vga,
    hpet,
    ioapic,
    pic,
    serial,
    vga,
)
from pykvm.devices.device import NamedRegisters
from pykvm.machine.journal import NO_MACHINE, Setup
from pykvm.observe import Workbench
from pykvm.observe.recording import Header
from pykvm.units import KiB

LONGEST_RANGE = 0x400  # the two that are longer are memory: their offsets say no more


@contextlib.contextmanager
def workbench(irqchip: str) -> Iterator[Workbench]:
    """Make a board with everything on it."""
    setup = Setup(1, ((0, 640 * KiB, False),), irqchip, ("testdev", "doorbell"), NO_MACHINE.start)
    with Workbench.open("a test", Header("", setup), lambda data: None, with_board=True) as bench:
        yield bench


def ranges(bench: Workbench) -> list[Range]:
    return [*bench.pio.ranges, *bench.mmio.ranges]


def names(place: Range) -> list[str]:
    device = cast("NamedRegisters", place.device)
    return [
        device.register_name(offset, w) for offset in range(min(place.length, LONGEST_RANGE)) for w in (False, True)
    ]


@pytest.mark.parametrize("irqchip", ["user", "split"])
def test_every_device_of_the_board_has_names_for_all_its_offsets(irqchip: str) -> None:
    with workbench(irqchip) as bench:
        for place in ranges(bench):
            assert all(isinstance(name, str) and name.isprintable() for name in names(place)), place


@given(st.data())
def test_asking_for_names_changes_nothing_whatever_was_written_before(data: st.DataObject) -> None:
    with workbench(data.draw(st.sampled_from(["user", "split"]))) as bench:
        places = ranges(bench)
        for _ in range(data.draw(st.integers(0, 6))):
            place = data.draw(st.sampled_from(places))
            value = data.draw(st.sampled_from([0, 0x10, 0x11, 0x36, 0x83, 0xFF]))
            place.device.write(data.draw(st.integers(0, min(place.length, 64) - 1)), bytes([value]))
        assert bench.board is not None
        before = {name: device.save() for name, device in bench.board.devices().items()}
        for place in places:
            names(place)
        assert {name: device.save() for name, device in bench.board.devices().items()} == before


def test_dlab_shows_the_divisor_latch_in_the_names_too() -> None:
    port = Serial(lambda data: None)
    assert [port.register_name(n, False) for n in range(8)] == ["RBR", "IER", "IIR", "LCR", "MCR", "LSR", "MSR", "SCR"]
    assert [port.register_name(n, True) for n in (0, 2)] == ["THR", "FCR"]
    port.write(serial.Offset.LCR, bytes([serial.Lcr.DLAB.value]))
    assert [port.register_name(n, True) for n in range(3)] == ["DLL", "DLM", "FCR"]


def test_the_names_of_a_pic_follow_its_initialisation() -> None:
    chip = pic.PicPair(lambda level: None).master
    assert [chip.register_name(n, w) for n in (0, 1) for w in (True, False)] == ["command", "IRR", "OCW1", "IMR"]
    chip.write(0, bytes([0x11]))
    seen = []
    for value in (0x20, 0x04, 0x01, 0xFF):
        seen.append(chip.register_name(1, True))
        chip.write(1, bytes([value]))
    assert seen == ["ICW2", "ICW3", "ICW4", "OCW1"]
    chip.write(0, b"\x0b")  # OCW3: read ISR
    assert chip.register_name(0, False) == "ISR"


def test_the_clock_names_the_register_that_its_index_selects() -> None:
    clock = Rtc(ManualClock(), Disconnected(), NO_MACHINE.start, {})
    seen = {}
    for index in (0, 5, 0x0A, 0x32, 0x15):
        clock.write(0, bytes([index]))
        seen[index] = clock.register_name(1, False)
    assert seen == {0: "seconds", 5: "hours alarm", 0x0A: "register A", 0x32: "century", 0x15: "CMOS 0x15"}
    assert clock.register_name(0, True) == "index"


def test_the_screen_names_the_register_behind_an_index() -> None:
    screen = Vga(lambda offset, size: bytes(size))
    screen.write(vga.Offset.CRTC_INDEX, bytes([vga.Crtc.CURSOR_LOW]))
    assert screen.register_name(vga.Offset.CRTC_INDEX, True) == "CRTC index"
    assert screen.register_name(vga.Offset.CRTC_DATA, True) == "CRTC cursor low"
    screen.write(vga.Offset.ATTRIBUTE, b"\x10")
    assert screen.register_name(vga.Offset.ATTRIBUTE, True) == "attribute 0x10"
    assert screen.register_name(vga.Offset.INPUT_STATUS_1, False) == "input status 1"


def test_the_io_apic_names_what_ioregsel_selects() -> None:
    chip = ioapic.IoApic(lambda address, data: None)
    seen = []
    for index in (0, 1, 0x10, 0x13, 0xF0):
        chip.write(0, bytes([index]))
        seen.append(chip.register_name(ioapic.Offset.IOWIN, True))
    assert seen == ["IOWIN IOAPICID", "IOWIN IOAPICVER", "IOWIN IOREDTBL0 low", "IOWIN IOREDTBL1 high", "IOWIN 0xf0"]


def test_the_other_devices_use_their_data_sheets_names() -> None:
    controller = I8042(Keyboard(), Disconnected(), lambda: None)
    assert controller.status.register_name(0, False) == "status"
    assert controller.status.register_name(0, True) == "command"
    timer = hpet.Hpet(ManualClock())
    assert timer.register_name(hpet.Offset.MAIN_CNT + 4, False) == "MAIN_CNT high"
    with workbench("user") as bench:
        assert [name_at(bench.pio, port) for port in (0x40, 0x43, 0x600, 0x602, 0x608, 0xB2, 0x510, 0x511, 0xCFC)] == [
            *("counter 0", "control word", "PM1_STS", "PM1_EN", "PM_TMR", "SMI_CMD", "selector"),
            *("data of SIGNATURE", "CONFIG_DATA"),
        ]


def name_at(bus: Bus, address: int) -> str:
    place = bus.find(address)
    assert place is not None
    return cast("NamedRegisters", place.device).register_name(address - place.base, False)
