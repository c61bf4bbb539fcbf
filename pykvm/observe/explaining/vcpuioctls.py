"""The ioctls of a vCPU: what each is for, which argument it takes, and what its errors mean.

See: Documentation/virt/kvm/api.rst, section "API description"; for errors that it leaves out, virt/kvm/kvm_main.c and
arch/x86/kvm in the kernel. Leaves out ioctls that pykvm never makes.
"""

from __future__ import annotations

from pykvm.observe.explaining.vmioctls import NO_LAPIC, VCPU, Ioctl

__all__ = ["VCPU_IOCTLS"]

VCPU_IOCTLS: dict[str, Ioctl] = {
    "KVM_RUN": Ioctl(
        VCPU,
        "none; struct kvm_run, which is mapped, goes in and out",
        "Runs the guest until something needs user space: kvm_run.exit_reason says what.",
        "Answer a read (IN, MMIO, RDMSR) in struct kvm_run before the next call. With immediate_exit set it finishes "
        "what is pending and returns EINTR at once.",
        {
            "EINTR": "a signal came, or immediate_exit is set: nothing is wrong",
            "EAGAIN": "a vCPU that waited for INIT and SIPI has been woken: call again",
            "EFAULT": "the host's memory behind a slot is gone or not accessible (exit KVM_EXIT_MEMORY_FAULT says "
            "where, on newer kernels)",
            "EHWPOISON": "the host's memory behind a slot has a hardware error",
            "EINVAL": "kvm_valid_regs or kvm_dirty_regs has unknown bits, the registers given in kvm_run.s are "
            "impossible, or kvm_run.cr8 is above 15",
            "EIO": "the VM belongs to another process, or KVM gave it up after a bug: see the kernel log",
            "ENOMEM": "the kernel has no memory for page tables",
        },
    ),
    "KVM_GET_REGS": Ioctl(
        VCPU,
        "struct kvm_regs",
        "Reads the general registers, RIP and RFLAGS.",
        "While an IN, an MMIO read or an RDMSR waits for its answer they are those from before the instruction.",
    ),
    "KVM_SET_REGS": Ioctl(
        VCPU,
        "struct kvm_regs",
        "Sets the general registers, RIP and RFLAGS (whose bit 1 KVM sets by itself).",
        "Nothing is checked here: a RIP that is not canonical fails the entry.",
    ),
    "KVM_GET_SREGS": Ioctl(
        VCPU,
        "struct kvm_sregs",
        "Reads segment registers, GDTR, IDTR, control registers, EFER, the APIC base and a waiting interrupt.",
    ),
    "KVM_SET_SREGS": Ioctl(
        VCPU,
        "struct kvm_sregs",
        "Sets segment registers with their hidden parts, GDTR, IDTR, control registers, EFER and the APIC base.",
        "Read them first, change what is needed, and write them back. What passes here may still fail the entry.",
        {
            "EINVAL": "the registers contradict one another: EFER.LME and CR0.PG without EFER.LMA or CR4.PAE; EFER.LMA "
            "without CR0.PG; CR0.PG without PE; CR0.NW without CD; CS.L outside long mode; bits 63:32 of CR0; a "
            "reserved bit of CR4, or a CR4 bit whose feature KVM_SET_CPUID2 did not offer; CR3 beyond MAXPHYADDR; a "
            "reserved bit of the APIC base. pykvm.x86.check(regs, sregs) names the rule",
        },
    ),
    "KVM_TRANSLATE": Ioctl(
        VCPU,
        "struct kvm_translation: linear_address in; physical_address, valid, writeable, usermode out",
        "Walks the guest's page tables for one linear address. valid is 0 if it leads nowhere.",
        "writeable and usermode are not filled in truly on x86: walk the tables for rights.",
    ),
    "KVM_INTERRUPT": Ioctl(
        VCPU,
        "struct kvm_interrupt: irq is a vector, 0 to 255",
        "Gives the CPU an external interrupt, as a PIC in user space does.",
        "Only when ready_for_interrupt_injection is set; ask for KVM_EXIT_IRQ_WINDOW_OPEN otherwise. "
        "Without a local APIC in the kernel a second one takes the place of the first, and nobody is told.",
        {
            "EEXIST": "with the split irqchip: an interrupt waits already; run until the guest has taken it",
            "EINVAL": "a vector is 0 to 255",
            "ENXIO": "the PIC is in the kernel: use KVM_IRQ_LINE",
        },
    ),
    "KVM_NMI": Ioctl(
        VCPU,
        "none",
        "Gives the CPU a non-maskable interrupt.",
        "It comes through vector 2; a second one waits until the guest's IRET.",
        capability="KVM_CAP_USER_NMI",
    ),
    "KVM_GET_MSRS": Ioctl(
        VCPU,
        "struct kvm_msrs: nmsrs entries of index and data",
        "Reads MSRs in order. Returns how many it read: less than nmsrs means that the next one was refused.",
        errors={"E2BIG": "256 at most are read at once"},
    ),
    "KVM_SET_MSRS": Ioctl(
        VCPU,
        "struct kvm_msrs: nmsrs entries of index and data",
        "Sets MSRs in order. Returns how many it set: less than nmsrs means that the next one was refused.",
        "A short count is no errno: check it. An MSR is refused if KVM does not know it, or for reserved bits.",
        {"E2BIG": "256 at most are set at once"},
    ),
    "KVM_GET_FPU": Ioctl(VCPU, "struct kvm_fpu", "Reads the x87 and SSE registers."),
    "KVM_SET_FPU": Ioctl(VCPU, "struct kvm_fpu", "Sets the x87 and SSE registers."),
    "KVM_GET_XSAVE": Ioctl(
        VCPU,
        "struct kvm_xsave, 4096 bytes",
        "Reads the extended state (x87, SSE, AVX, ...) in the form that XSAVE gives it.",
        errors={"EINVAL": "the vCPU's state does not fit (AMX was enabled): KVM_GET_XSAVE2 reads all of it"},
        capability="KVM_CAP_XSAVE",
    ),
    "KVM_SET_XSAVE": Ioctl(
        VCPU,
        "struct kvm_xsave",
        "Sets the extended state.",
        errors={"EINVAL": "XSTATE_BV names components that the host lacks, or MXCSR has reserved bits"},
        capability="KVM_CAP_XSAVE",
    ),
    "KVM_GET_XCRS": Ioctl(
        VCPU,
        "struct kvm_xcrs",
        "Reads XCR0: which components of the extended state the guest enabled.",
        errors={"EINVAL": "the host has no XSAVE"},
        capability="KVM_CAP_XCRS",
    ),
    "KVM_SET_XCRS": Ioctl(
        VCPU,
        "struct kvm_xcrs",
        "Sets XCR0.",
        errors={
            "EINVAL": "XCR0 lacks bit 0 (x87), has AVX without SSE, or components that the vCPU's CPUID does not "
            "offer; flags is not 0; or the host has no XSAVE",
        },
        capability="KVM_CAP_XCRS",
    ),
    "KVM_SET_CPUID2": Ioctl(
        VCPU,
        "struct kvm_cpuid2: nent entries",
        "Says what CPUID answers on this vCPU. Without it, it has no features at all.",
        "Before KVM_SET_SREGS with CR4 features, and before the first KVM_RUN.",
        {
            "E2BIG": "256 entries at most",
            "EINVAL": "the vCPU has run, and these are other values; or leaf 0x80000008 has a width of linear "
            "addresses that is none of 0, 48, 57",
            "EPERM": "a feature that the process must ask for by arch_prctl (AMX)",
        },
        "KVM_CAP_EXT_CPUID",
    ),
    "KVM_GET_CPUID2": Ioctl(
        VCPU,
        "struct kvm_cpuid2: nent says how much room there is",
        "Reads what KVM_SET_CPUID2 set, with what KVM changed about it.",
        errors={"E2BIG": "there is no room for all entries: nent has the number that is needed"},
        capability="KVM_CAP_EXT_CPUID",
    ),
    "KVM_GET_MP_STATE": Ioctl(
        VCPU,
        "struct kvm_mp_state",
        "Reads what the vCPU is doing: running, halted, waiting for INIT, waiting for SIPI.",
        capability="KVM_CAP_MP_STATE",
    ),
    "KVM_SET_MP_STATE": Ioctl(
        VCPU,
        "struct kvm_mp_state",
        "Sets what the vCPU is doing.",
        errors={"EINVAL": "no such state; or one other than KVM_MP_STATE_RUNNABLE without a local APIC in the kernel"},
        capability="KVM_CAP_MP_STATE",
    ),
    "KVM_GET_VCPU_EVENTS": Ioctl(
        VCPU,
        "struct kvm_vcpu_events",
        "Reads exceptions, interrupts, NMIs and SMIs that are on their way to the guest.",
        capability="KVM_CAP_VCPU_EVENTS",
    ),
    "KVM_SET_VCPU_EVENTS": Ioctl(
        VCPU,
        "struct kvm_vcpu_events",
        "Sets them, and so can inject an exception: exception.injected, nr, has_error_code, error_code.",
        "flags says which of the optional fields count.",
        {
            "EINVAL": "an unknown flag, a flag whose capability was not enabled, or exception.nr above 31 or 2 (NMI)",
        },
        "KVM_CAP_VCPU_EVENTS",
    ),
    "KVM_GET_DEBUGREGS": Ioctl(
        VCPU, "struct kvm_debugregs", "Reads the guest's own DR0 to DR3, DR6 and DR7.", capability="KVM_CAP_DEBUGREGS"
    ),
    "KVM_SET_DEBUGREGS": Ioctl(
        VCPU,
        "struct kvm_debugregs",
        "Sets the guest's own DR0 to DR3, DR6 and DR7.",
        errors={"EINVAL": "flags is not 0, or DR6 or DR7 has bits above 31"},
        capability="KVM_CAP_DEBUGREGS",
    ),
    "KVM_SET_GUEST_DEBUG": Ioctl(
        VCPU,
        "struct kvm_guest_debug: control, and DR0 to DR7",
        "Makes the guest stop (KVM_EXIT_DEBUG) at breakpoints and watchpoints, or after each instruction.",
        "The guest does not see it: its own debug registers stay.",
        {"EBUSY": "an exception was to be injected while one is pending"},
        "KVM_CAP_SET_GUEST_DEBUG",
    ),
    "KVM_GET_LAPIC": Ioctl(
        VCPU,
        "struct kvm_lapic_state: 1024 bytes, as the local APIC's registers lie in memory",
        "Reads the local APIC.",
        errors={"EINVAL": NO_LAPIC},
        capability="KVM_CAP_IRQCHIP",
    ),
    "KVM_SET_LAPIC": Ioctl(
        VCPU,
        "struct kvm_lapic_state",
        "Sets the local APIC.",
        "After the APIC base (KVM_SET_SREGS), which says in which mode it is.",
        {"EINVAL": NO_LAPIC + "; or the APIC id differs from the vCPU's"},
        "KVM_CAP_IRQCHIP",
    ),
    "KVM_GET_TSC_KHZ": Ioctl(
        f"{VCPU} (and a VM)",
        "none",
        "Returns the frequency of the guest's time-stamp counter in kHz.",
        errors={"EIO": "the host's TSC is unstable"},
        capability="KVM_CAP_GET_TSC_KHZ",
    ),
    "KVM_SET_TSC_KHZ": Ioctl(
        f"{VCPU} (and a VM)",
        "kHz",
        "Sets the frequency of the guest's time-stamp counter.",
        errors={"EINVAL": "the host cannot scale its TSC to that (KVM_CAP_TSC_CONTROL)"},
        capability="KVM_CAP_TSC_CONTROL",
    ),
}
