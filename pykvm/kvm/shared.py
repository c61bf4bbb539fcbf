"""``SharedPages``: memory that the kernel shares by a vCPU's descriptor beside ``struct kvm_run``.

See: Documentation/virt/kvm/api.rst, section 5 and section 8.29. Leaves out ``struct kvm_run`` itself, which
``pykvm.kvm.vcpu`` has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.kvm.calls import Calls
from pykvm.kvm.descriptor import check_error
from pykvm.units import PAGE_SIZE

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["SharedPages"]


class SharedPages:
    """``size`` bytes of the descriptor ``fd`` from its page ``page`` on, mapped until ``close()``.

    A mapping holds what is behind the descriptor, even when that is closed: it outlives the vCPU that it was made by,
    and keeps the kernel from taking the VM down.
    """

    def __init__(self, fd: int, page: int, size: int, calls: Calls = lib) -> None:
        pointer = ffi.new("void **")
        result = calls.pykvm_map(fd, page * PAGE_SIZE, size, pointer)
        check_error(result, "mmap", f"fd={fd}, page={page}, size={size:#x}")
        # SAFETY: ours until close(), which forgets the address; users hold a lock from a look at it to its last use.
        self.start: CData = pointer[0]
        self._size = size
        self._calls = calls

    @property
    def closed(self) -> bool:
        """Return whether ``close()`` has run."""
        return self.start == ffi.NULL

    def close(self) -> None:
        """Unmap the pages; does nothing the second time."""
        if not self.closed:
            start, self.start = self.start, ffi.NULL
            self._calls.pykvm_unmap(start, self._size)
