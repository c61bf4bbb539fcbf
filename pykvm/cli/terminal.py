"""The terminal, as a guest's serial port sees it.

Output is passed on at once at the end of a line, and otherwise within a tick. Input is read only when the guest
asks for some; if it comes from a terminal, that goes raw at the first question (every key goes to the guest, Ctrl-C
too) and Ctrl-A x quits. See: termios(3). Leaves out window sizes and mouse reports.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections import deque
from types import FrameType, TracebackType
from typing import Self

from pykvm.kvm import Exit

__all__ = ["Quit", "Terminal"]

ESCAPE = 0x01  # Ctrl-A
HELP = "Ctrl-A x quits, Ctrl-A Ctrl-A sends Ctrl-A"

# Keys typed ahead of a guest that does not read them. More are dropped, with a bell.
TYPED_AHEAD = 4096


class Quit(KeyboardInterrupt):
    """Ctrl-A x was typed."""


class Terminal:
    """stdin and stdout of this process: a context manager that always gives the terminal back as it was.

    It is an observer, so that it can flush output and look for Ctrl-A x while the guest neither prints nor reads.
    """

    def __init__(self, stdin: int = 0) -> None:
        self._stdin = stdin
        self._output = sys.stdout.buffer
        self._is_terminal = os.isatty(stdin)
        self._ended = False
        self._keys: deque[int] = deque()
        self._after_escape = False
        self._cooked: list[object] | None = None  # the settings to go back to, while raw
        self._old_handlers: dict[int, object] = {}

    # ---- what the guest's serial port calls ----

    def write(self, data: bytes) -> None:
        """Pass the guest's output on."""
        self._output.write(data)
        if b"\n" in data:
            self._output.flush()

    def read(self, limit: int) -> bytes:
        """Return up to ``limit`` bytes of input that are there now; never waits."""
        if not self._is_terminal:
            return self._read_now(limit)
        if self._cooked is None:
            self._go_raw()
        self._take_keys()
        return bytes(self._keys.popleft() for _ in range(min(limit, len(self._keys))))

    # ---- what the run loop calls ----

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Do nothing: exits do not matter here."""

    def tick(self) -> None:
        """Flush output, and look for Ctrl-A x."""
        self._output.flush()
        if self._cooked is not None:
            self._take_keys()

    # ---- raw and back ----

    def restore(self) -> None:
        """Give the terminal back as it was; does nothing if it is."""
        if self._cooked is None:
            return
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._cooked)  # type: ignore[arg-type]
        self._cooked = None
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old_handlers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()
        if not isinstance(error, BrokenPipeError):
            self._output.flush()

    def _go_raw(self) -> None:
        self._output.flush()
        print(f"pykvm: the guest reads this terminal now; {HELP}", file=sys.stderr)
        # SIGTERM and SIGHUP would end the process without a chance to restore anything.
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._old_handlers[number] = signal.signal(number, self._on_deadly_signal)
        self._cooked = termios.tcgetattr(self._stdin)
        tty.setraw(self._stdin, termios.TCSADRAIN)
        # Keep the terminal's own newline treatment for output: a guest prints \n and means a new line.
        settings = termios.tcgetattr(self._stdin)
        settings[1] |= termios.OPOST
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, settings)

    def _on_deadly_signal(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # ---- input ----

    def _take_keys(self) -> None:
        for key in self._read_now(256):
            if self._after_escape:
                self._after_escape = False
                self._command(key)
            elif key == ESCAPE:
                self._after_escape = True
            else:
                self._type(key)

    def _command(self, key: int) -> None:
        if key in b"xX":
            raise Quit
        if key == ESCAPE:
            self._type(key)
        else:
            print(f"\npykvm: {HELP}", file=sys.stderr)

    def _type(self, key: int) -> None:
        if len(self._keys) < TYPED_AHEAD:
            self._keys.append(key)
        else:
            sys.stderr.write("\a")

    def _read_now(self, limit: int) -> bytes:
        if self._ended:
            return b""
        data = b""
        with contextlib.suppress(OSError, ValueError):  # a closed or revoked stdin has nothing to say
            if not select.select([self._stdin], [], [], 0)[0]:
                return b""
            data = os.read(self._stdin, limit)
        self._ended = not data
        return data
