"""Ring 3 a step at a time, where KVM shows no steps there: on hosts that let ring 3 run by itself.

KVM_GUESTDBG_SINGLESTEP sets RFLAGS.TF, but the #DB that comes of it goes to the guest on such a host, and not to us.
So the guest's IDT is taken away for the time of a step:

    TF, IDT with limit 0 --an instruction--> #DB, which nobody can handle --> KVM_EXIT_SHUTDOWN --> the IDT is put back

The state is that after the instruction then, and KVM_GET_VCPU_EVENTS tells which exception it was; one other than #DB
is the instruction's own, and it is let happen again, with the IDT, and a breakpoint at its handler. IRET to ring 3
takes TF away from KVM, and so is executed here. Hosts that show steps in ring 3 need none of this: a probe asks.

See: SDM volume 2, IRET; volume 3, section 6.14.3. Leaves out SYSRET and far returns to ring 3, whose first instruction
in ring 3 is not seen; returns from or to compatibility mode.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from pykvm.kvm import Debug, Exit, GuestDebugControl, Segment, Shutdown, Sregs, Vcpu
from pykvm.machine.runloop import RunLoop
from pykvm.memory import GuestMemory
from pykvm.x86 import (
    HardwareBreakpoint,
    Paging,
    Rflags,
    decode_descriptor,
    encode_breakpoints,
    linear_rip,
    read_linear,
)

__all__ = ["DB", "execute_iret", "step_in_ring_3"]

DB = 1
STEPPED = GuestDebugControl.ENABLE | GuestDebugControl.SINGLESTEP
STOPPED = GuestDebugControl.ENABLE | GuestDebugControl.USE_HW_BP
SLOT = 8  # bytes of each of the five values that IRETQ pops: RIP, CS, RFLAGS, RSP, SS
DESCRIPTOR = 8
KEPT_FLAGS = ~(Rflags.TF | Rflags.VM | Rflags.RF)
DATA_SEGMENTS = ("ds", "es", "fs", "gs")
CODE, CONFORMING, WRITABLE = 8, 4, 2  # bits of a segment's type


def step_in_ring_3(loop: RunLoop, vcpu: Vcpu, handler_of: Callable[[int], int | None]) -> tuple[Exit, int | None]:
    """Execute one instruction, and return its exit and the vector of an exception that it raised, or None.

    A step that is done, or that has come to the exception's handler, is a ``Debug`` exit.
    """
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    exit = _enter_without_idt(loop, vcpu, sregs)
    if not isinstance(exit, Shutdown):
        return exit, None
    vector = vcpu.get_vcpu_events().exception.nr
    if vector == DB:
        return _stop_at(linear_rip(vcpu.get_regs(), vcpu.get_sregs())), None
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)
    handler = handler_of(vector)
    if handler is None:
        vcpu.set_guest_debug(GuestDebugControl(0))
        return loop.enter_once(), None
    vcpu.set_guest_debug(STOPPED, encode_breakpoints([HardwareBreakpoint(handler)]))
    return loop.enter_once(), vector


def execute_iret(memory: GuestMemory, vcpu: Vcpu) -> bool:
    """Execute IRETQ from ring 0 to ring 3 in 64-bit code, the next instruction; return False if it is not that.

    Nothing has happened then: it stays in ring 0, or would raise an exception.
    """
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    values = [_read(memory, sregs, regs.rsp + SLOT * number, SLOT) for number in range(5)]
    if any(value is None for value in values):
        return False
    rip, cs, rflags, rsp, ss = (int.from_bytes(value or b"", "little") for value in values)
    code, stack = (_segment(memory, sregs, selector & 0xFFFF) for selector in (cs, ss))
    if code is None or stack is None or not _may_return(rip, code, stack):
        return False
    new = copy.deepcopy(sregs)
    new.cs, new.ss = code, stack
    for name in DATA_SEGMENTS:
        segment: Segment = getattr(new, name)
        if segment.dpl < code.dpl and not (segment.type & CODE and segment.type & CONFORMING):
            setattr(new, name, replace(segment, selector=0, unusable=1))
    regs.rip, regs.rsp = rip, rsp
    regs.rflags = (Rflags(rflags & 0x3F_FFFF) & KEPT_FLAGS).value | 2
    vcpu.set_sregs(new)
    vcpu.set_regs(regs)
    events = vcpu.get_vcpu_events()
    events.nmi.masked = 0
    vcpu.set_vcpu_events(events)
    return True


# ---- inside ----


def _enter_without_idt(loop: RunLoop, vcpu: Vcpu, sregs: Sregs) -> Exit:
    vcpu.set_sregs(replace(sregs, idt=replace(sregs.idt, limit=0)))
    vcpu.set_guest_debug(STEPPED)
    try:
        return loop.enter_once()
    finally:
        vcpu.set_sregs(replace(vcpu.get_sregs(), idt=sregs.idt))


def _stop_at(place: int) -> Debug:
    return Debug(DB, place, 0, 0)


def _may_return(rip: int, code: Segment, stack: Segment) -> bool:
    is_canonical = rip >> 47 in (0, (1 << 17) - 1)
    is_code = code.present and code.s and code.type & CODE and code.l and code.dpl == code.selector & 3 == 3
    is_stack = stack.present and stack.s and not stack.type & CODE and stack.type & WRITABLE and stack.dpl == 3
    return bool(is_canonical and is_code and is_stack and stack.selector & 3 == 3)


def _segment(memory: GuestMemory, sregs: Sregs, selector: int) -> Segment | None:
    index = selector & ~7
    if selector & 4 or index + DESCRIPTOR - 1 > sregs.gdt.limit:
        return None
    data = _read(memory, sregs, sregs.gdt.base + index, DESCRIPTOR)
    return None if data is None else decode_descriptor(int.from_bytes(data, "little"), selector)


def _read(memory: GuestMemory, sregs: Sregs, address: int, size: int) -> bytes | None:
    """Return ``size`` bytes at linear ``address``, None if they are not all there."""
    data = read_linear(memory, Paging.of(sregs), address, size)
    return data if len(data) == size else None
