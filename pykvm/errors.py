"""Every error pykvm raises, in one tree.

A message says what was wrong, where, and what to do about it; the data behind the message stays available as
attributes. Leaves out: Python's own ``TypeError`` for arguments of the wrong type.
"""

from __future__ import annotations

import errno as errno_module
import os

__all__ = [
    "AssemblerError",
    "BusError",
    "ClosedError",
    "ConfigurationError",
    "DisassemblyError",
    "GuestMemoryError",
    "ImageError",
    "InUseError",
    "KvmError",
    "KvmUnavailableError",
    "MalformedExitError",
    "MsrRefusedError",
    "PagingError",
    "PykvmError",
    "RecordingError",
    "SnapshotError",
    "UnansweredReadError",
    "UnclaimedAccessError",
]


class PykvmError(Exception):
    """The root of the tree: catch it to catch everything pykvm raises on purpose."""


class KvmError(PykvmError, OSError):
    """An ioctl on a KVM descriptor failed.

    ``ioctl`` is its name in kvm.h, ``errno`` the kernel's answer, ``arguments`` what was asked, as text, and
    ``explanation`` what is known about the cause. It prints as
    ``KVM_SET_USER_MEMORY_REGION(slot=1, gpa=0x1000): EEXIST: overlaps slot 0``.
    """

    def __init__(self, ioctl: str, errno: int, arguments: str = "", explanation: str = "") -> None:
        name = errno_module.errorcode.get(errno, str(errno))
        self.ioctl = ioctl
        self.arguments = arguments
        self.explanation = explanation or os.strerror(errno)
        OSError.__init__(self, errno, f"{ioctl}({arguments}): {name}: {self.explanation}")

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[type[KvmError], tuple[str, int | None, str, str]]:
        return type(self), (self.ioctl, self.errno, self.arguments, self.explanation)


class KvmUnavailableError(PykvmError):
    """KVM cannot be used on this host at all. ``reason`` says why, ``remedy`` how to mend it (may be empty)."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(reason, remedy)

    def __str__(self) -> str:
        return f"{self.reason}\n{self.remedy}" if self.remedy else self.reason


class ClosedError(PykvmError):
    """A method was called on an object whose ``close()`` has run."""


class InUseError(PykvmError):
    """Something cannot be closed yet, because something else still needs it; the message names the user."""


class MalformedExitError(PykvmError):
    """``struct kvm_run`` describes data outside itself; KVM never does that, a corrupted mapping might."""


class MsrRefusedError(PykvmError):
    """A handler of an MSR raises this to refuse the access: the guest takes #GP. ``index`` is the MSR."""

    def __init__(self, index: int) -> None:
        self.index = index
        super().__init__(f"MSR {index:#x} is refused")


class UnansweredReadError(PykvmError):
    """A read exit was not answered before KVM_RUN, or was answered wrongly: twice, or with the wrong length."""


class GuestMemoryError(PykvmError):
    """An access to guest memory, or a region's definition, is impossible.

    ``address`` is the guest-physical address concerned, ``region`` the name of the region there, or None in a hole.
    """

    def __init__(self, message: str, address: int | None = None, region: str | None = None) -> None:
        self.address = address
        self.region = region
        super().__init__(message)


class PagingError(PykvmError):
    """A page table cannot be built or an address cannot be translated. ``address`` is the linear address."""

    def __init__(self, message: str, address: int | None = None) -> None:
        self.address = address
        super().__init__(message)


class BusError(PykvmError):
    """A device's range does not fit on the bus: it overlaps another device, or leaves the address space."""


class UnclaimedAccessError(BusError):
    """The guest accessed an ``address`` that no device claims, on a bus that was asked to raise."""

    def __init__(self, message: str, address: int) -> None:
        self.address = address
        super().__init__(message, address)

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigurationError(PykvmError):
    """A machine, a CPU mode or a run was asked for with values that cannot work together."""


class SnapshotError(PykvmError):
    """A snapshot cannot be taken now, or a file is none, is damaged, or does not belong to this version or host."""


class ImageError(PykvmError):
    """A guest image is missing, malformed, or does not fit into the machine."""


class AssemblerError(ImageError):
    """GNU as, ld or gcc refused a source; the message carries its own words, with file and line."""


class RecordingError(PykvmError):
    """A recording of exits is missing, malformed, cut off, or cannot be replayed. The message names line and field."""


class DisassemblyError(PykvmError):
    """Bytes cannot be disassembled as asked (an unknown width)."""
