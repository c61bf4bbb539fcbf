"""pykvm.observe.recordingreader: a file that is cut off, edited or no recording is one error, with line and field."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import RecordingError
from pykvm.observe import read_recording, replay

HEADER: dict[str, Any] = {
    "format": "pykvm recording",
    "version": 1,
    "guest": "a test",
    "cpus": 1,
    "memory": [{"gpa": "0x0", "size": 4096, "readonly": False}],
    "irqchip": "user",
    "devices": [],
    "start": "2000-01-01T00:00:00+00:00",
}
OUT = {"t": 1, "vcpu": 0, "exit": "IoOut", "port": "0x70", "size": 1, "count": 1, "data": "0a"}
IN = {"t": 2, "vcpu": 0, "exit": "IoIn", "port": "0x71", "size": 1, "count": 1, "answer": "26"}
MSR = {"t": 3, "vcpu": 0, "exit": "Rdmsr", "index": "0x10", "msr_reason": "0x2", "refused": True}
KEYS = {"t": 4, "event": "Keys", "keys": ["+a", "-a"], "queued": True}
INTERRUPT = {"t": 4, "event": "Interrupt", "vcpu": 0, "vector": 32}
END = {"t": 5, "stop": "TimedOut", "limit": 1.0, "status": 124, "text": "timed out"}
CRASH = {"t": 5, "stop": "Breakpoint", "exit": {"exit": "Debug", "exception": 1, "pc": 2, "dr6": 3, "dr7": 4}}


def text_of(*lines: object) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def error(tmp_path: Path) -> Callable[[str | bytes], str]:
    """Return a function that returns the words of the error that reading a text is."""

    def read(text: str | bytes) -> str:
        path = tmp_path / "run.jsonl"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(RecordingError) as caught:
            read_recording(path)
        return str(caught.value).removeprefix(f"{path}: ")

    return read


def test_a_recording_can_be_written_by_hand(tmp_path: Path) -> None:
    (tmp_path / "run").write_text(text_of(HEADER, OUT | {"port": 112}, IN, MSR, KEYS, END))
    assert replay(tmp_path / "run").divergence is None


# ---- no recording ----


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty, and no recording"),
        (b"\x7fELF\x02\x01\x01\n" + bytes(100), "line 1: is no JSON object: b'\\x7fELF"),
        (b"\xff" * 100, "line 1: is cut off in the middle"),
        (b"#!/bin/sh\n", "line 1: is no JSON object: b'#!/bin/sh"),
        (b"{}\n", 'line 1: format: is not "pykvm recording": this is no recording'),
        (b"[]\n", "line 1: is no JSON object"),
        (b"[" * 5000 + b"\n", "line 1: is no JSON object"),
        (b"\n", "line 1: is no JSON object"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_another_kind_of_file_is_refused(error: Callable[[str | bytes], str], data: bytes, words: str) -> None:
    assert error(data).startswith(words)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(RecordingError, match="/dev/zero: line 1: is cut off in the middle"):
        read_recording("/dev/zero")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", "No such file"),
        ("", "Is a directory"),
        ("a\0b", "embedded null byte"),
        ("x" * 300, "File name too long"),
    ],
    ids=lambda text: text[:6],
)
def test_a_file_that_cannot_be_read_is_an_error_of_the_same_kind(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(RecordingError, match=f"cannot be read: .*{words}"):
        read_recording(tmp_path / name)


def test_a_name_cannot_give_orders_to_a_terminal(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=re.escape("\\x1b[2J: cannot be read")):
        read_recording(tmp_path / "\x1b[2J")


def test_a_future_version_is_refused_by_its_number(error: Callable[[str], str]) -> None:
    assert error(text_of(HEADER | {"version": 2}, END)) == "line 1: version: 2 is not 1: another pykvm wrote it"


# ---- cut off ----


def test_a_recording_without_its_end_was_cut_off(error: Callable[[str], str]) -> None:
    words = "stop: the end of the run is missing: the recording was cut off, or its writer killed"
    assert error(text_of(HEADER)) == f"line 2: {words}"
    assert error(text_of(HEADER, OUT)) == f"line 3: {words}"


def test_a_recording_cut_off_anywhere_is_an_error() -> None:
    text = text_of(HEADER, OUT, IN, END)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        for length in range(len(text) - 1):
            path.write_text(text[:length])
            # A line that is whole but for its newline is whole; one that is not must say where.
            if text[length] != "\n" or length < len(text) - 2:
                with pytest.raises(RecordingError, match=r"is empty|line \d"):
                    read_recording(path)


# ---- edited ----

Edited = tuple[dict[str, Any], str, Any, str]
GONE = object()


@pytest.mark.parametrize(
    ("line", "field", "value", "words"),
    [
        (OUT, "t", GONE, "t: is missing"),
        (OUT, "t", -1, "t: -1 is not between 0"),
        (OUT, "t", "1", "t: '1' is no number"),
        (OUT, "t", 1.5, "t: 1.5 is no number"),
        (OUT, "t", True, "t: True is no number"),
        (OUT, "t", 10**400, "t: a huge number is not between"),
        (OUT, "exit", GONE, 'exit: is missing: a line has one of "exit", "event" and "stop"'),
        (OUT, "event", "Keys", 'exit: is missing: a line has one of "exit", "event" and "stop"'),
        (OUT, "exit", "IoUot", "exit: there is no 'IoUot'"),
        (OUT, "exit", 5, "exit: 5 is no text"),
        (OUT, "port", GONE, "port: is missing"),
        (OUT, "port", "0xzz", "port: '0xzz' is no number"),
        (OUT, "port", "0x", "port: '0x' is no number"),
        (OUT, "port", "0x1_0", "port: '0x1_0' is no number"),
        (OUT, "port", "70", "port: '70' is no number"),
        (OUT, "port", None, "port: None is no number"),
        (OUT, "port", "0x10000", "exit: IoOut(port=65536, size=1, count=1, data=b'\\n'): there is no port 0x10000"),
        (OUT, "size", 3, "exit: IoOut(port=112, size=3, count=1, data=b'\\n'): a port is 1, 2 or 4 bytes wide, not 3"),
        (OUT, "size", "0x1", "size: '0x1' is no number"),
        (OUT, "data", "0", "data: '0' is no bytes in hexadecimal"),
        (OUT, "data", "zz", "data: 'zz' is no bytes in hexadecimal"),
        (OUT, "data", "\u0660\u0660", "data: '\u0660\u0660' is no bytes in hexadecimal"),
        (OUT, "data", 5, "data: 5 is no bytes"),
        (OUT, "data", "0a0a", "exit: IoOut(port=112, size=1, count=1, data=b'\\n\\n'): size * count is 1 bytes"),
        (OUT, "vcpu", 1, "vcpu: 1 is not between 0 and 0x0"),
        (OUT, "prot", "0x70", "prot: there is no such field here"),
        (OUT, "answer", "00", "answer: there is no such field here"),
        (OUT, "input", "61", "input: '61' is no list"),
        (OUT, "input", [61], "input: 61 is no bytes"),
        (OUT, "memory", [61], "memory[0]: 61 is no JSON object"),
        (OUT, "memory", [{"gpa": "0x0"}], "memory[0].data: is missing"),
        (OUT, "coalesced", 1, "coalesced: 1 is neither true nor false"),
        (IN, "answer", "2626", "answer: has 2 bytes, and the guest wants 1"),
        (IN, "answer", None, "answer: None is no bytes"),
        (IN, "refused", True, "refused: there is no such field here"),
        (MSR, "answer", "00" * 8, "refused: has an answer as well"),
        (KEYS, "keys", ["a"], "keys: 'a' is neither pressed"),
        (KEYS, "keys", ["+nosuch"], "keys: no key is called 'nosuch'"),
        (KEYS, "keys", [""], "keys: '' is neither pressed"),
        (KEYS, "queued", GONE, "queued: is missing"),
        (INTERRUPT, "vector", 256, "vector: 256 is above 255"),
        (INTERRUPT, "vcpu", 1, "vcpu: 1 is none of 1"),
        (INTERRUPT, "event", "Nothing", "event: there is no 'Nothing'"),
        (END, "limit", "1", "limit: '1' is no number above 0"),
        (END, "limit", float("nan"), "limit: nan is no number above 0"),
        (END, "limit", GONE, "limit: is missing"),
        (END, "stop", "Never", "stop: there is no 'Never'"),
        (CRASH, "exit", "Debug", "exit: 'Debug' is no JSON object"),
        (CRASH, "exit", {"exit": "Hlt"}, "exit: is no Debug"),
        (CRASH, "exit", {"exit": "Hlt", "port": 1}, "exit.port: there is no such field here"),
        (HEADER, "cpus", 0, "cpus: 0 is too few"),
        (HEADER, "cpus", 10**6, "cpus: 1000000 is not between"),
        (HEADER, "guest", None, "guest: None is no text"),
        (HEADER, "irqchip", "best", "irqchip: there is no 'best'"),
        (HEADER, "devices", ["toaster"], "devices: there is no optional device 'toaster'"),
        (HEADER, "devices", ["testdev", "testdev"], "devices: one is there twice"),
        (HEADER, "start", "noon", "start: 'noon' is no date and time with a time zone"),
        (HEADER, "start", "2000-01-01", "start: '2000-01-01' is no date and time with a time zone"),
        (HEADER, "memory", {}, "memory: {} is no list"),
        (HEADER, "memory", [{"gpa": 0, "size": -1, "readonly": False}], "memory[0].size: -1 is not between"),
        (HEADER, "colour", "red", "colour: there is no such field here"),
    ],
    ids=lambda value: str(value)[:12].encode("ascii", "replace").decode(),
)
def test_an_edited_field_is_named_with_its_line(
    error: Callable[[str], str], line: dict[str, Any], field: str, value: object, words: str
) -> None:
    edited = {name: old for name, old in line.items() if name != field}
    if value is not GONE:
        edited[field] = value
    lines = [edited, END] if line is HEADER else [HEADER, edited] if line in (END, CRASH) else [HEADER, edited, END]
    text = text_of(*lines)
    number = next(number for number, each in enumerate(lines, 1) if each is edited)
    assert error(text).startswith(f"line {number}: {words}")


def test_time_does_not_go_back(error: Callable[[str], str]) -> None:
    assert error(text_of(HEADER, IN, OUT, END)) == "line 3: t: 1 is before 2, the time of the line above"


def test_a_read_without_an_answer_is_the_last_exit_of_a_run_that_an_error_ended(
    error: Callable[[str], str], tmp_path: Path
) -> None:
    unanswered = {name: value for name, value in IN.items() if name != "answer"}
    assert error(text_of(HEADER, unanswered, END)) == "line 2: answer: is missing, and the run went on"
    broken_off = {"t": 5, "stop": "BrokenOff", "error": "x"}
    (tmp_path / "run").write_text(text_of(HEADER, unanswered, broken_off))
    assert len(read_recording(tmp_path / "run").lines) == 2


def test_a_machine_that_there_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for region in ({"gpa": "0x1", "size": 4096}, {"gpa": "0x0", "size": 1 << 62}, {"gpa": "0x0", "size": 0}):
        path.write_text(text_of(HEADER | {"memory": [region | {"readonly": False}]}, END))
        with pytest.raises(RecordingError, match="line 1: there can be no such machine"):
            replay(path)


def test_time_that_would_never_pass_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    pit = [
        OUT | {"port": "0x43", "data": "34"},
        OUT | {"port": "0x40", "data": "10"},
        OUT | {"port": "0x40", "data": "00"},
    ]
    path.write_text(text_of(HEADER, *pit, OUT | {"t": 1 << 61}, END | {"t": 1 << 61}))
    with pytest.raises(RecordingError, match="line 5: t: devices have more than 200000 alarms"):
        replay(path)


# ---- anything at all ----

VALID = text_of(HEADER, OUT, IN, MSR, KEYS, INTERRUPT, IN | {"t": 4}, END)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0x71", "26", "Hlt"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def try_to_replay(data: bytes) -> None:
    """Replay ``data`` as a file: whatever it is, nothing but a RecordingError may come of it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(RecordingError):
            replay(file.name)


@given(st.binary(max_size=200))
def test_any_bytes_are_replayed_or_refused(data: bytes) -> None:
    try_to_replay(data)


@given(st.data())
def test_a_recording_with_some_bytes_changed_is_replayed_or_refused(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(VALID)))
    end = data.draw(st.integers(start, min(len(VALID), start + 20)))
    new = data.draw(st.text('0123456789abcdefx"{}[]:, \n-+', max_size=20) | st.text(max_size=5))
    try_to_replay((VALID[:start] + new + VALID[end:]).encode("utf-8", "surrogatepass"))


@given(st.data())
def test_a_recording_with_any_field_changed_is_replayed_or_refused(data: st.DataObject) -> None:
    lines = [json.loads(line) for line in VALID.splitlines()]
    line = data.draw(st.sampled_from(lines))
    line[data.draw(st.sampled_from([*line, "exit", "event", "stop", "answer", "memory"]))] = data.draw(JSON)
    order = data.draw(st.permutations(range(1, len(lines))))
    try_to_replay(text_of(lines[0], *(lines[position] for position in order)).encode())
