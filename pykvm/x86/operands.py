"""Which memory an instruction reads and writes: linear addresses, from the registers as they are before it.

    mov %eax, 8(%rbx,%rcx,4)        RBX + RCX * 4 + 8, in DS
    push %rax                       RSP - 8, in SS
    rep movsb                       RSI in DS and RDI in ES, the next byte of each; nothing if RCX is 0

See: Intel SDM volume 1, section 3.7.5 (addressing), section 6.2 (stack); volume 3, section 3.2.4 (segments in 64-bit
code). Leaves out what the CPU touches on its own account: descriptor tables, page tables, the TSS; and gathers, nested
ENTER, and the area beyond the first eight bytes of XSAVE.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm.kvm.structs import Regs, Sregs
from pykvm.x86.disassembly import make_decoder
from pykvm.x86.modes import cpu_mode, linear_rip

if TYPE_CHECKING:
    import capstone

__all__ = ["Access", "MemoryAccess", "memory_accesses", "opcode_of", "register_value", "stack_width"]

_MASKS = {bits: (1 << bits) - 1 for bits in (8, 16, 32, 64)}
_REGISTER_OPERAND, _MEMORY_OPERAND, _READS, _WRITES = 1, 3, 1, 2  # capstone's CS_OP_REG, CS_OP_MEM, CS_AC_*
_OPERAND_SIZE = 0x66  # the prefix
_PREFIXES = bytes((0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67))

# A memory operand of these is only an address: nothing is read there.
_ADDRESS_ONLY = ("lea", "nop", "prefetch", "invlpg", "cldemote")
_BIT_STRINGS = ("bt", "btc", "btr", "bts")
# capstone 5 says of these that they read, or says nothing.
_READ_AND_WRITE = ("cmpxchg", "xadd", "xchg")
_WRITE_ONLY = ("fst", "fist", "fnst", "fsave", "fnsave")
_READ_ONLY = ("bound",)


class Access(enum.Flag):
    """What is done to memory."""

    READ = enum.auto()
    WRITE = enum.auto()
    EXECUTE = enum.auto()  # an instruction fetch; no operand has it


@dataclass(frozen=True, slots=True)
class MemoryAccess:
    """``size`` bytes from linear ``address`` on, which is ``offset`` in ``segment`` ("ds"); ``is_stack``: by RSP."""

    address: int
    size: int
    access: Access
    segment: str
    offset: int
    is_stack: bool = False


def memory_accesses(code: bytes, regs: Regs, sregs: Sregs) -> tuple[MemoryAccess, ...]:
    """Return what the first instruction of ``code`` reads and writes if it is executed with these registers.

    The order is that of the operands in the manual, the stack last. Of a string instruction it is the next element.
    Empty for bytes that are no instruction.
    """
    decoder = make_decoder(cpu_mode(sregs, regs).width)
    decoder.skipdata = False
    decoder.detail = True
    found = next(decoder.disasm(code, linear_rip(regs, sregs), 1), None)
    if found is None or _is_done(found, regs):
        return ()
    return _Operands(found, regs, sregs).all()


def register_value(regs: Regs, name: str) -> int:
    """Return the register called ``name``, any part of a general one: ``"rax"``, ``"eax"``, ``"ah"``, ``"r8d"``.

    Raises: KeyError if ``name`` is no general register.
    """
    whole, shift, bits = _PARTS[name]
    value: int = getattr(regs, whole)
    return value >> shift & _MASKS[bits]


def opcode_of(found: capstone.CsInsn) -> int:
    """Return the opcode of what capstone has decoded: its byte, or 0x0f00 plus the second; 0 for VEX and its kin."""
    code = bytes(found.bytes).lstrip(_PREFIXES)
    first, second = found.opcode[:2]
    if code[1 if found.rex else 0] != first:
        return 0  # a VEX prefix stands there, behind which opcodes mean something else
    opcode: int = 0x0F00 | second if first == 0x0F else first
    return opcode


def stack_width(regs: Regs, sregs: Sregs) -> int:
    """Return how many bits of RSP count: 16, 32 or 64."""
    if cpu_mode(sregs, regs).width == 64:
        return 64
    return 32 if sregs.ss.db else 16


def _parts() -> dict[str, tuple[str, int, int]]:
    # By name: the whole register, the part's lowest bit, and how many bits it has.
    found = {"rip": ("rip", 0, 64), "eip": ("rip", 0, 32), "ip": ("rip", 0, 16)}
    for letter in "abcd":
        whole = f"r{letter}x"
        found |= {whole: (whole, 0, 64), f"e{letter}x": (whole, 0, 32), f"{letter}x": (whole, 0, 16)}
        found |= {f"{letter}l": (whole, 0, 8), f"{letter}h": (whole, 8, 8)}
    for name in ("si", "di", "bp", "sp"):
        whole = f"r{name}"
        found |= {whole: (whole, 0, 64), f"e{name}": (whole, 0, 32), name: (whole, 0, 16), f"{name}l": (whole, 0, 8)}
    for number in range(8, 16):
        whole = f"r{number}"
        found |= {whole: (whole, 0, 64), f"{whole}d": (whole, 0, 32), f"{whole}w": (whole, 0, 16)}
        found[f"{whole}b"] = (whole, 0, 8)
    return found


_PARTS = _parts()


def _is_done(found: capstone.CsInsn, regs: Regs) -> bool:
    """Return whether it is a string instruction whose repetitions are all done."""
    is_string = found.mnemonic.split()[-1].startswith(("movs", "cmps", "stos", "lods", "scas", "ins", "outs"))
    repeats = found.mnemonic.startswith("rep")
    return is_string and repeats and regs.rcx & _MASKS[found.addr_size * 8] == 0


class _Operands:
    """One decoded instruction and the registers before it."""

    def __init__(self, found: capstone.CsInsn, regs: Regs, sregs: Sregs) -> None:
        self._found = found
        self._regs = regs
        self._sregs = sregs
        self._name = found.mnemonic.split()[-1]  # without its prefix
        self._width = cpu_mode(sregs, regs).width
        self._opcode = opcode_of(found)

    def all(self) -> tuple[MemoryAccess, ...]:
        operands: list[MemoryAccess] = []
        if not self._name.startswith(_ADDRESS_ONLY):
            # AT&T's order is the manual's backwards.
            memory = [operand for operand in reversed(self._found.operands) if operand.type == _MEMORY_OPERAND]
            operands = [self._explicit(operand) for operand in memory]
        return (*operands, *self._translation(), *self._stack())

    def _explicit(self, operand: capstone.x86.X86Op) -> MemoryAccess:
        place = operand.mem
        base, index = self._register(place.base), self._register(place.index)
        offset = base + index * place.scale + place.disp + self._bit_offset(operand)
        name = self._found.reg_name(place.segment) if place.segment else self._default_segment(place)
        if self._opcode == 0x8F and (self._found.reg_name(place.base) or "").endswith("sp"):
            offset += self._operand_size()  # POP takes the address after it has moved RSP
        return self._at(name, offset, self._size(operand), self._access(operand))

    def _size(self, operand: capstone.x86.X86Op) -> int:
        is_far = self._name.startswith(("ljmp", "lcall", "les", "lds", "lss", "lfs", "lgs"))
        size: int = 2 + self._data_size() if is_far else operand.size  # an offset and a selector
        return size

    def _register(self, number: int) -> int:
        if not number:
            return 0
        name = self._found.reg_name(number)
        if name in ("rip", "eip"):  # RIP-relative: counted from the end of the instruction
            after: int = self._regs.rip + self._found.size
            return after
        return register_value(self._regs, name) if name in _PARTS else 0

    def _bit_offset(self, operand: capstone.x86.X86Op) -> int:
        """Return how far from its operand's start BT and its kin reach with a bit number in a register."""
        numbers = [other for other in self._found.operands if other.type == _REGISTER_OPERAND]
        if not self._name.rstrip("lwq").startswith(_BIT_STRINGS) or not numbers:
            return 0
        size: int = operand.size
        bits = size * 8
        number = register_value(self._regs, self._found.reg_name(numbers[0].reg))
        signed = number - (1 << bits) if number >> (bits - 1) else number
        return (signed // bits) * size

    def _access(self, operand: capstone.x86.X86Op) -> Access:
        if self._name.startswith(_READ_AND_WRITE):
            return Access.READ | Access.WRITE
        if self._name.startswith(_WRITE_ONLY) or self._opcode in _WRITING_STRINGS:
            return Access.WRITE
        if self._name.startswith(_READ_ONLY):
            return Access.READ
        access = Access.WRITE if operand.access & _WRITES else Access(0)
        return access | Access.READ if operand.access & _READS or not access else access

    def _default_segment(self, place: capstone.x86.X86OpMem) -> str:
        base = self._found.reg_name(place.base) or ""
        if base.endswith("di") and not place.index and self._is_destination():
            return "es"
        return "ss" if base.endswith(("bp", "sp")) else "ds"

    def _is_destination(self) -> bool:
        return self._opcode in _DESTINATION_OPCODES

    def _translation(self) -> tuple[MemoryAccess, ...]:
        if not self._name.startswith("xlat"):
            return ()
        prefix = _SEGMENT_PREFIXES.get(self._found.prefix[1], "ds")
        return (self._at(prefix, self._regs.rbx + (self._regs.rax & 0xFF), 1, Access.READ),)

    # ---- the stack ----

    def _stack(self) -> tuple[MemoryAccess, ...]:
        pushed, popped = self._pushed(), self._popped()
        if pushed:
            return (self._at("ss", self._regs.rsp - pushed, pushed, Access.WRITE, is_stack=True),)
        if popped:
            start = self._regs.rbp if self._opcode == _LEAVE else self._regs.rsp
            return (self._at("ss", start, popped, Access.READ, is_stack=True),)
        return ()

    def _pushed(self) -> int:
        """Return how many bytes it pushes."""
        near, far = self._operand_size(), self._data_size()
        if self._opcode == _GROUP_5:
            return {2: near, 3: 2 * far, 6: near}.get(self._found.modrm >> 3 & 7, 0)
        if self._opcode in _PUSHES:
            return near
        return {_PUSHA: 8 * near, _FAR_CALL: 2 * far}.get(self._opcode, 0)

    def _popped(self) -> int:
        """Return how many bytes it pops."""
        near, far = self._operand_size(), self._data_size()
        if self._opcode in _POPS:
            return near
        frame = (5 if self._width == 64 else 3) * far
        return {_POPA: 8 * near, _IRET: frame}.get(self._opcode, 2 * far if self._opcode in _FAR_RETURNS else 0)

    def _operand_size(self) -> int:
        """Return the bytes of a push, pop or near call."""
        is_other = self._found.prefix[2] == _OPERAND_SIZE
        if self._width == 64:
            return 2 if is_other and self._opcode not in (0xE8, 0xC2, 0xC3) else 8
        return (2 if is_other else 4) if self._width == 32 else (4 if is_other else 2)

    def _data_size(self) -> int:
        """Return the bytes of a far call, far return or IRET: 64 bits only with REX.W."""
        if self._width == 64:
            return 8 if self._found.rex & 8 else 2 if self._found.prefix[2] == _OPERAND_SIZE else 4
        return self._operand_size()

    def _at(self, segment: str, offset: int, size: int, access: Access, *, is_stack: bool = False) -> MemoryAccess:
        bits = stack_width(self._regs, self._sregs) if is_stack else self._found.addr_size * 8
        offset &= _MASKS[bits]
        base: int = getattr(self._sregs, segment).base
        if self._width == 64:
            linear = (offset + base if segment in ("fs", "gs") else offset) & _MASKS[64]
        else:
            linear = (offset + base) & _MASKS[32]
        return MemoryAccess(linear, size, access, segment, offset, is_stack)


# Opcodes (SDM volume 2, appendix A).
_INS = frozenset((0x6C, 0x6D))
_WRITING_STRINGS = _INS | {0xAA, 0xAB}  # INS and STOS, of which capstone 5 says that they read
_DESTINATION_OPCODES = _INS | {0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAE, 0xAF}  # MOVS, CMPS, STOS, SCAS
_LEAVE = 0xC9
# With ENTER and CALL, LEAVE and RET; PUSH and POP of FS and GS have two bytes.
_PUSHES = frozenset((*range(0x50, 0x58), 0x06, 0x0E, 0x16, 0x1E, 0x68, 0x6A, 0x9C, 0xC8, 0xE8, 0x0FA0, 0x0FA8))
_POPS = frozenset((*range(0x58, 0x60), 0x07, 0x17, 0x1F, 0x8F, 0x9D, 0xC2, 0xC3, _LEAVE, 0x0FA1, 0x0FA9))
_PUSHA, _POPA, _FAR_CALL, _IRET, _GROUP_5 = 0x60, 0x61, 0x9A, 0xCF, 0xFF
_FAR_RETURNS = frozenset((0xCA, 0xCB))
_SEGMENT_PREFIXES = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
