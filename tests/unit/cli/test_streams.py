"""Standard streams that are closed, full or read by nobody: one message or none, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PLAIN = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {"PYTHONWARNINGS": "error"}
COMMANDS = ["guests", "disasm hello", "doctor --device /dev/null", "--version", "--help", "run --help"]


def pykvm(arguments: str, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pykvm from a shell, with a redirection of the shell's."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m pykvm.cli.main {arguments} {redirection}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        env=PLAIN | environment,
    )


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("redirection", "why"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_stdout_that_cannot_be_written_is_reported_once(
    command: str, redirection: str, why: str, environment: dict[str, str]
) -> None:
    ended = pykvm(command, redirection, **environment)
    assert ended.stderr == f"pykvm: stdout: cannot be written: {why}\n"
    assert ended.returncode == 74


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_cannot_be_written_changes_nothing_else(redirection: str) -> None:
    assert pykvm("guests", redirection).returncode == 0
    refused = pykvm("disasm nosuch", redirection)
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", "")
    refused = pykvm("run --frob", redirection)
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", "")


def test_a_closed_stdin_changes_nothing() -> None:
    assert pykvm("guests", "<&-").stdout == pykvm("guests", "").stdout


def test_no_stream_at_all_ends_all_the_same() -> None:
    assert pykvm("guests", "<&- >&- 2>&-").returncode == 74


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_a_reader_that_goes_away_ends_it_in_silence(environment: dict[str, str]) -> None:
    # 4 MiB of zeros make more text than any pipe holds, so that the writer is there to notice.
    program = (
        'truncate -s 4M guest.bin && { "$0" -m pykvm.cli.main disasm ./guest.bin; echo "status $?" >&2; } | head -1'
    )
    ended = subprocess.run(
        ["/bin/sh", "-c", f'folder=$(mktemp -d) && cd "$folder" && {program}; rm -r "$folder"', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        env=PLAIN | environment,
    )
    assert ended.stdout.split()[0] == "8000"
    assert ended.stderr == "status 141\n"
