"""pykvm.machine.board: that no device is forgotten when a machine is saved."""

from __future__ import annotations

import json

import pytest

from pykvm.devices import Bus, Disconnected, IoApic, ManualClock, PicPair, Pit, PostCode
from pykvm.devices.state import Stateful
from pykvm.machine.board import OPTIONAL_DEVICES, Board, Wishes
from pykvm.machine.interrupts import Interrupts
from pykvm.memory import GuestMemory
from pykvm.testing import DeviceBench

# What connects a device with others, or follows from its other attributes: all else it has to remember.
WIRING = {
    "serial": {"_output", "_input", "_irq", "on_listen"},
    "debug_exit": {"_on_exit"},
    "debug_console": {"_output"},
    "post_code": {"_on_code"},
    "vga": {"_read_memory"},
    "fw_cfg": {"_read_memory", "_write_memory", "_items", "_item"},
    "pic": set(),
    "pic.master": {"name", "_on_output", "_is_master"},
    "pic.slave": {"name", "_on_output", "_is_master"},
    "pic.elcr": {"_chips"},
    "pit": {"_clock", "_irq0", "_alarm"},
    "pit.counters_0": {"_mode", "_access", "_modulus"},
    "pit.counters_1": {"_mode", "_access", "_modulus"},
    "pit.counters_2": {"_mode", "_access", "_modulus"},
    "pit.port61": {"_pit"},
    "ioapic": {"_on_change", "_pins"},
    "pm": {"_clock", "_sci", "_on_sleep"},
    "pm.smi_command": {"_set_sci_enable"},
    "rtc": {"_clock", "_irq8", "_on_alarm", "_alarm"},
    "hpet": {"_clock"},
    "keyboard": {"_on_data", "on_keys"},
    "i8042": {"_keyboard", "_irq1", "_on_reset", "a20"},
    "i8042.data": {"name", "_names", "_read", "_write"},
    "i8042.status": {"name", "_names", "_read", "_write"},
    "port_92": {"_a20", "_on_reset"},
    "reset_control": {"_on_reset"},
    "pci_config": {"_reset_control"},
    "testdev.irq_lines": {"_set_irq"},
}


class _AllChips(Interrupts):
    """Every interrupt controller that there is, connected to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.pic = PicPair(lambda level: None)
        self.pit = Pit(ManualClock(), Disconnected())
        self.ioapic = IoApic(lambda address, data: None)


def make_board(interrupts: Interrupts) -> tuple[Board, Bus, Bus]:
    bench = DeviceBench()
    with GuestMemory("1M") as memory:  # its size is asked for, and no test reads it
        board = Board(
            bench.pio,
            bench.mmio,
            memory,
            interrupts,
            bench.clock,
            Wishes(lambda v: None, lambda by: None, lambda s: None, lambda: False, lambda port, size, callback: None),
            cpus=1,
            serial_output=lambda data: None,
            serial_input=None,
            debugcon_output=lambda data: None,
            screen_memory=lambda offset, size: bytes(size),
        )
    return board, bench.pio, bench.mmio


@pytest.fixture
def full() -> tuple[Board, Bus, Bus]:
    """Return a board with all that a board can have."""
    board, pio, mmio = make_board(_AllChips())
    for name in OPTIONAL_DEVICES:
        board.add(name)
    return board, pio, mmio


def with_parts(board: Board) -> dict[str, Stateful]:
    found: dict[str, Stateful] = {}
    for name, device in board.devices().items():
        found[name] = device
        found |= {f"{name}.{key}": part for key, part in device._parts()}
    return found


def test_whatever_the_board_plugs_in_is_among_its_devices(full: tuple[Board, Bus, Bus]) -> None:
    board, pio, mmio = full
    assert board.others() == ()
    known = {id(part) for device in board.devices().values() for part in device.with_parts()}
    assert {place.device.name for bus in (pio, mmio) for place in bus.ranges if id(place.device) not in known} == set()


def test_each_attribute_of_a_device_is_remembered_or_is_wiring(full: tuple[Board, Bus, Bus]) -> None:
    for name, device in with_parts(full[0]).items():
        forgotten = vars(device).keys() - device.remembers.keys() - set(device.parts) - WIRING.get(name, set())
        assert not forgotten, f"{name} neither remembers {forgotten} nor is that wiring"


def test_what_is_said_to_be_remembered_is_there(full: tuple[Board, Bus, Bus]) -> None:
    for name, device in with_parts(full[0]).items():
        for attribute in (*device.remembers, *device.parts):
            assert hasattr(device, attribute), f"{name} has no {attribute}"


def test_the_devices_have_stable_names(full: tuple[Board, Bus, Bus]) -> None:
    assert list(full[0].devices()) == [
        "serial",
        "debug_exit",
        "debug_console",
        "post_code",
        "vga",
        "fw_cfg",
        "pic",
        "pit",
        "ioapic",
        "pm",
        "rtc",
        "hpet",
        "keyboard",
        "i8042",
        "a20",
        "port_92",
        "reset_control",
        "pci_config",
        "testdev",
        "doorbell",
    ]


def test_a_board_has_only_the_chips_of_its_arrangement() -> None:
    names = set(make_board(Interrupts())[0].devices())
    assert not names & {"pic", "pit", "ioapic", *OPTIONAL_DEVICES}


def test_a_whole_board_goes_through_json_into_another(full: tuple[Board, Bus, Bus]) -> None:
    board, pio, _ = full
    pio.write(0x3FF, b"\x5a")
    pio.write(0x80, b"\x11")
    pio.write(0x92, b"\x00")
    saved = json.loads(json.dumps({name: device.save() for name, device in board.devices().items()}))
    other, other_pio, _ = make_board(_AllChips())
    for name in OPTIONAL_DEVICES:
        other.add(name)
    for name, device in other.devices().items():
        device.restore(saved[name])
    assert other_pio.read(0x3FF, 1) == b"\x5a"
    assert other.post_code.codes == (0x11,)
    assert not other.a20.is_open


def test_a_device_that_somebody_else_plugged_in_is_told_apart(full: tuple[Board, Bus, Bus]) -> None:
    board, pio, mmio = full
    mine = PostCode()
    pio.register(mine, 0x84, 1)
    mmio.register(mine, 0xE000_0000, 1)
    assert board.others() == (mine,)
