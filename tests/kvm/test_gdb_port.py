"""``pykvm run --gdb`` at a port: who may attach, what Ctrl-C does at either end, and how it all ends."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from pykvm.observe.gdbstub.packets import encode

GDB = shutil.which("gdb") or "gdb"
needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="there is no gdb: apt-get install gdb")

TIMEOUT = 60

# Says that it runs, and then does for ever.
LOOP = """
        .code64
        .globl  _start
_start: mov     $0x3f8, %dx
        mov     $'!', %al
        out     %al, (%dx)
        mov     $'\\n', %al
        out     %al, (%dx)
again:  inc     %rbx
        jmp     again
"""


class Pykvm:
    """``pykvm run ... --gdb 0`` that waits for gdb at ``address``."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pykvm.cli.main", "run", *arguments, "--gdb", "0"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said = _lines(self.process.stderr, 2)
        found = re.search(r"-ex 'target remote (\S+)'", self.said)
        assert found is not None, self.said
        self.address = found[1]

    def gdb(self, *commands: str) -> str:
        """Return what gdb prints that attaches and is given ``commands``."""
        ran = subprocess.run(
            self.gdb_command(*commands), capture_output=True, text=True, timeout=TIMEOUT, check=False, input=""
        )
        return ran.stdout + ran.stderr

    def gdb_command(self, *commands: str) -> list[str]:
        texts = [text for command in (f"target remote {self.address}", *commands) for text in ("-ex", command)]
        return [GDB, "-nx", "-batch", *texts]

    def end(self) -> tuple[int, str, str]:
        """Return its status, and the rest of what it prints on stdout and stderr."""
        output, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, output, errors


def _lines(stream: IO[str] | None, count: int) -> str:
    assert stream is not None
    return "".join(stream.readline() for _ in range(count))


@pytest.fixture
def pykvm() -> Iterator[Callable[..., Pykvm]]:
    started: list[Pykvm] = []

    def start(*arguments: str) -> Pykvm:
        started.append(Pykvm(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture
def loop(tmp_path: Path) -> str:
    path = tmp_path / "loop.S"
    path.write_text(LOOP)
    return str(path)


Start = Callable[..., Pykvm]


# ---- waiting ----


def test_it_says_where_it_waits_and_what_to_type(pykvm: Start, loop: str) -> None:
    waiting = pykvm(loop)
    assert re.match(r"pykvm: waiting for gdb at 127\.0\.0\.1:\d+ \(Ctrl-C quits\)", waiting.said)
    assert f"gdb -d {Path(loop).parent} -ex 'target remote 127.0.0.1:" in waiting.said
    assert "set architecture i8086" not in waiting.said
    assert "set architecture i8086" in pykvm("02-hello-real").said


def test_ctrl_c_quits_while_it_waits(pykvm: Start) -> None:
    waiting = pykvm("09-hello")
    waiting.process.send_signal(signal.SIGINT)
    status, output, errors = waiting.end()
    assert (status, output) == (130, "")
    assert "interrupted with Ctrl-C" in errors
    assert "Traceback" not in errors


# ---- the end ----


@needs_gdb
def test_the_command_that_is_shown_works_and_the_guests_status_is_pykvms(pykvm: Start) -> None:
    waiting = pykvm("14-c-kernel")
    command = waiting.said.splitlines()[1].strip().replace("gdb ", "gdb -nx -batch ", 1)
    ran = subprocess.run(
        f"{command} -ex 'break kernel_main' -ex c -ex 'list 83,84' -ex c",
        shell=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        input="",
    )
    assert 'put_string("Hello from C' in ran.stdout, "the sources are found"
    assert "exited with code 037" in ran.stdout
    status, output, errors = waiting.end()
    assert (status, errors) == (31, "")
    assert output == "Hello from C\nprimes below 50: 2 3 5 7 11 13 17 19 23 29 31 37 41 43 47\n"


@needs_gdb
def test_after_detach_the_guest_runs_to_its_end(pykvm: Start) -> None:
    waiting = pykvm("14-c-kernel")
    waiting.gdb("break kernel_main", "c", "detach")
    status, output, _ = waiting.end()
    assert status == 31
    assert output.endswith("43 47\n")


@needs_gdb
def test_kill_ends_it(pykvm: Start, loop: str) -> None:
    waiting = pykvm(loop)
    waiting.gdb("stepi", "kill")
    status, output, errors = waiting.end()
    assert (status, output) == (130, "")
    assert "killed by gdb" in errors


@needs_gdb
def test_a_crash_is_reported_as_without_gdb(pykvm: Start) -> None:
    waiting = pykvm("12-triple-fault")
    assert "exited with code 0175" in waiting.gdb("c", "c")
    status, output, errors = waiting.end()
    assert (status, output) == (125, "go\n")
    assert "no IDT was loaded" in errors


# ---- Ctrl-C while it runs, and gdbs that go ----


@needs_gdb
def test_ctrl_c_in_gdb_stops_the_guest(pykvm: Start, loop: str) -> None:
    waiting = pykvm(loop)
    gdb = subprocess.Popen(
        waiting.gdb_command("c", "x/i $pc", "p $rbx > 0", "kill"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert _lines(waiting.process.stdout, 1) == "!\n"
    gdb.send_signal(signal.SIGINT)
    output = gdb.communicate(timeout=TIMEOUT)[0]
    assert "received signal SIGINT" in output
    assert "$1 = 1" in output
    assert waiting.end()[0] == 130


@needs_gdb
def test_ctrl_c_in_pykvm_ends_a_running_guest(pykvm: Start, loop: str) -> None:
    waiting = pykvm(loop)
    gdb = subprocess.Popen(
        waiting.gdb_command("c"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert _lines(waiting.process.stdout, 1) == "!\n"
    waiting.process.send_signal(signal.SIGINT)
    status, _, errors = waiting.end()
    assert status == 130
    assert "a loop of 2 instructions" in errors
    assert "Remote connection closed" in gdb.communicate(timeout=TIMEOUT)[0]


@needs_gdb
def test_when_gdb_dies_the_guest_stands_still_and_another_one_finds_it_there(pykvm: Start, loop: str) -> None:
    waiting = pykvm(loop)
    gdb = subprocess.Popen(
        waiting.gdb_command("c"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert _lines(waiting.process.stdout, 1) == "!\n"
    gdb.kill()
    gdb.wait(TIMEOUT)
    assert "gdb has gone without a word" in _lines(waiting.process.stderr, 1)
    output = waiting.gdb("p $rbx > 0", "p $pc > (long) &_start", "kill")
    assert re.findall(r"\$\d = (.*)", output) == ["1", "1"]


@needs_gdb
def test_a_second_gdb_is_refused_and_the_first_goes_on(pykvm: Start, loop: str) -> None:
    waiting = pykvm(loop)
    host, _, port = waiting.address.rpartition(":")
    with socket.create_connection((host, int(port)), TIMEOUT) as first:
        first.sendall(encode(b"?"))
        assert first.recv(100).startswith(b"+")
        assert "another gdb is attached to this guest" in waiting.gdb()
        first.sendall(encode(b"vCont;s:1") + encode(b"k"))
        answers = b"".join(iter(lambda: first.recv(100), b""))
        assert encode(b"T05thread:1;") in answers, "the first one is still answered"
    assert waiting.end()[0] == 130


@needs_gdb
def test_attaching_again_shows_the_mode_that_the_guest_is_in_now(pykvm: Start) -> None:
    waiting = pykvm("08-long-mode")
    output = waiting.gdb(
        "p $pc", "break long_mode", "c", "disconnect", f"target remote {waiting.address}", "p $efer", "kill"
    )
    assert "CPU 0 is in long mode now: 'disconnect'" in output
    assert "LMA" in output


# ---- wrong use ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gdb", "x"], "'x' is no place for gdb: write PORT or HOST:PORT"),
        (["--gdb", "70000"], "the port 0 to 65535"),
        (["--gdb", "host.invalid:0"], "nobody can listen at host.invalid:0 for gdb"),
        (["--gdb", "0", "--record", "x"], "--record does not go with --gdb"),
        (["--gdb", "-", "--screen"], "--screen does not go with --gdb -"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pykvm.cli.main", "run", "09-hello", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        input="",
        cwd=tmp_path,
    )
    assert ran.returncode == 2
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) <= 2


def test_a_pipe_that_ends_at_once_ends_the_guest(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pykvm.cli.main", "run", "09-hello", "--gdb", "-"],
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
        input=encode(b"?"),
    )
    assert ran.returncode == 130
    assert ran.stdout == b"+" + encode(b"T05thread:1;")
