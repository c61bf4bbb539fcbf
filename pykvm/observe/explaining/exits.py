"""Why KVM_RUN returned: what each ``KVM_EXIT_*`` of x86 is, when it comes, and what to do about it.

See: Documentation/virt/kvm/api.rst, section "The kvm_run structure". Leaves out what a suberror or a hardware reason
adds: see ``failures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from pykvm.kvm.constants import ExitReason
from pykvm.kvm.exits import Exit
from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import find_name, looks_like_number, one, parse_number

__all__ = ["EXITS", "FOREIGN", "PREFIX", "explain", "names"]

PREFIX = "KVM_EXIT_"
KVM_RUN = 'Documentation/virt/kvm/api.rst, "The kvm_run structure"'


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one exit; ``fields`` are those of struct kvm_run that it fills, ``more`` further places."""

    what: str
    when: str
    advice: str
    fields: str = ""
    more: tuple[str, ...] = ()


EXITS: dict[ExitReason, Entry] = {
    ExitReason.UNKNOWN: Entry(
        "The processor left the guest for a reason that KVM does not handle.",
        "Never in an ordinary guest: KVM and this processor do not fit together, or KVM has a bug.",
        "Look hw.hardware_exit_reason up in the processor's manual, and look into the kernel log (dmesg).",
        "hw.hardware_exit_reason: VT-x's exit reason or AMD-V's exit code",
        ('Intel SDM volume 3, appendix "VMX Basic Exit Reasons"',),
    ),
    ExitReason.EXCEPTION: Entry(
        "An exception of the guest came to user space.",
        "Not on x86 any more: today's kernels deliver exceptions to the guest, or stop with KVM_EXIT_DEBUG.",
        "Nothing: a program may treat it as one that cannot happen.",
        "ex.exception, ex.error_code",
    ),
    ExitReason.IO: Entry(
        "The guest executed IN, OUT, INS or OUTS, and no device inside the kernel has that port.",
        "At each access, unless an ioeventfd or a coalescing zone takes writes to the port. An OUT has already "
        "happened; at an IN the guest still waits, and RIP and RAX are those from before it.",
        "Find the device at io.port. For OUT take size * count bytes at data_offset; for IN put as many there. Then "
        "call KVM_RUN again: that finishes the instruction.",
        "io.direction, io.size (1, 2 or 4), io.port, io.count (above 1 for REP), io.data_offset (from the start of "
        "struct kvm_run)",
        ("pykvm explain port 0x3f8: what is at a port",),
    ),
    ExitReason.HYPERCALL: Entry(
        "The guest made a hypercall (VMCALL or VMMCALL) that KVM hands on to user space.",
        "Only for calls that KVM_CAP_EXIT_HYPERCALL was enabled for, such as KVM_HC_MAP_GPA_RANGE; KVM answers all "
        "others by itself.",
        "Put the answer into hypercall.ret, which becomes the guest's RAX, and call KVM_RUN again.",
        "hypercall.nr, hypercall.args[6], hypercall.longmode",
        ("Documentation/virt/kvm/x86/hypercalls.rst", "KVM_CAP_EXIT_HYPERCALL in api.rst"),
    ),
    ExitReason.DEBUG: Entry(
        "The guest met a breakpoint, a watchpoint or the end of a single step.",
        "Only after KVM_SET_GUEST_DEBUG asked for it.",
        "Read debug.arch.dr6 for the cause ('pykvm explain dr6 ...'). A breakpoint on execution stops before the "
        "instruction: to go on, step over it without the breakpoint.",
        "debug.arch.exception (1 is #DB, 3 is #BP), debug.arch.pc (linear), debug.arch.dr6, debug.arch.dr7",
        ("KVM_SET_GUEST_DEBUG in api.rst", 'Intel SDM volume 3, "Debug Registers"'),
    ),
    ExitReason.HLT: Entry(
        "The guest executed HLT: it has nothing to do until an interrupt comes.",
        "Only if the local APIC is not inside the kernel; with KVM_CREATE_IRQCHIP the CPU sleeps inside KVM_RUN.",
        "Wait until a device has an interrupt, inject it, and call KVM_RUN again. If interrupts are off (RFLAGS.IF "
        "clear) and no NMI can come, nothing can wake the CPU: the guest is done.",
        more=('Intel SDM volume 2, "HLT"',),
    ),
    ExitReason.MMIO: Entry(
        "The guest accessed a guest-physical address at which no memory slot is, or wrote to a read-only slot.",
        "At each access to a device's registers, and by mistake: a wild pointer, or page tables that lead nowhere. A "
        "write has already happened; at a read the guest still waits.",
        "Find the device at mmio.phys_addr; for a read put mmio.len bytes into mmio.data; then call KVM_RUN again. If "
        "no device should be there, the address is wrong: walk the guest's page tables for it.",
        "mmio.phys_addr, mmio.data[8], mmio.len (1 to 8), mmio.is_write",
        ("pykvm explain address 0xfee00000: what is at an address",),
    ),
    ExitReason.IRQ_WINDOW_OPEN: Entry(
        "The guest can take an interrupt now: RFLAGS.IF is set, and no STI or MOV SS is just before.",
        "Only if kvm_run.request_interrupt_window was set, as a program does that has an interrupt for a guest which "
        "cannot take it yet.",
        "Inject the interrupt with KVM_INTERRUPT and call KVM_RUN again.",
        more=('Intel SDM volume 3, "Enabling and Disabling Hardware Interrupts"',),
    ),
    ExitReason.SHUTDOWN: Entry(
        "The CPU shut down: a triple fault. An exception could not be delivered, nor the double fault (#DF) that this "
        "caused, and then there was nothing left to try.",
        "A guest without a usable IDT takes any exception; its stack is not mapped when an exception comes; its page "
        "tables do not map the code that runs; paging was switched on with wrong tables. Some kernels do it "
        "to reset.",
        "Look for the first exception: what is at RIP, what does CR2 hold, does the IDT reach up to that vector "
        "(limit >= 16 * vector + 15 in long mode, 8 * vector + 7 in protected mode)? pykvm's crash report shows "
        "these. On AMD-V hosts KVM may have reset the registers by then.",
        more=('Intel SDM volume 3, 6.15, "Interrupt 8-Double Fault Exception"', "pykvm run 12-triple-fault"),
    ),
    ExitReason.FAIL_ENTRY: Entry(
        "The processor refused to enter the guest: its registers contradict one another, or KVM asked for something "
        "that this processor cannot do.",
        "Mostly after KVM_SET_SREGS, which accepts more than the processor does.",
        "Ask 'pykvm explain fail-entry' with the hardware reason; pykvm's crash report checks the registers.",
        "fail_entry.hardware_entry_failure_reason, fail_entry.cpu (the host's CPU)",
        ('Intel SDM volume 3, "Checks on the Guest State Area"', 'AMD64 manual volume 2, "VMRUN Instruction"'),
    ),
    ExitReason.INTR: Entry(
        "A signal took the CPU out of the guest. Nothing happened inside it.",
        "KVM_RUN returns -1 with errno EINTR for a signal or with immediate_exit set; a program that wants to stop a "
        "vCPU does that.",
        "Do what the signal was for, and call KVM_RUN again.",
        more=("KVM_CAP_IMMEDIATE_EXIT in api.rst",),
    ),
    ExitReason.SET_TPR: Entry(
        "The guest lowered CR8, its task priority, so that interrupts that waited may come now.",
        "With the local APIC outside the kernel.",
        "Take the new value from kvm_run.cr8, see whether an interrupt has the priority now, and call KVM_RUN again.",
        "cr8",
        ('Intel SDM volume 3, "Task Priority in IA-32e Mode"',),
    ),
    ExitReason.TPR_ACCESS: Entry(
        "The guest accessed the task-priority register of its local APIC.",
        "Only after KVM_TPR_ACCESS_REPORTING; it exists to patch 32-bit Windows guests.",
        "Call KVM_RUN again.",
        "tpr_access.rip, tpr_access.is_write",
        ("KVM_TPR_ACCESS_REPORTING in kvm.h",),
    ),
    ExitReason.NMI: Entry(
        "A non-maskable interrupt of the host came while the guest ran.",
        "Not on x86 today: the kernel handles its own NMIs and goes on.",
        "Call KVM_RUN again.",
    ),
    ExitReason.INTERNAL_ERROR: Entry(
        "KVM itself cannot go on with this guest.",
        "Mostly because it had to emulate an instruction that its emulator does not know.",
        "Ask 'pykvm explain internal-error' with the suberror. The guest's state stays readable.",
        "internal.suberror, internal.ndata, internal.data[16]",
        ("KVM_CAP_INTERNAL_ERROR_DATA", "pykvm run 13-unknown-instruction"),
    ),
    ExitReason.SYSTEM_EVENT: Entry(
        "The guest, or KVM for it, asks for something that concerns the whole machine: power-off, reset, a crash.",
        "On x86 for KVM_SYSTEM_EVENT_CRASH (Hyper-V's crash registers) and SEV_TERM; a PC powers off by ACPI instead.",
        "Do as system_event.type says: 1 shutdown, 2 reset, 3 crash, 4 wakeup, 5 suspend, 6 SEV termination.",
        "system_event.type, system_event.ndata, system_event.data[16]",
    ),
    ExitReason.IOAPIC_EOI: Entry(
        "The guest ended a level-triggered interrupt that an I/O APIC in user space had sent.",
        "Only with the split irqchip (KVM_CAP_SPLIT_IRQCHIP), for vectors that the routing table has as level.",
        "Tell the I/O APIC: it clears Remote IRR and sends the interrupt again if the line is still active.",
        "eoi.vector",
        ("KVM_CAP_SPLIT_IRQCHIP in api.rst", 'Intel SDM volume 3, "Signaling Interrupt Servicing Completion"'),
    ),
    ExitReason.X86_RDMSR: Entry(
        "The guest executed RDMSR, and user space is to answer.",
        "Only if KVM_CAP_X86_USER_SPACE_MSR was enabled for this reason: the MSR is unknown, the access invalid, or "
        "KVM_X86_SET_MSR_FILTER takes it.",
        "Put the value into msr.data, or set msr.error to 1 for #GP, and call KVM_RUN again.",
        "msr.index, msr.reason, msr.data, msr.error",
        ("KVM_CAP_X86_USER_SPACE_MSR in api.rst", "pykvm explain msr 0xc0000080: what an MSR is"),
    ),
    ExitReason.X86_WRMSR: Entry(
        "The guest executed WRMSR, and user space is to take the value or refuse it.",
        "Only if KVM_CAP_X86_USER_SPACE_MSR was enabled for this reason: the MSR is unknown, the access invalid, or "
        "KVM_X86_SET_MSR_FILTER takes it.",
        "Take msr.data, or set msr.error to 1 for #GP, and call KVM_RUN again.",
        "msr.index, msr.reason, msr.data, msr.error",
        ("KVM_CAP_X86_USER_SPACE_MSR in api.rst", "pykvm explain msr 0xc0000080: what an MSR is"),
    ),
    ExitReason.DIRTY_RING_FULL: Entry(
        "The ring in which KVM notes written pages is full (or nearly).",
        "Only with dirty rings (KVM_CAP_DIRTY_LOG_RING).",
        "Collect the entries, mark them KVM_DIRTY_GFN_F_RESET, call KVM_RESET_DIRTY_RINGS, then KVM_RUN again.",
        more=("KVM_CAP_DIRTY_LOG_RING in api.rst",),
    ),
    ExitReason.X86_BUS_LOCK: Entry(
        "The guest locked the whole bus: a locked access across two cache lines, or to uncached memory.",
        "Only if KVM_CAP_X86_BUS_LOCK_EXIT was enabled. The access has happened.",
        "Slow the guest down if it does so often, and call KVM_RUN again. kvm_run.flags may have KVM_RUN_X86_BUS_LOCK "
        "at other exits too.",
        more=("KVM_CAP_X86_BUS_LOCK_EXIT in api.rst",),
    ),
    ExitReason.NOTIFY: Entry(
        "The guest kept the CPU from taking any event for longer than it was allowed.",
        "Only if KVM_CAP_X86_NOTIFY_VMEXIT was enabled; it stops guests that hang the CPU on purpose.",
        "If notify.flags has KVM_NOTIFY_CONTEXT_INVALID, the guest's state is lost: end it. Else go on, or end it.",
        "notify.flags",
        ("KVM_CAP_X86_NOTIFY_VMEXIT in api.rst",),
    ),
    ExitReason.MEMORY_FAULT: Entry(
        "KVM could not get the host's page for a guest-physical address. KVM_RUN returned -1 with errno EFAULT (or "
        "EHWPOISON).",
        "The memory behind a slot was unmapped or made inaccessible, lies behind the end of a file, or is broken.",
        "See which slot memory_fault.gpa is in, and whether its mapping still exists. Then KVM_RUN may try again.",
        "memory_fault.flags, memory_fault.gpa, memory_fault.size",
        ("KVM_CAP_MEMORY_FAULT_INFO in api.rst",),
    ),
}

# Exits that other architectures have, or emulations of other hypervisors: pykvm never sees them.
FOREIGN: dict[int, tuple[str, str]] = {
    13: ("S390_SIEIC", "of s390: an intercepted instruction"),
    14: ("S390_RESET", "of s390: a reset"),
    15: ("DCR", "of PowerPC: a device control register; no longer used"),
    18: ("OSI", "of PowerPC: a call of the MOL emulator's interface"),
    19: ("PAPR_HCALL", "of PowerPC: a hypercall of a pSeries guest"),
    20: ("S390_UCONTROL", "of s390: a page fault of a VM that user space controls"),
    21: ("WATCHDOG", "of PowerPC: its watchdog expired"),
    22: ("S390_TSCH", "of s390: TEST SUBCHANNEL"),
    23: ("EPR", "of PowerPC: an interrupt is to be acknowledged"),
    25: ("S390_STSI", "of s390: STORE SYSTEM INFORMATION"),
    27: ("HYPERV", "of guests that run on KVM's Hyper-V emulation"),
    28: ("ARM_NISV", "of arm64: an access that the processor does not describe"),
    32: ("AP_RESET_HOLD", "of SEV-ES guests: a processor waits to be started"),
    34: ("XEN", "of guests that run on KVM's Xen emulation"),
    35: ("RISCV_SBI", "of RISC-V: a call of the supervisor binary interface"),
    36: ("RISCV_CSR", "of RISC-V: a control and status register"),
}


def explain(words: Sequence[str]) -> Explanation:
    """Return what the exit is that ``words`` name: "8", "KVM_EXIT_SHUTDOWN" or "shutdown".

    Raises: ConfigurationError.
    """
    word = one(words, "one exit: its number or its name, as 8 or KVM_EXIT_SHUTDOWN")
    number = parse_number(word, 32, "an exit's number") if looks_like_number(word) else _number_of(word)
    if number in FOREIGN:
        return _foreign(number)
    if number not in [reason.value for reason in ExitReason]:
        return Explanation(
            f"exit {number}: none that pykvm knows",
            f"The exits of x86 have numbers up to {max(ExitReason)}; a newer kernel may have more.",
            advice=("Look for the number among the KVM_EXIT_* of <linux/kvm.h> of the kernel that runs.",),
            see=(KVM_RUN,),
            known=False,
        )
    return _exit(ExitReason(number))


def names() -> list[str]:
    """Return the names that ``explain`` knows."""
    return [PREFIX + reason.name for reason in ExitReason] + [PREFIX + name for name, _ in FOREIGN.values()]


def _number_of(word: str) -> int:
    name = find_name(word, names(), "exit", (PREFIX,)).removeprefix(PREFIX)
    foreign = {foreign_name: number for number, (foreign_name, _) in FOREIGN.items()}
    return foreign[name] if name in foreign else ExitReason[name].value


def _exit(reason: ExitReason) -> Explanation:
    entry = EXITS[reason]
    classes = [kind.__name__ for kind in get_args(Exit) if kind.reason is reason]
    what = f"{entry.what} Fields: {entry.fields}." if entry.fields else entry.what
    here = f"pykvm.kvm: {', '.join(classes)}"
    return Explanation(
        f"exit {reason.value}: {PREFIX}{reason.name}", what, entry.when, (entry.advice,), (KVM_RUN, *entry.more, here)
    )


def _foreign(number: int) -> Explanation:
    name, whose = FOREIGN[number]
    return Explanation(
        f"exit {number}: {PREFIX}{name}",
        f"An exit {whose}.",
        "Never in a guest of pykvm, which decodes it as Unknown.",
        see=(KVM_RUN,),
    )
