"""What a vCPU's registers are set to, they are: KVM_GET_* after KVM_SET_*."""

from __future__ import annotations

import errno
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm import (
    CpuidEntry,
    DebugRegs,
    GuestDebugControl,
    Hlt,
    Kvm,
    MpState,
    MpStateValue,
    MsrEntry,
    Regs,
    Vcpu,
    Vm,
    Xcr,
)
from pykvm.units import Gva

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

U64 = st.integers(0, (1 << 64) - 1)
STATUS_FLAGS = 0xCD5  # CF, PF, AF, ZF, SF, DF, OF
MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_STAR, MSR_KERNEL_GS_BASE = 0x174, 0x175, 0xC000_0081, 0xC000_0102
MSR_NOBODY_KNOWS = 0xDEAD_BEEF


@st.composite
def general_registers(draw: st.DrawFn) -> Regs:
    values = {f.name: draw(U64) for f in fields(Regs)}
    values["rflags"] = values["rflags"] & STATUS_FLAGS | 0x2
    return Regs(**values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(regs=general_registers())
def test_general_registers_are_what_they_were_set_to(vcpu: Vcpu, regs: Regs) -> None:
    vcpu.set_regs(regs)
    assert vcpu.get_regs() == regs


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_register_of_more_than_64_bits_is_refused(vcpu: Vcpu, value: int) -> None:
    before = vcpu.get_regs()
    with pytest.raises(ConfigurationError, match=r"KVM_SET_REGS: .*fit"):
        vcpu.set_regs(replace(before, rax=value))
    assert vcpu.get_regs() == before


def test_special_registers_are_what_they_were_set_to(vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs()
    sregs.gs.selector, sregs.gs.base = 0x1234, 0x12340
    sregs.ss.selector, sregs.ss.base = 0x700, 0x7000
    sregs.gdt.base, sregs.gdt.limit = 0x1000, 0x37
    sregs.idt.base, sregs.idt.limit = 0x2000, 0xFF
    sregs.cr2 = 0xDEAD_F000
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs() == sregs


def test_special_registers_that_contradict_each_other_are_refused(vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1 << 31 | 1  # PG and PE
    sregs.cr4 |= 1 << 5  # PAE
    sregs.efer |= 1 << 8  # LME without LMA
    with pytest.raises(KvmError, match=r"KVM_SET_SREGS\(\): EINVAL"):
        vcpu.set_sregs(sregs)


def test_fpu_registers_are_what_they_were_set_to(vcpu: Vcpu) -> None:
    fpu = vcpu.get_fpu()
    fpu.fpr = tuple(bytes(range(n, n + 10)) + bytes(6) for n in range(8))  # 80 bits each
    fpu.xmm = tuple(bytes(range(16 * n, 16 * n + 16)) for n in range(16))
    fpu.fcw = 0x27F
    vcpu.set_fpu(fpu)
    after = vcpu.get_fpu()
    assert (after.fpr, after.xmm, after.fcw) == (fpu.fpr, fpu.xmm, fpu.fcw)


def test_the_xsave_area_is_what_it_was_set_to_and_holds_the_sse_registers(vcpu: Vcpu) -> None:
    # SDM volume 1, section 13.4: MXCSR at byte 24, XMM0 at byte 160, XSTATE_BV, the parts that are there, at byte 512.
    area = bytearray(vcpu.get_xsave())
    area[24:28] = (0x1FA0).to_bytes(4, "little")
    area[160:176] = b"sixteen letters!"
    area[512] |= 0b11
    vcpu.set_xsave(bytes(area))
    after = vcpu.get_xsave()
    assert after[24:28] == (0x1FA0).to_bytes(4, "little")
    assert after[160:176] == b"sixteen letters!"
    assert vcpu.get_fpu().xmm[0] == b"sixteen letters!"
    vcpu.set_xsave(after)
    assert vcpu.get_xsave() == after


@pytest.mark.parametrize("size", [0, 4095, 4097])
def test_an_xsave_area_of_another_size_is_refused(vcpu: Vcpu, size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"4096 bytes, not {size}"):
        vcpu.set_xsave(bytes(size))


def test_xcr0_is_what_it_was_set_to(kvm: Kvm, vcpu: Vcpu) -> None:
    vcpu.set_cpuid2(kvm.get_supported_cpuid())  # without which the guest has no XSAVE features to switch on
    vcpu.set_xcrs([Xcr(0, 0b11)])  # x87 and SSE
    assert vcpu.get_xcrs() == [Xcr(0, 0b11)]


@pytest.mark.parametrize("value", [0, 1 << 62])
def test_an_xcr0_without_x87_or_with_unknown_features_is_refused(vcpu: Vcpu, value: int) -> None:
    with pytest.raises(KvmError) as caught:
        vcpu.set_xcrs([Xcr(0, value)])
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_SET_XCRS", errno.EINVAL)


def test_more_xcrs_than_the_kernel_takes_are_refused(vcpu: Vcpu) -> None:
    with pytest.raises(ConfigurationError, match="at most 16 registers, not 17"):
        vcpu.set_xcrs([Xcr(0, 1)] * 17)


def test_msrs_are_what_they_were_set_to(vcpu: Vcpu) -> None:
    entries = [
        MsrEntry(MSR_SYSENTER_CS, 0x10),
        MsrEntry(MSR_STAR, 0x0018_0008_0000_0000),
        MsrEntry(MSR_KERNEL_GS_BASE, 0xFFFF_8000_0000_0000),
    ]
    vcpu.set_msrs(entries)
    assert vcpu.get_msrs([entry.index for entry in entries]) == entries


def test_no_msrs_are_no_error(vcpu: Vcpu) -> None:
    vcpu.set_msrs([])
    assert vcpu.get_msrs([]) == []


def test_every_msr_of_the_index_list_that_a_fresh_vcpu_has_can_be_read(kvm: Kvm, vcpu: Vcpu) -> None:
    for index in kvm.get_msr_index_list():
        try:
            entries = vcpu.get_msrs([index])
        except KvmError as error:
            assert f"MSR {index:#x} was refused" in str(error)  # its CPUID feature is off
        else:
            assert [entry.index for entry in entries] == [index]


def test_the_msr_that_was_refused_is_named_and_those_before_it_are_set(vcpu: Vcpu) -> None:
    first, last = MsrEntry(MSR_SYSENTER_CS, 0x20), MsrEntry(MSR_SYSENTER_ESP, 0x77)
    with pytest.raises(KvmError, match=r"KVM_SET_MSRS.*EINVAL: MSR 0xdeadbeef was refused"):
        vcpu.set_msrs([first, MsrEntry(MSR_NOBODY_KNOWS), last])
    assert vcpu.get_msrs([MSR_SYSENTER_CS, MSR_SYSENTER_ESP]) == [first, MsrEntry(MSR_SYSENTER_ESP, 0)]
    with pytest.raises(KvmError, match=r"KVM_GET_MSRS.*EINVAL: MSR 0xdeadbeef was refused"):
        vcpu.get_msrs([MSR_SYSENTER_CS, MSR_NOBODY_KNOWS])


def test_an_msr_number_of_more_than_32_bits_is_refused(vcpu: Vcpu) -> None:
    with pytest.raises(ConfigurationError, match=r"KVM_GET_MSRS: .*fit"):
        vcpu.get_msrs([1 << 32])


def test_cpuid_is_what_it_was_set_to(kvm: Kvm, vcpu: Vcpu) -> None:
    entries = kvm.get_supported_cpuid()
    signature = CpuidEntry(0x4000_0000, eax=0x4000_0000, ebx=1, ecx=2, edx=3)
    entries = [entry for entry in entries if entry.function != signature.function] + [signature]
    vcpu.set_cpuid2(entries)
    after = vcpu.get_cpuid2()
    assert [(e.function, e.index) for e in after] == [(e.function, e.index) for e in entries]
    # Other leaves have bits that follow CR4 and XCR0; a name has none.
    named = {0, 0x4000_0000, 0x8000_0002, 0x8000_0003, 0x8000_0004}
    assert [e for e in after if e.function in named] == [e for e in entries if e.function in named]


def test_more_cpuid_entries_than_the_kernel_takes_are_refused(vcpu: Vcpu) -> None:
    with pytest.raises(KvmError, match=r"KVM_SET_CPUID2.*nent=1000.*E2BIG"):
        vcpu.set_cpuid2([CpuidEntry(n) for n in range(1000)])


def test_vcpu_events_are_what_they_were_set_to(vcpu: Vcpu) -> None:
    events = vcpu.get_vcpu_events()
    events.nmi.masked = 1
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi.masked == 1
    assert vcpu.get_vcpu_events() == events


def test_an_exception_set_as_an_event_reaches_its_handler(bare_guest: RealModeGuest) -> None:
    bare_guest.set_vector(6, 0x9000)
    bare_guest.write(0x9000, bytes.fromhex("e6 80 f4"))  # out %al, $0x80; hlt
    events = bare_guest.vcpu.get_vcpu_events()
    events.exception.injected, events.exception.nr = 1, 6  # #UD
    bare_guest.vcpu.set_vcpu_events(events)
    assert len(bare_guest.run()) == 1
    assert bare_guest.regs.rip == 0x9003


def test_debug_registers_are_what_they_were_set_to(vcpu: Vcpu) -> None:
    before = vcpu.get_debugregs()
    wanted = DebugRegs(db=(0x1000, 0x2000, 0x3000, 1 << 47), dr6=before.dr6, dr7=before.dr7 | 0b11)
    vcpu.set_debugregs(wanted)
    assert vcpu.get_debugregs() == wanted


def test_debug_registers_with_high_bits_are_refused(vcpu: Vcpu) -> None:
    with pytest.raises(KvmError, match=r"KVM_SET_DEBUGREGS\(\): EINVAL"):
        vcpu.set_debugregs(DebugRegs(dr7=1 << 32))


def test_without_an_irqchip_a_vcpu_is_runnable_and_nothing_else(vcpu: Vcpu) -> None:
    vcpu.set_mp_state(MpState(MpStateValue.RUNNABLE))
    assert vcpu.get_mp_state() == MpState(MpStateValue.RUNNABLE)
    with pytest.raises(KvmError, match=r"KVM_SET_MP_STATE\(\): EINVAL"):
        vcpu.set_mp_state(MpState(MpStateValue.SIPI_RECEIVED))


def test_in_real_mode_a_linear_address_is_the_physical_one(vcpu: Vcpu) -> None:
    translation = vcpu.translate(Gva(0x1_2345))
    assert (translation.linear_address, translation.physical_address, translation.valid) == (0x1_2345, 0x1_2345, 1)


def test_a_negative_address_is_refused(vcpu: Vcpu) -> None:
    with pytest.raises(ConfigurationError, match=r"KVM_TRANSLATE: .*fit"):
        vcpu.translate(Gva(-1))


def test_guest_debug_takes_eight_registers(vcpu: Vcpu) -> None:
    with pytest.raises(ConfigurationError, match="eight debug registers, not 4"):
        vcpu.set_guest_debug(GuestDebugControl.ENABLE, [0] * 4)


def test_two_vcpus_of_a_vm_have_registers_of_their_own(vm: Vm, vcpu: Vcpu) -> None:
    with vm.create_vcpu(1) as other:
        vcpu.set_regs(Regs(rax=1))
        other.set_regs(Regs(rax=2))
        assert (vcpu.get_regs().rax, other.get_regs().rax) == (1, 2)


def test_what_struct_kvm_run_says_beside_the_exit_is_what_the_registers_say(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("fb 90 f4"), rflags=0x2)  # sti; nop; hlt
    assert bare_guest.vcpu.run() == Hlt()
    sregs = bare_guest.vcpu.get_sregs()
    assert bare_guest.vcpu.if_flag is True
    assert bare_guest.vcpu.cr8 == sregs.cr8
    assert bare_guest.vcpu.apic_base == sregs.apic_base
