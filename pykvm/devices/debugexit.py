"""A port whose write ends the run: the guest's way to say how it went.

It is what QEMU calls isa-debug-exit: a value ``v`` written becomes the exit status ``(v << 1) | 1``, which is never 0
and so is never taken for a guest that stopped by itself. A real PC has no such device. Leaves out the exit status,
which is the machine's affair, and the choice of another port, which is ``Bus.register``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.state import Remembered, Stateful

__all__ = ["PORT", "REGISTERS", "DebugExit"]

PORT = 0xF4
REGISTERS = 4  # ports, so that a write of 1, 2 or 4 bytes is one value


class DebugExit(Stateful):
    """Calls ``on_exit`` with the value of each write, as an unsigned number of the write's width."""

    name = "debug exit"
    remembers: ClassVar[Remembered] = {}

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> bytes:
        """Return all ones: there is nothing to read."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """Report the value written, at whichever of the ports."""
        self._on_exit(int.from_bytes(data, "little"))

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return nothing: it is one register."""
        return ""
