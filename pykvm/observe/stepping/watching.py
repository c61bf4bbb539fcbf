"""Whether a step touched what is watched: its operands say so beforehand, and what changed in memory afterwards.

    read     an operand of the instruction that is read
    write    an operand that is written, be it with what was there already, or any change of memory

Changes are the CPU's and the devices': a DMA into what is watched counts. See: ``pykvm.x86.operands``. Leaves out what
the CPU reads on its own account: page tables and descriptors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pykvm.observe.stepping.reading import Reader
from pykvm.observe.stepping.step import Access, Step, Stretch, Watchpoint
from pykvm.units import PAGE_SIZE, Gpa
from pykvm.x86.operands import Access as Done
from pykvm.x86.operands import MemoryAccess, memory_accesses

__all__ = ["changed", "touched"]


def touched(reader: Reader, step: Step | Stretch, watchpoints: Sequence[Watchpoint]) -> Watchpoint | None:
    """Return the first of ``watchpoints`` that ``step`` has hit, None if it has hit none."""
    if not watchpoints:
        return None
    operands: tuple[MemoryAccess, ...] = ()
    if isinstance(step, Step) and step.instruction is not None and not step.events:
        operands = memory_accesses(step.instruction.bytes, *step.before)
    for watchpoint in watchpoints:
        if any(_hits(watchpoint, operand) for operand in operands):
            return watchpoint
    return changed(reader, step, watchpoints)


def changed(reader: Reader, done: Step | Stretch, watchpoints: Iterable[Watchpoint]) -> Watchpoint | None:
    """Return the first of ``watchpoints`` for writes whose bytes ``done`` has changed."""
    if not done.changes:
        return None
    for watchpoint in watchpoints:
        if watchpoint.access is not Access.READ and _is_changed(reader, done, watchpoint):
            return watchpoint
    return None


def _hits(watchpoint: Watchpoint, operand: MemoryAccess) -> bool:
    if not _overlap(watchpoint.address, watchpoint.length, operand.address, operand.size):
        return False
    match watchpoint.access:
        case Access.READ:
            return bool(operand.access & Done.READ)
        case Access.WRITE:
            return bool(operand.access & Done.WRITE)
    return True


def _is_changed(reader: Reader, done: Step | Stretch, watchpoint: Watchpoint) -> bool:
    sregs = done.before[1]
    for start, length in _pieces(watchpoint):
        gpa = reader.translate(start, sregs)
        if gpa is not None and any(_overlap(gpa, length, change.gpa, len(change.new)) for change in done.changes):
            return True
    return False


def _pieces(watchpoint: Watchpoint) -> Iterable[tuple[int, int]]:
    """Yield the parts of it that lie in one page each, of the first few pages."""
    start, end = watchpoint.address, watchpoint.address + watchpoint.length
    for _ in range(16):
        if start < end:
            length = min(end - start, PAGE_SIZE - start % PAGE_SIZE)
            yield start, length
            start += length


def _overlap(one: int | Gpa, size: int, other: int | Gpa, other_size: int) -> bool:
    return one < other + other_size and other < one + size
