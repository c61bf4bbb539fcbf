"""The stepper's screen with real guests: by Textual's pilot, and ``pykvm step`` on a terminal of 80x24."""

from __future__ import annotations

import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pykvm.boot import Image, assemble, find_guest, open_image
from pykvm.cli.stepper.stepped import SteppedGuest
from pykvm.machine import Machine
from pykvm.x86 import Mode
from tests.unit.cli.stepper.conftest import TerminalSeat
from tests.unit.cli.stepper.test_app import Seat, at

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "stepper-screen.md"
PYKVM = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "from pykvm.cli.main import entry; sys.exit(entry())"
)

Load = Callable[..., SteppedGuest]


@pytest.fixture
def load() -> Iterator[Load]:
    """Returns a function that makes a guest of an image, or of the name of a bundled one."""
    with ExitStack() as stack:

        def make(image: Image | str) -> SteppedGuest:
            if isinstance(image, str):
                bundled = find_guest(image)
                assert bundled is not None
                image = open_image(bundled.image, name=bundled.name, mode=Mode(bundled.mode))
                machine = Machine(bundled.memory, irqchip=bundled.irqchip, cpus=bundled.cpus)
            else:
                machine = Machine("2M")
            stack.enter_context(machine)
            machine.load(image)
            return stack.enter_context(SteppedGuest(machine, image, Namespace()))

        yield make


@pytest.fixture
def seat() -> Iterator[TerminalSeat]:
    with TerminalSeat() as seat:
        yield seat


def start(seat: TerminalSeat, *arguments: str, **environment: str) -> None:
    seat.start([sys.executable, "-c", PYKVM, "step", *arguments], **environment)


# ---- by Textual's pilot ----


def test_a_guest_is_stepped_to_and_fro(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        assert " =>  15         xor     %ax, %ax" in await seat.look()
        text = await seat.press(*"sssss")
        assert "step 5" in text
        assert "*eax 00000048" in text, "lodsb has loaded the H"
        text = await seat.press("b")
        assert "step 4" in text
        assert "undone: lodsb" in text
        assert "eax 00000000" in text
        assert "*eax 00000048" in await seat.press("s")

    at(load("02-hello-real"), scenario)


def test_output_and_exits_come_with_the_steps_and_go_with_them(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("5", *"ssssssss")
        assert "io out 0x3f8 'H'" in text.splitlines()[1]
        assert "step      8  cpu 0  io out 0x3f8 'H'" in text
        assert "\nH\n" in await seat.press("3")
        assert "nothing yet" in await seat.press("b")
        assert "io out" not in await seat.press("5")

    at(load("02-hello-real"), scenario)


def test_continuing_ends_at_breakpoints_and_at_the_end_and_can_be_undone(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        await seat.ask("f", "done")
        assert "breakpoint at 0x8012" in await seat.press("space", "c")
        text = await seat.press("3", "c")
        assert "halted" in text
        assert "Hello from real mode" in text
        assert "the guest cannot go on" in await seat.press("s")
        text = await seat.press(*"bbbb")  # leaving a breakpoint may be a step of its own
        assert "this is where the guest began" in text
        assert "step 0 " in text
        assert "nothing yet" in text

    at(load("02-hello-real"), scenario)


def test_going_back_at_full_speed_ends_where_the_guest_began(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        await seat.press(*"ssssssss")
        text = await seat.press("B")
        assert "as far back as the history goes" in text
        assert "step 0 " in text

    at(load("02-hello-real"), scenario)


def test_a_guest_runs_to_the_cursor(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("down", "down", "down", "r")
        assert " =>  18         mov     $SERIAL_THR" in text
        assert "esi 00008013" in text

    at(load("02-hello-real"), scenario)


def test_a_watched_write_stops_the_guest_and_its_bytes_are_marked(load: Load) -> None:
    image = assemble("mov $1, %ax\nmovb $0x55, 0x9001\nhlt", mode=Mode.REAL)

    async def scenario(seat: Seat) -> None:
        await seat.ask("g", "0x9000")
        await seat.ask("w", "0x9000 4 w")
        text = await seat.press("c")
        assert "watchpoint: write of 4 bytes at 0x9000" in text
        assert "00009000 00*55 00" in text

    at(load(image), scenario)


def test_a_crash_shows_its_report_and_going_back_leaves_it(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("c")
        assert "[6 report]" in text
        assert "the guest crashed: KVM_EXIT_SHUTDOWN after" in text
        assert "crashed: shutdown (triple fault)" in text
        assert "no crash so far" in await seat.press("b")

    at(load("12-triple-fault"), scenario)


def test_the_registers_follow_the_mode(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        assert " eax 00000000 " in await seat.look()
        await seat.ask("f", "long_mode")
        text = await seat.press("r")
        assert "long mode" in text.splitlines()[0]
        assert " r15 0000000000000000" in text
        assert "PML4[0]" in await seat.press("2")

    at(load("08-long-mode"), scenario)


def test_an_endless_guest_is_interrupted_and_its_screen_shown(load: Load) -> None:
    image = assemble("mov $0xb800, %ax\nmov %ax, %es\nmovw $0x0748, %es:0\n1: jmp 1b", mode=Mode.REAL)

    async def scenario(seat: Seat) -> None:
        await seat._pilot.press("4", "c")
        text = await seat.press("escape")
        assert "interrupted" in text
        assert "\nH\n" in text
        await seat.press("d")
        assert "jmp" in await seat.press("home")

    at(load(image), scenario)


def test_quitting_stops_an_endless_guest(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        await seat._pilot.press("c", "q")

    assert at(load(assemble("1: jmp 1b", mode=Mode.REAL)), scenario).return_code == 0


def test_a_cpu_that_waits_to_be_started_does_not_keep_the_other_from_going_on(load: Load) -> None:
    async def scenario(seat: Seat) -> None:
        assert "CPU 0" in await seat.look()
        assert "CPU 1" in await seat.press("u")
        assert "halted" in await seat.press("s")
        assert "the guest cannot go on, b goes back" in await seat.press("s")
        assert "CPU 0: it is awake" in await seat.press("u", "3", "c")

    at(load("19-second-cpu"), scenario)


# ---- the docs ----


def test_the_picture_in_the_docs_is_what_the_screen_shows(load: Load) -> None:
    shown = re.search(r"^```text\n(.*?)```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None

    async def scenario(seat: Seat) -> None:
        assert await seat.press(*"ssssssss", "3") == shown[1].rstrip("\n")

    at(load("02-hello-real"), scenario)


# ---- on a terminal ----


def test_pykvm_step_shows_a_guest_and_gives_the_terminal_back(seat: TerminalSeat) -> None:
    start(seat, "02-hello-real")
    seat.wait_for(" =>  15         xor     %ax, %ax")
    seat.type_keys("ssssssss")
    seat.wait_for("step 8 ")
    seat.type_keys("b")
    seat.wait_for("step 7 ")
    seat.type_keys("3c")
    seat.wait_for("Hello from real mode")
    seat.wait_for("halted")
    seat.type_keys("q")
    assert seat.wait() == 0
    assert seat.settings() == seat.before
    assert seat.left.endswith(b"Hello from real mode\r\n")


def test_a_guest_that_runs_for_ever_is_interrupted_on_a_terminal(seat: TerminalSeat, tmp_path: Path) -> None:
    (tmp_path / "spin.bin").write_bytes(b"\xeb\xfe")  # jmp to itself
    start(seat, str(tmp_path / "spin.bin"))
    seat.wait_for(" => 00008000  jmp 0x8000")
    seat.type_keys("c")
    seat.wait_for("Esc interrupts")
    seat.type_keys("\x03")  # Ctrl-C
    seat.wait_for(" interrupted")
    seat.type_keys("cq")
    assert seat.wait() == 0
    assert seat.settings() == seat.before


def test_after_a_crash_the_report_stays_on_the_terminal(seat: TerminalSeat) -> None:
    start(seat, "12-triple-fault")
    seat.wait_for(" =>  16")
    seat.type_keys("c")
    seat.wait_for("[6 report]")
    seat.type_keys("q")
    assert seat.wait() == 0
    assert b"pykvm: the guest crashed: KVM_EXIT_SHUTDOWN" in seat.left


def test_a_terminal_that_cannot_be_drawn_on_is_refused(seat: TerminalSeat) -> None:
    start(seat, "02-hello-real", TERM="dumb")
    assert seat.wait() == 2
    assert b"TERM is dumb: 'pykvm step --batch TARGET' needs no screen" in seat.raw
    assert b"\x1b" not in seat.raw


def test_without_a_terminal_the_way_without_one_is_named() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pykvm.cli.main", "step", "02-hello-real"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ran.returncode == 2
    assert ran.stderr == (
        "pykvm: the stepper needs a terminal, and stdin, stdout and stderr are none: "
        "'pykvm step --batch TARGET' needs no screen\n"
    )
