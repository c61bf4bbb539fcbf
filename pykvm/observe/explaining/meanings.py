"""What each bit of the control, flags and debug registers means, in a few words.

See: Intel SDM volume 3, "Control Registers" and "Debug Registers"; volume 1, "EFLAGS Register"; AMD64 manual volume 2,
"Extended Feature Enable Register (EFER)". Leaves out fields of several bits that are an address: see ``registers``.
"""

from __future__ import annotations

from enum import Flag

from pykvm.x86.exceptions import PageFaultCode
from pykvm.x86.registers import ApicBase, Cr0, Cr3, Cr4, Dr6, Dr7, Efer, Rflags

__all__ = ["MEANINGS"]

_BREAKPOINT_KIND = "what breakpoint {} watches: 0 execution, 1 writes, 2 I/O (with CR4.DE), 3 reads and writes"
_BREAKPOINT_LENGTH = "how many bytes breakpoint {} watches: 0 one, 1 two, 2 eight, 3 four"

MEANINGS: dict[type[Flag], dict[str, str]] = {
    Cr0: {
        "PE": "protection enable: protected mode; clear is real mode",
        "MP": "monitor coprocessor: WAIT gives #NM when TS is set",
        "EM": "emulation: there is no x87; its instructions give #NM, SSE's #UD",
        "TS": "task switched: the next x87 or SSE instruction gives #NM",
        "ET": "extension type: always 1 since the 486",
        "NE": "numeric error: an x87 error is #MF, not an external interrupt",
        "WP": "write protect: ring 0 obeys read-only pages too",
        "AM": "alignment mask: with RFLAGS.AC, misaligned accesses of ring 3 give #AC",
        "NW": "not write-through: only together with CD",
        "CD": "cache disable",
        "PG": "paging: linear addresses go through the page tables at CR3",
    },
    Cr3: {
        "PWT": "page-level write-through, for the top table",
        "PCD": "page-level cache disable, for the top table",
        "LAM_U57": "linear address masking: bits 62 to 57 of user pointers are ignored",
        "LAM_U48": "linear address masking: bits 62 to 48 of user pointers are ignored",
    },
    Cr4: {
        "VME": "virtual-8086 mode extensions",
        "PVI": "protected-mode virtual interrupts",
        "TSD": "time-stamp disable: RDTSC in ring 0 only",
        "DE": "debugging extensions: I/O breakpoints exist, DR4 and DR5 do not",
        "PSE": "page size extensions: 4 MiB pages in 32-bit paging",
        "PAE": "physical address extension: 64-bit page-table entries; long mode needs it",
        "MCE": "machine-check enable: #MC exists",
        "PGE": "page global enable: global pages stay in the TLB when CR3 changes",
        "PCE": "RDPMC in every ring",
        "OSFXSR": "the system saves SSE state: SSE may be used",
        "OSXMMEXCPT": "the system handles #XM",
        "UMIP": "SGDT, SIDT, SLDT, SMSW and STR in ring 0 only",
        "LA57": "5-level paging: linear addresses of 57 bits",
        "VMXE": "Intel virtualization (VMX) may be used",
        "SMXE": "safer mode extensions",
        "FSGSBASE": "RDFSBASE and its sisters in every ring",
        "PCIDE": "process-context identifiers: TLB entries carry CR3's bits 11 to 0",
        "OSXSAVE": "the system uses XSAVE: XCR0 exists",
        "KL": "key locker",
        "SMEP": "ring 0 does not execute user pages",
        "SMAP": "ring 0 does not touch user pages unless RFLAGS.AC is set",
        "PKE": "protection keys for user pages",
        "CET": "control-flow enforcement: shadow stacks, ENDBRANCH",
        "PKS": "protection keys for supervisor pages",
        "UINTR": "user interrupts",
        "LASS": "linear address space separation",
        "LAM_SUP": "linear address masking of supervisor pointers",
        "FRED": "flexible return and event delivery",
    },
    Efer: {
        "SCE": "system call extensions: SYSCALL and SYSRET exist",
        "LME": "long mode enable: what the system asks for",
        "LMA": "long mode active: what the CPU makes of it, LME and CR0.PG",
        "NXE": "no-execute enable: bit 63 of a page-table entry forbids execution",
        "SVME": "AMD virtualization (SVM) may be used",
        "LMSLE": "long mode segment limits are checked (AMD)",
        "FFXSR": "fast FXSAVE and FXRSTOR (AMD)",
        "TCE": "translation cache extension (AMD)",
        "MCOMMIT": "the MCOMMIT instruction exists (AMD)",
        "INTWB": "WBINVD can be interrupted (AMD)",
        "UAIE": "upper address ignore (AMD)",
        "AUTOIBRS": "automatic indirect branch restricted speculation (AMD)",
    },
    Rflags: {
        "CF": "carry",
        "PF": "parity: the result's low byte has an even number of ones",
        "AF": "auxiliary carry, out of bit 3",
        "ZF": "zero",
        "SF": "sign",
        "TF": "trap: #DB after each instruction",
        "IF": "interrupts are taken",
        "DF": "direction: string instructions count down",
        "OF": "overflow",
        "IOPL": "I/O privilege level: the least privileged ring that may use ports, CLI and STI",
        "NT": "nested task",
        "RF": "resume: no instruction breakpoint on the next instruction",
        "VM": "virtual-8086 mode",
        "AC": "alignment checks in ring 3; lifts SMAP in ring 0",
        "VIF": "virtual interrupt flag",
        "VIP": "virtual interrupt pending",
        "ID": "can be changed: CPUID exists",
    },
    Dr6: {
        "B0": "the condition of breakpoint 0 was met",
        "B1": "the condition of breakpoint 1 was met",
        "B2": "the condition of breakpoint 2 was met",
        "B3": "the condition of breakpoint 3 was met",
        "BLD": "no bus lock was detected (clear: one was)",
        "BD": "a debug register was to be accessed while DR7.GD was set",
        "BS": "single step: RFLAGS.TF",
        "BT": "task switch: the TSS's T bit",
        "RTM": "not inside a transaction (clear: inside one)",
    },
    Dr7: {
        **{f"L{n}": f"breakpoint {n} is on until the next task switch" for n in range(4)},
        **{f"G{n}": f"breakpoint {n} is on" for n in range(4)},
        "LE": "exact data breakpoints until the next task switch; ignored since the P6",
        "GE": "exact data breakpoints; ignored since the P6",
        "RTM": "debugging of transactions",
        "GD": "general detect: touching a debug register gives #DB",
        **{f"RW{n}": _BREAKPOINT_KIND.format(n) for n in range(4)},
        **{f"LEN{n}": _BREAKPOINT_LENGTH.format(n) for n in range(4)},
    },
    ApicBase: {
        "BSP": "this is the processor that booted",
        "EXTD": "x2APIC mode: the APIC is reached by MSRs",
        "EN": "the local APIC is on",
    },
    PageFaultCode: {
        "P": "the page is present, and its rights forbid the access",
        "W": "a write",
        "U": "by ring 3",
        "RSVD": "a reserved bit is set in a page-table entry on the way",
        "I": "an instruction fetch",
        "PK": "the page's protection key forbids it",
        "SS": "a shadow-stack access",
        "SGX": "the enclave page cache map forbids it",
    },
}
