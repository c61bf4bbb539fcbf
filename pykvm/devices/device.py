"""What a device is: something that answers reads and takes writes at offsets from its base.

A device knows neither KVM nor the machine it is plugged into: whatever it needs from outside (an interrupt line, an
output stream) is given to it. Leaves out where a device sits: the bus knows that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

__all__ = ["ByteRegisters", "Device", "NamedRegisters", "TextRegisters"]


class Device(Protocol):
    """The protocol of a device. ``offset`` counts bytes from the start of its range on the bus.

    A guest accesses 1, 2, 4 or 8 bytes at a time. Where such an access straddles the end of a range, a device sees
    only its part of it, and that may have any size from 1 to 7.
    """

    name: str

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes, little-endian, as the guest is to read them at ``offset``."""

    def write(self, offset: int, data: bytes) -> None:
        """Take ``data``, little-endian, that the guest wrote at ``offset``."""


class NamedRegisters(Device, Protocol):
    """A device that can say which register is where: optional, for those who show accesses to people.

    Asking changes nothing, whatever ``offset`` is, and never raises.
    """

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return what an access to ``offset`` would reach now, by its data sheet's name: "THR", "CRTC cursor high".

        Several registers may share an offset. An empty string if the device's own name says it all.
        """


class TextRegisters(NamedRegisters, Protocol):
    """One that has registers whose bytes are characters: ``text_registers`` are their names."""

    text_registers: tuple[str, ...]


class ByteRegisters(ABC):
    """A device of byte-wide registers, one at each offset: base class.

    A wider access is split into single bytes, lowest address first, as an ISA bus does it for an 8-bit card: a word
    written to port 0x3f8 is its low byte written to 0x3f8, then its high byte to 0x3f9.
    """

    name: str

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` registers from ``offset`` on."""
        return bytes(self.read_register(offset + position) for position in range(size))

    def write(self, offset: int, data: bytes) -> None:
        """Write the registers from ``offset`` on, one for each byte of ``data``."""
        for position, value in enumerate(data):
            self.write_register(offset + position, value)

    @abstractmethod
    def read_register(self, offset: int) -> int:
        """Return the register at ``offset``, 0 to 0xff."""

    @abstractmethod
    def write_register(self, offset: int, value: int) -> None:
        """Write ``value``, 0 to 0xff, into the register at ``offset``."""
