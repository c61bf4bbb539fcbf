"""``pykvm run --gdb``: the guest waits for gdb before its first instruction, and does what gdb says from then on.

Leaves out the protocol: see ``pykvm.observe.gdbstub``.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pykvm.errors import ConfigurationError
from pykvm.x86 import Mode

if TYPE_CHECKING:
    from pykvm.cli.arguments import Target
    from pykvm.cli.terminal import Terminal
    from pykvm.machine import Machine, RunResult
    from pykvm.observe.gdbstub import Clients

__all__ = ["add_gdb_option", "check_gdb_options", "is_pipe", "run_under_gdb"]

STDIN, STDOUT = 0, 1


def add_gdb_option(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--gdb",
        metavar="[HOST:]PORT",
        help="wait for gdb there (port 0: any free one; default host: 127.0.0.1) and do what it says; '-' for gdb's "
        "'target remote | pykvm run TARGET --gdb -': gdb on stdin and stdout, the guest's output on stderr",
    )


def is_pipe(options: argparse.Namespace) -> bool:
    """Return whether gdb is at the other end of stdin and stdout."""
    return bool(options.gdb == "-")


def check_gdb_options(options: argparse.Namespace) -> None:
    """Raise ConfigurationError for what does not go with gdb."""
    if options.gdb is None:
        return
    if options.record is not None:
        raise ConfigurationError("--record does not go with --gdb: what can go back cannot be recorded")
    if not is_pipe(options):
        from pykvm.observe.gdbstub import parse_address

        parse_address(options.gdb)
    elif options.screen:
        raise ConfigurationError("--screen does not go with --gdb -: stdin and stdout are gdb's; use 'monitor screen'")
    elif sys.stdin is None or sys.stdin.isatty():
        raise ConfigurationError(
            "--gdb - is for gdb to start, not for a terminal: gdb -ex 'target remote | pykvm run TARGET --gdb -'"
        )


def run_under_gdb(machine: Machine, target: Target, options: argparse.Namespace, terminal: Terminal) -> RunResult:
    """Run ``machine`` as gdb says, and return what it came to. Raises: KeyboardInterrupt, as ``Machine.run``."""
    from pykvm.machine import Interrupted
    from pykvm.observe.gdbstub import Ending, HostFile, Monitor, SteppedGuest, serve
    from pykvm.observe.stepping import Stepper

    file = HostFile(PurePosixPath(target.image.name).name, target.image.elf)
    with Stepper(machine) as stepper, _clients(options, target, terminal) as clients:
        guest = SteppedGuest(machine, stepper, options.timeout)
        ending = serve(clients, guest, Monitor(machine, guest), file, on_idle=terminal.tick, say=terminal.note)
    if ending is Ending.KILLED:
        terminal.note("killed by gdb")
    if ending is Ending.DETACHED:
        return machine.run(guest.time_left)
    return guest.result(guest.stop or Interrupted())


@contextmanager
def _clients(options: argparse.Namespace, target: Target, terminal: Terminal) -> Iterator[Clients]:
    from pykvm.observe.gdbstub import Pipe, Port, parse_address

    if is_pipe(options):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in gdb's terminal is for gdb, which passes it on
        try:
            yield Pipe(STDIN, STDOUT)
        finally:
            signal.signal(signal.SIGINT, before)
        return
    with Port(parse_address(options.gdb)) as port:
        sources = _sources(target, options)
        # Else an ELF file of 32 bits would have gdb take real mode's code for 32-bit code.
        mode = " -ex 'set architecture i8086'" if target.image.mode is Mode.REAL else ""
        folder = f" -d {shlex.quote(str(sources))}" if sources else ""
        terminal.note(
            f"waiting for gdb at {port.address} (Ctrl-C quits); in another terminal:\n"
            f"  gdb{folder} -ex 'target remote {port.address}'{mode}"
        )
        yield port


def _sources(target: Target, options: argparse.Namespace) -> Path | None:
    """Return the folder in which gdb finds the sources, None if nobody knows or it is the one we are in."""
    folder = target.guest.folder if target.guest else Path(options.target).parent
    return None if folder == Path() or not target.image.elf else folder
