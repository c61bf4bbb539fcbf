"""The loop in which a guest goes round, read off its code.

One look at a guest says where it is, not where it has been. But code that jumps back over the place where it stands is
a loop, and mostly the one. Leaves out loops through calls and returns, and loops of more than ``REACH`` bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pykvm.machine.scene import Scene
from pykvm.x86 import Instruction, disassemble
from pykvm.x86.faults import read_code

__all__ = ["Loop", "find_loop"]

REACH = 256  # bytes from RIP to the jump back, and from there to where it goes
NO_WAY_ON = ("ret", "iret", "hlt", "ud2", ".byte", "sysret", "lret", "ljmp")
_TARGET = re.compile(r"0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions of a loop, the first and the one that jumps back to it included."""

    instructions: tuple[Instruction, ...]

    @property
    def is_endless(self) -> bool:
        """Return whether no instruction leads out: there is one jump, back, without a condition."""
        jumps = [one for one in self.instructions if one.mnemonic.startswith(("j", "loop", "call"))]
        return len(jumps) == 1 and jumps[0].mnemonic.startswith("jmp")


def find_loop(scene: Scene) -> Loop | None:
    """Return the loop in whose code RIP is, None if there is none to be seen."""
    for one in disassemble(read_code(scene.moment, scene.rip, REACH), scene.rip, scene.width):
        if one.mnemonic.startswith(NO_WAY_ON):
            return None
        target = _target(one)
        if target is not None and scene.rip - REACH <= target <= scene.rip:
            return _body(scene, target, one)
        if one.mnemonic.startswith("jmp"):
            return None
    return None


def _target(instruction: Instruction) -> int | None:
    """Return where a jump to an address goes, None for anything else."""
    is_jump = instruction.mnemonic.startswith(("j", "loop"))
    return int(instruction.operands, 16) if is_jump and _TARGET.fullmatch(instruction.operands) else None


def _body(scene: Scene, start: int, last: Instruction) -> Loop | None:
    size = last.address + len(last.bytes) - start
    found = disassemble(read_code(scene.moment, start, size), start, scene.width)
    # Unless an instruction begins at RIP, this is not how the CPU reads the code.
    return Loop(tuple(found)) if any(one.address == scene.rip for one in found) else None
