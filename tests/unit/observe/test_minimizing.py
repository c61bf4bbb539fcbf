"""pykvm.observe.minimizing: the shortest prefix and the fewest lines that still show the same difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import RecordingError
from pykvm.kvm import Exit, IoIn, IoOut
from pykvm.machine import DebugExitWritten, Stopped
from pykvm.machine.journal import NO_MACHINE, PowerButton, Setup
from pykvm.observe import Recording, minimize, read_recording, replay, write_recording
from pykvm.observe.recording import EndLine, EventLine, ExitLine, Header, Line

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.observe.conftest import Lab

BUG = 0x80  # the bit that the device of today loses


def exits_of(recording: Recording) -> list[object]:
    return [line.exit for line in recording.lines if isinstance(line, ExitLine)]


def test_only_what_the_difference_needs_is_left(lab: Lab) -> None:
    noise: list[Exit] = []
    for value in range(50):
        noise += lab.write(0, value), lab.read(0), lab.write(3, value), lab.read(2)
    exits = [*noise, lab.write(1, 0x81), *noise, lab.read(1), *noise]
    found = minimize(read_recording(lab.record(exits)), lab.with_mask(BUG), board=False)
    assert exits_of(found.recording) == [lab.write(1, 0x81), lab.read(1)]
    assert found.is_smallest
    assert found.divergence.place.line == 3


def test_what_is_left_is_written_and_still_diverges_in_the_same_way(lab: Lab, tmp_path: Path) -> None:
    path = lab.record([lab.write(0, 1), lab.write(1, 0x81), lab.read(0), lab.read(1), lab.read(0)])
    before = lab.replay(path, BUG).divergence
    found = minimize(read_recording(path), lab.with_mask(BUG), board=False)
    write_recording(tmp_path / "small", found.recording)
    after = lab.replay(tmp_path / "small", BUG).divergence
    assert before is not None and after is not None
    assert after.is_like(before)
    assert len(found.recording.lines) == 3  # write, read, end


def test_another_difference_is_not_taken_for_the_same(lab: Lab) -> None:
    # Without the write the register reads 0: that differs from the recording too, but not by the bug.
    found = minimize(read_recording(lab.record([lab.write(1, 0xC1), lab.read(1)])), lab.with_mask(BUG), board=False)
    assert exits_of(found.recording) == [lab.write(1, 0xC1), lab.read(1)]
    assert found.divergence.now == "41"


def test_a_difference_that_needs_nothing_is_left_alone(lab: Lab) -> None:
    path = lab.record([lab.write(0, 1), lab.read(2)])
    text = path.read_text().replace('"answer": "00"', '"answer": "01"')
    path.write_text(text)
    found = minimize(read_recording(path), lab.with_mask(0), board=False)
    assert exits_of(found.recording) == [lab.read(2)]


def test_a_recording_that_does_not_diverge_cannot_be_minimized(lab: Lab) -> None:
    with pytest.raises(RecordingError, match="does not diverge: there is nothing to minimize"):
        minimize(read_recording(lab.record([lab.read(1)])), lab.with_mask(0), board=False)


def test_the_search_is_given_up_in_time_and_says_so(lab: Lab) -> None:
    exits: list[Exit] = [*[lab.write(1, 0x81), lab.write(0, 1)] * 100, lab.read(1)]
    found = minimize(read_recording(lab.record(exits)), lab.with_mask(BUG), board=False, limit=300)
    assert not found.is_smallest
    assert found.replays < 10
    assert found.divergence.now == "01"


def test_it_comes_to_the_same_every_time(lab: Lab) -> None:
    exits: list[Exit] = [lab.write(1, 0x81), lab.write(0, 1), lab.read(0), lab.write(0, 1), lab.read(1)]
    recording = read_recording(lab.record(exits))
    first, second = (minimize(recording, lab.with_mask(BUG), board=False) for _ in range(2))
    assert first == second


def by_hand(*lines: Line) -> Recording:
    return Recording(Header("", Setup(1, (), "user", (), NO_MACHINE.start)), lines)


def out(port: int, value: int) -> ExitLine:
    return ExitLine(0, 0, IoOut(port, 1, 1, bytes([value])))


def test_a_run_that_ends_too_early_is_made_small_too() -> None:
    found = minimize(by_hand(out(0x80, 1), out(0xF4, 1), out(0x80, 2), out(0x80, 3), EndLine(0, Stopped())))
    assert exits_of(found.recording) == [out(0xF4, 1).exit, out(0x80, 2).exit]


def test_a_run_that_does_not_end_any_more_is_made_small_too() -> None:
    found = minimize(by_hand(out(0x80, 1), out(0x80, 2), EndLine(0, DebugExitWritten(1))))
    assert found.recording.lines == (EndLine(0, DebugExitWritten(1)),)


def test_events_are_left_out_like_exits() -> None:
    status = ExitLine(0, 0, IoIn(0x600, 2, 1), b"\x00\x00")
    found = minimize(by_hand(out(0x80, 1), EventLine(0, PowerButton()), out(0x80, 1), status, EndLine(0, Stopped())))
    assert found.recording.lines == (EventLine(0, PowerButton()), status, EndLine(0, Stopped()))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 255)), max_size=20))
def test_no_single_line_can_be_left_out_of_what_is_left(writes: list[tuple[int, int]]) -> None:
    class Cell:
        name = "cell"

        def __init__(self) -> None:
            self.bytes = bytearray(4)

        def read(self, offset: int, size: int) -> bytes:
            return bytes([sum(self.bytes) & 0xFF])

        def write(self, offset: int, data: bytes) -> None:
            self.bytes[offset] = data[0]

    def differs(lines: tuple[Line, ...]) -> str | None:
        found = replay(by_hand(*lines), lambda bench: bench.pio.register(Cell(), 0x300, 4), board=False).divergence
        return None if found is None else found.now

    read = ExitLine(0, 0, IoIn(0x300, 1, 1), b"\x00")
    lines: tuple[Line, ...] = (*(out(0x300 + register, value) for register, value in writes), read)
    lines += (EndLine(0, Stopped()),)
    wanted = differs(lines)
    if wanted is None:
        return
    found = minimize(by_hand(*lines), lambda bench: bench.pio.register(Cell(), 0x300, 4), board=False).recording.lines
    assert differs(found) == wanted
    for position in range(len(found) - 2):
        assert differs((*found[:position], *found[position + 1 :])) != wanted
