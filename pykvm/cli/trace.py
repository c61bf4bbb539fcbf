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
    from pykvm.cli.terminal import Quit, Terminal
    from pykvm.machine import Interrupted, Machine

    target = find_target(options)
    settings = Settings.choose(options, target)
    with (
        _guest_output(options) as output,
        trace_of(options, target.image.name, sys.stdout.buffer) as tracer,
        Terminal() as terminal,
        Machine(
            settings.memory,
            irqchip=settings.irqchip,
            cpus=settings.cpus,
            devices=settings.devices,
            rom=target.rom,
            assist=options.assist,
            serial_output=output,
            serial_input=terminal.read,
            debugcon_output=output,
            observers=(terminal, tracer),
        ) as machine,
    ):
        settings.apply(machine)
        machine.load(target.image, ring=settings.ring)
        terminal.serve_serial(machine)
        words = ""
        try:
            result = machine.run(options.timeout)
        except KeyboardInterrupt as interrupt:
            result = machine.result(Interrupted())
            words = "quit with Ctrl-A x" if isinstance(interrupt, Quit) else ""
        finally:
            terminal.restore()
        if words or result.report or result.note:
            terminal.note(words or result.report or result.note)
        return result.status


@contextmanager
def _guest_output(options: argparse.Namespace) -> Iterator[Callable[[bytes], object] | None]:
    """Yield what is to be given the guest's output, or None if nobody wants it. Raises: OSError; ConfigurationError."""
    if options.output is None:
        yield None
        return
    check_spares_guest("--output", options.output, options.target)
    from pykvm.observe.tracing.output import OutputFile

    check_spares_guest("--output", options.output, options.target)
    file = OutputFile(options.output)
    try:
        yield file.write
    finally:
        file.close()
