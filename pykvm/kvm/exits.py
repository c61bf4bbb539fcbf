"""Why KVM_RUN returned: one frozen dataclass per ``KVM_EXIT_*`` that x86 can produce, and their decoder.

``decode`` reads ``struct kvm_run``, the pages a vCPU shares with the kernel, once; the values it returns own their
data and stay true when the guest runs on. Match on them:

    match vcpu.run():
        case IoOut(port=0x3F8, data=data): ...
        case Hlt(): ...

See: Documentation/virt/kvm/api.rst, section 5, "The kvm_run structure". Leaves out: the exits of Hyper-V and Xen
emulation, which only guests see that were told to run on those; they arrive as ``Unknown``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pykvm._shim import ffi, lib
from pykvm.errors import MalformedExitError
from pykvm.kvm.constants import ExitReason, InternalErrorSuberror
from pykvm.markup import record
from pykvm.units import Gpa

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = [
    "BusLock",
    "Debug",
    "DirtyRingFull",
    "ExceptionExit",
    "Exit",
    "FailEntry",
    "Hlt",
    "Hypercall",
    "InternalError",
    "Intr",
    "IoIn",
    "IoOut",
    "IoapicEoi",
    "IrqWindowOpen",
    "MemoryFault",
    "MmioRead",
    "MmioWrite",
    "Nmi",
    "Notify",
    "Rdmsr",
    "ReadExit",
    "SetTpr",
    "Shutdown",
    "SystemEvent",
    "TprAccess",
    "Unknown",
    "Wrmsr",
    "decode",
]


class _Exit:
    # What notebooks show of every exit: its fields, and the kernel's name for it.
    __slots__ = ()
    reason: ClassVar[ExitReason]

    def _repr_html_(self) -> str:
        return record(self, f"{type(self).__name__} (KVM_EXIT_{self.reason.name})")


@dataclass(frozen=True, slots=True)
class IoIn(_Exit):
    """KVM_EXIT_IO, direction in: the guest waits for ``size * count`` bytes from ``port``.

    ``size`` is 1, 2 or 4 bytes; ``count`` is above 1 for string instructions (``rep ins``), every item from the same
    port. Answer it with ``Vcpu.complete``.
    """

    reason: ClassVar[ExitReason] = ExitReason.IO
    port: int
    size: int = 1
    count: int = 1


@dataclass(frozen=True, slots=True)
class IoOut(_Exit):
    """KVM_EXIT_IO, direction out: the guest wrote ``count`` items of ``size`` bytes, little-endian, to ``port``.

    ``data`` has ``size * count`` bytes. KVM gives every field; the defaults are for tests that write exits down.
    """

    reason: ClassVar[ExitReason] = ExitReason.IO
    port: int
    size: int = 1
    count: int = 1
    data: bytes = b"\0"


@dataclass(frozen=True, slots=True)
class MmioRead(_Exit):
    """KVM_EXIT_MMIO, a read of ``size`` bytes (1 to 8) at ``address``, where no memory slot is."""

    reason: ClassVar[ExitReason] = ExitReason.MMIO
    address: Gpa
    size: int


@dataclass(frozen=True, slots=True)
class MmioWrite(_Exit):
    """KVM_EXIT_MMIO, a write of 1 to 8 bytes, little-endian, where no memory slot is or a read-only one."""

    reason: ClassVar[ExitReason] = ExitReason.MMIO
    address: Gpa
    data: bytes

    @property
    def size(self) -> int:
        """Return the number of bytes written."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Hlt(_Exit):
    """KVM_EXIT_HLT: the guest executed HLT, and there is no interrupt controller in the kernel to wait with."""

    reason: ClassVar[ExitReason] = ExitReason.HLT


@dataclass(frozen=True, slots=True)
class Shutdown(_Exit):
    """KVM_EXIT_SHUTDOWN: a triple fault; a PC would reset (SDM volume 3, section 6.15, "Double Fault")."""

    reason: ClassVar[ExitReason] = ExitReason.SHUTDOWN


@dataclass(frozen=True, slots=True)
class FailEntry(_Exit):
    """KVM_EXIT_FAIL_ENTRY: the processor refused the guest state.

    ``hardware_entry_failure_reason`` is VT-x's exit reason with bit 31 set (SDM volume 3, section 27.8), or AMD-V's
    exit code; ``cpu`` the host processor.
    """

    reason: ClassVar[ExitReason] = ExitReason.FAIL_ENTRY
    hardware_entry_failure_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class InternalError(_Exit):
    """KVM_EXIT_INTERNAL_ERROR: KVM itself cannot go on.

    ``suberror`` is a KVM_INTERNAL_ERROR_*, ``data`` the kernel's 64-bit words. For suberror EMULATION, ``flags`` and
    ``instruction`` are the words' meaning: the bytes at RIP that KVM's emulator does not know (up to 15).
    """

    reason: ClassVar[ExitReason] = ExitReason.INTERNAL_ERROR
    suberror: int
    data: tuple[int, ...] = ()
    flags: int = 0
    instruction: bytes = b""


@dataclass(frozen=True, slots=True)
class Debug(_Exit):
    """KVM_EXIT_DEBUG: a breakpoint, watchpoint or step of KVM_SET_GUEST_DEBUG; ``pc`` is a linear address."""

    reason: ClassVar[ExitReason] = ExitReason.DEBUG
    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class ExceptionExit(_Exit):
    """KVM_EXIT_EXCEPTION: an exception came to user space (not used by today's x86 kernels)."""

    reason: ClassVar[ExitReason] = ExitReason.EXCEPTION
    exception: int
    error_code: int


@dataclass(frozen=True, slots=True)
class Hypercall(_Exit):
    """KVM_EXIT_HYPERCALL: the guest called ``nr`` with six ``args``; answer with 8 bytes, its RAX."""

    reason: ClassVar[ExitReason] = ExitReason.HYPERCALL
    nr: int
    args: tuple[int, ...]
    longmode: int


@dataclass(frozen=True, slots=True)
class IrqWindowOpen(_Exit):
    """KVM_EXIT_IRQ_WINDOW_OPEN: the guest can take an interrupt now, as ``request_interrupt_window`` asked."""

    reason: ClassVar[ExitReason] = ExitReason.IRQ_WINDOW_OPEN


@dataclass(frozen=True, slots=True)
class SetTpr(_Exit):
    """KVM_EXIT_SET_TPR: the guest lowered CR8, its task priority."""

    reason: ClassVar[ExitReason] = ExitReason.SET_TPR


@dataclass(frozen=True, slots=True)
class TprAccess(_Exit):
    """KVM_EXIT_TPR_ACCESS: the instruction at ``rip`` accessed the local APIC's task priority."""

    reason: ClassVar[ExitReason] = ExitReason.TPR_ACCESS
    rip: int
    is_write: bool


@dataclass(frozen=True, slots=True)
class SystemEvent(_Exit):
    """KVM_EXIT_SYSTEM_EVENT: shutdown, reset, crash ...; ``type`` is a KVM_SYSTEM_EVENT_*."""

    reason: ClassVar[ExitReason] = ExitReason.SYSTEM_EVENT
    type: int
    data: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class IoapicEoi(_Exit):
    """KVM_EXIT_IOAPIC_EOI: with a split irqchip, the guest ended the level-triggered interrupt ``vector``."""

    reason: ClassVar[ExitReason] = ExitReason.IOAPIC_EOI
    vector: int


@dataclass(frozen=True, slots=True)
class Rdmsr(_Exit):
    """KVM_EXIT_X86_RDMSR: answer with 8 bytes, or refuse, and the guest takes #GP.

    ``msr_reason`` is a set of KVM_MSR_EXIT_REASON_* bits.
    """

    reason: ClassVar[ExitReason] = ExitReason.X86_RDMSR
    index: int
    msr_reason: int


@dataclass(frozen=True, slots=True)
class Wrmsr(_Exit):
    """KVM_EXIT_X86_WRMSR: the guest writes ``data`` to MSR ``index``; run on to accept, or refuse: #GP."""

    reason: ClassVar[ExitReason] = ExitReason.X86_WRMSR
    index: int
    data: int
    msr_reason: int


@dataclass(frozen=True, slots=True)
class BusLock(_Exit):
    """KVM_EXIT_X86_BUS_LOCK: the guest locked the whole bus, and was asked to be caught doing so."""

    reason: ClassVar[ExitReason] = ExitReason.X86_BUS_LOCK


@dataclass(frozen=True, slots=True)
class Notify(_Exit):
    """KVM_EXIT_NOTIFY: no window for events opened for too long; ``flags`` may say the context is lost."""

    reason: ClassVar[ExitReason] = ExitReason.NOTIFY
    flags: int


@dataclass(frozen=True, slots=True)
class DirtyRingFull(_Exit):
    """KVM_EXIT_DIRTY_RING_FULL: collect the dirty ring before running on."""

    reason: ClassVar[ExitReason] = ExitReason.DIRTY_RING_FULL


@dataclass(frozen=True, slots=True)
class MemoryFault(_Exit):
    """KVM_EXIT_MEMORY_FAULT: KVM could not map ``size`` bytes at ``gpa``; KVM_RUN itself failed with EFAULT."""

    reason: ClassVar[ExitReason] = ExitReason.MEMORY_FAULT
    flags: int
    gpa: Gpa
    size: int


@dataclass(frozen=True, slots=True)
class Intr(_Exit):
    """KVM_EXIT_INTR: a signal, a tick or a kick took the vCPU out of the guest; nothing happened inside."""

    reason: ClassVar[ExitReason] = ExitReason.INTR


@dataclass(frozen=True, slots=True)
class Nmi(_Exit):
    """KVM_EXIT_NMI: a non-maskable interrupt of the host."""

    reason: ClassVar[ExitReason] = ExitReason.NMI


@dataclass(frozen=True, slots=True)
class Unknown(_Exit):
    """Any other exit: ``exit_reason`` as a number, and the hardware's own reason for KVM_EXIT_UNKNOWN."""

    reason: ClassVar[ExitReason] = ExitReason.UNKNOWN
    exit_reason: int
    hardware_exit_reason: int = 0


Exit = (
    IoIn
    | IoOut
    | MmioRead
    | MmioWrite
    | Hlt
    | Shutdown
    | FailEntry
    | InternalError
    | Debug
    | ExceptionExit
    | Hypercall
    | IrqWindowOpen
    | SetTpr
    | TprAccess
    | SystemEvent
    | IoapicEoi
    | Rdmsr
    | Wrmsr
    | BusLock
    | Notify
    | DirtyRingFull
    | MemoryFault
    | Intr
    | Nmi
    | Unknown
)

# The exits that the guest is waiting on: KVM_RUN must not be called again without an answer.
ReadExit = IoIn | MmioRead | Rdmsr | Hypercall


def decode(run: CData, page: memoryview) -> Exit:
    """Return the exit that ``run``, a ``struct kvm_run *``, describes; ``page`` is the whole mapping it starts.

    Raises: MalformedExitError if it points outside ``page``.
    """
    decoder = _DECODERS.get(run.exit_reason)
    if decoder is None:
        return Unknown(run.exit_reason)
    return decoder(run, page)


def _io(run: CData, page: memoryview) -> IoIn | IoOut:
    io = run.io
    port, size, count, start = io.port, io.size, io.count, io.data_offset
    end = start + size * count
    if size not in (1, 2, 4):
        raise MalformedExitError(f"KVM_EXIT_IO: an access of {size} bytes, but a port is 1, 2 or 4 bytes wide")
    if end > len(page):
        raise MalformedExitError(f"KVM_EXIT_IO: data at {start:#x}-{end:#x}, but struct kvm_run ends at {len(page):#x}")
    if io.direction == lib.KVM_EXIT_IO_OUT:
        return IoOut(port, size, count, bytes(page[start:end]))
    return IoIn(port, size, count)


def _mmio(run: CData, page: memoryview) -> MmioRead | MmioWrite:
    mmio = run.mmio
    size = mmio.len
    if size > len(mmio.data):
        raise MalformedExitError(f"KVM_EXIT_MMIO: an access of {size} bytes, but 8 is the most there can be")
    address = Gpa(mmio.phys_addr)
    if mmio.is_write:
        return MmioWrite(address, bytes(mmio.data[0:size]))
    return MmioRead(address, size)


def _internal_error(run: CData, page: memoryview) -> InternalError:
    # The words overlay struct emulation_failure for suberror EMULATION (kvm.h):
    #
    #   data[0]  flags: bit 0 says that the two words below are valid
    #   data[1]  byte 0: the size of the instruction, then its first 7 bytes
    #   data[2]  the instruction's other 8 bytes
    internal = run.internal
    words = tuple(internal.data[0 : min(internal.ndata, len(internal.data))])
    if internal.suberror != InternalErrorSuberror.EMULATION or not words:
        return InternalError(internal.suberror, words)
    flags = words[0]
    instruction = b""
    if flags & lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES and len(words) >= 3:
        raw = b"".join(word.to_bytes(8, "little") for word in words[1:3])
        instruction = raw[1 : 1 + min(raw[0], 15)]
    return InternalError(internal.suberror, words, flags, instruction)


def _debug(run: CData, page: memoryview) -> Debug:
    arch = run.debug.arch
    return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


def _hypercall(run: CData, page: memoryview) -> Hypercall:
    call = run.hypercall
    return Hypercall(call.nr, tuple(call.args), call.longmode)


def _system_event(run: CData, page: memoryview) -> SystemEvent:
    event = run.system_event
    return SystemEvent(event.type, tuple(event.data[0 : min(event.ndata, len(event.data))]))


def _memory_fault(run: CData, page: memoryview) -> MemoryFault:
    # SAFETY: the union that hw and memory_fault are members of is 256 bytes long and belongs to run's mapping; it is
    # read here and not kept. The cast stands in for a member that older kernel headers lack (csrc/shim.h).
    fault = ffi.cast("struct pykvm_memory_fault *", ffi.addressof(run, "hw"))
    return MemoryFault(fault.flags, Gpa(fault.gpa), fault.size)


_DECODERS: dict[int, Callable[[CData, memoryview], Exit]] = {
    ExitReason.IO: _io,
    ExitReason.MMIO: _mmio,
    ExitReason.HLT: lambda run, page: Hlt(),
    ExitReason.SHUTDOWN: lambda run, page: Shutdown(),
    ExitReason.FAIL_ENTRY: lambda run, page: FailEntry(
        run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu
    ),
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.DEBUG: _debug,
    ExitReason.EXCEPTION: lambda run, page: ExceptionExit(run.ex.exception, run.ex.error_code),
    ExitReason.HYPERCALL: _hypercall,
    ExitReason.IRQ_WINDOW_OPEN: lambda run, page: IrqWindowOpen(),
    ExitReason.SET_TPR: lambda run, page: SetTpr(),
    ExitReason.TPR_ACCESS: lambda run, page: TprAccess(run.tpr_access.rip, bool(run.tpr_access.is_write)),
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: lambda run, page: IoapicEoi(run.eoi.vector),
    ExitReason.X86_RDMSR: lambda run, page: Rdmsr(run.msr.index, run.msr.reason),
    ExitReason.X86_WRMSR: lambda run, page: Wrmsr(run.msr.index, run.msr.data, run.msr.reason),
    ExitReason.X86_BUS_LOCK: lambda run, page: BusLock(),
    ExitReason.NOTIFY: lambda run, page: Notify(run.notify.flags),
    ExitReason.DIRTY_RING_FULL: lambda run, page: DirtyRingFull(),
    ExitReason.MEMORY_FAULT: _memory_fault,
    ExitReason.INTR: lambda run, page: Intr(),
    ExitReason.NMI: lambda run, page: Nmi(),
    ExitReason.UNKNOWN: lambda run, page: Unknown(ExitReason.UNKNOWN, run.hw.hardware_exit_reason),
}
