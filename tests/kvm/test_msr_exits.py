"""MSR accesses that come to user space: answered, refused, and left alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import UnansweredReadError
from pykvm.kvm import Cap, Hlt, IoIn, IoOut, MsrExitReason, Rdmsr, Wrmsr

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

MSR = 0xDEAD_BEEF  # which no processor has
HANDLER = 0x9000
HLT = b"\xf4"
RDMSR = bytes.fromhex("0f 32")
WRMSR = bytes.fromhex("0f 30")
UNKNOWN = MsrExitReason.UNKNOWN.value
PROTECTION_FAULT = IoOut(0x8D, 1, 1, b"\x0d")


@pytest.fixture
def msr_guest(bare_guest: RealModeGuest) -> RealModeGuest:
    """A guest whose accesses to unknown MSRs come to user space, and whose #GP handler writes 13 to port 0x8d."""
    if not bare_guest.vm.check_extension(Cap.X86_USER_SPACE_MSR):
        pytest.skip("this host's KVM has no KVM_CAP_X86_USER_SPACE_MSR")
    ignore = Path("/sys/module/kvm/parameters/ignore_msrs")
    if ignore.exists() and ignore.read_text().strip() in "1Y":
        pytest.skip("kvm.ignore_msrs is set: KVM answers unknown MSRs itself")
    bare_guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, [UNKNOWN])
    bare_guest.set_vector(13, HANDLER)
    bare_guest.write(HANDLER, bytes.fromhex("b0 0d e6 8d f4"))  # mov $13, %al; out %al, $0x8d; hlt
    return bare_guest


def test_rdmsr_reads_the_answer(msr_guest: RealModeGuest) -> None:
    msr_guest.load(RDMSR, HLT, rcx=MSR)
    assert msr_guest.run(lambda exit: bytes(range(8))) == [Rdmsr(MSR, UNKNOWN)]
    assert (msr_guest.regs.rax, msr_guest.regs.rdx) == (0x0302_0100, 0x0706_0504)


def test_a_refused_rdmsr_is_a_protection_fault(msr_guest: RealModeGuest) -> None:
    msr_guest.load(RDMSR, HLT, rcx=MSR)
    exit = msr_guest.vcpu.run()
    assert isinstance(exit, Rdmsr)
    msr_guest.vcpu.refuse(exit)
    assert msr_guest.run() == [PROTECTION_FAULT]


def test_wrmsr_brings_its_value_and_is_accepted_by_running_on(msr_guest: RealModeGuest) -> None:
    msr_guest.load(WRMSR, HLT, rcx=MSR, rax=0x4433_2211, rdx=0x8877_6655)
    assert msr_guest.run() == [Wrmsr(MSR, 0x8877_6655_4433_2211, UNKNOWN)]
    assert msr_guest.regs.rip == 0x8003


def test_a_refused_wrmsr_is_a_protection_fault(msr_guest: RealModeGuest) -> None:
    msr_guest.load(WRMSR, HLT, rcx=MSR)
    exit = msr_guest.vcpu.run()
    assert isinstance(exit, Wrmsr)
    msr_guest.vcpu.refuse(exit)
    assert msr_guest.run() == [PROTECTION_FAULT]


def test_running_on_without_an_answer_to_rdmsr_is_an_error(msr_guest: RealModeGuest) -> None:
    msr_guest.load(RDMSR, HLT, rcx=MSR)
    exit = msr_guest.vcpu.run()
    assert isinstance(exit, Rdmsr)
    with pytest.raises(UnansweredReadError, match=r"Rdmsr\(.* was not answered"):
        msr_guest.vcpu.run()
    with pytest.raises(UnansweredReadError, match="wants 8 bytes, not 4"):
        msr_guest.vcpu.complete(exit, bytes(4))
    msr_guest.vcpu.complete(exit, bytes(8))
    assert msr_guest.vcpu.run() == Hlt()


def test_complete_pending_finishes_an_rdmsr(msr_guest: RealModeGuest) -> None:
    msr_guest.load(RDMSR, HLT, rcx=MSR)
    exit = msr_guest.vcpu.run()
    assert isinstance(exit, Rdmsr)
    msr_guest.vcpu.complete(exit, b"\x2a" + bytes(7))
    assert msr_guest.vcpu.complete_pending() is None
    assert (msr_guest.regs.rax, msr_guest.regs.rip) == (0x2A, 0x8002)


def test_an_answered_rdmsr_can_no_longer_be_refused(msr_guest: RealModeGuest) -> None:
    msr_guest.load(RDMSR, HLT, rcx=MSR)
    exit = msr_guest.vcpu.run()
    assert isinstance(exit, Rdmsr)
    msr_guest.vcpu.complete(exit, bytes(8))
    with pytest.raises(UnansweredReadError, match="has one already"):
        msr_guest.vcpu.refuse(exit)
    assert msr_guest.run() == []


def test_a_refused_rdmsr_can_no_longer_be_answered_nor_refused_again(msr_guest: RealModeGuest) -> None:
    msr_guest.load(RDMSR, HLT, rcx=MSR)
    exit = msr_guest.vcpu.run()
    assert isinstance(exit, Rdmsr)
    msr_guest.vcpu.refuse(exit)
    with pytest.raises(UnansweredReadError, match="has one already"):
        msr_guest.vcpu.complete(exit, bytes(8))
    with pytest.raises(UnansweredReadError, match="has one already"):
        msr_guest.vcpu.refuse(exit)


def test_a_wrmsr_that_was_run_on_from_can_no_longer_be_refused(msr_guest: RealModeGuest) -> None:
    msr_guest.load(WRMSR, HLT, rcx=MSR)
    exit = msr_guest.vcpu.run()
    assert isinstance(exit, Wrmsr)
    msr_guest.vcpu.kick()
    msr_guest.vcpu.run()  # Intr: the instruction is finished, the guest has not gone on
    with pytest.raises(UnansweredReadError):
        msr_guest.vcpu.refuse(exit)
    assert msr_guest.run() == []


def test_another_exit_cannot_be_refused(msr_guest: RealModeGuest) -> None:
    msr_guest.load(bytes.fromhex("e4 60"), HLT)  # in $0x60, %al
    assert isinstance(msr_guest.vcpu.run(), IoIn)
    with pytest.raises(UnansweredReadError):
        msr_guest.vcpu.refuse(Rdmsr(MSR, UNKNOWN))


def test_without_the_capability_an_unknown_msr_is_a_protection_fault(msr_guest: RealModeGuest) -> None:
    msr_guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, [0])
    msr_guest.load(RDMSR, HLT, rcx=MSR)
    assert msr_guest.run() == [PROTECTION_FAULT]


def test_a_known_msr_does_not_come_to_user_space(msr_guest: RealModeGuest) -> None:
    msr_guest.load(RDMSR, HLT, rcx=0x10)  # the time stamp counter
    assert msr_guest.run() == []
