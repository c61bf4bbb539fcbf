"""How a trace is written: text for people and grep, JSON Lines for programs."""

from __future__ import annotations

import json
import re

from hypothesis import given

from pykvm.kvm import Exit, Hlt, IoIn, IoOut, MmioWrite
from pykvm.observe import TraceLine
from pykvm.observe.tracing import Coalesced, InterruptTaken, Place, TraceEnd
from pykvm.observe.tracing.formats import JsonLines, TextColumns
from pykvm.testing.strategies import exits
from pykvm.units import Gpa

PLACE = Place(0x8005, "outb %al, %dx", "hello.S:14")
OUT = TraceLine(14, 1_234_567, 8_100, 1_230_000, 0, IoOut(0x3F8, data=b"H"), "serial THR", True, PLACE)


def test_a_line_of_text_has_everything_in_columns() -> None:
    heading, line = TextColumns().begin("hello"), TextColumns().line(OUT)
    fields = line.split()
    assert fields[:8] == ["14", "1.235", "+8.1", "0", "io", "out", "0x3f8", "1x1"]
    assert fields[8:] == ["'H'", "serial", "THR", "0x8005", "outb", "%al,", "%dx", "hello.S:14"]
    assert heading.index("what") == line.index("out")
    assert heading.index("instruction") == line.index("0x8005")
    assert heading.rindex("cpu") + len("cpu") == re.search(r" 0  io", line).start() + 2  # type: ignore[union-attr]


def test_what_is_no_exit_has_no_number() -> None:
    line = TextColumns().line(TraceLine(None, 0, 0, 0, 1, InterruptTaken(0x20)))
    assert line.split() == ["-", "0.000", "+0.0", "1", "interrupt", "vector", "0x20"]


def test_text_ends_with_why_and_after_how_much() -> None:
    assert TextColumns().end(TraceEnd("hlt", 14, 600_000, 600_000)) == "stopped: hlt after 14 exits, 0.6 ms\n"
    assert TextColumns().end(TraceEnd("Ctrl-C", 1, 2_500_000_000, 0)) == "stopped: Ctrl-C after 1 exit, 2.5 s\n"


@given(exits())
def test_every_exit_is_one_line_of_text_without_a_space_at_its_end(exit: Exit) -> None:
    line = TextColumns().line(TraceLine(1, 0, 0, 0, 0, exit, answer=b"\n" * 8))
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert line[-2] != " "


def test_json_lines_begin_with_their_format_and_version() -> None:
    assert json.loads(JsonLines().begin("hello")) == {
        "kind": "header",
        "format": "pykvm-trace",
        "version": 1,
        "guest": "hello",
    }


def test_a_json_line_says_what_the_line_does() -> None:
    assert json.loads(JsonLines().line(OUT)) == {
        "kind": "exit",
        "number": 14,
        "time_ns": 1_234_567,
        "since_ns": 8_100,
        "guest_ns": 4_567,
        "cpu": 0,
        "reason": "io",
        "event": {"class": "IoOut", "port": 0x3F8, "size": 1, "count": 1, "data": "48"},
        "register": "serial THR",
        "instruction": {"address": 0x8005, "text": "outb %al, %dx", "source": "hello.S:14"},
    }


def test_json_has_answers_and_refusals_and_leaves_out_what_there_is_not() -> None:
    read = json.loads(JsonLines().line(TraceLine(1, 0, 0, 0, 0, IoIn(0x60), answer=b"\xaa")))
    assert (read["answer"], "refused" in read, "register" in read, "instruction" in read) == ("aa", False, False, False)
    assert json.loads(JsonLines().line(TraceLine(1, 0, 0, 0, 0, Hlt(), refused=True)))["refused"] is True


def test_json_tells_exits_from_what_is_none() -> None:
    write = Coalesced(MmioWrite(Gpa(0xD0000000), b"\1"))
    kinds = [json.loads(JsonLines().line(TraceLine(None, 0, 0, 0, 0, e)))["kind"] for e in (InterruptTaken(3), write)]
    assert kinds == ["interrupt", "coalesced"]
    assert json.loads(JsonLines().line(TraceLine(None, 0, 0, 0, 0, write)))["event"]["class"] == "MmioWrite"


@given(exits())
def test_every_exit_is_one_json_object_in_ascii(exit: Exit) -> None:
    text = JsonLines().line(TraceLine(1, 0, 0, 0, 0, exit))
    assert text.isascii()
    assert text.count("\n") == 1
    assert json.loads(text)["event"]["class"] == type(exit).__name__


def test_the_end_of_a_run_in_json() -> None:
    assert json.loads(JsonLines().end(TraceEnd("hlt", 3, 600, 900))) == {
        "kind": "end",
        "time_ns": 900,
        "stop": "hlt",
        "exits": 3,
        "duration_ns": 600,
    }
