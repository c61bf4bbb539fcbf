"""QEMU's pc-testdev: places where a guest that tests a hypervisor finds again what it wrote, and interrupts on demand.

    port 0xe0-0xe3     a 32-bit register that keeps what is written, by any width
    port 0xe4-0xe7     takes an address and flushes its page; reads as 0
    port 0xe8-0xeb     the register at 0xe0 again
    port 0x2000 + n    interrupt line n, 0 to 23: high if not 0 is written; reads as 0
    0xff000000         64 KiB of memory that is none: each access is an exit

See: QEMU, hw/misc/pc-testdev.c; KVM's unit tests use it. Leaves out the flush itself: a write to 0xe4 is accepted, and
no page of guest memory is taken away and given back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import Memory
from pykvm.devices.state import Remembered, Stateful

__all__ = ["IRQ_LINES", "IRQ_PORT", "MEMORY", "MEMORY_SIZE", "PORT", "REGISTERS", "PcTestdev"]

PORT = 0xE0
REGISTERS = 12
IRQ_PORT = 0x2000
IRQ_LINES = 24
MEMORY = 0xFF00_0000  # guest-physical
MEMORY_SIZE = 0x1_0000  # bytes

FLUSH, FLUSH_END = 0x04, 0x08
REGISTER_SIZE = 4  # bytes
REGISTER_BITS = REGISTER_SIZE - 1  # of an offset


class PcTestdev(Stateful):
    """The three parts of pc-testdev, each a device with a range of its own.

    ``set_irq(line, level)`` drives one of the interrupt lines 0 to 23.
    """

    name = "testdev"
    remembers: ClassVar[Remembered] = {}
    parts = ("ports", "irq_lines", "memory")

    def __init__(self, set_irq: Callable[[int, bool], object]) -> None:
        self.ports = EchoPorts()  # at PORT
        self.irq_lines = IrqPorts(set_irq)  # at IRQ_PORT
        self.memory = EchoMemory()  # at MEMORY


class EchoPorts(ByteRegisters, Stateful):
    """The ports from 0xe0 on."""

    name = "testdev ports"
    remembers: ClassVar[Remembered] = {"_register": Memory(REGISTER_SIZE)}

    def __init__(self) -> None:
        self._register = bytearray(REGISTER_SIZE)

    def read_register(self, offset: int) -> int:
        """Return what was last written there."""
        return 0 if FLUSH <= offset < FLUSH_END else self._register[offset & REGISTER_BITS]

    def write_register(self, offset: int, value: int) -> None:
        """Keep ``value``."""
        if not FLUSH <= offset < FLUSH_END:
            self._register[offset & REGISTER_BITS] = value

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return which of the two it is."""
        return "flush" if FLUSH <= offset < FLUSH_END else "echo"


class IrqPorts(ByteRegisters, Stateful):
    """The ports from 0x2000 on, one for each interrupt line."""

    name = "testdev interrupt lines"
    remembers: ClassVar[Remembered] = {}  # the lines keep their levels

    def __init__(self, set_irq: Callable[[int, bool], object]) -> None:
        self._set_irq = set_irq

    def read_register(self, offset: int) -> int:
        """Return 0."""
        return 0

    def write_register(self, offset: int, value: int) -> None:
        """Drive line ``offset`` high, or low if ``value`` is 0."""
        if offset < IRQ_LINES:
            self._set_irq(offset, value != 0)

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the number of the line."""
        return f"{offset}"


class EchoMemory(Stateful):
    """The memory at 0xff000000. Beyond its end it reads as all ones."""

    name = "testdev memory"
    remembers: ClassVar[Remembered] = {"_memory": Memory(MEMORY_SIZE)}

    def __init__(self) -> None:
        self._memory = bytearray(MEMORY_SIZE)

    def read(self, offset: int, size: int) -> bytes:
        """Return what was last written there."""
        return bytes(self._memory[offset : offset + size]).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Keep ``data``."""
        fitting = data[: max(0, MEMORY_SIZE - offset)]
        self._memory[offset : offset + len(fitting)] = fitting

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return nothing: it is one register."""
        return ""
