"""What a guest printed, kept in bounded memory and passed on as it comes.

A guest can print for ever, so only the last part is kept. Leaves out how a terminal shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pykvm.units import MiB

__all__ = ["Output", "OutputLog"]


@dataclass(frozen=True, slots=True)
class Output:
    """What a guest had printed at some time: the last bytes of it, and how many before them were ``dropped``."""

    data: bytes
    dropped: int = 0

    @property
    def text(self) -> str:
        """Return ``data`` as UTF-8, with U+FFFD for what is none."""
        return self.data.decode("utf-8", "replace")

    def __str__(self) -> str:
        return self.text


class OutputLog:
    """Keeps the last ``limit`` bytes written to it; ``forward`` (if given) gets every byte at once."""

    def __init__(self, forward: Callable[[bytes], object] | None = None, limit: int = MiB) -> None:
        self._kept = bytearray()
        self._forward = forward
        self._limit = limit
        self._dropped = 0

    def write(self, data: bytes) -> None:
        """Take ``data`` from the guest."""
        self._kept += data
        if len(self._kept) > 2 * self._limit:  # cut now and then, not at every byte
            self._cut()
        if self._forward is not None:
            self._forward(data)

    def output(self) -> Output:
        """Return what was written so far."""
        self._cut()
        return Output(bytes(self._kept), self._dropped)

    def put_back(self, output: Output) -> None:
        """Hold what ``output()`` returned at some time; what was forwarded meanwhile stays with those who got it."""
        self._kept = bytearray(output.data)
        self._dropped = output.dropped

    @property
    def total(self) -> int:
        """Return how many bytes were ever written, as far as they are not taken back."""
        return self._dropped + len(self._kept)

    def take_back(self, total: int) -> None:
        """Forget what was written since there were ``total`` bytes; what was dropped meanwhile is not seen again."""
        del self._kept[max(0, total - self._dropped) :]
        self._dropped = min(self._dropped, total)

    def _cut(self) -> None:
        excess = max(0, len(self._kept) - self._limit)
        del self._kept[:excess]
        self._dropped += excess
