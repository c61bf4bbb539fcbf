"""``Vm``: the descriptor of one virtual machine, which owns memory slots and vCPUs.

See: Documentation/virt/kvm/api.rst, section 4, the ioctls of type "vm ioctl". Leaves out: what its bases have, which
are ``pykvm.kvm.interrupts`` and ``pykvm.kvm.doorbells``.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from mmap import mmap
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm.calls import Calls
from pykvm.kvm.coalesced import CoalescedRing
from pykvm.kvm.constants import Cap, MemoryRegionFlag
from pykvm.kvm.descriptor import check_error, kernel_values
from pykvm.kvm.dirty import DirtyLog, DirtyRing, why_no_dirty_ring
from pykvm.kvm.doorbells import VmDoorbells
from pykvm.kvm.exits import IoOut, MmioWrite
from pykvm.kvm.interrupts import VmInterrupts
from pykvm.kvm.stats import StatsSource
from pykvm.kvm.vcpu import Vcpu
from pykvm.kvm.written import WrittenPages
from pykvm.units import PAGE_SIZE, Gpa, Hva, is_aligned

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["MemorySlot", "Vm"]

_RING_INSTEAD = "this VM has dirty rings instead of a log: call dirty_pages()"


@dataclass(frozen=True, slots=True, eq=False)
class MemorySlot:
    """A slot as the kernel has it: guest-physical ``gpa`` and ``size`` bytes, backed by host memory at ``hva``."""

    slot: int
    gpa: Gpa
    size: int
    hva: Hva
    flags: MemoryRegionFlag
    pin: CData

    def __str__(self) -> str:
        return f"slot {self.slot} ({self.gpa:#x}-{self.gpa + self.size - 1:#x})"


NOWHERE = 1 << 40  # a guest-physical address without memory


class Vm(VmInterrupts, VmDoorbells, StatsSource):
    """A virtual machine. Closing it closes its vCPUs and lets go of the guest memory it was given."""

    def __init__(self, fd: int, vcpu_mmap_size: int, calls: Calls = lib) -> None:
        super().__init__(fd, "the VM", calls)
        self._vcpu_mmap_size = vcpu_mmap_size
        self._slots: dict[int, MemorySlot] = {}
        self._slot_changes = 0
        self._vcpus: weakref.WeakSet[Vcpu] = weakref.WeakSet()
        self._has_coalesced_zones = False
        self._coalesced: CoalescedRing | None = None
        self._dirty_ring_size = 0  # bytes; 0: the VM has the dirty log
        self._dirty_rings: list[DirtyRing] = []
        self._dirty_lock = threading.RLock()
        self._logs: list[DirtyLog] | None = None  # of the slots that log, once somebody has asked

    @property
    def slot_changes(self) -> int:
        """Return how many times ``set_user_memory_region`` has changed the slots."""
        return self._slot_changes

    @property
    def slots(self) -> tuple[MemorySlot, ...]:
        """Return the memory slots in use, by number."""
        return tuple(self._slots[number] for number in sorted(self._slots))

    def close(self) -> None:
        """Close the vCPUs, then the VM, then release the memory.

        Raises: InUseError if a vCPU is inside KVM_RUN on another thread; nothing is closed then.
        """
        if self._closed:
            return
        for vcpu in list(self._vcpus):
            vcpu.check_idle("closed")
        for vcpu in list(self._vcpus):
            vcpu.close()
        if self._coalesced is not None:
            self._coalesced.close()
        with self._dirty_lock:
            for ring in self._dirty_rings:
                ring.close()
            self._dirty_rings.clear()
            super().close()
        for slot in self._slots.values():
            ffi.release(slot.pin)
        self._slots.clear()

    def check_extension(self, cap: Cap | int) -> int:
        """Return KVM_CHECK_EXTENSION, asked of the VM: some answers depend on its type."""
        return self._ioctl("KVM_CHECK_EXTENSION", cap, f"cap={cap!r}")

    def set_tss_addr(self, gpa: Gpa) -> None:
        """Set where VT-x may hide three pages for real mode: KVM_SET_TSS_ADDR. ``gpa`` is page-aligned, below 4 GiB."""
        self._ioctl("KVM_SET_TSS_ADDR", gpa, f"gpa={gpa:#x}")

    def set_identity_map_addr(self, gpa: Gpa) -> None:
        """Set where VT-x may hide one page of identity map: KVM_SET_IDENTITY_MAP_ADDR. Before the first vCPU."""
        with kernel_values("KVM_SET_IDENTITY_MAP_ADDR"):
            address = ffi.new("uint64_t *", gpa)
        self._ioctl_struct(
            "KVM_SET_IDENTITY_MAP_ADDR", address, f"gpa={gpa:#x}", "only before the first vCPU is created"
        )

    def set_user_memory_region(
        self,
        slot: int,
        gpa: Gpa,
        memory: memoryview | mmap | None,
        *,
        readonly: bool = False,
        log_dirty_pages: bool = False,
    ) -> None:
        """Show ``memory``, all of it, to the guest at ``gpa``: KVM_SET_USER_MEMORY_REGION.

        ``memory`` is a writable, page-aligned buffer of whole pages; it cannot be unmapped while the slot exists.
        ``readonly`` makes guest writes MMIO exits, ``log_dirty_pages`` lets KVM_GET_DIRTY_LOG tell which pages
        were written. None deletes the slot.

        Raises: KvmError, with what the kernel minds: an overlap, a misalignment, a slot number; ConfigurationError if
        ``memory`` is no such buffer, or empty.
        """
        self._check_open()
        flags = _flags(readonly, log_dirty_pages)
        pin = self._pin(memory)
        size = len(pin)
        # The kernel wants an aligned address even from one who deletes a slot.
        start = pin if size else ffi.NULL
        hva = Hva(int(ffi.cast("uintptr_t", start)))
        # SAFETY: pin exports the buffer, so that its owner cannot unmap it, until the slot or the VM is gone.
        with kernel_values("KVM_SET_USER_MEMORY_REGION"):
            result = self.calls.pykvm_set_user_memory_region(self._fd, slot, flags.value, gpa, size, start)
        if result < 0:
            ffi.release(pin)
            self._explain(-result, slot, gpa, size, hva)
        self._slot_changes += 1
        old, self._logs = self._slots.pop(slot, None), None
        if old is not None:
            ffi.release(old.pin)
        if size == 0:
            ffi.release(pin)
        else:
            self._slots[slot] = MemorySlot(slot, gpa, size, hva, flags, pin)

    def forget_translations(self) -> None:
        """Have KVM forget what it made of the guest's page tables, which somebody else than the guest has changed.

        Where KVM keeps shadows of page tables, it only sees the guest's own writes to them. It drops all shadows when a
        slot is deleted, so one is made for that, where there is no memory. Not while a vCPU runs. Raises: KvmError.
        """
        self._check_open()
        number, page = self.check_extension(Cap.NR_MEMSLOTS) - 1, mmap(-1, PAGE_SIZE)
        pin = self._pin(page)
        try:
            for size in (PAGE_SIZE, 0):
                # SAFETY: the slot is gone before the page is, and no vCPU runs meanwhile.
                result = self.calls.pykvm_set_user_memory_region(self._fd, number, 0, NOWHERE, size, pin)
                check_error(result, "KVM_SET_USER_MEMORY_REGION", f"slot={number}, gpa={NOWHERE:#x}, size={size:#x}")
        finally:
            ffi.release(pin)
            page.close()

    def get_dirty_log(self, slot: int) -> bytes:
        """Return KVM_GET_DIRTY_LOG: one bit a page of ``slot``, low bit first, set if written since the last call.

        Raises: KvmError (ENOENT: the slot does not exist, or does not log; ENXIO: the VM has dirty rings instead).
        """
        self._check_open()
        known = self._slots.get(slot)
        pages = known.size // PAGE_SIZE if known else 0
        bitmap = ffi.new("uint8_t[]", max(8, (pages + 63) // 64 * 8))
        with kernel_values("KVM_GET_DIRTY_LOG"):
            log = ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap})
        missing = f"{known} was set without log_dirty_pages" if known else "there is no such slot"
        why = {errno.ENOENT: missing, errno.EINVAL: missing, errno.ENXIO: _RING_INSTEAD}
        self._ioctl_struct("KVM_GET_DIRTY_LOG", log, f"slot={slot}", why)
        return bytes(ffi.buffer(bitmap))[: (pages + 7) // 8]

    def enable_dirty_ring(self, size: int) -> None:
        """Have each vCPU tell of written pages by a ring of ``size`` bytes: KVM_ENABLE_CAP, KVM_CAP_DIRTY_LOG_RING.

        Before the first vCPU. ``size`` is a power of two, a page at least; an entry takes 16 bytes. The slots to track
        still need ``log_dirty_pages``; KVM_GET_DIRTY_LOG is refused from then on. A full ring is the exit
        ``DirtyRingFull``: call ``dirty_pages()`` and run on.

        Raises: KvmError, with what the kernel minds about ``size``, or that it is too late.
        """
        most = self.check_extension(Cap.DIRTY_LOG_RING)
        why = why_no_dirty_ring(size, most, bool(self._vcpus), self._dirty_ring_size)
        self.enable_cap(Cap.DIRTY_LOG_RING, [size], explanation=why)
        self._dirty_ring_size = size

    def reset_dirty_rings(self) -> int:
        """Give collected entries back to the kernel, and watch their pages again: KVM_RESET_DIRTY_RINGS.

        Returns how many there were. ``dirty_pages()`` does it.

        Raises: KvmError (EINVAL: no ``enable_dirty_ring()``).
        """
        why = {errno.EINVAL: "this VM has no dirty rings: call enable_dirty_ring() before create_vcpu()"}
        return self._ioctl("KVM_RESET_DIRTY_RINGS", explanation=why)

    def log_dirty_pages(self) -> None:
        """Switch ``log_dirty_pages`` on for every slot that the guest can write to. Raises: KvmError."""
        self._check_open()
        for slot in self.slots:
            if not slot.flags & (MemoryRegionFlag.READONLY | MemoryRegionFlag.LOG_DIRTY_PAGES):
                flags = slot.flags | MemoryRegionFlag.LOG_DIRTY_PAGES
                # SAFETY: the memory is what the kernel has already, and the same pin goes on keeping it.
                result = self.calls.pykvm_set_user_memory_region(
                    self._fd, slot.slot, flags.value, slot.gpa, slot.size, slot.pin
                )
                check_error(result, "KVM_SET_USER_MEMORY_REGION", f"{slot}, flags={flags}")
                self._slots[slot.slot] = replace(slot, flags=flags)
        self._logs = None

    def dirty_pages(self) -> Iterator[Gpa]:
        """Return the pages the guest wrote to since the last call, in order, each once: of slots that log them.

        It asks the dirty log or collects the dirty rings, whichever the VM has, and forgets what it returns. It may be
        called while vCPUs run; the last writes of one may be in the next call's answer then, because a CPU that logs
        writes by itself (PML) tells of them when it leaves the guest.

        Raises: KvmError (ENOBUFS: a ring ran over, so that nobody knows what was written).
        """
        return iter(sorted(self.take_dirty_pages()))

    def take_dirty_pages(self) -> set[Gpa]:
        """Return what ``dirty_pages`` does, in no order."""
        with self._dirty_lock:
            self._check_open()
            return self._pages_of_rings() if self._dirty_ring_size else self._pages_of_logs()

    @property
    def has_dirty_rings(self) -> bool:
        """Return whether written pages are told by rings, rather than by the dirty log."""
        return self._dirty_ring_size > 0

    def written_pages(self, saved: Iterable[tuple[Gpa, bytes]]) -> WrittenPages:
        """Return what makes those pages that the guest writes what they are in ``saved``, or else zeros.

        It takes what KVM_GET_DIRTY_LOG tells, of which ``dirty_pages`` then knows nothing. Not for VMs with dirty
        rings, and good until ``slot_changes`` grows.
        """
        by_gpa = {slot.gpa: slot.pin for slot in self.slots}
        slots = [(log, by_gpa[log.gpa]) for log in self._dirty_logs()]
        return WrittenPages(self.fileno(), slots, saved, self.calls)

    def register_coalesced_mmio(self, address: int, size: int, *, pio: bool = False) -> None:
        """Queue the guest's writes to ``size`` bytes from ``address`` instead of exiting: KVM_REGISTER_COALESCED_MMIO.

        ``pio`` makes it ports. The guest exits only when the queue is full; ``drain_coalesced()`` empties it, and is
        due before any other exit is handled, or their order is lost.

        Raises: KvmError.
        """
        super().register_coalesced_mmio(address, size, pio=pio)
        self._has_coalesced_zones = True
        for vcpu in list(self._vcpus):
            self._map_coalesced(vcpu)

    def drain_coalesced(self) -> list[IoOut | MmioWrite]:
        """Take the writes to coalesced zones out of their queue, oldest first, as the exits they would have been.

        From any thread; cheap if there are none. They came before the exit that ``run()`` returned last.

        Raises: MalformedExitError if the queue makes no sense.
        """
        self._check_open()
        return [] if self._coalesced is None else self._coalesced.drain()

    def create_vcpu(self, id: int = 0) -> Vcpu:
        """Return a new vCPU with the APIC id ``id``: KVM_CREATE_VCPU. It is in its reset state."""
        self._check_open()
        c = ffi.new("struct pykvm_vcpu *")
        with kernel_values("KVM_CREATE_VCPU"):
            result = self.calls.pykvm_create_vcpu(self._fd, id, self._vcpu_mmap_size, c)
        check_error(result, "KVM_CREATE_VCPU", f"id={id}", _vcpu_explanation(-result))
        vcpu = Vcpu(self, c, id, self.calls)
        try:
            if self._has_coalesced_zones:
                self._map_coalesced(vcpu)
            if self._dirty_ring_size:
                with self._dirty_lock:
                    self._dirty_rings.append(DirtyRing(vcpu.fileno(), self._dirty_ring_size, self.calls))
        except KvmError:
            vcpu.close()
            raise
        self._vcpus.add(vcpu)
        return vcpu

    def _map_coalesced(self, vcpu: Vcpu) -> None:
        if self._coalesced is None and not vcpu.closed:
            page = self.check_extension(Cap.COALESCED_MMIO)
            self._coalesced = CoalescedRing(vcpu.fileno(), page, self.calls)

    def _pages_of_logs(self) -> set[Gpa]:
        return set().union(*[log.pages(self._fd, self.calls) for log in self._dirty_logs()])

    def _dirty_logs(self) -> list[DirtyLog]:
        if self._logs is None:
            logged = [slot for slot in self.slots if MemoryRegionFlag.LOG_DIRTY_PAGES in slot.flags]
            self._logs = [DirtyLog(slot.slot, slot.gpa, slot.size) for slot in logged]
        return self._logs

    def _pages_of_rings(self) -> set[Gpa]:
        entries = {entry for ring in self._dirty_rings for entry in ring.harvest()}
        # Before anybody looks at the pages: a write after that look is to be told of again.
        self.reset_dirty_rings()
        slots = dict(self._slots)  # of which one may have been deleted meanwhile, or replaced by a smaller
        return {
            Gpa(slots[slot].gpa + page * PAGE_SIZE)
            for slot, page in entries
            if slot in slots and page * PAGE_SIZE < slots[slot].size
        }

    def _pin(self, memory: memoryview | mmap | None) -> CData:
        if memory is None:
            return ffi.from_buffer("uint8_t[]", b"")
        try:
            pin = ffi.from_buffer("uint8_t[]", memory, require_writable=True)
        except (BufferError, TypeError, ValueError) as error:  # ValueError: a closed mmap, a released memoryview
            raise ConfigurationError(f"guest memory must be a writable, contiguous buffer: {error}") from error
        if len(pin) == 0:
            ffi.release(pin)
            raise ConfigurationError("guest memory must be a page at least: to delete a slot, give None")
        return pin

    def _explain(self, error: int, slot: int, gpa: Gpa, size: int, hva: int) -> None:
        others = [s for s in self.slots if s.slot != slot and s.gpa < gpa + size and gpa < s.gpa + s.size]
        why = ""
        if error == errno.EEXIST and others:
            why = f"overlaps {', '.join(map(str, others))}"
        elif error == errno.EINVAL:
            why = self._why_invalid(slot, gpa, size, hva)
        check_error(-error, "KVM_SET_USER_MEMORY_REGION", f"slot={slot}, gpa={gpa:#x}, size={size:#x}", why)

    def _why_invalid(self, slot: int, gpa: Gpa, size: int, hva: int) -> str:
        for name, value in (("gpa", gpa), ("size", size), ("host address", hva)):
            if not is_aligned(value):
                return f"the {name} {value:#x} is not a multiple of the page size {PAGE_SIZE:#x}"
        if size == 0:
            return "there is no such slot to delete"
        if slot in self._slots:
            return f"{self._slots[slot]} cannot change its size, its host memory or its readonly flag: delete it first"
        limit = self.check_extension(Cap.NR_MEMSLOTS)
        if slot >= limit:
            return f"slot numbers end at {limit - 1} here"
        return ""


def _flags(readonly: bool, log_dirty_pages: bool) -> MemoryRegionFlag:
    flags = MemoryRegionFlag(0)
    if readonly:
        flags |= MemoryRegionFlag.READONLY
    if log_dirty_pages:
        flags |= MemoryRegionFlag.LOG_DIRTY_PAGES
    return flags


def _vcpu_explanation(error: int) -> str:
    match error:
        case errno.EEXIST:
            return "this VM has a vCPU with that id already"
        case errno.EBUSY:
            return "the signal SIGRTMIN+5, with which pykvm stops vCPUs, is used by something else in this process"
    return ""
