"""Instructions that load a selector: MOV and POP to a segment register, far JMP, CALL, RET, IRET, LTR, LLDT.

Each function returns the exception that the instruction raises, or None. See: Intel SDM volume 2, at each of them;
volume 3, section 5.8 (transfers between rings). Leaves out jumps through gates and to tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pykvm.kvm.structs import Segment
from pykvm.x86.faults.access import is_canonical
from pykvm.x86.faults.descriptors import (
    code_fault,
    code_width_fault,
    data_fault,
    is_code,
    read_descriptor,
    stack_fault,
    table_fault,
    task_fault,
)
from pykvm.x86.faults.moment import GP, NP, Fault, Moment, selector_code

__all__ = ["far_jump_fault", "return_fault", "segment_load_fault", "table_load_fault", "task_load_fault"]


def segment_load_fault(moment: Moment, name: str, selector: int) -> Fault | None:
    """Return why ``selector`` cannot be loaded into the segment register ``name`` ("ds"); CS is not for loading."""
    if moment.is_real or moment.is_virtual_8086:
        return None
    if not selector & 0xFFFC:
        if name != "ss" or (moment.width == 64 and moment.cpl < 3 and selector & 3 == moment.cpl):
            return None
        return Fault(GP, 0, f"SS cannot be the null selector in {moment.width}-bit code of ring {moment.cpl}")
    if name == "ss":
        return _checked(moment, selector, lambda segment: stack_fault(segment, selector, moment.cpl))
    return _checked(moment, selector, lambda segment: data_fault(moment, segment, selector))


def task_load_fault(moment: Moment, selector: int) -> Fault | None:
    """Return why LTR cannot load ``selector``."""
    if not selector & 0xFFFC:
        return Fault(GP, 0, "TR cannot be the null selector")
    if selector & 4:
        return Fault(GP, selector_code(selector), f"selector {selector:#x} is of the LDT, and a TSS must be in the GDT")
    return _checked(moment, selector, lambda segment: task_fault(segment, selector, is_long=moment.is_long))


def table_load_fault(moment: Moment, selector: int) -> Fault | None:
    """Return why LLDT cannot load ``selector``; the null selector it can."""
    if not selector & 0xFFFC:
        return None
    if selector & 4:
        return Fault(
            GP, selector_code(selector), f"selector {selector:#x} is of the LDT, and an LDT must be in the GDT"
        )
    return _checked(moment, selector, lambda segment: table_fault(segment, selector))


def far_jump_fault(moment: Moment, selector: int, offset: int) -> Fault | None:
    """Return why a far JMP or CALL cannot go to ``selector``:``offset``."""
    if moment.is_real or moment.is_virtual_8086:
        return None
    if not selector & 0xFFFC:
        return Fault(GP, 0, "CS cannot be the null selector")

    def check(segment: Segment) -> Fault | None:
        if not segment.s:  # a gate or a TSS, which have rules of their own; in long mode there is but one of them
            is_gate = segment.type == 12 if moment.is_long else segment.type in (1, 4, 5, 9, 12)
            return None if is_gate else code_fault(moment, segment, selector, moment.cpl)
        return code_fault(moment, segment, selector, moment.cpl) or _target_fault(moment, segment, offset)

    return _checked(moment, selector, check)


def return_fault(moment: Moment, frame: tuple[int, ...]) -> Fault | None:
    """Return why IRET or far RET cannot go where the words of ``frame`` say: RIP, CS and, of IRET, RFLAGS, RSP, SS."""
    offset, selector = frame[0], frame[1] & 0xFFFF
    if moment.is_real or moment.is_virtual_8086:
        return None
    if not selector & 0xFFFC:
        return Fault(GP, 0, "the frame's CS is the null selector")

    def check(segment: Segment) -> Fault | None:
        return _return_code_fault(moment, segment, selector) or _target_fault(moment, segment, offset)

    fault = _checked(moment, selector, check)
    if fault is None and len(frame) == 5:
        fault = _frame_stack_fault(moment, frame[4] & 0xFFFF, selector & 3)
    return fault and replace(fault, reason=f"in the frame that it pops, {fault.reason}")


def _return_code_fault(moment: Moment, segment: Segment, selector: int) -> Fault | None:
    code, ring = selector_code(selector), selector & 3
    if ring < moment.cpl:
        return Fault(GP, code, f"CS {selector:#x} asks for ring {ring}, and ring {moment.cpl} cannot return to it")
    if not is_code(segment):
        return code_fault(moment, segment, selector, ring)
    if segment.dpl > ring if segment.type & 4 else segment.dpl != ring:
        return Fault(GP, code, f"CS {selector:#x} is code of ring {segment.dpl} with RPL {ring}")
    if not segment.present:
        return Fault(NP, code, f"segment {selector:#x} is not present (P = 0)")
    return code_width_fault(moment, segment, code)


def _frame_stack_fault(moment: Moment, selector: int, ring: int) -> Fault | None:
    # Only 64-bit code pops SS always, and there the null selector will do outside ring 3.
    if not selector & 0xFFFC:
        is_wrong = ring == 3 or selector & 3 != ring
        return Fault(GP, 0, f"SS is the null selector {selector:#x}, for ring {ring}") if is_wrong else None
    return _checked(moment, selector, lambda segment: stack_fault(segment, selector, ring))


def _target_fault(moment: Moment, segment: Segment, offset: int) -> Fault | None:
    if moment.is_long and segment.l:
        return None if is_canonical(moment, offset) else Fault(GP, 0, f"{offset:#x} is not canonical")
    if offset > segment.limit:
        return Fault(GP, 0, f"offset {offset:#x} is beyond the code segment's limit {segment.limit:#x}")
    return None


def _checked(moment: Moment, selector: int, check: Callable[[Segment], Fault | None]) -> Fault | None:
    segment = read_descriptor(moment, selector)
    return check(segment) if isinstance(segment, Segment) else segment
