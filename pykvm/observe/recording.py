"""A recording of a run: what its lines mean, and how they are written as JSON.

    {"format": "pykvm recording", "version": 1, "guest": "01-hlt", "cpus": 1, ...}
    {"t": 41200, "vcpu": 0, "exit": "IoOut", "port": "0x3f8", "size": 1, "count": 1, "data": "48", "text": "H"}
    {"t": 50300, "vcpu": 0, "exit": "IoIn", "port": "0x3fd", "size": 1, "count": 1, "answer": "60"}
    {"t": 61000, "event": "Input", "data": "61"}
    {"t": 70800, "stop": "Halted", "status": 0, "text": "halted: HLT, and nothing can wake this CPU"}

One line is the header, then there is one for each exit, for each thing that came from outside, and for each end of a
run. See: docs/reference/recording.md. Leaves out reading: see ``recordingreader``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from pykvm.devices import KeyEvent
from pykvm.errors import RecordingError
from pykvm.kvm import Exit
from pykvm.machine import Stop, Stopped, exit_status
from pykvm.machine.journal import Event, Keys, MemoryRead, Setup

__all__ = [
    "FORMAT",
    "HEX_FIELDS",
    "UNFINISHED",
    "VERSION",
    "BrokenOff",
    "EndLine",
    "EventLine",
    "ExitLine",
    "Header",
    "Interrupt",
    "Line",
    "Recording",
    "encode_header",
    "encode_line",
    "exit_status_of",
    "without_times",
    "write_recording",
]

FORMAT = "pykvm recording"
VERSION = 1
UNFINISHED = "the recorder was closed before the run had ended"

# The numbers that people know in hexadecimal; all others are counts.
HEX_FIELDS = {
    *("address", "gpa", "port", "index", "rip", "pc"),
    *("data", "args", "value", "flags", "dr6", "dr7", "error_code"),
    *("msr_reason", "hardware_entry_failure_reason", "hardware_exit_reason"),
}

PRINTABLE = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r")


@dataclass(frozen=True, slots=True)
class Header:
    """The first line: which ``guest`` (a name, for people), and what its machine was made of."""

    guest: str
    setup: Setup


@dataclass(frozen=True, slots=True)
class ExitLine:
    """An exit, at ``time`` (nanoseconds of the machine's clock), and what came of it.

    ``answer`` is what a read was answered; None for all others, and for one that was ``refused`` or whose device
    raised an error. ``input`` is what the serial port was given to read meanwhile, ``memory`` what a device read of
    guest memory. A ``coalesced`` write was no exit: KVM had kept it back.
    """

    time: int
    vcpu: int
    exit: Exit
    answer: bytes | None = None
    refused: bool = False
    input: tuple[bytes, ...] = ()
    memory: tuple[MemoryRead, ...] = ()
    coalesced: bool = False


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The CPU ``vcpu`` took the interrupt ``vector`` from a controller outside the kernel."""

    vcpu: int
    vector: int


@dataclass(frozen=True, slots=True)
class EventLine:
    """Something that came from outside at ``time``."""

    time: int
    event: Event | Interrupt


@dataclass(frozen=True, slots=True)
class BrokenOff:
    """The run was ended by an ``error`` of a device or of pykvm's, in words."""

    error: str

    def __str__(self) -> str:
        return f"broken off: {self.error}"


@dataclass(frozen=True, slots=True)
class EndLine:
    """The end of a run. The last line is one, or else the recording was cut off."""

    time: int
    stop: Stop | BrokenOff


Line = ExitLine | EventLine | EndLine


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording in memory; ``name`` is that of its file, for messages, and ``path`` the file itself."""

    header: Header
    lines: tuple[Line, ...]
    name: str = "recording"
    path: str = ""

    def number(self, position: int) -> int:
        """Return which line of the file ``lines[position]`` is, counted from 1: the header is the first."""
        return position + 2


def exit_status_of(stop: Stop | BrokenOff) -> int:
    """Return the exit status of a run that ended with ``stop``, as ``pykvm run`` has it."""
    return exit_status(Stopped() if isinstance(stop, BrokenOff) else stop)


# ---- writing ----


def write_recording(path: str | Path, recording: Recording) -> None:
    """Write ``recording`` to ``path``. Raises: OSError, with ``filename``."""
    try:
        with Path(path).open("w", encoding="ascii") as file:
            file.write(encode_header(recording.header) + "\n")
            file.writelines(encode_line(line) + "\n" for line in recording.lines)
    except OSError as error:  # one of writing does not know the name
        raise OSError(error.errno, error.strerror, str(path)) from error


def encode_header(header: Header) -> str:
    """Return the first line, without its newline."""
    setup = header.setup
    regions = [{"gpa": f"{gpa:#x}", "size": size, "readonly": readonly} for gpa, size, readonly in setup.memory]
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "guest": header.guest,
            "cpus": setup.cpus,
            "memory": regions,
            "irqchip": setup.irqchip,
            "devices": list(setup.devices),
            "start": setup.start.isoformat(),
        }
    )


def encode_line(line: Line) -> str:
    """Return ``line`` as JSON, without its newline; its keys are always in the same order."""
    match line:
        case ExitLine():
            rest = _exit_line(line)
        case EventLine():
            rest = _event(line.event)
        case EndLine():
            rest = _end(line.stop)
    return json.dumps({"t": line.time, **rest})


def without_times(lines: Iterable[str]) -> list[str]:
    """Return the lines of a recording without what depends on time, for comparing two of the same guest.

    Raises: RecordingError if a line is no JSON object.
    """
    kept = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise RecordingError(f"line {number} is no JSON object: {text[:40]!r}")
        if line.get("event") == "TimePassed":
            continue
        kept.append(json.dumps({key: value for key, value in line.items() if key not in ("t", "start")}))
    return kept


# ---- inside ----


def _exit_line(line: ExitLine) -> dict[str, object]:
    result: dict[str, object] = {"vcpu": line.vcpu, "exit": type(line.exit).__name__, **_fields(line.exit)}
    if line.answer is not None:
        result["answer"] = line.answer.hex()
    if line.refused:
        result["refused"] = True
    if line.input:
        result["input"] = [chunk.hex() for chunk in line.input]
    if line.memory:
        result["memory"] = [_fields(read) for read in line.memory]
    if line.coalesced:
        result["coalesced"] = True
    text = getattr(line.exit, "data", None)
    if isinstance(text, bytes) and text and PRINTABLE.issuperset(text):
        result["text"] = text.decode("ascii")
    return result


def _event(event: Event | Interrupt) -> dict[str, object]:
    result: dict[str, object] = {"event": type(event).__name__}
    if isinstance(event, Keys):
        return result | {"keys": [_key(key) for key in event.events], "queued": event.queued}
    return result | _fields(event)


def _key(event: KeyEvent) -> str:
    return ("+" if event.pressed else "-") + event.key


def _end(stop: Stop | BrokenOff) -> dict[str, object]:
    rest = _fields(stop)
    return {"stop": type(stop).__name__, **rest, "status": exit_status_of(stop), "text": str(stop)}


def _fields(value: object) -> dict[str, object]:
    if not is_dataclass(value):
        return {}
    return {field.name: _value(field.name, getattr(value, field.name)) for field in fields(value)}


def _value(name: str, value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_value(name, item) for item in value]
    if is_dataclass(value):  # the exit that ended a run
        return {"exit": type(value).__name__, **_fields(value)}
    if isinstance(value, int) and not isinstance(value, bool) and name in HEX_FIELDS:
        return f"{value:#x}"
    return value
