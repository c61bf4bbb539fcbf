"""The kernel's numbers as enums: exit reasons, capabilities, flags.

An enum member is kvm.h's name without its prefix; the values come from <linux/kvm.h> through the C compiler, never from
this page. See: Documentation/virt/kvm/api.rst. Leaves out: numbers of other architectures, and those pykvm
has no use for.
"""

from __future__ import annotations

import enum

from pykvm._shim import lib

__all__ = [
    "Cap",
    "ClockFlag",
    "ExitReason",
    "GuestDebugControl",
    "InternalErrorSuberror",
    "IrqchipId",
    "MemoryRegionFlag",
    "MpStateValue",
    "MsrExitReason",
    "SystemEventType",
]


class ExitReason(enum.IntEnum):
    """``KVM_EXIT_*``: why KVM_RUN returned (api.rst, section 5, "The kvm_run structure")."""

    UNKNOWN = lib.KVM_EXIT_UNKNOWN
    EXCEPTION = lib.KVM_EXIT_EXCEPTION
    IO = lib.KVM_EXIT_IO
    HYPERCALL = lib.KVM_EXIT_HYPERCALL
    DEBUG = lib.KVM_EXIT_DEBUG
    HLT = lib.KVM_EXIT_HLT
    MMIO = lib.KVM_EXIT_MMIO
    IRQ_WINDOW_OPEN = lib.KVM_EXIT_IRQ_WINDOW_OPEN
    SHUTDOWN = lib.KVM_EXIT_SHUTDOWN
    FAIL_ENTRY = lib.KVM_EXIT_FAIL_ENTRY
    INTR = lib.KVM_EXIT_INTR
    SET_TPR = lib.KVM_EXIT_SET_TPR
    TPR_ACCESS = lib.KVM_EXIT_TPR_ACCESS
    NMI = lib.KVM_EXIT_NMI
    INTERNAL_ERROR = lib.KVM_EXIT_INTERNAL_ERROR
    SYSTEM_EVENT = lib.KVM_EXIT_SYSTEM_EVENT
    IOAPIC_EOI = lib.KVM_EXIT_IOAPIC_EOI
    X86_RDMSR = lib.KVM_EXIT_X86_RDMSR
    X86_WRMSR = lib.KVM_EXIT_X86_WRMSR
    DIRTY_RING_FULL = lib.KVM_EXIT_DIRTY_RING_FULL
    X86_BUS_LOCK = lib.KVM_EXIT_X86_BUS_LOCK
    NOTIFY = lib.KVM_EXIT_NOTIFY
    MEMORY_FAULT = lib.KVM_EXIT_MEMORY_FAULT


class InternalErrorSuberror(enum.IntEnum):
    """``KVM_INTERNAL_ERROR_*``: the ``suberror`` of KVM_EXIT_INTERNAL_ERROR."""

    EMULATION = lib.KVM_INTERNAL_ERROR_EMULATION
    SIMUL_EX = lib.KVM_INTERNAL_ERROR_SIMUL_EX
    DELIVERY_EV = lib.KVM_INTERNAL_ERROR_DELIVERY_EV
    UNEXPECTED_EXIT_REASON = lib.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON


class SystemEventType(enum.IntEnum):
    """``KVM_SYSTEM_EVENT_*``: the ``type`` of KVM_EXIT_SYSTEM_EVENT."""

    SHUTDOWN = lib.KVM_SYSTEM_EVENT_SHUTDOWN
    RESET = lib.KVM_SYSTEM_EVENT_RESET
    CRASH = lib.KVM_SYSTEM_EVENT_CRASH
    WAKEUP = lib.KVM_SYSTEM_EVENT_WAKEUP
    SUSPEND = lib.KVM_SYSTEM_EVENT_SUSPEND
    SEV_TERM = lib.KVM_SYSTEM_EVENT_SEV_TERM


class MpStateValue(enum.IntEnum):
    """``KVM_MP_STATE_*``: what a vCPU is doing (api.rst, KVM_GET_MP_STATE)."""

    RUNNABLE = lib.KVM_MP_STATE_RUNNABLE
    UNINITIALIZED = lib.KVM_MP_STATE_UNINITIALIZED
    INIT_RECEIVED = lib.KVM_MP_STATE_INIT_RECEIVED
    HALTED = lib.KVM_MP_STATE_HALTED
    SIPI_RECEIVED = lib.KVM_MP_STATE_SIPI_RECEIVED


class MsrExitReason(enum.Flag):
    """``KVM_MSR_EXIT_REASON_*``: why an MSR access came to user space (api.rst, KVM_EXIT_X86_RDMSR)."""

    INVAL = lib.KVM_MSR_EXIT_REASON_INVAL
    UNKNOWN = lib.KVM_MSR_EXIT_REASON_UNKNOWN
    FILTER = lib.KVM_MSR_EXIT_REASON_FILTER


class GuestDebugControl(enum.Flag):
    """``KVM_GUESTDBG_*``: what KVM_SET_GUEST_DEBUG is to do."""

    ENABLE = lib.KVM_GUESTDBG_ENABLE
    SINGLESTEP = lib.KVM_GUESTDBG_SINGLESTEP
    USE_SW_BP = lib.KVM_GUESTDBG_USE_SW_BP
    USE_HW_BP = lib.KVM_GUESTDBG_USE_HW_BP


class MemoryRegionFlag(enum.Flag):
    """``KVM_MEM_*``: the flags of KVM_SET_USER_MEMORY_REGION."""

    LOG_DIRTY_PAGES = lib.KVM_MEM_LOG_DIRTY_PAGES
    READONLY = lib.KVM_MEM_READONLY


class IrqchipId(enum.IntEnum):
    """``KVM_IRQCHIP_*``: the interrupt controllers of KVM_CREATE_IRQCHIP, beside the local APIC of each vCPU."""

    PIC_MASTER = lib.KVM_IRQCHIP_PIC_MASTER
    PIC_SLAVE = lib.KVM_IRQCHIP_PIC_SLAVE
    IOAPIC = lib.KVM_IRQCHIP_IOAPIC


class ClockFlag(enum.Flag):
    """``KVM_CLOCK_*``: which fields of KVM_GET_CLOCK's answer are valid, and how stable the clock is."""

    TSC_STABLE = lib.KVM_CLOCK_TSC_STABLE
    REALTIME = lib.KVM_CLOCK_REALTIME
    HOST_TSC = lib.KVM_CLOCK_HOST_TSC


class Cap(enum.IntEnum):
    """``KVM_CAP_*``: what KVM_CHECK_EXTENSION is asked for. What each is for: ``pykvm.kvm.capabilities``."""

    IRQCHIP = lib.KVM_CAP_IRQCHIP
    HLT = lib.KVM_CAP_HLT
    USER_MEMORY = lib.KVM_CAP_USER_MEMORY
    SET_TSS_ADDR = lib.KVM_CAP_SET_TSS_ADDR
    EXT_CPUID = lib.KVM_CAP_EXT_CPUID
    NR_VCPUS = lib.KVM_CAP_NR_VCPUS
    NR_MEMSLOTS = lib.KVM_CAP_NR_MEMSLOTS
    MP_STATE = lib.KVM_CAP_MP_STATE
    COALESCED_MMIO = lib.KVM_CAP_COALESCED_MMIO
    SYNC_MMU = lib.KVM_CAP_SYNC_MMU
    USER_NMI = lib.KVM_CAP_USER_NMI
    SET_GUEST_DEBUG = lib.KVM_CAP_SET_GUEST_DEBUG
    IRQ_ROUTING = lib.KVM_CAP_IRQ_ROUTING
    IRQFD = lib.KVM_CAP_IRQFD
    PIT2 = lib.KVM_CAP_PIT2
    IOEVENTFD = lib.KVM_CAP_IOEVENTFD
    SET_IDENTITY_MAP_ADDR = lib.KVM_CAP_SET_IDENTITY_MAP_ADDR
    ADJUST_CLOCK = lib.KVM_CAP_ADJUST_CLOCK
    INTERNAL_ERROR_DATA = lib.KVM_CAP_INTERNAL_ERROR_DATA
    VCPU_EVENTS = lib.KVM_CAP_VCPU_EVENTS
    DEBUGREGS = lib.KVM_CAP_DEBUGREGS
    X86_ROBUST_SINGLESTEP = lib.KVM_CAP_X86_ROBUST_SINGLESTEP
    XSAVE = lib.KVM_CAP_XSAVE
    XCRS = lib.KVM_CAP_XCRS
    GET_TSC_KHZ = lib.KVM_CAP_GET_TSC_KHZ
    MAX_VCPUS = lib.KVM_CAP_MAX_VCPUS
    READONLY_MEM = lib.KVM_CAP_READONLY_MEM
    SIGNAL_MSI = lib.KVM_CAP_SIGNAL_MSI
    ENABLE_CAP_VM = lib.KVM_CAP_ENABLE_CAP_VM
    CHECK_EXTENSION_VM = lib.KVM_CAP_CHECK_EXTENSION_VM
    SPLIT_IRQCHIP = lib.KVM_CAP_SPLIT_IRQCHIP
    IMMEDIATE_EXIT = lib.KVM_CAP_IMMEDIATE_EXIT
    SYNC_REGS = lib.KVM_CAP_SYNC_REGS
    COALESCED_PIO = lib.KVM_CAP_COALESCED_PIO
    EXCEPTION_PAYLOAD = lib.KVM_CAP_EXCEPTION_PAYLOAD
    X86_USER_SPACE_MSR = lib.KVM_CAP_X86_USER_SPACE_MSR
    X86_MSR_FILTER = lib.KVM_CAP_X86_MSR_FILTER
    DIRTY_LOG_RING = lib.KVM_CAP_DIRTY_LOG_RING
    X86_BUS_LOCK_EXIT = lib.KVM_CAP_X86_BUS_LOCK_EXIT
    SREGS2 = lib.KVM_CAP_SREGS2
    EXIT_ON_EMULATION_FAILURE = lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE
    BINARY_STATS_FD = lib.KVM_CAP_BINARY_STATS_FD
    EXIT_HYPERCALL = lib.KVM_CAP_EXIT_HYPERCALL
    X86_TRIPLE_FAULT_EVENT = lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT
    X86_NOTIFY_VMEXIT = lib.KVM_CAP_X86_NOTIFY_VMEXIT
    MEMORY_FAULT_INFO = lib.KVM_CAP_MEMORY_FAULT_INFO
