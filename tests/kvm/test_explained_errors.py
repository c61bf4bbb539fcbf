"""What ``pykvm explain`` says about ioctls' errors is what this host's KVM does: each is provoked."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

import pytest

from pykvm.errors import KvmError
from pykvm.kvm import IrqchipId, Kvm, MpState, MpStateValue, Vcpu, Vm, Xcr
from pykvm.observe.explaining import explain
from pykvm.units import PAGE_SIZE, Gpa


def overlap(vm: Vm, vcpu: Vcpu) -> None:
    vm.set_user_memory_region(0, Gpa(0), mmap.mmap(-1, 2 * PAGE_SIZE))
    vm.set_user_memory_region(1, Gpa(PAGE_SIZE), mmap.mmap(-1, PAGE_SIZE))


def unaligned(vm: Vm, vcpu: Vcpu) -> None:
    vm.set_user_memory_region(0, Gpa(1), mmap.mmap(-1, PAGE_SIZE))


def impossible_sregs(vm: Vm, vcpu: Vcpu) -> None:
    sregs = vcpu.get_sregs()
    sregs.efer = 0x400
    vcpu.set_sregs(sregs)


def high_tss(vm: Vm, vcpu: Vcpu) -> None:
    vm.set_tss_addr(Gpa(0xFFFF_F000))


def no_such_ioeventfd(vm: Vm, vcpu: Vcpu) -> None:
    fd = os.eventfd(0)
    try:
        vm.ioeventfd(0x1000, 4, fd, deassign=True)
    finally:
        os.close(fd)


PROVOKED: list[tuple[str, int, Callable[[Vm, Vcpu], object]]] = [
    ("KVM_CREATE_VCPU", errno.EEXIST, lambda vm, vcpu: vm.create_vcpu(0)),
    ("KVM_CREATE_VCPU", errno.EINVAL, lambda vm, vcpu: vm.create_vcpu(1 << 20)),
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST, overlap),
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL, unaligned),
    ("KVM_SET_TSS_ADDR", errno.EINVAL, high_tss),
    ("KVM_SET_IDENTITY_MAP_ADDR", errno.EINVAL, lambda vm, vcpu: vm.set_identity_map_addr(Gpa(0xFFFB_C000))),
    ("KVM_SET_BOOT_CPU_ID", errno.EBUSY, lambda vm, vcpu: vm.set_boot_cpu_id(0)),
    ("KVM_CREATE_IRQCHIP", errno.EINVAL, lambda vm, vcpu: vm.create_irqchip()),
    ("KVM_GET_IRQCHIP", errno.ENXIO, lambda vm, vcpu: vm.get_irqchip(IrqchipId.IOAPIC)),
    ("KVM_CREATE_PIT2", errno.ENOENT, lambda vm, vcpu: vm.create_pit2()),
    ("KVM_GET_PIT2", errno.ENXIO, lambda vm, vcpu: vm.get_pit2()),
    ("KVM_IRQ_LINE", errno.ENXIO, lambda vm, vcpu: vm.irq_line(4, True)),
    ("KVM_SIGNAL_MSI", errno.EINVAL, lambda vm, vcpu: vm.signal_msi(0xFEE0_0000, 0x20)),
    ("KVM_SET_GSI_ROUTING", errno.EINVAL, lambda vm, vcpu: vm.set_gsi_routing([])),
    ("KVM_IOEVENTFD", errno.ENOENT, no_such_ioeventfd),
    ("KVM_IOEVENTFD", errno.EBADF, lambda vm, vcpu: vm.ioeventfd(0x1000, 4, 1 << 20)),
    ("KVM_IRQFD", errno.EINVAL, lambda vm, vcpu: vm.irqfd(0, 4)),
    ("KVM_RESET_DIRTY_RINGS", errno.EINVAL, lambda vm, vcpu: vm.reset_dirty_rings()),
    ("KVM_SET_SREGS", errno.EINVAL, impossible_sregs),
    ("KVM_GET_LAPIC", errno.EINVAL, lambda vm, vcpu: vcpu.get_lapic()),
    ("KVM_SET_XCRS", errno.EINVAL, lambda vm, vcpu: vcpu.set_xcrs([Xcr(0, 0)])),
    (
        "KVM_SET_MP_STATE",
        errno.EINVAL,
        lambda vm, vcpu: vcpu.set_mp_state(MpState(MpStateValue.INIT_RECEIVED)),
    ),
]


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("ioctl", "number", "provoke"),
    PROVOKED,
    ids=[f"{ioctl}-{errno.errorcode[number]}" for ioctl, number, _ in PROVOKED],
)
def test_an_error_that_is_provoked_is_explained(ioctl: str, number: int, provoke: Callable[[Vm, Vcpu], object]) -> None:
    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu, pytest.raises(KvmError) as caught:
        provoke(vm, vcpu)
    assert (caught.value.ioctl, caught.value.errno) == (ioctl, number)
    assert "no special meaning" not in explain(["errno", errno.errorcode[number], ioctl]).what


@pytest.mark.kvm
def test_interrupts_without_a_local_apic_take_each_others_place() -> None:
    with Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        vcpu.interrupt(32)
        vcpu.interrupt(33)
        assert vcpu.get_vcpu_events().interrupt.nr == 33
    assert "takes the place of the first" in " ".join(explain(["KVM_INTERRUPT"]).advice)
