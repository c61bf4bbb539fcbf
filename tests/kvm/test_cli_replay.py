"""``pykvm run --record`` and ``pykvm replay`` as a shell sees them: statuses, output, and files that are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYKVM = "import sys; from pykvm.cli.main import entry; sys.exit(entry())"
# The same where /dev/kvm is not to be opened.
WITHOUT_KVM = f"import pykvm.kvm; pykvm.kvm.Kvm.open = None; {PYKVM}"
ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "error"}

# In real mode: print R and a newline, read port 0x3fd, write the first byte of memory to port 0xf4.
PRINT = b"\xb0R\xe6\xe9\xb0\n\xe6\xe9"
READ_LSR = b"\xba\xfd\x03\xec"
HLT = b"\xf4"
SPIN = b"\xeb\xfe"


def exit_with(value: int) -> bytes:
    return bytes([0xB0, value, 0xE6, 0xF4])  # mov $value, %al; out %al, $0xf4


@pytest.fixture(autouse=True)
def current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pykvm(*arguments: str, program: str = PYKVM) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )


def record(*code: bytes, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Record a guest made of ``code`` as run.jsonl."""
    Path("guest.bin").write_bytes(b"".join(code))
    return pykvm("run", "guest.bin", "--record", "run.jsonl", *options)


def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return pykvm("replay", *arguments, program=WITHOUT_KVM)


def edit(old: str, new: str) -> None:
    text = Path("run.jsonl").read_text()
    assert old in text
    Path("run.jsonl").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("code", "options", "status"),
    [
        (HLT, (), 0),
        (exit_with(42), (), 85),
        (SPIN, ("--timeout", "0.1"), 124),
    ],
    ids=["halted", "debug exit", "timed out"],
)
def test_a_replay_ends_with_the_status_of_the_recorded_run(code: bytes, options: tuple[str, ...], status: int) -> None:
    recorded = record(PRINT, code, options=options)
    assert (recorded.returncode, recorded.stdout) == (status, "R\n")
    again = replay("run.jsonl")
    assert (again.returncode, again.stdout) == (status, "R\n")
    assert "exits, all answered as recorded; " in again.stderr


def test_a_crash_is_replayed_with_its_status() -> None:
    assert pykvm("run", "12-triple-fault", "--record", "run.jsonl").returncode == 125
    ended = replay("run.jsonl")
    assert ended.returncode == 125
    assert "crashed: shutdown (triple fault)" in ended.stderr


def test_a_recording_changes_nothing_about_the_run() -> None:
    with_it = record(PRINT, READ_LSR, exit_with(3))
    without = pykvm("run", "guest.bin")
    assert (with_it.returncode, with_it.stdout, with_it.stderr) == (without.returncode, without.stdout, without.stderr)


def test_two_recordings_of_a_guest_differ_in_nothing_but_their_times() -> None:
    texts = []
    for _ in range(2):
        record(PRINT, READ_LSR, HLT)
        texts.append(replay("run.jsonl", "--without-times").stdout)
    assert texts[0] == texts[1]
    lines = [json.loads(line) for line in texts[0].splitlines()]
    assert [line.get("exit") for line in lines[1:]] == ["IoOut", "IoOut", "IoIn", "Hlt", None]


def test_a_difference_has_a_status_of_its_own_and_is_told_on_stderr() -> None:
    record(PRINT, READ_LSR, HLT)
    edit('"answer": "60"', '"answer": "61"')
    ended = replay("run.jsonl")
    assert (ended.returncode, ended.stdout) == (76, "R\n")
    assert "run.jsonl: line 4, exit 3, after" in ended.stderr
    assert "the recording   61\n  now             60   serial at 0x3f8-0x3ff\n  bit 0 differs\n" in ended.stderr


def test_minimizing_writes_a_smaller_recording_that_differs_in_the_same_way() -> None:
    record(PRINT, READ_LSR, HLT)
    edit('"answer": "60"', '"answer": "61"')
    ended = replay("run.jsonl", "--minimize", "small.jsonl")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "5 lines became 2 in" in ended.stderr
    assert len(Path("small.jsonl").read_text().splitlines()) == 3
    again = replay("small.jsonl")
    assert again.returncode == 76
    assert "the recording   61\n  now             60 " in again.stderr


def test_what_does_not_differ_cannot_be_minimized() -> None:
    record(HLT)
    ended = replay("run.jsonl", "--minimize", "small.jsonl")
    assert ended.returncode == 2
    assert "does not diverge: there is nothing to minimize" in ended.stderr
    assert not Path("small.jsonl").exists()


def test_a_recording_is_not_overwritten_by_its_own_minimum() -> None:
    record(READ_LSR, HLT)
    edit('"answer": "60"', '"answer": "61"')
    ended = replay("run.jsonl", "--minimize", "./run.jsonl")
    assert (ended.returncode, len(Path("run.jsonl").read_text().splitlines())) == (2, 4)
    assert "would overwrite the recording" in ended.stderr


def test_a_guest_is_not_overwritten_by_its_recording() -> None:
    Path("guest.bin").write_bytes(HLT)
    ended = pykvm("run", "guest.bin", "--record", "./guest.bin")
    assert ended.returncode == 2
    assert "would overwrite the guest" in ended.stderr
    assert Path("guest.bin").read_bytes() == HLT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty, and no recording"),
        ("hello\n", "line 1: is no JSON object"),
        ('{"format": "pykvm recording", "version": 2}\n', "line 1: version: 2 is not 1: another pykvm wrote it"),
    ],
    ids=["empty", "text", "future"],
)
def test_a_file_that_is_no_recording_is_wrong_use(content: str, words: str) -> None:
    Path("run.jsonl").write_text(content)
    ended = replay("run.jsonl")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"pykvm: run.jsonl: {words}")
    assert len(ended.stderr.splitlines()) == 1


def test_a_recording_that_was_cut_off_is_wrong_use() -> None:
    record(PRINT, HLT)
    text = Path("run.jsonl").read_text()
    Path("run.jsonl").write_text(text[: len(text) // 2])
    ended = replay("run.jsonl")
    assert ended.returncode == 2
    assert "cut off" in ended.stderr


def test_a_missing_recording_is_wrong_use() -> None:
    ended = replay("nosuch.jsonl")
    assert ended.returncode == 2
    assert ended.stderr == "pykvm: nosuch.jsonl: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("path", ["/dev/full", "nosuch/run.jsonl", "."])
def test_a_recording_that_cannot_be_written_ends_the_run(path: str) -> None:
    Path("guest.bin").write_bytes(PRINT + HLT)
    ended = pykvm("run", "guest.bin", "--record", path)
    assert ended.returncode == 74
    assert ended.stderr.startswith(f"pykvm: {path}: cannot be written: ")
    assert len(ended.stderr.splitlines()) == 1


def test_a_minimum_that_cannot_be_written_is_the_same_error() -> None:
    record(READ_LSR, HLT)
    edit('"answer": "60"', '"answer": "61"')
    ended = replay("run.jsonl", "--minimize", "/dev/full")
    assert (ended.returncode, ended.stderr.splitlines()[0][:32]) == (74, "pykvm: /dev/full: cannot be writ")


def test_output_that_nobody_reads_does_not_hide_the_status() -> None:
    record(PRINT, HLT)
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", PYKVM, "replay", "run.jsonl"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == 74


def test_bundled_guests_are_recorded_with_their_settings() -> None:
    assert pykvm("run", "17-keyboard", "--record", "run.jsonl").returncode == 11
    assert json.loads(Path("run.jsonl").read_text().splitlines()[0])["irqchip"] == "user"
    assert replay("run.jsonl").returncode == 11
