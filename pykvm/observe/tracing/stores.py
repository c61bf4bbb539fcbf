"""Which instruction right before RIP wrote to memory: found by where, how much and what it must have written.

x86 code cannot be read backwards: several instructions can end at RIP, of which all but one are the rest of a longer
one, or have a byte too many in front. Leaves out writes whose registers are no longer what they were, as after CALL.
"""

from __future__ import annotations

from dataclasses import replace

from pykvm.kvm import MmioWrite, Regs, Sregs
from pykvm.observe.tracing.code import Code
from pykvm.observe.tracing.encodings import REPEATS, Encoding, Form
from pykvm.units import PAGE_SIZE
from pykvm.x86 import LONGEST_INSTRUCTION, Instruction, instruction_at
from pykvm.x86.operands import Access, memory_accesses, register_value
from pykvm.x86.registers import Rflags

__all__ = ["repeated_store", "store_before"]

STRINGS = ("stos", "movs")  # they have moved RDI on
SUFFIXES = {1: "b", 2: "w", 4: "l", 8: "q"}


def store_before(code: Code, exit: MmioWrite, regs: Regs, sregs: Sregs) -> Encoding | None:
    """Return the longest instruction that ends at RIP and can have made ``exit``; registers are as they are after it.

    Longer ones differ from shorter ones by prefixes, which are more often theirs than another instruction's end.
    """
    for size in range(min(LONGEST_INSTRUCTION, len(code.before)), 0, -1):
        tail = code.before[-size:]
        found = instruction_at(tail, code.address - size, code.width)
        if found is None or len(found.bytes) != size or found.mnemonic == ".byte":
            continue
        if _can_have_stored(found, exit.data, regs) and _writes_there(found, exit, regs, sregs):
            return Encoding(size)
    return None


def repeated_store(code: Code) -> Encoding | None:
    """Return the instruction at RIP if it is a repeated STOS or MOVS: KVM has still to go on with it."""
    if not code.after or code.after[0] not in REPEATS:
        return None
    found = instruction_at(code.after[:LONGEST_INSTRUCTION], code.address, code.width)
    is_store = found is not None and found.mnemonic.split()[-1].startswith(STRINGS)
    return Encoding(LONGEST_INSTRUCTION, Form.REPEATED) if is_store else None


def _writes_there(found: Instruction, exit: MmioWrite, regs: Regs, sregs: Sregs) -> bool:
    size = len(exit.data)
    before = replace(regs, rip=regs.rip - len(found.bytes))
    if found.mnemonic.startswith(STRINGS):
        before.rdi += size if regs.rflags & Rflags.DF.value else -size
    for access in memory_accesses(found.bytes, before, sregs):
        # Where a page is does not matter, and an access that is too long for one exit is made in parts.
        reaches = access.address % PAGE_SIZE == exit.address % PAGE_SIZE and access.size == size
        if Access.WRITE in access.access and not access.is_stack and reaches:
            return True
    return False


def _can_have_stored(found: Instruction, data: bytes, regs: Regs) -> bool:
    """Return whether ``data`` is what a MOV has for its operand; True for all others."""
    if found.mnemonic not in ("mov", f"mov{SUFFIXES.get(len(data), '')}"):
        return True
    operand, mask = found.operands.split(",")[0], (1 << 8 * len(data)) - 1
    try:
        value = int(operand[1:], 0) if operand.startswith("$") else register_value(regs, operand.removeprefix("%"))
    except (KeyError, ValueError):
        return True
    return value & mask == int.from_bytes(data, "little")
