"""pykvm.observe.recorder: what is written down while a run happens, and files that cannot be written."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.devices import KeyEvent, ManualClock
from pykvm.kvm import IoIn, IoOut, Rdmsr, Wrmsr
from pykvm.machine import Halted, Stopped
from pykvm.machine.journal import (
    NO_MACHINE,
    Input,
    Keys,
    MemoryRead,
    PowerButton,
    Rings,
    StepClock,
    TimePassed,
)
from pykvm.observe import Recorder
from pykvm.testing import DeviceBench

if TYPE_CHECKING:
    from tests.unit.observe.conftest import Lab

IN, OUT = IoIn(0x3FD, 1, 1), IoOut(0x3F8, 1, 1, b"H")


def lines(path: Path) -> list[dict[str, object]]:
    """Return the lines after the header."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def recorder(path: Path, clock: ManualClock) -> Iterator[Recorder]:
    with Recorder(path) as recorder:
        recorder.begin(NO_MACHINE, StepClock(clock, lambda: None))
        yield recorder


def test_a_recording_is_readable(lab: Lab) -> None:
    path = lab.record([lab.write(0, 0x48), lab.read(0)])
    assert path.read_text().splitlines() == [
        '{"format": "pykvm recording", "version": 1, "guest": "a test", "cpus": 1, "memory": [], "irqchip": "none", '
        '"devices": [], "start": "1970-01-01T00:00:00+00:00"}',
        '{"t": 0, "vcpu": 0, "exit": "IoOut", "port": "0x300", "size": 1, "count": 1, "data": "48", "text": "H"}',
        '{"t": 0, "vcpu": 0, "exit": "IoIn", "port": "0x300", "size": 1, "count": 1, "answer": "48"}',
        '{"t": 0, "vcpu": 0, "exit": "Hlt"}',
        '{"t": 0, "stop": "Halted", "status": 0, "text": "halted: HLT, and nothing can wake this CPU"}',
    ]


def test_an_exit_has_the_time_at_which_its_device_sees_it(path: Path, recorder: Recorder, clock: ManualClock) -> None:
    clock.advance(5)
    recorder.exit(0, IN)
    clock.advance(5)  # too late for this exit
    recorder.answer(0, IN, b"\x60")
    recorder.exit(1, OUT)
    recorder.end(Halted())
    recorder.close()
    assert [(line["t"], line.get("vcpu")) for line in lines(path)] == [(5, 0), (10, 1), (10, None)]


def test_what_comes_from_outside_has_a_line_of_its_own(path: Path, recorder: Recorder) -> None:
    for event in (TimePassed(), Input(b"a"), Keys((KeyEvent("a", True),), True), PowerButton(), Rings(0x5D0, 3)):
        recorder.tell(event, inside=False)
    recorder.interrupt(0, 0x20)
    recorder.close()
    assert [line.get("event") for line in lines(path)] == [
        *("TimePassed", "Input", "Keys", "PowerButton", "Rings", "Interrupt"),
        None,
    ]
    assert lines(path)[2]["keys"] == ["+a"]


def test_input_and_memory_that_an_exit_asks_for_belong_to_its_line(path: Path, recorder: Recorder) -> None:
    recorder.exit(0, IN)
    recorder.tell(Input(b""), inside=True)
    recorder.tell(Input(b"ab"), inside=True)
    recorder.tell(Input(b""), inside=True)  # in vain, and nothing after it: not worth a word
    recorder.tell(MemoryRead(0x1000, b"\x01"), inside=True)
    recorder.answer(0, IN, b"\x61")
    recorder.close()
    line = lines(path)[0]
    assert (line["input"], line["memory"]) == (["", "6162"], [{"gpa": "0x1000", "data": "01"}])


def test_an_event_during_an_exit_comes_after_it(path: Path, recorder: Recorder) -> None:
    recorder.exit(0, IN)
    recorder.tell(PowerButton(), inside=True)
    recorder.answer(0, IN, b"\x61")
    recorder.close()
    assert [line.get("exit") or line.get("event") for line in lines(path)[:2]] == ["IoIn", "PowerButton"]


def test_events_without_end_do_not_wait_for_the_end_of_an_exit(path: Path, recorder: Recorder) -> None:
    recorder.exit(0, OUT)
    for _ in range(1000):
        recorder.tell(PowerButton(), inside=True)
    assert len(recorder._behind) < 100
    recorder.close()
    assert len(lines(path)) == 1 + 1000 + 1


def test_a_refused_msr_access_is_marked(path: Path, recorder: Recorder) -> None:
    for exit in (Rdmsr(0x10, 2), Wrmsr(0x10, 1, 2)):
        recorder.exit(0, exit)
        recorder.answer(0, exit, None)
    recorder.close()
    assert [line.get("refused") for line in lines(path)] == [True, True, None]


def test_a_write_that_kvm_kept_back_is_marked(path: Path, recorder: Recorder) -> None:
    recorder.coalesced(0, OUT)
    recorder.close()
    assert lines(path)[0]["coalesced"] is True


def test_the_end_of_a_run_is_written_once_and_so_is_the_next_ones(path: Path, recorder: Recorder) -> None:
    for stop in (Halted(), Stopped(), Stopped()):
        recorder.end(stop)
    recorder.exit(0, OUT)
    recorder.end(Stopped())
    recorder.close()
    assert [line.get("stop") for line in lines(path)] == ["Halted", None, "Stopped"]


def test_lines_reach_the_file_at_every_tick(path: Path, recorder: Recorder) -> None:
    recorder.exit(0, OUT)
    assert len(path.read_text().splitlines()) == 1  # the header is there from the start
    recorder.tick()
    assert len(path.read_text().splitlines()) == 2


def test_a_device_that_raises_leaves_a_recording_that_says_so(path: Path) -> None:
    class Fragile:
        name = "fragile"

        def read(self, offset: int, size: int) -> bytes:
            raise ZeroDivisionError("by the guest")

        def write(self, offset: int, data: bytes) -> None:
            pass

    with pytest.raises(ZeroDivisionError), Recorder(path) as recorder:
        DeviceBench(pio={0x3FD: (Fragile(), 1)}, observers=[recorder]).run([IN])
    assert lines(path)[0].get("answer") is None
    assert (lines(path)[1]["stop"], lines(path)[1]["error"]) == ("BrokenOff", "ZeroDivisionError: by the guest")


def test_ctrl_c_is_an_end_too(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Recorder(path):
        raise KeyboardInterrupt
    assert lines(path) == [{"t": 0, "stop": "Interrupted", "status": 130, "text": "interrupted with Ctrl-C"}]


def test_closing_before_the_end_is_written_down_as_such(path: Path, recorder: Recorder) -> None:
    recorder.close()
    recorder.close()
    assert lines(path)[-1]["stop"] == "BrokenOff"


def test_a_file_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Recorder(tmp_path / "nosuch" / "run.jsonl")
    assert str(caught.value.filename) == str(tmp_path / "nosuch" / "run.jsonl")


# ---- a full disk ----


class FullDisk(io.BytesIO):
    """Takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: object) -> int:
        size = len(data)  # type: ignore[arg-type]
        if size > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= size
        return size


def test_a_disk_that_fills_up_ends_the_run_with_an_error_that_names_the_file(path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, Recorder(path) as recorder:
        recorder._file.close()
        recorder._file = FullDisk(2000)
        DeviceBench(observers=[recorder]).run([OUT] * 100)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))


def test_a_full_disk_is_an_error_before_the_run_begins() -> None:
    with pytest.raises(OSError, match="No space left") as caught, Recorder("/dev/full") as recorder:
        DeviceBench(observers=[recorder])
    assert caught.value.filename == "/dev/full"


def test_a_disk_that_is_full_at_the_very_end_is_an_error_too(path: Path) -> None:
    recorder = Recorder(path)
    recorder._file.close()
    recorder._file = FullDisk(0)
    with pytest.raises(OSError, match="No space left"):
        recorder.close()
    recorder.close()
