"""Reading a recording, from a file that may be cut off, edited, or something else altogether.

Whatever is wrong with it is one error that names the line and the field. What a line says must also be something that
KVM could have reported, and the lines must make sense together: time does not go back, every read has its answer, and
the last line is the end of a run. See: docs/reference/recording.md. Leaves out repairing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar, get_args

from pykvm.boot.image import printable
from pykvm.devices import KeyEvent
from pykvm.errors import ConfigurationError, RecordingError
from pykvm.kvm import Exit, Rdmsr, ReadExit, Wrmsr
from pykvm.machine import IrqchipKind, Stop
from pykvm.machine.board import check_device
from pykvm.machine.journal import Event, Keys, MemoryRead, Setup
from pykvm.machine.scripted import answer_size, check_exit
from pykvm.observe.recording import (
    FORMAT,
    HEX_FIELDS,
    VERSION,
    BrokenOff,
    EndLine,
    EventLine,
    ExitLine,
    Header,
    Interrupt,
    Line,
    Recording,
)

__all__ = ["read_recording"]

T = TypeVar("T")

LONGEST_LINE = 1 << 20  # bytes: no exit and no event needs so many
MOST_CPUS = 4096
VECTORS = 256
PORTS = 1 << 16
WORD = 1 << 64
FOREVER = 1 << 62  # nanoseconds, 146 years

EXITS: dict[str, type] = {kind.__name__: kind for kind in get_args(Exit)}
EVENTS: dict[str, type] = {kind.__name__: kind for kind in (*get_args(Event), Interrupt)}
STOPS: dict[str, type] = {kind.__name__: kind for kind in (*get_args(Stop), BrokenOff)}
COMMENTS = ("text", "status")  # for people


def read_recording(path: str | Path) -> Recording:
    """Return the recording in the file ``path``.

    Raises: RecordingError that names the file, the line and the field.
    """
    name = printable(str(path))
    try:
        with Path(path).open("rb") as file:
            texts = enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1)
            return replace(_read(texts, name), path=str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecordingError(f"{name}: cannot be read: {reason}") from None


def _read(texts: Iterator[tuple[int, bytes]], name: str) -> Recording:
    first = next(texts, None)
    if first is None:
        raise RecordingError(f"{name}: is empty, and no recording")
    header = _header(_Object.parse(name, *first))
    lines: list[Line] = []
    time = 0
    for number, text in texts:
        source = _Object.parse(name, number, text)
        line = _line(source, header.setup)
        if line.time < time:
            raise source.error("t", f"{line.time} is before {time}, the time of the line above")
        if lines:
            _check_answered(lines[-1], line, source)
        time = line.time
        lines.append(line)
    if not lines or not isinstance(lines[-1], EndLine):
        raise RecordingError(
            f"{name}: line {len(lines) + 2}: stop: the end of the run is missing: the recording was cut off, or its "
            "writer killed"
        )
    return Recording(header, tuple(lines), name)


def _check_answered(before: Line, line: Line, source: _Object) -> None:
    """Refuse a read without an answer, unless an error ended the run there."""
    if not isinstance(before, ExitLine) or not isinstance(before.exit, ReadExit):
        return
    is_end = isinstance(line, EndLine) and isinstance(line.stop, BrokenOff)
    if before.answer is None and not before.refused and not is_end:
        raise source.before().error("answer", "is missing, and the run went on")


# ---- lines ----


def _header(line: _Object) -> Header:
    if line.values.get("format") != FORMAT:
        raise line.error("format", f'is not "{FORMAT}": this is no recording')
    line.skip("format")
    version = line.number("version", WORD)
    if version != VERSION:
        raise line.error("version", f"{version} is not {VERSION}: another pykvm wrote it")
    guest = line.text("guest")
    cpus = line.number("cpus", MOST_CPUS + 1)
    regions = tuple(_region(each) for each in line.objects("memory"))
    irqchip, devices, start = line.text("irqchip"), line.texts("devices"), line.text("start")
    line.check("cpus", cpus > 0, "0 is too few")
    line.check("irqchip", irqchip in {kind.value for kind in IrqchipKind}, f"there is no {irqchip!r}")
    for device in devices:
        line.valid("devices", lambda device=device: check_device(device))  # type: ignore[misc]
    line.check("devices", len(set(devices)) == len(devices), "one is there twice")
    line.finish()
    return Header(guest, Setup(cpus, regions, irqchip, devices, _start(line, start)))


def _region(region: _Object) -> tuple[int, int, bool]:
    result = region.number("gpa", WORD), region.number("size", WORD), region.flag("readonly")
    region.finish()
    return result


def _start(line: _Object, text: str) -> datetime:
    try:
        start = datetime.fromisoformat(text)
    except ValueError:
        start = datetime.min
    line.check("start", start.tzinfo is not None, f"{text!r} is no date and time with a time zone")
    return start


def _line(line: _Object, setup: Setup) -> Line:
    time = line.number("t", FOREVER)
    kinds = [name for name in ("exit", "event", "stop") if name in line.values]
    if "stop" in kinds:
        result: Line = EndLine(time, _stop(line))
    elif len(kinds) != 1:
        raise line.error("exit", 'is missing: a line has one of "exit", "event" and "stop"')
    elif kinds == ["exit"]:
        result = _exit_line(line, time, setup)
    else:
        result = EventLine(time, _event(line, setup))
    line.finish()
    return result


def _exit_line(line: _Object, time: int, setup: Setup) -> ExitLine:
    vcpu = line.number("vcpu", setup.cpus)
    exit = _exit(line)
    answer = line.data("answer") if isinstance(exit, ReadExit) and "answer" in line.values else None
    refused = isinstance(exit, Rdmsr | Wrmsr) and "refused" in line.values and line.flag("refused")
    if answer is not None and isinstance(exit, ReadExit):
        wanted = answer_size(exit)
        line.check("answer", len(answer) == wanted, f"has {len(answer)} bytes, and the guest wants {wanted}")
        line.check("refused", not refused, "has an answer as well")
    chunks = line.datas("input") if "input" in line.values else ()
    reads = tuple(_memory_read(each) for each in line.objects("memory")) if "memory" in line.values else ()
    coalesced = "coalesced" in line.values and line.flag("coalesced")
    return ExitLine(time, vcpu, exit, answer, refused, chunks, reads, coalesced)


def _memory_read(line: _Object) -> MemoryRead:
    result = MemoryRead(line.number("gpa", WORD), line.data("data"))
    line.finish()
    return result


def _exit(line: _Object) -> Exit:
    exit: Exit = line.dataclass("exit", EXITS)  # type: ignore[assignment]
    line.valid("exit", lambda: check_exit(exit))
    return exit


def _event(line: _Object, setup: Setup) -> Event | Interrupt:
    if line.values["event"] == Keys.__name__:
        line.skip("event")
        keys = tuple(_key(line, text) for text in line.texts("keys"))
        return Keys(keys, line.flag("queued"))
    event: Event | Interrupt = line.dataclass("event", EVENTS)  # type: ignore[assignment]
    if isinstance(event, Interrupt):
        line.check("vcpu", event.vcpu < setup.cpus, f"{event.vcpu} is none of {setup.cpus}")
        line.check("vector", event.vector < VECTORS, f"{event.vector} is above {VECTORS - 1}")
    return event


def _key(line: _Object, text: str) -> KeyEvent:
    line.check("keys", text[:1] in ("+", "-"), f'{text!r} is neither pressed, as in "+a", nor released, as in "-a"')
    return line.valid("keys", lambda: KeyEvent(text[1:], text[0] == "+"))


def _stop(line: _Object) -> Stop | BrokenOff:
    return line.dataclass("stop", STOPS)  # type: ignore[return-value]


# ---- fields ----


class _Object:
    """A JSON object whose fields are taken out one by one, each with an error in words if it is not as it should be."""

    def __init__(self, where: tuple[str, int], values: dict[str, object], path: str = "") -> None:
        self.values = values
        self._where = where
        self._path = path
        self._taken: set[str] = set(COMMENTS)

    @classmethod
    def parse(cls, name: str, number: int, text: bytes) -> _Object:
        """Return the line ``text``, which is line ``number`` of the file ``name``."""
        try:
            values = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            hint = "cut off in the middle" if not text.endswith(b"\n") else "no JSON object"
            raise RecordingError(f"{name}: line {number}: is {hint}: {text[:40]!r}")
        return cls((name, number), values)

    def before(self) -> _Object:
        """Return the line above, for an error about it."""
        name, number = self._where
        return _Object((name, number - 1), {})

    def error(self, field: str, problem: str) -> RecordingError:
        """Return the error that ``field`` has a ``problem``."""
        name, number = self._where
        return RecordingError(f"{name}: line {number}: {self._path}{field}: {problem}")

    def check(self, field: str, condition: bool, problem: str) -> None:
        """Raise the error unless ``condition``."""
        if not condition:
            raise self.error(field, problem)

    def valid(self, field: str, make: Callable[[], T]) -> T:
        """Return ``make()``, or the ConfigurationError that it raises as one about ``field``."""
        try:
            return make()
        except ConfigurationError as error:
            raise self.error(field, str(error)) from None

    def skip(self, field: str) -> None:
        """Take ``field`` as it is."""
        self._taken.add(field)

    def finish(self) -> None:
        """Raise the error if there is a field that nobody has taken."""
        for field in self.values:
            if field not in self._taken:
                raise self.error(field, "there is no such field here")

    def number(self, field: str, limit: int) -> int:
        """Return a whole number from 0 up to, but not ``limit``; it may be written as "0x..."."""
        return self._to_number(field, self._take(field), limit)

    def text(self, field: str) -> str:
        """Return a text."""
        return self._to_text(field, self._take(field))

    def flag(self, field: str) -> bool:
        """Return true or false."""
        value = self._take(field)
        if not isinstance(value, bool):
            raise self.error(field, f"{_shown(value)} is neither true nor false")
        return value

    def data(self, field: str) -> bytes:
        """Return bytes."""
        return self._to_bytes(field, self._take(field))

    def datas(self, field: str) -> tuple[bytes, ...]:
        """Return a list of bytes."""
        return tuple(self._to_bytes(field, item) for item in self._list(field))

    def texts(self, field: str) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(self._to_text(field, item) for item in self._list(field))

    def objects(self, field: str) -> Iterator[_Object]:
        """Return a list of objects."""
        for position, item in enumerate(self._list(field)):
            if not isinstance(item, dict):
                raise self.error(f"{field}[{position}]", f"{_shown(item)} is no JSON object")
            yield _Object(self._where, item, f"{self._path}{field}[{position}].")

    def dataclass(self, field: str, kinds: dict[str, type]) -> object:
        """Return the dataclass that ``field`` names, made of the fields beside it."""
        name = self.text(field)
        if name not in kinds:
            raise self.error(field, f"there is no {name!r}")
        kind = kinds[name]
        return kind(*(self._field(each.name, str(each.type)) for each in fields(kind)))

    def _field(self, name: str, kind: str) -> object:
        match kind:
            case "int" | "Gpa":
                return self.number(name, WORD)
            case "bool":
                return self.flag(name)
            case "bytes":
                return self.data(name)
            case "str":
                return self.text(name)
            case "float":
                return self._float(name)
            case "tuple[int, ...]":
                return tuple(self._to_number(name, item, WORD) for item in self._list(name))
        return self._nested(name, kind)

    def _nested(self, name: str, kind: str) -> Exit:
        value = self._take(name)
        if not isinstance(value, dict):
            raise self.error(name, f"{_shown(value)} is no JSON object")
        inner = _Object(self._where, value, f"{self._path}{name}.")
        exit = _exit(inner)
        inner.finish()
        self.check(name, kind in ("Exit", type(exit).__name__), f"is no {kind}")
        return exit

    def _take(self, field: str) -> object:
        if field not in self.values:
            raise self.error(field, "is missing")
        self._taken.add(field)
        return self.values[field]

    def _list(self, field: str) -> Sequence[object]:
        value = self._take(field)
        if not isinstance(value, list):
            raise self.error(field, f"{_shown(value)} is no list")
        return value

    def _to_number(self, field: str, value: object, limit: int) -> int:
        number = value
        if isinstance(value, str) and value[:2] == "0x" and field in HEX_FIELDS:
            digits = value[2:]
            number = int(digits, 16) if digits.isalnum() and set(digits.lower()) <= set("0123456789abcdef") else value
        if not isinstance(number, int) or isinstance(number, bool):
            raise self.error(field, f"{_shown(value)} is no number")
        if not 0 <= number < limit:
            raise self.error(field, f"{_shown(value)} is not between 0 and {limit - 1:#x}")
        return number

    def _float(self, field: str) -> float:
        value = self._take(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < FOREVER:
            raise self.error(field, f"{_shown(value)} is no number above 0")
        return value

    def _to_text(self, field: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(field, f"{_shown(value)} is no text")
        return value

    def _to_bytes(self, field: str, value: object) -> bytes:
        text = value if isinstance(value, str) else "?"
        if len(text) % 2 or not set(text) <= set("0123456789abcdefABCDEF"):
            raise self.error(field, f'{_shown(value)} is no bytes in hexadecimal, such as "48656c6c6f"')
        return bytes.fromhex(text)


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < WORD else "a huge number"
    return text if len(text) <= 40 else text[:37] + "..."
