"""From a selector to its descriptor, and why it cannot be loaded.

     15         3  2  1 0
    +------------+--+-----+
    |   index    |TI| RPL |      TI: 0 GDT, 1 LDT
    +------------+--+-----+

See: Intel SDM volume 3, section 3.4.2 (selectors), 5.5 to 5.8 (checks), volume 2, MOV, far JMP, IRET, LTR. Leaves out
call gates, task gates and task switches.
"""

from __future__ import annotations

from pykvm.kvm.structs import Segment
from pykvm.x86.faults.access import read_linear
from pykvm.x86.faults.moment import GP, NP, SS, Fault, Moment, selector_code
from pykvm.x86.segments import decode_descriptor

__all__ = [
    "code_fault",
    "code_width_fault",
    "data_fault",
    "is_code",
    "kind_of",
    "read_descriptor",
    "stack_fault",
    "table_fault",
    "task_fault",
]

_SYSTEM = {1: "a free 16-bit TSS", 2: "an LDT", 3: "a busy 16-bit TSS", 4: "a 16-bit call gate", 5: "a task gate"}
_SYSTEM |= {6: "a 16-bit interrupt gate", 7: "a 16-bit trap gate", 9: "a free TSS", 11: "a busy TSS"}
_SYSTEM |= {12: "a call gate", 14: "an interrupt gate", 15: "a trap gate"}


def read_descriptor(moment: Moment, selector: int, *, external: bool = False) -> Segment | Fault | None:
    """Return the segment that ``selector`` names.

    A Fault if it is outside its table or that cannot be read; None if there is no memory. ``external`` sets EXT.
    """
    table, name = (moment.sregs.ldt, "LDT") if selector & 4 else (moment.sregs.gdt, "GDT")
    last = (selector & 0xFFF8) + 7
    if last > table.limit or (selector & 4 and moment.sregs.ldt.unusable):
        reason = f"{name} ends at byte {table.limit:#x}, and selector {selector:#x} needs {last - 7:#x} to {last:#x}"
        return Fault(GP, selector_code(selector, external=external), reason)
    data = read_linear(moment, table.base + last - 7, 8, f"{name} entry {selector:#x}")
    return decode_descriptor(int.from_bytes(data, "little"), selector) if isinstance(data, bytes) else data


def kind_of(segment: Segment) -> str:
    """Return what a descriptor is, in words: ``"data"``, ``"code"``, ``"a free TSS"``."""
    if segment.s:
        return "code" if segment.type & 8 else "data"
    return _SYSTEM.get(segment.type, f"system type {segment.type}")


def is_code(segment: Segment) -> bool:
    """Return whether ``segment`` is a code segment."""
    return bool(segment.s and segment.type & 8)


def code_fault(moment: Moment, segment: Segment, selector: int, cpl: int) -> Fault | None:
    """Return why CS cannot be ``segment`` after a far jump or call at privilege ``cpl``."""
    code = selector_code(selector)
    if not is_code(segment):
        return Fault(GP, code, f"selector {selector:#x} is {kind_of(segment)}, not code")
    conforming = segment.type & 4
    is_other = segment.dpl > cpl if conforming else segment.dpl != cpl or selector & 3 > cpl
    if is_other:
        return Fault(GP, code, f"code segment {selector:#x} is for ring {segment.dpl}, and this is ring {cpl}")
    return code_width_fault(moment, segment, code) or _present_fault(segment, selector, NP)


def code_width_fault(moment: Moment, segment: Segment, code: int) -> Fault | None:
    """Return why a code segment is of no width: in long mode L and D cannot both be 1."""
    if moment.is_long and segment.l and segment.db:
        return Fault(GP, code, f"code segment {segment.selector:#x} has L = 1 and D = 1, which is no width")
    return None


def data_fault(moment: Moment, segment: Segment, selector: int) -> Fault | None:
    """Return why DS, ES, FS or GS cannot be ``segment``."""
    code = selector_code(selector)
    if not segment.s or (is_code(segment) and not segment.type & 2):
        kind = "code that cannot be read" if segment.s else kind_of(segment)
        return Fault(GP, code, f"selector {selector:#x} is {kind}, not data")
    if not (is_code(segment) and segment.type & 4) and segment.dpl < max(moment.cpl, selector & 3):
        asks = max(moment.cpl, selector & 3)
        return Fault(GP, code, f"segment {selector:#x} is for ring {segment.dpl}, and ring {asks} asks for it")
    return _present_fault(segment, selector, NP)


def stack_fault(segment: Segment, selector: int, ring: int, vector: int = GP) -> Fault | None:
    """Return why SS cannot be ``segment`` in ``ring``; ``vector`` is #TS for a stack that comes from a TSS."""
    code = selector_code(selector)
    if not segment.s or is_code(segment) or not segment.type & 2:
        kind = kind_of(segment) if not segment.s or is_code(segment) else "data that cannot be written"
        return Fault(vector, code, f"the stack's selector {selector:#x} is {kind}, not writable data")
    if segment.dpl != ring or selector & 3 != ring:
        reason = f"the stack's selector {selector:#x} is of ring {segment.dpl} with RPL {selector & 3}, and SS needs "
        return Fault(vector, code, f"{reason}{ring} for both")
    return _present_fault(segment, selector, SS)


def task_fault(segment: Segment, selector: int, *, is_long: bool) -> Fault | None:
    """Return why LTR cannot load ``segment``."""
    if segment.s or segment.type not in ((9,) if is_long else (1, 9)):
        return Fault(GP, selector_code(selector), f"selector {selector:#x} is {kind_of(segment)}, not a free TSS")
    return _present_fault(segment, selector, NP)


def table_fault(segment: Segment, selector: int) -> Fault | None:
    """Return why LLDT cannot load ``segment``."""
    if segment.s or segment.type != 2:
        return Fault(GP, selector_code(selector), f"selector {selector:#x} is {kind_of(segment)}, not an LDT")
    return _present_fault(segment, selector, NP)


def _present_fault(segment: Segment, selector: int, vector: int) -> Fault | None:
    if segment.present:
        return None
    return Fault(vector, selector_code(selector), f"segment {selector:#x} is not present (P = 0)")
