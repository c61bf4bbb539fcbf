"""pykvm.devices.resetcontrol: ports 0x92 and 0xcf9."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.resetcontrol import (
    PORT_92,
    PORT_CF9,
    A20Gate,
    PortA,
    ResetControl,
    ResetControlRegister,
    SystemControlPortA,
)
from pykvm.testing import DeviceBench


class PortAAtWork:
    """System control port A, with what it moves."""

    def __init__(self) -> None:
        self.resets: list[str] = []
        self.a20 = A20Gate()
        self.device = SystemControlPortA(self.a20, self.resets.append)

    def write(self, value: int) -> None:
        self.device.write(0, bytes((value,)))

    def read(self) -> PortA:
        return PortA(self.device.read(0, 1)[0])


class ResetControlAtWork:
    """The reset control register, and the resets it made."""

    def __init__(self) -> None:
        self.resets: list[str] = []
        self.device = ResetControl(self.resets.append)

    def write(self, register: ResetControlRegister) -> None:
        self.device.write(0, bytes((register.value,)))


SYS_RST, RST_CPU, FULL_RST = ResetControlRegister.SYS_RST, ResetControlRegister.RST_CPU, ResetControlRegister.FULL_RST


# ---- port 0x92 ----


def test_the_a20_gate_is_open_at_first_for_kvm_has_none() -> None:
    assert PortAAtWork().read() == PortA.A20


def test_bit_1_of_port_92_moves_the_a20_gate() -> None:
    port = PortAAtWork()
    port.write(0)
    assert (port.a20.is_open, port.read()) == (False, PortA(0))
    port.write(PortA.A20.value)
    assert (port.a20.is_open, port.read()) == (True, PortA.A20)


def test_port_92_shows_the_gate_whoever_moved_it() -> None:
    port = PortAAtWork()
    port.a20.is_open = False
    assert port.read() == PortA(0)


def test_bit_0_of_port_92_going_on_resets_once() -> None:
    port = PortAAtWork()
    port.write(0b11)
    port.write(0b11)
    assert port.resets == ["port 0x92"]
    assert port.read() == PortA.A20 | PortA.FAST_RESET
    port.write(0b10)
    port.write(0b11)
    assert port.resets == ["port 0x92"] * 2


def test_the_usual_way_to_open_the_gate_does_not_reset() -> None:
    port = PortAAtWork()
    port.a20.is_open = False
    port.write(port.read().value | 0x02)
    assert (port.resets, port.a20.is_open) == ([], True)


def test_other_bits_of_port_92_are_0() -> None:
    port = PortAAtWork()
    port.write(0xFE)
    assert port.device.read(0, 1) == b"\x02"


# ---- port 0xcf9 ----


def test_rst_cpu_going_on_resets_once() -> None:
    control = ResetControlAtWork()
    control.write(RST_CPU)
    control.write(RST_CPU)
    assert control.resets == ["port 0xcf9"]
    control.write(ResetControlRegister(0))
    control.write(RST_CPU)
    assert control.resets == ["port 0xcf9"] * 2


@pytest.mark.parametrize("kind", [ResetControlRegister(0), SYS_RST, SYS_RST | FULL_RST])
def test_the_kind_of_reset_is_chosen_first_and_resets_nothing(kind: ResetControlRegister) -> None:
    control = ResetControlAtWork()
    control.write(kind)
    assert control.resets == []
    assert control.device.read(0, 1) == bytes((kind.value,))
    control.write(kind | RST_CPU)
    assert control.resets == ["port 0xcf9"]


def test_other_bits_of_the_reset_control_register_are_0() -> None:
    control = ResetControlAtWork()
    control.device.write(0, b"\xff")
    assert control.device.read(0, 1) == b"\x0e"


# ---- both ----


def test_both_are_one_register_on_the_bus() -> None:
    port, control = PortAAtWork(), ResetControlAtWork()
    bus = DeviceBench(pio={PORT_92: (port.device, 1), PORT_CF9: (control.device, 1)}).pio
    bus.write(0x92, b"\x01\xff")
    bus.write(0xCF9, b"\x06")
    assert (port.resets, control.resets) == (["port 0x92"], ["port 0xcf9"])
    assert bus.read(0xCF9, 2) == b"\x06\xff"


@given(st.lists(st.binary(min_size=1, max_size=8), max_size=30))
def test_there_is_a_reset_for_each_edge_of_its_bit_whatever_is_written(writes: list[bytes]) -> None:
    port, control = PortAAtWork(), ResetControlAtWork()
    for data in writes:
        port.device.write(0, data)
        control.device.write(0, data)
        assert len(port.device.read(0, len(data))) == len(control.device.read(0, len(data))) == len(data)
    values = [0, *b"".join(writes)]
    for bit, resets in ((1 << 0, port.resets), (1 << 2, control.resets)):
        assert len(resets) == sum(new & bit and not old & bit for old, new in pairwise(values))
