"""The options of a trace, which ``pykvm trace`` and ``pykvm run --trace`` share, and the tracer that they ask for.

Leaves out what a line of it looks like: see ``pykvm.observe.tracing``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from pykvm.cli.arguments import check_spares_guest, count
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:
    from pykvm.observe import TraceFilter, Tracer

__all__ = ["add_trace_options", "check_trace_options", "trace_of"]

TRACE_FORMATS = ("text", "jsonl", "perfetto")
FILTERS = {"only": "--only", "ports": "--port", "addresses": "--address", "cpu_ids": "--cpu", "limit": "--limit"}


def add_trace_options(parser: argparse.ArgumentParser, where: str) -> None:
    """Add the options that ``trace_of`` reads; ``where`` is where the trace goes without --trace-file."""
    group = parser.add_argument_group("trace")
    group.add_argument("--trace-file", metavar="FILE", help=f"write the trace to FILE (default: to {where})")
    group.add_argument(
        "--trace-format",
        choices=TRACE_FORMATS,
        default="text",
        help="columns of text; jsonl: a JSON object a line; perfetto: for ui.perfetto.dev (default: text)",
    )
    group.add_argument(
        "--only",
        type=_kinds,
        action="extend",
        metavar="KIND,...",
        help="only these: io, in, out, mmio, hlt, msr, interrupt, coalesced ...; repeatable",
    )
    group.add_argument(
        "--port",
        dest="ports",
        type=_range,
        action="append",
        metavar="PORT[-LAST]",
        help="only accesses to these ports, such as 0x3f8-0x3ff; repeatable",
    )
    group.add_argument(
        "--address",
        dest="addresses",
        type=_range,
        action="append",
        metavar="ADDRESS[-LAST]",
        help="only accesses to these guest-physical addresses; repeatable",
    )
    group.add_argument(
        "--cpu", dest="cpu_ids", type=_cpu, action="append", metavar="ID", help="only this CPU; repeatable"
    )
    group.add_argument("--limit", type=count, metavar="N", help="only the first N lines; the guest runs on")


def check_trace_options(options: argparse.Namespace) -> None:
    """Raise ConfigurationError if there are options of a trace, and none is wanted: for ``pykvm run``."""
    if options.trace or options.trace_file is not None:
        return
    given = [option for name, option in FILTERS.items() if getattr(options, name) is not None]
    if options.trace_format != "text":
        given.append("--trace-format")
    if given:
        raise ConfigurationError(f"{given[0]} is about a trace, and there is none: add --trace, or --trace-file FILE")


@contextmanager
def trace_of(options: argparse.Namespace, guest: str, stream: BinaryIO) -> Iterator[Tracer]:
    """Yield the tracer that ``options`` ask for, which writes to ``stream`` if they name no file.

    Raises: ConfigurationError; OSError.
    """
    from pykvm.observe import Tracer

    only = _filter(options)
    only.predicate()  # before a file is emptied
    if options.trace_file is not None:
        check_spares_guest("--trace-file", options.trace_file, options.target)
    with Tracer(
        stream if options.trace_file is None else options.trace_file,
        format=options.trace_format,
        only=only,
        limit=options.limit,
        guest=guest,
    ) as tracer:
        yield tracer


def _filter(options: argparse.Namespace) -> TraceFilter:
    from pykvm.observe import TraceFilter

    return TraceFilter(options.only or (), options.ports or (), options.addresses or (), options.cpu_ids or ())


def _kinds(text: str) -> list[str]:
    from pykvm.observe.tracing.filters import check_kinds

    kinds = text.split(",")
    try:
        check_kinds(kinds)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return kinds


def _range(text: str) -> range:
    first, dash, last = text.partition("-")
    try:
        start = int(first, 0)
        stop = int(last, 0) + 1 if dash else start + 1
    except ValueError:
        start = stop = -1
    if not 0 <= start < stop:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: write 0x3f8, or 0x3f8-0x3ff, the last one included")
    return range(start, stop)


def _cpu(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no CPU's number: they are 0, 1, 2 ...")
    return int(text)
