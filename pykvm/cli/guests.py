"""``pykvm guests``: list the bundled guests. Leaves out what they do in detail: each has a chapter in docs/book."""

from __future__ import annotations

import argparse

from pykvm.boot import bundled_guests

__all__ = ["add_parser"]

HEADING = ("guest", "mode", "needs", "what it shows")
DESCRIPTION = """\
List the bundled guests: the mode they start in, the probes that must work on this host for them to run
('pykvm doctor --probe' asks them), and what they show. For 'pykvm run', 09-hello is also hello, or 09.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser("guests", help="list the bundled guests", description=DESCRIPTION)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    guests = bundled_guests()
    rows = [HEADING, *((guest.name, guest.mode, " ".join(guest.needs) or "-", guest.summary) for guest in guests)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
