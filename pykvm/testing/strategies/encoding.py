"""Machine code of integer instructions: opcode, ModRM, SIB, prefixes; enough of an assembler for generated code.

    66 67 | REX       | opcode     | ModRM           | SIB                  | disp     | imm
          | 0100 WRXB | 1, 2 bytes | mod:2 reg:3 rm:3| scale:2 index:3 base:3 | 0 1 2 4 | 0 1 2 4 8

Registers go by number, 0 to 15 in the order of their encoding; ``HIGH + 4`` to ``HIGH + 7`` are AH, CH, DH and BH.
See: Intel SDM volume 2, sections 2.1 (legacy prefixes, ModRM and SIB) and 2.2 (REX). Leaves out VEX, absolute and
RIP-relative addresses, and everything that is not integer code.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HIGH", "RAX", "RBP", "RBX", "RCX", "RDI", "RDX", "RSI", "RSP", "Memory", "encode", "immediate"]

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
HIGH = 16

OPERAND_SIZE, ADDRESS_SIZE = b"\x66", b"\x67"
REX, REX_W, REX_R, REX_X, REX_B = 0x40, 0x08, 0x04, 0x02, 0x01
NEEDS_SIB = 4  # as rm in ModRM; as index in SIB it means none
RM16_BX = 7  # as rm with 16-bit addresses: [BX + disp]


@dataclass(frozen=True, slots=True)
class Memory:
    """The operand at ``disp`` from RBX, plus ``index << scale``; ``bits`` is the width of the address.

    With 16-bit addresses there is no index. RSP cannot be one.
    """

    disp: int
    bits: int
    index: int | None = None
    scale: int = 0


def encode(
    width: int,
    opcode: bytes,
    size: int,
    reg: int = 0,
    rm: int | Memory | None = None,
    imm: bytes = b"",
    *,
    extension: int | None = None,
    wide_by_default: bool = False,
    byte_source: bool = False,
) -> bytes:
    """Return the instruction ``opcode`` in a code segment of ``width`` bits, with operands of ``size`` bytes.

    ``reg`` is a register; an ``extension`` of the opcode takes its place in ModRM. Without ``rm`` there is no ModRM,
    and ``reg`` is added to the opcode's last byte. ``wide_by_default`` is for instructions that need no REX.W for 64
    bits, ``byte_source`` for those whose ``rm`` is a byte whatever ``size`` is.
    """
    prefixes = OPERAND_SIZE if size in (2, 4) and size * 8 != min(width, 32) else b""
    if isinstance(rm, Memory) and rm.bits != width:
        prefixes += ADDRESS_SIZE
    rex = REX_W if size == 8 and not wide_by_default else 0
    if rm is None:
        rex |= REX_B if 8 <= reg < HIGH else 0
        code = opcode[:-1] + bytes([opcode[-1] + (reg & 7)])
    else:
        rex |= _rex_bits(reg, rm)
        code = opcode + _modrm(reg & 7 if extension is None else extension, rm)
    byte_registers = [rm] if size == 1 or byte_source else []
    byte_registers += [reg] if size == 1 and extension is None else []
    if rex or any(register in (RSP, RBP, RSI, RDI) for register in byte_registers):
        prefixes += bytes([REX | rex])  # for bytes, REX also turns AH, CH, DH, BH into SPL, BPL, SIL, DIL
    return prefixes + code + imm


def immediate(value: int, size: int) -> bytes:
    """Return the low ``size`` bytes of ``value``; an operand of 8 bytes has an immediate of 4, sign-extended."""
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def _rex_bits(reg: int, rm: int | Memory) -> int:
    bits = REX_R if 8 <= reg < HIGH else 0
    if isinstance(rm, Memory):
        return bits | (REX_X if rm.index is not None and rm.index >= 8 else 0)
    return bits | (REX_B if 8 <= rm < HIGH else 0)


def _modrm(reg: int, rm: int | Memory) -> bytes:
    if not isinstance(rm, Memory):
        return bytes([0b11 << 6 | reg << 3 | rm & 7])
    mod, disp = _displacement(rm)
    if rm.bits == 16:
        return bytes([mod << 6 | reg << 3 | RM16_BX]) + disp
    if rm.index is None:
        return bytes([mod << 6 | reg << 3 | RBX]) + disp
    return bytes([mod << 6 | reg << 3 | NEEDS_SIB, rm.scale << 6 | (rm.index & 7) << 3 | RBX]) + disp


def _displacement(rm: Memory) -> tuple[int, bytes]:
    if rm.disp == 0:
        return 0b00, b""
    if -0x80 <= rm.disp < 0x80:
        return 0b01, immediate(rm.disp, 1)
    return 0b10, immediate(rm.disp, 2 if rm.bits == 16 else 4)
