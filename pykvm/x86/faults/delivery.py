"""What happens when an exception or interrupt is delivered: the way to its handler, and where that way ends.

    vector -> IDTR -> gate -> selector -> GDT -> code segment -> stack (the old one, or one of the TSS) -> handler
                |       |         |         |          |            |                                       |
               #GP   #GP #NP     #GP       #GP      #GP #NP     #SS #TS #PF                                #GP

An exception met on the way takes the place of the first, or is a double fault with it; met on the way to the double
fault's handler, it shuts the CPU down: the triple fault. See: Intel SDM volume 3, sections 6.10 to 6.14 (IDT, gates,
stacks), 6.15 (interrupt 8, double fault), 20.1.4 (real mode); volume 2, INT n. Leaves out task gates, shadow stacks and
the frame that virtual-8086 mode adds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import assert_never

from pykvm.kvm.structs import Segment
from pykvm.x86.exceptions import leads_to_double_fault
from pykvm.x86.faults.access import is_canonical, page_fault, read_linear, segment_fault
from pykvm.x86.faults.descriptors import code_width_fault, is_code, kind_of, read_descriptor, stack_fault
from pykvm.x86.faults.moment import DF, GP, NP, SS, TS, Fault, Moment, selector_code
from pykvm.x86.operands import Access, stack_width

__all__ = ["Delivered", "Link", "Outcome", "TripleFault", "Unclear", "Undelivered", "chain", "deliver", "handler_fault"]

TASK_GATE = 5
GATES32 = {6: 2, 7: 2, 14: 4, 15: 4}  # a type and the bytes of each word it pushes
GATES64 = (14, 15)
EXT = 1  # bit of an error code: an event from outside the program, or an exception, was being delivered
IDT_BIT = 2  # bit of an error code: it names a gate of the IDT
TSS_ESP0, TSS_RSP0, TSS_IST1 = 4, 4, 36  # offsets in a TSS (SDM volume 3, figures 7-2 and 7-11)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The handler runs: at ``offset`` in the code segment ``selector``, with ``rsp`` as the stack pointer."""

    selector: int
    offset: int
    rsp: int


@dataclass(frozen=True, slots=True)
class Undelivered:
    """The way to the handler ended with ``fault``."""

    fault: Fault


@dataclass(frozen=True, slots=True)
class Unclear:
    """What the CPU does is not known here: ``reason`` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class TripleFault:
    """The double fault could not be delivered because of ``fault``: the CPU shuts down."""

    fault: Fault


Outcome = Delivered | Undelivered | TripleFault | Unclear


@dataclass(frozen=True, slots=True)
class Link:
    """An exception and what became of it. Of a chain, all but the last are ``Undelivered``."""

    fault: Fault
    outcome: Outcome


def chain(moment: Moment, fault: Fault) -> tuple[Link, ...]:
    """Return what comes of ``fault``: link by link, up to a handler, a shutdown or what is not known. At most five."""
    links: list[Link] = []
    while True:
        outcome = deliver(moment, fault.vector, fault.error_code)
        if not isinstance(outcome, Undelivered):
            return (*links, Link(fault, outcome))
        if fault.vector == DF:
            return (*links, Link(fault, TripleFault(outcome.fault)))
        links.append(Link(fault, outcome))
        if leads_to_double_fault(fault.vector, outcome.fault.vector):
            fault = Fault(DF, 0, f"{outcome.fault.name} while {fault.name} was being delivered")
        else:
            fault = outcome.fault


def deliver(moment: Moment, vector: int, error_code: int | None = None, *, is_software: bool = False) -> Outcome:
    """Return whether ``vector`` (0 to 255) reaches its handler; ``is_software`` is for INT n, INT3 and INTO.

    Never raises for what registers, tables and memory hold, and never returns TripleFault: that is ``chain``'s.
    """
    if moment.is_real:
        return _deliver_real(moment, vector)
    gate = _read_gate(moment, vector, is_software)
    match gate:
        case _Gate():
            return _enter(moment, gate, error_code is not None)
        case Fault():
            return Undelivered(gate)
        case Unclear():
            return gate
        case _:
            assert_never(gate)


def handler_fault(moment: Moment, handler: Delivered) -> Fault | None:
    """Return why the first instruction of ``handler`` cannot be fetched, None if it can."""
    if moment.is_real:
        return None
    segment = read_descriptor(moment, handler.selector)
    base = segment.base if isinstance(segment, Segment) and not moment.is_long else 0
    is_user = isinstance(segment, Segment) and segment.dpl == 3
    return page_fault(moment, base + handler.offset & moment.linear_mask, 1, Access.EXECUTE, is_user=is_user)


# ---- real mode ----


def _deliver_real(moment: Moment, vector: int) -> Outcome:
    table = moment.sregs.idt
    first, last = vector * 4, vector * 4 + 3
    if last > table.limit:
        return Undelivered(Fault(GP, None, _beyond(table.limit, vector, first, last)))
    data = moment.read(table.base + first & 0xFFFF_FFFF, 4)
    if data is None:
        return Unclear(f"the vector table at {table.base:#x} is outside guest memory")
    offset, segment = struct.unpack("<HH", data)
    rsp = (moment.regs.rsp & 0xFFFF) - 6
    if -6 < rsp < 0:
        return Undelivered(Fault(SS, None, f"SP is {rsp + 6:#x}, and three words do not fit below it"))
    return Delivered(segment, offset, rsp & 0xFFFF)


# ---- the gate ----


@dataclass(frozen=True, slots=True)
class _Gate:
    vector: int
    selector: int
    offset: int
    word: int  # bytes
    ist: int
    ext: int


def _beyond(limit: int, vector: int, first: int, last: int) -> str:
    if limit == 0:
        return f"no IDT (IDTR's limit is 0), and vector {vector} needs bytes {first:#x} to {last:#x}"
    return f"IDTR's limit is {limit:#x}, and vector {vector} needs bytes {first:#x} to {last:#x}"


def _read_gate(moment: Moment, vector: int, is_software: bool) -> _Gate | Fault | Unclear:
    size = 16 if moment.is_long else 8
    table = moment.sregs.idt
    ext = 0 if is_software else EXT
    code = vector * 8 | IDT_BIT | ext
    first, last = vector * size, (vector + 1) * size - 1
    if last > table.limit:
        return Fault(GP, code, _beyond(table.limit, vector, first, last))
    data = read_linear(moment, table.base + first, size, f"gate {vector} of the IDT, at {table.base + first:#x},")
    if data is None:
        return Unclear(f"gate {vector} of the IDT is at {table.base + first:#x}, where there is no memory")
    return data if isinstance(data, Fault) else _decode_gate(moment, vector, data, code, is_software)


def _decode_gate(moment: Moment, vector: int, data: bytes, code: int, is_software: bool) -> _Gate | Fault | Unclear:
    low, selector, attributes, middle = struct.unpack("<HHHH", data[:8])
    kind, dpl, offset = attributes >> 8 & 0x1F, attributes >> 13 & 3, low | middle << 16
    gate = f"gate {vector} of the IDT"
    if is_software and dpl < moment.cpl:
        return Fault(GP, code, f"{gate} has DPL {dpl}, so that ring {moment.cpl} may not call it")
    if not any(data):
        return Fault(GP, code, f"{gate} is empty: all zeros, and type 0 is no gate")
    if kind == TASK_GATE and not moment.is_long:
        return Unclear(f"{gate} is a task gate")
    if kind not in (GATES64 if moment.is_long else GATES32):
        mode = "long mode" if moment.is_long else "protected mode"
        return Fault(
            GP, code, f"{gate} is of type {kind}, which is neither an interrupt gate nor a trap gate of {mode}"
        )
    if not attributes >> 15:
        return Fault(NP, code, f"{gate} is not present (P = 0)")
    word = 8 if moment.is_long else GATES32[kind]
    if moment.is_long:
        offset |= int.from_bytes(data[8:12], "little") << 32
    elif word == 2:
        offset &= 0xFFFF
    return _Gate(vector, selector, offset, word, attributes & 7 if moment.is_long else 0, code & EXT)


# ---- the code segment ----


def _enter(moment: Moment, gate: _Gate, has_code: bool) -> Outcome:
    segment = _code_segment(moment, gate)
    if isinstance(segment, Fault):
        return Undelivered(segment)
    if segment is None:
        return Unclear(f"the table with selector {gate.selector:#x} is where there is no memory")
    cpl = moment.cpl if segment.type & 4 else segment.dpl
    rsp = _new_stack(moment, gate, cpl, has_code)
    if isinstance(rsp, Fault):
        return Undelivered(rsp)
    if rsp is None:
        return Unclear("the TSS is where there is no memory")
    fault = _handler_fault(moment, gate, segment)
    return Undelivered(fault) if fault else Delivered(gate.selector, gate.offset, rsp)


def _code_segment(moment: Moment, gate: _Gate) -> Segment | Fault | None:
    where = f"gate {gate.vector} of the IDT"
    code = selector_code(gate.selector) | gate.ext
    if not gate.selector & 0xFFFC:
        return Fault(GP, gate.ext, f"{where} has the null selector")
    segment = read_descriptor(moment, gate.selector, external=bool(gate.ext))
    if isinstance(segment, Fault):
        return replace(segment, reason=f"{where} has selector {gate.selector:#x}: {segment.reason}")
    if segment is None:
        return None
    fault = _unfit(moment, segment, code)
    return (
        segment if fault is None else replace(fault, reason=f"{where} has selector {gate.selector:#x}, {fault.reason}")
    )


def _unfit(moment: Moment, segment: Segment, code: int) -> Fault | None:
    if not is_code(segment):
        return Fault(GP, code, f"which is {kind_of(segment)}, not code")
    if segment.dpl > moment.cpl:
        return Fault(GP, code, f"which is code of ring {segment.dpl}, less privileged than ring {moment.cpl}")
    if moment.is_long and not segment.l:
        return Fault(GP, code, "which is not 64-bit code (L = 0), as long mode wants for a handler")
    fault = code_width_fault(moment, segment, code)
    if fault is not None:
        return replace(fault, reason="which has L = 1 and D = 1, which is no width")
    return None if segment.present else Fault(NP, code, "which is not present (P = 0)")


def _handler_fault(moment: Moment, gate: _Gate, segment: Segment) -> Fault | None:
    where = f"the handler of vector {gate.vector} is at {gate.offset:#x}"
    if moment.is_long:
        return None if is_canonical(moment, gate.offset) else Fault(GP, gate.ext, f"{where}, which is not canonical")
    if gate.offset > segment.limit:
        return Fault(GP, gate.ext, f"{where}, beyond its code segment's limit {segment.limit:#x}")
    return None


# ---- the stack ----


def _new_stack(moment: Moment, gate: _Gate, cpl: int, has_code: bool) -> int | Fault | None:
    """Return the stack pointer after the frame was pushed, a Fault if it cannot be; None if the TSS is nowhere."""
    if moment.is_long:
        return _long_stack(moment, gate, cpl, has_code)
    if cpl != moment.cpl:
        return _outer_stack(moment, gate, cpl, has_code)
    return _same_stack(moment, gate, has_code)


def _long_stack(moment: Moment, gate: _Gate, cpl: int, has_code: bool) -> int | Fault | None:
    top: int | Fault | None = moment.regs.rsp
    which = f"RSP is {moment.regs.rsp:#x}"
    if gate.ist or cpl != moment.cpl:
        slot = TSS_IST1 + 8 * (gate.ist - 1) if gate.ist else TSS_RSP0 + 8 * cpl
        name = f"IST{gate.ist}" if gate.ist else f"RSP{cpl}"
        top = _read_tss(moment, gate, slot, 8, name)
        which = f"{name} of the TSS is {top:#x}" if isinstance(top, int) else ""
    if not isinstance(top, int):
        return top
    size = 8 * (6 if has_code else 5)
    first = (top & ~0xF) - size & (1 << 64) - 1  # the CPU aligns it to 16 bytes
    if not is_canonical(moment, first):
        return Fault(SS, gate.ext, f"{which}: a stack at an address that is not canonical")
    return _pushed(moment, first, size, cpl, which) or first


def _pushed(moment: Moment, address: int, size: int, cpl: int, which: str) -> Fault | None:
    fault = page_fault(moment, address, size, Access.WRITE, is_user=cpl == 3)
    if fault is None:
        return None
    return replace(fault, reason=f"its frame cannot be pushed, {which}: {fault.reason}")


def _same_stack(moment: Moment, gate: _Gate, has_code: bool) -> int | Fault:
    size = gate.word * (4 if has_code else 3)
    mask = (1 << stack_width(moment.regs, moment.sregs)) - 1
    rsp = moment.regs.rsp - size & mask
    name = "ESP" if mask > 0xFFFF else "SP"
    which = f"{name} is {moment.regs.rsp & mask:#x}"
    fault = segment_fault(moment, "ss", rsp, size, Access.WRITE, is_stack=True)
    if fault is not None:
        return Fault(SS, gate.ext, f"its frame cannot be pushed, {which}: {fault.reason}")
    return _pushed(moment, moment.sregs.ss.base + rsp & 0xFFFF_FFFF, size, moment.cpl, which) or rsp


def _outer_stack(moment: Moment, gate: _Gate, cpl: int, has_code: bool) -> int | Fault | None:
    esp = _read_tss(moment, gate, TSS_ESP0 + 8 * cpl, 4, f"ESP{cpl}")
    selector = _read_tss(moment, gate, TSS_ESP0 + 8 * cpl + 4, 2, f"SS{cpl}")
    if not isinstance(esp, int) or not isinstance(selector, int):
        return esp if not isinstance(esp, int) else selector
    if not selector & 0xFFFC:
        return Fault(TS, gate.ext, f"SS{cpl} of the TSS is the null selector")
    segment = read_descriptor(moment, selector, external=bool(gate.ext))
    if not isinstance(segment, Segment):
        return None if segment is None else Fault(TS, segment.error_code, f"SS{cpl} of the TSS: {segment.reason}")
    fault = stack_fault(segment, selector, cpl, TS)
    if fault is not None:
        return replace(
            fault, error_code=(fault.error_code or 0) | gate.ext, reason=f"SS{cpl} of the TSS: {fault.reason}"
        )
    return _outer_frame(moment, gate, segment, esp, cpl, has_code)


def _outer_frame(moment: Moment, gate: _Gate, stack: Segment, esp: int, cpl: int, has_code: bool) -> int | Fault:
    size = gate.word * (6 if has_code else 5)
    rsp = esp - size & (0xFFFF_FFFF if stack.db else 0xFFFF)
    which = f"ESP{cpl} of the TSS is {esp:#x}"
    if not stack.type & 4 and rsp + size - 1 > stack.limit:
        return Fault(SS, selector_code(stack.selector) | gate.ext, f"{which}, beyond its stack segment's limit")
    return _pushed(moment, stack.base + rsp & 0xFFFF_FFFF, size, cpl, which) or rsp


def _read_tss(moment: Moment, gate: _Gate, offset: int, size: int, name: str) -> int | Fault | None:
    task = moment.sregs.tr
    code = selector_code(task.selector) | gate.ext
    if task.unusable or not task.present:
        return Fault(TS, code, f"{name} is wanted, and there is no TSS (TR is {task.selector:#x})")
    if offset + size - 1 > task.limit:
        return Fault(TS, code, f"the TSS ends at byte {task.limit:#x}, and {name} is at {offset:#x}")
    data = read_linear(moment, task.base + offset, size, f"{name} of the TSS at {task.base:#x}")
    return int.from_bytes(data, "little") if isinstance(data, bytes) else data
