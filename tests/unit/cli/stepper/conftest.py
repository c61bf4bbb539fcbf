"""Guests that stand still, made without KVM: for the tests of what the stepper shows of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from pykvm.boot import Image
from pykvm.boot.image import Segment, Symbol
from pykvm.cli.stepper.guest import Standing
from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.places import Watched
from pykvm.errors import ConfigurationError
from pykvm.kvm import Regs, Sregs
from pykvm.machine.output import Output
from pykvm.memory import GuestMemory
from pykvm.units import Gpa, MiB
from pykvm.x86 import CpuState, Mode, real_mode, set_up

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
        self.watched: tuple[Watched, ...] = ()
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
            watched=self.watched,
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

    def go_on(self) -> None:
        self.done.append("go_on")
        self._run(self.breakpoints)

    def run_to(self, address: int) -> None:
        self.done.append(f"run_to {address:#x}")
        self._run(self.breakpoints | {address})

    def toggle_breakpoint(self, address: int) -> None:
        self.breakpoints ^= {address}

    def watch(self, watched: Watched) -> None:
        self.watched += (watched,)

    def unwatch(self) -> None:
        self.watched = ()

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
