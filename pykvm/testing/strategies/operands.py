"""Operands for generated instructions: registers that may be written, places in the scratch area, constants.

Code keeps RBX, which points into the middle of the scratch area, and RSP for itself; all other registers may be
written. The simplest choice comes first everywhere, so that a failing program shrinks to simple operands.

Hypothesis makes few large draws faster than many small ones, and drops a step from a list only if it was few draws. So
a draw here is a number of 24 bits, and each choice takes a digit of it: one out of five the remainder by 5, and so on.
"""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

from pykvm.testing.strategies.encoding import (
    HIGH,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    Memory,
    encode,
    immediate,
)
from pykvm.testing.strategies.program import Instruction
from pykvm.testing.strategies.values import any_number, edges

__all__ = ["LOCK", "SCRATCH_SIZE", "Operands", "set_register"]

T = TypeVar("T")

LOCK = b"\xf0"

DRAWN_RANGE = 1 << 24  # up to here Hypothesis draws all numbers alike; of larger ones it prefers the small
_DRAWN = st.integers(0, DRAWN_RANGE - 1)

SCRATCH_SIZE = 4096  # bytes; RBX points to the middle
REACH = 1000  # how far from RBX a displacement goes
LARGEST_INDEX = 127  # times 8, and beyond REACH, is still inside

LOW = (RAX, RCX, RDX, RSI, RDI, RBP)
NEW = tuple(range(8, 16))
LOW_BYTES = (RAX, RCX, RDX, HIGH + 4, HIGH + 5, HIGH + 6)
# No RAX, RCX and RDX: they are implied operands of many instructions, which set them before they use the index.
INDEXES = (RSI, RDI, RBP)

SIZES = {16: (2, 4, 1), 32: (4, 2, 1), 64: (4, 8, 2, 1)}


class Operands:
    """Draws operands for one step of a program with code of ``width`` bits and scratch memory at ``scratch``.

    ``setup`` is what must come before the instruction for its operands to be good.
    """

    def __init__(self, draw: st.DrawFn, width: int, scratch: int) -> None:
        self._draw = draw
        self._shape, self._detail = _Digits(draw), _Digits(draw)
        self.width = width
        self.scratch = scratch
        self.setup: list[Instruction] = []
        self._new = NEW if width == 64 else ()
        self._bytes: tuple[int, ...] = ()

    def pick(self, *choices: T) -> T:
        """Return one of ``choices``."""
        return choices[self._shape.take(len(choices))]

    def number(self, least: int, most: int) -> int:
        """Return a number from ``least`` to ``most``; they shrink to 0, or ``least`` if it is higher."""
        digit = self._detail.take(most - least + 1)
        if least >= 0:
            return least + digit
        return -(digit + 1) // 2 if digit & 1 else digit // 2  # 0, -1, 1, -2, 2 ...

    def value(self, size: int) -> int:
        """Return an unsigned number of ``size`` bytes, likely one that matters."""
        if self.pick(True, False):
            likely = edges(size)
            return likely[self._detail.take(len(likely))]
        return self._draw(any_number(size))

    def immediate(self, size: int) -> bytes:
        """Return an immediate for an operand of ``size`` bytes: 4 bytes for one of 8."""
        return immediate(self.value(min(size, 4)), min(size, 4))

    def size(self, *, at_least: int = 1) -> int:
        """Return an operand size in bytes that the mode has."""
        return self.pick(*(size for size in SIZES[self.width] if size >= at_least))

    def register(self, size: int) -> int:
        """Return a register to write."""
        return self.pick(*self._byte_registers()) if size == 1 else self.pick(*LOW, *self._new)

    def source(self, size: int) -> int:
        """Return a register to read."""
        return self.pick(*self._byte_registers()) if size == 1 else self.pick(*LOW, *self._new, RBX, RSP)

    def place(self, size: int) -> int | Memory:
        """Return a register or memory to write."""
        return self.memory() if self.pick(False, True) else self.register(size)

    def origin(self, size: int) -> int | Memory:
        """Return a register or memory to read."""
        return self.memory() if self.pick(False, True) else self.source(size)

    def memory(self, *, indexed: bool = True) -> Memory:
        """Return a place in the scratch area, sometimes by an index register, which ``setup`` sets."""
        bits = self.pick(self.width, 32)
        disp = self.pick(0, self.number(-REACH, REACH))
        if not indexed or bits == 16 or not self.pick(False, True):
            return Memory(disp, bits)
        index = self.pick(*INDEXES, *self._new)
        self.setup.append(set_register(self.width, 4, index, self.number(0, LARGEST_INDEX)))
        return Memory(disp, bits, index, self.pick(0, 1, 2, 3))

    def lock(self, place: int | Memory) -> bytes:
        """Return a LOCK prefix for an instruction that writes ``place``, or none; with LOCK that must be memory."""
        return LOCK if isinstance(place, Memory) and self.pick(False, True) else b""

    def _byte_registers(self) -> tuple[int, ...]:
        # With a REX prefix there are no AH, CH and DH; so an instruction has registers of one kind or of the other.
        if not self._bytes:
            self._bytes = self.pick(LOW_BYTES, LOW + NEW) if self.width == 64 else LOW_BYTES
        return self._bytes


class _Digits:
    """A number that is drawn when the first digit of it is taken, and anew when there are none left."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._value, self._range = 0, 1

    def take(self, base: int) -> int:
        """Return a number below ``base``."""
        if base > self._range:
            self._value, self._range = self._draw(_DRAWN), DRAWN_RANGE
        self._value, digit = divmod(self._value, base)
        self._range //= base
        return digit


def set_register(width: int, size: int, register: int, value: int) -> Instruction:
    """Return MOV of the constant ``value`` into ``register``, of ``size`` bytes; no flag changes."""
    opcode = b"\xb0" if size == 1 else b"\xb8"
    return Instruction("mov", encode(width, opcode, size, register) + immediate(value, size))
