"""The ioctls of /dev/kvm and of a VM: what each is for, which argument it takes, and what its errors mean.

See: Documentation/virt/kvm/api.rst, section "API description"; for errors that it leaves out, virt/kvm/kvm_main.c and
arch/x86/kvm in the kernel. Leaves out ioctls that pykvm never makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["NO_FD", "NO_LAPIC", "SYSTEM", "SYSTEM_AND_VM_IOCTLS", "VCPU", "VM", "Ioctl"]

SYSTEM, VM, VCPU = "/dev/kvm", "a VM", "a vCPU"
NO_LAPIC = "the VM has no local APIC in the kernel: KVM_CREATE_IRQCHIP (or the split irqchip) before KVM_CREATE_VCPU"
NO_IRQCHIP = "the VM has no such interrupt controller in the kernel: KVM_CREATE_IRQCHIP before KVM_CREATE_VCPU"
NO_PIT = "the VM has no timer in the kernel: KVM_CREATE_PIT2 first"
NO_FD = "the process or the system has no file descriptor left (ulimit -n)"
NO_ARGUMENT = "the argument is not 0"


@dataclass(frozen=True, slots=True)
class Ioctl:
    """One ioctl: ``on`` is the kind of descriptor, ``argument`` what it takes, ``errors`` by errno's name."""

    on: str
    argument: str
    what: str
    advice: str = ""
    errors: Mapping[str, str] = field(default_factory=dict)
    capability: str = ""


SYSTEM_AND_VM_IOCTLS: dict[str, Ioctl] = {
    # ---- on /dev/kvm ----
    "KVM_GET_API_VERSION": Ioctl(
        SYSTEM,
        "none",
        "Returns 12, the version of the stable API.",
        "Refuse to run with any other number; ask for capabilities, never for versions, after that.",
        {"EINVAL": NO_ARGUMENT},
    ),
    "KVM_CREATE_VM": Ioctl(
        SYSTEM,
        "the machine type, 0 on ordinary x86",
        "Returns a descriptor of a new VM, which has no memory and no vCPU.",
        "The VM lives until the last copy of its descriptor is closed, mappings of its vCPUs included.",
        {
            "EINVAL": "there is no such machine type: see KVM_CAP_VM_TYPES",
            "ENOMEM": "the kernel has no memory for it",
            "EMFILE": NO_FD,
            "EBUSY": "another hypervisor (VirtualBox, VMware) has the processor's virtualization",
            "EINTR": "a signal came while the VM was being made: try again",
        },
    ),
    "KVM_CHECK_EXTENSION": Ioctl(
        f"{SYSTEM} and {VM}",
        "a capability, KVM_CAP_*",
        "Returns 0 if the host lacks it, else 1 or a figure that says how much of it there is.",
        "Ask the VM rather than /dev/kvm: its answer is for this kind of VM.",
    ),
    "KVM_GET_VCPU_MMAP_SIZE": Ioctl(
        SYSTEM,
        "none",
        "Returns how many bytes of a vCPU's descriptor to map: struct kvm_run and what follows it.",
        errors={"EINVAL": NO_ARGUMENT},
    ),
    "KVM_GET_MSR_INDEX_LIST": Ioctl(
        SYSTEM,
        "struct kvm_msr_list: nmsrs says how much room there is",
        "Fills in the numbers of the MSRs that make up a guest's state here: those to save and restore.",
        "Call it with nmsrs 0 first: E2BIG comes with the number there are.",
        {"E2BIG": "the list is too short: nmsrs has the number that is needed now", "EFAULT": ""},
    ),
    "KVM_GET_SUPPORTED_CPUID": Ioctl(
        SYSTEM,
        "struct kvm_cpuid2: nent says how much room there is",
        "Fills in what CPUID can say on this host, as KVM_SET_CPUID2 takes it.",
        "Change what the guest should see, at least the APIC ids, and give it to KVM_SET_CPUID2.",
        {"E2BIG": "there is no room for all entries: try again with twice as many"},
        "KVM_CAP_EXT_CPUID",
    ),
    # ---- on a VM ----
    "KVM_CREATE_VCPU": Ioctl(
        VM,
        "the vCPU's id, which is its APIC id",
        "Returns a descriptor of a new vCPU, in the state after reset. Map it to get struct kvm_run.",
        "Vcpu 0 boots; with a local APIC in the kernel the others wait for INIT and SIPI.",
        {
            "EEXIST": "the VM has a vCPU with that id",
            "EINVAL": "the id is too high (KVM_CAP_MAX_VCPU_ID), or there are KVM_CAP_MAX_VCPUS of them",
            "ENOMEM": "the kernel has no memory for it",
            "EMFILE": NO_FD,
        },
    ),
    "KVM_SET_USER_MEMORY_REGION": Ioctl(
        VM,
        "struct kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr",
        "Makes memory of this process guest memory: a slot. Size 0 deletes the slot.",
        "Addresses and sizes are multiples of 4096. Equal low 21 bits of guest and host address allow big pages.",
        {
            "EINVAL": "an address or size is no multiple of 4096; the slot number is too high (KVM_CAP_NR_MEMSLOTS); "
            "an unknown flag; the host address is not the process's; or an existing slot was to change its size, its "
            "host address or its read-only flag (delete it first)",
            "EEXIST": "it overlaps another slot in guest-physical addresses",
            "ENOMEM": "the kernel has no memory for the slot's page tables or dirty bitmap",
        },
        "KVM_CAP_USER_MEMORY",
    ),
    "KVM_GET_DIRTY_LOG": Ioctl(
        VM,
        "struct kvm_dirty_log: slot, and a bitmap with a bit for each page, in 64-bit words",
        "Fills in which pages of a slot were written since the last call, and starts anew.",
        errors={
            "ENOENT": "there is no such slot, or it does not have KVM_MEM_LOG_DIRTY_PAGES",
            "EINVAL": "the slot number is too high",
            "ENXIO": "the VM has dirty rings instead",
            "EFAULT": "the bitmap is shorter than the slot needs",
        },
    ),
    "KVM_RESET_DIRTY_RINGS": Ioctl(
        VM,
        "none",
        "Takes back all ring entries that were marked KVM_DIRTY_GFN_F_RESET; returns how many.",
        errors={"EINVAL": "the VM has no dirty rings: enable KVM_CAP_DIRTY_LOG_RING before the first vCPU"},
        capability="KVM_CAP_DIRTY_LOG_RING",
    ),
    "KVM_ENABLE_CAP": Ioctl(
        f"{VM} or {VCPU}",
        "struct kvm_enable_cap: cap, flags (0), args[4]",
        "Switches an optional capability on.",
        "What args mean is said at each capability; many must be enabled before the first vCPU is created.",
        {
            "EINVAL": "the host lacks it, it cannot be enabled on this kind of descriptor, flags is not 0, its "
            "arguments are wrong, or it is too late: vCPUs exist",
            "E2BIG": "an argument is larger than allowed (a dirty ring, say)",
            "EEXIST": "the split irqchip: there are interrupt controllers in the kernel already",
        },
        "KVM_CAP_ENABLE_CAP_VM",
    ),
    "KVM_SET_TSS_ADDR": Ioctl(
        VM,
        "a guest-physical address below 4 GiB",
        "Gives VT-x hosts three pages to hide a TSS in, which real mode needs on processors without 'unrestricted "
        "guest'.",
        "Choose pages that no slot and no device has; 0xfffbd000 is usual.",
        {"EINVAL": "three pages from there on do not end below 4 GiB"},
        "KVM_CAP_SET_TSS_ADDR",
    ),
    "KVM_SET_IDENTITY_MAP_ADDR": Ioctl(
        VM,
        "a pointer to a guest-physical address below 4 GiB",
        "Gives VT-x hosts one page for a page table that maps all addresses to themselves, for guests without paging.",
        "Before the first vCPU. 0xfffbc000 is the default.",
        {"EINVAL": "vCPUs exist already"},
        "KVM_CAP_SET_IDENTITY_MAP_ADDR",
    ),
    "KVM_SET_BOOT_CPU_ID": Ioctl(
        VM,
        "a vCPU's id",
        "Says which vCPU boots; the others wait for INIT and SIPI. Without it, vCPU 0 does.",
        errors={"EBUSY": "vCPUs exist already"},
        capability="KVM_CAP_SET_BOOT_CPU_ID",
    ),
    "KVM_CREATE_IRQCHIP": Ioctl(
        VM,
        "none",
        "Puts two 8259A, an I/O APIC and a local APIC for each vCPU into the kernel.",
        "Before the first vCPU. Then HLT waits inside the kernel, KVM_IRQ_LINE drives the lines, KVM_INTERRUPT is "
        "refused.",
        {
            "EEXIST": "there are interrupt controllers in the kernel already",
            "EINVAL": "vCPUs exist already",
        },
        "KVM_CAP_IRQCHIP",
    ),
    "KVM_GET_IRQCHIP": Ioctl(
        VM,
        "struct kvm_irqchip: chip_id 0 and 1 are the 8259A, 2 the I/O APIC",
        "Reads the state of an interrupt controller in the kernel.",
        errors={"ENXIO": NO_IRQCHIP, "EINVAL": "chip_id is none of 0, 1, 2"},
        capability="KVM_CAP_IRQCHIP",
    ),
    "KVM_SET_IRQCHIP": Ioctl(
        VM,
        "struct kvm_irqchip, as KVM_GET_IRQCHIP gives it",
        "Sets the state of an interrupt controller in the kernel.",
        errors={"ENXIO": NO_IRQCHIP, "EINVAL": "chip_id is none of 0, 1, 2"},
        capability="KVM_CAP_IRQCHIP",
    ),
    "KVM_CREATE_PIT2": Ioctl(
        VM,
        "struct kvm_pit_config: KVM_PIT_SPEAKER_DUMMY takes port 0x61 too",
        "Puts an 8254 timer into the kernel, which raises IRQ 0.",
        errors={
            "EEXIST": "there is a timer in the kernel already",
            "ENOENT": NO_IRQCHIP,
            "ENOMEM": "the kernel has no memory for it",
        },
        capability="KVM_CAP_PIT2",
    ),
    "KVM_GET_PIT2": Ioctl(
        VM, "struct kvm_pit_state2", "Reads the state of the timer in the kernel.", errors={"ENXIO": NO_PIT}
    ),
    "KVM_SET_PIT2": Ioctl(
        VM, "struct kvm_pit_state2", "Sets the state of the timer in the kernel.", errors={"ENXIO": NO_PIT}
    ),
    "KVM_GET_CLOCK": Ioctl(
        VM,
        "struct kvm_clock_data",
        "Reads kvmclock, the time in nanoseconds that guests with KVM's paravirtual clock see.",
        capability="KVM_CAP_ADJUST_CLOCK",
    ),
    "KVM_SET_CLOCK": Ioctl(
        VM,
        "struct kvm_clock_data",
        "Sets kvmclock, so that time does not jump for a guest that was saved and restored.",
        "Of the flags only KVM_CLOCK_REALTIME matters: the time that passed meanwhile is added.",
        {"EINVAL": "a flag that KVM_CAP_ADJUST_CLOCK did not tell"},
        "KVM_CAP_ADJUST_CLOCK",
    ),
    "KVM_IRQ_LINE": Ioctl(
        VM,
        "struct kvm_irq_level: irq (a GSI), level",
        "Raises (1) or lowers (0) an interrupt line of the controllers in the kernel.",
        "An edge is 1 and then 0. 1 means active, whatever polarity the guest set up.",
        {"ENXIO": NO_IRQCHIP},
        "KVM_CAP_IRQCHIP",
    ),
    "KVM_SET_GSI_ROUTING": Ioctl(
        VM,
        "struct kvm_irq_routing: entries of a GSI, and a pin of a chip or a message (MSI)",
        "Says what each interrupt line means. The new table replaces the old one.",
        errors={
            "EINVAL": "there are no interrupt controllers in the kernel; flags is not 0; a pin or chip that does not "
            "exist; a GSI twice to the same chip; or too many entries (KVM_CAP_IRQ_ROUTING tells the most)",
        },
        capability="KVM_CAP_IRQ_ROUTING",
    ),
    "KVM_SIGNAL_MSI": Ioctl(
        VM,
        "struct kvm_msi: address_lo, address_hi, data",
        "Sends an interrupt as a message, as a PCI device does. Returns more than 0 if it arrived, 0 if the guest "
        "keeps it out.",
        errors={
            "EINVAL": "there is no local APIC in the kernel, or flags is not 0",
            "EPERM": "no local APIC of this VM is meant by that address",
        },
        capability="KVM_CAP_SIGNAL_MSI",
    ),
    "KVM_IRQFD": Ioctl(
        VM,
        "struct kvm_irqfd: fd (an eventfd), gsi, flags, resamplefd",
        "Binds an eventfd to an interrupt line: writing to it is an interrupt, without an ioctl.",
        "KVM_IRQFD_FLAG_DEASSIGN unbinds. A level-triggered line needs KVM_IRQFD_FLAG_RESAMPLE and a second eventfd, "
        "which tells of the guest's EOI.",
        {
            "EBUSY": "that eventfd is bound already",
            "EBADF": "there is no such descriptor",
            "EINVAL": "fd is no eventfd, the GSI is too high, an unknown flag, or there is no interrupt controller in "
            "the kernel",
        },
        "KVM_CAP_IRQFD",
    ),
    "KVM_IOEVENTFD": Ioctl(
        VM,
        "struct kvm_ioeventfd: addr, len, fd (an eventfd), flags, datamatch",
        "Turns a guest's write to a port or an address into a signal of an eventfd, without an exit.",
        "KVM_IOEVENTFD_FLAG_PIO for ports; DATAMATCH for one value only; DEASSIGN takes it away again.",
        {
            "EEXIST": "another one watches the same address, length and value",
            "ENOENT": "DEASSIGN: there is none with these values",
            "EBADF": "there is no such descriptor",
            "EINVAL": "fd is no eventfd, len is none of 0, 1, 2, 4, 8, the range wraps around, or an unknown flag",
            "ENOSPC": "the VM has as many devices in the kernel as it can",
        },
        "KVM_CAP_IOEVENTFD",
    ),
    "KVM_REGISTER_COALESCED_MMIO": Ioctl(
        VM,
        "struct kvm_coalesced_mmio_zone: addr, size, pio",
        "Makes KVM collect the guest's writes to a range in a ring; an exit comes only when it is full.",
        "Take the ring's entries out at each exit, before the exit itself, to keep their order.",
        {"EINVAL": "pio is neither 0 nor 1", "ENOSPC": "the VM has as many devices in the kernel as it can"},
        "KVM_CAP_COALESCED_MMIO",
    ),
    "KVM_UNREGISTER_COALESCED_MMIO": Ioctl(
        VM,
        "struct kvm_coalesced_mmio_zone: addr, size, pio",
        "Stops collecting writes to all zones inside that range.",
        errors={"EINVAL": "pio is neither 0 nor 1"},
        capability="KVM_CAP_COALESCED_MMIO",
    ),
    "KVM_X86_SET_MSR_FILTER": Ioctl(
        VM,
        "struct kvm_msr_filter: flags, and up to 16 ranges with a bitmap each",
        "Says which MSRs the guest may read and write: a bit of 1 allows.",
        "A denied access is #GP, or an exit if KVM_CAP_X86_USER_SPACE_MSR has KVM_MSR_EXIT_REASON_FILTER. "
        "x2APIC's MSRs cannot be filtered.",
        {"EINVAL": "an unknown flag, or a bitmap that is too long", "EFAULT": ""},
        "KVM_CAP_X86_MSR_FILTER",
    ),
    "KVM_GET_STATS_FD": Ioctl(
        f"{VM} or {VCPU}",
        "none",
        "Returns a descriptor of KVM's own counters, which describes itself when it is read.",
        errors={"EMFILE": NO_FD, "ENOMEM": "the kernel has no memory for it"},
        capability="KVM_CAP_BINARY_STATS_FD",
    ),
}
