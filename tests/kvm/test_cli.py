"""``pykvm run`` as a shell sees it: the status that a guest earned, its output alone on stdout, the rest on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# A shell's background job ignores Ctrl-C, and so would its children: these do not.
PYKVM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pykvm.cli.main import entry; sys.exit(entry())"
)
ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "error"}

NOBODY = 65534

# Guests in real mode, at 0x8000.
HLT = b"\xf4"
SPIN = b"\xeb\xfe"  # jmp to itself
STORM = b"\xe6\x80\xeb\xfc"  # 1: out %al, $0x80; jmp 1b
READY = b"\xb0R\xe6\xe9\xb0\n\xe6\xe9"  # mov $'R', %al; out %al, $0xe9; mov $'\n', %al; out %al, $0xe9
PRINT_FOR_EVER = READY + b"\xeb\xf6"  # and jmp back to its start
POLL = b"\xba\xfd\x03\xec\xa8\x01\x74\xfb"  # mov $0x3fd, %dx; 1: in (%dx), %al; test $1, %al; jz 1b
ECHO_BYTE = POLL + b"\xba\xf8\x03\xec\xe6\xe9"  # mov $0x3f8, %dx; in (%dx), %al; out %al, $0xe9


def exit_with(value: int) -> bytes:
    return bytes([0xB0, value, 0xE6, 0xF4])  # mov $value, %al; out %al, $0xf4


@pytest.fixture(autouse=True)
def current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_guest(*code: bytes) -> str:
    Path("guest.bin").write_bytes(b"".join(code))
    return "guest.bin"


def pykvm(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", PYKVM, *arguments], input=stdin, capture_output=True, check=False, env=ENVIRONMENT
    )


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A pykvm that runs, with pipes for its output."""
    command = [sys.executable, "-c", PYKVM, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    with process:
        try:
            yield process
        finally:
            process.kill()


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``command`` in a shell where "$@" is pykvm."""
    return subprocess.run(
        ["/bin/sh", "-c", command, "sh", sys.executable, "-c", PYKVM],
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
    )


# ---- what a guest earned ----


def test_a_guest_that_halts_ends_with_0_and_without_a_word() -> None:
    ran = pykvm("run", write_guest(HLT))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (7, 15), (0x7F, 0xFF), (0x80, 1), (0xFF, 0xFF)])
def test_a_guest_chooses_its_status_by_the_debug_exit_port(value: int, status: int) -> None:
    ran = pykvm("run", write_guest(exit_with(value)))
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, b"", b"")


@pytest.mark.parametrize("code", [SPIN, STORM], ids=["jmp to itself", "exit storm"])
def test_the_time_limit_ends_with_124_and_a_report(code: bytes) -> None:
    ran = pykvm("run", write_guest(READY, code), "--timeout", "0.3")
    assert ran.returncode == 124
    assert ran.stdout == b"R\n"
    report = ran.stderr.decode()
    assert report.startswith("pykvm: the time limit of 0.3 s was reached")
    for words in ("rip", "what happened", "--timeout SECONDS"):
        assert words in report


@pytest.mark.parametrize("limit", ["1e-300", "1e-9", "0.001"])
def test_the_shortest_time_limit_ends_like_any_other(limit: str) -> None:
    assert pykvm("run", write_guest(SPIN), "--timeout", limit).returncode == 124


@pytest.mark.parametrize("limit", ["30", "1e9", "1e308"])
def test_a_guest_that_halts_in_time_does_not_notice_the_limit(limit: str) -> None:
    ran = pykvm("run", write_guest(HLT), "--timeout", limit)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_crash_ends_with_125_and_a_report() -> None:
    ran = pykvm("run", "12-triple-fault")
    assert ran.returncode == 125
    assert ran.stdout == b"go\n"
    report = ran.stderr.decode()
    for words in ("the guest crashed", "triple fault", "likely cause", "ud2", "rip 0x"):
        assert words in report


def test_a_guest_is_assembled_and_run_in_one_go() -> None:
    Path("guest.S").write_text(".code64\n.globl _start\n_start: mov $20, %al\nout %al, $0xf4\n")
    assert pykvm("run", "guest.S").returncode == 41


def test_load_entry_mode_and_memory_reach_the_guest() -> None:
    guest = write_guest(SPIN, exit_with(3))
    options = ("--mode", "long", "--load", "0x200000", "--entry", "0x200002", "--memory", "4M")
    assert pykvm("run", guest, *options).returncode == 7


def test_ring_3_may_not_halt() -> None:
    assert pykvm("run", write_guest(HLT), "--mode", "long").returncode == 0
    assert pykvm("run", write_guest(HLT), "--mode", "long", "--ring", "3").returncode == 125


# ---- wrong use that only a machine can tell ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--load", "0x20000", "--memory", "64K"], "does not fit into guest memory, 0x20000 is outside"),
        (["--load", "0x2000000", "--mode", "long"], "does not fit into guest memory, 0x2000000 is outside"),
        (["--load", "0x2000000"], "real mode reaches addresses below 1 MiB"),
        (["--mode", "long", "--memory", "64K"], "long mode's tables have no room"),
        (["--mode", "long", "--load", "0x10000"], "0x10000"),
        (["--mode", "real", "--ring", "3"], "real mode has no rings"),
    ],
)
def test_a_guest_that_cannot_start_so_is_explained(options: list[str], words: str) -> None:
    ran = pykvm("run", write_guest(HLT), *options)
    assert (ran.returncode, ran.stdout) == (2, b"")
    message = ran.stderr.decode()
    assert message.startswith("pykvm: ")
    assert words in message
    assert "Traceback" not in message


# ---- stdout and stderr ----


def test_what_pykvm_says_never_mixes_with_what_the_guest_says() -> None:
    ran = pykvm("run", write_guest(b"\xe6\x66", READY, b"\xe4\x67", HLT))  # out %al, $0x66; ...; in $0x67, %al
    assert ran.stdout == b"R\n"
    assert ran.stderr.decode().splitlines() == [
        "pykvm: nothing is at port 0x66: a write to it (1 byte) is lost",
        "pykvm: nothing is at port 0x67: a read from it (1 byte) gives all ones",
    ]


def test_a_guest_that_probes_every_port_does_not_drown_the_rest() -> None:
    sweep = b"\xba\x00\x10\xec\x42\x80\xfe\x20\x75\xf9"  # mov $0x1000, %dx; 1: in (%dx), %al; inc %dx; cmp $0x20, %dh..
    lines = pykvm("run", write_guest(sweep, HLT)).stderr.decode().splitlines()
    assert len(lines) == 9
    assert lines[-1] == "pykvm: there are more such accesses; they are not shown"


def test_output_without_a_newline_comes_out_before_the_end() -> None:
    with started("run", write_guest(b"\xb0R\xe6\xe9", SPIN)) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"R"
        assert process.poll() is None


@pytest.mark.parametrize("code", [HLT, exit_with(2)])
def test_a_closed_stdout_is_no_matter_to_a_guest_that_prints_nothing(code: bytes) -> None:
    guest = write_guest(code)
    assert shell(f'exec "$@" run {guest} >&-').returncode == pykvm("run", guest).returncode


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("code", [READY + HLT, PRINT_FOR_EVER], ids=["a line", "lines for ever"])
def test_output_that_cannot_be_written_ends_with_74(redirection: str, code: bytes) -> None:
    ran = shell(f'exec "$@" run {write_guest(code)} {redirection}')
    assert ran.returncode == 74
    assert ran.stderr.startswith(b"pykvm: stdout: cannot be written: ")
    assert ran.stderr.count(b"\n") == 1


def test_a_reader_that_goes_away_ends_the_guest() -> None:
    with started("run", write_guest(PRINT_FOR_EVER)) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"R\n"
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""


# ---- stdin ----


def test_input_comes_from_a_pipe() -> None:
    ran = pykvm("run", "03-echo", stdin=b"hello\nmore than it reads\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == ((5 << 1) | 1, b"> hello\n", b"")


def test_input_comes_byte_by_byte_and_may_be_anything() -> None:
    everything = bytes(range(256))
    until_ff = b"\x3c\xff\x75\xee"  # cmp $0xff, %al; jne to the start
    ran = pykvm("run", write_guest(ECHO_BYTE, until_ff, HLT), stdin=everything)
    assert (ran.returncode, ran.stdout) == (0, everything)


def test_input_comes_from_a_file() -> None:
    Path("line").write_text("abc\n")
    ran = shell('exec "$@" run 03-echo <line')
    assert (ran.returncode, ran.stdout) == (7, b"> abc\n")


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-"], ids=["empty", "closed"])
def test_a_guest_waits_in_vain_where_there_is_no_input(redirection: str) -> None:
    ran = shell(f'exec "$@" run 03-echo --timeout 0.3 {redirection}')
    assert ran.returncode == 124
    assert ran.stdout == b"> "
    assert b"Traceback" not in ran.stderr


# ---- Ctrl-C ----


@pytest.mark.parametrize("code", [SPIN, STORM, POLL], ids=["jmp to itself", "exit storm", "waiting for input"])
def test_ctrl_c_ends_a_guest_with_130_and_a_register_report(code: bytes) -> None:
    with started("run", write_guest(READY, code)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"R\n"  # so it is running
        process.send_signal(signal.SIGINT)
        output, report = process.communicate()
    assert process.returncode == 130
    assert output == b""
    assert report.startswith(b"pykvm: interrupted with Ctrl-C\n")
    assert b"rip 0x80" in report
    assert b"Traceback" not in report


def test_ctrl_c_ends_a_guest_whose_output_nobody_reads() -> None:
    with started("run", write_guest(PRINT_FOR_EVER)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"R\n"
        ended = False
        while not ended:  # the first Ctrl-C may wait for the pipe; the next does not
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                ended = process.wait(timeout=0.2) is not None
        assert process.stderr is not None
        report = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in report


# ---- /dev/kvm ----


DROP_RIGHTS = f"""
import importlib, os, pkgutil, pykvm
for module in pkgutil.walk_packages(pykvm.__path__, "pykvm."):
    importlib.import_module(module.name)  # for the next user may not read them
if os.geteuid() == 0:  # whom no permissions keep out
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
from pykvm.kvm import Kvm
"""


def test_kvm_without_permission_ends_with_69_and_the_command_that_mends_it() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        guest, device = Path(folder) / "guest.bin", Path(folder) / "kvm"
        guest.write_bytes(HLT)
        device.touch()
        device.chmod(0)
        there = f"Kvm.open.__func__.__defaults__ = ({str(device)!r},)\n"
        ran = subprocess.run(
            [sys.executable, "-c", DROP_RIGHTS + there + PYKVM, "run", str(guest)],
            capture_output=True,
            text=True,
            check=False,
            env=ENVIRONMENT,
        )
    assert (ran.returncode, ran.stdout) == (69, "")
    reason, remedy = ran.stderr.splitlines()
    assert reason.startswith(f"pykvm: KVM cannot be used here: {device} may not be opened: permission denied")
    assert remedy.strip() == f"sudo chmod a+rw {device}"
