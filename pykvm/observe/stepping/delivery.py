"""Whether a step was not an instruction but an interrupt or an exception that the CPU took, and which.

KVM does not say so. What tells it is where the CPU stands then, and what it has pushed:

    stack    SS:RSP ->  RIP of the instruction, CS, RFLAGS    the frame, perhaps with more above it
    IDT      a gate, or the IVT an entry, whose handler the CPU stands at, or one instruction behind

See: SDM volume 3, section 6.12 (frames), 6.14 (64-bit mode), 21.1.4 (real mode). Leaves out task gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from pykvm.kvm import Regs, Sregs
from pykvm.observe.stepping.reading import Next, Reader
from pykvm.observe.stepping.step import Event, EventKind
from pykvm.x86 import Cr0, Efer, cpu_mode, decode_descriptor, linear_rip

__all__ = ["Delivery", "handler_of", "pushed_flags", "return_address", "taken"]

VECTORS = 256
FRAME_SEARCH = 128  # bytes above RSP: a handler's first instruction may have pushed something on top of the frame
INT, INT3, INTO = 0xCD, 0xCC, 0xCE
IRETS = {"iretw": 2, "iretl": 4, "iretd": 4, "iret": 4, "iretq": 8}
UD2 = b"\x0f\x0b"
UNDEFINED, PAGE_FAULT, FIRST_INTERRUPT = 6, 14, 32


@dataclass(frozen=True, slots=True)
class Delivery:
    """The CPU took ``event``, and its ``handler`` begins at a linear address; ``is_there``: it stands right there."""

    event: Event
    handler: int
    is_there: bool


def handler_of(reader: Reader, sregs: Sregs, vector: int) -> int | None:
    """Return the linear address of the handler of ``vector``, by the IDT or IVT; None if it has none."""
    if not sregs.cr0 & Cr0.PE.value:
        entry = reader.read(sregs.idt.base + 4 * vector, 4, sregs)
        return _real_address(entry) if len(entry) == 4 and 4 * vector + 3 <= sregs.idt.limit else None
    size = 16 if sregs.efer & Efer.LMA.value else 8
    if size * vector + size - 1 > sregs.idt.limit:
        return None
    return _gate_address(reader, sregs, reader.read(sregs.idt.base + size * vector, size, sregs), size)


def taken(
    reader: Reader, now: Next, before: tuple[Regs, Sregs], after: tuple[Regs, Sregs], last: int
) -> Delivery | None:
    """Return what the CPU took instead of, or by, the instruction ``now``, going from ``before`` to ``after``.

    ``last`` is the vector of the exception that KVM handed to the CPU last, as far as it knows.
    """
    place = linear_rip(*after)
    if place in now.successors and not _is_odd(now, before[0], after[0]):
        return None
    if _find_frame(reader, now, before, after) is None:
        return None
    sregs = after[1]
    found = [(vector, handler) for vector, handler in _handlers(reader, sregs) if _is_at(reader, handler, after)]
    if not found:
        return None
    handler = next((handler for _, handler in found if handler == place), found[0][1])
    vector = _choose([vector for vector, other in found if other == handler], now, before, after, last)
    return Delivery(Event(_kind(vector, now, before), vector), handler, handler == place)


def pushed_flags(
    reader: Reader, now: Next, before: tuple[Regs, Sregs], after: tuple[Regs, Sregs], *, is_event: bool
) -> int | None:
    """Return the linear address of the RFLAGS that the CPU has just pushed, by PUSHF or by going to a handler.

    None if it has not pushed any.
    """
    regs, sregs = after
    base = 0 if cpu_mode(sregs, regs).width == 64 else sregs.ss.base
    if not is_event:
        is_pushf = now.instruction is not None and now.instruction.mnemonic.startswith("pushf")
        return base + regs.rsp if is_pushf else None
    at = _find_frame(reader, now, before, after)
    return None if at is None else base + regs.rsp + at + 2 * _frame_slot(sregs)


def return_address(reader: Reader, now: Next, registers: tuple[Regs, Sregs]) -> int | None:
    """Return the linear address that ``now``, an IRET of ring 0, leads to; None if it is none, or cannot be read."""
    regs, sregs = registers
    size = IRETS.get(now.instruction.mnemonic if now.instruction else "")
    mode = cpu_mode(sregs, regs)
    if size is None or mode.ring:
        return None
    frame = reader.read((0 if mode.width == 64 else sregs.ss.base) + regs.rsp, 2 * size, sregs)
    if len(frame) < 2 * size:
        return None
    rip, selector = int.from_bytes(frame[:size], "little"), int.from_bytes(frame[size : size + 2], "little")
    if not sregs.cr0 & Cr0.PE.value:
        return (selector << 4) + rip
    return _linear(reader, sregs, selector, rip)


# ---- the frame ----


def _is_odd(now: Next, before: Regs, after: Regs) -> bool:
    """Return whether RSP has moved by an instruction that does not move it."""
    if before.rsp == after.rsp or now.instruction is None:
        return now.instruction is None
    text = f"{now.instruction.mnemonic} {now.instruction.operands}"
    return not text.startswith(("push", "pop", "call", "ret", "enter", "leave", "iret", "lret", "lcall")) and (
        "sp" not in text
    )


def _find_frame(reader: Reader, now: Next, before: tuple[Regs, Sregs], after: tuple[Regs, Sregs]) -> int | None:
    """Return how far above RSP the stack holds where the CPU was, as the CPU pushes it; None if it does not."""
    regs, sregs = after
    size = _frame_slot(sregs)
    base = 0 if cpu_mode(sregs, regs).width == 64 else sregs.ss.base
    stack = reader.read(base + regs.rsp, FRAME_SEARCH, sregs)
    length = len(now.instruction.bytes) if now.instruction else 0
    rips = {before[0].rip, before[0].rip + length} if _is_software(now) else {before[0].rip}
    words = [int.from_bytes(stack[at : at + size], "little") for at in range(0, len(stack) - size + 1, size)]
    mask = (1 << 8 * size) - 1
    wanted = [(rip & mask, before[1].cs.selector) for rip in rips]
    found = (number for number, (rip, cs) in enumerate(pairwise(words)) if (rip, cs & 0xFFFF) in wanted)
    first = next(found, None)
    return None if first is None else first * size


def _frame_slot(sregs: Sregs) -> int:
    if not sregs.cr0 & Cr0.PE.value:
        return 2
    return 8 if sregs.efer & Efer.LMA.value else 4


def _is_software(now: Next) -> bool:
    return now.instruction is not None and now.instruction.bytes[0] in (INT, INT3, INTO)


# ---- the handlers ----


def _handlers(reader: Reader, sregs: Sregs) -> Iterator[tuple[int, int]]:
    for vector in range(VECTORS):
        handler = handler_of(reader, sregs, vector)
        if handler is not None:
            yield vector, handler


def _is_at(reader: Reader, handler: int, after: tuple[Regs, Sregs]) -> bool:
    """Return whether the CPU stands at ``handler``, or has executed its first instruction."""
    place = linear_rip(*after)
    if place == handler:
        return True
    if not handler - 1024 < place < handler + 1024:  # the far end of a short jump, and more: most are ruled out here
        first = reader.at(handler, cpu_mode(after[1], after[0]).width, after[1])
        return first.instruction is not None and place in first.successors and len(first.successors) > 1
    return place in reader.at(handler, cpu_mode(after[1], after[0]).width, after[1]).successors


def _choose(
    vectors: list[int], now: Next, before: tuple[Regs, Sregs], after: tuple[Regs, Sregs], last: int
) -> int | None:
    """Return which of ``vectors``, which have the same handler, it was; None if nobody can tell."""
    if len(vectors) == 1:
        return vectors[0]
    code = now.instruction.bytes if now.instruction else b""
    likely = []
    if code[:1] == bytes([INT]):
        likely.append(code[1])
    if code[:1] == bytes([INT3]):
        likely.append(3)
    if code == UD2:
        likely.append(UNDEFINED)
    if before[1].cr2 != after[1].cr2:
        likely.append(PAGE_FAULT)
    likely.append(last)
    return next((vector for vector in likely if vector in vectors), None)


def _kind(vector: int | None, now: Next, before: tuple[Regs, Sregs]) -> EventKind:
    if vector is None or vector < FIRST_INTERRUPT or _is_software(now):
        is_nmi = vector == 2 and not _is_software(now)
        return EventKind.INTERRUPT if is_nmi else EventKind.EXCEPTION
    return EventKind.INTERRUPT


def _real_address(entry: bytes) -> int:
    offset, segment = int.from_bytes(entry[:2], "little"), int.from_bytes(entry[2:], "little")
    return (segment << 4) + offset


#   63            48 47  46-45 44 43-40  39-32 31             16 15             0
#  | offset 31:16   | P | DPL | 0 | type | IST | code selector  | offset 15:0    |    and 64-bit mode has offset 63:32
def _gate_address(reader: Reader, sregs: Sregs, gate: bytes, size: int) -> int | None:
    if len(gate) < size or not gate[5] & 0x80:
        return None
    offset = int.from_bytes(gate[0:2] + gate[6:8] + (gate[8:12] if size == 16 else b""), "little")
    if size == 16:
        return offset
    return _linear(reader, sregs, int.from_bytes(gate[2:4], "little"), offset)


def _linear(reader: Reader, sregs: Sregs, selector: int, offset: int) -> int | None:
    """Return the linear address of ``offset`` in the code segment ``selector``; None if that cannot be read."""
    data = reader.read(sregs.gdt.base + (selector & ~7), 8, sregs)
    if len(data) < 8:
        return None
    segment = decode_descriptor(int.from_bytes(data, "little"))
    return offset if segment.l else (segment.base + offset) % (1 << 32)
