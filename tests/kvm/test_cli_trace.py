"""``pykvm trace`` and ``pykvm run --trace`` as a shell sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.cli.main import main

pytestmark = pytest.mark.kvm

PYKVM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pykvm.cli.main import entry; sys.exit(entry())"
)
TIME_LIMIT = 50
FOR_EVER = "1: out %al, $0x80; jmp 1b\n"


@pytest.fixture(autouse=True)
def current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pykvm(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PYKVM, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=TIME_LIMIT)


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``command`` in a shell where "$@" is pykvm."""
    shell = ["/bin/bash", "-c", command, "bash", sys.executable, "-c", PYKVM]
    return subprocess.run(shell, capture_output=True, check=False, timeout=TIME_LIMIT)


def trace(*arguments: str) -> list[str]:
    """Return the lines of a trace that goes well, with single spaces, without times."""
    ran = pykvm("trace", *arguments)
    assert (ran.returncode, ran.stderr) == (0, b"")
    lines = [line.split() for line in ran.stdout.decode().splitlines()]
    return [" ".join(line if line[0] in ("#", "stopped:") else [line[0], *line[3:]]) for line in lines]


def test_a_trace_is_a_heading_a_line_an_exit_and_an_end() -> None:
    heading, *lines, end = trace("02-hello-real")
    assert heading.split()[0] == "#"
    assert lines[0].startswith("1 0 io out 0x3f8 1x1 'H' serial THR 0x")
    assert "outb %al, %dx guest.S:" in lines[0]
    assert lines[-1].startswith("22 0 hlt 0x")
    assert end.startswith("stopped: hlt after 22 exits, ")
    assert len(lines) == 22


def test_the_guests_output_is_in_the_lines_and_in_a_file_if_that_is_wanted() -> None:
    ran = pykvm("trace", "02-hello-real", "--output", "output", "--trace-file", "trace")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    assert Path("output").read_bytes() == b"Hello from real mode\n"
    assert len(Path("trace").read_text().splitlines()) == 24


def test_run_keeps_stdout_for_the_guest() -> None:
    ran = pykvm("run", "02-hello-real", "--trace", "--only", "hlt")
    assert (ran.returncode, ran.stdout) == (0, b"Hello from real mode\n")
    lines = ran.stderr.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["#", "22", "stopped:"]


def test_run_writes_a_trace_to_a_file() -> None:
    ran = pykvm("run", "02-hello-real", "--trace-file", "trace.jsonl", "--trace-format", "jsonl", "--limit", "3")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"Hello from real mode\n", b"")
    assert [json.loads(line)["kind"] for line in Path("trace.jsonl").read_text().splitlines()] == [
        *("header", "exit", "exit", "exit", "end")
    ]


def test_a_trace_for_perfetto_is_json() -> None:
    assert pykvm("trace", "15-timer", "--trace-format", "perfetto", "--trace-file", "trace.json").returncode == 0
    events = json.loads(Path("trace.json").read_text())
    assert {event["ph"] for event in events} == {"M", "X", "i"}
    assert any(event["name"] == "interrupt vector 0x20" for event in events)


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        (("--limit", "2"), ["1", "2"]),
        (("--only", "hlt,interrupt"), ["22"]),
        (("--only", "in", "--only", "hlt"), ["22"]),
        (("--port", "0x3f9-0x3ff"), []),
        (("--port", "0x3f8", "--limit", "1"), ["1"]),
        (("--address", "0xd0000000-0xd0000007"), []),
        (("--cpu", "1"), []),
        (("--cpu", "0", "--only", "hlt"), ["22"]),
    ],
)
def test_filters(filters: tuple[str, ...], numbers: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "02-hello-real", *filters]) == 0
    first_words = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert [word for word in first_words if word not in ("#", "stopped:")] == numbers


def test_a_crash_is_traced_up_to_its_end_and_reported() -> None:
    ran = pykvm("trace", "12-triple-fault")
    assert ran.returncode == 125
    assert "shutdown" in ran.stdout.decode().splitlines()[-2]
    assert ran.stdout.decode().splitlines()[-1].startswith("stopped: crash: shutdown")
    assert ran.stderr.startswith(b"pykvm: the guest crashed")


def test_a_guest_without_debug_information_has_instructions_without_lines() -> None:
    Path("guest.bin").write_bytes(b"\xe6\x80\xf4")
    lines = trace("guest.bin")
    assert lines[1] == "1 0 io out 0x80 1x1 0x0 POST code 0x8000 outb %al, $0x80"


def test_input_goes_to_the_guest() -> None:
    ran = pykvm("trace", "03-echo", "--port", "0x3f8", "--only", "in", stdin=b"a\n")
    assert b"in 0x3f8 1x1 -> 'a'  serial RBR" in ran.stdout


def test_the_time_limit_ends_a_trace_too() -> None:
    Path("guest.S").write_text(FOR_EVER)
    ran = pykvm("trace", "guest.S", "--timeout", "0.1", "--trace-format", "perfetto")
    assert ran.returncode == 124
    assert json.loads(ran.stdout)[-1]["name"] == "stopped: time limit of 0.1 s"


def test_ctrl_c_leaves_a_whole_trace() -> None:
    Path("guest.S").write_text(FOR_EVER)
    command = [sys.executable, "-c", PYKVM, "trace", "guest.S", "--trace-format", "perfetto", "--trace-file", "trace"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not Path("trace").exists() or not Path("trace").stat().st_size:
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIME_LIMIT)
    assert process.returncode == 130
    assert stderr.startswith(b"pykvm: interrupted with Ctrl-C")
    assert json.loads(Path("trace").read_text())[-1]["name"] == "stopped: Ctrl-C"


def test_a_reader_who_goes_away_ends_the_trace() -> None:
    Path("guest.S").write_text(FOR_EVER)
    ran = shell('"$@" trace guest.S | head -n 2; exit ${PIPESTATUS[0]}')
    assert (ran.returncode, ran.stderr) == (141, b"")
    assert len(ran.stdout.splitlines()) == 2


@pytest.mark.parametrize("where", ["> /dev/full", "--trace-file /dev/full", "--output /dev/full --trace-file t"])
def test_a_full_disk_is_one_clear_error(where: str) -> None:
    ran = shell(f'"$@" trace 02-hello-real {where}')
    assert ran.returncode == 74
    assert ran.stderr.decode().splitlines()[-1].endswith("cannot be written: No space left on device")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("trace", "02-hello-real", "--only", "mmoi"),
            "--only: there is no kind of exit called 'mmoi': did you mean mmio",
        ),
        (("trace", "02-hello-real", "--port", "9-8"), "--port: '9-8' is no range: write 0x3f8, or 0x3f8-0x3ff"),
        (("trace", "02-hello-real", "--port", "com1"), "'com1' is no range"),
        (("trace", "02-hello-real", "--cpu", "-1"), "no CPU's number"),
        (("trace", "02-hello-real", "--limit", "0"), "write a number above 0"),
        (("trace", "02-hello-real", "--trace-format", "xml"), "invalid choice: 'xml'"),
        (("trace", "nobody-home"), "no such file"),
        (("trace",), "required: TARGET"),
        (("run", "02-hello-real", "--only", "io"), "--only is about a trace, and there is none: add --trace"),
        (("run", "02-hello-real", "--trace-format", "jsonl"), "--trace-format is about a trace"),
    ],
)
def test_wrong_use_is_one_clear_error(
    arguments: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as exit:  # as argparse ends a process
        status = exit.code
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("pykvm: ")


@pytest.mark.parametrize("option", ["--trace-file", "--output"])
def test_a_trace_never_overwrites_the_guest(option: str) -> None:
    Path("guest.bin").write_bytes(b"\xf4")
    ran = pykvm("trace", "guest.bin", option, "./guest.bin")
    assert ran.returncode == 2
    assert b"would overwrite the guest" in ran.stderr
    assert Path("guest.bin").read_bytes() == b"\xf4"


def test_a_file_that_cannot_be_made_is_one_clear_error() -> None:
    ran = pykvm("trace", "02-hello-real", "--trace-file", "no/such/folder")
    assert ran.returncode == 74
    assert b"no/such/folder: cannot be written: No such file or directory" in ran.stderr
