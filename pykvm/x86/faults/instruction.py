"""Which exception the instruction at RIP raises, judged by what is to be seen: registers, tables, memory.

In the CPU's order: it is fetched, decoded, allowed to this ring, and then executed (SDM volume 3, section 6.9, table
6-2). Only what can be told for certain, or is marked as uncertain. Leaves out debug exceptions and machine checks, and
most of what x87 and SSE computations raise.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.x86.disassembly import LONGEST_INSTRUCTION
from pykvm.x86.faults.access import access_fault, is_canonical, page_fault
from pykvm.x86.faults.control import control_write_fault, msr_fault
from pykvm.x86.faults.decoded import IO_SENSITIVE, PRIVILEGED, REGISTER, Decoded, code_at_rip, decode
from pykvm.x86.faults.moment import GP, UD, Fault, Moment
from pykvm.x86.faults.selectors import (
    far_jump_fault,
    return_fault,
    segment_load_fault,
    table_load_fault,
    task_load_fault,
)
from pykvm.x86.modes import linear_rip
from pykvm.x86.operands import Access, register_value
from pykvm.x86.registers import Cr0, Cr4, Rflags

__all__ = ["first_fault"]

DE, NM = 0, 7
IMMEDIATE = 2  # capstone's CS_OP_IMM

ALIGNED = ("movaps", "movapd", "movdqa", "movntps", "movntpd", "movntdq")


def first_fault(moment: Moment) -> Fault | None:
    """Return the exception that the instruction at RIP raises, None if there is nothing wrong to be seen."""
    fault = _fetch_fault(moment, 1)
    if fault is not None:
        return fault
    code = code_at_rip(moment)
    if not code:
        return None  # mapped to where there is no memory: not the guest's exception, but KVM's error
    instruction = decode(moment, code)
    if instruction is None:
        return _undecoded(moment, code)
    fault = _fetch_fault(moment, instruction.found.size)
    return fault or next(filter(None, (rule(instruction) for rule in _RULES)), None)


def _fetch_fault(moment: Moment, size: int) -> Fault | None:
    rip = moment.regs.rip
    if moment.width == 64:
        if not is_canonical(moment, rip):
            return Fault(GP, 0, f"RIP {rip:#x} is not canonical")
    elif rip + size - 1 > moment.sregs.cs.limit:
        return Fault(GP, 0, f"RIP {rip:#x} is beyond CS's limit {moment.sregs.cs.limit:#x}")
    return page_fault(moment, linear_rip(moment.regs, moment.sregs), size, Access.EXECUTE, is_user=moment.cpl == 3)


def _undecoded(moment: Moment, code: bytes) -> Fault | None:
    if len(code) < LONGEST_INSTRUCTION:  # it may go on where nothing is mapped
        fault = _fetch_fault(moment, len(code) + 1)
        if fault is not None:
            return fault
    return Fault(UD, None, f"{code[:4].hex(' ')} is no instruction known here", is_certain=False)


# ---- decoding and privilege ----


def _undefined(instruction: Decoded) -> Fault | None:
    if instruction.name in ("ud0", "ud1", "ud2", "ud2a", "ud2b"):
        return Fault(UD, None, f"{instruction.name} is an instruction that is defined to be invalid")
    return None


def _unit_is_off(instruction: Decoded) -> Fault | None:
    sregs = instruction.moment.sregs
    is_vector = any(name.startswith(("xmm", "ymm", "zmm")) for name in instruction.registers())
    is_x87 = instruction.opcode in range(0xD8, 0xE0) or instruction.opcode == 0x9B
    if not is_vector and not is_x87:
        return None
    if is_vector and sregs.cr0 & Cr0.EM.value:
        return Fault(UD, None, "CR0.EM = 1 forbids SSE")
    if is_vector and not sregs.cr4 & Cr4.OSFXSR.value:
        return Fault(UD, None, "SSE needs CR4.OSFXSR = 1, which says that the system saves its registers")
    if is_vector and instruction.opcode == 0 and not sregs.cr4 & Cr4.OSXSAVE.value:
        return Fault(UD, None, "AVX needs CR4.OSXSAVE = 1")
    if sregs.cr0 & Cr0.TS.value or (is_x87 and sregs.cr0 & Cr0.EM.value and instruction.opcode != 0x9B):
        return Fault(NM, None, "CR0.TS or CR0.EM is set, so the FPU is not to be used")
    return None


def _privilege(instruction: Decoded) -> Fault | None:
    moment = instruction.moment
    if moment.cpl == 0:
        return None
    writes_control = instruction.opcode in (0x0F20, 0x0F21, 0x0F22, 0x0F23)
    if instruction.name in PRIVILEGED or writes_control:
        return Fault(GP, 0, f"{instruction.found.mnemonic} is for ring 0 only, and this is ring {moment.cpl}")
    iopl = (moment.regs.rflags & Rflags.IOPL.value) >> 12
    if instruction.name in IO_SENSITIVE and moment.cpl > iopl:
        reason = f"{instruction.found.mnemonic} wants ring {iopl} (RFLAGS.IOPL = {iopl}), and this is ring {moment.cpl}"
        is_port = instruction.name not in ("cli", "sti")
        return Fault(GP, 0, reason + (", unless the TSS allows that port" if is_port else ""), is_certain=not is_port)
    return None


# ---- memory ----


def _memory(instruction: Decoded) -> Fault | None:
    return next(filter(None, (access_fault(instruction.moment, one) for one in instruction.accesses())), None)


def _alignment(instruction: Decoded) -> Fault | None:
    if not instruction.name.removeprefix("v").startswith(ALIGNED):
        return None
    for one in instruction.accesses():
        if one.address % one.size:
            return Fault(
                GP, 0, f"{instruction.name} wants its operand at a multiple of {one.size}, not at {one.address:#x}"
            )
    return None


# ---- arithmetic ----


def _division(instruction: Decoded) -> Fault | None:
    if instruction.opcode not in (0xF6, 0xF7) or instruction.reg not in (6, 7):
        return None
    size: int = instruction.found.operands[0].size
    divisor = _source(instruction, size)
    if divisor == 0:
        return Fault(DE, None, "a division by 0")
    if divisor is None or not _overflows(instruction, divisor, size, is_signed=instruction.reg == 7):
        return None
    return Fault(DE, None, f"the quotient does not fit into {8 * size} bits")


def _overflows(instruction: Decoded, divisor: int, size: int, *, is_signed: bool) -> bool:
    bits = 8 * size
    regs, mask = instruction.moment.regs, (1 << 8 * size) - 1
    dividend = regs.rax & 0xFFFF if size == 1 else (regs.rdx & mask) << bits | regs.rax & mask
    if not is_signed:
        return dividend // divisor > mask
    dividend, divisor = _signed(dividend, 2 * bits), _signed(divisor, bits)
    quotient = abs(dividend) // abs(divisor) * (1 if (dividend < 0) == (divisor < 0) else -1)
    return not -(1 << bits - 1) <= quotient < 1 << bits - 1


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _source(instruction: Decoded, size: int) -> int | None:
    """Return the value of the instruction's one operand, None if it cannot be read."""
    operand = instruction.found.operands[0]
    if operand.type == REGISTER:
        return register_value(instruction.moment.regs, instruction.found.reg_name(operand.reg))
    words = instruction.words(instruction.accesses()[0], size)
    return words[0] if words else None


# ---- jumps ----


def _near_jump(instruction: Decoded) -> Fault | None:
    """Return why an indirect jump or call, or a return, cannot go to its target."""
    is_return = instruction.opcode in (0xC2, 0xC3)
    if not is_return and not (instruction.opcode == 0xFF and instruction.reg in (2, 4)):
        return None
    moment = instruction.moment
    target = _popped(instruction) if is_return else _source(instruction, instruction.found.operands[0].size)
    if target is None:
        return None
    what = "the return address is" if is_return else "the target of the jump is"
    if moment.width == 64:
        return None if is_canonical(moment, target) else Fault(GP, 0, f"{what} {target:#x}, which is not canonical")
    limit = moment.sregs.cs.limit
    return Fault(GP, 0, f"{what} {target:#x}, beyond CS's limit {limit:#x}") if target > limit else None


def _popped(instruction: Decoded) -> int | None:
    stack = instruction.accesses()[-1]
    words = instruction.words(stack, stack.size)
    return words[0] if words else None


# ---- selectors ----


def _far_jump(instruction: Decoded) -> Fault | None:
    if instruction.opcode in (0x9A, 0xEA):
        values = [operand.imm for operand in instruction.found.operands if operand.type == IMMEDIATE]
        # AT&T's order, selector first, is capstone's for these in either syntax.
        return (
            far_jump_fault(instruction.moment, values[0] & 0xFFFF, values[1] & 0xFFFF_FFFF)
            if len(values) == 2
            else None
        )
    if instruction.opcode != 0xFF or instruction.reg not in (3, 5):
        return None
    pointer = instruction.accesses()[0]
    bytes_ = instruction.words(pointer, 1)
    if bytes_ is None:
        return None
    data = bytes(bytes_)
    return far_jump_fault(instruction.moment, int.from_bytes(data[-2:], "little"), int.from_bytes(data[:-2], "little"))


def _far_return(instruction: Decoded) -> Fault | None:
    words = {0xCA: 2, 0xCB: 2, 0xCF: 5 if instruction.moment.width == 64 else 3}.get(instruction.opcode)
    if words is None:
        return None
    stack = instruction.accesses()[-1]
    frame = instruction.words(stack, stack.size // words)
    return return_fault(instruction.moment, frame) if frame else None


def _segment_load(instruction: Decoded) -> Fault | None:
    if instruction.opcode == 0x8E:  # MOV to a segment register
        name = instruction.registers()[0]
        if name == "cs":
            return Fault(UD, None, "CS cannot be loaded by MOV, only by a far jump, call or return")
        selector = _last_operand(instruction)
        return None if selector is None else segment_load_fault(instruction.moment, name, selector)
    name = {0x07: "es", 0x17: "ss", 0x1F: "ds", 0x0FA1: "fs", 0x0FA9: "gs"}.get(instruction.opcode, "")
    words = instruction.words(instruction.accesses()[-1], 2) if name else None
    return segment_load_fault(instruction.moment, name, words[0]) if words else None


def _task_load(instruction: Decoded) -> Fault | None:
    if instruction.opcode != 0x0F00 or instruction.reg not in (2, 3) or instruction.moment.is_real:
        return None
    selector = _last_operand(instruction)
    if selector is None:
        return None
    return (table_load_fault if instruction.reg == 2 else task_load_fault)(instruction.moment, selector)


def _last_operand(instruction: Decoded) -> int | None:
    """Return the 16 bits that the last operand, in the manual's order, holds."""
    names = instruction.registers()
    accesses = instruction.accesses()
    if accesses:
        words = instruction.words(accesses[0], 2)
        return words[0] if words else None
    return register_value(instruction.moment.regs, names[-1]) & 0xFFFF


# ---- control registers and MSRs ----


def _control_write(instruction: Decoded) -> Fault | None:
    if instruction.opcode != 0x0F22:
        return None
    name, source = instruction.registers()
    return control_write_fault(instruction.moment, name, register_value(instruction.moment.regs, source))


def _msr(instruction: Decoded) -> Fault | None:
    regs = instruction.moment.regs
    if instruction.name not in ("rdmsr", "wrmsr"):
        return None
    value = (regs.rdx & 0xFFFF_FFFF) << 32 | regs.rax & 0xFFFF_FFFF
    return msr_fault(instruction.moment, regs.rcx & 0xFFFF_FFFF, value if instruction.name == "wrmsr" else None)


_RULES: tuple[Callable[[Decoded], Fault | None], ...] = (
    _undefined,
    _unit_is_off,
    _privilege,
    _memory,
    _alignment,
    _division,
    _near_jump,
    _far_jump,
    _far_return,
    _segment_load,
    _task_load,
    _control_write,
    _msr,
)
