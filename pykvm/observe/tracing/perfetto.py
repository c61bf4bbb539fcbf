"""A trace as Chrome's trace events, which ui.perfetto.dev and chrome://tracing open: a track for each CPU.

    CPU 0   | guest    |io out 0x3f8| guest  |hlt ...
                       ^ 'H' serial THR                    instants: serial bytes, interrupts

"guest" is the time in KVM_RUN: in the guest, and in the kernel on its behalf. An exit's slice is the time that user
space needs for it. A CPU's slices are written at its next line, when their ends are known, so a line or an end behind.

See: "Trace Event Format" (Google): JSON array format; phases M (metadata), X (complete) and i (instant). Times are in
microseconds. The array's closing bracket may be missing, as when a process is killed. Leaves out flows and counters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pykvm.observe.tracing.formats import encode_event
from pykvm.observe.tracing.line import Coalesced, InterruptTaken, TraceEnd, TraceLine
from pykvm.observe.tracing.words import reason_of, what_of

__all__ = ["Perfetto"]

PROCESS = 1  # the one there is; 0 would be the idle process
FIRST_THREAD = 1  # of CPU 0, for the same reason
OFTEN_LONG = 60  # characters of a slice's name


@dataclass(frozen=True, slots=True)
class _Open:
    """An exit whose slice has not ended."""

    start: int
    name: str
    arguments: dict[str, object]


class Perfetto:
    """The trace events."""

    def __init__(self) -> None:
        self._open: dict[int, _Open | None] = {}  # by CPU
        self._has_events = False

    def begin(self, guest: str) -> str:
        """Return the start of the array, and the name of the one process."""
        return "[" + self._event("M", None, "process_name", args={"name": f"pykvm {guest}".strip()})

    def line(self, line: TraceLine) -> str:
        """Return the slices that end with ``line``, and an instant if it is one."""
        text = self._track(line.cpu)
        if isinstance(line.event, Coalesced | InterruptTaken):
            return text + self._instant(line, f"{reason_of(line.event)} {what_of(line)}")
        text += self._close_slice(line.cpu, line.resumed)
        if line.time > line.resumed:
            text += self._slice(line.cpu, "guest", line.resumed, line.time)
        name = f"{reason_of(line.event)} {what_of(line)}".strip()[:OFTEN_LONG]
        self._open[line.cpu] = _Open(line.time, name, _arguments(line))
        return text + (self._instant(line, f"{what_of(line)} {line.register}") if line.is_text else "")

    def end(self, end: TraceEnd) -> str:
        """Return the last exits' slices, which end here."""
        text = "".join(self._close_slice(cpu, end.time) for cpu in list(self._open))
        return text + self._event("i", end.time, f"stopped: {end.words}", s="p")

    def close(self) -> str:
        """Return the end of the array."""
        return "\n]\n"

    # ---- inside ----

    def _track(self, cpu: int) -> str:
        if cpu in self._open:
            return ""
        self._open[cpu] = None
        return self._event("M", None, "thread_name", cpu, args={"name": f"CPU {cpu}"}) + self._event(
            "M", None, "thread_sort_index", cpu, args={"sort_index": cpu}
        )

    def _close_slice(self, cpu: int, at: int) -> str:
        last, self._open[cpu] = self._open[cpu], None
        return "" if last is None else self._slice(cpu, last.name, last.start, at, last.arguments)

    def _slice(self, cpu: int, name: str, start: int, end: int, arguments: dict[str, object] | None = None) -> str:
        category = "guest" if arguments is None else "exit"
        return self._event("X", start, name, cpu, dur=max(0, end - start) / 1e3, cat=category, args=arguments or {})

    def _instant(self, line: TraceLine, name: str) -> str:
        return self._event("i", line.time, name, line.cpu, s="t", args=_arguments(line))

    def _event(self, phase: str, time: int | None, name: str, cpu: int = 0, **more: object) -> str:
        event = {"ph": phase, "pid": PROCESS, "tid": cpu + FIRST_THREAD, "name": name, **more}
        if time is not None:
            event["ts"] = time / 1e3
        separator, self._has_events = ",\n" if self._has_events else "\n", True
        return separator + json.dumps(event, separators=(",", ":"))


def _arguments(line: TraceLine) -> dict[str, object]:
    arguments: dict[str, object] = {"number": line.number, "register": line.register, **encode_event(line)}
    if line.answer is not None:
        arguments["answer"] = line.answer.hex()
    if line.place is not None:
        place = line.place
        arguments["instruction"] = f"{place.address:#x}  {place.text}  {place.source}".rstrip()
    return {name: value for name, value in arguments.items() if value not in (None, "")}
