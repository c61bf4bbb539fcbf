"""Guests that stand still, made without KVM: for the tests of what the stepper shows of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from pykvm.boot import Image
from pykvm.boot.image import Segment, Symbol
from pykvm.cli.stepper.look import Look
from pykvm.kvm import Regs, Sregs
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
