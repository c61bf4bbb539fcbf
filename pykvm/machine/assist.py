"""``Assist``: finishes in user space an instruction that KVM had to emulate and could not, and the guest goes on.

Some hosts run ring 0 in KVM's instruction emulator, which lacks x87, SSE and more; any host's KVM emulates what touches
device memory. An instruction that it does not know is a KVM_EXIT_INTERNAL_ERROR, with the CPU as before it. Then

    int3, int n       the vector is injected, RIP past the instruction: the guest sees what the CPU would have done
    stac, clac        a flag changes
    xgetbv, xsetbv    KVM_GET_XCRS, KVM_SET_XCRS
    the others        one step in Unicorn, on the same memory and with the same registers; an exception it takes there
                      is injected here

Each repair is counted. What Unicorn cannot do either is refused, in words. See: Documentation/virt/kvm/api.rst,
KVM_EXIT_INTERNAL_ERROR and KVM_SET_VCPU_EVENTS; Intel SDM volume 1, section 10.5 (FXSAVE). Leaves out ring 3, which
such hosts run on the CPU itself, but for SYSCALL: see ``syscalls``. Segments with a base outside 64-bit code, and AVX
registers, are refused; which exceptions x87 would have flagged (inexact results) Unicorn does not say.
"""

from __future__ import annotations

import ctypes
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pykvm.errors import ConfigurationError, PykvmError
from pykvm.kvm import Debug, InternalError, InternalErrorSuberror, Regs, Sregs, Vcpu, Xcr
from pykvm.machine.debugger import Debugger
from pykvm.machine.stop import Crashed, Stop
from pykvm.machine.syscalls import SyscallRepair
from pykvm.memory import GuestMemory, RegionKind
from pykvm.units import Gpa, align_down
from pykvm.x86 import (
    LONGEST_INSTRUCTION,
    Cr4,
    Efer,
    Instruction,
    Paging,
    Rflags,
    cpu_mode,
    instruction_at,
    linear_rip,
    read_linear,
    walk,
)
from pykvm.x86.operands import Access, memory_accesses

if TYPE_CHECKING:
    from unicorn.unicorn_py3.unicorn import Uc

__all__ = ["Assist", "require_unicorn"]

INT3, INT = 0xCC, 0xCD
DIVIDE_ERROR, NO_DEVICE, GENERAL_PROTECTION, PAGE_FAULT, X87_ERROR, SIMD_ERROR = 0, 7, 13, 14, 16, 19
WITH_ERROR_CODE = (GENERAL_PROTECTION, PAGE_FAULT)
TAKEN = (DIVIDE_ERROR, NO_DEVICE, GENERAL_PROTECTION, PAGE_FAULT, X87_ERROR, SIMD_ERROR)  # exceptions a step may raise
PRESENT, WRITE = 1, 2  # of a page fault's error code
MOST_KEPT = 4096  # places whose translation is kept

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
# Instructions that touch neither x87 nor SSE registers: moving those to and fro takes most of the time.
GENERAL_ONLY = (
    "popcnt",
    "cmpxchg16b",
    "cmpxchg8b",
    "crc32",
    "rdrand",
    "rdseed",
    "clwb",
    "clflushopt",
    "lfence",
    "mfence",
)
# Of an XSAVE area, the first 512 bytes are FXSAVE's; then comes XSTATE_BV, which says what of them counts.
XSTATE_BV, X87, SSE = 512, 1 << 0, 1 << 1
INITIAL_FCW, INITIAL_MXCSR = 0x37F, 0x1F80


class Refused(Exception):
    """Why an instruction cannot be finished here either."""


def require_unicorn() -> None:
    """Raise ConfigurationError unless Unicorn is there: it is an extra."""
    try:
        import unicorn  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "assist needs Unicorn: pip install 'pykvm-hypervisor[assist]', or do without assist"
        ) from None


class Assist:
    """Finishes instructions of ``vcpus``, which have ``memory``. ``repairs`` counts them by mnemonic.

    ``refusal`` is why the last one that was not finished was not; ``debugger`` is whose Debug exits the others are.
    """

    def __init__(self, vcpus: Sequence[Vcpu], memory: GuestMemory, debugger: Debugger) -> None:
        self._vcpus = vcpus
        self._memory = memory
        self._steppers: dict[int, _Stepper] = {}
        self.repairs: Counter[str] = Counter()
        self.refusal = ""
        self._debugger = debugger
        self._syscalls = SyscallRepair(vcpus, memory, debugger.is_watching, self._count_syscall)

    def finish(self, cpu: int, exit: InternalError) -> bool:
        """Finish the instruction that ``exit`` of ``cpu`` is about; return whether the guest can go on."""
        if exit.suberror != InternalErrorSuberror.EMULATION:
            return False
        try:
            name = self._finish(self._vcpus[cpu])
        except Refused as refusal:
            self.refusal = str(refusal)
            return False
        self.repairs[name] += 1
        self.look(cpu)
        return True

    def remark(self, stop: Stop) -> str:
        """Return the line of a crash report that says why the instruction was not finished; else an empty string."""
        return f"\n  assist         {self.refusal}" if isinstance(stop, Crashed) and self.refusal else ""

    def close(self) -> None:
        """Let the memory go; does nothing the second time."""
        while self._steppers:
            self._steppers.popitem()[1].close()

    def on_debug(self, cpu: int, exit: Debug) -> Stop | None:
        """Take a Debug exit for SYSCALL's repair, or else have the debugger say why it ends the run."""
        return None if self._syscalls.take(cpu, exit) else self._debugger.on_debug(cpu, exit)

    def begin(self) -> None:
        """Take note that a run begins: since the last one somebody else may have had the breakpoints."""
        self._syscalls.forget()
        for vcpu in self._vcpus:
            self.look(vcpu.id)

    def look(self, cpu: int) -> None:
        """Look whether there is a SYSCALL to repair by now; ``cpu`` is not in KVM_RUN."""
        self._syscalls.arm(cpu)

    # ---- inside ----

    def _count_syscall(self) -> None:
        self.repairs["syscall"] += 1

    def _finish(self, vcpu: Vcpu) -> str:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        mode = cpu_mode(sregs, regs)
        if mode.ring != 0:
            raise Refused(f"assist finishes instructions of ring 0, and this is ring {mode.ring}")
        gpa, code = self._fetch(regs, sregs)
        instruction = instruction_at(code, linear_rip(regs, sregs), mode.width)
        if instruction is None or instruction.mnemonic == ".byte":
            raise Refused("no instruction can be read at RIP")
        by_hand = _BY_HAND.get(instruction.mnemonic)
        if instruction.bytes[0] in (INT3, INT):
            _interrupt(vcpu, regs, instruction)
        elif by_hand is not None:
            by_hand(vcpu, regs)
            _skip(vcpu, regs, instruction)
        else:
            self._stepper(mode.width).step(vcpu, regs, sregs, instruction, gpa)
        return instruction.mnemonic

    def _fetch(self, regs: Regs, sregs: Sregs) -> tuple[Gpa, bytes]:
        """Return where the code at RIP is, and up to 15 bytes of it."""
        paging, rip = Paging.of(sregs), linear_rip(regs, sregs)
        code, gpa = read_linear(self._memory, paging, rip, LONGEST_INSTRUCTION), walk(self._memory, paging, rip).gpa
        if gpa is None or not code:
            raise Refused("there is no code at RIP")
        return gpa, code

    def _stepper(self, width: int) -> _Stepper:
        if width not in self._steppers:
            self._steppers[width] = _Stepper(self._memory, width)
        return self._steppers[width]


# ---- by hand ----


def _skip(vcpu: Vcpu, regs: Regs, instruction: Instruction) -> None:
    regs.rip += len(instruction.bytes)
    vcpu.set_regs(regs)


def _interrupt(vcpu: Vcpu, regs: Regs, instruction: Instruction) -> None:
    # As an external interrupt: for a software interrupt KVM would skip the instruction once more.
    _skip(vcpu, regs, instruction)
    events = vcpu.get_vcpu_events()
    events.interrupt.injected, events.interrupt.soft = 1, 0
    events.interrupt.nr = 3 if instruction.bytes[0] == INT3 else instruction.bytes[1]
    vcpu.set_vcpu_events(events)


def _stac(vcpu: Vcpu, regs: Regs) -> None:
    regs.rflags |= Rflags.AC.value


def _clac(vcpu: Vcpu, regs: Regs) -> None:
    regs.rflags &= ~Rflags.AC.value


def _xgetbv(vcpu: Vcpu, regs: Regs) -> None:
    xcrs = {xcr.xcr: xcr.value for xcr in vcpu.get_xcrs()}
    number = regs.rcx & 0xFFFF_FFFF
    if number not in xcrs or not vcpu.get_sregs().cr4 & Cr4.OSXSAVE.value:
        raise Refused(f"there is no XCR{number}, or CR4.OSXSAVE is 0: the CPU would raise an exception")
    regs.rax, regs.rdx = xcrs[number] & 0xFFFF_FFFF, xcrs[number] >> 32


def _xsetbv(vcpu: Vcpu, regs: Regs) -> None:
    value = (regs.rdx & 0xFFFF_FFFF) << 32 | regs.rax & 0xFFFF_FFFF
    try:
        vcpu.set_xcrs([Xcr(regs.rcx & 0xFFFF_FFFF, value)])
    except PykvmError as error:
        raise Refused(f"KVM does not take the value {value:#x}: {error}") from None


_BY_HAND: dict[str, Callable[[Vcpu, Regs], None]] = {
    "stac": _stac,
    "clac": _clac,
    "xgetbv": _xgetbv,
    "xsetbv": _xsetbv,
}


# ---- in Unicorn ----


class _Stepper:
    """Unicorn in code of ``width`` bits, with the RAM of ``memory`` mapped, not copied."""

    def __init__(self, memory: GuestMemory, width: int) -> None:
        from unicorn import unicorn_const, x86_const
        from unicorn.unicorn_py3.unicorn import Uc, UcError

        modes = {16: unicorn_const.UC_MODE_16, 32: unicorn_const.UC_MODE_32, 64: unicorn_const.UC_MODE_64}
        self._width = width
        self._memory = memory
        self._uc = Uc(unicorn_const.UC_ARCH_X86, modes[width])
        self._error = UcError
        self._const = x86_const
        self._held = [
            self._map(region.gpa, region.size, region.buffer)
            for region in memory.regions
            if region.kind is not RegionKind.ROM
        ]
        self._known: dict[Gpa, bytes] = {}
        self._exception: int | None = None
        self._written: list[int] = []
        self._uc.hook_add(unicorn_const.UC_HOOK_INTR, self._on_exception)
        self._uc.hook_add(unicorn_const.UC_HOOK_MEM_WRITE, self._on_write)

    def step(self, vcpu: Vcpu, regs: Regs, sregs: Sregs, instruction: Instruction, gpa: Gpa) -> None:
        """Execute ``instruction``, at ``gpa``, and give ``vcpu`` what comes of it. Raises: Refused."""
        self._check(sregs)
        area = None if instruction.mnemonic in GENERAL_ONLY else bytearray(vcpu.get_xsave())
        self._forget(gpa, instruction.bytes)
        self._put(regs, sregs)
        if area is not None:
            self._put_fpu(area)
        self._exception, self._written = None, []
        try:
            self._uc.emu_start(instruction.address, 0, count=1)
        except self._error as error:
            raise Refused(f"Unicorn cannot execute {instruction.mnemonic} here: {error}") from None
        self._note_writes(sregs)
        if self._exception is not None:
            self._inject(vcpu, sregs, instruction, self._exception)
            return
        self._take(regs)
        vcpu.set_regs(regs)
        if area is not None:
            self._take_fpu(area)
            vcpu.set_xsave(bytes(area))

    def close(self) -> None:
        """Let the memory go."""
        del self._uc
        for buffer in self._held:
            buffer.release()

    # ---- registers ----

    def _check(self, sregs: Sregs) -> None:
        if self._width != 64 and (sregs.cs.base or sregs.ds.base or sregs.ss.base):
            raise Refused("assist knows segments with a base only in 64-bit code")

    def _put(self, regs: Regs, sregs: Sregs) -> None:
        write = self._uc.reg_write
        if self._width != 16:
            write(self._id("CR4"), sregs.cr4)
            write(self._id("CR3"), sregs.cr3)  # which flushes its TLB
            write(self._id("MSR"), (0xC000_0080, sregs.efer & ~Efer.SCE.value))
            write(self._id("CR0"), sregs.cr0)
        if self._width == 64:
            write(self._id("FS_BASE"), sregs.fs.base)
            write(self._id("GS_BASE"), sregs.gs.base)
        for name in self._general():
            write(self._id(self._short(name)), getattr(regs, name))
        write(self._id("EFLAGS"), regs.rflags)

    def _take(self, regs: Regs) -> None:
        read = self._uc.reg_read
        for name in self._general():
            setattr(regs, name, read(self._id(self._short(name))))
        regs.rip = read(self._id(self._short("rip")))
        regs.rflags = read(self._id("EFLAGS"))

    def _general(self) -> tuple[str, ...]:
        return GENERAL if self._width == 64 else GENERAL[:8]

    def _short(self, name: str) -> str:
        return name.upper() if self._width == 64 else f"E{name[1:].upper()}"

    def _id(self, name: str) -> int:
        return int(getattr(self._const, f"UC_X86_REG_{name}"))

    def _put_fpu(self, area: bytearray) -> None:
        write, counts = self._uc.reg_write, int.from_bytes(area[XSTATE_BV : XSTATE_BV + 8], "little")
        fcw, fsw, tags = struct.unpack_from("<HHB", area, 0) if counts & X87 else (INITIAL_FCW, 0, 0)
        write(self._id("FPCW"), fcw)
        write(self._id("FPSW"), fsw)
        write(self._id("FPTAG"), _full_tags(tags))
        for number in range(8):
            low, high = struct.unpack_from("<QH", area, 32 + 16 * number) if counts & X87 else (0, 0)
            write(self._id(f"FP{_physical(fsw, number)}"), (low, high))
        write(self._id("MXCSR"), struct.unpack_from("<I", area, 24)[0] if counts & SSE else INITIAL_MXCSR)
        for number in range(16 if self._width == 64 else 8):
            start = 160 + 16 * number
            value = int.from_bytes(area[start : start + 16], "little") if counts & SSE else 0
            write(self._id(f"XMM{number}"), value)

    def _take_fpu(self, area: bytearray) -> None:
        read = self._uc.reg_read
        tags = sum((read(self._id("FPTAG")) >> 2 * number & 3 != 3) << number for number in range(8))
        fsw = read(self._id("FPSW"))
        struct.pack_into("<HHB", area, 0, read(self._id("FPCW")), fsw, tags)
        for number in range(8):
            struct.pack_into("<QH", area, 32 + 16 * number, *read(self._id(f"FP{_physical(fsw, number)}")))
        struct.pack_into("<I", area, 24, read(self._id("MXCSR")))
        for number in range(16 if self._width == 64 else 8):
            start = 160 + 16 * number
            area[start : start + 16] = read(self._id(f"XMM{number}")).to_bytes(16, "little")
        area[XSTATE_BV] |= X87 | SSE

    # ---- memory ----

    def _map(self, gpa: Gpa, size: int, buffer: memoryview) -> memoryview:
        # SAFETY: the memory belongs to the GuestMemory, which outlives the machine; the view keeps it mapped.
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._uc.mem_map_ptr(gpa, size, 7, address)
        return buffer

    def _forget(self, gpa: Gpa, code: bytes) -> None:
        """Drop what Unicorn translated at ``gpa`` unless it was the same ``code``: the guest may have changed it."""
        if self._known.get(gpa) != code:
            self._uc.ctl_flush_tb()
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[gpa] = code

    def _on_write(self, uc: Uc, access: int, address: int, size: int, value: int, data: object) -> None:
        self._written += [address, address + size - 1]

    def _note_writes(self, sregs: Sregs) -> None:
        # Guest memory's own write puts the page into the logs of those who keep track.
        paging = Paging.of(sregs)
        for page in {align_down(address) for address in self._written}:
            gpa = walk(self._memory, paging, page).gpa
            if gpa is not None and self._memory.find(gpa) is not None:
                self._memory.write(gpa, self._memory.read(gpa, 1))

    # ---- exceptions ----

    def _on_exception(self, uc: Uc, number: int, data: object) -> None:
        self._exception = number
        uc.emu_stop()

    def _inject(self, vcpu: Vcpu, sregs: Sregs, instruction: Instruction, vector: int) -> None:
        if vector not in TAKEN:
            raise Refused(f"{instruction.mnemonic} raises exception {vector} in Unicorn")
        regs = vcpu.get_regs()
        if vector == PAGE_FAULT:
            sregs.cr2 = self._uc.reg_read(self._id("CR2"))
            vcpu.set_sregs(sregs)
        events = vcpu.get_vcpu_events()
        events.exception.injected, events.exception.nr = 1, vector
        events.exception.has_error_code = int(vector in WITH_ERROR_CODE)
        events.exception.error_code = self._error_code(instruction, regs, sregs) if vector == PAGE_FAULT else 0
        vcpu.set_vcpu_events(events)

    def _error_code(self, instruction: Instruction, regs: Regs, sregs: Sregs) -> int:
        """Return a page fault's error code, in ring 0."""
        found = walk(self._memory, Paging.of(sregs), sregs.cr2)
        writes = any(
            Access.WRITE in one.access and one.address <= sregs.cr2 < one.address + one.size
            for one in memory_accesses(instruction.bytes, regs, sregs)
        )
        return (PRESENT if found.gpa is not None else 0) | (WRITE if writes else 0)


def _physical(fsw: int, number: int) -> int:
    """Return which x87 register ST(``number``) is: the status word has the top of the stack in bits 13 to 11."""
    return (fsw >> 11) + number & 7


def _full_tags(abridged: int) -> int:
    """Return the x87 tag word, two bits a register (3: empty), for FXSAVE's one bit each."""
    return sum((0 if abridged >> number & 1 else 3) << 2 * number for number in range(8))
