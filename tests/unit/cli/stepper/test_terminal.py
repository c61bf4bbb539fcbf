"""The stepper on a real terminal, a pseudo-terminal of 80x24, with a guest that is none: always given back."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.stepper.conftest import TerminalSeat

ROOT = Path(__file__).parents[4]
FAKE = """
import sys
sys.path.insert(0, {root!r})
from pykvm.cli.main import main
from pykvm.cli.stepper.launch import show
from pykvm.memory import GuestMemory
from tests.unit.cli.stepper.conftest import FakeGuest, look_at
with GuestMemory("2M") as memory:
    guest = FakeGuest(look_at(memory))
    guest.printed = b"what the guest printed\\n"
    guest.is_endless = {endless}
    {more}
    sys.exit(show(guest))
"""


@pytest.fixture
def seat() -> Iterator[TerminalSeat]:
    with TerminalSeat() as seat:
        yield seat


def start(seat: TerminalSeat, more: str = "", endless: bool = False) -> None:
    seat.start([sys.executable, "-c", FAKE.format(root=str(ROOT), endless=endless, more=more)])


def test_keys_step_and_the_terminal_is_given_back_with_what_the_guest_printed(seat: TerminalSeat) -> None:
    start(seat)
    seat.wait_for(" => 00008000  xorw %ax, %ax")
    assert seat.settings() != seat.before
    seat.type_keys("s")
    seat.wait_for("*eax 00000002")
    seat.type_keys("sb")
    seat.wait_for(" => 00008002")
    seat.type_keys("q")
    assert seat.wait() == 0
    assert seat.settings() == seat.before
    assert seat.left.endswith(b"what the guest printed\r\n")


def test_keys_typed_ahead_into_a_question_are_not_lost(seat: TerminalSeat) -> None:
    start(seat)
    seat.wait_for(" => 00008000")
    seat.type_keys("g0x8001\r")
    seat.wait_for("00008001 c0 8e d8 ac")
    seat.type_keys("q")
    assert seat.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
@pytest.mark.parametrize("is_running", [False, True], ids=["standing still", "running"])
def test_a_signal_gives_the_terminal_back(number: int, is_running: bool, seat: TerminalSeat) -> None:
    start(seat, endless=True)
    seat.wait_for(" => 00008000")
    if is_running:
        seat.type_keys("c")
        seat.wait_for("Esc interrupts")
    seat.kill(number)
    assert seat.wait() == -number
    assert seat.settings() == seat.before
    assert not seat.is_on_other_screen


def test_a_bug_gives_the_terminal_back_and_is_shown(seat: TerminalSeat) -> None:
    start(seat, more="guest.step = lambda: 1 / 0")
    seat.wait_for(" => 00008000")
    seat.type_keys("s")
    assert seat.wait() == 1
    assert b"ZeroDivisionError" in seat.left
    assert seat.settings() == seat.before


def test_a_smaller_window_is_drawn_anew(seat: TerminalSeat) -> None:
    start(seat)
    seat.wait_for("q quit")
    seat.resize(rows=10, columns=40)
    os.kill(seat.pid, signal.SIGWINCH)
    seat.type_keys("s")
    seat.wait_for(" => 00008002")
    seat.type_keys("q")
    assert seat.wait() == 0
