"""A doorbell: a port whose write is a ring, and a port that says how often it rang.

    offset   read                   write
    0-3      all ones               one ring, whatever the value
    4-7      how often it rang      -

It is the smallest device for which an ioeventfd pays: the value written does not matter, and so KVM can turn the write
into a signal to this process without an exit; whoever hears the signal calls ``ring``. A real PC has no such device,
but every virtio device has one inside. Leaves out the ioeventfd, which is the machine's affair.
"""

from __future__ import annotations

from typing import ClassVar

from pykvm.devices.fields import Number
from pykvm.devices.state import Remembered, Stateful

__all__ = ["COUNT", "PORT", "REGISTERS", "SIZE", "Doorbell"]

PORT = 0x5D0
REGISTERS = 8
SIZE = 4  # bytes of the write that rings
COUNT = 4  # offset of the counter, 32 bits

RING_BITS = 0xFFFF_FFFF


class Doorbell(Stateful):
    """Counts rings."""

    name = "doorbell"
    remembers: ClassVar[Remembered] = {"rings": Number(RING_BITS)}

    def __init__(self) -> None:
        self.rings = 0

    def ring(self, times: int = 1) -> None:
        """Count ``times`` more rings."""
        self.rings = (self.rings + times) & RING_BITS

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of the counter, and all ones elsewhere."""
        registers = b"\xff" * COUNT + self.rings.to_bytes(4, "little")
        return registers[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        """Ring, if it is the bell that was written."""
        if offset < COUNT:
            self.ring()

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return which of the two it is."""
        return "bell" if offset < COUNT else "rings"
