"""``Reader``: what a CPU is about to execute, read and decoded as a stepper needs it.

    ordinary instruction    can go to the next, or to the target that its operand names
    REP                     stays where it is for a while
    HLT                     halts
    "plain"                 changes no register but general ones, segments and control registers

Guest memory is the guest's, and may hold anything: what cannot be read is no instruction. See: SDM volume 2, chapter 2
and appendix A. Leaves out what an instruction does: see ``pykvm.x86.operands``.
"""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.kvm import Regs, Sregs
from pykvm.memory import GuestMemory
from pykvm.units import Gpa
from pykvm.x86 import LONGEST_INSTRUCTION, Instruction, Paging, cpu_mode, instruction_at, linear_rip, read_linear, walk

__all__ = ["Next", "Reader"]

KEPT = 8192  # decoded instructions: loops come back to the same ones

LEGACY_PREFIXES = bytes((0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67))
REPEATS = bytes((0xF2, 0xF3))
REX = range(0x40, 0x50)  # in 64-bit code
STRINGS = frozenset((*range(0x6C, 0x70), 0xA4, 0xA5, 0xA6, 0xA7, *range(0xAA, 0xB0)))
HLT, TWO_BYTES = 0xF4, 0x0F
IRETQ = b"\x48\xcf"
# Opcodes that may change XMM and its like, x87, MSRs or debug registers: WAIT, ESC, and VEX and EVEX or LES and LDS.
NOT_PLAIN = frozenset((0x9B, *range(0xD8, 0xE0), 0xC4, 0xC5, 0x62))
# Of the opcodes of two bytes those that may not: SETcc, Jcc, CMOVcc, NOP, bit strings, MOVZX and MOVSX and so on.
_PLAIN = [range(0x18, 0x21), range(0x40, 0x50), range(0x80, 0xAE), range(0xAF, 0xC2), range(0xC8, 0xD0)]
PLAIN_AFTER_0F = frozenset((0x00, 0x02, 0x03, 0x06, 0x0B, 0x0D, 0x22, 0x31, 0x32)).union(*_PLAIN)
JUMPS = ("j", "call", "loop", "xbegin")


@dataclass(frozen=True, slots=True)
class Next:
    """The instruction at linear ``address``, None where it cannot be read; ``successors`` are where it may lead."""

    address: int
    instruction: Instruction | None
    is_hlt: bool = False
    repeats: bool = False
    is_iret: bool = False  # to 64-bit code
    is_plain: bool = False
    successors: frozenset[int] = frozenset()


class Reader:
    """Reads ``memory`` through the guest's page tables."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._known: dict[tuple[int, int, bytes], Next] = {}
        self._paging: tuple[Sregs | None, Paging | None] = (None, None)

    def next(self, regs: Regs, sregs: Sregs) -> Next:
        """Return what a CPU with these registers is about to execute."""
        return self.at(linear_rip(regs, sregs), cpu_mode(sregs, regs).width, sregs)

    def at(self, address: int, width: int, sregs: Sregs) -> Next:
        """Return the instruction of code of ``width`` bits at linear ``address``."""
        code = self.read(address, LONGEST_INSTRUCTION, sregs)
        key = (address, width, code)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            known = self._known[key] = _look_at(address, instruction_at(code, address, width), width)
        return known

    def read(self, address: int, size: int, sregs: Sregs) -> bytes:
        """Return up to ``size`` bytes from linear ``address`` on: as many as are mapped, and memory."""
        return read_linear(self._memory, self._paging_of(sregs), address, size)

    def translate(self, address: int, sregs: Sregs) -> Gpa | None:
        """Return the guest-physical address of linear ``address``, None if it is not mapped."""
        return walk(self._memory, self._paging_of(sregs), address).gpa

    def is_for_users(self, address: int, sregs: Sregs) -> bool:
        """Return whether ring 3 may have linear ``address``."""
        found = walk(self._memory, self._paging_of(sregs), address)
        return found.gpa is None or found.user

    # ---- inside ----

    def _paging_of(self, sregs: Sregs) -> Paging:
        known, paging = self._paging
        if paging is None or known is not sregs:
            paging = Paging.of(sregs)
            self._paging = sregs, paging
        return paging


def _look_at(address: int, instruction: Instruction | None, width: int) -> Next:
    if instruction is None:
        return Next(address, None)
    code = instruction.bytes
    rest = code.lstrip(LEGACY_PREFIXES)
    prefixes = code[: len(code) - len(rest)]
    opcode = rest[1:] if width == 64 and rest and rest[0] in REX else rest
    if not opcode:
        return Next(address, instruction)
    is_plain = opcode[0] not in NOT_PLAIN
    if opcode[0] == TWO_BYTES:
        is_plain = len(opcode) > 1 and opcode[1] in PLAIN_AFTER_0F
    return Next(
        address,
        instruction,
        is_hlt=opcode[0] == HLT,
        is_iret=code == IRETQ and width == 64,
        repeats=opcode[0] in STRINGS and any(prefix in REPEATS for prefix in prefixes),
        is_plain=is_plain,
        successors=frozenset(_successors(instruction, width)),
    )


def _successors(instruction: Instruction, width: int) -> list[int]:
    mask = (1 << (64 if width == 64 else 32)) - 1
    found = [instruction.address & mask, (instruction.address + len(instruction.bytes)) & mask]
    if instruction.mnemonic.startswith(JUMPS) and instruction.operands.startswith("0x"):
        with_target = instruction.operands.partition(",")[0]
        found.append(int(with_target, 16) & mask)
    return found if _may_stay(instruction) else found[1:]


def _may_stay(instruction: Instruction) -> bool:
    return instruction.mnemonic.startswith(("rep", "hlt"))
