"""``SyscallRepair``: SYSCALL on hosts that forget to leave ring 3.

There SYSCALL sets RIP, RCX and R11 as it should, but CS and SS stay those of ring 3, so that the first fetch in the
kernel is a page fault. A hardware breakpoint at the guest's page fault handler sees its frame:

    RSP -> error code, RIP = IA32_LSTAR, CS of ring 3, RFLAGS, RSP, SS

Such a frame no sound guest has, and the CPU gets what SYSCALL would have made of it. Any other page fault takes one
step with the breakpoint off, and then it is on again. See: Intel SDM volume 2, SYSCALL; volume 3, section 6.14.2 (stack
frame in 64-bit mode). Leaves out SYSENTER, INT n in ring 3, and guests that are being debugged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from pykvm.kvm import Debug, GuestDebugControl, Regs, Segment, Sregs, Vcpu
from pykvm.memory import GuestMemory
from pykvm.x86 import (
    Efer,
    HardwareBreakpoint,
    Paging,
    Rflags,
    code_segment,
    data_segment,
    encode_breakpoints,
    parse_msr,
    read_linear,
)

__all__ = ["SyscallRepair"]

STAR, LSTAR, FMASK = (parse_msr(name) for name in ("IA32_STAR", "IA32_LSTAR", "IA32_FMASK"))
PAGE_FAULT = 14
GATE_SIZE = 16
GATE_PRESENT = 1 << 47
RPL = 3  # the low bits of a selector
WATCH = GuestDebugControl.ENABLE | GuestDebugControl.USE_HW_BP
STEP = GuestDebugControl.ENABLE | GuestDebugControl.SINGLESTEP


class SyscallRepair:
    """Repairs SYSCALL on ``vcpus``; ``count`` hears of each, ``is_debugged`` says whose breakpoints are in use."""

    def __init__(
        self,
        vcpus: Sequence[Vcpu],
        memory: GuestMemory,
        is_debugged: Callable[[int], bool],
        count: Callable[[], None],
    ) -> None:
        self._vcpus = vcpus
        self._memory = memory
        self._is_debugged = is_debugged
        self._count = count
        self._handlers: dict[int, int] = {}  # by vCPU: where its breakpoint is
        self._stepping: set[int] = set()

    def arm(self, cpu: int) -> None:
        """Watch the page fault handler of ``cpu``, wherever that is by now, once there is a SYSCALL to repair."""
        if self._is_debugged(cpu) or cpu in self._stepping:
            return
        handler = self._find_handler(self._vcpus[cpu])
        if handler is not None and handler != self._handlers.get(cpu):
            self._handlers[cpu] = handler
            self._watch(cpu)

    def forget(self) -> None:
        """Take it that no breakpoint of these is in force."""
        self._handlers.clear()
        self._stepping.clear()

    def take(self, cpu: int, exit: Debug) -> bool:
        """Do what ``exit`` is about; return whether it was this breakpoint, or the step after it."""
        if self._is_debugged(cpu) or cpu not in self._handlers:
            return False
        if cpu in self._stepping:
            self._stepping.discard(cpu)
            self._watch(cpu)
            return True
        if exit.pc != self._handlers[cpu]:
            return False
        if not self._repair(self._vcpus[cpu]):
            self._stepping.add(cpu)
            self._vcpus[cpu].set_guest_debug(STEP)
        return True

    # ---- inside ----

    def _watch(self, cpu: int) -> None:
        self._vcpus[cpu].set_guest_debug(WATCH, encode_breakpoints([HardwareBreakpoint(self._handlers[cpu])]))

    def _find_handler(self, vcpu: Vcpu) -> int | None:
        sregs = vcpu.get_sregs()
        if not sregs.efer & Efer.SCE.value or not sregs.efer & Efer.LMA.value:
            return None
        if sregs.idt.limit < (PAGE_FAULT + 1) * GATE_SIZE - 1:
            return None
        gate = self._read(sregs, sregs.idt.base + PAGE_FAULT * GATE_SIZE, 2)
        if gate is None or not gate[0] & GATE_PRESENT:
            return None
        return gate[0] & 0xFFFF | gate[0] >> 32 & 0xFFFF_0000 | (gate[1] & 0xFFFF_FFFF) << 32

    def _repair(self, vcpu: Vcpu) -> bool:
        """Do what SYSCALL should have done if this page fault is its doing; return whether it was."""
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        frame = self._read(sregs, regs.rsp, 6)
        star, target, mask = (entry.data for entry in vcpu.get_msrs([STAR, LSTAR, FMASK]))
        if frame is None:
            return False
        _, rip, cs, rflags, rsp, _ = frame
        if rip != target or cs & RPL != RPL:
            return False
        _enter_kernel(sregs, star >> 32 & 0xFFFF)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(_with_flags(regs, rip, rsp, rflags, mask))
        self._count()
        return True

    def _read(self, sregs: Sregs, address: int, count: int) -> list[int] | None:
        """Return ``count`` quadwords at linear ``address``, None if they cannot be read."""
        data = read_linear(self._memory, Paging.of(sregs), address, 8 * count)
        return list(struct.unpack(f"<{count}Q", data)) if len(data) == 8 * count else None


def _enter_kernel(sregs: Sregs, selector: int) -> None:
    """Load CS and SS as SYSCALL does: flat ones of ring 0, whatever the GDT says."""
    sregs.cs = code_segment(64, selector=selector & ~RPL)
    stack: Segment = data_segment(selector=(selector & ~RPL) + 8)
    sregs.ss = stack


def _with_flags(regs: Regs, rip: int, rsp: int, rflags: int, mask: int) -> Regs:
    regs.rip, regs.rsp, regs.r11 = rip, rsp, rflags
    regs.rflags = rflags & ~mask & ~Rflags.RF.value | 2  # bit 1 is always set
    return regs
