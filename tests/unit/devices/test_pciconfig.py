"""pykvm.devices.pciconfig: configuration mechanism #1 with nothing behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.device import ByteRegisters
from pykvm.devices.pciconfig import Offset, PciConfig


class Neighbour(ByteRegisters):
    """Stands in for the reset control register."""

    name = "neighbour"

    def __init__(self) -> None:
        self.value = 0

    def read_register(self, offset: int) -> int:
        assert offset == 0
        return self.value

    def write_register(self, offset: int, value: int) -> None:
        assert offset == 0
        self.value = value


def address(bus: int, device: int, function: int, register: int) -> bytes:
    return (1 << 31 | bus << 16 | device << 11 | function << 8 | register).to_bytes(4, "little")


def test_the_address_reads_back_as_a_guest_that_probes_for_pci_expects() -> None:
    ports = PciConfig(Neighbour())
    ports.write(Offset.CONFIG_ADDRESS, b"\0\0\0\x80")
    assert ports.read(Offset.CONFIG_ADDRESS, 4) == b"\0\0\0\x80"


def test_reserved_bits_of_the_address_read_as_zero() -> None:
    ports = PciConfig(Neighbour())
    ports.write(Offset.CONFIG_ADDRESS, b"\xff\xff\xff\xff")
    assert ports.read(Offset.CONFIG_ADDRESS, 4) == b"\xfc\xff\xff\x80"


@pytest.mark.parametrize("device", [0, 1, 31])
@pytest.mark.parametrize(("offset", "size"), [(0, 1), (1, 1), (0, 2), (2, 2), (0, 4)])
def test_every_device_reads_as_all_ones(device: int, offset: int, size: int) -> None:
    ports = PciConfig(Neighbour())
    ports.write(Offset.CONFIG_ADDRESS, address(0, device, 0, 0))
    assert ports.read(Offset.CONFIG_DATA + offset, size) == b"\xff" * size


def test_writing_to_a_device_that_is_not_there_has_no_effect() -> None:
    ports = PciConfig(Neighbour())
    ports.write(Offset.CONFIG_ADDRESS, address(0, 3, 0, 4))
    ports.write(Offset.CONFIG_DATA, b"\x07\0\0\0")
    assert ports.read(Offset.CONFIG_DATA, 4) == b"\xff" * 4
    assert ports.read(Offset.CONFIG_ADDRESS, 4) == address(0, 3, 0, 4)


@pytest.mark.parametrize("offset", [0, 2, 3])
@pytest.mark.parametrize("size", [1, 2])
def test_a_narrow_access_does_not_reach_the_address(offset: int, size: int) -> None:
    ports = PciConfig(Neighbour())
    ports.write(Offset.CONFIG_ADDRESS, address(1, 2, 3, 4))
    ports.write(offset, b"\xaa" * size)
    assert ports.read(offset, size) == b"\xff" * size
    assert ports.read(Offset.CONFIG_ADDRESS, 4) == address(1, 2, 3, 4)


def test_a_byte_at_0xcf9_is_the_reset_control_register() -> None:
    neighbour = Neighbour()
    ports = PciConfig(neighbour)
    ports.write(Offset.RESET_CONTROL, b"\x02")
    assert neighbour.value == 2
    assert ports.read(Offset.RESET_CONTROL, 1) == b"\x02"
    assert ports.read(Offset.CONFIG_ADDRESS, 4) == bytes(4)


def test_an_address_or_a_word_at_0xcf9_does_not_reach_the_reset_control_register() -> None:
    neighbour = Neighbour()
    ports = PciConfig(neighbour)
    ports.write(Offset.CONFIG_ADDRESS, b"\xff\xff\xff\xff")
    ports.write(Offset.RESET_CONTROL, b"\x06\x06")
    assert neighbour.value == 0


widths = st.sampled_from([1, 2, 3, 4, 8])
written = widths.flatmap(lambda size: st.binary(min_size=size, max_size=size))


@given(st.lists(st.tuples(st.integers(0, 16), widths | written), max_size=30))
def test_no_access_sequence_raises(sequence: list[tuple[int, int | bytes]]) -> None:
    ports = PciConfig(Neighbour())
    for offset, access in sequence:
        if isinstance(access, int):
            assert len(ports.read(offset, access)) == access
        else:
            ports.write(offset, access)
