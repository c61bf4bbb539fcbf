"""``Batch``: ioctls whose arguments are made beforehand, issued one after another by one call into C.

A snapshot is restored thousands of times a second by the same ioctls with the same arguments, and looking each of them
up in Python takes as long as many of them do. Leaves out ioctls whose argument depends on what an earlier one told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.kvm.calls import Calls
from pykvm.kvm.descriptor import check_error

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["Batch", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """The ioctl ``name`` of the descriptor ``fd``, with a pointer to ``argument``, and what it returns if all is well.

    ``explain`` is given what it returned otherwise, or a negative errno, and may raise a KvmError that knows more.
    """

    fd: int
    name: str
    argument: CData
    wanted: int = 0
    explain: Callable[[int], object] | None = None


class Batch:
    """The ioctls ``steps``, in this order. The descriptors belong to somebody who keeps them open."""

    def __init__(self, steps: Iterable[Step], calls: Calls = lib) -> None:
        self._calls = calls
        self._steps = tuple(steps)
        self._count = len(self._steps)
        # SAFETY: the steps keep the arguments, and this object keeps the steps.
        self._c = ffi.new("struct pykvm_step[]", [_to_c(step) for step in self._steps])
        self._result = ffi.new("int *")

    def issue(self) -> None:
        """Issue them all. Raises: KvmError for the first that fails, after which none is issued."""
        done = self._calls.pykvm_issue(self._c, self._count, self._result)
        if done != self._count:
            _explain(self._steps[done], self._result[0])


def _to_c(step: Step) -> tuple[int, int, int, CData]:
    return step.fd, step.wanted, getattr(lib, step.name), step.argument


def _explain(step: Step, result: int) -> None:
    if step.explain is not None:
        step.explain(result)
    check_error(result, step.name)
