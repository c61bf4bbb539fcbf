"""Puts what a tracer has seen into words, many lines at a time, and hands them to a file or a stream.

Right after an exit every instruction of the host's is slow, for the guest has used the caches meanwhile; so that then
only what may change is looked up, and the words wait, for a tick at most. Leaves out what is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from pykvm.observe.tracing.formats import JsonLines, TextColumns, TraceFormat
from pykvm.observe.tracing.line import Event, Place, TraceEnd, TraceLine
from pykvm.observe.tracing.output import OutputFile
from pykvm.observe.tracing.perfetto import Perfetto

__all__ = ["FORMATS", "Seen", "TraceWriter"]

FORMATS: dict[str, type[TraceFormat]] = {"text": TextColumns, "jsonl": JsonLines, "perfetto": Perfetto}
MOST_WAITING = 512  # lines

# The fields of a TraceLine up to ``place``: a value costs much more to make than a tuple.
Seen = tuple[int | None, int, int, int, int, Event, str, bool, Place | None]


class TraceWriter:
    """Writes a trace of ``guest`` to ``target``, a path or a binary stream, in one of ``FORMATS``. Raises: OSError."""

    def __init__(self, target: str | Path | BinaryIO, format: str, guest: str) -> None:
        self._format = FORMATS[format]()
        self._output = OutputFile(target)
        self._guest = guest
        self._has_begun = False
        self._waiting: list[tuple[Seen, bytes | None, bool]] = []

    def add(self, seen: Seen, answer: bytes | None, refused: bool) -> None:
        """Write a line, sooner or later. Raises: OSError."""
        self._waiting.append((seen, answer, refused))
        if len(self._waiting) >= MOST_WAITING:
            self._write_lines()

    def end(self, end: TraceEnd) -> None:
        """Write the end of a run. Raises: OSError."""
        self._write_lines()
        self._begin()
        self._write(self._format.end(end))
        self._output.flush()

    def flush(self) -> None:
        """Hand all lines to the operating system. Raises: OSError."""
        self._write_lines()
        self._output.flush()

    def close(self) -> None:
        """Write the trace's end, and close the file if it was opened here. Raises: OSError, unless one was before."""
        try:
            self._write_lines()
            if self._has_begun or self._output.is_own:
                self._begin()
                self._write(self._format.close())
        finally:
            self._output.close()

    # ---- inside ----

    def _begin(self) -> None:
        """Write the trace's beginning, unless that was done: a stream of somebody else's is left alone up to here."""
        if not self._has_begun:
            self._has_begun = True
            self._write(self._format.begin(self._guest))

    def _write_lines(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._begin()
            line = self._format.line
            self._write("".join([line(TraceLine(*seen, answer, refused)) for seen, answer, refused in waiting]))

    def _write(self, text: str) -> None:
        self._output.write(text.encode("utf-8", "backslashreplace"))
