"""The guest's own watchpoints, which KVM keeps from it while it is stepped: its #DB is raised by hand.

    DR7     LENn, R/Wn of each of four at bits 19-16 + 4n       Ln, Gn at bits 1-0 + 2n
    DR6     B0 to B3: which of them were hit

See: SDM volume 3, section 17.2. Leaves out the guest's breakpoints for execution and I/O, and its TF: a guest that
steps itself is stepped as if it did not.
"""

from __future__ import annotations

from pykvm.kvm import DebugRegs
from pykvm.observe.stepping.step import Step
from pykvm.x86 import BreakpointKind
from pykvm.x86.operands import Access, memory_accesses

__all__ = ["own_watchpoints_hit"]

NUMBERS = range(4)
ENABLE, ENABLE_BITS = 0b11, 2
FIELDS, FIELD_BITS = 16, 4
LENGTHS = (1, 2, 8, 4)  # as DR7 writes them
WANTED = {BreakpointKind.WRITE: Access.WRITE, BreakpointKind.READ_WRITE: Access.READ | Access.WRITE}


def own_watchpoints_hit(step: Step, debug: DebugRegs) -> int:
    """Return the bits of DR6 for those watchpoints in ``debug`` that ``step`` has hit."""
    if step.instruction is None or step.events:
        return 0
    accesses = memory_accesses(step.instruction.bytes, *step.before)
    hit = 0
    for number in NUMBERS:
        if not debug.dr7 >> ENABLE_BITS * number & ENABLE:
            continue
        field = debug.dr7 >> FIELDS + FIELD_BITS * number
        wanted, length = WANTED.get(BreakpointKind(field & 3)), LENGTHS[field >> 2 & 3]
        start = debug.db[number] & -length
        if wanted is not None and any(
            access.access & wanted and access.address < start + length and start < access.address + access.size
            for access in accesses
        ):
            hit |= 1 << number
    return hit
