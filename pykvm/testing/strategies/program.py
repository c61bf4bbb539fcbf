"""Straight-line code as a value: instructions, what each does to the flags, and jumps forward.

Some flags are undefined after some instructions (SDM volume 2, each instruction's "Flags Affected"): two correct
processors may disagree about them. ``assemble`` follows them through a program, over its jumps, and leaves out every
step that would look at one, so that all the rest of a final state is defined. Leaves out backward jumps: every program
ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.testing.strategies.encoding import immediate
from pykvm.x86 import Mode, Rflags
from pykvm.x86.disassembly import disassemble

__all__ = ["ALL_FLAGS", "NO_FLAGS", "Instruction", "Jump", "Program", "Step", "assemble", "width_of"]

NO_FLAGS = Rflags(0)
_TARGET = re.compile("(0x)?[0-9a-f]+")  # of a jump, as the disassembler writes it

ALL_FLAGS = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction's ``code``, and which flags it ``reads``, ``defines`` and leaves undefined (``undefines``).

    ``form`` is the name of the kind of instruction, such as "add". A flag that is in none of the three stays as it
    was, or may.
    """

    form: str
    code: bytes
    reads: Rflags = NO_FLAGS
    defines: Rflags = NO_FLAGS
    undefines: Rflags = NO_FLAGS


@dataclass(frozen=True, slots=True)
class Jump:
    """A jump over the next ``skips`` steps. ``short`` and ``near`` are its opcodes for 1 and for 2 or 4 bytes."""

    form: str
    short: bytes
    near: bytes
    skips: int
    reads: Rflags = NO_FLAGS


# What is kept together: an instruction, and those before it that make its operands harmless.
Step = tuple[Instruction | Jump, ...]


@dataclass(frozen=True)
class Program:
    """Code for ``mode`` that runs from its first byte to its end, wherever it lies.

    ``undefined`` are the flags that are undefined at the end.
    """

    mode: Mode
    instructions: tuple[Instruction, ...]
    undefined: Rflags = NO_FLAGS

    @property
    def code(self) -> bytes:
        """Return the machine code."""
        return b"".join(instruction.code for instruction in self.instructions)

    @property
    def text(self) -> str:
        """Return the code for GNU as, an instruction a line. It may choose another encoding of the same."""
        return "".join(f"{_text(one, width_of(self.mode))}\n" for one in self.instructions)

    def __repr__(self) -> str:
        lines = "; ".join(self.text.splitlines())
        return f"<{self.mode.value} mode program {self.code.hex()}: {lines or 'empty'}>"


def assemble(mode: Mode, steps: Sequence[Step]) -> Program:
    """Return the program of ``steps``, without those that would read an undefined flag."""
    kept, undefined = _without_undefined_reads(steps)
    backwards: list[Instruction] = []  # because a jump must know how long what it skips is
    left = [0] * (len(kept) + 1)  # bytes from the start of each step to the end of the program
    for number in reversed(range(len(kept))):
        left[number] = left[number + 1]
        for part in reversed(kept[number]):
            if isinstance(part, Jump):
                part = _jump(part, mode, left[number] - left[min(number + 1 + part.skips, len(kept))])
            backwards.append(part)
            left[number] += len(part.code)
    return Program(mode, tuple(reversed(backwards)), undefined)


def width_of(mode: Mode) -> int:
    """Return how many bits the code segment of ``mode`` has."""
    return {Mode.REAL: 16, Mode.LONG: 64}.get(mode, 32)


def _without_undefined_reads(steps: Sequence[Step]) -> tuple[list[Step], Rflags]:
    """Return ``steps``, those that read an undefined flag emptied, and the flags undefined at the end."""
    undefined = NO_FLAGS
    joins = [NO_FLAGS] * (len(steps) + 1)  # what is undefined for those who jump to a step
    kept: list[Step] = []
    for number, step in enumerate(steps):
        undefined |= joins[number]
        after = _undefined_after(step, undefined)
        kept.append(() if after is None else step)
        if after is None:
            continue
        undefined = after
        for part in step:
            if isinstance(part, Jump):
                joins[min(number + 1 + part.skips, len(steps))] |= undefined
    return kept, undefined | joins[-1]


def _undefined_after(step: Step, undefined: Rflags) -> Rflags | None:
    for part in step:
        if part.reads & undefined:
            return None
        if isinstance(part, Instruction):
            undefined = undefined & ~part.defines | part.undefines
    return undefined


def _jump(jump: Jump, mode: Mode, distance: int) -> Instruction:
    if distance < 0x80 and jump.short:
        return Instruction(jump.form, jump.short + immediate(distance, 1), jump.reads)
    return Instruction(jump.form, jump.near + immediate(distance, 2 if mode is Mode.REAL else 4), jump.reads)


def _text(instruction: Instruction, width: int) -> str:
    (decoded,) = disassemble(instruction.code, 0, width)
    if not _TARGET.fullmatch(decoded.operands):
        return f"{decoded.mnemonic} {decoded.operands}".rstrip()
    return f"{decoded.mnemonic} .+{decoded.operands}"  # a jump: the target counts from its own first byte
