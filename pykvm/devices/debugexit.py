"""A port whose write ends the run: the guest's way to say how it went.

It is QEMU's isa-debug-exit: the value ``v`` written becomes the exit status ``(v << 1) | 1``. There is no such device on
a real PC. Leaves out the choice of another port: ``Bus.register`` has it.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["PORT", "REGISTERS", "DebugExit"]

PORT = 0xF4
REGISTERS = 4  # ports; writes of 1, 2 and 4 bytes are one value


class DebugExit:
    """Calls ``on_exit`` with the value of each write, 8 to 32 bits; reads give all ones."""

    name = "debug exit"

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> bytes:
        """Return all ones: there is nothing to read."""
        return b"\xff" * size

    def write(self, offset: int, data: bytes) -> None:
        """Report the value written."""
        self._on_exit(int.from_bytes(data, "little"))
