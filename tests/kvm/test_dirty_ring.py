"""Which pages a guest wrote: the dirty ring, and one iterator over it and over the dirty log."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ClosedError, KvmError
from pykvm.kvm import Cap, DirtyRingFull, Hlt, Kvm, Vm
from pykvm.units import PAGE_SIZE, Gpa, KiB, MiB

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

FAR = Gpa(16 * MiB)  # where FS points in the guests below
HLT = b"\xf4"
STORE = bytes.fromhex("67 64 88 06")  # mov %al, %fs:(%esi)
# again: mov %al, %fs:(%esi); add $4096, %esi; out %al, $0x80; dec %ecx; jnz again; hlt
# The exit is for hosts that interpret real mode: they look at the ring once in about a thousand instructions only.
WRITE_PAGES = STORE + bytes.fromhex("66 81 c6 00 10 00 00 e6 80 66 49 75 ef f4")


@pytest.fixture(params=["log", "ring"])
def tracking(request: pytest.FixtureRequest) -> str:
    """Both ways in which KVM tells which pages were written."""
    return str(request.param)


@pytest.fixture
def ring_size(kvm: Kvm) -> int:
    """The smallest ring this host takes: more than a page where the CPU logs writes by itself (PML)."""
    if not kvm.check_extension(Cap.DIRTY_LOG_RING):
        pytest.skip("this host's KVM has no dirty ring")
    size = PAGE_SIZE
    while True:
        with kvm.create_vm() as vm:
            try:
                vm.enable_dirty_ring(size)
            except KvmError:
                size *= 2
            else:
                return size


@pytest.fixture
def vm(request: pytest.FixtureRequest, vm: Vm) -> Vm:
    """A VM that tracks written pages by ``tracking``, or by the ring where a test has no such parameter."""
    names = request.fixturenames
    if "bare_guest" in names and ("tracking" not in names or request.getfixturevalue("tracking") == "ring"):
        vm.enable_dirty_ring(request.getfixturevalue("ring_size"))
    return vm


@pytest.fixture
def pages(bare_guest: RealModeGuest) -> Iterator[mmap.mmap]:
    """16 MiB at FAR whose written pages are tracked; FS reaches all of it with 32-bit offsets."""
    memory = mmap.mmap(-1, 16 * MiB)
    bare_guest.vm.set_user_memory_region(7, FAR, memory, log_dirty_pages=True)
    sregs = bare_guest.vcpu.get_sregs()
    sregs.fs.base, sregs.fs.limit, sregs.fs.g = FAR, 0xFFFF_FFFF, 1
    bare_guest.vcpu.set_sregs(sregs)
    yield memory
    bare_guest.vm.close()
    memory.close()


def write(guest: RealModeGuest, *numbers: int) -> None:
    """Have the guest write to the pages ``numbers``."""
    for number in numbers:
        guest.load(STORE, HLT, rsi=number * PAGE_SIZE)
        assert guest.run() == []


def numbers(pages: Iterator[Gpa]) -> list[int]:
    return [(gpa - FAR) // PAGE_SIZE for gpa in pages]


# ---- the iterator ----


@pytest.mark.usefixtures("tracking", "pages")
def test_dirty_pages_are_those_written_since_the_last_call(bare_guest: RealModeGuest) -> None:
    assert numbers(bare_guest.vm.dirty_pages()) == []
    write(bare_guest, 1, 6)
    assert numbers(bare_guest.vm.dirty_pages()) == [1, 6]
    assert numbers(bare_guest.vm.dirty_pages()) == []
    write(bare_guest, 6, 9)
    assert numbers(bare_guest.vm.dirty_pages()) == [6, 9], "a page that was told of is watched again"


@pytest.mark.usefixtures("tracking", "pages")
def test_dirty_pages_are_sorted_and_without_repeats(bare_guest: RealModeGuest) -> None:
    write(bare_guest, 4095, 3, 3, 70, 3, 0)
    assert numbers(bare_guest.vm.dirty_pages()) == [0, 3, 70, 4095]


@pytest.mark.usefixtures("tracking", "pages")
def test_reading_is_not_writing(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("67 64 8a 06"), HLT, rsi=0x5000)  # mov %fs:(%esi), %al
    assert bare_guest.run() == []
    assert numbers(bare_guest.vm.dirty_pages()) == []


@pytest.mark.usefixtures("tracking", "pages")
def test_slots_that_do_not_log_are_left_out(bare_guest: RealModeGuest) -> None:
    bare_guest.load(bytes.fromhex("88 04"), HLT)  # mov %al, (%si), in slot 0
    assert bare_guest.run() == []
    assert numbers(bare_guest.vm.dirty_pages()) == []


@pytest.mark.usefixtures("tracking")
def test_several_slots_are_told_of_together(bare_guest: RealModeGuest, pages: mmap.mmap) -> None:
    more = mmap.mmap(-1, 64 * KiB)
    bare_guest.vm.set_user_memory_region(2, Gpa(FAR + len(pages)), more, log_dirty_pages=True)
    write(bare_guest, 4096 + 15, 5, 4096)
    assert numbers(bare_guest.vm.dirty_pages()) == [5, 4096, 4096 + 15]
    bare_guest.vm.close()
    more.close()


@pytest.mark.usefixtures("tracking")
def test_a_slot_deleted_meanwhile_is_left_out(bare_guest: RealModeGuest, pages: mmap.mmap) -> None:
    write(bare_guest, 5)
    bare_guest.vm.set_user_memory_region(7, FAR, None)
    assert numbers(bare_guest.vm.dirty_pages()) == []
    bare_guest.vm.set_user_memory_region(7, FAR, pages, log_dirty_pages=True)
    write(bare_guest, 8)
    assert numbers(bare_guest.vm.dirty_pages()) == [8]


@pytest.mark.usefixtures("tracking", "pages")
def test_what_is_dirty_is_asked_at_the_call_not_while_iterating(bare_guest: RealModeGuest) -> None:
    write(bare_guest, 1)
    before = bare_guest.vm.dirty_pages()
    write(bare_guest, 2)
    assert numbers(before) == [1]
    assert numbers(bare_guest.vm.dirty_pages()) == [2]


@pytest.mark.usefixtures("tracking", "pages")
def test_what_a_closed_vcpu_wrote_is_not_lost(bare_guest: RealModeGuest) -> None:
    write(bare_guest, 5)
    bare_guest.vcpu.close()
    assert numbers(bare_guest.vm.dirty_pages()) == [5]


@pytest.mark.usefixtures("tracking", "pages")
def test_a_closed_vm_says_so(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.close()
    bare_guest.vm.close()
    with pytest.raises(ClosedError, match="the VM is closed"):
        bare_guest.vm.dirty_pages()


# ---- the ring alone ----


@pytest.mark.usefixtures("pages")
def test_a_full_ring_is_an_exit_that_collecting_recovers_from(bare_guest: RealModeGuest) -> None:
    total = 1500
    bare_guest.load(WRITE_PAGES, rcx=total, rax=0x55)
    seen: list[int] = []
    exits = 0
    while (exit := bare_guest.vcpu.run()) != Hlt():
        if exit == DirtyRingFull():
            seen += numbers(bare_guest.vm.dirty_pages())
            exits += 1
    seen += numbers(bare_guest.vm.dirty_pages())
    assert exits > 0
    assert sorted(seen) == list(range(total))


@pytest.mark.usefixtures("pages")
def test_a_full_ring_stays_full_until_it_is_collected(bare_guest: RealModeGuest) -> None:
    bare_guest.load(WRITE_PAGES, rcx=1500)
    while bare_guest.vcpu.run() != DirtyRingFull():
        pass
    assert bare_guest.vcpu.run() == DirtyRingFull()
    assert bare_guest.vm.reset_dirty_rings() == 0, "nothing was collected"
    assert bare_guest.vcpu.run() == DirtyRingFull()


@pytest.mark.usefixtures("pages")
def test_the_dirty_log_is_refused_and_why(bare_guest: RealModeGuest) -> None:
    with pytest.raises(KvmError, match=r"KVM_GET_DIRTY_LOG\(slot=7\): ENXIO: this VM has dirty rings instead of a log"):
        bare_guest.vm.get_dirty_log(7)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (0, "0 bytes is not a power of two"),
        (PAGE_SIZE + 16, "4112 bytes is not a power of two"),
        (16, "16 bytes are too few"),
        (1 << 40, "a ring has at most [0-9]+ bytes here"),
    ],
)
@pytest.mark.usefixtures("ring_size")
def test_a_size_that_cannot_be_is_explained(vm: Vm, size: int, why: str) -> None:
    with pytest.raises(KvmError, match=rf"KVM_ENABLE_CAP\(cap=.*DIRTY_LOG_RING.*\): \w+: {why}"):
        vm.enable_dirty_ring(size)
    with pytest.raises(KvmError, match=r"KVM_RESET_DIRTY_RINGS\(\): EINVAL: this VM has no dirty rings"):
        vm.reset_dirty_rings()


def test_a_ring_after_the_first_vcpu_is_explained(vm: Vm, ring_size: int) -> None:
    with vm.create_vcpu(), pytest.raises(KvmError, match="EINVAL: only before the first vCPU is created"):
        vm.enable_dirty_ring(ring_size)


def test_a_second_ring_is_explained(vm: Vm, ring_size: int) -> None:
    vm.enable_dirty_ring(ring_size)
    with pytest.raises(KvmError, match=f"EINVAL: this VM has dirty rings of {ring_size} bytes already"):
        vm.enable_dirty_ring(ring_size)


def test_a_ring_without_pages_is_empty(vm: Vm, ring_size: int) -> None:
    vm.enable_dirty_ring(ring_size)
    assert list(vm.dirty_pages()) == []
    with vm.create_vcpu(0), vm.create_vcpu(1):
        assert list(vm.dirty_pages()) == []


def test_closing_a_vm_unmaps_its_rings(kvm: Kvm, ring_size: int) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("kvm-vcpu")

    before = mappings()
    with kvm.create_vm() as vm:
        vm.enable_dirty_ring(ring_size)
        vm.register_coalesced_mmio(0x80, 1, pio=True)
        vcpus = [vm.create_vcpu(id) for id in range(2)]
        assert mappings() >= before + 2 * len(vcpus) + 1, "struct kvm_run and a ring each, and the queue"
    assert mappings() == before


def test_a_vcpu_whose_ring_cannot_be_mapped_is_not_left_behind(
    vm: Vm, ring_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, size: int, calls: object) -> None:
        raise KvmError("mmap", errno.ENOMEM)

    vm.enable_dirty_ring(ring_size)
    monkeypatch.setattr("pykvm.kvm.vm.DirtyRing", fail)
    with pytest.raises(KvmError, match="ENOMEM"):
        vm.create_vcpu()
