"""The names of model-specific registers: the architectural ones, a few of AMD's, and KVM's own.

See: Intel SDM volume 4, section 2.1 (IA32_*, volume 3, section 11.12.1.2 for the x2APIC's); the AMD64 manual, volume 2,
appendix A; Documentation/virt/kvm/x86/msr.rst. Leaves out what the registers' bits mean, and the registers that only
some models have.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cache

from pykvm.errors import ConfigurationError
from pykvm.names import did_you_mean

__all__ = ["Msr", "msr_name", "parse_msr"]


class Msr(enum.IntEnum):
    """MSR numbers, as ECX of RDMSR and WRMSR takes them."""

    IA32_P5_MC_ADDR = 0x0
    IA32_P5_MC_TYPE = 0x1
    IA32_MONITOR_FILTER_SIZE = 0x6
    IA32_TIME_STAMP_COUNTER = 0x10
    IA32_PLATFORM_ID = 0x17
    IA32_APIC_BASE = 0x1B
    IA32_FEATURE_CONTROL = 0x3A
    IA32_TSC_ADJUST = 0x3B
    IA32_SPEC_CTRL = 0x48
    IA32_PRED_CMD = 0x49
    IA32_BIOS_UPDT_TRIG = 0x79
    IA32_BIOS_SIGN_ID = 0x8B
    IA32_SMM_MONITOR_CTL = 0x9B
    IA32_SMBASE = 0x9E
    IA32_CORE_CAPABILITIES = 0xCF
    IA32_UMWAIT_CONTROL = 0xE1
    IA32_MPERF = 0xE7
    IA32_APERF = 0xE8
    IA32_MTRRCAP = 0xFE
    IA32_ARCH_CAPABILITIES = 0x10A
    IA32_FLUSH_CMD = 0x10B
    IA32_TSX_CTRL = 0x122
    IA32_SYSENTER_CS = 0x174
    IA32_SYSENTER_ESP = 0x175
    IA32_SYSENTER_EIP = 0x176
    IA32_MCG_CAP = 0x179
    IA32_MCG_STATUS = 0x17A
    IA32_MCG_CTL = 0x17B
    IA32_PERF_STATUS = 0x198
    IA32_PERF_CTL = 0x199
    IA32_CLOCK_MODULATION = 0x19A
    IA32_THERM_INTERRUPT = 0x19B
    IA32_THERM_STATUS = 0x19C
    IA32_MISC_ENABLE = 0x1A0
    IA32_ENERGY_PERF_BIAS = 0x1B0
    IA32_XFD = 0x1C4
    IA32_XFD_ERR = 0x1C5
    IA32_DEBUGCTL = 0x1D9
    IA32_MTRR_FIX64K_00000 = 0x250
    IA32_MTRR_FIX16K_80000 = 0x258
    IA32_MTRR_FIX16K_A0000 = 0x259
    IA32_MTRR_FIX4K_C0000 = 0x268
    IA32_MTRR_FIX4K_C8000 = 0x269
    IA32_MTRR_FIX4K_D0000 = 0x26A
    IA32_MTRR_FIX4K_D8000 = 0x26B
    IA32_MTRR_FIX4K_E0000 = 0x26C
    IA32_MTRR_FIX4K_E8000 = 0x26D
    IA32_MTRR_FIX4K_F0000 = 0x26E
    IA32_MTRR_FIX4K_F8000 = 0x26F
    IA32_PAT = 0x277
    IA32_MTRR_DEF_TYPE = 0x2FF
    IA32_PERF_CAPABILITIES = 0x345
    IA32_FIXED_CTR_CTRL = 0x38D
    IA32_PERF_GLOBAL_STATUS = 0x38E
    IA32_PERF_GLOBAL_CTRL = 0x38F
    IA32_PERF_GLOBAL_OVF_CTRL = 0x390
    IA32_PEBS_ENABLE = 0x3F1
    IA32_VMX_BASIC = 0x480
    IA32_VMX_PINBASED_CTLS = 0x481
    IA32_VMX_PROCBASED_CTLS = 0x482
    IA32_VMX_EXIT_CTLS = 0x483
    IA32_VMX_ENTRY_CTLS = 0x484
    IA32_VMX_MISC = 0x485
    IA32_VMX_CR0_FIXED0 = 0x486
    IA32_VMX_CR0_FIXED1 = 0x487
    IA32_VMX_CR4_FIXED0 = 0x488
    IA32_VMX_CR4_FIXED1 = 0x489
    IA32_VMX_VMCS_ENUM = 0x48A
    IA32_VMX_PROCBASED_CTLS2 = 0x48B
    IA32_VMX_EPT_VPID_CAP = 0x48C
    IA32_VMX_TRUE_PINBASED_CTLS = 0x48D
    IA32_VMX_TRUE_PROCBASED_CTLS = 0x48E
    IA32_VMX_TRUE_EXIT_CTLS = 0x48F
    IA32_VMX_TRUE_ENTRY_CTLS = 0x490
    IA32_VMX_VMFUNC = 0x491
    IA32_DS_AREA = 0x600
    IA32_U_CET = 0x6A0
    IA32_S_CET = 0x6A2
    IA32_PL0_SSP = 0x6A4
    IA32_PL1_SSP = 0x6A5
    IA32_PL2_SSP = 0x6A6
    IA32_PL3_SSP = 0x6A7
    IA32_INTERRUPT_SSP_TABLE_ADDR = 0x6A8
    IA32_TSC_DEADLINE = 0x6E0
    IA32_PKRS = 0x6E1
    IA32_PM_ENABLE = 0x770
    IA32_HWP_CAPABILITIES = 0x771
    IA32_HWP_REQUEST = 0x774
    IA32_X2APIC_APICID = 0x802
    IA32_X2APIC_VERSION = 0x803
    IA32_X2APIC_TPR = 0x808
    IA32_X2APIC_PPR = 0x80A
    IA32_X2APIC_EOI = 0x80B
    IA32_X2APIC_LDR = 0x80D
    IA32_X2APIC_SIVR = 0x80F
    IA32_X2APIC_ESR = 0x828
    IA32_X2APIC_LVT_CMCI = 0x82F
    IA32_X2APIC_ICR = 0x830
    IA32_X2APIC_LVT_TIMER = 0x832
    IA32_X2APIC_LVT_THERMAL = 0x833
    IA32_X2APIC_LVT_PMI = 0x834
    IA32_X2APIC_LVT_LINT0 = 0x835
    IA32_X2APIC_LVT_LINT1 = 0x836
    IA32_X2APIC_LVT_ERROR = 0x837
    IA32_X2APIC_INIT_COUNT = 0x838
    IA32_X2APIC_CUR_COUNT = 0x839
    IA32_X2APIC_DIV_CONF = 0x83E
    IA32_X2APIC_SELF_IPI = 0x83F
    IA32_BNDCFGS = 0xD90
    IA32_XSS = 0xDA0
    IA32_EFER = 0xC000_0080
    IA32_STAR = 0xC000_0081  # where SYSCALL finds the segments
    IA32_LSTAR = 0xC000_0082  # and RIP in 64-bit mode
    IA32_CSTAR = 0xC000_0083  # and in compatibility mode
    IA32_FMASK = 0xC000_0084  # and the RFLAGS bits it clears
    IA32_FS_BASE = 0xC000_0100
    IA32_GS_BASE = 0xC000_0101
    IA32_KERNEL_GS_BASE = 0xC000_0102
    IA32_TSC_AUX = 0xC000_0103

    # AMD's
    TSC_RATIO = 0xC000_0104
    SYSCFG = 0xC001_0010
    HWCR = 0xC001_0015
    TOP_MEM = 0xC001_001A
    TOP_MEM2 = 0xC001_001D
    PATCH_LEVEL = 0x8B  # AMD's name of IA32_BIOS_SIGN_ID
    VM_CR = 0xC001_0114
    SMM_BASE = 0xC001_0111
    VM_HSAVE_PA = 0xC001_0117
    VIRT_SPEC_CTRL = 0xC001_011F
    OSVW_ID_LENGTH = 0xC001_0140
    OSVW_STATUS = 0xC001_0141
    DE_CFG = 0xC001_1029

    # KVM's
    MSR_KVM_WALL_CLOCK = 0x11  # deprecated
    MSR_KVM_SYSTEM_TIME = 0x12  # deprecated
    MSR_KVM_WALL_CLOCK_NEW = 0x4B56_4D00
    MSR_KVM_SYSTEM_TIME_NEW = 0x4B56_4D01
    MSR_KVM_ASYNC_PF_EN = 0x4B56_4D02
    MSR_KVM_STEAL_TIME = 0x4B56_4D03
    MSR_KVM_EOI_EN = 0x4B56_4D04
    MSR_KVM_POLL_CONTROL = 0x4B56_4D05
    MSR_KVM_ASYNC_PF_INT = 0x4B56_4D06
    MSR_KVM_ASYNC_PF_ACK = 0x4B56_4D07
    MSR_KVM_MIGRATION_CONTROL = 0x4B56_4D08


# Names with a number in them: the first one's MSR, how far the next one is, and how many there are.
_BANKS: tuple[tuple[str, int, int, int], ...] = (
    ("IA32_SGXLEPUBKEYHASH{}", 0x8C, 1, 4),
    ("IA32_PMC{}", 0xC1, 1, 8),
    ("IA32_PERFEVTSEL{}", 0x186, 1, 8),
    ("IA32_MTRR_PHYSBASE{}", 0x200, 2, 10),
    ("IA32_MTRR_PHYSMASK{}", 0x201, 2, 10),
    ("IA32_MC{}_CTL2", 0x280, 1, 32),
    ("IA32_FIXED_CTR{}", 0x309, 1, 4),
    ("IA32_MC{}_CTL", 0x400, 4, 29),
    ("IA32_MC{}_STATUS", 0x401, 4, 29),
    ("IA32_MC{}_ADDR", 0x402, 4, 29),
    ("IA32_MC{}_MISC", 0x403, 4, 29),
    ("IA32_A_PMC{}", 0x4C1, 1, 8),
    ("IA32_X2APIC_ISR{}", 0x810, 1, 8),
    ("IA32_X2APIC_TMR{}", 0x818, 1, 8),
    ("IA32_X2APIC_IRR{}", 0x820, 1, 8),
)

_PREFIXES = ("", "IA32_", "MSR_", "MSR_KVM_", "KVM_")
# Names that other programs, or the manual elsewhere, use.
_ALIASES = {"IA32_TSC": Msr.IA32_TIME_STAMP_COUNTER, "IA32_FEATURE_CTL": Msr.IA32_FEATURE_CONTROL}


def msr_name(index: int) -> str:
    """Return the name of MSR ``index``, as ``"IA32_EFER"``, or its number in hexadecimal if it has none here."""
    return _names().get(index, f"{index:#x}")


def parse_msr(text: str) -> int:
    """Return the MSR that ``text`` names: "IA32_TSC", in any case and also without its prefix, "0x10" or "16".

    Raises: ConfigurationError that names the closest if there is none; if a number has more than 32 bits.
    """
    name = text.strip().upper()
    if name[:1].isdigit() or name.startswith(("-", "+")):
        return _parse_number(text)
    known = _numbers()
    for prefix in _PREFIXES:
        if prefix + name in known:
            return known[prefix + name]
    hint = did_you_mean(name, known) or did_you_mean(f"IA32_{name}", known) or "write its number"
    raise ConfigurationError(f"there is no MSR called {text!r}: {hint}")


def _parse_number(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        raise ConfigurationError(f"{text!r} is not an MSR: write 0x10, 16 or IA32_TSC") from None
    if not 0 <= number < 1 << 32:
        raise ConfigurationError(f"an MSR's number has 32 bits: {text} does not fit")
    return number


@cache
def _numbers() -> Mapping[str, int]:
    """Return every name's number."""
    single = {name: int(member) for name, member in Msr.__members__.items()}
    banks = {form.format(n): first + n * step for form, first, step, count in _BANKS for n in range(count)}
    return single | banks | _ALIASES


@cache
def _names() -> Mapping[int, str]:
    """Return every number's name; the one that ``Msr`` has first if there are several."""
    names: dict[int, str] = {}
    for name, number in _numbers().items():
        names.setdefault(int(number), name)
    return names
