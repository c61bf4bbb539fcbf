"""Why the processor refused an entry, and why KVM gave up: ``fail-entry`` and ``internal-error``.

See: Intel SDM volume 3, sections "VM-Entry Failures During or After Loading Guest State" and "VM Instruction Error
Numbers"; AMD64 manual volume 2, appendix "SVM Intercept Exit Codes"; for suberrors <linux/kvm.h>. Leaves out the errors
of VMX instructions that KVM does not use to enter a guest.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.kvm.constants import InternalErrorSuberror
from pykvm.observe.explaining.explanation import Bits, Explanation
from pykvm.observe.explaining.lookup import find_name, looks_like_number, one, parse_number

__all__ = ["SUBERRORS", "SUBERROR_PREFIX", "explain_fail_entry", "explain_internal_error", "suberror_names"]

SUBERROR_PREFIX = "KVM_INTERNAL_ERROR_"
ENTRY_FAILURE = 1 << 31  # VT-x: the exit reason's bit that says the entry failed
MASK32 = (1 << 32) - 1
AMD_CODES_32 = range(MASK32 - 3, MASK32 + 1)  # -4 to -1 as KVM gives them where the exit code has 32 bits
AMD_CODES_64 = range((1 << 64) - 4, 1 << 64)
API = 'Documentation/virt/kvm/api.rst, "The kvm_run structure"'
CHECK = (
    "Check the registers that were set last: pykvm.x86.check(regs, sregs) names each rule that they break. Mostly "
    "it is a segment register (CS.L, CS.DB, the busy TSS in TR, limit and G), or CR0, CR4 and EFER."
)

# VT-x: basic exit reasons with which an entry can fail.
VMX_REASONS: dict[int, tuple[str, str, str]] = {
    33: ("invalid guest state", "The guest's registers break a rule, or two of them contradict one another.", CHECK),
    34: (
        "MSR loading",
        "An MSR that is loaded at the entry was given a value that it does not take.",
        "Look at the MSRs set last by KVM_SET_MSRS, and into the kernel log.",
    ),
    41: (
        "machine check",
        "The host's processor met a machine check while it entered the guest.",
        "Look into the host's kernel log: this is a fault of the hardware, or of what emulates it.",
    ),
}

# VT-x: VM-instruction errors that VMLAUNCH and VMRESUME can give.
VMX_ERRORS: dict[int, str] = {
    4: "VMLAUNCH with a VMCS that is not clear",
    5: "VMRESUME with a VMCS that was not launched",
    6: "VMRESUME after VMXOFF",
    7: "invalid control fields: KVM asked for a feature that this processor (or the hypervisor below) does not have",
    8: "invalid host-state fields",
    16: "an invalid executive-VMCS pointer",
    17: "an executive VMCS that was not launched",
    18: "an executive-VMCS pointer that is not the VMXON pointer",
    25: "invalid VM-execution control fields in an executive VMCS",
    26: "events are blocked by MOV SS",
}

# AMD-V: exit codes of a VMRUN that did not run; -1 is what a guest's state can cause.
AMD_ERRORS: dict[int, tuple[str, str]] = {
    1: ("VMEXIT_INVALID", "The guest's registers, or the control block, break a rule of VMRUN."),
    2: ("VMEXIT_BUSY", "The guest's save area is in use by another processor (SEV-ES)."),
    3: ("VMEXIT_IDLE_REQUIRED", "The other thread of this core has to be idle (SEV-SNP)."),
    4: ("VMEXIT_INVALID_PMC", "The state of the performance counters is invalid."),
}

SUBERRORS: dict[InternalErrorSuberror, tuple[str, str, str, str]] = {
    InternalErrorSuberror.EMULATION: (
        "KVM had to emulate an instruction that its emulator does not know.",
        "An instruction that no hypervisor needs to emulate touched device memory (SSE on MMIO is the classic); the "
        "guest jumped to an address where there is no memory, so that there is nothing to fetch; or the host emulates "
        "more than usual: real mode on old VT-x processors, all of ring 0 on some nested hosts.",
        "Disassemble the bytes that came with the exit. Use plain MOV for device registers; see whether RIP is where "
        "code is; 'pykvm doctor --probe' tells what this host cannot emulate.",
        "data[0] flags (bit 0: the bytes are valid), data[1] byte 0 size, then up to 15 bytes of the instruction.",
    ),
    InternalErrorSuberror.SIMUL_EX: (
        "An exception came while another was being delivered, in a combination that KVM does not handle.",
        "On VT-x without EPT or in real mode through emulation; rare.",
        "Look for the first exception: handler, IDT and stack. A usable IDT makes it a double fault at most.",
        "data[0] is VT-x's IDT-vectoring information, data[1] the interruption information, data[2] the error code.",
    ),
    InternalErrorSuberror.DELIVERY_EV: (
        "While the processor delivered an event (an exception or an interrupt) it left the guest for a reason that "
        "KVM cannot finish.",
        "The IDT, the GDT, the TSS or the stack that delivery reads or writes lies in device memory, or nowhere.",
        "See whether IDTR, GDTR, the stack and the TSS point to guest memory, and where the page tables take them.",
        "data[0] is VT-x's IDT-vectoring information, data[1] the exit reason, data[2] the exit qualification, "
        "data[3] the guest-physical address if it was one.",
    ),
    InternalErrorSuberror.UNEXPECTED_EXIT_REASON: (
        "The processor left the guest for a reason that KVM has no handler for.",
        "A processor newer than the kernel, or a hypervisor below that invents exits.",
        "Look data[0] up in the processor's manual; try a newer kernel.",
        "data[0] is the hardware's exit reason, data[1] the host CPU.",
    ),
}


# ---- fail-entry ----


def explain_fail_entry(words: Sequence[str]) -> Explanation:
    """Return what a ``hardware_entry_failure_reason`` says, for VT-x and AMD-V. Raises: ConfigurationError."""
    word = one(words, "hardware_entry_failure_reason of KVM_EXIT_FAIL_ENTRY, as 0x80000021")
    reason = parse_number(word, 64, "a hardware entry failure reason")
    if reason in AMD_CODES_32 or reason in AMD_CODES_64:
        return _amd_failure(reason)
    if reason <= MASK32 and reason & ENTRY_FAILURE:
        return _vmx_failure(reason)
    return _vmx_error(reason)


def _amd_failure(reason: int) -> Explanation:
    code = (-reason) & MASK32
    name, what = AMD_ERRORS[code]
    return Explanation(
        f"fail-entry {reason:#x}: {name} (-{code}), AMD-V",
        what,
        "When VMRUN checks the guest, before its first instruction. What it refuses: CR0.NW without CR0.CD; bits 63:32 "
        "of CR0; reserved bits of CR3, CR4, DR6, DR7 or EFER; EFER.LME and CR0.PG without CR4.PAE or without CR0.PE; "
        "CS.L and CS.D both set in long mode.",
        (CHECK,),
        (API, 'AMD64 manual volume 2, "VMRUN Instruction", "Canonicalization and Consistency Checks"'),
        (Bits(name, reason, f"the exit code: -{code}"),),
    )


def _vmx_failure(reason: int) -> Explanation:
    basic = reason & 0xFFFF
    rest = reason & ~ENTRY_FAILURE & ~0xFFFF
    name, what, advice = VMX_REASONS.get(basic, ("", "", ""))
    bits = [Bits("entry failure", ENTRY_FAILURE, "the guest was not entered: no instruction of it ran")]
    bits.append(Bits("basic reason", basic, f"{basic}: {name or 'none with which an entry fails'}"))
    if rest:
        bits.append(Bits("-", rest, "other bits of the exit reason"))
    return Explanation(
        f"fail-entry {reason:#x}: {name or 'an unknown reason'}, VT-x",
        what or "Bit 31 says that a VM entry failed, but the manual has no such reason for it.",
        "When the processor has begun to load the guest's state, before the guest's first instruction.",
        (advice or CHECK,),
        (
            API,
            'Intel SDM volume 3, "Checks on the Guest State Area"',
            'Intel SDM volume 3, "VM-Entry Failures During or After Loading Guest State"',
        ),
        tuple(bits),
    )


def _vmx_error(reason: int) -> Explanation:
    what = VMX_ERRORS.get(reason)
    return Explanation(
        f"fail-entry {reason:#x}: {f'VM-instruction error {reason}, VT-x' if what else 'an unknown reason'}",
        f"The instruction that enters the guest failed: {what}."
        if what
        else "It is no VM-entry failure of VT-x (those have bit 31 set), no VM-instruction error of an entry, and no "
        "AMD-V exit code of a failed VMRUN (-1 to -4).",
        "Before any of the guest's state was looked at: the cause is KVM or what is below it, hardly the guest.",
        ("Look into the kernel log. Under nested virtualization, the hypervisor below may lack a feature.",),
        (API, 'Intel SDM volume 3, "VM Instruction Error Numbers"'),
        (Bits("reason", reason, what or "unknown"),),
        known=what is not None,
    )


# ---- internal-error ----


def explain_internal_error(words: Sequence[str]) -> Explanation:
    """Return what the suberror is that ``words`` name: "1", "KVM_INTERNAL_ERROR_EMULATION" or "emulation".

    Raises: ConfigurationError.
    """
    word = one(words, "one suberror of KVM_EXIT_INTERNAL_ERROR: its number or name, as 1 or emulation")
    if looks_like_number(word):
        number = parse_number(word, 32, "a suberror")
        known = [member for member in SUBERRORS if member == number]
        return _suberror(known[0]) if known else _unknown_suberror(number)
    name = find_name(word, suberror_names(), "internal error", (SUBERROR_PREFIX,))
    return _suberror(InternalErrorSuberror[name.removeprefix(SUBERROR_PREFIX)])


def suberror_names() -> list[str]:
    """Return the names that ``explain_internal_error`` knows."""
    return [SUBERROR_PREFIX + member.name for member in InternalErrorSuberror]


def _suberror(suberror: InternalErrorSuberror) -> Explanation:
    what, when, advice, data = SUBERRORS[suberror]
    return Explanation(
        f"internal-error {suberror.value}: {SUBERROR_PREFIX}{suberror.name}",
        f"{what} In internal.data: {data}",
        when,
        (advice,),
        (API, "<linux/kvm.h>, KVM_INTERNAL_ERROR_*", "pykvm.kvm: InternalError", "pykvm explain exit 17"),
    )


def _unknown_suberror(number: int) -> Explanation:
    return Explanation(
        f"internal-error {number}: none that pykvm knows",
        f"The suberrors are 1 to {max(SUBERRORS)}; a newer kernel may have more.",
        advice=("Look for it among the KVM_INTERNAL_ERROR_* of <linux/kvm.h> of the kernel that runs.",),
        see=(API,),
        known=False,
    )
