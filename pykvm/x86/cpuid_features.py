"""CPUID's feature bits by name: where each is.

The names are those of /proc/cpuinfo (so SSE3 is ``pni``); a bit that Linux shows nobody has its name in the Linux
sources, in lower case. KVM's own begin with ``kvm_``. See: Intel SDM volume 2, CPUID; the AMD64 manual, volume 3,
appendix E; Documentation/virt/kvm/x86/cpuid.rst. Leaves out fields that are numbers, AMD's second copy of leaf 1's
bits in leaf 0x80000001, and the bits of other vendors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pykvm.errors import ConfigurationError
from pykvm.kvm.structs import CpuidEntry
from pykvm.names import did_you_mean

__all__ = ["ALIASES", "FEATURES", "KVM_FEATURES", "Feature", "feature_names", "features", "find_feature"]

KVM_FEATURES = 0x4000_0001  # the leaf of KVM's features, where nobody moved it

# By leaf, subleaf and register: the names of its 32 bits, bit 0 first, eight a line; "-" is a bit without a name.
FEATURES: dict[tuple[int, int, str], str] = {
    (0x1, 0, "ecx"): """
        pni                pclmulqdq dtes64 monitor ds_cpl vmx    smx    est
        tm2                ssse3     cid    sdbg    fma    cx16   xtpr   pdcm
        -                  pcid      dca    sse4_1  sse4_2 x2apic movbe  popcnt
        tsc_deadline_timer aes       xsave  osxsave avx    f16c   rdrand hypervisor
    """,
    (0x1, 0, "edx"): """
        fpu  vme   de   pse     tsc  msr pae  mce
        cx8  apic  -    sep     mtrr pge mca  cmov
        pat  pse36 pn   clflush -    dts acpi mmx
        fxsr sse   sse2 ss      ht   tm  ia64 pbe
    """,
    (0x6, 0, "eax"): """
        dtherm     ida            arat    -           pln - pts hwp
        hwp_notify hwp_act_window hwp_epp hwp_pkg_req -   - -   -
        -          -              -       hfi         -   - -   -
        -          -              -       -           -   - -   -
    """,
    (0x6, 0, "ecx"): """
        aperfmperf - - epb - - - -
        -          - - -   - - - -
        -          - - -   - - - -
        -          - - -   - - - -
    """,
    (0x7, 0, "ebx"): """
        fsgsbase tsc_adjust sgx      bmi1     hle      avx2       -        smep
        bmi2     erms       invpcid  rtm      cqm      -          mpx      rdt_a
        avx512f  avx512dq   rdseed   adx      smap     avx512ifma -        clflushopt
        clwb     intel_pt   avx512pf avx512er avx512cd sha_ni     avx512bw avx512vl
    """,
    (0x7, 0, "ecx"): """
        -               avx512vbmi umip       pku         ospke           waitpkg avx512_vbmi2     shstk
        gfni            vaes       vpclmulqdq avx512_vnni avx512_bitalg   tme     avx512_vpopcntdq -
        la57            -          -          -           -               -       rdpid            kl
        bus_lock_detect cldemote   -          movdiri     movdir64b       enqcmd  sgx_lc           pks
    """,
    (0x7, 0, "edx"): """
        -                   sgx_keys   avx512_4vnniw avx512_4fmaps fsrm      uintr   -   -
        avx512_vp2intersect srbds_ctrl md_clear      rtm_always_abort - tsx_force_abort serialize hybrid_cpu
        tsxldtrk            -          pconfig       arch_lbr      ibt       -       amx_bf16 avx512_fp16
        amx_tile            amx_int8   spec_ctrl     intel_stibp   flush_l1d arch_capabilities
                                                                        core_capabilities spec_ctrl_ssbd
    """,
    (0x7, 1, "eax"): """
        sha512           sm3  sm4  rao_int  avx_vnni avx512_bf16 lass   cmpccxadd
        arch_perfmon_ext -    fzrm fsrs     fsrc     -           -      -
        -                fred lkgs wrmsrns  nmi_src  amx_fp16    hreset avx_ifma
        -                -    lam  msrlist  -        -           -      movrs
    """,
    (0x7, 1, "edx"): """
        -           - -              -     avx_vnni_int8 avx_ne_convert -         -
        amx_complex - avx_vnni_int16 -     -             -              prefetchi -
        -           - cet_sss        avx10 -             apx_f          -         -
        -           - -              -     -             -              -         -
    """,
    (0x7, 2, "edx"): """
        intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no - -
        -          -          -          -      -        -       - -
        -          -          -          -      -        -       - -
        -          -          -          -      -        -       - -
    """,
    (0xD, 1, "eax"): """
        xsaveopt xsavec xgetbv1 xsaves xfd - - -
        -        -      -       -      -   - - -
        -        -      -       -      -   - - -
        -        -      -       -      -   - - -
    """,
    (KVM_FEATURES, 0, "eax"): """
        kvm_clocksource            kvm_nop_io_delay      kvm_mmu_op          kvm_clocksource2
        kvm_async_pf               kvm_steal_time        kvm_pv_eoi          kvm_pv_unhalt
        -                          kvm_pv_tlb_flush      kvm_async_pf_vmexit kvm_pv_send_ipi
        kvm_poll_control           kvm_pv_sched_yield    kvm_async_pf_int    kvm_msi_ext_dest_id
        kvm_hc_map_gpa_range       kvm_migration_control -                   -
        -                          -                     -                   -
        kvm_clocksource_stable_bit -                     -                   -
        -                          -                     -                   -
    """,
    (KVM_FEATURES, 0, "edx"): """
        kvm_hints_realtime - - - - - - -
        -                  - - - - - - -
        -                  - - - - - - -
        -                  - - - - - - -
    """,
    (0x8000_0001, 0, "ecx"): """
        lahf_lm       cmp_legacy svm   extapic    cr8_legacy  abm    sse4a   misalignsse
        3dnowprefetch osvw       ibs   xop        skinit      wdt    -       lwp
        fma4          tce        -     nodeid_msr -           tbm    topoext perfctr_core
        perfctr_nb    -          bpext ptsc       perfctr_llc mwaitx -       -
    """,
    (0x8000_0001, 0, "edx"): """
        - -        -       -      -  -  -        -
        - -        -       syscall - -  -        -
        - -        -       mp     nx -  mmxext   -
        - fxsr_opt pdpe1gb rdtscp -  lm 3dnowext 3dnow
    """,
    (0x8000_0007, 0, "ebx"): """
        overflow_recov succor - smca - - - -
        -              -      - -    - - - -
        -              -      - -    - - - -
        -              -      - -    - - - -
    """,
    (0x8000_0007, 0, "edx"): """
        -           -   - -             -         - - hw_pstate
        nonstop_tsc cpb - proc_feedback acc_power - - -
        -           -   - -             -         - - -
        -           -   - -             -         - - -
    """,
    (0x8000_0008, 0, "ebx"): """
        clzero   irperf              xsaveerptr -                  rdpru    -      -        -
        -        wbnoinvd            -          -                  amd_ibpb -      amd_ibrs amd_stibp
        -        amd_stibp_always_on -          amd_ibrs_same_mode -        -      -        amd_ppin
        amd_ssbd virt_ssbd           amd_ssb_no cppc               amd_psfd btc_no -        brs
    """,
    (0x8000_000A, 0, "edx"): """
        npt  lbrv svm_lock    nrip_save tsc_scale   vmcb_clean flushbyasid decodeassists
        -    -    pausefilter -         pfthreshold avic       -           v_vmsave_vmload
        vgif -    x2avic      -         v_spec_ctrl -          -           -
        -    vnmi -           -         -           -          -           -
    """,
    (0x8000_001F, 0, "eax"): """
        sme sev -            sev_es sev_snp -          -          -
        -   -   sme_coherent -      -       -          debug_swap -
        -   -   -            -      -       -          -          -
        -   -   -            -      -       -          -          -
    """,
    (0x8000_0021, 0, "eax"): """
        no_nested_data_bp -              lfence_rdtsc -    -           verw_clear null_sel_clr_base -
        autoibrs          no_smm_ctl_msr -            -    -           -          -                 -
        -                 -              -            -    -           -          -                 -
        -                 -              -            sbpb ibpb_brtype srso_no    -                 -
    """,
    (0x8000_0021, 0, "ecx"): """
        - tsa_sq_no tsa_l1_no - - - - -
        - -         -         - - - - -
        - -         -         - - - - -
        - -         -         - - - - -
    """,
    (0x8000_0022, 0, "eax"): """
        perfmon_v2 amd_lbr_v2 amd_lbr_pmc_freeze - - - - -
        -          -          -                  - - - - -
        -          -          -                  - - - - -
        -          -          -                  - - - - -
    """,
}

# Other names by which the manuals, or other programs, know some.
ALIASES: dict[str, str] = {
    "clfsh": "clflush",
    "cmpxchg16b": "cx16",
    "cmpxchg8b": "cx8",
    "htt": "ht",
    "invtsc": "nonstop_tsc",
    "lzcnt": "abm",
    "pclmul": "pclmulqdq",
    "sha": "sha_ni",
    "sse3": "pni",
    "tsc_deadline": "tsc_deadline_timer",
    "xd": "nx",
}


@dataclass(frozen=True, slots=True)
class Feature:
    """The bit called ``name``: bit ``bit`` of ``register``, "eax" to "edx", of leaf ``function``, subleaf ``index``."""

    name: str
    function: int
    index: int
    register: str
    bit: int

    @property
    def mask(self) -> int:
        """The bit as a number."""
        return 1 << self.bit


@cache
def features() -> Mapping[str, Feature]:
    """Return every feature that has a name, by name."""
    return {
        name: Feature(name, function, index, register, bit)
        for (function, index, register), names in FEATURES.items()
        for bit, name in enumerate(names.split())
        if name != "-"
    }


def find_feature(name: str) -> Feature:
    """Return the feature called ``name``. "SSE4.2" and "sse4-2" are sse4_2 too, and the ``ALIASES`` are known.

    Raises: ConfigurationError that names the closest if there is none.
    """
    plain = name.strip().lower().replace(".", "_").replace("-", "_")
    known = features()
    feature = known.get(ALIASES.get(plain, plain))
    if feature is None:
        hint = did_you_mean(plain, [*known, *ALIASES]) or "names are those of /proc/cpuinfo"
        raise ConfigurationError(f"CPUID has no feature {name!r}: {hint}")
    return feature


def feature_names(entry: CpuidEntry) -> list[str]:
    """Return the names of the features that ``entry`` offers, in the order of its registers and bits."""
    return [
        name
        for register in ("eax", "ebx", "ecx", "edx")
        for bit, name in enumerate(FEATURES.get((entry.function, entry.index, register), "").split())
        if name != "-" and getattr(entry, register) >> bit & 1
    ]
