"""The kernel's structures as Python values: registers, events, CPUID entries.

A class is a ``struct kvm_*`` of <linux/kvm.h> or <asm/kvm.h> and its fields carry the kernel's names, so that the
kernel's documentation (Documentation/virt/kvm/api.rst) reads on. What the bits of a field mean is not known here:
see ``pykvm.x86``. ``from_c`` and ``to_c`` copy between these values and C memory; padding and reserved fields
are left out and stay zero. Leaves out: structures only other architectures have.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from pykvm.markup import Record, facts, grid, stacked, table

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = [
    "ClockData",
    "CpuidEntry",
    "DebugRegs",
    "DescriptorTable",
    "ExceptionEvent",
    "Fpu",
    "InterruptEvent",
    "MpState",
    "MsrEntry",
    "NmiEvent",
    "Regs",
    "Segment",
    "SmiEvent",
    "Sregs",
    "Translation",
    "TripleFaultEvent",
    "VcpuEvents",
    "Xcr",
    "from_c",
    "to_c",
]

T = TypeVar("T")


@dataclass(slots=True)
class Regs:
    """``struct kvm_regs``: the general registers, the instruction pointer and the flags, 64 bits each."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 0x2  # bit 1 is always set (SDM volume 1, section 3.4.3)

    def _repr_html_(self) -> str:
        return grid([(each.name, getattr(self, each.name)) for each in fields(self)], 4, "registers")


@dataclass(slots=True)
class Segment(Record):
    """``struct kvm_segment``: a segment register with its hidden part (SDM volume 3, section 3.4.3).

    ``base`` is a linear address, ``limit`` the offset of the last byte, in bytes even when ``g`` is set; the
    others are the descriptor's fields as 0 or 1, ``type`` 4 bits, ``dpl`` 2 bits.
    """

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - the kernel's name for CS.L
    g: int = 0
    avl: int = 0
    unusable: int = 0


@dataclass(slots=True)
class DescriptorTable(Record):
    """``struct kvm_dtable``: GDTR or IDTR. ``base`` is a linear address, ``limit`` the size in bytes less one."""

    base: int = 0
    limit: int = 0


@dataclass(slots=True)
class Sregs:
    """``struct kvm_sregs``: segments, descriptor tables, control registers, EFER and the APIC base."""

    cs: Segment = field(default_factory=Segment)
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=Segment)
    ldt: Segment = field(default_factory=Segment)
    gdt: DescriptorTable = field(default_factory=DescriptorTable)
    idt: DescriptorTable = field(default_factory=DescriptorTable)
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    interrupt_bitmap: tuple[int, ...] = (0, 0, 0, 0)

    def _repr_html_(self) -> str:
        registers = {each.name: getattr(self, each.name) for each in fields(self)}
        segments = {name: value for name, value in registers.items() if isinstance(value, Segment)}
        tables = {name: value for name, value in registers.items() if isinstance(value, DescriptorTable)}
        rest = [(name, value) for name, value in registers.items() if name not in segments.keys() | tables.keys()]
        head = [each.name for each in fields(Segment)]
        rows = [(name, *(getattr(segment, each) for each in head)) for name, segment in segments.items()]
        dtables = [(name, value.base, value.limit) for name, value in tables.items()]
        return stacked(
            table(["", *head], rows, "segment registers"),
            table(["", "base", "limit"], dtables, "descriptor tables"),
            facts(rest, "control registers"),
        )


@dataclass(slots=True)
class Fpu:
    """``struct kvm_fpu``: x87 and SSE state. ``fpr`` is 8 registers of 16 bytes, ``xmm`` 16 of 16 bytes."""

    fpr: tuple[bytes, ...] = (bytes(16),) * 8
    fcw: int = 0
    fsw: int = 0
    ftwx: int = 0
    last_opcode: int = 0
    last_ip: int = 0
    last_dp: int = 0
    xmm: tuple[bytes, ...] = (bytes(16),) * 16
    mxcsr: int = 0


@dataclass(slots=True)
class DebugRegs(Record):
    """``struct kvm_debugregs``: DR0 to DR3 in ``db``, DR6 and DR7 (SDM volume 3, section 17.2)."""

    db: tuple[int, ...] = (0, 0, 0, 0)
    dr6: int = 0
    dr7: int = 0
    flags: int = 0


@dataclass(slots=True)
class ExceptionEvent:
    """The ``exception`` part of ``struct kvm_vcpu_events``: ``nr`` is the vector."""

    injected: int = 0
    nr: int = 0
    has_error_code: int = 0
    pending: int = 0
    error_code: int = 0


@dataclass(slots=True)
class InterruptEvent:
    """The ``interrupt`` part of ``struct kvm_vcpu_events``: ``shadow`` tells of STI and MOV SS blocking."""

    injected: int = 0
    nr: int = 0
    soft: int = 0
    shadow: int = 0


@dataclass(slots=True)
class NmiEvent:
    """The ``nmi`` part of ``struct kvm_vcpu_events``."""

    injected: int = 0
    pending: int = 0
    masked: int = 0


@dataclass(slots=True)
class SmiEvent:
    """The ``smi`` part of ``struct kvm_vcpu_events``: System Management Mode."""

    smm: int = 0
    pending: int = 0
    smm_inside_nmi: int = 0
    latched_init: int = 0


@dataclass(slots=True)
class TripleFaultEvent:
    """The ``triple_fault`` part of ``struct kvm_vcpu_events``."""

    pending: int = 0


@dataclass(slots=True)
class VcpuEvents(Record):
    """``struct kvm_vcpu_events``: what is injected, pending or masked. ``flags`` says which parts are valid."""

    exception: ExceptionEvent = field(default_factory=ExceptionEvent)
    interrupt: InterruptEvent = field(default_factory=InterruptEvent)
    nmi: NmiEvent = field(default_factory=NmiEvent)
    sipi_vector: int = 0
    flags: int = 0
    smi: SmiEvent = field(default_factory=SmiEvent)
    triple_fault: TripleFaultEvent = field(default_factory=TripleFaultEvent)
    exception_has_payload: int = 0
    exception_payload: int = 0


@dataclass(slots=True)
class MpState:
    """``struct kvm_mp_state``: running, halted, waiting for INIT or SIPI (KVM_MP_STATE_*)."""

    mp_state: int = 0


@dataclass(frozen=True, slots=True)
class MsrEntry:
    """``struct kvm_msr_entry``: a model-specific register's number and its 64-bit value."""

    index: int
    data: int = 0


@dataclass(frozen=True, slots=True)
class Xcr:
    """``struct kvm_xcr``: an extended control register; ``xcr`` 0 is XCR0, the enabled XSAVE features."""

    xcr: int
    value: int


@dataclass(frozen=True, slots=True)
class CpuidEntry(Record):
    """``struct kvm_cpuid_entry2``: the answer of CPUID for a leaf (``function``) and subleaf (``index``)."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


@dataclass(frozen=True, slots=True)
class Translation(Record):
    """``struct kvm_translation``: KVM's own page walk. Only ``physical_address`` and ``valid`` are filled in on x86.

    ``linear_address`` is a Gva, ``physical_address`` a Gpa; ``writeable`` and ``usermode`` are always 1 and 0.
    """

    linear_address: int
    physical_address: int
    valid: int
    writeable: int
    usermode: int


@dataclass(frozen=True, slots=True)
class ClockData:
    """``struct kvm_clock_data``: the VM's kvmclock, ``clock`` nanoseconds.

    ``flags`` (KVM_CLOCK_*, see ``ClockFlag``) says whether ``realtime``, the host's nanoseconds since 1970 at that
    moment, and ``host_tsc`` are valid.
    """

    clock: int
    realtime: int = 0
    host_tsc: int = 0
    flags: int = 0


def from_c(kind: type[T], c: CData) -> T:
    """Return the C structure ``c`` copied into a new ``kind``, which is one of this module's classes."""
    return kind(**{name: _value_from_c(hint, getattr(c, name)) for name, hint in _fields(kind)})  # type: ignore[arg-type]  # a class is hashable


def to_c(value: object, c: CData) -> None:
    """Copy every field of ``value``, an instance of this module's classes, into the C structure ``c``."""
    for name, _ in _fields(type(value)):  # type: ignore[arg-type]  # a class is hashable
        item = getattr(value, name)
        if is_dataclass(item):
            to_c(item, getattr(c, name))
        elif isinstance(item, tuple):
            _copy_array(item, getattr(c, name))
        else:
            setattr(c, name, item)


@cache
def _fields(kind: type) -> list[tuple[str, type]]:
    hints = get_type_hints(kind)
    return [(f.name, hints[f.name]) for f in fields(kind)]


def _value_from_c(hint: type, value: CData) -> object:
    if is_dataclass(hint):
        return from_c(hint, value)
    if hint == tuple[int, ...]:
        return tuple(value)
    if hint == tuple[bytes, ...]:
        return tuple(bytes(row) for row in value)
    return int(value)


def _copy_array(items: Iterable[int | bytes], c: CData) -> None:
    for position, item in enumerate(items):
        c[position] = list(item) if isinstance(item, bytes) else item
