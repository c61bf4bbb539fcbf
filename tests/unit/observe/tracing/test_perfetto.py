"""The trace events that ui.perfetto.dev opens, by the rules of the Trace Event Format."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pykvm.kvm import Exit, Hlt, IoIn, IoOut
from pykvm.observe import TraceLine
from pykvm.observe.tracing import InterruptTaken, TraceEnd
from pykvm.observe.tracing.perfetto import Perfetto
from pykvm.testing.strategies import exits

REQUIRED = {"M": {"args"}, "X": {"ts", "dur"}, "i": {"ts", "s"}}  # by phase, beside ph, pid, tid and name


def events(*lines: TraceLine, end: TraceEnd | None = None) -> list[dict[str, Any]]:
    perfetto = Perfetto()
    text = perfetto.begin("a test") + "".join(map(perfetto.line, lines))
    text += perfetto.end(end) if end is not None else ""
    found: list[dict[str, Any]] = json.loads(text + perfetto.close())
    assert json.loads(text + "]") == found  # and who is killed has only lost the bracket
    return found


def out(number: int, time: int, resumed: int, cpu: int = 0) -> TraceLine:
    return TraceLine(number, time, 0, resumed, cpu, IoOut(0x3F8, data=b"H"), "serial THR", True)


def slices(found: list[dict[str, Any]], cpu: int = 0) -> list[tuple[str, float, float]]:
    return [(e["name"], e["ts"], e["dur"]) for e in found if e["ph"] == "X" and e["tid"] == cpu + 1]


def test_guest_and_user_space_take_turns_on_the_track_of_a_cpu() -> None:
    found = events(out(1, 5_000, 0), TraceLine(2, 20_000, 0, 8_000, 0, Hlt()), end=TraceEnd("hlt", 2, 21_000, 21_000))
    assert slices(found) == [
        ("guest", 0, 5),
        ("io out 0x3f8 1x1 'H'", 5, 3),
        ("guest", 8, 12),
        ("hlt", 20, 1),
    ]


def test_every_cpu_has_a_track_with_its_name() -> None:
    found = events(out(1, 5, 0, cpu=0), out(2, 6, 0, cpu=1), out(3, 9, 7, cpu=1))
    names = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    assert names == {1: "CPU 0", 2: "CPU 1"}
    assert [name for name, _, _ in slices(found, 1)] == ["guest", "io out 0x3f8 1x1 'H'", "guest"]
    assert all(e["tid"] > 0 and e["pid"] > 0 for e in found)  # 0 is the idle process


def test_serial_bytes_and_interrupts_are_instants() -> None:
    found = events(out(1, 5_000, 0), TraceLine(None, 9_000, 0, 9_000, 0, InterruptTaken(0x20)))
    instants = [(e["name"], e["ts"], e["s"]) for e in found if e["ph"] == "i"]
    assert instants == [("out 0x3f8 1x1 'H' serial THR", 5, "t"), ("interrupt vector 0x20", 9, "t")]


def test_an_interrupt_does_not_end_the_slice_of_an_exit() -> None:
    found = events(
        TraceLine(1, 1_000, 0, 0, 0, Hlt()),
        TraceLine(None, 9_000, 0, 9_000, 0, InterruptTaken(0x20)),
        TraceLine(2, 12_000, 0, 10_000, 0, Hlt()),
    )
    assert slices(found) == [("guest", 0, 1), ("hlt", 1, 9), ("guest", 10, 2)]


def test_an_answer_is_among_the_arguments() -> None:
    read = TraceLine(1, 5_000, 0, 0, 0, IoIn(0x60), "i8042 output buffer", answer=b"\xaa")
    found = events(read, end=TraceEnd("hlt", 1, 6_000, 6_000))
    (arguments,) = [e["args"] for e in found if e["name"] == "io in 0x60 1x1 -> 0xaa"]
    assert (arguments["answer"], arguments["register"], arguments["number"]) == ("aa", "i8042 output buffer", 1)


@given(st.lists(st.tuples(exits(), st.integers(0, 3), st.integers(0, 10**12), st.integers(0, 10**12)), max_size=6))
def test_any_trace_is_json_with_the_fields_that_the_format_wants(seen: list[tuple[Exit, int, int, int]]) -> None:
    lines = [TraceLine(n, max(a, b), 0, min(a, b), cpu, exit) for n, (exit, cpu, a, b) in enumerate(seen, 1)]
    found = events(*lines, end=TraceEnd("hlt", len(lines), 0, 10**12))
    for event in found:
        assert {"ph", "pid", "tid", "name"} | REQUIRED[event["ph"]] <= event.keys()
        assert event.get("dur", 0) >= 0
    assert sum(e["ph"] == "X" and e.get("cat") == "exit" for e in found) == len(lines)


def test_no_run_at_all_is_still_a_trace() -> None:
    assert [event["name"] for event in events()] == ["process_name"]
