"""The guest's screen during a run: live in a terminal, at the end elsewhere, and as a picture.

A live screen owns the terminal, so what the guest prints by its serial port waits until it is gone. Leaves out how a
screen is drawn: see ``screen``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pykvm.kvm import Exit
from pykvm.units import MiB

if TYPE_CHECKING:
    from pykvm.cli.screen import LiveScreen
    from pykvm.machine import Machine

__all__ = ["Display"]

MOST_HELD_BACK = MiB


class Display:
    """Shows the screen if ``is_wanted``, and saves it as ``screenshot``. It is an observer, for it redraws at ticks."""

    def __init__(self, is_wanted: bool, screenshot: str | None) -> None:
        self._is_wanted = is_wanted
        self._screenshot = screenshot
        self.is_live = is_wanted and sys.stdout.isatty()
        self._held_back = bytearray()
        self._machine: Machine | None = None
        self._live: LiveScreen | None = None
        if screenshot is not None:
            from pykvm.cli.screen import check_can_save

            check_can_save(screenshot)

    def hold_back(self, data: bytes) -> None:
        """Keep what the guest printed, the first MiB of it, until the screen is gone."""
        self._held_back += data[: MOST_HELD_BACK - len(self._held_back)]

    def rest(self) -> bytes:
        """Return what was held back."""
        return bytes(self._held_back)

    @contextlib.contextmanager
    def showing(self, machine: Machine) -> Iterator[None]:
        """Show the screen of ``machine`` meanwhile, and what is left of it afterwards."""
        self._machine = machine
        try:
            if self.is_live:
                from pykvm.cli.screen import LiveScreen

                with LiveScreen() as self._live:
                    yield
                    self.tick()
            else:
                yield
        finally:
            self._live = None
            self._show_last(machine)

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Do nothing: exits do not matter here."""

    def tick(self) -> None:
        """Redraw the screen if it changed."""
        if self._live is not None and self._machine is not None:
            self._live.update(self._machine.screen.snapshot())

    def _show_last(self, machine: Machine) -> None:
        if self._is_wanted and not self.is_live:
            text = machine.screen.text()
            self._held_back += f"{text}\n".encode() if text else b""
        if self._screenshot is not None:
            from pykvm.cli.screen import save_png

            save_png(machine.screen.snapshot(), self._screenshot)
