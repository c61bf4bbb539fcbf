"""Which bytes are the instruction that made an exit: IN and OUT in all their forms, HLT, RDMSR, WRMSR and VMCALL.

    [prefixes] [REX] opcode [port]         e4 e5 ec ed  IN        6c 6d  INS
                                           e6 e7 ee ef  OUT       6e 6f  OUTS

The lowest bit of an opcode says whether the access has one byte or the operand size: 2 bytes in 16-bit code and 4
elsewhere, or with prefix 66 the other of these. See: Intel SDM volume 2, section 2.1 and the instructions' pages.
Leaves out accesses to memory, which almost any instruction can make.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from pykvm.kvm import Exit, Hlt, Hypercall, IoIn, IoOut, Rdmsr, Wrmsr
from pykvm.x86 import LONGEST_INSTRUCTION

__all__ = ["REPEATS", "Encoding", "Fits", "Form", "fits", "is_prefix"]


OPERAND_SIZE, REPEATS = 0x66, frozenset((0xF2, 0xF3))
PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, OPERAND_SIZE, 0x67, 0xF0)) | REPEATS
REX = range(0x40, 0x50)  # in 64-bit code
WIDE = 1  # bit of an opcode
IN_PORT, IN_DX, INS = 0xE4, 0xEC, 0x6C
OUT_PORT, OUT_DX, OUTS = 0xE6, 0xEE, 0x6E
OPCODES: dict[type[Exit], tuple[bytes, ...]] = {
    Hlt: (b"\xf4",),
    Rdmsr: (b"\x0f\x32",),
    Wrmsr: (b"\x0f\x30",),
    Hypercall: (b"\x0f\x01\xc1", b"\x0f\x01\xd9"),
}


class Form(enum.Enum):
    """What decides whether RIP is past an instruction when it exits. With REP it never is."""

    PLAIN = enum.auto()
    STRING = enum.auto()
    REPEATED = enum.auto()


@dataclass(frozen=True, slots=True)
class Encoding:
    """An instruction of ``length`` bytes."""

    length: int
    form: Form = Form.PLAIN


# Takes code, which begins with the instruction, and the code's width in bits.
Fits = Callable[[bytes, int], Encoding | None]


def fits(exit: Exit) -> Fits | None:
    """Return what knows instructions that can have made ``exit``; None if its instruction cannot be told so."""
    match exit:
        case IoIn(port=port, size=size):
            return lambda code, width: _port_access(code, width, port, size, (IN_PORT, IN_DX, INS))
        case IoOut(port=port, size=size):
            return lambda code, width: _port_access(code, width, port, size, (OUT_PORT, OUT_DX, OUTS))
    opcodes = OPCODES.get(type(exit))
    return None if opcodes is None else lambda code, width: _plain(code, width, opcodes)


def is_prefix(byte: int, width: int) -> bool:
    """Return whether ``byte`` can stand before an opcode."""
    return byte in PREFIXES or (width == 64 and byte in REX)


def _port_access(code: bytes, width: int, port: int, size: int, opcodes: tuple[int, int, int]) -> Encoding | None:
    start = _opcode_at(code, width)
    if start >= len(code) or _size(code, start, width) != size:
        return None
    with_port, with_dx, string = opcodes
    match code[start] & ~WIDE:
        case opcode if opcode == with_port:
            return Encoding(start + 2) if port < 256 and code[start + 1 : start + 2] == bytes((port,)) else None
        case opcode if opcode == with_dx:
            return Encoding(start + 1)
        case opcode if opcode == string:
            is_repeated = not REPEATS.isdisjoint(code[:start])
            return Encoding(start + 1, Form.REPEATED if is_repeated else Form.STRING)
    return None


def _size(code: bytes, opcode_at: int, width: int) -> int:
    if not code[opcode_at] & WIDE:
        return 1
    is_other = OPERAND_SIZE in code[:opcode_at]
    return 2 if (width == 16) != is_other else 4


def _plain(code: bytes, width: int, opcodes: tuple[bytes, ...]) -> Encoding | None:
    start = _opcode_at(code, width)
    return next((Encoding(start + len(opcode)) for opcode in opcodes if code.startswith(opcode, start)), None)


def _opcode_at(code: bytes, width: int) -> int:
    position = 0
    while position < len(code) and position < LONGEST_INSTRUCTION and code[position] in PREFIXES:
        position += 1
    if width == 64 and position < len(code) and code[position] in REX:
        position += 1
    return position
