"""An interrupt line: the wire from a device to an interrupt controller.

A device drives its line high while it wants attention and low when it has been served; who listens at the other end
(the kernel's irqchip, the userspace PIC, a test) is not its business. Leaves out which number the line has: the
machine knows that.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Disconnected", "IrqLine"]


class IrqLine(Protocol):
    """The device's end of the wire."""

    def set_level(self, level: bool) -> None:
        """Drive the line high (True) or low. Setting it to what it is has no effect."""


class Disconnected:
    """A wire that ends nowhere, as on a machine without an interrupt controller."""

    def set_level(self, level: bool) -> None:
        """Do nothing."""
