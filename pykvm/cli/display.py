"""The guest's screen during a run: live in a terminal, at the end elsewhere, and as a picture.

A live screen owns the terminal, so what the guest prints by its serial port waits until it is gone. Leaves out how a
screen is drawn: see ``screen``.
"""

from __future__ import annotations

import contextlib
import os
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
SHOW_CURSOR = b"\x1b[?25h"


class Display:
    """Shows the screen if ``is_wanted``, and saves it as ``screenshot``. It is an observer, for it redraws at ticks.

    Raises: ConfigurationError if the screenshot could not be saved.
    """

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

    @contextlib.contextmanager
    def showing(self, machine: Machine) -> Iterator[None]:
        """Show the screen of ``machine`` meanwhile, if that is live; however it ends, the last one stays."""
        self._machine = machine
        if not self.is_live:
            yield
            return
        from pykvm.cli.screen import LiveScreen

        with LiveScreen() as self._live:
            try:
                yield
            finally:
                self.tick()
                self._live = None

    def rest(self) -> bytes:
        """Return what is to be printed after the run: what was held back, or the last screen."""
        if self.is_live or not self._is_wanted or self._machine is None:
            return bytes(self._held_back)
        text = self._machine.screen.text()
        return f"{text}\n".encode() if text else b""

    def save(self) -> None:
        """Save the last screen, if that is wanted. Raises: ConfigurationError if it cannot be."""
        if self._screenshot is not None and self._machine is not None:
            from pykvm.cli.screen import save_png

            save_png(self._machine.screen.snapshot(), self._screenshot)

    def give_back(self) -> None:
        """Give the terminal its cursor back, in a hurry."""
        if self._live is not None:
            with contextlib.suppress(OSError):
                os.write(sys.stdout.fileno(), SHOW_CURSOR)

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Do nothing: exits do not matter here."""

    def tick(self) -> None:
        """Redraw the screen if it changed."""
        if self._live is not None and self._machine is not None:
            self._live.update(self._machine.screen.snapshot())
