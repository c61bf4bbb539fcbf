"""What a line of a trace says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from pykvm.kvm import (
    Debug,
    Exit,
    Hlt,
    Hypercall,
    InternalError,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Rdmsr,
    Shutdown,
    Unknown,
    Wrmsr,
)
from pykvm.machine import Breakpoint, Crashed, DebugExitWritten, Halted, Interrupted, Stop, TimedOut
from pykvm.observe import TraceLine
from pykvm.observe.tracing import Coalesced, InterruptTaken
from pykvm.observe.tracing.line import Event
from pykvm.observe.tracing.words import reason_of, show_data, stop_words, what_of
from pykvm.testing.strategies import exits
from pykvm.units import Gpa


def line(event: Event, answer: bytes | None = None, *, is_text: bool = False, refused: bool = False) -> TraceLine:
    return TraceLine(1, 0, 0, 0, 0, event, is_text=is_text, answer=answer, refused=refused)


@pytest.mark.parametrize(
    ("event", "answer", "words"),
    [
        (IoOut(0x3F8, data=b"H"), None, "out 0x3f8 1x1 0x48"),
        (IoOut(0x80, 2, 1, b"\x34\x12"), None, "out 0x80 1x2 0x1234"),
        (IoOut(0x80, 1, 3, b"\1\2\3"), None, "out 0x80 3x1 01 02 03"),
        (IoIn(0x3FD), b"\x60", "in 0x3fd 1x1 -> 0x60"),
        (IoIn(0x3FD), None, "in 0x3fd 1x1"),
        (MmioWrite(Gpa(0xFED000F0), b"\1\0\0\0"), None, "write 0xfed000f0 1x4 0x1"),
        (MmioRead(Gpa(0xFED00000), 8), bytes(7) + b"\1", "read 0xfed00000 1x8 -> 0x100000000000000"),
        (Rdmsr(0xC0000080, 0), bytes([5, *bytes(7)]), "rdmsr 0xc0000080 IA32_EFER -> 0x5"),
        (Rdmsr(0x12345, 0), None, "rdmsr 0x12345"),
        (Wrmsr(0xC0000080, 7, 0), None, "wrmsr 0xc0000080 IA32_EFER 0x7"),
        (Hypercall(12, (1, 2, 3, 4, 5, 6), 1), bytes(8), "call 12(0x1, 0x2, 0x3, 0x4, 0x5, 0x6) -> 0x0"),
        (InterruptTaken(0x20), None, "vector 0x20"),
        (Coalesced(IoOut(0x3F8, data=b"H")), None, "out 0x3f8 1x1 0x48"),
        (Hlt(), None, ""),
        (Shutdown(), None, "triple fault"),
        (Debug(1, 0x1000, 0x1, 0), None, "at 0x1000, dr6 0x1"),
        (Unknown(77, 3), None, "reason 77, hardware reason 0x3"),
        (InternalError(1, (0,), 1, b"\x0f\x77\x90\x90"), None, "suberror 1, emulation of 0f 77 90 90 ..."),
    ],
)
def test_an_event_in_words(event: Event, answer: bytes | None, words: str) -> None:
    assert what_of(line(event, answer)) == words


def test_a_register_of_characters_shows_them_escaped() -> None:
    assert show_data(b"H", 1, True) == "'H'"
    assert show_data(b"\n\r\t\\'\x1b\xff", 1, True) == r"'\n\r\t\\\'\x1b\xff'"
    assert what_of(line(IoIn(0x3F8), b"x", is_text=True)) == "in 0x3f8 1x1 -> 'x'"


def test_a_refused_msr_access_says_what_the_guest_gets() -> None:
    assert what_of(line(Wrmsr(0xC0000080, 7, 0), refused=True)) == "wrmsr 0xc0000080 IA32_EFER 0x7 -> #GP"


def test_long_data_is_cut_off() -> None:
    assert show_data(bytes(17), 1, False) == " ".join(["00"] * 16) + "..."
    assert show_data(b"a" * 17, 1, True) == f"'{'a' * 16}'..."


@given(exits())
def test_every_exit_is_one_printable_line(exit: Exit) -> None:
    seen = line(exit, b"\n\x1b" * 4)
    for text in (what_of(seen), what_of(replace(seen, is_text=True)), reason_of(exit)):
        assert text.isprintable()
    assert reason_of(exit) == exit.reason.name.lower()


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (Halted(), "hlt"),
        (DebugExitWritten(0x2A), "debug exit 0x2a"),
        (TimedOut(0.5), "time limit of 0.5 s"),
        (Crashed(Shutdown()), "crash: shutdown (triple fault)"),
        (Breakpoint(Debug(1, 0x1000, 0, 0)), "debugger at 0x1000"),
        (Interrupted(), "Ctrl-C"),
    ],
)
def test_an_end_in_words(stop: Stop, words: str) -> None:
    assert stop_words(stop) == words
