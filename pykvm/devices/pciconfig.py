"""The ports by which a PC reaches PCI configuration space, on a machine whose PCI bus is empty.

    port            access       register
    0xcf8           4 bytes      CONFIG_ADDRESS: which register of which device
    0xcf9           1 byte       reset control, a neighbour that has nothing to do with PCI
    0xcfc - 0xcff   any          CONFIG_DATA: that register; nobody answers, and so all ones

       31   30    24 23     16 15      11 10       8 7        2  1   0
    +------+--------+---------+----------+----------+----------+---+---+
    |ENABLE|   0    |   bus   |  device  | function | register | 0 | 0 |
    +------+--------+---------+----------+----------+----------+---+---+

A guest reads a vendor id of 0xffff for every device and knows: nothing here. See: PCI Local Bus Specification 3.0,
section 3.2.2.3.2. Leaves out devices, and configuration space in memory (ECAM).
"""

from __future__ import annotations

import enum
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import Mask
from pykvm.devices.state import Remembered, Stateful

__all__ = ["PORT", "REGISTERS", "Offset", "PciConfig"]

PORT = 0xCF8
REGISTERS = 8

ADDRESS_BITS = 0x80FF_FFFC  # the others always read as 0


class Offset(enum.IntEnum):
    """Where the registers are, from ``PORT`` on."""

    CONFIG_ADDRESS = 0
    RESET_CONTROL = 1
    CONFIG_DATA = 4


class PciConfig(Stateful):
    """The ports. ``reset_control`` has one register, at offset 0: what 0xcf9 is if it is accessed as a byte."""

    name = "PCI configuration"
    remembers: ClassVar[Remembered] = {"_address": Mask(ADDRESS_BITS)}

    def __init__(self, reset_control: ByteRegisters) -> None:
        self._reset_control = reset_control
        self._address = 0

    def read(self, offset: int, size: int) -> bytes:
        """Return CONFIG_ADDRESS or the reset control register if the access has its width, and else all ones."""
        match offset, size:
            case Offset.CONFIG_ADDRESS, 4:
                return self._address.to_bytes(4, "little")
            case Offset.RESET_CONTROL, 1:
                return bytes((self._reset_control.read_register(0),))
            case _:
                return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """Write CONFIG_ADDRESS or the reset control register if the access has its width.

        A narrower access to CONFIG_ADDRESS is none: the host bridge lets it pass, and nobody else is there.
        """
        match offset, len(data):
            case Offset.CONFIG_ADDRESS, 4:
                self._address = int.from_bytes(data, "little") & ADDRESS_BITS
            case Offset.RESET_CONTROL, 1:
                self._reset_control.write_register(0, data[0])

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the register; at 0xcf9 an access of one byte is meant."""
        match offset:
            case Offset.CONFIG_ADDRESS:
                return "CONFIG_ADDRESS"
            case Offset.RESET_CONTROL:
                return "reset control"
        return "CONFIG_DATA" if offset >= Offset.CONFIG_DATA else f"+{offset:#x}"
