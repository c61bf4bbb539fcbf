"""What a device is: something that answers reads and takes writes at offsets from its base.

A device knows neither KVM nor the machine it is plugged into: whatever it needs from outside (an interrupt line, an output
stream) is given to it. Leaves out where a device sits: the bus knows that.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["ByteRegisters", "Device"]


class Device(Protocol):
    """The protocol of a device. ``offset`` counts bytes from the start of its range on the bus."""

    name: str

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes (1 to 8), little-endian, as the guest is to read them at ``offset``."""

    def write(self, offset: int, data: bytes) -> None:
        """Take ``data`` (1 to 8 bytes, little-endian) that the guest wrote at ``offset``."""


class ByteRegisters:
    """A device of byte-wide registers, one an offset: base class.

    An access of several bytes is split into single ones, lowest address first, as the ISA bus does with a wide access to
    an 8-bit card. Subclasses give ``read_register`` and ``write_register``.
    """

    name = "registers"

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` registers from ``offset`` on."""
        return bytes(self.read_register(offset + position) for position in range(size))

    def write(self, offset: int, data: bytes) -> None:
        """Write the registers from ``offset`` on, one for each byte of ``data``."""
        for position, value in enumerate(data):
            self.write_register(offset + position, value)

    def read_register(self, offset: int) -> int:
        """Return the register at ``offset``, 0 to 255."""
        raise NotImplementedError

    def write_register(self, offset: int, value: int) -> None:
        """Write ``value``, 0 to 255, into the register at ``offset``."""
        raise NotImplementedError
