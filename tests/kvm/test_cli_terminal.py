"""``pykvm run`` on a real terminal: raw only while a guest reads it, and always given back as it was.

The terminal is a pseudo-terminal: the test sits at its master end, and pykvm has the other as its standard streams and
its controlling terminal.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

PYKVM = (
    "import fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pykvm.cli.main import entry; sys.exit(entry())"
)
ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "error"}

HELP = b"Ctrl-A x quits, Ctrl-A Ctrl-A sends Ctrl-A"
CTRL_A, CTRL_C, ENTER = b"\x01", b"\x03", b"\r"

# Guests in real mode, at 0x8000.
READY = b"\xb0R\xe6\xe9\xb0\n\xe6\xe9"  # mov $'R', %al; out %al, $0xe9; mov $'\n', %al; out %al, $0xe9
LOOK_ONCE = b"\xba\xfd\x03\xec"  # mov $0x3fd, %dx; in (%dx), %al: LSR, whether there is input
LOOK = LOOK_ONCE + b"\xec"  # and again
WAIT = LOOK_ONCE + b"\xa8\x01\x74\xfb"  # test $1, %al; jz to the in
EXIT_WITH_KEY = WAIT + b"\xba\xf8\x03\xec\xe6\xf4"  # mov $0x3f8, %dx; in (%dx), %al; out %al, $0xf4
SPIN = b"\xeb\xfe"  # jmp to itself
HLT = b"\xf4"
UD2 = b"\x0f\x0b"


class Seat:
    """A person at a terminal who runs pykvm."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.before = self.settings()
        self.shown = b""
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PYKVM, "run", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            env=ENVIRONMENT,
        )

    def settings(self) -> list[object]:
        return list(termios.tcgetattr(self.slave))

    @property
    def is_raw(self) -> bool:
        flags = self.settings()[3]
        assert isinstance(flags, int)
        return not flags & (termios.ICANON | termios.ECHO | termios.ISIG)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, text: bytes) -> None:
        while text not in self.shown:
            assert self._read() or self._process.poll() is None, f"ended without {text!r}: {self.shown!r}"

    def wait(self) -> int:
        """Wait for the end, reading what is shown; return the exit status, negative for a signal."""
        while self._process.poll() is None:
            self._read()
        while self._read():
            pass
        return self._process.returncode

    def kill(self, number: int) -> None:
        self._process.send_signal(number)

    def leave(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def _read(self) -> bool:
        """Take what is shown by now, waiting a little for it; return whether there was something."""
        if not select.select([self.master], [], [], 0.05)[0]:
            return False
        data = os.read(self.master, 4096)
        self.shown += data
        return bool(data)


@pytest.fixture
def seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seat]:
    monkeypatch.chdir(tmp_path)
    seat = Seat()
    try:
        yield seat
    finally:
        seat.leave()


def guest(*code: bytes) -> str:
    Path("guest.bin").write_bytes(b"".join(code))
    return "guest.bin"


# ---- raw, and back ----


def test_a_terminal_that_the_guest_does_not_read_stays_as_it_is(seat: Seat) -> None:
    seat.run(guest(READY, SPIN))
    seat.wait_for(b"R\r\n")
    assert seat.settings() == seat.before
    seat.type(CTRL_C)
    assert seat.wait() == 130
    assert b"interrupted with Ctrl-C" in seat.shown
    assert HELP not in seat.shown
    assert seat.settings() == seat.before


def test_a_terminal_goes_raw_when_the_guest_reads_it_and_is_told_how_to_quit(seat: Seat) -> None:
    seat.run(guest(LOOK, READY, SPIN))
    seat.wait_for(b"R\r\n")
    assert HELP in seat.shown
    assert seat.is_raw


def test_a_guest_that_asks_whether_it_may_send_does_not_make_the_terminal_raw(seat: Seat) -> None:
    send = LOOK_ONCE + b"\xb0.\xba\xf8\x03\xee"  # mov $'.', %al; mov $0x3f8, %dx; out %al, (%dx)
    seat.run(guest(send * 10, READY, SPIN))
    seat.wait_for(b"..........R\r\n")
    assert HELP not in seat.shown
    assert seat.settings() == seat.before
    seat.type(CTRL_C)
    assert seat.wait() == 130


def test_a_guest_that_looks_and_prints_by_turns_gets_its_input_all_the_same(seat: Seat) -> None:
    # 1: look; mov %al, %bl; mov $'.', %al; out %al, $0xe9; test $1, %bl; jz 1b; and then the key
    by_turns = LOOK_ONCE + b"\x88\xc3\xb0.\xe6\xe9\xf6\xc3\x01\x74\xf1" + EXIT_WITH_KEY
    seat.run(guest(READY, by_turns))
    seat.wait_for(b"...")
    seat.type(b"k\n")
    assert seat.wait() == (ord("k") << 1 | 1) & 0xFF


def test_a_line_is_echoed_by_the_guest_and_by_nobody_else(seat: Seat) -> None:
    seat.run("03-echo")
    seat.wait_for(HELP)
    seat.shown = b""
    for key in (b"h", b"i"):
        seat.type(key)
        seat.wait_for(key)
    seat.type(ENTER)
    assert seat.wait() == (2 << 1) | 1
    assert seat.shown.strip() == b"hi"
    assert seat.settings() == seat.before


def test_keys_typed_before_the_guest_reads_are_not_lost(seat: Seat) -> None:
    seat.run(guest(READY, EXIT_WITH_KEY))
    seat.type(b"a" + b"\n")  # the end of a line, for the terminal is not raw yet
    assert seat.wait() == (ord("a") << 1 | 1) & 0xFF


@pytest.mark.parametrize(
    ("code", "options", "status"),
    [(HLT, [], 0), (UD2, ["--mode", "long"], 125), (SPIN, ["--timeout", "0.3"], 124)],
    ids=["halted", "crashed", "timed out"],
)
def test_the_terminal_is_given_back_however_the_guest_ends(
    code: bytes, options: list[str], status: int, seat: Seat
) -> None:
    look = b"\x66" + LOOK if "long" in options else LOOK  # an operand-size prefix: 16 bits in 64-bit code
    seat.run(guest(look, READY, code), *options)
    seat.wait_for(HELP)
    assert seat.wait() == status
    assert seat.settings() == seat.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("code", [SPIN, WAIT], ids=["jmp to itself", "waiting for input"])
def test_a_deadly_signal_gives_the_terminal_back_before_it_kills(number: int, code: bytes, seat: Seat) -> None:
    seat.run(guest(LOOK, READY, code))
    seat.wait_for(b"R\r\n")
    assert seat.is_raw
    seat.kill(number)
    assert seat.wait() == -number
    assert seat.settings() == seat.before


@pytest.mark.parametrize("code", [SPIN, WAIT], ids=["jmp to itself", "waiting for input"])
def test_an_interrupt_from_elsewhere_gives_the_terminal_back_and_reports(code: bytes, seat: Seat) -> None:
    seat.run(guest(LOOK, READY, code))
    seat.wait_for(b"R\r\n")
    seat.kill(signal.SIGINT)
    assert seat.wait() == 130
    assert b"pykvm: interrupted with Ctrl-C" in seat.shown
    assert b"rip 0x80" in seat.shown
    assert b"Traceback" not in seat.shown
    assert seat.settings() == seat.before


def test_a_report_starts_on_a_line_of_its_own(seat: Seat) -> None:
    seat.run(guest(b"\xb0R\xe6\xe9", SPIN), "--timeout", "0.3")
    assert seat.wait() == 124
    assert b"R\r\npykvm: the time limit" in seat.shown


# ---- keys ----


@pytest.mark.parametrize("key", [CTRL_C, b"\x1a", b"\x1c", b"\x04", b"\x13", b"\x7f", b"\x1b"])
def test_every_control_key_goes_to_the_guest(key: bytes, seat: Seat) -> None:
    seat.run(guest(LOOK, READY, EXIT_WITH_KEY))
    seat.wait_for(b"R\r\n")
    seat.type(key)
    assert seat.wait() == (key[0] << 1 | 1) & 0xFF


def test_ctrl_a_twice_sends_one_ctrl_a(seat: Seat) -> None:
    seat.run("03-echo")
    seat.wait_for(HELP)
    seat.type(CTRL_A + CTRL_A + ENTER)
    assert seat.wait() == (1 << 1) | 1
    assert seat.shown.count(CTRL_A) == 1


@pytest.mark.parametrize("x", [b"x", b"X"])
@pytest.mark.parametrize("code", [SPIN, WAIT], ids=["no longer reads", "waits for input"])
def test_ctrl_a_x_quits(code: bytes, x: bytes, seat: Seat) -> None:
    seat.run(guest(LOOK, READY, code))
    seat.wait_for(b"R\r\n")
    seat.type(CTRL_A + x)
    assert seat.wait() == 130
    assert seat.shown.endswith(b"pykvm: quit with Ctrl-A x\r\n")
    assert seat.settings() == seat.before


def test_ctrl_a_x_quits_behind_keys_that_nobody_reads(seat: Seat) -> None:
    seat.run(guest(LOOK, READY, SPIN))
    seat.wait_for(b"R\r\n")
    seat.type(b"k" * 1000 + CTRL_A + b"x")
    assert seat.wait() == 130


def test_ctrl_a_and_x_may_come_apart(seat: Seat) -> None:
    seat.run(guest(LOOK, READY, SPIN))
    seat.wait_for(b"R\r\n")
    seat.type(CTRL_A)
    while fcntl.ioctl(seat.slave, termios.FIONREAD, bytes(4)) != bytes(4):
        pass  # until pykvm has taken it
    seat.type(b"x")
    assert seat.wait() == 130


def test_ctrl_a_with_another_key_shows_help_and_types_nothing(seat: Seat) -> None:
    seat.run(guest(LOOK, READY, EXIT_WITH_KEY))
    seat.wait_for(b"R\r\n")
    seat.shown = b""
    seat.type(CTRL_A + b"h")
    seat.wait_for(HELP)
    seat.type(b"k")
    assert seat.wait() == (ord("k") << 1 | 1) & 0xFF


def test_input_from_a_pipe_leaves_the_terminal_alone(seat: Seat) -> None:
    seat.process = subprocess.Popen(
        [sys.executable, "-m", "pykvm.cli.main", "run", "03-echo"],
        stdin=subprocess.PIPE,
        stdout=seat.slave,
        stderr=seat.slave,
        env=ENVIRONMENT,
    )
    assert seat.process.stdin is not None
    seat.process.stdin.write(CTRL_A + b"x\n")
    seat.process.stdin.close()
    assert seat.wait() == (2 << 1) | 1
    assert HELP not in seat.shown
