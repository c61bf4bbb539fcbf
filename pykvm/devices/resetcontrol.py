"""The ports that reset a PC or open its A20 gate, apart from the keyboard controller's: 0x92 and 0xcf9.

The keyboard controller was first to do both, and slow; so the PS/2 got system control port A at 0x92, and chipsets with
PCI the reset control register at 0xcf9. See: IBM PS/2 Hardware Interface Technical Reference, "System Control Port A";
Intel ICH9 data sheet, "RST_CNT", "PORT92". Leaves out what A20 does: KVM has no such gate, and so address bit 20 always
gets through, whatever the guest reads back here. Leaves out the difference between a hard, a soft and a full reset.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import Bool, Flags
from pykvm.devices.state import Remembered, Stateful

__all__ = ["PORT_92", "PORT_CF9", "A20Gate", "PortA", "ResetControl", "ResetControlRegister", "SystemControlPortA"]

PORT_92 = 0x92
PORT_CF9 = 0xCF9  # in the middle of the four of PCI's address register, which only takes accesses of four bytes


class PortA(enum.Flag):
    """System control port A; bits with other uses, such as the disk's light, are 0.

      7   6   5   4   3   2   1      0
    +---+---+---+---+---+---+---+----------+
    | 0 | 0 | 0 | 0 | 0 | 0 |A20|FAST_RESET|
    +---+---+---+---+---+---+---+----------+
    """

    FAST_RESET = 1 << 0  # going from 0 to 1 resets the CPU
    A20 = 1 << 1  # the gate is open


class ResetControlRegister(enum.Flag):
    """Reset control register.

      7   6   5   4     3       2       1     0
    +---+---+---+---+--------+-------+-------+---+
    | 0 | 0 | 0 | 0 |FULL_RST|RST_CPU|SYS_RST| 0 |
    +---+---+---+---+--------+-------+-------+---+
    """

    SYS_RST = 1 << 1  # the reset will be a hard one: of the whole system
    RST_CPU = 1 << 2  # going from 0 to 1 resets
    FULL_RST = 1 << 3  # and power goes off for some seconds


PORT_A_BITS = (PortA.FAST_RESET | PortA.A20).value
RESET_CONTROL = ResetControlRegister.SYS_RST | ResetControlRegister.RST_CPU | ResetControlRegister.FULL_RST


class A20Gate(Stateful):
    """Whether address bit 20 gets through to memory: one gate, which both port 0x92 and the keyboard controller move.

    It only remembers: see "Leaves out" above. It is open at first, for so it is in truth.
    """

    name = "A20 gate"
    remembers: ClassVar[Remembered] = {"is_open": Bool()}

    def __init__(self, *, is_open: bool = True) -> None:
        self.is_open = is_open


class SystemControlPortA(ByteRegisters, Stateful):
    """Port 0x92. ``on_reset`` is called with the words "port 0x92" when the guest asks for a reset."""

    name = "system control port A"
    remembers: ClassVar[Remembered] = {"_fast_reset": Flags(PortA.FAST_RESET)}

    def __init__(self, a20: A20Gate, on_reset: Callable[[str], None]) -> None:
        self._a20 = a20
        self._on_reset = on_reset
        self._fast_reset = PortA(0)

    def read_register(self, offset: int) -> int:
        """Return the A20 gate's state, whoever moved it, and FAST_RESET as it was written."""
        return (self._fast_reset | (PortA.A20 if self._a20.is_open else PortA(0))).value

    def write_register(self, offset: int, value: int) -> None:
        """Move the A20 gate; reset if FAST_RESET goes from 0 to 1."""
        written = PortA(value & PORT_A_BITS)
        self._a20.is_open = PortA.A20 in written
        before, self._fast_reset = self._fast_reset, written & PortA.FAST_RESET
        if self._fast_reset and not before:
            self._on_reset(f"port {PORT_92:#x}")

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return nothing: it is one register."""
        return ""


class ResetControl(ByteRegisters, Stateful):
    """Port 0xcf9. ``on_reset`` is called with the words "port 0xcf9" when the guest asks for a reset."""

    name = "reset control"
    remembers: ClassVar[Remembered] = {"_register": Flags(RESET_CONTROL)}

    def __init__(self, on_reset: Callable[[str], None]) -> None:
        self._on_reset = on_reset
        self._register = ResetControlRegister(0)

    def read_register(self, offset: int) -> int:
        """Return the register as it was written."""
        return self._register.value

    def write_register(self, offset: int, value: int) -> None:
        """Write the register; reset if RST_CPU goes from 0 to 1."""
        before, self._register = self._register, ResetControlRegister(value & RESET_CONTROL.value)
        if ResetControlRegister.RST_CPU in self._register & ~before:
            self._on_reset(f"port {PORT_CF9:#x}")

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return nothing: it is one register."""
        return ""
