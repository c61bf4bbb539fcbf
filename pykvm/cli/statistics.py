"""``--stats``: what a run's time went into, on stderr when it is over.

Leaves out what is counted: see ``pykvm.observe.statistics``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine import Machine
    from pykvm.observe.statistics import Statistics

__all__ = ["add_statistics_option", "statistics_of"]


def add_statistics_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that ``statistics_of`` reads."""
    parser.add_argument(
        "--stats",
        action="store_true",
        help="say on stderr in the end what the time went into: exits by reason and address, and KVM's own counters",
    )


@contextmanager
def statistics_of(options: argparse.Namespace, machine: Machine) -> Iterator[Statistics | None]:
    """Yield the statistics of the runs of ``machine`` from now on, or None if nobody wants them."""
    if not options.stats:
        yield None
        return
    from pykvm.observe.statistics import Statistics

    with Statistics(machine) as statistics:
        yield statistics
