"""Model-specific registers: what each is for, and the bits of those that pykvm can decode.

See: Intel SDM volume 4; the AMD64 manual, volume 2, appendix "MSR Cross-Reference"; Documentation/virt/kvm/x86/msr.rst.
Leaves out the bits of all others, and registers that only some models have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pykvm.errors import ConfigurationError
from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import one_or_two
from pykvm.observe.explaining.registers import explain_register
from pykvm.x86.msr import Msr, msr_name, parse_msr

__all__ = ["PATTERNS", "PURPOSES", "explain", "names", "purpose"]

INTEL = "Intel SDM volume 4, table 2-2"
AMD = 'AMD64 manual volume 2, appendix "MSR Cross-Reference"'
KVM = "Documentation/virt/kvm/x86/msr.rst"
DECODED = {Msr.IA32_EFER: "efer", Msr.IA32_APIC_BASE: "apic_base"}  # those whose values can be explained
X2APIC = re.compile(r"IA32_X2APIC_")

PURPOSES: dict[str, str] = {
    "IA32_P5_MC_ADDR": "machine checks of the Pentium: the address",
    "IA32_P5_MC_TYPE": "machine checks of the Pentium: the kind of access",
    "IA32_MONITOR_FILTER_SIZE": "line sizes that MONITOR watches",
    "IA32_TIME_STAMP_COUNTER": "the time-stamp counter, which RDTSC reads",
    "IA32_PLATFORM_ID": "which platform this is, for microcode updates",
    "IA32_APIC_BASE": "where the local APIC is, and whether it is on",
    "IA32_FEATURE_CONTROL": "locks VMX, SMX and SGX on or off",
    "IA32_TSC_ADJUST": "what was added to the time-stamp counter",
    "IA32_SPEC_CTRL": "restrains speculation: IBRS, STIBP, SSBD",
    "IA32_PRED_CMD": "flushes branch predictions (IBPB); write only",
    "IA32_BIOS_UPDT_TRIG": "loads a microcode update; write only",
    "IA32_BIOS_SIGN_ID": "which microcode is loaded",
    "IA32_SMM_MONITOR_CTL": "the SMM monitor of VMX",
    "IA32_SMBASE": "where SMM code is, to be read inside SMM",
    "IA32_CORE_CAPABILITIES": "what the core can do: split-lock detection",
    "IA32_UMWAIT_CONTROL": "how long UMWAIT and TPAUSE may wait",
    "IA32_MPERF": "counts at the nominal frequency while not idle",
    "IA32_APERF": "counts at the actual frequency while not idle",
    "IA32_MTRRCAP": "which memory type range registers there are",
    "IA32_ARCH_CAPABILITIES": "which vulnerabilities this CPU does not have",
    "IA32_FLUSH_CMD": "flushes the L1 data cache; write only",
    "IA32_TSX_CTRL": "switches transactions (TSX) off",
    "IA32_SYSENTER_CS": "SYSENTER: the code segment; 0 means that SYSENTER gives #GP",
    "IA32_SYSENTER_ESP": "SYSENTER: the stack pointer",
    "IA32_SYSENTER_EIP": "SYSENTER: the entry point",
    "IA32_MCG_CAP": "machine check: how many banks there are, and what they can do",
    "IA32_MCG_STATUS": "machine check: whether one is in progress",
    "IA32_MCG_CTL": "machine check: switches reporting on",
    "IA32_PERF_STATUS": "the current performance state",
    "IA32_PERF_CTL": "the wanted performance state",
    "IA32_CLOCK_MODULATION": "slows the clock down on demand",
    "IA32_THERM_INTERRUPT": "which temperatures interrupt",
    "IA32_THERM_STATUS": "the temperature, and what limits were passed",
    "IA32_MISC_ENABLE": "switches features such as fast strings and MONITOR",
    "IA32_ENERGY_PERF_BIAS": "a hint: performance or energy, 0 to 15",
    "IA32_XFD": "extended state that is off until first used (AMX)",
    "IA32_XFD_ERR": "which such state caused the #NM",
    "IA32_DEBUGCTL": "debugging: last-branch records, single steps on branches",
    "IA32_PAT": "the page attribute table: eight memory types",
    "IA32_MTRR_DEF_TYPE": "the memory type where no range register says one, and whether they are on",
    "IA32_PERF_CAPABILITIES": "what the performance monitoring can do",
    "IA32_FIXED_CTR_CTRL": "switches the fixed performance counters on",
    "IA32_PERF_GLOBAL_STATUS": "which performance counters overflowed",
    "IA32_PERF_GLOBAL_CTRL": "which performance counters count",
    "IA32_PERF_GLOBAL_OVF_CTRL": "clears the overflows",
    "IA32_PEBS_ENABLE": "event-based sampling",
    "IA32_VMX_BASIC": "VMX: revision, and what the VMCS needs",
    "IA32_VMX_PINBASED_CTLS": "VMX: which pin-based controls may be 0 or 1",
    "IA32_VMX_PROCBASED_CTLS": "VMX: which processor-based controls may be 0 or 1",
    "IA32_VMX_EXIT_CTLS": "VMX: which exit controls may be 0 or 1",
    "IA32_VMX_ENTRY_CTLS": "VMX: which entry controls may be 0 or 1",
    "IA32_VMX_MISC": "VMX: various figures",
    "IA32_VMX_CR0_FIXED0": "VMX: bits of CR0 that must be 1",
    "IA32_VMX_CR0_FIXED1": "VMX: bits of CR0 that may be 1",
    "IA32_VMX_CR4_FIXED0": "VMX: bits of CR4 that must be 1",
    "IA32_VMX_CR4_FIXED1": "VMX: bits of CR4 that may be 1",
    "IA32_VMX_VMCS_ENUM": "VMX: the highest index of a VMCS field",
    "IA32_VMX_PROCBASED_CTLS2": "VMX: which secondary controls may be 0 or 1",
    "IA32_VMX_EPT_VPID_CAP": "VMX: what EPT and VPID can do",
    "IA32_VMX_TRUE_PINBASED_CTLS": "VMX: pin-based controls, without the default ones",
    "IA32_VMX_TRUE_PROCBASED_CTLS": "VMX: processor-based controls, without the default ones",
    "IA32_VMX_TRUE_EXIT_CTLS": "VMX: exit controls, without the default ones",
    "IA32_VMX_TRUE_ENTRY_CTLS": "VMX: entry controls, without the default ones",
    "IA32_VMX_VMFUNC": "VMX: which VM functions there are",
    "IA32_DS_AREA": "where the debug store buffer is",
    "IA32_U_CET": "control-flow enforcement in ring 3",
    "IA32_S_CET": "control-flow enforcement in rings 0 to 2",
    "IA32_PL0_SSP": "the shadow stack of ring 0",
    "IA32_PL1_SSP": "the shadow stack of ring 1",
    "IA32_PL2_SSP": "the shadow stack of ring 2",
    "IA32_PL3_SSP": "the shadow stack of ring 3",
    "IA32_INTERRUPT_SSP_TABLE_ADDR": "shadow stacks for interrupts with IST",
    "IA32_TSC_DEADLINE": "the local APIC's timer: the time-stamp at which it interrupts",
    "IA32_PKRS": "protection keys for supervisor pages",
    "IA32_PM_ENABLE": "switches hardware performance states (HWP) on",
    "IA32_HWP_CAPABILITIES": "HWP: the performance levels there are",
    "IA32_HWP_REQUEST": "HWP: the levels that are wanted",
    "IA32_X2APIC_APICID": "the id",
    "IA32_X2APIC_VERSION": "the version, and how many LVT entries there are",
    "IA32_X2APIC_TPR": "task priority",
    "IA32_X2APIC_PPR": "processor priority",
    "IA32_X2APIC_EOI": "end of interrupt: write 0",
    "IA32_X2APIC_LDR": "logical destination",
    "IA32_X2APIC_SIVR": "spurious interrupt vector, and the software switch",
    "IA32_X2APIC_ESR": "errors",
    "IA32_X2APIC_LVT_CMCI": "LVT: corrected machine checks",
    "IA32_X2APIC_ICR": "interrupt command: sends interrupts, INIT and SIPI to CPUs",
    "IA32_X2APIC_LVT_TIMER": "LVT: the timer",
    "IA32_X2APIC_LVT_THERMAL": "LVT: the thermal sensor",
    "IA32_X2APIC_LVT_PMI": "LVT: performance counters",
    "IA32_X2APIC_LVT_LINT0": "LVT: the pin LINT0, where the 8259A is",
    "IA32_X2APIC_LVT_LINT1": "LVT: the pin LINT1, where the NMI is",
    "IA32_X2APIC_LVT_ERROR": "LVT: errors",
    "IA32_X2APIC_INIT_COUNT": "the timer's initial count",
    "IA32_X2APIC_CUR_COUNT": "the timer's current count",
    "IA32_X2APIC_DIV_CONF": "the timer's divider",
    "IA32_X2APIC_SELF_IPI": "sends an interrupt to this CPU",
    "IA32_BNDCFGS": "MPX in rings 0 to 2",
    "IA32_XSS": "extended state that only XSAVES saves",
    "IA32_EFER": "long mode, SYSCALL, no-execute pages",
    "IA32_STAR": "SYSCALL and SYSRET: where they find their segments",
    "IA32_LSTAR": "SYSCALL: RIP, in 64-bit mode",
    "IA32_CSTAR": "SYSCALL: RIP, in compatibility mode (AMD; Intel has no SYSCALL there)",
    "IA32_FMASK": "SYSCALL: the bits of RFLAGS that it clears",
    "IA32_FS_BASE": "the base of FS, all 64 bits",
    "IA32_GS_BASE": "the base of GS, all 64 bits",
    "IA32_KERNEL_GS_BASE": "what SWAPGS exchanges with the base of GS",
    "IA32_TSC_AUX": "what RDTSCP and RDPID give beside the time: usually the CPU's number",
    "TSC_RATIO": "how fast a guest's time-stamp counter is, as a fixed-point ratio",
    "SYSCFG": "system configuration: TOM2, memory encryption",
    "HWCR": "hardware configuration",
    "TOP_MEM": "where memory below 4 GiB ends",
    "TOP_MEM2": "where memory above 4 GiB ends",
    "VM_CR": "switches SVM off, redirects INIT",
    "SMM_BASE": "where SMM code is",
    "VM_HSAVE_PA": "where VMRUN saves the host's state",
    "VIRT_SPEC_CTRL": "restrains speculation, as a hypervisor offers it",
    "OSVW_ID_LENGTH": "how many errata OSVW_STATUS tells of",
    "OSVW_STATUS": "which errata this CPU has",
    "DE_CFG": "configuration of the decoder: whether LFENCE serializes",
    "MSR_KVM_WALL_CLOCK": "where KVM writes the time at which the VM started; deprecated",
    "MSR_KVM_SYSTEM_TIME": "where KVM writes how to make time of the TSC; deprecated",
    "MSR_KVM_WALL_CLOCK_NEW": "where KVM writes the time at which the VM started",
    "MSR_KVM_SYSTEM_TIME_NEW": "where KVM writes how to make time of the TSC (kvmclock); bit 0 switches it on",
    "MSR_KVM_ASYNC_PF_EN": "page faults of the host told to the guest, so that it can do something else",
    "MSR_KVM_STEAL_TIME": "where KVM writes how long this CPU could not run",
    "MSR_KVM_EOI_EN": "end of interrupt by a bit in memory, without an exit",
    "MSR_KVM_POLL_CONTROL": "whether the host polls for a while when the guest halts",
    "MSR_KVM_ASYNC_PF_INT": "the vector that tells that such a page is there",
    "MSR_KVM_ASYNC_PF_ACK": "the guest has seen that interrupt",
    "MSR_KVM_MIGRATION_CONTROL": "whether the guest may be migrated",
}

# Names with a number in them.
PATTERNS: tuple[tuple[str, str], ...] = (
    (r"IA32_MTRR_FIX(64|16|4)K_[0-9A-F]{5}", "memory types of fixed ranges below 1 MiB, eight in a register"),
    (r"IA32_SGXLEPUBKEYHASH\d", "the hash of the key that may launch SGX enclaves"),
    (r"IA32_PMC\d", "a performance counter"),
    (r"IA32_A_PMC\d", "a performance counter, all of its width"),
    (r"IA32_PERFEVTSEL\d", "what a performance counter counts"),
    (r"IA32_FIXED_CTR\d", "a fixed performance counter"),
    (r"IA32_MTRR_PHYSBASE\d", "a memory type range: where it begins, and the type"),
    (r"IA32_MTRR_PHYSMASK\d", "a memory type range: how long it is, and whether it counts"),
    (r"IA32_MC\d+_CTL2", "a machine-check bank: corrected errors"),
    (r"IA32_MC\d+_CTL", "a machine-check bank: which errors it reports"),
    (r"IA32_MC\d+_STATUS", "a machine-check bank: the error"),
    (r"IA32_MC\d+_ADDR", "a machine-check bank: the error's address"),
    (r"IA32_MC\d+_MISC", "a machine-check bank: more about the error"),
    (r"IA32_X2APIC_ISR\d", "interrupts in service, 32 vectors a register"),
    (r"IA32_X2APIC_TMR\d", "interrupts that are level-triggered, 32 vectors a register"),
    (r"IA32_X2APIC_IRR\d", "interrupts that are requested, 32 vectors a register"),
)


def explain(words: Sequence[str]) -> Explanation:
    """Return what an MSR is: "0xc0000080", "IA32_EFER" or "efer"; a second word is a value to decode.

    Raises: ConfigurationError.
    """
    words = one_or_two(words, "an MSR, and a value if there is one, as 0xc0000080 0x500")
    index = parse_msr(words[0])
    decoded = DECODED.get(Msr(index)) if index in set(Msr) else None
    if len(words) == 2 and decoded is None:
        known = ", ".join(member.name for member in DECODED)
        raise ConfigurationError(f"the bits of {msr_name(index)} are not known here: those of {known} are")
    whole = _msr(index)
    if decoded is None:
        return whole
    bits = explain_register(decoded, words[1:])
    title = f"{whole.title}, {words[1]}" if len(words) == 2 else whole.title
    return replace(whole, title=title, bits=bits.bits, wrong=bits.wrong, see=(*bits.see, whole.see[-1]))


def purpose(name: str) -> str:
    """Return what the MSR called ``name`` is for, "" if that is not known."""
    found = PURPOSES.get(name) or next((text for form, text in PATTERNS if re.fullmatch(form, name)), "")
    return f"the local APIC in x2APIC mode: {found}" if found and X2APIC.match(name) else found


def names() -> list[str]:
    """Return the names that ``explain`` knows, those with a number in them left out."""
    return list(Msr.__members__)


def _msr(index: int) -> Explanation:
    name = msr_name(index)
    use = purpose(name)
    if not use:
        return Explanation(
            f"msr {index:#x}: none that pykvm knows",
            "Some models have it, or none does: then RDMSR and WRMSR give #GP.",
            advice=("KVM_GET_MSR_INDEX_LIST tells which MSRs KVM knows here. Machine.msr.on_read() answers for one.",),
            see=(INTEL, AMD),
            known=False,
        )
    return Explanation(
        f"msr {index:#x}: {name}",
        f"What it is for: {use}.",
        "RDMSR and WRMSR with this number in ECX; KVM_GET_MSRS and KVM_SET_MSRS from outside.",
        ("An MSR that does not exist, or a reserved bit, is #GP; outside, a short count instead of an errno.",),
        (_manual(index), "pykvm explain ioctl KVM_SET_MSRS"),
    )


def _manual(index: int) -> str:
    if index >> 16 == 0xC001 or index == Msr.TSC_RATIO:
        return AMD
    is_kvm = index >> 8 == 0x4B564D or index in (Msr.MSR_KVM_WALL_CLOCK, Msr.MSR_KVM_SYSTEM_TIME)
    return KVM if is_kvm else INTEL
