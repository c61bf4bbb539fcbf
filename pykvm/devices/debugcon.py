"""The debug console at ports 0xe9 and 0x402: a byte written is a byte printed, with nothing to set up.

Bochs invented it and QEMU has it too, at the second port for firmware. Reading the port gives 0xe9, by which a guest
finds out that it is there: an empty port would give 0xff. A real PC has no such device. Leaves out input: there is
none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.state import Remembered, Stateful

__all__ = ["PORT", "PORTS", "DebugConsole"]

PORT = 0xE9
PORTS = (PORT, 0x402)
PRESENT = 0xE9  # what it answers, wherever it is plugged in


class DebugConsole(ByteRegisters, Stateful):
    """Passes each byte written to ``output``."""

    name = "debug console"
    text_registers = ("",)
    remembers: ClassVar[Remembered] = {}

    def __init__(self, output: Callable[[bytes], object]) -> None:
        self._output = output

    def read_register(self, offset: int) -> int:
        """Return 0xe9: the console is here."""
        return PRESENT

    def write_register(self, offset: int, value: int) -> None:
        """Print ``value``."""
        self._output(bytes((value,)))

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return nothing: it is one register."""
        return ""
