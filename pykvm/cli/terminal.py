"""The terminal, as a guest's serial port and keyboard see it.

Output is passed on at once at the end of a line, and otherwise within a tick. Input is read only when the guest
asks for some, or, if it waits for an interrupt, when there is some. If it comes from a terminal, that goes raw when
the guest waits for it: every key goes to the guest, Ctrl-C too, and Ctrl-A x quits.

    cooked --the guest waits for input--> raw --end of the run, Ctrl-A x, or a signal--> cooked

See: termios(3). Leaves out window sizes and mouse reports.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections import deque
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from pykvm.cli.streams import discard_output, say
from pykvm.kvm import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.machine import Machine, RunResult

__all__ = ["Quit", "Terminal", "run_until_quit"]

ESCAPE = 0x01  # Ctrl-A
HELP = "Ctrl-A x quits, Ctrl-A Ctrl-A sends Ctrl-A"

# Keys typed ahead of a guest that does not read them. More are dropped, with a bell.
TYPED_AHEAD = 4096

EVENTS_A_KEY = 8  # of the guest's keyboard, at most: press and release of a key and of the modifiers with it
ROOM_KEPT = 64  # events, for an escape sequence that turns out to be none

FULL = 4096  # bytes of output that wait for the end of their line at most

# What would end the process without a chance to restore anything.
DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Quit(KeyboardInterrupt):
    """Ctrl-A x was typed."""


def run_until_quit(machine: Machine, run: Callable[[], RunResult]) -> tuple[RunResult, str]:
    """Return what ``run()`` of ``machine`` comes to, Ctrl-C and Ctrl-A x too, and what is to be said of it."""
    from pykvm.machine import Interrupted

    try:
        result = run()
    except KeyboardInterrupt as interrupt:
        result = machine.result(Interrupted())
        if isinstance(interrupt, Quit):
            return result, "quit with Ctrl-A x"
    return result, result.report or result.note


class Terminal:
    """stdin and stdout of this process: a context manager that always gives the terminal back as it was.

    It is an observer, so that it can flush output and look for Ctrl-A x while the guest neither prints nor reads.
    """

    def __init__(self, stdin: int = 0, stdout: BinaryIO | None = None) -> None:
        self._stdin = stdin
        self._output = stdout or sys.stdout.buffer
        self._is_terminal = os.isatty(stdin)
        self._shows_output = self._output.isatty()
        self._waiting = bytearray()  # output that is not flushed yet
        self._in_line = False  # whether the last byte of output left the cursor in the middle of a line
        self._asked_in_vain = 0  # how often the guest looked for input since it printed last
        self._ended = False  # whether stdin is at its end
        self._keys: deque[int] = deque()
        self._after_escape = False
        self._cooked: list[object] | None = None  # the settings to go back to, while raw
        self._old_handlers: dict[int, object] = {}
        self._rearm: Callable[[], None] | None = None  # wait for input, for a guest that waits for an interrupt
        self._on_keys: Callable[[], None] | None = None  # there is input for a guest that waits for an interrupt
        self._is_full = False  # the guest's keyboard has no room, and _on_keys is to be called again
        self.on_death: Callable[[], None] = lambda: None  # what else to give back before a signal kills

    # ---- who gets the input ----

    def serve_serial(self, machine: Machine) -> None:
        """Have the serial port of ``machine`` interrupt when there is input, from when the guest wants it to."""
        watch = machine.events.watch(self._stdin, machine.serial.poll)

        def listen() -> None:
            self._rearm, self._on_keys = watch.arm, machine.serial.poll
            if self._is_terminal and self._cooked is None:
                self._go_raw()

        machine.serial.on_listen = listen

    def serve_keyboard(self, machine: Machine) -> None:
        """Have all input typed on the keyboard of ``machine``: its serial port gets none."""
        from pykvm.devices import TerminalKeys

        decoder, keyboard = TerminalKeys(), machine.board.keyboard

        def take() -> None:
            room = max(0, keyboard.room - ROOM_KEPT) // EVENTS_A_KEY
            self._is_full = room == 0  # what is not read now is read at a tick
            data = self._typed(room) if self._is_terminal else self._read_now(room)
            keyboard.enqueue([*decoder.feed(data), *decoder.flush()])
            if not self._ended and not self._is_full:
                watch.arm()

        self._on_keys = take
        watch = machine.events.watch(self._stdin, take)
        with machine.lock:
            watch.arm()
        if self._is_terminal:
            self._go_raw()

    # ---- what the guest's serial port calls ----

    def write(self, data: bytes) -> None:
        """Pass the guest's output on."""
        self._asked_in_vain = 0
        self._waiting += data
        if b"\n" in data or len(self._waiting) >= FULL:
            self._flush()

    def read(self, limit: int) -> bytes:
        """Return up to ``limit`` bytes of input that are there now; never waits."""
        data = self._read(limit)
        if not data and self._rearm is not None and not self._ended:
            self._rearm()
        return data

    def note(self, text: str) -> None:
        """Print what pykvm has to say about the guest on stderr, on a line of its own."""
        self._flush()
        if self._shows_output and self._in_line:
            say("")
            self._in_line = False
        say(f"pykvm: {text}")

    def _read(self, limit: int) -> bytes:
        if not self._is_terminal:
            return self._read_now(limit)
        if self._cooked is None:
            # A guest looks at LSR before it sends a byte, too; but then it sends, and does not look again.
            self._asked_in_vain += 1
            if self._asked_in_vain == 1 and not self._has_input():
                return b""
            self._go_raw()
        return self._typed(limit)

    # ---- what the run loop calls ----

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Do nothing: exits do not matter here."""

    def tick(self) -> None:
        """Flush output, and look for Ctrl-A x."""
        self._flush()
        if self._cooked is not None:
            self._take_keys()
        if self._on_keys is not None and (self._keys or self._is_full):
            self._on_keys()  # the keys that were taken here wake nobody else

    # ---- raw and back ----

    def restore(self) -> None:
        """Give the terminal back as it was; does nothing if it is."""
        if self._cooked is None:
            return
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._cooked)  # type: ignore[arg-type]
        self._cooked = None

    def __enter__(self) -> Self:
        if (self._is_terminal or self._shows_output) and threading.current_thread() is threading.main_thread():
            for number in DEADLY:
                self._old_handlers[number] = signal.signal(number, self._on_deadly_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old_handlers.clear()
        if not isinstance(error, OSError):  # which may have come from writing
            self._flush()

    def _go_raw(self) -> None:
        try:
            self._cooked = termios.tcgetattr(self._stdin)
            tty.setraw(self._stdin, termios.TCSADRAIN)
            # Keep the terminal's own newline treatment for output: a guest prints \n and means a new line.
            settings = termios.tcgetattr(self._stdin)
            settings[1] |= termios.OPOST
            termios.tcsetattr(self._stdin, termios.TCSADRAIN, settings)
        except termios.error:  # the terminal has gone since
            self._is_terminal = False
            return
        self.note(f"the guest reads this terminal now; {HELP}")  # and it does: no key typed from here on is echoed

    def _on_deadly_signal(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        self.on_death()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    # ---- output ----

    def _flush(self) -> None:
        if not self._waiting:
            return
        data = bytes(self._waiting)
        self._waiting.clear()
        self._in_line = not data.endswith(b"\n")
        try:
            self._output.write(data)
            self._output.flush()
        except KeyboardInterrupt:
            discard_output()  # nobody reads it, and the next attempt would block as well
            raise

    # ---- input ----

    def _typed(self, limit: int) -> bytes:
        """Return up to ``limit`` bytes of what was typed for the guest, without commands to us."""
        self._take_keys()
        return bytes(self._keys.popleft() for _ in range(min(limit, len(self._keys))))

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
            self.note(HELP)

    def _type(self, key: int) -> None:
        if len(self._keys) < TYPED_AHEAD:
            self._keys.append(key)
        else:
            with contextlib.suppress(OSError):
                os.write(self._stdin, b"\a")

    def _read_now(self, limit: int) -> bytes:
        if self._ended or limit == 0:
            return b""
        data = b""
        with contextlib.suppress(OSError, ValueError):  # a closed or revoked stdin has nothing to say
            if not self._has_input():
                return b""
            data = os.read(self._stdin, limit)
        self._ended = not data
        return data

    def _has_input(self) -> bool:
        return bool(select.select([self._stdin], [], [], 0)[0])
