"""``CoalescedRing``: the queue of guest writes that KVM_REGISTER_COALESCED_MMIO keeps from being exits.

The kernel puts a write in at ``last``, we take it out at ``first``; the ring is empty when both are equal, and one
entry always stays free. When it is full, a write is an ordinary exit:

         first ------.             .------ last
                     v             v
    +-------------+-----+-----+-------------+
    |    free     |  waiting  |    free     |        struct kvm_coalesced_mmio_ring, a page
    +-------------+-----+-----+-------------+

All vCPUs of a VM share the one ring, in which their writes stand in the order they were made. An x86 CPU keeps loads in
order among loads and stores among stores, so that an entry whose ``last`` we saw is complete, and one we gave back by
``first`` has been read.

See: Documentation/virt/kvm/api.rst, KVM_REGISTER_COALESCED_MMIO. Leaves out nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.errors import MalformedExitError
from pykvm.kvm.calls import Calls
from pykvm.kvm.exits import IoOut, MmioWrite
from pykvm.kvm.shared import SharedPages
from pykvm.units import PAGE_SIZE, Gpa

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["CoalescedRing", "drain"]


class CoalescedRing:
    """The ring of one VM, mapped by the descriptor of one of its vCPUs, at the page KVM_CAP_COALESCED_MMIO tells."""

    def __init__(self, fd: int, page: int, calls: Calls = lib) -> None:
        self._pages = SharedPages(fd, page, PAGE_SIZE, calls)
        # SAFETY: the page is mapped until close(), which holds the lock and forgets this.
        self._ring: CData | None = ffi.cast("struct kvm_coalesced_mmio_ring *", self._pages.start)
        self._lock = threading.Lock()

    def drain(self) -> list[IoOut | MmioWrite]:
        """Take every write out, oldest first. From any thread. Raises: MalformedExitError."""
        with self._lock:
            return [] if self._ring is None else drain(self._ring, PAGE_SIZE)

    def close(self) -> None:
        """Unmap the ring; does nothing the second time."""
        with self._lock:
            self._ring = None
            self._pages.close()


def drain(ring: CData, size: int) -> list[IoOut | MmioWrite]:
    """Take every write out of ``ring``, which lies in ``size`` bytes. Raises: MalformedExitError."""
    first, last = ring.first, ring.last
    if first == last:
        return []
    room = (size - ffi.sizeof("struct kvm_coalesced_mmio_ring")) // ffi.sizeof("struct kvm_coalesced_mmio")
    if first >= room or last >= room:
        raise MalformedExitError(f"the coalesced ring says {first} to {last}, but has {room} entries")
    writes = [_write(ring.coalesced_mmio[position % room]) for position in _positions(first, last, room)]
    ring.first = last
    return writes


def _positions(first: int, last: int, room: int) -> range:
    return range(first, last if first < last else last + room)


def _write(entry: CData) -> IoOut | MmioWrite:
    if entry.len > len(entry.data):
        raise MalformedExitError(f"the coalesced ring holds a write of {entry.len} bytes")
    data = bytes(entry.data[0 : entry.len])
    if entry.pio:
        return IoOut(entry.phys_addr, entry.len, 1, data)
    return MmioWrite(Gpa(entry.phys_addr), data)
