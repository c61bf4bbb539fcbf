"""pykvm.machine.board: which device is where, and what they ask of the machine."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pykvm.devices import Doorbell, hpet, testdev
from pykvm.devices.acpipm import Pm1Cnt, Pm1En, Pm1Sts
from pykvm.devices.rtc import RegA, RegB
from pykvm.errors import BusError, ConfigurationError
from pykvm.machine import board as board_module
from pykvm.machine.board import OPTIONAL_DEVICES, Board, Wishes, check_device
from pykvm.machine.interrupts import Interrupts
from pykvm.memory import GuestMemory, layout, platform
from pykvm.testing import DeviceBench

SECOND = 1_000_000_000
PM1_STS, PM1_EN, PM1_CNT = platform.PM1_EVENT, platform.PM1_EVENT + 2, platform.PM1_CONTROL
GO_TO_S3 = Pm1Cnt.SLP_EN.value | platform.SLP_TYP_S3 << 10
GO_TO_S5 = Pm1Cnt.SLP_EN.value | platform.SLP_TYP_S5 << 10


class Machine(DeviceBench):
    """A machine without KVM: buses, a board, and a note of what was asked."""

    def __init__(self, memory: int | str = "1M", cpus: int = 1) -> None:
        super().__init__()
        self.interrupts = Interrupts()
        self.asked: list[object] = []
        self.asleep = False
        self.doorbells: dict[int, Callable[[int], None]] = {}
        self.memory = GuestMemory(memory)
        self.board = Board(
            self.pio,
            self.mmio,
            self.memory,
            self.interrupts,
            self.clock,
            Wishes(self.asked.append, self.asked.append, self._sleep, self._wake, self._on_doorbell),
            cpus=cpus,
            serial_output=lambda data: None,
            serial_input=None,
            debugcon_output=lambda data: None,
            screen_memory=self._read_screen,
        )

    def _sleep(self, state: int) -> None:
        self.asked.append(f"S{state}")
        self.asleep = state == 3

    def _wake(self) -> bool:
        was_asleep, self.asleep = self.asleep, False
        if was_asleep:
            self.asked.append("wake")
        return was_asleep

    def _on_doorbell(self, port: int, size: int, callback: Callable[[int], None]) -> None:
        self.doorbells[port] = callback

    def _read_screen(self, offset: int, size: int) -> bytes:
        return self.memory.read(layout.VGA_TEXT + offset, size)

    def out(self, port: int, value: int, size: int = 1) -> None:
        self.pio.write(port, value.to_bytes(size, "little"))

    def inp(self, port: int, size: int = 1) -> int:
        return int.from_bytes(self.pio.read(port, size), "little")

    def cmos(self, register: int, value: int) -> None:
        self.out(0x70, register)
        self.out(0x71, value)

    def alarm_in_a_second(self) -> None:
        for register in (1, 3, 5):
            self.cmos(register, 0xFF)
        self.cmos(0x0A, (RegA.DV2 | RegA.DV1).value)
        self.cmos(0x0B, RegB.AIE.value)
        self.cmos(0x0A, RegA.DV1.value)

    @property
    def status(self) -> Pm1Sts:
        return Pm1Sts(self.inp(PM1_STS, 2))


# ---- where the devices are ----


def documented() -> list[tuple[int, int]]:
    """Return the ranges of ports in the table of the module's docstring, but for the interrupt controllers'."""
    table, _, _ = (board_module.__doc__ or "").partition("    memory  ")
    rows = [row for row in table.splitlines() if row.startswith("    0x") and "irqchip" not in row]
    ranges = [(first, last or first) for row in rows for first, last in re.findall(r"0x(\w+)(?:-(\w+))?", row[:30])]
    return [(int(first, 16), int(last, 16)) for first, last in ranges]


def test_the_devices_are_where_the_table_says() -> None:
    machine = Machine()
    for first, last in documented():
        for port in (first, last):
            assert machine.pio.find(port) is not None, f"{port:#x}"


def test_the_table_leaves_no_device_out() -> None:
    for found in Machine().pio.ranges:
        assert any(first <= found.base and found.end - 1 <= last for first, last in documented()), str(found)


def test_the_devices_have_a_pcs_interrupt_lines() -> None:
    assert Machine().interrupts.owners == {1: "keyboard", 4: "serial", 8: "RTC", 9: "ACPI"}


def test_the_serial_port_answers_as_memory_too() -> None:
    machine = Machine()
    machine.mmio.write(layout.MMIO_SERIAL + 7, b"\x5a")
    assert machine.inp(0x3FF) == 0x5A


def test_cmos_memory_and_fw_cfg_tell_the_same_machine() -> None:
    machine = Machine("3M", cpus=5)
    machine.out(0x70, 0x5F)
    assert machine.inp(0x71) == 4
    machine.out(0x70, 0x18)
    assert machine.inp(0x71) == 2 * 1024 >> 8
    machine.out(0x510, 0x0003, 2)
    assert bytes(machine.inp(0x511) for _ in range(8)) == (3 << 20).to_bytes(8, "little")
    machine.out(0x510, 0x0005, 2)
    assert machine.inp(0x511) == 5


def test_the_hpet_counts_by_the_machines_clock() -> None:
    machine = Machine()
    machine.mmio.write(hpet.BASE + hpet.Offset.GEN_CONF, b"\x01\0\0\0")
    machine.clock.advance(SECOND)
    assert int.from_bytes(machine.mmio.read(hpet.BASE + hpet.Offset.MAIN_CNT, 8), "little") == hpet.FREQUENCY


# ---- optional devices ----


def test_an_optional_device_is_there_only_when_asked_for() -> None:
    machine = Machine()
    assert machine.pio.find(0xE0) is None
    machine.board.add("testdev")
    machine.out(0xE0, 0x1234_5678, 4)
    assert machine.inp(0xE0, 4) == 0x1234_5678
    machine.mmio.write(testdev.MEMORY, b"\x5a")
    assert machine.mmio.read(testdev.MEMORY, 1) == b"\x5a"


def test_the_test_device_leaves_the_debug_console_its_port() -> None:
    machine = Machine()
    machine.board.add("testdev")
    assert str(machine.pio.find(0xE9)).startswith("debug console")


def test_the_doorbell_asks_for_an_ioeventfd_and_counts() -> None:
    machine = Machine()
    machine.board.add("doorbell")
    machine.doorbells[0x5D0](7)
    machine.out(0x5D0, 0)
    assert machine.inp(0x5D4, 4) == 8


@pytest.mark.parametrize("name", OPTIONAL_DEVICES)
def test_a_device_that_is_there_already_is_refused_by_both_names(name: str) -> None:
    machine = Machine()
    machine.board.add(name)
    with pytest.raises(BusError, match=f"{name}.* overlaps {name}"):
        machine.board.add(name)


def test_a_device_over_another_is_refused_by_both_names() -> None:
    machine = Machine()
    with pytest.raises(BusError, match=r"doorbell at 0x3fc-0x403 overlaps .*serial.* at 0x3f8-0x3ff on the port bus"):
        machine.pio.register(Doorbell(), 0x3FC, 8)


@pytest.mark.parametrize("name", ["", "floppy", "Testdev"])
def test_an_unknown_device_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no optional device .*testdev, doorbell"):
        check_device(name)
    with pytest.raises(ConfigurationError, match=r"no optional device .*testdev, doorbell"):
        Machine().board.add(name)


# ---- reset and A20 ----


@pytest.mark.parametrize(
    ("writes", "words"),
    [
        ([(0x64, 0xFE)], "the keyboard controller, port 0x64"),
        ([(0x64, 0xD1), (0x60, 0xFE)], "the keyboard controller, port 0x64"),
        ([(0x92, 0x01)], "port 0x92"),
        ([(0xCF9, 0x02), (0xCF9, 0x06)], "port 0xcf9"),
        ([(0xCF9, 0x0E)], "port 0xcf9"),
    ],
)
def test_a_reset_says_which_port_it_came_by(writes: list[tuple[int, int]], words: str) -> None:
    machine = Machine()
    for port, value in writes:
        machine.out(port, value)
    assert machine.asked == [words]


def a20_by_keyboard_controller(machine: Machine) -> bool:
    machine.out(0x64, 0xD0)
    return bool(machine.inp(0x60) & 0x02)


def a20_by_port_92(machine: Machine) -> bool:
    return bool(machine.inp(0x92) & 0x02)


@pytest.mark.parametrize(
    ("writes", "is_open"),
    [
        ([], True),
        ([(0x92, 0x00)], False),
        ([(0x92, 0x00), (0x92, 0x02)], True),
        ([(0x64, 0xDD)], False),
        ([(0x64, 0xDD), (0x92, 0x02)], True),
        ([(0x92, 0x00), (0x64, 0xDF)], True),
        ([(0x64, 0xD1), (0x60, 0xDD)], False),
        ([(0x92, 0x00), (0x64, 0xD1), (0x60, 0xDF)], True),
    ],
)
def test_there_is_one_a20_gate(writes: list[tuple[int, int]], is_open: bool) -> None:
    machine = Machine()
    for port, value in writes:
        machine.out(port, value)
    assert a20_by_port_92(machine) is a20_by_keyboard_controller(machine) is is_open
    assert machine.asked == []


# ---- sleeping and waking ----


@pytest.mark.parametrize(("value", "state"), [(GO_TO_S3, "S3"), (GO_TO_S5, "S5")])
def test_the_sleep_that_the_guest_wants_is_asked_for(value: int, state: str) -> None:
    machine = Machine()
    machine.out(PM1_CNT, value, 2)
    assert machine.asked == [state]


def test_the_power_button_wakes_a_machine_and_says_so() -> None:
    machine = Machine()
    machine.out(PM1_CNT, GO_TO_S3, 2)
    machine.board.press_power_button()
    assert machine.asked == ["S3", "wake"]
    assert machine.status == Pm1Sts.WAK_STS | Pm1Sts.PWRBTN_STS


def test_the_power_button_of_a_machine_that_is_awake_is_an_event() -> None:
    machine = Machine()
    machine.board.press_power_button()
    assert machine.asked == []
    assert machine.status == Pm1Sts.PWRBTN_STS


def test_the_alarm_wakes_a_machine_that_lets_it() -> None:
    machine = Machine()
    machine.alarm_in_a_second()
    machine.out(PM1_EN, Pm1En.RTC_EN.value, 2)
    machine.out(PM1_CNT, GO_TO_S3, 2)
    assert machine.asked == ["S3"]
    machine.clock.advance(SECOND)
    assert machine.asked == ["S3", "wake"]
    assert machine.status == Pm1Sts.WAK_STS | Pm1Sts.RTC_STS


def test_the_alarm_does_not_wake_a_machine_that_does_not_let_it() -> None:
    machine = Machine()
    machine.alarm_in_a_second()
    machine.out(PM1_CNT, GO_TO_S3, 2)
    machine.clock.advance(SECOND)
    assert machine.asked == ["S3"]
    assert machine.status == Pm1Sts.RTC_STS


def test_the_alarm_of_a_machine_that_is_awake_is_an_event() -> None:
    machine = Machine()
    machine.alarm_in_a_second()
    machine.out(PM1_EN, Pm1En.RTC_EN.value, 2)
    machine.clock.advance(SECOND)
    assert machine.asked == []
    assert machine.status == Pm1Sts.RTC_STS


@pytest.mark.parametrize("state", [3, 5])
def test_what_came_just_before_the_sleep_wakes_from_s3_and_not_from_s5(state: int) -> None:
    machine = Machine()
    machine.out(PM1_EN, Pm1En.PWRBTN_EN.value, 2)
    machine.board.press_power_button()
    machine.out(PM1_CNT, GO_TO_S3 if state == 3 else GO_TO_S5, 2)
    assert machine.asked == (["S3", "wake"] if state == 3 else ["S5"])
    assert (Pm1Sts.WAK_STS in machine.status) is (state == 3)


def test_what_the_guest_has_taken_note_of_does_not_wake_it() -> None:
    machine = Machine()
    machine.out(PM1_EN, Pm1En.PWRBTN_EN.value, 2)
    machine.board.press_power_button()
    machine.out(PM1_STS, Pm1Sts.PWRBTN_STS.value, 2)
    machine.out(PM1_CNT, GO_TO_S3, 2)
    assert machine.asked == ["S3"]
