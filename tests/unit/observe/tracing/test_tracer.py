"""A tracer sees what a run loop does with exits, without KVM."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from pykvm.devices import PostCode, Serial
from pykvm.errors import ConfigurationError, MsrRefusedError
from pykvm.kvm import Exit, Hlt, IoIn, IoOut, MmioRead, Rdmsr, Wrmsr
from pykvm.machine import ExitHandlers, Halted
from pykvm.observe import TraceFilter, TraceLine, Tracer
from pykvm.testing import DeviceBench
from pykvm.units import Gpa

HELLO: list[Exit] = [IoOut(0x3F8, data=b"H"), IoIn(0x3FD), Hlt()]


class Ticks:
    """A clock that goes on by a microsecond each time it is read."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        self.now += 1_000
        return self.now


def bench(tracer: Tracer, handlers: ExitHandlers | None = None) -> DeviceBench:
    made = DeviceBench(
        pio={0x3F8: (Serial(lambda data: None), 8), 0x80: (PostCode(), 1)},
        mmio={0xD0000000: (Serial(lambda data: None), 8)},
        observers=[tracer],
        handlers=handlers,
    )
    tracer.name_devices(made.pio, made.mmio)
    return made


def lines_of(exits: Iterable[Exit], only: TraceFilter | None = None, limit: int | None = None) -> list[TraceLine]:
    lines: list[TraceLine] = []
    tracer = Tracer(on_line=lines.append, only=only, limit=limit, clock=Ticks())
    bench(tracer).run(exits)
    return lines


def text_of(exits: Iterable[Exit], format: str = "text") -> str:
    output = io.BytesIO()
    with Tracer(output, format=format, clock=Ticks()) as tracer:
        bench(tracer).run(exits)
        tracer.stopped(Halted())
    return output.getvalue().decode()


def test_every_exit_is_a_line_with_its_register_and_answer() -> None:
    lines = lines_of(HELLO)
    assert [(line.number, line.event, line.register, line.answer) for line in lines] == [
        (1, HELLO[0], "serial THR", None),
        (2, HELLO[1], "serial LSR", b"\x60"),
        (3, HELLO[2], "", None),
    ]
    assert [line.is_text for line in lines] == [True, False, False]


def test_names_are_those_before_the_access() -> None:
    dlab = IoOut(0x3FB, data=b"\x80")
    lines = lines_of([dlab, IoOut(0x3F8), IoOut(0x3FB, data=b"\0"), IoOut(0x3F8), Hlt()])
    assert [line.register for line in lines] == ["serial LCR", "serial DLL", "serial LCR", "serial THR", ""]


def test_a_device_that_names_no_registers_is_named_itself_and_nobody_is_nobody() -> None:
    class Lamp:
        name = "lamp"

        def read(self, offset: int, size: int) -> bytes:
            return bytes(size)

        def write(self, offset: int, data: bytes) -> None:
            pass

    lines: list[TraceLine] = []
    tracer = Tracer(on_line=lines.append)
    made = DeviceBench(pio={0x300: (Lamp(), 1)}, observers=[tracer])
    tracer.name_devices(made.pio, made.mmio)
    made.run([IoOut(0x300), IoOut(0x301), MmioRead(Gpa(0x1000), 4)])
    assert [line.register for line in lines[:3]] == ["lamp", "", ""]


def test_times_are_since_the_first_entry_and_since_the_line_before() -> None:
    lines = lines_of([IoOut(0x80), IoOut(0x80)])
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    assert lines[0].since == lines[0].time > 0
    assert lines[1].since == lines[1].time - lines[0].time
    assert lines[0].time < lines[1].resumed < lines[1].time


def test_a_refused_msr_access_is_shown_as_one() -> None:
    def refuse(index: int) -> int:
        raise MsrRefusedError(index)

    lines: list[TraceLine] = []
    tracer = Tracer(on_line=lines.append)
    handlers = ExitHandlers(rdmsr=refuse, wrmsr=lambda index, value: None)
    bench(tracer, handlers).run([Rdmsr(0x10, 0), Wrmsr(0x10, 1, 0)])
    assert [(line.refused, line.answer) for line in lines[:2]] == [(True, None), (False, None)]


def test_filters_are_asked_before_anything_is_looked_up() -> None:
    class Shy(PostCode):
        def register_name(self, offset: int, is_write: bool) -> str:
            raise ZeroDivisionError("nobody was to ask")

    lines: list[TraceLine] = []
    tracer = Tracer(on_line=lines.append, only=TraceFilter(["hlt"]))
    made = DeviceBench(pio={0x80: (Shy(), 1)}, observers=[tracer])
    tracer.name_devices(made.pio, made.mmio)
    made.run([IoOut(0x80), Hlt()])
    assert [(line.number, line.event) for line in lines] == [(2, Hlt())]  # numbers count what is not shown, too


def test_the_first_lines_may_be_all() -> None:
    assert [line.number for line in lines_of([IoOut(0x80)] * 5, limit=2)] == [1, 2]
    assert [line.number for line in lines_of(HELLO, TraceFilter(["in"]), limit=1)] == [2]


def test_a_read_whose_device_raises_is_a_line_without_an_answer() -> None:
    class Broken(PostCode):
        def read_register(self, offset: int) -> int:
            raise ZeroDivisionError

    output = io.BytesIO()
    with pytest.raises(ZeroDivisionError), Tracer(output) as tracer:
        DeviceBench(pio={0x80: (Broken(), 1)}, observers=[tracer]).run([IoIn(0x80)])
    lines = output.getvalue().decode().splitlines()
    assert "in 0x80 1x1" in lines[1]
    assert "->" not in lines[1]
    assert lines[2].startswith("stopped: ZeroDivisionError after 1 exit")


def test_the_text_has_a_heading_the_lines_and_an_end() -> None:
    heading, *lines, end = text_of(HELLO).splitlines()
    assert heading.split()[0] == "#"
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert end.startswith("stopped: hlt after 3 exits, ")


def test_two_runs_have_two_ends_and_one_numbering() -> None:
    output = io.BytesIO()
    with Tracer(output, format="jsonl") as tracer:
        made = bench(tracer)
        for _ in range(2):
            made.run(HELLO)
            tracer.stopped(Halted())
            tracer.stopped(Halted())  # which may be told twice
    documents = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [one["kind"] for one in documents] == ["header", *["exit"] * 3, "end", *["exit"] * 3, "end"]
    assert [one["exits"] for one in documents if one["kind"] == "end"] == [3, 3]
    assert [one["number"] for one in documents if one["kind"] == "exit"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("format", ["text", "jsonl", "perfetto"])
def test_ctrl_c_and_other_errors_leave_a_whole_trace_behind(format: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with pytest.raises(KeyboardInterrupt), Tracer(path, format=format) as tracer:
        bench(tracer).run(HELLO)
        raise KeyboardInterrupt
    text = path.read_text()
    assert "Ctrl-C" in text
    if format == "perfetto":
        assert json.loads(text)[-1]["name"] == "stopped: Ctrl-C"


def test_a_trace_of_nothing_is_a_trace(tmp_path: Path) -> None:
    Tracer(tmp_path / "trace.json", format="perfetto").close()
    assert [event["name"] for event in json.loads((tmp_path / "trace.json").read_text())] == ["process_name"]


def test_a_stream_of_somebody_elses_is_left_alone_and_open_if_nothing_ran() -> None:
    output = io.BytesIO()
    tracer = Tracer(output)
    tracer.close()
    tracer.close()
    assert output.getvalue() == b""


def test_lines_come_out_at_ticks_and_wait_in_bounded_memory() -> None:
    output = io.BytesIO()
    tracer = Tracer(output)
    tracer.exit(0, IoOut(0x80))
    assert output.getvalue() == b""
    tracer.tick()
    assert output.getvalue().count(b"\n") == 2
    for _ in range(10_000):
        tracer.exit(0, IoOut(0x80))
    assert output.getvalue().count(b"\n") > 5_000  # long before the next tick


class Full(io.BytesIO):
    """A stream that has no room."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_written_is_an_error_once() -> None:
    tracer = Tracer(Full())
    tracer.exit(0, IoOut(0x80))
    with pytest.raises(OSError, match="No space"):
        tracer.tick()
    tracer.exit(0, IoOut(0x80))
    tracer.tick()
    tracer.close()


def test_a_full_disk_is_named() -> None:
    with pytest.raises(OSError, match="No space") as caught, Tracer("/dev/full") as tracer:
        bench(tracer).run(HELLO)
        tracer.stopped(Halted())
    assert caught.value.filename == "/dev/full"


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no trace format 'xml': there are text, jsonl, perfetto"):
        Tracer(format="xml")
    with pytest.raises(ConfigurationError, match="1 line or more, not 0"):
        Tracer(limit=0)
    with pytest.raises(ConfigurationError, match="no kind of exit"):
        Tracer(tmp_path / "trace", only=TraceFilter(["nothing"]))
    with pytest.raises(ConfigurationError, match="no trace format"):
        Tracer(tmp_path / "trace", format="xml")
    assert not (tmp_path / "trace").exists()
    with pytest.raises(FileNotFoundError):
        Tracer(tmp_path / "no" / "trace")
