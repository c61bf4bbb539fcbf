"""pykvm.cli.stepper.words and exits: what is said of a step, a stop, and the exits before it."""

from __future__ import annotations

import pytest

from pykvm.cli.stepper.exits import MOST, ExitLog
from pykvm.cli.stepper.words import arrived, stepped, undone
from pykvm.kvm import Debug, Hlt, Intr, IoOut, Regs, Sregs
from pykvm.machine import Halted
from pykvm.observe.stepping import (
    Access,
    Arrival,
    Event,
    EventKind,
    MemoryChange,
    Reason,
    Step,
    Stretch,
    Watchpoint,
)
from pykvm.units import Gpa
from pykvm.x86 import Instruction

REGISTERS = (Regs(), Sregs())
OUT = IoOut(port=0x3F8, size=1, count=1, data=b"H")


def step(**what: object) -> Step:
    instruction = Instruction(0x8000, b"\xac", "lodsb", "(%si), %al")
    return Step(1, 0, 0x8000, instruction, REGISTERS, REGISTERS, **what)  # type: ignore[arg-type]


# ---- a step ----


def test_a_step_says_what_the_panes_do_not_show() -> None:
    assert stepped(step()) == ""
    assert stepped(step(exits=(OUT,))) == "io out 0x3f8 'H'"
    changes = (MemoryChange(Gpa(0x7BFE), b"\0\0", b"\x05\x80"),)
    assert stepped(step(changes=changes)) == "[0x7bfe] 00 00 -> 05 80"
    assert stepped(step(events=(Event(EventKind.INTERRUPT, 0x20),))) == "interrupt 0x20 taken"
    assert stepped(step(stop=Halted())) == str(Halted())


def test_a_step_that_changed_much_is_still_a_line() -> None:
    large = tuple(MemoryChange(Gpa(at), bytes(4096), b"\xff" * 4096) for at in range(0, 1 << 20, 4096))
    assert len(stepped(step(changes=large))) < 200
    assert stepped(step(changes=large)).endswith("...")


def test_what_is_undone_is_named() -> None:
    assert undone(step()) == "undone: lodsb (%si), %al"
    assert undone(Step(1, 0, 0x8000, None, REGISTERS, REGISTERS)) == "undone"
    assert undone(Stretch(1, 0, 0x8000, REGISTERS, REGISTERS)) == "undone: all that was run at full speed"


# ---- an arrival ----


@pytest.mark.parametrize(
    ("arrival", "words"),
    [
        (Arrival(Reason.STEP, 0, 0x8000, 1), ""),
        (Arrival(Reason.BREAKPOINT, 0, 0x8004, 1), "breakpoint at 0x8004"),
        (Arrival(Reason.INTERRUPTED, 0, 0x8004, 1), "interrupted"),
        (Arrival(Reason.HISTORY, 0, 0x8004, 1), "as far back as the history goes"),
        (Arrival(Reason.TIMEOUT, 0, 0x8004, 1), "the time limit was reached"),
        (Arrival(Reason.STOP, 0, 0x8004, 1, stop=Halted()), str(Halted())),
        (Arrival(Reason.WATCHPOINT, 0, 0x8004, 1, Watchpoint(0x9000)), "watchpoint: write of 1 byte at 0x9000"),
        (
            Arrival(Reason.WATCHPOINT, 0, 0x8004, 1, Watchpoint(0x9000, 4, Access.ANY)),
            "watchpoint: access of 4 bytes at 0x9000",
        ),
    ],
)
def test_why_a_guest_stopped_is_said(arrival: Arrival, words: str) -> None:
    assert arrived(arrival) == words


# ---- exits ----


def test_exits_are_listed_by_step_and_those_of_stepping_itself_are_not() -> None:
    log = ExitLog(lambda: 6)
    for exit in (Debug(exception=1, pc=0x8000, dr6=0, dr7=0), Intr(), OUT, Hlt()):
        log.exit(0, exit)
    log.tick()
    assert log.lines() == ("step      7  cpu 0  io out 0x3f8 'H'", "step      7  cpu 0  hlt")


def test_what_is_undone_has_not_happened() -> None:
    positions = iter((0, 1, 2))
    log = ExitLog(lambda: next(positions))
    for _ in range(3):
        log.exit(0, OUT)
    log.forget(1)
    assert [line.split()[1] for line in log.lines()] == ["1"]


def test_a_guest_that_exits_for_ever_fills_no_memory() -> None:
    log = ExitLog(lambda: 0)
    for _ in range(MOST + 10):
        log.exit(0, OUT)
    assert len(log.lines()) == MOST
