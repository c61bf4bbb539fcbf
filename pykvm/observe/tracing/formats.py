"""How a trace is written: what a format is asked for, and the two that are lines of text.

    text     columns for people, and for grep: one line an exit
    jsonl    JSON Lines: a header, one object a line, and an end of each run; see docs/reference/trace.md
    perfetto see ``perfetto``

Formats are told of lines one after the other, and return the text to write: nothing is kept. Leaves out files.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Protocol

from pykvm.machine.report import format_duration
from pykvm.observe.tracing.line import Coalesced, InterruptTaken, TraceEnd, TraceLine
from pykvm.observe.tracing.words import reason_of, what_of

__all__ = ["VERSION", "JsonLines", "TextColumns", "TraceFormat", "encode_event"]

VERSION = 1  # of the JSON Lines

WHAT, CODE = 44, 34  # columns: what is longer pushes the rest of its line to the right


class TraceFormat(Protocol):
    """A way to write a trace down. Each of these returns text to be appended to it, with its newlines."""

    def begin(self, guest: str) -> str:
        """Begin the trace of ``guest``, a name for people."""

    def line(self, line: TraceLine) -> str:
        """Write ``line``."""

    def end(self, end: TraceEnd) -> str:
        """Write the end of a run. Another may follow."""

    def close(self) -> str:
        """Close the trace."""


class TextColumns:
    """A line of aligned columns for each."""

    def begin(self, guest: str) -> str:
        """Return the headings."""
        return f"{'#':>7} {'time ms':>11} {'+since us':>11} cpu  {'exit':<10} {'what':<{WHAT}} instruction\n"

    def line(self, line: TraceLine) -> str:
        """Return the line."""
        number = "-" if line.number is None else line.number
        what = f"{what_of(line)}  {line.register}" if line.register else what_of(line)
        place = line.place
        code = "" if place is None else f" {place.address:#x}  {place.text:<{CODE}} {place.source}"
        return (
            f"{number:>7} {line.time / 1e6:>11.3f} {line.since / 1e3:>+11.1f} {line.cpu:>3}  "
            f"{reason_of(line.event):<10} {what:<{WHAT}}{code}"
        ).rstrip() + "\n"

    def end(self, end: TraceEnd) -> str:
        """Return the last line."""
        exits = "1 exit" if end.exits == 1 else f"{end.exits} exits"
        return f"stopped: {end.words} after {exits}, {format_duration(end.duration / 1e9)}\n"

    def close(self) -> str:
        """Return nothing."""
        return ""


class JsonLines:
    """A JSON object for each."""

    def begin(self, guest: str) -> str:
        """Return the header."""
        return _encode({"kind": "header", "format": "pykvm-trace", "version": VERSION, "guest": guest})

    def line(self, line: TraceLine) -> str:
        """Return the object; what is not known, or empty, is left out."""
        document: dict[str, object] = {
            "kind": _kind(line),
            "number": line.number,
            "time_ns": line.time,
            "since_ns": line.since,
            "guest_ns": line.time - line.resumed,
            "cpu": line.cpu,
            "reason": reason_of(line.event),
            "event": encode_event(line),
            "register": line.register or None,
            "answer": None if line.answer is None else line.answer.hex(),
            "refused": line.refused,
        }
        if line.place is not None:
            place = line.place
            document["instruction"] = {"address": place.address, "text": place.text, "source": place.source}
        return _encode({name: value for name, value in document.items() if value is not None and value is not False})

    def end(self, end: TraceEnd) -> str:
        """Return the object that ends a run."""
        return _encode(
            {"kind": "end", "time_ns": end.time, "stop": end.words, "exits": end.exits, "duration_ns": end.duration}
        )

    def close(self) -> str:
        """Return nothing."""
        return ""


def encode_event(line: TraceLine) -> dict[str, object]:
    """Return the exit's class and fields as JSON has them: bytes in hexadecimal, tuples as lists."""
    event = line.event.write if isinstance(line.event, Coalesced) else line.event
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {"class": type(event).__name__, **{name: _plain(value) for name, value in values.items()}}


def _kind(line: TraceLine) -> str:
    return "exit" if not isinstance(line.event, Coalesced | InterruptTaken) else reason_of(line.event)


def _plain(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return list(value)
    return value


def _encode(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":")) + "\n"
