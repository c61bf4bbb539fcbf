"""``pykvm run`` with a whole small PC: its options, its screen and keyboard, and a driver that is interrupted."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

START = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pykvm.cli.main import main; sys.exit(main())"
)
ON_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); " + START
ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "error", "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
PNG = b"\x89PNG\r\n\x1a\n"
CTRL_A, ENTER = b"\x01", b"\r"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"

# Guests in assembly. The screen is at 0xb8000; 0x60 and 0x64 are the keyboard controller's.
SHOW_HI = "mov $0xb8000, %edi\nmovl $0x07690748, (%rdi)\n"  # "Hi", grey on black
PRINT_R = "mov $'R', %al\nout %al, $0xe9\nmov $'\\n', %al\nout %al, $0xe9\n"
SPIN = "9: jmp 9b\n"
# Show each key's scan code set 1 make code as a character of its own: 'A' plus the code; ends at Enter (0x1c).
SHOW_KEYS = """
        mov     $0xb8000, %edi
1:      in      $0x64, %al
        test    $1, %al
        jz      1b
        in      $0x60, %al
        test    $0x80, %al
        jnz     1b
        cmp     $0x1c, %al
        je      2f
        add     $'A' - 0x1e, %al
        mov     %al, (%rdi)
        movb    $7, 1(%rdi)
        add     $2, %edi
        jmp     1b
2:      mov     $5, %al
        out     %al, $0xf4
"""


@pytest.fixture(autouse=True)
def current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def guest(code: str) -> str:
    Path("guest.S").write_text(f".code64\n.globl _start\n_start:\n{code}")
    return "guest.S"


def pykvm(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", START, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, env=ENVIRONMENT)


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return pykvm("run", *arguments, "--timeout", "30", stdin=stdin)


def refused(*arguments: str) -> str:
    """Run what is wrong use, and return the one line about it."""
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert ran.stderr.startswith(b"pykvm: ")
    lines = [line for line in ran.stderr.decode().splitlines() if "--help" not in line]
    assert len(lines) == 1, ran.stderr
    return lines[0].removeprefix("pykvm: ")


# ---- interrupt controllers and CPUs ----


@pytest.mark.parametrize("irqchip", ["user", "kernel", "split"])
def test_the_timer_ticks_the_same_with_every_irqchip(irqchip: str) -> None:
    chosen, own = run("15-timer", "--irqchip", irqchip), run("15-timer")
    assert (chosen.returncode, chosen.stdout, chosen.stderr) == (own.returncode, own.stdout, b"")
    assert chosen.stdout


def test_without_an_irqchip_halting_is_the_end() -> None:
    ran = run(guest("sti\nhlt\nmov $1, %al\nout %al, $0xf4"), "--irqchip", "none")
    assert (ran.returncode, ran.stderr) == (0, b"")


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_second_cpu_starts(irqchip: str) -> None:
    ran = run("19-second-cpu", "--cpus", "2", "--irqchip", irqchip)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"CPU 1: here, in real mode" in ran.stdout


def test_two_cpus_without_local_apics_are_refused_with_the_option_that_helps() -> None:
    for options in ([], ["--irqchip", "user"]):
        message = refused("09-hello", "--cpus", "2", *options)
        assert "2 CPUs need local APICs" in message
        assert "--irqchip" in message


# ---- what is plugged in, typed, and set ----


def test_an_optional_device_answers_when_it_is_plugged_in() -> None:
    echo = guest("mov $0x5a, %al\nout %al, $0xe0\nxor %eax, %eax\nin $0xe0, %al\nout %al, $0xf4")
    assert run(echo, "--device", "testdev").returncode == (0x5A << 1 | 1) & 0xFF
    assert run(echo).returncode == 0xFF
    assert run("27-doorbell", "--device", "doorbell").stdout == b"1000 rings were heard\n"


def test_keys_on_the_command_line_are_typed_instead_of_the_guests_own() -> None:
    assert run("17-keyboard").stdout == b"keys: hello\n"
    assert run("17-keyboard", "--keys", "b y e ret").stdout == b"keys: bye\n"


@pytest.mark.parametrize("name", ["0x1234", "IA32_PAT", "ia32_tsc"])
def test_an_msr_holds_its_value(name: str) -> None:
    number = {"0x1234": 0x1234, "IA32_PAT": 0x277, "ia32_tsc": 0x10}[name]
    reading = guest(f"mov ${number:#x}, %ecx\nrdmsr\nout %al, $0xf4")
    assert run(reading, "--msr", f"{name}=0x15").returncode == 43


def test_msrs_on_the_command_line_replace_the_guests_own() -> None:
    assert b"MSR 0x1234: 7\n" in run("21-msr", "--msr", "0x1234=7").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--irqchip", "apic"], "--irqchip: invalid choice: 'apic'"),
        (["--cpus", "0"], "--cpus: '0' is not a count"),
        (["--cpus", "-1"], "--cpus"),
        (["--cpus", "100000", "--irqchip", "kernel"], "not 100000"),
        (["--device", "printer"], "there is no optional device 'printer': there are testdev, doorbell"),
        (["--device", "testdev", "--device", "testdev"], "testdev"),
        (["--keys", "h e l l oo"], "'oo'"),
        (["--keys", " ".join(["a"] * 5000)], "these are 10000 key strokes, more than fit"),
        (["--msr", "0x1234"], "--msr: '0x1234' sets no MSR: write MSR=VALUE"),
        (["--msr", "IA32_TCS=1"], "did you mean"),
        (["--msr", "1=0x10000000000000000"], "a value has 64 bits"),
        (["--msr", "0x800=1"], "MSR 0x800 is the x2APIC's"),
        (["--screenshot", "no/such/folder.png"], "no/such/folder.png: cannot write the screenshot: there is no folder"),
        (["--screenshot", "/"], "it is a folder"),
        (["--screenshot", "x" * 300], "File name too long"),
    ],
)
def test_wrong_values_are_refused_in_one_line(options: list[str], words: str) -> None:
    assert words in refused("09-hello", *options)


# ---- the ends that a PC has ----


@pytest.mark.parametrize(
    "code",
    [
        "mov $0xfe, %al\nout %al, $0x64",
        "mov $1, %al\nout %al, $0x92",
        "mov $0xcf9, %edx\nmov $6, %al\nout %al, (%dx)",
    ],
    ids=["0x64", "0x92", "0xcf9"],
)
def test_a_reset_ends_with_0(code: str) -> None:
    ran = run(guest(code + "\n" + SPIN))
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_switching_off_ends_with_0() -> None:
    ran = run(guest("mov $0x604, %edx\nmov $0x2000, %eax\nout %ax, (%dx)\n" + SPIN))  # SLP_EN, and the type of S5
    assert (ran.returncode, ran.stderr) == (0, b"")


# ---- the screen, where stdout is no terminal ----


def test_the_last_screen_is_printed_at_the_end_behind_the_serial_output() -> None:
    ran = run(guest(PRINT_R + SHOW_HI + "hlt"), "--screen")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout == b"R\nHi\n"


def test_an_empty_screen_prints_nothing() -> None:
    assert run(guest("hlt"), "--screen").stdout == b""


def test_the_screen_of_a_crash_is_printed_and_then_the_report() -> None:
    ran = run(guest(SHOW_HI + "ud2"), "--screen")
    assert (ran.returncode, ran.stdout) == (125, b"Hi\n")
    assert b"the guest crashed" in ran.stderr


def test_the_screen_of_a_guest_that_is_interrupted_is_printed_too() -> None:
    command = [sys.executable, "-c", START, "run", guest(SHOW_HI + PRINT_R + SPIN), "--screen"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"R\n"
        process.send_signal(signal.SIGINT)
        rest, report = process.communicate()
    assert (process.returncode, rest) == (130, b"Hi\n")
    assert report.startswith(b"pykvm: interrupted with Ctrl-C")


def test_with_the_screen_input_from_a_pipe_is_typed_on_the_keyboard() -> None:
    ran = run(guest(SHOW_KEYS), "--screen", stdin=b"asd\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == (11, b"ABC\n", b"")


def test_more_input_than_the_keyboard_holds_waits_until_there_is_room() -> None:
    count_keys = """
        xor     %ebx, %ebx
1:      in      $0x64, %al
        test    $1, %al
        jz      1b
        in      $0x60, %al
        test    $0x80, %al
        jnz     1b
        cmp     $0x1c, %al
        je      2f
        inc     %ebx
        jmp     1b
2:      cmp     $3000, %ebx
        sete    %al
        out     %al, $0xf4
    """
    assert run(guest(count_keys), "--screen", stdin=b"a" * 3000 + b"\n").returncode == 3


# ---- a picture of the screen ----


def require_pillow() -> None:
    pytest.importorskip("PIL", reason="a screenshot needs Pillow")


@pytest.mark.parametrize("ending", ["hlt", "ud2"])
def test_a_screenshot_is_a_picture_of_the_last_screen(ending: str) -> None:
    require_pillow()
    from PIL import Image

    ran = run(guest(SHOW_HI + ending), "--screenshot", "screen.png")
    assert ran.returncode == {"hlt": 0, "ud2": 125}[ending]
    assert ran.stdout == b""
    assert Path("screen.png").read_bytes().startswith(PNG)
    with Image.open("screen.png") as picture:
        picture.load()
        assert picture.size == (720, 400)
        assert len(picture.convert("RGB").crop((0, 0, 18, 16)).getcolors() or []) > 1, "there is something to see"


def test_a_screenshot_that_cannot_be_written_is_refused_before_the_run() -> None:
    require_pillow()
    assert "there is no folder missing" in refused(guest(PRINT_R + "hlt"), "--screenshot", "missing/screen.png")


def test_a_screenshot_that_fails_after_the_run_loses_nothing_else() -> None:
    require_pillow()
    ran = run(guest(PRINT_R + SHOW_HI + "ud2"), "--screen", "--screenshot", "/dev/full")
    assert ran.returncode == 2
    assert ran.stdout == b"R\nHi\n"
    assert b"the guest crashed" in ran.stderr
    assert ran.stderr.splitlines()[-1] == (
        b"pykvm: /dev/full: cannot write the screenshot: No space left on device; choose another file"
    )


# ---- a serial driver that is interrupted ----


def test_input_from_a_pipe_reaches_a_driver_that_is_interrupted() -> None:
    ran = run("18-serial-irq", stdin=b"some words\nnot read\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"> SOME WORDS\n", b"")


def test_input_from_a_file_does_too() -> None:
    Path("line").write_bytes(b"from a file\n")
    with Path("line").open("rb") as line:
        command = [sys.executable, "-c", START, "run", "18-serial-irq", "--timeout", "30"]
        ran = subprocess.run(command, stdin=line, capture_output=True, check=False, env=ENVIRONMENT)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"> FROM A FILE\n", b"")


def test_a_line_that_comes_in_pieces_is_a_line() -> None:
    command = [sys.executable, "-c", START, "run", "18-serial-irq", "--timeout", "30"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdin is not None and process.stdout is not None
        shown = process.stdout.read(2)  # the prompt comes without a newline
        for piece in (b"a", b"b", b"c\n"):
            process.stdin.write(piece)
            process.stdin.flush()
            if piece != b"c\n":
                shown += process.stdout.read(1)
        shown += process.stdout.read()
    assert (process.returncode, shown) == (0, b"> ABC\n")


def test_a_driver_that_waits_where_there_is_no_input_runs_into_the_time_limit() -> None:
    ran = pykvm("run", "18-serial-irq", "--timeout", "0.5", stdin=b"")
    assert (ran.returncode, ran.stdout) == (124, b"> ")
    assert ran.stderr.startswith(b"pykvm: the time limit of 0.5 s was reached")
    assert b"Traceback" not in ran.stderr


def test_cpuid_shows_what_a_guest_is_told() -> None:
    ran = pykvm("cpuid", "--leaf", "0")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(b"leaf")


def test_the_help_of_run_names_every_option() -> None:
    ran = pykvm("run", "--help")
    assert (ran.returncode, ran.stderr) == (0, b"")
    options = ("irqchip", "cpus", "device", "keys", "msr", "screen", "screenshot", "memory", "timeout", "ring")
    for option in options:
        assert re.search(rf"^  --{option}\b", ran.stdout.decode(), re.MULTILINE), option


# ---- on a terminal ----


class Seat:
    """A person at a terminal who runs pykvm."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (30, 100))
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *arguments: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, "run", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave if stderr is None else stderr,
            start_new_session=True,
            env=ENVIRONMENT,
        )
        return self.process

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def text(self) -> str:
        """What is shown, without the sequences that colour it and move the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode(errors="replace"))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, text: str) -> None:
        while text not in self.text:
            assert self._read() or self._running.poll() is None, f"ended without {text!r}: {self.text!r}"

    def wait(self) -> int:
        while self._running.poll() is None:
            self._read()
        while self._read():
            pass
        return self._running.returncode

    def leave(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def _read(self) -> bool:
        if not select.select([self.master], [], [], 0.05)[0]:
            return False
        data = os.read(self.master, 4096)
        self.shown += data
        return bool(data)


@pytest.fixture
def seat() -> Iterator[Seat]:
    seat = Seat()
    try:
        yield seat
    finally:
        seat.leave()


def test_a_driver_that_listens_makes_the_terminal_raw_and_gets_each_key(seat: Seat) -> None:
    seat.run("18-serial-irq")
    seat.wait_for("> ")
    seat.wait_for("Ctrl-A x quits")
    assert seat.is_raw
    for key in "abc":
        seat.type(key.encode())
        seat.wait_for(key.upper())
    assert "abc" not in seat.text, "the terminal echoes nothing itself"
    seat.type(ENTER)
    assert seat.wait() == 0
    assert seat.is_as_before


def test_ctrl_a_x_quits_a_driver_that_sleeps(seat: Seat) -> None:
    seat.run("18-serial-irq")
    seat.wait_for("Ctrl-A x quits")
    seat.type(CTRL_A + b"x")
    assert seat.wait() == 130
    assert seat.text.endswith("pykvm: quit with Ctrl-A x\r\n")
    assert seat.is_as_before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_deadly_signal_gives_the_terminal_back(number: int, seat: Seat) -> None:
    process = seat.run("18-serial-irq")
    seat.wait_for("Ctrl-A x quits")
    process.send_signal(number)
    assert seat.wait() == -number
    assert seat.is_as_before


def test_the_screen_is_live_and_stays_and_the_serial_output_follows(seat: Seat) -> None:
    seat.run(guest(PRINT_R + SHOW_KEYS), "--screen")
    for number, key in enumerate("asd"):
        seat.wait_for("Ctrl-A x quits")
        seat.type(key.encode())
        seat.wait_for("ABC"[: number + 1])
    assert "R\r\n" not in seat.text, "the serial output waits"
    seat.type(ENTER)
    assert seat.wait() == 11
    assert seat.text.endswith("R\r\n")
    assert seat.shown.rindex(SHOW_CURSOR) > seat.shown.rindex(HIDE_CURSOR)
    assert seat.is_as_before


def test_a_live_screen_keeps_what_the_guest_wrote_last(seat: Seat) -> None:
    seat.run(guest(SHOW_HI + "hlt"), "--screen")
    assert seat.wait() == 0
    assert "Hi" in seat.text


def test_ctrl_a_x_quits_a_live_screen(seat: Seat) -> None:
    seat.run(guest(PRINT_R + SHOW_HI + SPIN), "--screen")
    seat.wait_for("Hi")
    seat.type(CTRL_A + b"x")
    assert seat.wait() == 130
    assert seat.text.endswith("R\r\npykvm: quit with Ctrl-A x\r\n"), "what was held back is not lost"
    assert seat.shown.rindex(SHOW_CURSOR) > seat.shown.rindex(HIDE_CURSOR)
    assert seat.is_as_before


def test_a_crash_leaves_the_screen_then_the_output_then_the_report(seat: Seat) -> None:
    seat.run(guest(PRINT_R + SHOW_HI + "ud2"), "--screen")
    assert seat.wait() == 125
    text = seat.text
    assert text.rindex("Hi") < text.rindex("R\r\n") < text.index("pykvm: the guest crashed")
    assert "Traceback" not in text
    assert seat.shown.rindex(SHOW_CURSOR) > seat.shown.rindex(HIDE_CURSOR)
    assert seat.is_as_before


def test_a_signal_that_kills_shows_the_cursor_again(seat: Seat) -> None:
    process = seat.run(guest(SHOW_HI + SPIN), "--screen")
    seat.wait_for("Hi")
    process.send_signal(signal.SIGTERM)
    assert seat.wait() == -signal.SIGTERM
    assert seat.shown.rindex(SHOW_CURSOR) > seat.shown.rindex(HIDE_CURSOR)
    assert seat.is_as_before


def test_what_pykvm_says_during_a_live_screen_goes_to_stderr(seat: Seat) -> None:
    with Path("log").open("wb") as log:
        seat.run(guest("out %al, $0x66\n" + SHOW_HI + "hlt"), "--screen", stderr=log.fileno())
        assert seat.wait() == 0
    assert "nothing is at port 0x66" in Path("log").read_text()
    assert "nothing is at port" not in seat.text
