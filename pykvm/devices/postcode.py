"""The POST code port, 0x80: firmware writes how far it has got, and a card with two digits shows it.

For a guest that prints nothing, the last code tells where it died. See: IBM PC AT Technical Reference, "Power-On Self
Test". Leaves out the meaning of the codes, which is each firmware's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import Bytes
from pykvm.devices.state import Remembered, Stateful

__all__ = ["HISTORY", "PORT", "PostCode"]

PORT = 0x80
HISTORY = 256  # codes kept; not all, for Linux writes here again and again just to wait a microsecond


class PostCode(ByteRegisters, Stateful):
    """Keeps the last ``HISTORY`` codes, and calls ``on_code`` with each as it comes."""

    name = "POST code"
    remembers: ClassVar[Remembered] = {"_codes": Bytes(HISTORY, rolling=True)}

    def __init__(self, on_code: Callable[[int], None] | None = None) -> None:
        self._codes: deque[int] = deque(maxlen=HISTORY)
        self._on_code = on_code

    @property
    def codes(self) -> tuple[int, ...]:
        """Return the last codes written, oldest first."""
        return tuple(self._codes)

    @property
    def last(self) -> int | None:
        """Return the last code written, or None before the first."""
        return self._codes[-1] if self._codes else None

    def read_register(self, offset: int) -> int:
        """Return the last code, or 0 before the first: on an AT the port is a latch that can be read back."""
        return self.last or 0

    def write_register(self, offset: int, value: int) -> None:
        """Keep ``value``."""
        self._codes.append(value)
        if self._on_code is not None:
            self._on_code(value)

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return nothing: it is one register."""
        return ""
