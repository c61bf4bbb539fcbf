"""``Calls``: those functions of the compiled shim that make system calls, so that others can stand in for them.

Whoever has a descriptor of KVM's has such an object, and makes every call by it: the shim itself (``pykvm._shim.lib``),
or ``LoggedCalls``, which is asked the same and tells a ``CallLog`` of each call. Leaves out the shim's functions that
call no descriptor of KVM's: kicks, ticks and copies of pages. See: csrc/shim.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pykvm._shim import CData
    from pykvm.kvm.decoding import Value
    from pykvm.kvm.exits import Exit

__all__ = ["CallLog", "Calls", "IoctlCall", "OtherCall"]


class Calls(Protocol):
    """Each method is a function of csrc/shim.h, and returns a value that is not negative, or -errno."""

    def pykvm_open(self, path: bytes, /) -> int:
        """Open a device and return the descriptor."""

    def pykvm_close(self, fd: int, /) -> int:
        """Close a descriptor."""

    def pykvm_ioctl(self, fd: int, request: int, argument: int, /) -> int:
        """Issue an ioctl that takes a number."""

    def pykvm_ioctl_pointer(self, fd: int, request: int, argument: CData, /) -> int:
        """Issue an ioctl that takes a pointer."""

    def pykvm_issue(self, steps: CData, count: int, result: CData, /) -> int:
        """Issue ioctls up to the first that returns something unwanted, and return how many did as wanted."""

    def pykvm_map(self, fd: int, offset: int, size: int, mapping: CData, /) -> int:
        """Map what a descriptor shares."""

    def pykvm_unmap(self, mapping: CData, size: int, /) -> int:
        """Unmap it."""

    def pykvm_create_vm(self, kvm_fd: int, type: int, /) -> int:
        """KVM_CREATE_VM."""

    def pykvm_set_user_memory_region(
        self, vm_fd: int, slot: int, flags: int, gpa: int, size: int, memory: CData, /
    ) -> int:
        """KVM_SET_USER_MEMORY_REGION."""

    def pykvm_create_vcpu(self, vm_fd: int, id: int, run_size: int, vcpu: CData, /) -> int:
        """KVM_CREATE_VCPU, and map its ``struct kvm_run``."""

    def pykvm_close_vcpu(self, vcpu: CData, /) -> int:
        """Unmap ``struct kvm_run`` and close the vCPU."""

    def pykvm_run(self, vcpu: CData, /) -> int:
        """KVM_RUN."""

    def pykvm_complete(self, vcpu: CData, /) -> int:
        """KVM_RUN with ``immediate_exit``."""


@dataclass(frozen=True, slots=True)
class IoctlCall:
    """An ioctl: of which descriptor (``kvm``, ``vm``, ``vcpu 0``), its name, and its argument before and after.

    ``after`` is None unless the kernel wrote the argument, and ``before`` None unless it reads it. ``result`` is what
    it returned, or a negative errno; ``created`` what the descriptor is called that it returned. Of KVM_RUN, ``before``
    is what ``struct kvm_run`` carries in, and ``exit`` what it carries out.
    """

    descriptor: str
    name: str
    before: Value | None
    result: int
    after: Value | None = None
    created: str = ""
    exit: Exit | None = None


@dataclass(frozen=True, slots=True)
class OtherCall:
    """Another system call: ``open``, ``close``, ``mmap`` or ``munmap``.

    ``arguments`` are numbers, or a path, or, in the place of a descriptor, what it is called.
    """

    name: str
    arguments: tuple[int | str, ...]
    result: int
    created: str = ""


class CallLog(Protocol):
    """Who is told of system calls."""

    def call(self, call: IoctlCall | OtherCall) -> None:
        """Take note of ``call``, which has returned. From any thread; it must not raise."""
