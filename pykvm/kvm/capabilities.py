"""The capabilities that matter to a small hypervisor, and what each is for.

KVM grows by capabilities, never by versions: a program asks KVM_CHECK_EXTENSION whether the host has what it needs.
See: Documentation/virt/kvm/api.rst, the "Capability:" line of each ioctl, and sections 6 to 8. Leaves out: capabilities
pykvm has no use for.
"""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.kvm.constants import Cap
from pykvm.kvm.system import Kvm

__all__ = ["CAPABILITIES", "Capability", "survey"]


@dataclass(frozen=True, slots=True)
class Capability:
    """A capability: its number, a name for people, what it is for, and whether its value is a figure or yes/no."""

    cap: Cap
    name: str
    purpose: str
    is_figure: bool = False


CAPABILITIES = (
    Capability(Cap.USER_MEMORY, "user memory", "guest memory is memory of this process"),
    Capability(Cap.NR_MEMSLOTS, "memory slots", "how many pieces of guest memory a VM can have", is_figure=True),
    Capability(Cap.READONLY_MEM, "read-only memory", "ROMs: a guest's write to one is an MMIO exit"),
    Capability(Cap.SYNC_MMU, "synchronous MMU", "guest memory may be swapped or remapped while in use"),
    Capability(Cap.NR_VCPUS, "vCPUs recommended", "more work, but slowly", is_figure=True),
    Capability(Cap.MAX_VCPUS, "vCPUs at most", "more are refused", is_figure=True),
    Capability(Cap.SET_TSS_ADDR, "TSS address", "VT-x hosts need three hidden pages for real mode"),
    Capability(Cap.SET_IDENTITY_MAP_ADDR, "identity map", "VT-x hosts need one hidden page for unpaged modes"),
    Capability(Cap.IMMEDIATE_EXIT, "immediate exit", "stops a vCPU from another thread without a race"),
    Capability(Cap.EXT_CPUID, "CPUID", "the guest's CPUID is ours to choose"),
    Capability(Cap.MP_STATE, "MP state", "whether a vCPU runs, halts, or waits for INIT"),
    Capability(Cap.VCPU_EVENTS, "events", "exceptions and interrupts in flight can be read and set"),
    Capability(Cap.DEBUGREGS, "debug registers", "DR0 to DR7 can be read and set"),
    Capability(Cap.XSAVE, "XSAVE", "the extended processor state can be read and set"),
    Capability(Cap.XCRS, "XCRs", "which of that state the guest enabled"),
    Capability(Cap.IRQCHIP, "irqchip", "interrupt controllers and timers inside the kernel"),
    Capability(Cap.SPLIT_IRQCHIP, "split irqchip", "only the local APIC inside the kernel"),
    Capability(Cap.PIT2, "PIT", "the 8254 timer inside the kernel"),
    Capability(Cap.IRQFD, "irqfd", "an interrupt by writing to a descriptor"),
    Capability(Cap.IOEVENTFD, "ioeventfd", "a guest's write signals a descriptor, without an exit"),
    Capability(Cap.COALESCED_MMIO, "coalesced MMIO", "memory-mapped output without an exit per write"),
    Capability(Cap.COALESCED_PIO, "coalesced PIO", "output without an exit per byte"),
    Capability(Cap.SET_GUEST_DEBUG, "guest debug", "single steps, breakpoints and watchpoints"),
    Capability(Cap.SYNC_REGS, "register sync", "registers come with the exit, without an ioctl"),
    Capability(Cap.DIRTY_LOG_RING, "dirty ring", "which pages a guest wrote, without scanning"),
    Capability(Cap.X86_USER_SPACE_MSR, "MSR exits", "accesses to unknown MSRs come to user space"),
    Capability(Cap.X86_MSR_FILTER, "MSR filter", "accesses to chosen MSRs come to user space"),
    Capability(Cap.INTERNAL_ERROR_DATA, "error data", "KVM says which instruction it could not emulate"),
    Capability(Cap.BINARY_STATS_FD, "statistics", "KVM's own counters"),
    Capability(Cap.MEMORY_FAULT_INFO, "memory faults", "KVM says which address it could not map"),
)


def survey(kvm: Kvm) -> list[tuple[Capability, int]]:
    """Return every capability of ``CAPABILITIES`` with KVM_CHECK_EXTENSION's answer on this host, 0 for "no"."""
    return [(capability, kvm.check_extension(capability.cap)) for capability in CAPABILITIES]
