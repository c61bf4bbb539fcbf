"""``run_stepper``: the stepper on this process's terminal, which is always given back.

Textual gives the terminal back when the app ends, however it ends; a signal that kills leaves it no time, so that is
done here. Leaves out the app itself, which is imported only when there is a terminal for it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from pykvm.cli.streams import say
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:
    from pykvm.boot import Image
    from pykvm.cli.stepper.guest import Guest, Standing
    from pykvm.machine import Machine

__all__ = ["INSTALL", "check_terminal", "run_stepper", "show"]

INSTALL = "pip install 'pykvm-hypervisor[tui]'"
BATCH = "'pykvm step --batch TARGET' needs no screen"

STDIN, STDERR = 0, 2
DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

# What a terminal is told at the end, in xterm's words; Textual tells it the same when it has the time.
GIVE_BACK = b"".join(
    (
        b"\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l",  # no reports of the mouse
        b"\x1b[?2004l",  # no brackets around what is pasted
        b"\x1b[?1004l",  # no reports of the focus
        b"\x1b[<u",  # keys as they were
        b"\x1b[?7h",  # lines wrap
        b"\x1b[?1049l",  # the screen that was there before
        b"\x1b[?25h",  # and its cursor
    )
)


def run_stepper(machine: Machine, image: Image, options: argparse.Namespace) -> int:
    """Step ``machine``, which has loaded ``image``, on the terminal until somebody quits; return the exit status.

    What the guest printed follows on stdout when the screen is gone, and the report on its crash on stderr.

    Raises: ConfigurationError if there is no terminal for it, or Textual is not installed; what the guest's devices and
    KVM raise.
    """
    check_terminal()
    from pykvm.cli.stepper.stepped import SteppedGuest

    with SteppedGuest(machine, image, options) as guest:
        return show(guest)


def show(guest: Guest) -> int:
    """Show ``guest`` on the terminal until somebody quits; see ``run_stepper``."""
    from pykvm.cli.stepper.app import StepperApp

    app = StepperApp(guest)
    try:
        with _given_back():
            app.run()
    finally:
        app.close()
    if app.failure is not None:
        raise app.failure
    if app.return_code is None:  # Textual takes a SIGINT for a wish to end
        raise KeyboardInterrupt
    if app.standing is not None:
        _print_the_rest(app.standing)
    return app.return_code


def check_terminal() -> None:
    """Raise ConfigurationError if the stepper has no terminal that it can draw on, or no library to draw with."""
    names = [name for name in ("stdin", "stdout", "stderr") if not _is_terminal(name)]
    if names:
        verb = "is" if len(names) == 1 else "are"
        which = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        raise ConfigurationError(f"the stepper needs a terminal, and {which} {verb} none: {BATCH}")
    term = os.environ.get("TERM", "")
    if term in ("", "dumb"):
        raise ConfigurationError(f"the stepper cannot draw on this terminal, for TERM is {term or 'not set'}: {BATCH}")
    if importlib.util.find_spec("textual") is None:
        raise ConfigurationError(f"the stepper needs Textual, which is not installed: {INSTALL}; {BATCH}")


def _is_terminal(name: str) -> bool:
    stream = getattr(sys, f"__{name}__")
    return stream is not None and not stream.closed and stream.isatty()


def _print_the_rest(standing: Standing) -> None:
    """Print what is of use when the screen is gone. Raises: OSError if stdout cannot be written."""
    sys.stdout.buffer.write(standing.serial.data)
    sys.stdout.buffer.flush()
    if standing.report:
        say(f"pykvm: {standing.report}")


@contextlib.contextmanager
def _given_back() -> Iterator[None]:
    """Have the terminal given back even if a signal kills the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    cooked = termios.tcgetattr(STDIN)

    def on_deadly_signal(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(termios.error, OSError):  # the terminal is gone
            os.write(STDERR, GIVE_BACK)
            termios.tcsetattr(STDIN, termios.TCSANOW, cooked)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = {number: signal.signal(number, on_deadly_signal) for number in DEADLY}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
