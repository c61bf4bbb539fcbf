"""``WrittenPages``: the pages that a guest wrote go back to what they were, as KVM's dirty log tells them.

    KVM_GET_DIRTY_LOG  ->  a bit a page  ->  for each that is set: copy the saved page

It is one call into C for asking and one a slot for copying, however many pages there are. Leaves out dirty rings, and
what the host wrote, of which KVM knows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.kvm.batch import Batch
from pykvm.kvm.calls import Calls
from pykvm.kvm.dirty import DirtyLog
from pykvm.units import PAGE_SIZE, Gpa

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["WrittenPages"]


class WrittenPages:
    """The slots of the VM ``fd`` that keep a dirty log, each with its host memory, and ``saved`` pages for them.

    Pages that are not among ``saved`` are zeros. It is of no use any more when the VM's slots change.
    """

    def __init__(
        self,
        fd: int,
        slots: Iterable[tuple[DirtyLog, CData]],
        saved: Iterable[tuple[Gpa, bytes]],
        calls: Calls = lib,
    ) -> None:
        slots = list(slots)
        self._logs = Batch((log.step(fd) for log, _ in slots), calls)
        self._kept = dict(saved)
        tables = [ffi.new("void *[]", log.size // PAGE_SIZE) for log, _ in slots]
        for page, data in self._kept.items():
            for (log, _), table in zip(slots, tables, strict=True):
                if log.gpa <= page < log.gpa + log.size:
                    # SAFETY: bytes do not move, and are kept as long as this object.
                    table[(page - log.gpa) // PAGE_SIZE] = ffi.from_buffer("char[]", data)
        # SAFETY: a pin keeps the memory mapped, and its VM holds it until the slot or the VM is gone.
        self._copies = [
            (pin, len(table), ffi.cast("uint64_t *", log.bitmap), table)
            for (log, pin), table in zip(slots, tables, strict=True)
        ]

    def put_back(self) -> None:
        """Put back what was written since the log was asked last. No vCPU may run meanwhile. Raises: KvmError."""
        self._logs.issue()
        for memory, pages, bitmap, table in self._copies:
            lib.pykvm_put_back(memory, pages, bitmap, table)
