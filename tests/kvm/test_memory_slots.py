"""Memory slots: what the guest sees of them, what KVM refuses, and who may unmap what."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigurationError, InUseError, KvmError
from pykvm.kvm import Cap, MemoryRegionFlag, MmioRead, MmioWrite, Vm
from pykvm.memory import GuestMemory
from pykvm.units import PAGE_SIZE, Gpa

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

HOLE = Gpa(0x20000)  # where the guest's RAM, slot 0, ends, and FS points: see conftest.py
HLT = b"\xf4"
LOAD = bytes.fromhex("66 64 8b 04")  # mov %fs:(%si), %eax
STORE = bytes.fromhex("64 88 04")  # mov %al, %fs:(%si)


@pytest.fixture
def page() -> Iterator[mmap.mmap]:
    page = mmap.mmap(-1, PAGE_SIZE)
    yield page
    page.close()  # BufferError if a VM still had it


@pytest.fixture
def eight_pages(bare_guest: RealModeGuest) -> Iterator[mmap.mmap]:
    """Memory for the hole, unmapped after the VM is gone."""
    pages = mmap.mmap(-1, 8 * PAGE_SIZE)
    yield pages
    bare_guest.vm.close()
    pages.close()


def test_a_slot_is_memory_for_the_guest_and_for_the_host(bare_guest: RealModeGuest, eight_pages: mmap.mmap) -> None:
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages)
    eight_pages[0x10:0x14] = b"host"
    bare_guest.load(LOAD, STORE, HLT, rsi=0x10)
    assert bare_guest.run() == []
    assert bare_guest.regs.rax == int.from_bytes(b"host", "little")
    bare_guest.load(STORE, HLT, rsi=0x20, rax=0x47)
    assert bare_guest.run() == []
    assert eight_pages[0x20] == 0x47


def test_the_slots_in_use_are_listed_by_number(bare_guest: RealModeGuest, eight_pages: mmap.mmap) -> None:
    bare_guest.vm.set_user_memory_region(5, HOLE, eight_pages, readonly=True, log_dirty_pages=True)
    first, second = bare_guest.vm.slots
    assert (first.slot, first.gpa, first.size) == (0, 0, HOLE)
    assert (second.slot, second.gpa, second.size) == (5, HOLE, 8 * PAGE_SIZE)
    assert second.flags == MemoryRegionFlag.READONLY | MemoryRegionFlag.LOG_DIRTY_PAGES
    assert str(second) == "slot 5 (0x20000-0x27fff)"


def test_a_write_to_a_readonly_slot_is_an_mmio_write_and_changes_nothing(
    bare_guest: RealModeGuest, eight_pages: mmap.mmap
) -> None:
    eight_pages[0x10:0x14] = b"ROM!"
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages, readonly=True)
    bare_guest.load(STORE, LOAD, HLT, rsi=0x10, rax=0x58)
    assert bare_guest.run() == [MmioWrite(Gpa(HOLE + 0x10), b"X")], "and the read behind it is no exit"
    assert bare_guest.regs.rax == int.from_bytes(b"ROM!", "little")
    assert eight_pages[0x10:0x14] == b"ROM!"


def test_one_buffer_may_stand_at_two_addresses(bare_guest: RealModeGuest, eight_pages: mmap.mmap) -> None:
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages)
    second_page = memoryview(eight_pages)[PAGE_SIZE : 2 * PAGE_SIZE]
    bare_guest.vm.set_user_memory_region(2, Gpa(HOLE + 8 * PAGE_SIZE), second_page)
    bare_guest.load(STORE, HLT, rsi=8 * PAGE_SIZE + 5, rax=0x21)
    assert bare_guest.run() == []
    assert eight_pages[PAGE_SIZE + 5] == 0x21


def test_a_deleted_slot_is_a_hole_again(bare_guest: RealModeGuest, eight_pages: mmap.mmap) -> None:
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages)
    bare_guest.load(LOAD, LOAD, HLT)
    bare_guest.vm.set_user_memory_region(1, HOLE, None)
    assert [slot.slot for slot in bare_guest.vm.slots] == [0]
    assert bare_guest.run(lambda exit: bytes(4)) == [MmioRead(HOLE, 4)] * 2
    eight_pages.close()


def test_a_slot_can_move(bare_guest: RealModeGuest, eight_pages: mmap.mmap) -> None:
    eight_pages[0:4] = b"here"
    bare_guest.vm.set_user_memory_region(1, Gpa(0x100000), eight_pages)
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages)
    bare_guest.load(LOAD, HLT)
    assert bare_guest.run() == []
    assert bare_guest.regs.rax == int.from_bytes(b"here", "little")
    assert bare_guest.vm.slots[1].gpa == HOLE


def test_the_dirty_log_names_the_pages_that_were_written(bare_guest: RealModeGuest, eight_pages: mmap.mmap) -> None:
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages, log_dirty_pages=True)
    assert bare_guest.vm.get_dirty_log(1) == b"\0"
    bare_guest.load(STORE, bytes.fromhex("be 00 60"), STORE, LOAD, HLT, rsi=0x1FFF)  # mov $0x6000, %si
    assert bare_guest.run() == []
    assert bare_guest.vm.get_dirty_log(1) == bytes([1 << 1 | 1 << 6])
    assert bare_guest.vm.get_dirty_log(1) == b"\0", "each page is named once"
    bare_guest.load(LOAD, HLT, rsi=0x3000)
    assert bare_guest.run() == []
    assert bare_guest.vm.get_dirty_log(1) == b"\0", "reading is not writing"


def test_the_dirty_log_of_a_large_slot_has_a_bit_for_its_last_page(bare_guest: RealModeGuest) -> None:
    pages = 67  # no multiple of the 64 bits that the kernel counts in
    memory = mmap.mmap(-1, pages * PAGE_SIZE)
    sregs = bare_guest.vcpu.get_sregs()
    last_page = 0x100000 + (pages - 1) * PAGE_SIZE
    sregs.fs.base, sregs.fs.selector = last_page - PAGE_SIZE, (last_page - PAGE_SIZE) >> 4 & 0xFFFF
    bare_guest.vcpu.set_sregs(sregs)
    bare_guest.vm.set_user_memory_region(1, Gpa(0x100000), memory, log_dirty_pages=True)
    bare_guest.load(STORE, HLT, rsi=PAGE_SIZE)
    assert bare_guest.run() == []
    log = bare_guest.vm.get_dirty_log(1)
    assert len(log) == 9
    assert int.from_bytes(log, "little") == 1 << (pages - 1)
    bare_guest.vm.close()
    memory.close()


def test_logging_can_be_switched_on_and_off_later(bare_guest: RealModeGuest, eight_pages: mmap.mmap) -> None:
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages)
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages, log_dirty_pages=True)
    bare_guest.load(STORE, HLT)
    bare_guest.run()
    assert bare_guest.vm.get_dirty_log(1) == b"\1"
    bare_guest.vm.set_user_memory_region(1, HOLE, eight_pages)
    with pytest.raises(KvmError, match="was set without log_dirty_pages"):
        bare_guest.vm.get_dirty_log(1)


def test_a_dirty_log_that_does_not_exist_is_explained(bare_guest: RealModeGuest) -> None:
    with pytest.raises(KvmError, match=r"KVM_GET_DIRTY_LOG\(slot=3\): ENOENT: there is no such slot"):
        bare_guest.vm.get_dirty_log(3)
    with pytest.raises(KvmError, match=r"slot 0 \(0x0-0x1ffff\) was set without log_dirty_pages"):
        bare_guest.vm.get_dirty_log(0)


@pytest.mark.parametrize("gpa", [0, 0x1000, 0x1F000])
def test_an_overlap_is_explained(bare_guest: RealModeGuest, page: mmap.mmap, gpa: int) -> None:
    with pytest.raises(KvmError) as caught:
        bare_guest.vm.set_user_memory_region(1, Gpa(gpa), page)
    assert str(caught.value) == (
        f"KVM_SET_USER_MEMORY_REGION(slot=1, gpa={gpa:#x}, size=0x1000): EEXIST: overlaps slot 0 (0x0-0x1ffff)"
    )
    assert caught.value.errno == errno.EEXIST
    assert [slot.slot for slot in bare_guest.vm.slots] == [0]


def test_a_misaligned_address_is_explained(vm: Vm, page: mmap.mmap) -> None:
    with pytest.raises(KvmError, match="EINVAL: the gpa 0x800 is not a multiple of the page size 0x1000"):
        vm.set_user_memory_region(0, Gpa(0x800), page)


def test_a_misaligned_size_is_explained(vm: Vm, page: mmap.mmap) -> None:
    with memoryview(page)[:0x800] as half, pytest.raises(KvmError, match="EINVAL: the size 0x800 is not a multiple"):
        vm.set_user_memory_region(0, Gpa(0), half)


def test_a_misaligned_host_address_is_explained(vm: Vm) -> None:
    pages = mmap.mmap(-1, 2 * PAGE_SIZE)
    with (
        memoryview(pages)[0x800 : 0x800 + PAGE_SIZE] as middle,
        pytest.raises(KvmError, match=r"EINVAL: the host address 0x[0-9a-f]+800 is not a multiple"),
    ):
        vm.set_user_memory_region(0, Gpa(0), middle)
    pages.close()


def test_a_slot_number_beyond_the_last_is_explained(vm: Vm, page: mmap.mmap) -> None:
    limit = vm.check_extension(Cap.NR_MEMSLOTS)
    with pytest.raises(KvmError, match=f"EINVAL: slot numbers end at {limit - 1} here"):
        vm.set_user_memory_region(limit, Gpa(0), page)
    vm.set_user_memory_region(limit - 1, Gpa(0), page)
    vm.close()


@pytest.mark.parametrize("change", ["size", "host memory", "readonly flag"])
def test_what_a_slot_cannot_change_is_explained(bare_guest: RealModeGuest, eight_pages: mmap.mmap, change: str) -> None:
    bare_guest.vm.set_user_memory_region(1, HOLE, memoryview(eight_pages)[:PAGE_SIZE])
    new = {"size": slice(0, 2 * PAGE_SIZE), "host memory": slice(PAGE_SIZE, 2 * PAGE_SIZE)}
    memory = memoryview(eight_pages)[new.get(change, slice(0, PAGE_SIZE))]
    with pytest.raises(KvmError, match=rf"EINVAL: slot 1 \(.*\) cannot change its .*{change}.*: delete it first"):
        bare_guest.vm.set_user_memory_region(1, HOLE, memory, readonly=change == "readonly flag")
    memory.release()
    assert bare_guest.vm.slots[1].size == PAGE_SIZE
    assert bare_guest.vm.slots[1].flags == MemoryRegionFlag(0)


def test_deleting_a_slot_that_does_not_exist_is_explained(vm: Vm) -> None:
    with pytest.raises(KvmError, match="EINVAL: there is no such slot to delete"):
        vm.set_user_memory_region(3, Gpa(0), None)


@pytest.mark.parametrize(("slot", "gpa"), [(-1, 0), (1 << 32, 0), (0, -PAGE_SIZE), (0, 1 << 64)])
def test_a_number_that_the_kernels_structure_cannot_hold_is_refused(
    vm: Vm, page: mmap.mmap, slot: int, gpa: int
) -> None:
    with pytest.raises(ConfigurationError, match=r"KVM_SET_USER_MEMORY_REGION: .*fit"):
        vm.set_user_memory_region(slot, Gpa(gpa), page)


def test_memory_that_cannot_be_guest_memory_is_refused(vm: Vm, page: mmap.mmap) -> None:
    closed = mmap.mmap(-1, PAGE_SIZE)
    closed.close()
    with memoryview(page).toreadonly() as readonly, memoryview(page)[::2] as every_other, memoryview(b"") as empty:
        for memory in (readonly, every_other, empty, memoryview(bytearray()), closed):
            with pytest.raises(ConfigurationError, match="guest memory must be"):
                vm.set_user_memory_region(0, Gpa(0), memory)
    assert vm.slots == ()


# ---- who holds the memory ----


def test_memory_cannot_be_unmapped_under_a_live_vm(vm: Vm, page: mmap.mmap) -> None:
    vm.set_user_memory_region(0, Gpa(0), page)
    with pytest.raises(BufferError):
        page.close()
    vm.close()
    page.close()


def test_memory_cannot_be_unmapped_under_a_view_that_a_live_vm_was_given(vm: Vm, page: mmap.mmap) -> None:
    with memoryview(page) as view:
        vm.set_user_memory_region(0, Gpa(0), view)
        with pytest.raises(BufferError):
            view.release()
        vm.close()
    page.close()


def test_guest_memory_cannot_be_closed_under_a_live_vm(vm: Vm) -> None:
    memory = GuestMemory(8 * PAGE_SIZE)
    for slot, region in enumerate(memory.regions):
        vm.set_user_memory_region(slot, region.gpa, region.buffer)
    with pytest.raises(InUseError, match="a VM has it"):
        memory.close()
    assert not memory.closed
    memory.write(0x1000, b"still here")
    assert memory.read(0x1000, 10) == b"still here"
    vm.close()
    memory.close()


def test_a_deleted_slot_lets_its_memory_go(vm: Vm, page: mmap.mmap) -> None:
    vm.set_user_memory_region(0, Gpa(0), page)
    vm.set_user_memory_region(0, Gpa(0), None)
    page.close()


def test_a_slot_set_twice_holds_its_memory_once(vm: Vm, page: mmap.mmap) -> None:
    for gpa in (0, 0x1000, 0x1000):
        vm.set_user_memory_region(0, Gpa(gpa), page)
    with pytest.raises(BufferError):
        page.close()
    vm.set_user_memory_region(0, Gpa(0x1000), None)
    page.close()


def test_a_refused_slot_does_not_hold_its_memory(bare_guest: RealModeGuest, page: mmap.mmap) -> None:
    for slot, gpa in ((1, 0), (1, 1), (1 << 31, 0x100000), (0, 0), (-1, 0)):
        with pytest.raises((KvmError, ConfigurationError)):
            bare_guest.vm.set_user_memory_region(slot, Gpa(gpa), page)
    page.close()


# ---- VT-x hosts' hidden pages ----


def test_the_hidden_pages_may_lie_just_below_the_bios(vm: Vm) -> None:
    # 0xfffbd000 is above what a signed 32-bit argument holds: an ioctl from Python itself cannot pass it.
    vm.set_identity_map_addr(Gpa(0xFFFB_C000))
    vm.set_tss_addr(Gpa(0xFFFB_D000))


def test_an_identity_map_after_the_first_vcpu_is_explained(vm: Vm) -> None:
    with vm.create_vcpu(), pytest.raises(KvmError, match=r"KVM_SET_IDENTITY_MAP_ADDR\(gpa=0x0\): EINVAL: only before"):
        vm.set_identity_map_addr(Gpa(0))


@pytest.mark.parametrize("gpa", [-1, 1 << 64])
def test_hidden_pages_outside_64_bits_are_refused(vm: Vm, gpa: int) -> None:
    for use in (vm.set_tss_addr, vm.set_identity_map_addr):
        with pytest.raises(ConfigurationError, match="fit"):
            use(Gpa(gpa))
