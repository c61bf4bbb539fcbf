"""What the three kinds of KVM file descriptor have in common: ioctls, errors, and being closed.

KVM's interface is a tree of descriptors: /dev/kvm gives VMs, a VM gives vCPUs, and each kind takes its own ioctls
(Documentation/virt/kvm/api.rst, section 1, "General description"). Leaves out which ioctls those are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pykvm._shim import ffi, lib
from pykvm.errors import ClosedError, ConfigurationError, KvmError
from pykvm.kvm.calls import Calls

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["Descriptor", "Explanation", "check_error", "fill_state", "kernel_values"]


# What is known about the cause of an error: one sentence, or one for each errno that has an answer.
Explanation = str | Mapping[int, str]


def check_error(result: int, ioctl: str, arguments: str = "", explanation: Explanation = "") -> int:
    """Return ``result`` of a shim function. Raises: KvmError if it is a negative errno."""
    if result < 0:
        why = explanation if isinstance(explanation, str) else explanation.get(-result, "")
        raise KvmError(ioctl, -result, arguments, why)
    return result


@contextmanager
def kernel_values(ioctl: str) -> Iterator[None]:
    """Turn an error of cffi, which puts values into C memory, into ConfigurationError, which names ``ioctl``."""
    try:
        yield
    except (IndexError, OverflowError, TypeError) as error:
        raise ConfigurationError(f"{ioctl}: a value does not fit into the kernel's structure: {error}") from error


def fill_state(c: CData, state: bytes, what: str) -> None:
    """Copy ``state`` over the whole C structure ``c``. Raises: ConfigurationError, with ``what``, if sizes differ."""
    target = ffi.buffer(c)
    if len(state) != len(target):
        raise ConfigurationError(f"{what} has {len(target)} bytes, not {len(state)}")
    target[:] = state


class Descriptor:
    """An open KVM file descriptor: a context manager, closed once, whatever the order and however often asked.

    ``calls`` is what makes its system calls: the compiled shim, unless somebody wants to hear of them.
    """

    def __init__(self, fd: int, label: str, calls: Calls = lib) -> None:
        self._fd = fd
        self._closed = False
        self.label = label
        self.calls = calls

    def fileno(self) -> int:
        """Return the descriptor's number. Raises: ClosedError."""
        self._check_open()
        return self._fd

    @property
    def closed(self) -> bool:
        """Return whether ``close()`` has run."""
        return self._closed

    def close(self) -> None:
        """Close the descriptor; does nothing the second time."""
        if not self._closed:
            self._closed = True
            self.calls.pykvm_close(self._fd)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        try:
            warnings.warn(f"{self.label} was never closed: use it as a context manager", ResourceWarning, stacklevel=2)
        finally:  # with -W error the warning is an exception
            self.close()

    def __repr__(self) -> str:
        return f"<{self.label}, {'closed' if self._closed else f'fd {self._fd}'}>"

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.label} is closed: create a new one")

    def _ioctl(self, name: str, argument: int = 0, arguments: str = "", explanation: Explanation = "") -> int:
        """Issue the ioctl ``name`` with an integer argument and return its value."""
        self._check_open()
        with kernel_values(name):
            result = self.calls.pykvm_ioctl(self._fd, getattr(lib, name), argument)
        return check_error(result, name, arguments, explanation)

    def _ioctl_struct(self, name: str, pointer: CData, arguments: str = "", explanation: Explanation = "") -> int:
        """Issue the ioctl ``name`` with a pointer to a C structure, which the kernel reads or fills."""
        self._check_open()
        result = self.calls.pykvm_ioctl_pointer(self._fd, getattr(lib, name), pointer)
        return check_error(result, name, arguments, explanation)

    def enable_cap(self, cap: int, args: Sequence[int] = (), flags: int = 0, *, explanation: Explanation = "") -> int:
        """Switch an optional capability on: KVM_ENABLE_CAP, with up to four ``args``; returns the kernel's value.

        It exists for VMs and vCPUs; ``cap`` is a ``Cap``, and what ``args`` mean is said in api.rst, sections 6 and 7.
        ``explanation`` is what is known about the cause of an error.
        """
        if len(args) > 4:
            raise ConfigurationError(f"KVM_ENABLE_CAP takes at most 4 arguments, not {len(args)}")
        with kernel_values("KVM_ENABLE_CAP"):
            c = ffi.new("struct kvm_enable_cap *", {"cap": cap, "flags": flags, "args": list(args)})
        return self._ioctl_struct("KVM_ENABLE_CAP", c, f"cap={cap!r}, args={list(args)}", explanation)
