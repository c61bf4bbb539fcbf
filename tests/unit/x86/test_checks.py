from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.kvm.structs import CpuidEntry, DebugRegs, DescriptorTable, Regs, Segment, Sregs
from pykvm.x86.checks import Refusal, check, control, execution, features, segments
from pykvm.x86.registers import ApicBase, Cr0, Cr4, Efer, Rflags

SMEP_ONLY = (CpuidEntry(7, ebx=1 << 7),)


class Cpu:
    """A vCPU's registers, to be broken by a test."""

    def __init__(self, regs: Regs, sregs: Sregs) -> None:
        self.regs = regs
        self.sregs = sregs
        self.debugregs = DebugRegs(dr6=0xFFFF_0FF0, dr7=0x400)
        self.cpuid: tuple[CpuidEntry, ...] | None = None

    def problems(self, maxphyaddr: int = 48) -> list[str]:
        found = check(self.regs, self.sregs, maxphyaddr=maxphyaddr, debugregs=self.debugregs, cpuid=self.cpuid)
        return [str(problem) for problem in found]


def reset() -> Cpu:
    """The state after RESET, as KVM gives it."""
    data = Segment(limit=0xFFFF, type=3, present=1, s=1)
    return Cpu(
        Regs(rip=0xFFF0, rdx=0x600),
        Sregs(
            cs=Segment(base=0xFFFF_0000, limit=0xFFFF, selector=0xF000, type=11, present=1, s=1),
            ds=replace(data),
            es=replace(data),
            fs=replace(data),
            gs=replace(data),
            ss=replace(data),
            tr=Segment(limit=0xFFFF, type=11, present=1),
            ldt=Segment(limit=0xFFFF, type=2, present=1),
            gdt=DescriptorTable(limit=0xFFFF),
            idt=DescriptorTable(limit=0xFFFF),
            cr0=Cr0.CD.value | Cr0.NW.value | Cr0.ET.value,
            apic_base=0xFEE0_0000 | ApicBase.EN.value | ApicBase.BSP.value,
        ),
    )


def protected() -> Cpu:
    """Flat 32-bit protected mode in ring 0."""
    cpu = reset()
    flat = Segment(limit=0xFFFF_FFFF, selector=0x10, type=3, present=1, db=1, s=1, g=1)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(cpu.sregs, name, replace(flat))
    cpu.sregs.cs = replace(flat, selector=0x8, type=11)
    cpu.sregs.tr = Segment(0x3000, 0x67, 0x30, 11, 1)
    cpu.sregs.ldt = Segment(unusable=1)
    cpu.sregs.cr0 = Cr0.PE.value | Cr0.ET.value | Cr0.NE.value
    cpu.regs.rip = 0x10_0000
    return cpu


def long_mode() -> Cpu:
    """64-bit code in ring 0, with null data segments."""
    cpu = protected()
    cpu.sregs.cs = replace(cpu.sregs.cs, l=1, db=0)
    for name in ("ds", "es", "fs", "gs"):
        setattr(cpu.sregs, name, Segment(unusable=1))
    cpu.sregs.cr0 |= Cr0.PG.value | Cr0.WP.value
    cpu.sregs.cr3 = 0x1_0000
    cpu.sregs.cr4 = Cr4.PAE.value
    cpu.sregs.efer = Efer.LME.value | Efer.LMA.value | Efer.NXE.value
    cpu.sregs.fs.base = 0xFFFF_8000_0000_0000
    cpu.regs.rip = 0xFFFF_FFFF_8000_0000
    return cpu


def ring3() -> Cpu:
    """64-bit code in ring 3."""
    cpu = long_mode()
    cpu.sregs.cs = replace(cpu.sregs.cs, selector=0x2B, dpl=3)
    cpu.sregs.ss = replace(cpu.sregs.ss, selector=0x23, dpl=3)
    cpu.regs.rflags |= Rflags.IF.value
    return cpu


def virtual_8086() -> Cpu:
    """A task in virtual-8086 mode."""
    cpu = protected()
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        setattr(cpu.sregs, name, Segment(0x1_0000, 0xFFFF, 0x1000, 3, 1, 3, 0, 1))
    cpu.regs = Regs(rip=0x100, rflags=0x2 | Rflags.VM.value | Rflags.IF.value)
    return cpu


CLEAN = (reset, protected, long_mode, ring3, virtual_8086)


@pytest.mark.parametrize("state", CLEAN)
def test_a_clean_state_has_no_problem(state: Callable[[], Cpu]) -> None:
    assert state().problems() == []


def test_real_mode_at_any_segment_has_no_problem() -> None:
    cpu = reset()
    cpu.sregs.cs = replace(cpu.sregs.cs, base=0x7C30, selector=0x7C3)
    assert cpu.problems() == []


def test_a_null_data_segment_is_no_problem_marked_or_not() -> None:
    cpu = long_mode()
    cpu.sregs.ds = Segment(limit=0x1_2345_6, type=0, present=0)
    assert cpu.problems() == []


def test_a_null_ss_runs_in_ring_0_of_long_mode() -> None:
    cpu = long_mode()
    cpu.sregs.ss = Segment(unusable=1)
    assert cpu.problems() == []


def test_conforming_code_runs_in_an_outer_ring() -> None:
    cpu = ring3()
    cpu.sregs.cs.type, cpu.sregs.cs.dpl = 15, 0
    assert cpu.problems() == []


def test_compatibility_mode_in_long_mode_has_no_problem() -> None:
    cpu = long_mode()
    cpu.sregs.cs.l, cpu.sregs.cs.db, cpu.regs.rip = 0, 1, 0x10_0000
    assert cpu.problems() == []


def test_long_mode_enabled_before_paging_has_no_problem() -> None:
    cpu = protected()
    cpu.sregs.efer = Efer.LME.value
    assert cpu.problems() == []


def test_a_16_bit_tss_is_fine_outside_long_mode() -> None:
    cpu = protected()
    cpu.sregs.tr.type = 3
    assert cpu.problems() == []


def test_cleared_bit_1_of_rflags_is_no_problem_because_kvm_sets_it() -> None:
    cpu = protected()
    cpu.regs.rflags = 0
    assert cpu.problems() == []


def test_five_level_paging_widens_canonical_addresses() -> None:
    cpu = long_mode()
    cpu.regs.rip = 0x00FF_FFFF_0000_0000
    assert cpu.problems()
    cpu.sregs.cr4 |= Cr4.LA57.value
    assert cpu.problems() == []


def test_one_interrupt_may_wait_while_if_is_set() -> None:
    cpu = ring3()
    cpu.sregs.interrupt_bitmap = (0, 1, 0, 0)
    assert cpu.problems() == []


def test_a_feature_that_cpuid_offers_may_be_on() -> None:
    cpu = long_mode()
    cpu.sregs.cr4 |= Cr4.SMEP.value
    cpu.cpuid = SMEP_ONLY
    assert cpu.problems() == []


# rule: a clean state, what is set in it, and what the problem says. "cs.type" is sregs.cs.type.
Case = tuple[Callable[[], Cpu], dict[str, object], str]
CASES: dict[str, Case] = {
    "registers_fit_64_bits": (reset, {"cr2": 1 << 64}, "CR2: more than 64 bits"),
    "cr0_upper_half_is_clear": (protected, {"cr0": 1 << 32 | 0x11}, "CR0: bits 0x100000000 are set"),
    "cr0_paging_needs_protection": (reset, {"cr0": Cr0.PG.value}, "CR0: PG is set without PE"),
    "cr0_write_through_needs_cache_disable": (protected, {"cr0": 0x2000_0011}, "CR0: NW is set without CD"),
    "cr3_is_a_physical_address": (long_mode, {"cr3": 1 << 48}, "CR3: bits 0x1000000000000 are set"),
    "cr4_has_no_unknown_bits": (protected, {"cr4": 1 << 40}, "CR4: bits 0x10000000000 are set"),
    "cr4_has_no_bits_kvm_keeps": (protected, {"cr4": 1 << 14}, "CR4: SMXE set"),
    "cr4_pcid_needs_long_mode": (protected, {"cr4": 1 << 17}, "CR4: PCIDE is set while EFER.LMA is clear"),
    "cr4_cet_needs_write_protect": (protected, {"cr4": 1 << 23}, "CR4: CET is set while CR0.WP is clear"),
    "cr4_features_are_in_cpuid": (long_mode, {"cr4": 1 << 20 | 1 << 21 | 0x20, "cpuid": SMEP_ONLY}, "CR4: SMAP set"),
    "long_mode_needs_pae": (long_mode, {"cr4": 0}, "CR4: PAE is clear"),
    "cr8_is_a_priority": (reset, {"cr8": 16}, "CR8: is 0x10"),
    "efer_has_no_unknown_bits": (reset, {"efer": 2}, "EFER: bits 0x2 are set"),
    "efer_active_needs_enable": (long_mode, {"efer": 0x400}, "EFER: LMA is set without LME"),
    "efer_active_needs_paging": (protected, {"efer": 0x500}, "EFER: LMA is set while CR0.PG is clear"),
    "efer_enable_and_paging_is_active": (
        long_mode,
        {"efer": 0x100, "cs.l": 0, "regs.rip": 0},
        "EFER: LMA is clear while LME and CR0.PG are set",
    ),
    "apic_base_has_no_unknown_bits": (reset, {"apic_base": 0xFEE0_0801}, "APIC_BASE: bits 0x1 are set"),
    "apic_base_x2apic_needs_enable": (reset, {"apic_base": 0xFEE0_0400}, "APIC_BASE: EXTD is set without EN"),
    "fields_fit": (
        protected,
        {"ds.dpl": 4, "ds.limit": 1 << 32 | 0xFFF},
        "DS: limit 0x100000fff, dpl 0x4 does not fit",
    ),
    "cs_is_usable": (protected, {"cs.present": 0}, "CS: is not present"),
    "cs_l_needs_long_mode": (protected, {"cs.l": 1}, "CS: L is set while EFER.LMA is clear"),
    "cs_l_excludes_d": (long_mode, {"cs.db": 1}, "CS: L and D are both set"),
    "cs_is_code": (protected, {"cs.type": 10}, "CS: type is 10"),
    "cs_dpl_agrees_with_ss": (long_mode, {"cs.dpl": 3}, "CS: DPL is 3 and SS.DPL is 0"),
    "cs_as_data_is_ring_0": (protected, {"cs.type": 3, "cs.dpl": 3}, "CS: DPL is 3 with type 3"),
    "ss_is_ring_0_in_real_mode": (reset, {"ss.dpl": 3, "cs.dpl": 3}, "SS: DPL is 3 in real mode"),
    "ss_is_writable_data": (protected, {"ss.type": 1}, "SS: type is 1"),
    "data_is_accessed": (protected, {"gs.type": 2}, "GS: type 2 is not accessed"),
    "code_as_data_is_readable": (protected, {"es.type": 9}, "ES: type is 9"),
    "code_and_data_are_no_system_segments": (protected, {"fs.s": 0}, "FS: S is clear"),
    "base_has_32_bits": (long_mode, {"cs.base": 1 << 32}, "CS: base is 0x100000000"),
    "base_is_canonical": (long_mode, {"gs.base": 1 << 47}, "GS: base 0x800000000000 is not canonical"),
    "limit_agrees_with_granularity": (protected, {"ds.limit": 0x1000}, "DS: G is set with limit 0x1000"),
    "virtual_8086_segment_is_like_real_mode": (virtual_8086, {"ds.base": 0}, "DS: selector 0x1000, base 0x0"),
    "virtual_8086_segment_is_ring_3_data": (virtual_8086, {"es.db": 1}, "ES: access rights differ from 0xf3"),
    "tr_is_usable": (long_mode, {"tr.unusable": 1}, "TR: is not present"),
    "tr_is_a_busy_tss": (long_mode, {"tr.type": 9}, "TR: type is 9"),
    "ldt_is_an_ldt": (reset, {"ldt.type": 3}, "LDT: type is 3"),
    "system_segment_has_s_clear": (protected, {"tr.s": 1}, "TR: S is set"),
    "system_selector_is_in_the_gdt": (protected, {"tr.selector": 0x34}, "TR: selector is 0x34"),
    "general_registers_fit_64_bits": (reset, {"regs.rax": -1, "regs.r9": 1 << 64}, "RAX, R9: more than 64 bits"),
    "rip_is_canonical": (long_mode, {"regs.rip": 1 << 47}, "RIP: 0x800000000000 is not canonical"),
    "rip_has_32_bits_outside_64_bit_code": (protected, {"regs.rip": 1 << 32}, "RIP: is 0x100000000"),
    "rflags_has_no_unknown_bits": (protected, {"regs.rflags": 0x802A}, "RFLAGS: bits 0x8028 are set"),
    "rflags_vm_excludes_long_mode": (long_mode, {"regs.rflags": 1 << 17}, "RFLAGS: VM is set in long mode"),
    "rflags_vm_needs_protection": (reset, {"regs.rflags": 1 << 17}, "RFLAGS: VM is set while CR0.PE is clear"),
    "interrupt_needs_if": (protected, {"interrupt_bitmap": (0, 1, 0, 0)}, "interrupt_bitmap: a vector waits"),
    "interrupt_is_one": (ring3, {"interrupt_bitmap": (0, 1, 1, 0)}, "interrupt_bitmap: 2 vectors wait"),
    "gdt_base_is_canonical": (long_mode, {"gdt.base": 1 << 62}, "GDT: base 0x4000000000000000 is not canonical"),
    "idt_base_is_canonical": (long_mode, {"idt.base": 1 << 62}, "IDT: base 0x4000000000000000 is not canonical"),
    "gdt_limit_has_16_bits": (reset, {"gdt.limit": 0x1_0000}, "GDT: limit is 0x10000"),
    "idt_limit_has_16_bits": (reset, {"idt.limit": 0x1_0000}, "IDT: limit is 0x10000"),
    "dr6_has_32_bits": (reset, {"debugregs.dr6": 1 << 32}, "DR6: is 0x100000000"),
    "dr7_has_32_bits": (reset, {"debugregs.dr7": 1 << 32}, "DR7: is 0x100000000"),
}


def broken(case: Case) -> Cpu:
    state, changes, _ = case
    cpu = state()
    for name, value in changes.items():
        owner, _, attribute = name.rpartition(".")
        target = (
            getattr(cpu, owner, None) or getattr(cpu.sregs, owner) if owner else cpu if name == "cpuid" else cpu.sregs
        )
        setattr(target, attribute, value)
    return cpu


@pytest.mark.parametrize("rule", CASES)
def test_a_broken_rule_is_the_one_problem_found(rule: str) -> None:
    problems = broken(CASES[rule]).problems()
    assert len(problems) == 1, problems
    assert problems[0].startswith(CASES[rule][2])


def test_every_rule_has_a_case() -> None:
    plain = [*control.RULES, *features.RULES, *execution.RULES]
    assert {rule.__name__ for rule in plain} | {rule.__name__ for rule, _ in segments.RULES} == set(CASES)


@pytest.mark.parametrize("rule", CASES)
def test_a_problem_says_where_what_why_and_what_comes_of_it(rule: str) -> None:
    cpu = broken(CASES[rule])
    for problem in check(cpu.regs, cpu.sregs, maxphyaddr=48, debugregs=cpu.debugregs, cpuid=cpu.cpuid):
        assert problem.where and problem.what and problem.why
        assert str(problem) == f"{problem.where}: {problem.what} ({problem.why})"
        assert problem.refusal in Refusal


def test_a_limit_above_1_mib_needs_g() -> None:
    cpu = protected()
    cpu.sregs.ds.g = 0
    assert cpu.problems() == [
        "DS: G is clear with limit 0xffffffff (without G a limit has 20 bits; KVM gives it in bytes in either case)"
    ]


def test_a_16_bit_tss_is_refused_in_long_mode() -> None:
    cpu = long_mode()
    cpu.sregs.tr.type = 3
    assert cpu.problems() == ["TR: type is 3 (long mode has no 16-bit TSS: use type 11)"]


def test_cr3_is_checked_by_kvm_only_in_long_mode() -> None:
    for state, refusal in ((long_mode, Refusal.EINVAL), (protected, Refusal.ENTRY)):
        cpu = state()
        cpu.sregs.cr3 = 1 << 40
        assert [problem.refusal for problem in check(cpu.regs, cpu.sregs, maxphyaddr=39)] == [refusal]


def test_all_broken_rules_are_reported() -> None:
    cpu = long_mode()
    cpu.sregs.efer, cpu.sregs.cr8 = Efer.LME.value, 99
    assert [problem.split(":")[0] for problem in cpu.problems()] == ["CR8", "EFER", "CS", "RIP"]


def test_checking_changes_nothing() -> None:
    cpu = broken(CASES["cs_l_excludes_d"])
    regs, sregs = repr(cpu.regs), repr(cpu.sregs)
    cpu.problems()
    assert (repr(cpu.regs), repr(cpu.sregs)) == (regs, sregs)


numbers = st.one_of(st.integers(0, 0xFF), st.integers(0, (1 << 64) - 1), st.integers(-(1 << 70), 1 << 70))
any_segment = st.builds(Segment, **dict.fromkeys(Segment.__dataclass_fields__, numbers))
any_table = st.builds(DescriptorTable, numbers, numbers)
any_sregs = st.builds(
    Sregs,
    **dict.fromkeys(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"), any_segment),
    **dict.fromkeys(("gdt", "idt"), any_table),
    **dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"), numbers),
    interrupt_bitmap=st.lists(numbers, max_size=5).map(tuple),
)
any_regs = st.builds(Regs, **dict.fromkeys(("rip", "rflags", "rsp"), numbers))
any_cpuid = st.none() | st.lists(
    st.builds(CpuidEntry, st.sampled_from((1, 7)), st.integers(0, 1), numbers, ecx=numbers)
)


@given(any_regs, any_sregs, st.integers(-2, 70), st.builds(DebugRegs, dr6=numbers, dr7=numbers), any_cpuid)
def test_any_values_are_checked_without_an_exception(
    regs: Regs, sregs: Sregs, maxphyaddr: int, debugregs: DebugRegs, cpuid: list[CpuidEntry] | None
) -> None:
    for problem in check(regs, sregs, maxphyaddr=maxphyaddr, debugregs=debugregs, cpuid=cpuid):
        assert str(problem)
