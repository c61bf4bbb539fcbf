"""The POST code port, 0x80: firmware writes where it has got to, and a card with two digits shows it.

The last code tells how far a guest came that prints nothing. See: IBM PC AT Technical Reference, "Power-On Self-Test". Leaves out
the meaning of the codes, which is each firmware's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pykvm.devices.device import ByteRegisters

__all__ = ["PORT", "PostCode"]

PORT = 0x80
REMEMBERED = 256  # codes: Linux writes here for a short delay, again and again


class PostCode(ByteRegisters):
    """Keeps the last codes, and calls ``on_code`` with each."""

    name = "POST code"

    def __init__(self, on_code: Callable[[int], None] | None = None) -> None:
        self._codes: deque[int] = deque(maxlen=REMEMBERED)
        self._on_code = on_code

    @property
    def codes(self) -> tuple[int, ...]:
        """Return the last codes written, oldest first."""
        return tuple(self._codes)

    def read_register(self, offset: int) -> int:
        """Return the last code, or 0 before the first."""
        return self._codes[-1] if self._codes else 0

    def write_register(self, offset: int, value: int) -> None:
        """Keep ``value``."""
        self._codes.append(value)
        if self._on_code is not None:
            self._on_code(value)
