"""Machine code as assembly text: capstone, in GNU as's syntax (AT&T).

Bytes that are no instruction, which a crashed guest often stands on, come out as ``.byte`` lines, so that the text
always accounts for every byte. capstone is loaded on the first use. Leaves out symbols and source lines.
See: Intel SDM volume 2, chapter 2 (instruction format).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.errors import DisassemblyError

if TYPE_CHECKING:
    import capstone

__all__ = ["LONGEST_INSTRUCTION", "Instruction", "disassemble", "instruction_at", "make_decoder"]

LONGEST_INSTRUCTION = 15  # bytes (SDM volume 2, section 2.3.11)

_LINEAR = (1 << 64) - 1  # linear addresses wrap at 64 bits


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its linear ``address``, its ``bytes``, and its text in two parts."""

    address: int
    bytes: bytes
    mnemonic: str
    operands: str

    def __str__(self) -> str:
        return f"{self.address:#x}  {self.bytes.hex(' ')}  {self.mnemonic} {self.operands}".rstrip()


def disassemble(code: bytes, address: int, width: int) -> list[Instruction]:
    """Return all of ``code`` as instructions; the first byte is at linear ``address``.

    ``width`` is the code segment's: 16, 32 or 64 bits. A byte at which no instruction starts, or whose instruction
    is cut off by the end of ``code``, is an instruction of its own with the mnemonic ``.byte``.

    Raises: DisassemblyError if ``width`` is another number.
    """
    return list(_decode(code, address, width, count=0))


def instruction_at(code: bytes, address: int, width: int) -> Instruction | None:
    """Return the first instruction of ``code``, None if ``code`` is empty; arguments as for ``disassemble``.

    Raises: DisassemblyError if ``width`` is not 16, 32 or 64.
    """
    return next(_decode(code, address, width, count=1), None)


def _decode(code: bytes, address: int, width: int, count: int) -> Iterator[Instruction]:
    # count: how many instructions at most, 0 for all
    decoder = make_decoder(width)
    offset = 0
    for at, size, mnemonic, operands in decoder.disasm_lite(code, address & _LINEAR, count):
        yield Instruction(at, bytes(code[offset : offset + size]), mnemonic, operands)
        offset += size


def make_decoder(width: int) -> capstone.Cs:
    """Return a new decoder of code of ``width`` bits, in AT&T syntax. Raises: DisassemblyError."""
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    if width not in modes:
        raise DisassemblyError(f"code of {width} bits cannot be disassembled: the width is 16, 32 or 64")
    decoder = capstone.Cs(capstone.CS_ARCH_X86, modes[width])
    decoder.syntax = capstone.CS_OPT_SYNTAX_ATT
    decoder.skipdata_setup = (".byte", None, None)  # what is no instruction is data, and capstone goes on behind it
    decoder.skipdata = True
    return decoder
