"""The debug console at port 0xe9: a byte written is a byte printed, with nothing to set up.

Bochs invented it and QEMU has it; reading the port gives 0xe9, by which a guest can find out that it is there. There is no such
device on a real PC. Leaves out everything else.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.device import ByteRegisters

__all__ = ["PORT", "DebugConsole"]

PORT = 0xE9


class DebugConsole(ByteRegisters):
    """Passes each byte written to ``output``."""

    name = "debug console"

    def __init__(self, output: Callable[[bytes], object]) -> None:
        self._output = output

    def read_register(self, offset: int) -> int:
        """Return 0xe9: the console is here."""
        return PORT

    def write_register(self, offset: int, value: int) -> None:
        """Print ``value``."""
        self._output(bytes((value,)))
