"""What a vCPU and a VM remember, saved as KVM gives it and put back."""

from __future__ import annotations

import errno

import pytest

from pykvm.errors import ConfigurationError, InUseError, KvmError
from pykvm.kvm import Kvm, Vcpu, Vm
from pykvm.kvm.saved import SavedVcpu, SavedVm
from pykvm.units import PAGE_SIZE, Gpa
from tests.conftest import CODE, DATA, RealModeGuest

SYSENTER_CS = 0x174
NO_MSR = 0x4000_0000
WITHOUT_LAPIC = {"regs", "sregs", "xcrs", "xsave", "debugregs", "msrs", "mp_state", "events", "shown"}


def test_a_vcpu_comes_back_with_every_register(bare_guest: RealModeGuest) -> None:
    vcpu = bare_guest.vcpu
    bare_guest.load(b"\xf4", rbx=7)
    saved = vcpu.save_state([SYSENTER_CS])
    regs = vcpu.get_regs()
    regs.rbx = 8
    vcpu.set_regs(regs)
    vcpu.load_state(saved)
    assert vcpu.get_regs().rbx == 7
    assert vcpu.save_state([SYSENTER_CS]) == saved
    assert set(saved.pieces) == WITHOUT_LAPIC
    assert set(saved.msrs) == {SYSENTER_CS}


def test_a_vcpu_with_a_local_apic_has_one_more_piece(vm: Vm) -> None:
    vm.create_irqchip()
    with vm.create_vcpu() as vcpu:
        saved = vcpu.save_state([])
        assert set(saved.pieces) == WITHOUT_LAPIC | {"lapic"}
        vcpu.load_state(saved)


def test_it_is_the_same_after_a_way_through_bytes(vcpu: Vcpu) -> None:
    saved = vcpu.save_state([SYSENTER_CS])
    again = SavedVcpu.from_pieces(saved.pieces)
    assert again == saved
    assert hash(again) == hash(saved)
    vcpu.load_state(again)
    assert again != SavedVcpu.from_pieces(saved.pieces | {"mp_state": b"\1\0\0\0"})


def test_msrs_that_cannot_be_put_back_are_told_apart(kvm: Kvm, vcpu: Vcpu) -> None:
    kept, refused = vcpu.find_msrs([SYSENTER_CS, NO_MSR])
    assert (kept, refused) == ([SYSENTER_CS], [NO_MSR])
    kept, refused = vcpu.find_msrs(kvm.get_msr_index_list())
    assert SYSENTER_CS in kept
    vcpu.load_state(vcpu.save_state(kept))


def test_an_msr_that_is_refused_is_named(vcpu: Vcpu) -> None:
    with pytest.raises(KvmError, match="MSR 0x40000000 was refused"):
        vcpu.save_state([SYSENTER_CS, NO_MSR])
    pieces = vcpu.save_state([SYSENTER_CS]).pieces
    pieces["msrs"] = pieces["msrs"].replace(SYSENTER_CS.to_bytes(4, "little"), NO_MSR.to_bytes(4, "little"))
    with pytest.raises(KvmError, match=r"KVM_SET_MSRS\(nmsrs=1\): EINVAL: MSR 0x40000000 was refused"):
        vcpu.load_state(SavedVcpu.from_pieces(pieces))


def test_what_kvm_refuses_names_the_ioctl(vcpu: Vcpu) -> None:
    pieces = vcpu.save_state([]).pieces
    pieces["sregs"] = b"\xff" * len(pieces["sregs"])
    with pytest.raises(KvmError, match="KVM_SET_SREGS") as caught:
        vcpu.load_state(SavedVcpu.from_pieces(pieces))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"regs": b""}, "regs has 144 bytes here, not 0"),
        ({"msrs": b"\xff" * 24}, "msrs has room for 1 registers and is said to hold"),
        ({"msrs": b"\1"}, "msrs has 8 bytes here, not 1"),
        ({"shown": b""}, "shown has"),
        ({"more": b""}, "has no 'more'"),
    ],
)
def test_pieces_that_are_none_are_refused(vcpu: Vcpu, change: dict[str, bytes], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        SavedVcpu.from_pieces(vcpu.save_state([]).pieces | change)


def test_a_missing_piece_is_named(vcpu: Vcpu) -> None:
    pieces = vcpu.save_state([]).pieces
    del pieces["regs"], pieces["events"]
    with pytest.raises(ConfigurationError, match="lacks regs, events"):
        SavedVcpu.from_pieces(pieces)


def test_an_instruction_that_is_not_finished_is_in_the_way(bare_guest: RealModeGuest) -> None:
    saved = bare_guest.vcpu.save_state([])
    bare_guest.load(b"\xe6\x80\xf4")  # out %al, $0x80; hlt
    bare_guest.vcpu.run()
    assert not bare_guest.vcpu.is_settled
    for forbidden in (lambda: bare_guest.vcpu.save_state([]), lambda: bare_guest.vcpu.load_state(saved)):
        with pytest.raises(InUseError, match="in the middle of an instruction"):
            forbidden()
    bare_guest.vcpu.complete_pending()
    assert bare_guest.vcpu.is_settled
    bare_guest.vcpu.load_state(saved)


# ---- a VM ----


def test_a_vms_pieces_are_what_it_has(vm: Vm) -> None:
    assert set(vm.save_state().pieces) == {"clock"}
    vm.create_irqchip()
    assert set(vm.save_state().pieces) == {"pic_master", "pic_slave", "ioapic", "clock"}
    vm.create_pit2()
    saved = vm.save_state()
    assert set(saved.pieces) == {"pic_master", "pic_slave", "ioapic", "pit2", "clock"}
    vm.load_state(saved)
    vm.load_state(SavedVm.from_pieces(saved.pieces))


def test_an_interrupt_controllers_state_is_not_anothers(vm: Vm) -> None:
    vm.create_irqchip()
    pieces = vm.save_state().pieces
    pieces["ioapic"] = pieces["pic_master"]
    with pytest.raises(ConfigurationError, match="ioapic holds the state of another interrupt controller, number 0"):
        SavedVm.from_pieces(pieces)


def test_a_vm_without_controllers_refuses_theirs(kvm: Kvm, vm: Vm) -> None:
    with kvm.create_vm() as other:
        other.create_irqchip()
        saved = other.save_state()
    with pytest.raises(KvmError, match="KVM_SET_IRQCHIP"):
        vm.load_state(saved)


# ---- dirty pages ----


def test_logging_can_be_switched_on_later(bare_guest: RealModeGuest) -> None:
    bare_guest.load(b"\xa2\x00\x00\xf4")  # mov %al, 0; hlt
    bare_guest.run()
    assert list(bare_guest.vm.dirty_pages()) == []
    bare_guest.vm.log_dirty_pages()
    bare_guest.vm.log_dirty_pages()
    bare_guest.load(b"\xa2\x00\x00\xf4")
    bare_guest.run()
    assert set(bare_guest.vm.dirty_pages()) == {DATA}
    assert bare_guest.vm.take_dirty_pages() == set()
    for _ in range(2):  # the same bitmap twice
        bare_guest.load(b"\xa2\x00\x00\xa2\x00\x10\xf4")
        bare_guest.run()
        assert bare_guest.vm.take_dirty_pages() == {DATA, DATA + PAGE_SIZE}
    assert CODE not in bare_guest.vm.take_dirty_pages()


def test_memory_stays_pinned_when_logging_is_switched_on(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.log_dirty_pages()
    with pytest.raises(BufferError):
        bare_guest.ram.close()
    assert bare_guest.vm.slots[0].gpa == Gpa(0)
