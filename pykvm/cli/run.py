"""``pykvm run``: run a guest, its output on stdout, and end with the status it earned.

Leaves out the meaning of the statuses: see ``pykvm.cli.main``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.cli.arguments import add_image_options, count, find_target, size
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:
    from pykvm.boot import BundledGuest
    from pykvm.cli.terminal import Terminal
    from pykvm.devices import Unclaimed
    from pykvm.machine import Machine
    from pykvm.observe import Recorder

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
    parser.add_argument(
        "--irqchip",
        choices=("none", "user", "kernel", "split"),
        help="interrupt controllers: none (HLT ends the run), user (8259A and 8254 in Python), kernel, or split (the "
        "local APIC in the kernel, the rest in Python) (default: none, or what a bundled guest asks for)",
    )
    parser.add_argument("--cpus", type=count, metavar="N", help="how many CPUs (default: 1); more need local APICs")
    parser.add_argument(
        "--device",
        dest="devices",
        action="append",
        metavar="NAME",
        help="plug in an optional device: testdev or doorbell; repeatable",
    )
    parser.add_argument("--keys", metavar="KEYS", help='type on the keyboard, such as "h e l l o shift-1 ret ctrl-c"')
    parser.add_argument(
        "--msr",
        dest="msrs",
        action="append",
        type=msr_value,
        metavar="MSR=VALUE",
        help="an MSR, by number or name, that holds VALUE until the guest writes it; repeatable",
    )
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
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    from pykvm.cli.display import Display
    from pykvm.cli.terminal import Quit, Terminal
    from pykvm.machine import Interrupted, Machine

    target = find_target(options)
    settings = Settings.choose(options, target.guest)
    display = Display(options.screen, options.screenshot)
    if options.record is not None and _is_same_file(options.record, options.target):
        raise ConfigurationError(f"--record {options.record} would overwrite the guest: name another file")
    with (
        _recording(options.record, target.image.name) as recorders,
        Terminal() as terminal,
        Machine(
            settings.memory,
            irqchip=settings.irqchip,
            cpus=settings.cpus,
            devices=settings.devices,
            serial_output=display.hold_back if display.is_live else terminal.write,
            serial_input=None if options.screen else terminal.read,
            debugcon_output=display.hold_back if display.is_live else terminal.write,
            on_unclaimed=UnclaimedNotes(terminal),
            observers=(terminal, display, *recorders),
        ) as machine,
    ):
        terminal.on_death = display.give_back
        settings.apply(machine)
        machine.load(target.image, ring=settings.ring)
        if options.screen:
            terminal.serve_keyboard(machine)
        else:
            terminal.serve_serial(machine)
        words = ""
        try:
            with display.showing(machine):
                result = machine.run(options.timeout)
        except KeyboardInterrupt as interrupt:
            result = machine.result(Interrupted())
            words = "quit with Ctrl-A x" if isinstance(interrupt, Quit) else ""
        finally:
            terminal.restore()
            terminal.write(display.rest())
        if words or result.report:
            terminal.note(words or result.report)
        display.save()
        return result.status


def _is_same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):  # one of them is no file, or no file yet
        return False


@contextmanager
def _recording(path: str | None, guest: str) -> Iterator[tuple[Recorder, ...]]:
    """Record to the file ``path`` if there is one. Raises: OSError."""
    if path is None:
        yield ()
        return
    from pykvm.observe import Recorder

    with Recorder(path, guest=guest) as recorder:
        yield (recorder,)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the machine is to be: what the options say, or else what a bundled guest asks for, or else the defaults."""

    memory: int | str = DEFAULT_MEMORY
    ring: int = 0
    irqchip: str = "none"
    cpus: int = 1
    devices: tuple[str, ...] = ()
    keys: str = ""
    msrs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def choose(cls, options: argparse.Namespace, guest: BundledGuest | None) -> Settings:
        """Return the settings for ``options`` and ``guest``."""
        names = [field.name for field in fields(cls)]
        wanted = cls() if guest is None else cls(**{name: getattr(guest, name) for name in names})
        given = {name: getattr(options, name) for name in names}
        return replace(wanted, **{name: value for name, value in given.items() if value is not None})

    def apply(self, machine: Machine) -> None:
        """Tell ``machine`` what is not said when it is made. Raises: ConfigurationError."""
        from pykvm.devices import parse_keys

        for index, value in self.msrs:
            machine.msr.store(index, value)
        keys = parse_keys(self.keys)
        if not machine.board.keyboard.enqueue(keys):
            raise ConfigurationError(f"these are {len(keys)} key strokes, more than fit: type fewer")


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


def msr_value(text: str) -> tuple[int, int]:
    """Return the number and the value that MSR=VALUE names. Raises: ArgumentTypeError."""
    from pykvm.x86 import parse_msr

    name, _, value = text.partition("=")
    try:
        index, number = parse_msr(name), int(value, 0)
    except (ConfigurationError, ValueError) as error:
        reason = str(error) if isinstance(error, ConfigurationError) else "write MSR=VALUE, such as 0x1234=42"
        raise argparse.ArgumentTypeError(f"{text!r} sets no MSR: {reason}") from None
    if not 0 <= number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} sets no MSR: a value has 64 bits")
    return index, number


def seconds(text: str) -> float:
    """Return a time limit in seconds. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time limit: write seconds above 0, such as 2 or 0.5")
    return value
