"""``pykvm run``: run a guest, its output on stdout, and end with the status it earned.

Leaves out the meaning of the statuses: see ``pykvm.cli.main``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pykvm.cli.arguments import add_image_options, check_spares_guest, find_target
from pykvm.cli.gdb import add_gdb_option, check_gdb_options, is_pipe, run_under_gdb
from pykvm.cli.ioctls import add_ioctl_options, ioctl_log
from pykvm.cli.settings import Settings, add_machine_options
from pykvm.cli.statistics import add_statistics_option, statistics_of
from pykvm.cli.tracing import add_trace_options, check_trace_options, trace_of

if TYPE_CHECKING:
    from pykvm.cli.terminal import Terminal
    from pykvm.devices import Unclaimed
    from pykvm.observe import Recorder, Tracer

__all__ = ["add_parser"]

# How many unclaimed addresses are worth a line: a guest that probes every port would drown everything else.
UNCLAIMED_LINES = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser("run", help="run a guest", description="Run a guest. Its output goes to stdout.")
    add_image_options(parser)
    add_machine_options(parser)
    parser.add_argument(
        "--screen",
        action="store_true",
        help="show the VGA text screen, live in a terminal, else at the end; stdin types on the keyboard, and in a "
        "terminal the serial output follows at the end",
    )
    parser.add_argument("--screenshot", metavar="FILE.png", help="save the last screen as a picture (needs Pillow)")
    parser.add_argument(
        "--record", metavar="FILE", help="write every exit and its answer to FILE, for 'pykvm replay FILE'"
    )
    add_gdb_option(parser)
    add_statistics_option(parser)
    add_ioctl_options(parser)
    parser.add_argument("--trace", action="store_true", help="print a line for each exit on stderr")
    add_trace_options(parser, "stderr")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    from pykvm.cli.display import Display
    from pykvm.cli.terminal import Terminal, run_until_quit
    from pykvm.machine import Machine, RunResult

    check_gdb_options(options)
    check_trace_options(options)
    target = find_target(options)
    settings = Settings.choose(options, target)
    display = Display(options.screen, options.screenshot)
    if options.record is not None:
        check_spares_guest("--record", options.record, options.target)
    with (
        _recording(options.record, target.image.name) as recorders,
        _tracing(options, target.image.name) as tracers,
        ioctl_log(options) as ioctls,
        Terminal(stdout=sys.stderr.buffer if is_pipe(options) else None) as terminal,
        Machine(
            **settings.arguments(target),
            serial_output=display.hold_back if display.is_live else terminal.write,
            serial_input=None if options.screen or is_pipe(options) else terminal.read,
            debugcon_output=display.hold_back if display.is_live else terminal.write,
            on_unclaimed=UnclaimedNotes(terminal),
            observers=(terminal, display, *recorders, *tracers),
            ioctls=ioctls,
        ) as machine,
        statistics_of(options, machine) as statistics,
    ):
        terminal.on_death = display.give_back
        settings.apply(machine)
        machine.load(target.image, ring=settings.ring)
        if options.screen:
            terminal.serve_keyboard(machine)
        elif not is_pipe(options):
            terminal.serve_serial(machine)

        def run_it() -> RunResult:
            with display.showing(machine):
                if options.gdb is None:
                    return machine.run(options.timeout)
                return run_under_gdb(machine, target, options, terminal)

        try:
            result, words = run_until_quit(machine, run_it)
        finally:
            terminal.restore()
            terminal.write(display.rest())
        if words:
            terminal.note(words)
        if statistics is not None:
            terminal.note(str(statistics.result()))
        display.save()
        return result.status


@contextmanager
def _recording(path: str | None, guest: str) -> Iterator[tuple[Recorder, ...]]:
    """Record to the file ``path`` if there is one. Raises: OSError."""
    if path is None:
        yield ()
        return
    from pykvm.observe import Recorder

    with Recorder(path, guest=guest) as recorder:
        yield (recorder,)


@contextmanager
def _tracing(options: argparse.Namespace, guest: str) -> Iterator[tuple[Tracer, ...]]:
    """Trace if that is wanted. Raises: OSError; ConfigurationError."""
    if not options.trace and options.trace_file is None:
        yield ()
        return
    with trace_of(options, guest, sys.stderr.buffer) as tracer:
        yield (tracer,)


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
