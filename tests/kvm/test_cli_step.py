"""``pykvm step --batch`` as a shell sees it: a line for each instruction on stdout, the rest on stderr."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PYKVM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pykvm.cli.main import entry; sys.exit(entry())"
)
ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "error"}
SOURCE = "start: mov $0x3f8, %dx\nmov $'A', %al\nout %al, %dx\nagain: dec %bx\njnz again\nhlt\n"


@pytest.fixture(autouse=True)
def current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("guest.S").write_text(SOURCE)


def step(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PYKVM, "step", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, env=ENVIRONMENT, timeout=60)


def lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stdout.decode().splitlines()


def fields(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_each_instruction_is_a_line_of_columns() -> None:
    done = step("--batch", "--mode", "real", "-n", "5", "guest.S")
    assert done.returncode == 0
    assert [fields(line) for line in lines(done)] == [
        ["1", "0", "0x8000", "start", "movw $0x3f8, %dx", "guest.S:1", "rdx 0x0 -> 0x3f8"],
        ["2", "0", "0x8003", "start+0x3", "movb $0x41, %al", "guest.S:2", "rax 0x0 -> 0x41"],
        ["3", "0", "0x8005", "start+0x5", "outb %al, %dx", "guest.S:3", "io out 0x3f8 'A'"],
        ["4", "0", "0x8006", "again", "decw %bx", "guest.S:4", fields(lines(done)[3])[6]],
        ["5", "0", "0x8007", "again+0x1", "jne 0x8006", "guest.S:5"],
    ]
    assert "rbx 0x0 -> 0xffff; rflags 0x2 -> 0x96 [SF AF PF]" in lines(done)[3]
    assert done.stderr.decode() == "pykvm: 5 steps, and the guest goes on: -n takes more\n"


def test_the_end_of_the_guest_is_its_status_and_a_sentence() -> None:
    done = step("--batch", "09-hello")
    assert done.returncode == 0
    assert fields(lines(done)[-1])[4:] == ["hlt", "guest.S:24", "hlt"]
    assert done.stderr.decode().startswith("pykvm: halted: HLT, and nothing can wake this CPU, after ")
    assert step("--batch", "03-echo", stdin=b"hello\n").returncode == 11


def test_a_crash_is_reported_as_by_run() -> None:
    done = step("--batch", "12-triple-fault")
    assert done.returncode == 125
    assert "shutdown (triple fault)" in lines(done)[-1]
    assert "pykvm: the guest crashed: KVM_EXIT_SHUTDOWN after 4 exits" in done.stderr.decode()


def test_what_the_guest_prints_goes_to_a_file_and_nowhere_else() -> None:
    done = step("--batch", "--output", "printed", "09-hello")
    assert Path("printed").read_bytes() == b"Hello from long mode\n"
    assert b"Hello" not in done.stdout + done.stderr


def test_interrupts_and_what_they_push_are_shown() -> None:
    done = step("--batch", "-n", "200", "15-timer")
    assert any(re.search(r"cli .*interrupt 0x20; .*rsp 0x", line) for line in lines(done))


def test_machine_options_are_those_of_run() -> None:
    done = step("--batch", "--mode", "long", "--ring", "3", "--memory", "2M", "guest.S")
    assert done.returncode == 125, "ring 3 has no ports"
    assert lines(done)


def test_the_time_limit_ends_it() -> None:
    Path("spin.S").write_text("1: jmp 1b\n")
    done = step("--batch", "--timeout", "0.2", "-n", "100000000", "spin.S")
    assert (done.returncode, b"the time limit of 0.2 s was reached" in done.stderr) == (124, True)
    Path("wait.S").write_text("sti\nhlt\n")
    assert step("--batch", "--timeout", "0.2", "--irqchip", "user", "wait.S").returncode == 124


def test_ctrl_c_ends_it() -> None:
    Path("spin.S").write_text("1: jmp 1b\n")
    command = [sys.executable, "-c", PYKVM, "step", "--batch", "-n", "100000000", "spin.S"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(100)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert b"interrupted with Ctrl-C" in process.stderr.read()
    assert process.returncode == 130


def test_a_reader_that_goes_away_ends_it() -> None:
    command = [sys.executable, "-c", PYKVM, "step", "--batch", "-n", "100000000", "guest.S"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 141


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "-n", "0", "09-hello"], "'0' is not a count"),
        (["--batch", "no-such-guest"], "no-such-guest: there is no such file"),
        (["--batch", "--output", "guest.S", "guest.S"], "--output guest.S would overwrite the guest"),
        (["--batch", "--cpus", "2", "guest.S"], "2 CPUs need local APICs"),
        (["-n", "5", "09-hello"], "-n goes with --batch"),
        (["--output", "x", "09-hello"], "--output goes with --batch"),
        (["09-hello"], "the stepper needs a terminal"),
    ],
)
def test_wrong_use_is_one_clear_error(arguments: list[str], said: str) -> None:
    done = step(*arguments)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert done.stdout == b""


def test_output_that_cannot_be_written_says_so() -> None:
    done = step("--batch", "--output", "no/such/folder", "09-hello")
    assert done.returncode == 74
    assert b"no/such/folder: cannot be written" in done.stderr
