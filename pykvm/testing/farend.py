"""A serial port with its far end in a test's hands: the fixture ``serial``.

    serial.write(0, b"H")            the guest's side: registers, as for any device
    serial.type(b"yes")              the far end's side
    assert serial.text == "H"

Leaves out the machine: nothing here needs KVM.
"""

from __future__ import annotations

from pykvm.devices import Serial

__all__ = ["LoneSerial", "Wire"]


class Wire:
    """An interrupt line that ends in a test: its ``level``, how often it ``rose``, and all ``levels`` it was told."""

    def __init__(self) -> None:
        self.level = False
        self.rose = 0
        self.levels: list[bool] = []

    def set_level(self, level: bool) -> None:
        """Take note of the line's level."""
        self.rose += level and not self.level
        self.level = level
        self.levels.append(level)


class LoneSerial(Serial):
    """A Serial whose line ends here: ``sent`` is what came out of it, ``irq`` its interrupt line."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.irq = Wire()
        self._typed = bytearray()
        super().__init__(self.sent.extend, self._take, self.irq)

    @property
    def text(self) -> str:
        """Return what came out as UTF-8, with U+FFFD for what is none."""
        return self.sent.decode("utf-8", "replace")

    def type(self, data: bytes) -> None:
        """Have ``data`` wait at the far end until the port has room, and tell the port so."""
        self._typed += data
        self.poll()

    def _take(self, limit: int) -> bytes:
        taken = bytes(self._typed[:limit])
        del self._typed[:limit]
        return taken
