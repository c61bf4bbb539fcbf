"""``DirtyRing``: which pages a guest wrote, as its vCPU tells by a ring, and the dirty log's bitmap as pages.

The dirty log is a bitmap per memory slot, whose cost grows with the memory. The ring's grows with what was written:
each vCPU appends the number of a page when it first writes to it, and stops with KVM_EXIT_DIRTY_RING_FULL when there is
no room. An entry goes round:

    empty --- the guest writes --> dirty --- we collect --> collected --- KVM_RESET_DIRTY_RINGS --> empty
    flags 0                        F_DIRTY                  F_RESET set

The kernel fills in slot and offset before it sets F_DIRTY, and looks for F_RESET before it uses an entry again. That
asks for a load with acquire and a store with release semantics, which on x86 every load and store has. Only slots
with ``log_dirty_pages`` are tracked, either way.

See: Documentation/virt/kvm/api.rst, section 8.29, KVM_CAP_DIRTY_LOG_RING. Leaves out: KVM_CLEAR_DIRTY_LOG, and the
ring with a bitmap beside it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.errors import KvmError
from pykvm.kvm.batch import Step
from pykvm.kvm.calls import Calls
from pykvm.kvm.descriptor import check_error
from pykvm.kvm.shared import SharedPages
from pykvm.units import PAGE_SIZE, Gpa

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["DirtyLog", "DirtyRing", "collect", "logged_pages", "why_no_dirty_ring"]

_OVERRUN = (
    "a dirty ring ran over, and writes may be lost: this host's KVM let the guest write to more pages at a time than "
    "it keeps in reserve; collect more often from a larger ring, or use the dirty log"
)


class DirtyRing:
    """The ring of one vCPU: ``size`` bytes behind its descriptor, at the page KVM_DIRTY_LOG_PAGE_OFFSET."""

    def __init__(self, fd: int, size: int, calls: Calls = lib) -> None:
        self._pages = SharedPages(fd, lib.KVM_DIRTY_LOG_PAGE_OFFSET, size, calls)
        self._entries = size // ffi.sizeof("struct kvm_dirty_gfn")
        self._next = 0

    def harvest(self) -> list[tuple[int, int]]:
        """Collect what is dirty, as (slot, page within the slot). KVM_RESET_DIRTY_RINGS is due then.

        Raises: KvmError (ENOBUFS) if the ring ran over.
        """
        # SAFETY: the pages are mapped; who harvests and who closes hold the same lock, that of the Vm.
        ring = ffi.cast("struct kvm_dirty_gfn *", self._pages.start)
        found = collect(ring, self._entries, self._next)
        # The kernel stops the vCPU while a reserve is free still. A host that interprets many instructions between two
        # looks can use it up, and then overwrites the oldest entries: a ring without a free entry may have lost some.
        if len(found) == self._entries:
            raise KvmError("KVM_RESET_DIRTY_RINGS", errno.ENOBUFS, f"{self._entries} entries", _OVERRUN)
        self._next = (self._next + len(found)) % self._entries
        return found

    def close(self) -> None:
        """Unmap the ring; does nothing the second time."""
        self._pages.close()


def collect(ring: CData, entries: int, start: int) -> list[tuple[int, int]]:
    """Mark the dirty entries of ``ring`` from ``start`` on as collected and return their slots and offsets."""
    found: list[tuple[int, int]] = []
    while len(found) < entries:  # once round, while vCPUs go on filling it
        entry = ring[(start + len(found)) % entries]
        if entry.flags & (lib.KVM_DIRTY_GFN_F_DIRTY | lib.KVM_DIRTY_GFN_F_RESET) != lib.KVM_DIRTY_GFN_F_DIRTY:
            break
        found.append((entry.slot, entry.offset))
        entry.flags = lib.KVM_DIRTY_GFN_F_DIRTY | lib.KVM_DIRTY_GFN_F_RESET
    return found


class DirtyLog:
    """KVM_GET_DIRTY_LOG of one slot, its argument made once: a snapshot's restorer asks thousands of times a second."""

    def __init__(self, slot: int, gpa: Gpa, size: int) -> None:
        self.gpa = gpa
        self.size = size
        self.bitmap = ffi.new("uint8_t[]", (size // PAGE_SIZE + 63) // 64 * 8)
        self._c = ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": self.bitmap})
        self._view = ffi.buffer(self.bitmap)
        self._last: tuple[bytes, list[Gpa]] = (b"", [])

    def step(self, fd: int) -> Step:
        """Return the ioctl that fills ``bitmap``, of the VM ``fd``: a bit a page, low bit first, in whole words."""
        return Step(fd, "KVM_GET_DIRTY_LOG", self._c, explain=self._explain)

    def pages(self, fd: int, calls: Calls = lib) -> list[Gpa]:
        """Return the pages written since the last call, lowest first, of the VM ``fd``. Raises: KvmError."""
        self._explain(calls.pykvm_ioctl_pointer(fd, lib.KVM_GET_DIRTY_LOG, self._c))
        bitmap = bytes(self._view)
        if bitmap != self._last[0]:  # a guest that is restored again and again writes the same pages again and again
            self._last = bitmap, list(logged_pages(memoryview(bitmap).cast("Q"), self.gpa))
        return self._last[1]

    def _explain(self, result: int) -> None:
        check_error(result, "KVM_GET_DIRTY_LOG", f"gpa={self.gpa:#x}")


def logged_pages(words: Sequence[int] | memoryview, gpa: Gpa) -> Iterator[Gpa]:
    """Return the pages that KVM_GET_DIRTY_LOG of a slot at ``gpa`` has a bit for, in ``words`` of 64 bits."""
    for position in compress(range(len(words)), words):  # those that are not 0, which are few
        word, start = words[position], gpa + 64 * position * PAGE_SIZE
        while word:
            lowest = word & -word
            yield Gpa(start + (lowest.bit_length() - 1) * PAGE_SIZE)
            word ^= lowest


def why_no_dirty_ring(size: int, most: int, has_vcpus: bool, enabled: int) -> dict[int, str]:
    """Return what the kernel minds about a ring of ``size`` bytes, where ``most`` is what KVM_CHECK_EXTENSION told."""
    smallest = f"{PAGE_SIZE} bytes, and more on hosts whose CPU logs writes (PML)"
    if not most:
        why = "this host's KVM has no dirty ring: use the dirty log"
    elif enabled:
        why = f"this VM has dirty rings of {enabled} bytes already"
    elif has_vcpus:
        why = "only before the first vCPU is created"
    elif size & (size - 1) or size <= 0:
        why = f"{size} bytes is not a power of two"
    elif size > most:
        why = f"a ring has at most {most} bytes here"
    else:
        why = f"{size} bytes are too few: a ring has at least {smallest}"
    return {errno.EINVAL: why, errno.E2BIG: why}
