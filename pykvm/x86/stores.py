"""Instructions that write to memory: where, how much and what, as far as the registers after them tell.

A debugger that stands right behind an instruction has to find it by what it did, for x86 code cannot be read backwards.
See: Intel SDM volume 2, section 2.1 (addressing forms). Leaves out writes that no operand says: PUSH, CALL, FXSAVE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.units import PAGE_SIZE
from pykvm.x86.disassembly import make_decoder

if TYPE_CHECKING:
    import capstone

    from pykvm.kvm import Regs, Sregs

__all__ = ["Store", "store_in"]

STRINGS = frozenset((0xA4, 0xA5, 0xAA, 0xAB))  # MOVS and STOS
MOVES = frozenset((0x88, 0x89, 0xA2, 0xA3, 0xC6, 0xC7))  # MOV to memory: the value is in the instruction's operand
DIRECTION = 1 << 10  # RFLAGS.DF
MEMORY_OPERAND, IMMEDIATE_OPERAND, WRITES = 3, 2, 2  # capstone's CS_OP_MEM, CS_OP_IMM, CS_AC_WRITE

_BYTES = {name: f"r{name[0]}x" for name in ("al", "bl", "cl", "dl")}
_HIGH_BYTES = {"ah": "rax", "bh": "rbx", "ch": "rcx", "dh": "rdx"}


@dataclass(frozen=True, slots=True)
class Store:
    """A write of ``size`` bytes to ``base + index * scale + displacement`` in ``segment``.

    ``value`` is a register's name or a number if it is known which was written. ``is_string`` says that the base has
    been moved on by ``size``; ``length`` is the instruction's, in bytes.
    """

    length: int
    size: int
    base: str
    index: str
    scale: int
    displacement: int
    segment: str
    value: str | int | None
    is_string: bool

    def page_offset(self, regs: Regs, sregs: Sregs) -> int:
        """Return the lowest 12 bits of the address written, by the registers as they are after the instruction."""
        base = _value(regs, self.base) if self.base else 0
        index = _value(regs, self.index) if self.index else 0
        if self.is_string:
            base += self.size if regs.rflags & DIRECTION else -self.size
        start: int = getattr(sregs, self.segment).base
        return (start + base + index * self.scale + self.displacement) % PAGE_SIZE

    def can_have_written(self, data: bytes, regs: Regs) -> bool:
        """Return whether ``data`` is what the operand holds; True if it is not known."""
        if self.value is None:
            return True
        value = _value(regs, self.value) if isinstance(self.value, str) else self.value
        return value % (1 << 8 * self.size) == int.from_bytes(data, "little")


def store_in(code: bytes, width: int) -> Store | None:
    """Return what ``code`` writes if it is one instruction, all of it, that writes an operand in memory; or None.

    Raises: DisassemblyError if ``width`` is not 16, 32 or 64.
    """
    decoder = make_decoder(width)
    decoder.skipdata = False
    decoder.detail = True
    found = next(decoder.disasm(code, 0, 1), None)
    if found is None or found.size != len(code):
        return None
    opcode = found.opcode[0]
    is_string = opcode in STRINGS
    memory = [operand for operand in found.operands if operand.type == MEMORY_OPERAND]
    if not memory or not (is_string or memory[-1].access & WRITES):
        return None
    return _store(found, memory[-1], opcode, is_string, width)


def _store(found: capstone.CsInsn, memory: capstone.x86.X86Op, opcode: int, is_string: bool, width: int) -> Store:
    place = memory.mem
    base, index, segment = (found.reg_name(number) or "" for number in (place.base, place.index, place.segment))
    first = found.operands[0]
    value: str | int | None = None
    if opcode in MOVES and first is not memory:
        value = first.imm if first.type == IMMEDIATE_OPERAND else found.reg_name(first.reg)
    return Store(
        found.size,
        memory.size,
        base,
        index,
        place.scale,
        place.disp,
        segment or _default_segment(base, is_string),
        value if _is_general(value) else None,
        is_string,
    )


def _default_segment(base: str, is_string: bool) -> str:
    if is_string:
        return "es"
    return "ss" if base in ("bp", "ebp", "rbp", "esp", "rsp") else "ds"


def _is_general(value: str | int | None) -> bool:
    return not isinstance(value, str) or value in _HIGH_BYTES or _whole(value) is not None


def _value(regs: Regs, name: str) -> int:
    """Return the register called ``name``, whatever its width; the bits above it are not cut off."""
    if name in _HIGH_BYTES:
        high: int = getattr(regs, _HIGH_BYTES[name]) >> 8
        return high & 0xFF
    whole = _whole(name)
    value: int = 0 if whole is None else getattr(regs, whole)
    return value & 0xFFFF if name in _WORDS else value


_WORDS = frozenset(("ax", "bx", "cx", "dx", "si", "di", "bp", "sp"))


def _whole(name: str) -> str | None:
    """Return the 64-bit register that ``name`` is a part of, None for others such as xmm0 or a segment's."""
    if name in _BYTES:
        return _BYTES[name]
    if name[:1] == "r" and name[1:2].isdigit():
        return name.rstrip("bwd")
    stem = name[1:] if name[:1] in ("e", "r") else name.removesuffix("l")
    return f"r{stem}" if stem in _WORDS or stem == "ip" else None
