"""``pykvm step``: a guest instruction by instruction, on a screen, or as lines of text with ``--batch``.

    number  cpu  address  symbol  instruction  source line  what it changed

A line a step on stdout; columns are separated by two spaces or more, and what it changed by "; ". What the guest itself
prints is not among them: it goes to the file that ``--output`` names. Leaves out the screen: see ``pykvm.cli.stepper``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.cli.arguments import Target, add_image_options, check_spares_guest, count, find_target
from pykvm.cli.settings import Settings, add_machine_options
from pykvm.cli.streams import say
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:
    from pykvm.boot import Image
    from pykvm.machine import Machine, Stop
    from pykvm.observe.stepping import Arrival, Step

__all__ = ["add_parser", "format_step"]

DEFAULT_STEPS = 1000
WIDTHS = {"number": 6, "address": 8, "symbol": 20, "instruction": 30, "source": 16}

Write = Callable[[bytes], object]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "step",
        help="step through a guest, and back",
        description="Step through a guest on a screen (needs the extra 'tui'), or with --batch print each instruction "
        "and what it changed. Time goes by instructions meanwhile, a microsecond each.",
    )
    add_image_options(parser)
    add_machine_options(parser)
    parser.add_argument("--batch", action="store_true", help="no screen: a line for each instruction, on stdout")
    parser.add_argument(
        "-n",
        "--steps",
        type=count,
        metavar="N",
        help=f"with --batch: stop after N instructions (default: {DEFAULT_STEPS})",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="with --batch: write what the guest prints to FILE; it is not shown otherwise"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    if not options.batch:
        return _run_on_screen(options)
    target = find_target(options)
    if options.output is not None:
        check_spares_guest("--output", options.output, options.target)
    with _output(options.output) as write, _machine(options, target, write) as machine:
        return _run_batch(machine, target.image, options)


def format_step(step: Step, image: Image | None) -> str:
    """Return ``step`` as a line: see above. Names are those of ``image``."""
    from pykvm.observe.stepping.words import effects

    instruction = step.instruction
    text = f"{instruction.mnemonic} {instruction.operands}".strip() if instruction else "(cannot be read)"
    symbol = (image.symbol_at(step.address) if image else None) or "-"
    line = image.lines.find(step.address) if image else None
    columns = {
        "number": f"{step.number:>{WIDTHS['number']}}",
        "cpu": str(step.cpu),
        "address": f"{step.address:#x}",
        "symbol": symbol,
        "instruction": text,
        "source": str(line) if line else "-",
    }
    padded = [value.ljust(WIDTHS.get(name, 0)) for name, value in columns.items()]
    return "  ".join([*padded, "; ".join(effects(step))]).rstrip()


# ---- inside ----


def _run_on_screen(options: argparse.Namespace) -> int:
    for name, value in (("-n", options.steps), ("--output", options.output)):
        if value is not None:
            raise ConfigurationError(f"{name} goes with --batch: the screen has no use for it")
    from pykvm.cli.stepper.launch import check_terminal, run_stepper

    check_terminal()
    target = find_target(options)
    with _machine(options, target, None) as machine:
        return run_stepper(machine, target.image, options)


@contextmanager
def _machine(options: argparse.Namespace, target: Target, write: Write | None) -> Iterator[Machine]:
    """Make the machine, with ``target`` loaded; stdin is the guest's if it is no terminal."""
    from pykvm.cli.terminal import Terminal
    from pykvm.machine import Machine

    settings = Settings.choose(options, target)
    has_input = write is not None and not (sys.stdin and sys.stdin.isatty())
    with (
        Terminal() as terminal,
        Machine(
            **settings.arguments(target),
            serial_output=write,
            debugcon_output=write,
            serial_input=terminal.read if has_input else None,
        ) as machine,
    ):
        settings.apply(machine)
        machine.load(target.image, ring=settings.ring)
        if has_input:
            terminal.serve_serial(machine)
        yield machine


@contextmanager
def _output(path: str | None) -> Iterator[Write]:
    if path is None:
        yield lambda data: None
        return
    with Path(path).open("wb") as file:
        yield file.write


def _run_batch(machine: Machine, image: Image, options: argparse.Namespace) -> int:
    from pykvm.observe.stepping import Stepper

    exits, began = 0, time.perf_counter()

    def show(step: Step) -> bool:
        nonlocal exits
        exits += len(step.exits)
        print(format_step(step, image))
        return False

    with Stepper(machine, history=0) as stepper:
        try:
            arrival = stepper.continue_(
                condition=show, limit=options.steps or DEFAULT_STEPS, timeout=options.timeout, stepping=True
            )
        finally:
            sys.stdout.flush()
        stop = _stop_of(arrival, options.timeout)
        return _end(machine, stepper.position, stop, arrival.cpu, exits, time.perf_counter() - began)


def _stop_of(arrival: Arrival, timeout: float | None) -> Stop | None:
    from pykvm.machine import TimedOut
    from pykvm.observe.stepping import Reason

    return TimedOut(timeout) if arrival.reason is Reason.TIMEOUT and timeout is not None else arrival.stop


def _end(machine: Machine, steps: int, stop: Stop | None, cpu: int, exits: int, duration: float) -> int:
    """Say why it is over, on stderr, and return the exit status."""
    what = f"{steps} step{'' if steps == 1 else 's'}"
    if stop is None:
        say(f"pykvm: {what}, and the guest goes on: -n takes more")
        return 0
    result = machine.result(stop, exits, duration, cpu)
    say(f"pykvm: {result.report}" if result.report else f"pykvm: {stop}, after {what}")
    return result.status
