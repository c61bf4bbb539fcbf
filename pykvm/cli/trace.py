"""``pykvm trace``: run a guest and print a line for each exit, in place of what the guest prints.

Leaves out the screen, recordings and gdb: ``pykvm run --trace`` goes with those.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pykvm.cli.arguments import add_image_options, check_spares_guest, find_target
from pykvm.cli.settings import Settings, add_machine_options
from pykvm.cli.tracing import add_trace_options, trace_of

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "trace",
        help="run a guest and show every exit",
        description="Run a guest and print a line for each exit. What the guest prints is in these lines, and nowhere "
        "else unless --output says so. The status is that of 'pykvm run'.",
    )
    add_image_options(parser)
    add_machine_options(parser)
    parser.add_argument("--output", metavar="FILE", help="write what the guest prints to FILE")
    add_trace_options(parser, "stdout")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    from pykvm.cli.terminal import Terminal, run_until_quit
    from pykvm.machine import Machine

    target = find_target(options)
    settings = Settings.choose(options, target)
    with (
        _guest_output(options) as output,
        trace_of(options, target.image.name, sys.stdout.buffer) as tracer,
        Terminal() as terminal,
        Machine(
            **settings.arguments(target),
            serial_output=output,
            serial_input=terminal.read,
            debugcon_output=output,
            observers=(terminal, tracer),
        ) as machine,
    ):
        settings.apply(machine)
        machine.load(target.image, ring=settings.ring)
        terminal.serve_serial(machine)
        try:
            result, words = run_until_quit(machine, lambda: machine.run(options.timeout))
        finally:
            terminal.restore()
        if words:
            terminal.note(words)
        return result.status


@contextmanager
def _guest_output(options: argparse.Namespace) -> Iterator[Callable[[bytes], object] | None]:
    """Yield what is to be given the guest's output, or None if nobody wants it. Raises: OSError; ConfigurationError."""
    if options.output is None:
        yield None
        return
    check_spares_guest("--output", options.output, options.target)
    from pykvm.observe.tracing.output import OutputFile

    file = OutputFile(options.output)
    try:
        yield file.write
    finally:
        file.close()
