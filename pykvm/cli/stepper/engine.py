"""``Engine``: the thread that a guest runs on, and the commands that wait for it.

    key --submit()--> commands --the thread executes one after the other--> on_news(Standing or error) --> screen

A guest may run for ever, and a screen must not wait for it. Of many commands in a row, as from a key that is held down,
only some are worth a look at the guest: the last one is, and one now and then. Leaves out what the commands do.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pykvm.cli.stepper.guest import Command, Guest, Standing
from pykvm.errors import PykvmError

__all__ = ["Engine", "News"]

MOST_WAITING = 256  # commands: a key that is held down longer is not obeyed any faster
NOW_AND_THEN = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class News:
    """What came of a command: where the guest stands now, and what was refused, in words.

    ``failure`` is an error that is no answer to the command but a bug, or the end of the host's KVM.
    """

    standing: Standing | None = None
    refusal: str = ""
    failure: BaseException | None = None


class Engine:
    """Executes commands on ``guest``; ``on_news`` is called on the engine's thread. A context manager."""

    def __init__(self, guest: Guest, on_news: Callable[[News], object]) -> None:
        self._guest = guest
        self._on_news = on_news
        self._waiting: deque[Command] = deque()
        self._changed = threading.Condition()
        self._is_busy = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="pykvm-step", daemon=True)

    @property
    def is_busy(self) -> bool:
        """Return whether a command is being executed, or waits."""
        with self._changed:
            return self._is_busy or bool(self._waiting)

    def start(self) -> None:
        """Start the thread; the first news is where the guest stands."""
        self._waiting.append(lambda guest: None)
        self._thread.start()

    def submit(self, command: Command) -> None:
        """Have ``command`` executed after those that wait; too many are dropped."""
        with self._changed:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(command)
                self._changed.notify()

    def interrupt(self) -> None:
        """Have the command under way end soon, and forget those that wait."""
        with self._changed:
            self._waiting.clear()
            if self._is_busy:
                self._guest.interrupt()

    def close(self) -> None:
        """Interrupt, and wait for the end of the thread. Does nothing the second time."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        while self._thread.is_alive():
            self.interrupt()
            self._thread.join(NOW_AND_THEN)

    # ---- on the thread ----

    def _work(self) -> None:
        told = 0.0
        while (command := self._next()) is not None:
            news = self._execute(command)
            with self._changed:
                self._is_busy = False
                is_last = not self._waiting
            if is_last or news.refusal or news.failure or time.monotonic() - told > NOW_AND_THEN:
                self._on_news(news)
                told = time.monotonic()

    def _next(self) -> Command | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return None
            self._is_busy = True
            return self._waiting.popleft()

    def _execute(self, command: Command) -> News:
        refusal = ""
        try:
            try:
                command(self._guest)
            except PykvmError as error:
                refusal = str(error)
            return News(self._guest.stand(), refusal)
        except BaseException as error:  # the screen's thread raises it, when the terminal is given back
            return News(None, refusal, error)
