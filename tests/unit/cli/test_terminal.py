"""The terminal as a guest's serial port sees it, without a guest: what is flushed when, and what is given back."""

from __future__ import annotations

import io
import os
import pty
import termios
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from pykvm.cli.terminal import EVENTS_A_KEY, ROOM_KEPT, TYPED_AHEAD, Quit, Terminal
from pykvm.devices import Keyboard


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: where a person types, and where a program reads."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_output_waits_for_the_end_of_its_line() -> None:
    output = io.BytesIO()
    with Terminal(stdout=output) as terminal:
        for byte in b"ready":
            terminal.write(bytes([byte]))
        assert output.getvalue() == b""
        terminal.write(b"\n")
        assert output.getvalue() == b"ready\n"


def test_output_waits_for_a_tick_at_most() -> None:
    output = io.BytesIO()
    with Terminal(stdout=output) as terminal:
        terminal.write(b"> ")
        terminal.tick()
        assert output.getvalue() == b"> "


def test_output_comes_before_what_pykvm_says(capsys: pytest.CaptureFixture[str]) -> None:
    output = io.BytesIO()
    with Terminal(stdout=output) as terminal:
        terminal.write(b"> ")
        terminal.note("hello")
        assert output.getvalue() == b"> "
    assert capsys.readouterr().err == "pykvm: hello\n"


def test_a_line_without_end_does_not_wait_for_ever() -> None:
    output = io.BytesIO()
    with Terminal(stdout=output) as terminal:
        terminal.write(b"x" * 5000)
        assert output.getvalue() == b"x" * 5000


def test_an_error_gives_the_terminal_back(ends: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    _, slave = ends
    before = termios.tcgetattr(slave)
    with pytest.raises(ZeroDivisionError), Terminal(slave) as terminal:
        terminal.read(1)
        terminal.read(1)
        assert termios.tcgetattr(slave) != before
        _ = 1 / 0
    assert termios.tcgetattr(slave) == before


def test_the_terminal_is_not_touched_before_the_guest_waits(ends: tuple[int, int]) -> None:
    _, slave = ends
    before = termios.tcgetattr(slave)
    with Terminal(slave) as terminal:
        for _ in range(3):  # what a guest does that asks LSR whether it may send
            assert terminal.read(1) == b""
            terminal.write(b"\n")
        assert termios.tcgetattr(slave) == before


def test_quitting_is_a_kind_of_interrupt(ends: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    master, slave = ends
    with Terminal(slave) as terminal:
        terminal.read(1)
        terminal.read(1)
        os.write(master, b"\x01x")
        with pytest.raises(Quit):
            terminal.tick()
    assert issubclass(Quit, KeyboardInterrupt)


def test_too_many_keys_typed_ahead_ring_the_bell(ends: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    master, slave = ends
    with Terminal(slave) as terminal:
        terminal.read(1)
        terminal.read(1)
        for _ in range(TYPED_AHEAD // 256):
            os.write(master, b"k" * 256)
            terminal.tick()
        os.write(master, b"k")
        terminal.tick()
        assert os.read(master, 1) == b"\a"
        assert terminal.read(TYPED_AHEAD + 1) == b"k" * TYPED_AHEAD


def test_input_that_ended_is_not_asked_again() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"ab")
    os.close(writer)
    terminal = Terminal(reader)
    assert terminal.read(1) == b"a"
    assert terminal.read(16) == b"b"
    assert terminal.read(16) == b""
    os.close(reader)
    assert terminal.read(16) == b""


# ---- guests that wait for an interrupt ----


class Watched:
    """A machine as far as a terminal wakes it: its watch over stdin never fires by itself."""

    def __init__(self) -> None:
        self.polls = 0
        self.armed = 0
        self.serial = SimpleNamespace(poll=self.poll, on_listen=lambda: None)
        self.events = SimpleNamespace(watch=self.watch)
        self.board = SimpleNamespace(keyboard=Keyboard())
        self.lock = nullcontext()
        self.take: Callable[[], None] = lambda: None

    def poll(self) -> None:
        self.polls += 1

    def watch(self, fd: int, callback: Callable[[], None]) -> SimpleNamespace:
        self.take = callback
        return SimpleNamespace(arm=self.arm)

    def arm(self) -> None:
        self.armed += 1


def test_keys_that_a_tick_finds_first_reach_the_guest_all_the_same(
    ends: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    master, slave = ends
    machine = Watched()
    with Terminal(slave) as terminal:
        terminal.serve_serial(machine)  # type: ignore[arg-type]
        machine.serial.on_listen()
        terminal.tick()
        assert machine.polls == 0
        os.write(master, b"k")
        terminal.tick()
        assert machine.polls == 1
        assert terminal.read(16) == b"k"


def test_keys_that_a_tick_finds_first_are_typed_on_the_keyboard(
    ends: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    master, slave = ends
    machine = Watched()
    room = machine.board.keyboard.room
    with Terminal(slave) as terminal:
        terminal.serve_keyboard(machine)  # type: ignore[arg-type]
        os.write(master, b"k")
        terminal.tick()
    assert machine.board.keyboard.room == room - 2, "pressed and released"


def test_input_that_the_keyboard_has_no_room_for_waits_for_a_tick() -> None:
    machine = Watched()
    reader, writer = os.pipe()
    lines = b"k" * (machine.board.keyboard.room // EVENTS_A_KEY + 10)
    os.write(writer, lines)
    with Terminal(reader) as terminal:
        terminal.serve_keyboard(machine)  # type: ignore[arg-type]
        while machine.board.keyboard.room >= ROOM_KEPT + EVENTS_A_KEY:
            os.write(writer, lines)
            machine.take()
        armed, room = machine.armed, machine.board.keyboard.room
        machine.take()
        assert (machine.armed, machine.board.keyboard.room) == (armed, room), "nothing was read, nothing is waited for"
    os.close(reader)
    os.close(writer)
