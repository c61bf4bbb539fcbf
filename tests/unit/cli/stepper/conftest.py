"""Guests that stand still, made without KVM: for the tests of what the stepper shows of them."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import pytest

from pykvm.boot import Image
from pykvm.boot.image import Segment, Symbol
from pykvm.cli.stepper.guest import Standing
from pykvm.cli.stepper.look import Look
from pykvm.errors import ConfigurationError
from pykvm.kvm import Regs, Sregs
from pykvm.machine.output import Output
from pykvm.memory import GuestMemory
from pykvm.observe.stepping import Watchpoint
from pykvm.units import Gpa, MiB
from pykvm.x86 import CpuState, Mode, real_mode, set_up

PATIENCE = 20  # seconds

CODE = Gpa(0x8000)
XOR_MOV_LODSB_HLT = b"\x31\xc0\x8e\xd8\xac\xf4"  # xor %ax, %ax; mov %ax, %ds; lodsb; hlt


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(2 * MiB) as memory:
        yield memory


def look_at(
    memory: GuestMemory,
    code: bytes = XOR_MOV_LODSB_HLT,
    mode: Mode = Mode.REAL,
    image: Image | None = None,
    rip: int = CODE,
) -> Look:
    """Return ``code`` at 0x8000, about to be executed in ``mode``."""
    memory.write(CODE, code)
    state = set_up(mode, Sregs(), memory, CODE) if mode is not Mode.REAL else CpuState(Regs(rip=CODE), _real())
    return Look(0, replace(state.regs, rip=rip), state.sregs, memory, image)


def stepped(look: Look, **registers: int) -> Look:
    """Return ``look`` a step later, with other ``registers``."""
    return Look(
        look.step + 1, replace(look.regs, **registers), look.sregs, look.memory, look.image, (look.regs, look.sregs)
    )


def image_of(symbols: Sequence[tuple[str, int]]) -> Image:
    """Return an image whose code is at 0x8000 and has ``symbols``."""
    named = tuple(Symbol(name, address, 0) for name, address in symbols)
    return Image("guest.S", (Segment(CODE, bytes(16), MiB),), CODE, Mode.REAL, named)


def _real() -> Sregs:
    return real_mode(Sregs()).sregs


class FakeGuest:
    """A guest whose instructions do nothing but follow one another: one at each of ``path``, then it halts.

    ``go_on`` runs until somebody interrupts if there is no breakpoint ahead and ``is_endless``.
    """

    name = "fake"

    def __init__(self, look: Look, path: Sequence[int] = (CODE, CODE + 2, CODE + 4, CODE + 5)) -> None:
        self.looks = [Look(0, look.regs, look.sregs, look.memory, look.image)]
        for rip in path[1:]:
            self.looks.append(stepped(self.looks[-1], rip=rip, rax=rip - CODE))
        self.at = 0
        self.why = "before the first instruction"
        self.is_endless = False
        self.report = ""
        self.printed = b""
        self.breakpoints: frozenset[int] = frozenset()
        self.watchpoints: tuple[Watchpoint, ...] = ()
        self.done: list[str] = []
        self.interrupted = threading.Event()

    def stand(self) -> Standing:
        exits = tuple(f"{number}  io out 0x3f8" for number in range(1, self.at + 1))
        return Standing(
            self.looks[self.at],
            self.why,
            self.report,
            Output(self.printed),
            exits=exits,
            breakpoints=self.breakpoints,
            watchpoints=self.watchpoints,
        )

    def step(self) -> None:
        self.done.append("step")
        if self.at == len(self.looks) - 1:
            raise ConfigurationError("the guest has halted: b goes back")
        self.at += 1
        self.why = ""

    def step_over(self) -> None:
        self.done.append("step_over")
        self.step()

    def back(self) -> None:
        self.done.append("back")
        if self.at == 0:
            raise ConfigurationError("this is where the guest began")
        self.at -= 1

    def back_on(self) -> None:
        self.done.append("back_on")
        self.at = 0

    def next_cpu(self) -> None:
        self.done.append("next_cpu")

    def go_on(self) -> None:
        self.done.append("go_on")
        self._run(self.breakpoints)

    def run_to(self, address: int) -> None:
        self.done.append(f"run_to {address:#x}")
        self._run(self.breakpoints | {address})

    def toggle_breakpoint(self, address: int) -> None:
        self.breakpoints ^= {address}

    def watch(self, watchpoint: Watchpoint) -> None:
        self.watchpoints += (watchpoint,)

    def unwatch(self) -> None:
        self.watchpoints = ()

    def interrupt(self) -> None:
        self.interrupted.set()

    def _run(self, stops: frozenset[int]) -> None:
        while self.at < len(self.looks) - 1:
            self.at += 1
            if self.looks[self.at].rip in stops:
                self.why = f"breakpoint at {self.looks[self.at].rip:#x}"
                return
        if self.is_endless:
            self.interrupted.wait(30)
            self.why = "interrupted"
        else:
            self.why = "halted"


class Glass:
    """As much of a terminal as it takes to read what is on it: text, and where the cursor is put."""

    SEQUENCE = re.compile(r"\x1b(?:\[([0-?]*)[ -/]*([@-~])|[\]P_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self._cells = [[" "] * columns for _ in range(rows)]
        self._row = self._column = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""

    @property
    def text(self) -> str:
        return "\n".join("".join(cells).rstrip() for cells in self._cells)

    def feed(self, data: bytes) -> None:
        text, position = self._rest + self._decode(data), 0
        while position < len(text):
            if text[position] != "\x1b":
                self._put(text[position])
                position += 1
            elif match := self.SEQUENCE.match(text, position):
                self._obey(match[1], match[2])
                position = match.end()
            else:
                break  # the rest of it is yet to come
        self._rest = text[position:]

    def _obey(self, parameters: str | None, final: str | None) -> None:
        if final in ("H", "f"):
            numbers = [int(number or "1") for number in (parameters or "1;1").split(";")]
            self._row, self._column = numbers[0] - 1, (numbers[1:] or [1])[0] - 1

    def _put(self, character: str) -> None:
        if character == "\n":
            self._row += 1
        elif character == "\r":
            self._column = 0
        elif character >= " ":
            if self._row < len(self._cells) and self._column < len(self._cells[self._row]):
                self._cells[self._row][self._column] = character
            self._column += 1


class TerminalSeat:
    """A person at a terminal of 80x24 who runs a program: a context manager."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(24, 80)
        self.before = self.settings()
        self.glass = Glass()
        self.raw = b""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], **environment: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color", "PYTHONWARNINGS": "error"} | environment,
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_on_other_screen(self) -> bool:
        return self.raw.rfind(b"\x1b[?1049h") > self.raw.rfind(b"\x1b[?1049l")

    @property
    def left(self) -> bytes:
        """What was shown after the screen was gone, without what terminals obey."""
        shown = self.raw[self.raw.rfind(b"\x1b[?1049l") :].decode("utf-8", "replace")
        return Glass.SEQUENCE.sub("", shown).encode()

    def settings(self) -> list[object]:
        return list(termios.tcgetattr(self._slave))

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type_keys(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def kill(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + PATIENCE
        while text not in self.glass.text:
            is_alive = self._read() or (self.process.poll() is None and time.monotonic() < end)
            assert is_alive, f"{text!r} is not to be seen:\n{self.glass.text}\n{self.left!r}"

    def wait(self) -> int:
        """Wait for the end, reading what is shown; return the exit status, negative for a signal."""
        while self.process.poll() is None:
            self._read()
        while self._read():
            pass
        return self.process.returncode

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.05)[0]:
            return False
        data = os.read(self._master, 65536)
        self.raw += data
        self.glass.feed(data)
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)
        os.close(self._slave)
