"""Every wrapper of an ioctl: on descriptors that know no such ioctl, on closed ones, and on objects closed before."""

from __future__ import annotations

import errno
import inspect
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pykvm.errors import ClosedError, KvmError
from pykvm.kvm import (
    Cap,
    ClockData,
    DebugRegs,
    Fpu,
    GuestDebugControl,
    Hlt,
    IoIn,
    IrqchipId,
    Kvm,
    MpState,
    MsiRoute,
    MsrEntry,
    MsrFilterRange,
    Rdmsr,
    Regs,
    Sregs,
    Vcpu,
    VcpuEvents,
    Vm,
    Xcr,
)
from pykvm.units import Gpa, Gva

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

# A method's name in capitals behind KVM_ is its ioctl's name: the tests below rely on it.
KVM_IOCTLS: dict[str, Callable[[Kvm], object]] = {
    "get_api_version": lambda kvm: kvm.get_api_version(),
    "check_extension": lambda kvm: kvm.check_extension(Cap.USER_MEMORY),
    "get_vcpu_mmap_size": lambda kvm: kvm.get_vcpu_mmap_size(),
    "get_supported_cpuid": lambda kvm: kvm.get_supported_cpuid(),
    "get_msr_index_list": lambda kvm: kvm.get_msr_index_list(),
    "create_vm": lambda kvm: kvm.create_vm(),
    "enable_cap": lambda kvm: kvm.enable_cap(Cap.HLT),
}
VM_IOCTLS: dict[str, Callable[[Vm], object]] = {
    "check_extension": lambda vm: vm.check_extension(Cap.USER_MEMORY),
    "enable_cap": lambda vm: vm.enable_cap(Cap.HLT),
    "set_tss_addr": lambda vm: vm.set_tss_addr(Gpa(0xFFFB_D000)),
    "set_identity_map_addr": lambda vm: vm.set_identity_map_addr(Gpa(0xFFFB_C000)),
    "set_user_memory_region": lambda vm: vm.set_user_memory_region(0, Gpa(0), mmap.mmap(-1, 4096)),
    "get_dirty_log": lambda vm: vm.get_dirty_log(0),
    "create_vcpu": lambda vm: vm.create_vcpu(7),
    "create_irqchip": lambda vm: vm.create_irqchip(),
    "get_irqchip": lambda vm: vm.get_irqchip(IrqchipId.IOAPIC),
    "set_irqchip": lambda vm: vm.set_irqchip(IrqchipId.IOAPIC, bytes(512)),
    "create_pit2": lambda vm: vm.create_pit2(),
    "get_pit2": lambda vm: vm.get_pit2(),
    "set_pit2": lambda vm: vm.set_pit2(bytes(112)),
    "irq_line": lambda vm: vm.irq_line(1, True),
    "set_gsi_routing": lambda vm: vm.set_gsi_routing([MsiRoute(1, 0xFEE0_0000, 0x20)]),
    "signal_msi": lambda vm: vm.signal_msi(0xFEE0_0000, 0x20),
    "irqfd": lambda vm: vm.irqfd(0, 1),
    "ioeventfd": lambda vm: vm.ioeventfd(0x80, 1, 0, pio=True),
    "register_coalesced_mmio": lambda vm: vm.register_coalesced_mmio(0x80, 1, pio=True),
    "unregister_coalesced_mmio": lambda vm: vm.unregister_coalesced_mmio(0x80, 1, pio=True),
    "x86_set_msr_filter": lambda vm: vm.x86_set_msr_filter([MsrFilterRange(0x10, b"\0", 1)]),
    "get_clock": lambda vm: vm.get_clock(),
    "set_clock": lambda vm: vm.set_clock(ClockData(0)),
    "set_boot_cpu_id": lambda vm: vm.set_boot_cpu_id(0),
    "reset_dirty_rings": lambda vm: vm.reset_dirty_rings(),
    "get_stats_fd": lambda vm: vm.get_stats_fd(),
}
VCPU_IOCTLS: dict[str, Callable[[Vcpu], object]] = {
    "run": lambda vcpu: vcpu.run(),
    "enable_cap": lambda vcpu: vcpu.enable_cap(Cap.HLT),
    "get_regs": lambda vcpu: vcpu.get_regs(),
    "set_regs": lambda vcpu: vcpu.set_regs(Regs()),
    "get_sregs": lambda vcpu: vcpu.get_sregs(),
    "set_sregs": lambda vcpu: vcpu.set_sregs(Sregs()),
    "get_fpu": lambda vcpu: vcpu.get_fpu(),
    "set_fpu": lambda vcpu: vcpu.set_fpu(Fpu()),
    "get_xsave": lambda vcpu: vcpu.get_xsave(),
    "set_xsave": lambda vcpu: vcpu.set_xsave(bytes(4096)),
    "get_xcrs": lambda vcpu: vcpu.get_xcrs(),
    "set_xcrs": lambda vcpu: vcpu.set_xcrs([Xcr(0, 1)]),
    "get_msrs": lambda vcpu: vcpu.get_msrs([0x10]),
    "set_msrs": lambda vcpu: vcpu.set_msrs([MsrEntry(0x10)]),
    "get_cpuid2": lambda vcpu: vcpu.get_cpuid2(),
    "set_cpuid2": lambda vcpu: vcpu.set_cpuid2([]),
    "get_vcpu_events": lambda vcpu: vcpu.get_vcpu_events(),
    "set_vcpu_events": lambda vcpu: vcpu.set_vcpu_events(VcpuEvents()),
    "get_debugregs": lambda vcpu: vcpu.get_debugregs(),
    "set_debugregs": lambda vcpu: vcpu.set_debugregs(DebugRegs()),
    "get_mp_state": lambda vcpu: vcpu.get_mp_state(),
    "set_mp_state": lambda vcpu: vcpu.set_mp_state(MpState()),
    "set_guest_debug": lambda vcpu: vcpu.set_guest_debug(GuestDebugControl(0)),
    "translate": lambda vcpu: vcpu.translate(Gva(0)),
    "interrupt": lambda vcpu: vcpu.interrupt(0x20),
    "nmi": lambda vcpu: vcpu.nmi(),
    "get_lapic": lambda vcpu: vcpu.get_lapic(),
    "set_lapic": lambda vcpu: vcpu.set_lapic(bytes(1024)),
    "get_tsc_khz": lambda vcpu: vcpu.get_tsc_khz(),
    "set_tsc_khz": lambda vcpu: vcpu.set_tsc_khz(1_000_000),
    "get_stats_fd": lambda vcpu: vcpu.get_stats_fd(),
}

NOTHING_SAVED: Any = None  # a closed object does not look at it

# Public, but no ioctl: what a closed object says to them. None: they work, and say that it is closed.
OTHERS: dict[str, Callable[[Vcpu], object] | None] = {
    "close": None,
    "closed": None,
    "fileno": lambda vcpu: vcpu.fileno(),
    "open": None,
    "slots": None,
    "slot_changes": None,
    "check_idle": None,
    "kick": lambda vcpu: vcpu.kick(),
    "start_ticks": lambda vcpu: vcpu.start_ticks(1, 1),
    "stop_ticks": lambda vcpu: vcpu.stop_ticks(),
    "complete": lambda vcpu: vcpu.complete(IoIn(0, 1), b"\0"),
    "refuse": lambda vcpu: vcpu.refuse(Rdmsr(0, 0)),
    "is_settled": None,
    "find_msrs": lambda vcpu: vcpu.find_msrs([0x10]),
    "save_state": lambda vcpu: vcpu.save_state([]),
    "save_state_again": lambda vcpu: vcpu.save_state_again(NOTHING_SAVED, ()),
    "sync_registers": lambda vcpu: vcpu.sync_registers(True),
    "whereabouts": lambda vcpu: vcpu.whereabouts(),
    "load_state": lambda vcpu: vcpu.load_state(NOTHING_SAVED),
    "load_steps": lambda vcpu: vcpu.load_steps(NOTHING_SAVED),
    "show": lambda vcpu: vcpu.show(NOTHING_SAVED),
    "abandon": lambda vcpu: vcpu.abandon(),
    "complete_pending": lambda vcpu: vcpu.complete_pending(),
    "request_interrupt_window": lambda vcpu: vcpu.request_interrupt_window,
    "ready_for_interrupt_injection": lambda vcpu: vcpu.ready_for_interrupt_injection,
    "if_flag": lambda vcpu: vcpu.if_flag,
    "cr8": lambda vcpu: vcpu.cr8,
    "apic_base": lambda vcpu: vcpu.apic_base,
    "stats": lambda vcpu: vcpu.stats(),
    "enable_dirty_ring": None,
    "dirty_pages": None,
    "drain_coalesced": None,
    "log_dirty_pages": None,
    "forget_translations": None,
    "take_dirty_pages": None,
    "has_dirty_rings": None,
    "written_pages": None,
}
# The last seven are a VM's alone.
VM_OTHERS: dict[str, Callable[[Vm], object]] = {
    "fileno": lambda vm: vm.fileno(),
    "stats": lambda vm: vm.stats(),
    "enable_dirty_ring": lambda vm: vm.enable_dirty_ring(1 << 16),
    "dirty_pages": lambda vm: vm.dirty_pages(),
    "drain_coalesced": lambda vm: vm.drain_coalesced(),
    "log_dirty_pages": lambda vm: vm.log_dirty_pages(),
    "forget_translations": lambda vm: vm.forget_translations(),
    "take_dirty_pages": lambda vm: vm.take_dirty_pages(),
    "written_pages": lambda vm: vm.written_pages([]),
    "save_state": lambda vm: vm.save_state(),
    "load_state": lambda vm: vm.load_state(NOTHING_SAVED),
    "load_steps": lambda vm: vm.load_steps(NOTHING_SAVED),
}


@pytest.fixture(params=["another device", "no descriptor"])
def bad_fd(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A descriptor that takes no ioctl of KVM, and the errno it answers with."""
    if request.param == "no descriptor":
        yield -1, errno.EBADF
        return
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    yield fd, errno.ENOTTY
    os.close(fd)


@contextmanager
def pretending(target: Kvm | Vm | Vcpu, fd: int) -> Iterator[None]:
    """Put ``fd`` in the place of ``target``'s own descriptor."""
    own = target.fileno()
    target._fd = fd
    if isinstance(target, Vcpu):
        target._c.fd = fd
    try:
        yield
    finally:
        target._fd = own
        if isinstance(target, Vcpu):
            target._c.fd = own


@pytest.mark.parametrize(("kind", "table"), [(Kvm, KVM_IOCTLS), (Vm, VM_IOCTLS), (Vcpu, VCPU_IOCTLS)])
def test_no_public_name_is_missing_from_the_tables(kind: type, table: dict[str, object]) -> None:
    public = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
    assert public - OTHERS.keys() == table.keys()


@pytest.mark.parametrize("name", KVM_IOCTLS)
def test_kvm_on_a_bad_descriptor_names_the_ioctl(kvm: Kvm, bad_fd: tuple[int, int], name: str) -> None:
    fd, error = bad_fd
    with pretending(kvm, fd), pytest.raises(KvmError) as caught:
        KVM_IOCTLS[name](kvm)
    assert (caught.value.ioctl, caught.value.errno) == (f"KVM_{name.upper()}", error)


@pytest.mark.parametrize("name", VM_IOCTLS)
def test_vm_on_a_bad_descriptor_names_the_ioctl(vm: Vm, bad_fd: tuple[int, int], name: str) -> None:
    fd, error = bad_fd
    with pretending(vm, fd), pytest.raises(KvmError) as caught:
        VM_IOCTLS[name](vm)
    assert (caught.value.ioctl, caught.value.errno) == (f"KVM_{name.upper()}", error)


@pytest.mark.parametrize("name", VCPU_IOCTLS)
def test_vcpu_on_a_bad_descriptor_names_the_ioctl(vcpu: Vcpu, bad_fd: tuple[int, int], name: str) -> None:
    fd, error = bad_fd
    with pretending(vcpu, fd), pytest.raises(KvmError) as caught:
        VCPU_IOCTLS[name](vcpu)
    assert (caught.value.ioctl, caught.value.errno) == (f"KVM_{name.upper()}", error)


def test_completing_an_exit_on_a_bad_descriptor_names_the_ioctl(
    bare_guest: RealModeGuest, bad_fd: tuple[int, int]
) -> None:
    fd, error = bad_fd
    bare_guest.load(bytes.fromhex("e6 80 f4"))  # out %al, $0x80; hlt
    bare_guest.vcpu.run()
    with pretending(bare_guest.vcpu, fd), pytest.raises(KvmError) as caught:
        bare_guest.vcpu.complete_pending()
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_RUN", error)
    assert bare_guest.vcpu.complete_pending() is None, "the failure lost nothing"
    assert bare_guest.vcpu.run() == Hlt()


def test_a_failed_ioctl_leaks_no_memory_and_no_descriptor(vm: Vm) -> None:
    ram = mmap.mmap(-1, 4096)
    before = len([*Path("/proc/self/fd").iterdir()])
    with pretending(vm, -1):
        with pytest.raises(KvmError):
            vm.set_user_memory_region(0, Gpa(0), ram)
        with pytest.raises(KvmError):
            vm.create_vcpu()
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    ram.close()


@pytest.mark.parametrize("name", KVM_IOCTLS)
def test_a_closed_kvm_says_so(kvm: Kvm, name: str) -> None:
    kvm.close()
    with pytest.raises(ClosedError, match="/dev/kvm is closed"):
        KVM_IOCTLS[name](kvm)


@pytest.mark.parametrize("name", [*VM_IOCTLS, *VM_OTHERS])
def test_a_closed_vm_says_so(vm: Vm, name: str) -> None:
    use = VM_IOCTLS.get(name) or VM_OTHERS[name]
    vm.close()
    with pytest.raises(ClosedError, match="the VM is closed"):
        use(vm)


@pytest.mark.parametrize("name", [*VCPU_IOCTLS, *(name for name, use in OTHERS.items() if use)])
def test_a_closed_vcpu_says_so(vcpu: Vcpu, name: str) -> None:
    use = VCPU_IOCTLS.get(name) or OTHERS[name]
    assert use is not None
    vcpu.close()
    with pytest.raises(ClosedError, match="vCPU 0 is closed"):
        use(vcpu)


def test_a_closed_vcpu_takes_no_request_for_an_interrupt_window(vcpu: Vcpu) -> None:
    vcpu.close()
    with pytest.raises(ClosedError):
        vcpu.request_interrupt_window = True


@pytest.mark.parametrize("cap", [0xFFFF, Cap.USER_MEMORY])
def test_enabling_a_capability_that_cannot_be_enabled_fails(vm: Vm, vcpu: Vcpu, cap: int) -> None:
    for target in (vm, vcpu):
        with pytest.raises(KvmError) as caught:
            target.enable_cap(cap)
        assert caught.value.ioctl == "KVM_ENABLE_CAP"
        assert f"cap={cap!r}" in str(caught.value)


def test_kvm_speaks_the_api_version_this_was_compiled_for(kvm: Kvm) -> None:
    assert kvm.get_api_version() == 12


def test_a_capability_is_a_figure_or_zero(kvm: Kvm, vm: Vm) -> None:
    for target in (kvm, vm):
        assert target.check_extension(Cap.USER_MEMORY) == 1
        assert target.check_extension(Cap.NR_MEMSLOTS) > 1
        assert target.check_extension(0xFFFF) == 0


def test_supported_cpuid_begins_with_the_vendor(kvm: Kvm) -> None:
    entries = kvm.get_supported_cpuid()
    leaf = next(entry for entry in entries if entry.function == 0)
    vendor = b"".join(register.to_bytes(4, "little") for register in (leaf.ebx, leaf.edx, leaf.ecx))
    assert len(vendor.decode("ascii")) == 12
    assert leaf.eax >= 1


def test_the_msr_list_has_the_msrs_every_x86_64_guest_has(kvm: Kvm) -> None:
    msrs = kvm.get_msr_index_list()
    assert {0x10, 0x174, 0xC000_0081} <= set(msrs), "TSC, SYSENTER_CS, STAR"


def test_the_shared_mapping_has_room_for_struct_kvm_run(kvm: Kvm) -> None:
    assert kvm.get_vcpu_mmap_size() >= 4096
    assert kvm.get_vcpu_mmap_size() % 4096 == 0


def test_a_second_vcpu_with_the_same_id_is_refused(vm: Vm, vcpu: Vcpu) -> None:
    with pytest.raises(KvmError, match=r"KVM_CREATE_VCPU\(id=0\): EEXIST: this VM has a vCPU with that id already"):
        vm.create_vcpu(0)


def test_a_vm_type_that_does_not_exist_is_refused(kvm: Kvm) -> None:
    with pytest.raises(KvmError, match=r"KVM_CREATE_VM\(type=77\): EINVAL"):
        kvm.create_vm(77)
