"""pykvm.observe.recording: lines as JSON, the same every time, and comparable but for the times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import KeyEvent
from pykvm.errors import RecordingError
from pykvm.kvm import Debug, Exit, Hlt, Hypercall, InternalError, IoIn, IoOut, MmioRead, Rdmsr, Shutdown, SystemEvent
from pykvm.machine import (
    Breakpoint,
    Crashed,
    DebugExitWritten,
    Halted,
    PoweredOff,
    ResetRequested,
    ShutdownRequested,
    Stop,
    Stopped,
    TimedOut,
)
from pykvm.machine.journal import NO_MACHINE, Input, Keys, MemoryRead, PowerButton, Rings, TimePassed
from pykvm.observe import Recording, read_recording, without_times, write_recording
from pykvm.observe.recording import (
    BrokenOff,
    EndLine,
    EventLine,
    ExitLine,
    Header,
    Interrupt,
    Line,
    encode_line,
    exit_status_of,
)
from pykvm.observe.recordingreader import EXITS, STOPS
from pykvm.units import Gpa

if TYPE_CHECKING:
    from tests.unit.observe.conftest import Lab

LINES: tuple[Line, ...] = (
    EventLine(0, Keys((KeyEvent("shift", True), KeyEvent("a", True), KeyEvent("a", False)), True)),
    EventLine(0, Keys((KeyEvent("ret", True),), False)),
    ExitLine(1, 0, IoOut(0x3F8, 1, 2, b"Hi")),
    ExitLine(2, 0, IoIn(0x3FD, 1, 1), b"\x60", input=(b"", b"ab")),
    ExitLine(3, 0, MmioRead(Gpa(0xFED0_00F0), 8), bytes(8), memory=(MemoryRead(0x1000, b"\x01"),)),
    ExitLine(3, 0, IoOut(0x80, 1, 1, b"\x00"), coalesced=True),
    ExitLine(4, 0, Rdmsr(0x10, 2), refused=True),
    ExitLine(5, 0, Hypercall(12, (1, 2, 3, 4, 5, 6), 1), bytes(8)),
    ExitLine(6, 0, InternalError(1, (1, 2), 1, b"\x0f\x0b")),
    *(EventLine(7, event) for event in (TimePassed(), Input(b"a"), PowerButton(), Rings(0x5D0, 2), Interrupt(0, 32))),
    ExitLine(9, 0, Hlt()),
)
ENDS: tuple[Stop | BrokenOff, ...] = (
    *(Halted(), PoweredOff(), ResetRequested("port 0xcf9"), DebugExitWritten(42), TimedOut(2.5), Stopped()),
    *(ShutdownRequested(SystemEvent(1, (2,))), Crashed(Shutdown()), Breakpoint(Debug(1, 2, 3, 4)), BrokenOff("x: y")),
)


def test_every_kind_of_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    recording = Recording(Header("a guest", NO_MACHINE), (*LINES, *(EndLine(9, stop) for stop in ENDS)))
    write_recording(tmp_path / "run", recording)
    again = read_recording(tmp_path / "run")
    assert (again.header, again.lines) == (recording.header, recording.lines)
    assert (again.name, again.path) == (str(tmp_path / "run"), str(tmp_path / "run"))


def test_every_exit_and_every_stop_has_a_name_in_the_format() -> None:
    assert set(EXITS.values()) == set(get_args(Exit))
    assert set(STOPS.values()) == {*get_args(Stop), BrokenOff}


def test_addresses_are_hexadecimal_and_counts_decimal() -> None:
    line = json.loads(encode_line(ExitLine(17, 0, IoOut(0x3F8, 2, 10, bytes(20)))))
    assert (line["port"], line["size"], line["count"], line["t"]) == ("0x3f8", 2, 10, 17)


def test_what_can_be_printed_is_there_as_text_for_people() -> None:
    assert json.loads(encode_line(ExitLine(0, 0, IoOut(0xE9, 1, 3, b"a\n "))))["text"] == "a\n "
    assert "text" not in json.loads(encode_line(ExitLine(0, 0, IoOut(0xE9, 1, 2, b"a\x1b"))))


def test_an_end_says_which_status_it_earned() -> None:
    assert json.loads(encode_line(EndLine(0, DebugExitWritten(42))))["status"] == 85
    assert exit_status_of(BrokenOff("x")) == 0


@given(st.lists(st.integers(0, 255), max_size=8))
def test_the_same_exits_are_the_same_lines(values: list[int]) -> None:
    line = ExitLine(0, 0, MmioRead(Gpa(0x1000), len(values) or 1), bytes(values))
    assert encode_line(line) == encode_line(line)


# ---- without times ----


def test_two_recordings_of_the_same_exits_differ_in_nothing_but_their_times(lab: Lab) -> None:
    texts = []
    for time in (0, 1000):
        path = lab.record([lab.write(0, 1), lab.read(0)])
        text = path.read_text().replace('"t": 0', f'"t": {time}').replace("1970-", f"{1970 + time}-")
        event = f'{{"t": {time}, "event": "TimePassed"}}\n'
        head, _, rest = text.partition("\n")
        texts.append(head + "\n" + event * (time // 500) + rest)
    assert texts[0] != texts[1]
    assert without_times(texts[0].splitlines()) == without_times(texts[1].splitlines())


def test_what_differs_beside_the_times_stays(lab: Lab) -> None:
    one, two = (lab.record([lab.write(0, value)]).read_text().splitlines() for value in (1, 2))
    assert without_times(one) != without_times(two)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000], ids=lambda text: text[:5])
def test_a_line_that_is_no_object_is_an_error_with_its_number(text: str) -> None:
    with pytest.raises(RecordingError, match="line 2 is no JSON object"):
        without_times(["{}", text])
