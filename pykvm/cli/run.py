"""``pykvm run``: run a guest, its output on stdout, and end with the status it earned.

Leaves out the meaning of the statuses: see ``pykvm.cli.main``.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from pykvm.cli.arguments import add_image_options, find_target, size

if TYPE_CHECKING:
    from pykvm.cli.terminal import Terminal
    from pykvm.devices import Unclaimed

__all__ = ["add_parser"]

DEFAULT_MEMORY = "16M"

# How many unclaimed addresses are worth a line: a guest that probes every port would drown everything else.
UNCLAIMED_LINES = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser("run", help="run a guest", description="Run a guest. Its output goes to stdout.")
    add_image_options(parser)
    parser.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help=f"RAM, such as 16M (default: {DEFAULT_MEMORY}, or what a bundled guest asks for)",
    )
    parser.add_argument("--ring", type=int, choices=(0, 3), help="start in ring 3, unprivileged (default: 0)")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="time limit (default: none)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    from pykvm.cli.terminal import Quit, Terminal
    from pykvm.machine import Interrupted, Machine, exit_status

    target = find_target(options)
    guest = target.guest
    memory, ring = options.memory, options.ring
    if memory is None:
        memory = guest.memory if guest else DEFAULT_MEMORY
    if ring is None:
        ring = guest.ring if guest else 0
    with (
        Terminal() as terminal,
        Machine(
            memory,
            serial_output=terminal.write,
            serial_input=terminal.read,
            debugcon_output=terminal.write,
            on_unclaimed=UnclaimedNotes(terminal),
            observers=(terminal,),
        ) as machine,
    ):
        machine.load(target.image, ring=ring)
        try:
            result = machine.run(options.timeout)
        except Quit:
            terminal.restore()
            terminal.note("quit with Ctrl-A x")
            return exit_status(Interrupted())
        except KeyboardInterrupt:
            terminal.restore()
            result = machine.result(Interrupted())
        terminal.restore()
        if result.report:
            terminal.note(result.report)
        return result.status


class UnclaimedNotes:
    """Says on stderr which accesses no device answered, the first few of them."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._lines = 0

    def __call__(self, access: Unclaimed) -> None:
        """Take note of ``access``."""
        self._lines += 1
        if self._lines <= UNCLAIMED_LINES:
            self._terminal.note(str(access))
        elif self._lines == UNCLAIMED_LINES + 1:
            self._terminal.note("there are more such accesses; they are not shown")


def seconds(text: str) -> float:
    """Return a time limit in seconds. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time limit: write seconds above 0, such as 2 or 0.5")
    return value
