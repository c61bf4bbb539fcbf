"""``pykvm guests``: list the bundled guests. Leaves out what they do in detail: each has a chapter in docs/book."""

from __future__ import annotations

import argparse

from pykvm.boot import bundled_guests

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser("guests", help="list the bundled guests", description="List the bundled guests.")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    guests = bundled_guests()
    width = max(len(guest.name) for guest in guests)
    for guest in guests:
        print(f"{guest.name:<{width}}  {guest.mode:<9}  {guest.summary}")
    return 0
