"""The instruction at RIP, decoded, with the registers and the memory that it works on.

Leaves out what it raises: see ``instruction``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.x86.disassembly import LONGEST_INSTRUCTION, make_decoder
from pykvm.x86.faults.access import translate
from pykvm.x86.faults.moment import Moment
from pykvm.x86.modes import linear_rip
from pykvm.x86.operands import MemoryAccess, memory_accesses, opcode_of
from pykvm.x86.walk import read_linear

if TYPE_CHECKING:
    import capstone

__all__ = ["IO_SENSITIVE", "PRIVILEGED", "REGISTER", "Decoded", "code_at_rip", "decode", "read_code"]

REGISTER = 1  # capstone's CS_OP_REG

# Instructions for ring 0 (SDM volume 3, section 5.9), and those that RFLAGS.IOPL allows to other rings.
_TABLES = ("lgdt", "lidt", "lldt", "ltr")
_CONTROL = ("lmsw", "clts", "rdmsr", "wrmsr", "swapgs", "xsetbv", "sysexit", "sysret")
PRIVILEGED = frozenset((*_TABLES, *_CONTROL, "hlt", "invd", "wbinvd", "invlpg", "invpcid"))
IO_SENSITIVE = frozenset(("cli", "sti", "in", "insb", "insw", "insl", "out", "outsb", "outsw", "outsl"))


@dataclass(frozen=True, slots=True)
class Decoded:
    """What capstone ``found`` at the start of ``code``, which is at RIP."""

    moment: Moment
    code: bytes
    found: capstone.CsInsn

    @property
    def name(self) -> str:
        """Return the mnemonic without prefixes, of the instructions listed above also without a size."""
        name: str = self.found.mnemonic.split()[-1]
        listed = PRIVILEGED | IO_SENSITIVE
        return name[:-1] if name not in listed and name[:-1] in listed else name

    @property
    def opcode(self) -> int:
        """Return the opcode's byte, or 0x0f00 plus the second one; 0 for VEX and its kin."""
        return opcode_of(self.found)

    @property
    def reg(self) -> int:
        """Return the field reg of ModRM, which some opcodes go on in."""
        reg: int = self.found.modrm >> 3 & 7
        return reg

    def accesses(self) -> tuple[MemoryAccess, ...]:
        """Return what it reads and writes."""
        return memory_accesses(self.code, self.moment.regs, self.moment.sregs)

    def registers(self) -> list[str]:
        """Return the names of its register operands, in the manual's order."""
        return [self.found.reg_name(one.reg) for one in reversed(self.found.operands) if one.type == REGISTER]

    def words(self, access: MemoryAccess, size: int) -> tuple[int, ...] | None:
        """Return what is in memory at ``access``, in words of ``size`` bytes; None if it cannot be read."""
        gpa = translate(self.moment, access.address)
        data = None if gpa is None else self.moment.read(gpa, access.size)
        if data is None:
            return None
        return tuple(int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size))


def code_at_rip(moment: Moment) -> bytes:
    """Return up to 15 bytes at RIP, as many as are mapped and there."""
    return read_code(moment, linear_rip(moment.regs, moment.sregs), LONGEST_INSTRUCTION)


def read_code(moment: Moment, address: int, size: int) -> bytes:
    """Return up to ``size`` bytes from linear ``address`` on, as many as are mapped and there, whoever may use them."""
    return read_linear(moment.memory, moment.paging, address, size)


def decode(moment: Moment, code: bytes) -> Decoded | None:
    """Return the first instruction of ``code``, None if it is none."""
    decoder = make_decoder(moment.width)
    decoder.skipdata = False
    decoder.detail = True
    found = next(decoder.disasm(code, linear_rip(moment.regs, moment.sregs), 1), None)
    return None if found is None else Decoded(moment, code, found)
