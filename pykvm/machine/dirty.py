"""Who is told of the pages that a guest writes: KVM tells once, and several want to know.

    KVM's log or rings --collect()--> the set of each who has joined

Whoever joined takes what is in its own set when it likes. Leaves out what the host writes into guest memory: see
``GuestMemory.log_writes``.
"""

from __future__ import annotations

from pykvm.errors import KvmError
from pykvm.kvm import Vm
from pykvm.units import Gpa

__all__ = ["DirtyPages"]


class DirtyPages:
    """The pages of ``vm`` that its guest wrote. ``losses`` counts how often KVM lost track of them."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._members: list[set[Gpa]] = []
        self.losses = 0

    def join(self) -> set[Gpa]:
        """Return a new set, to which ``collect`` adds from now on; who takes pages out of it clears it."""
        pages: set[Gpa] = set()
        self._members.append(pages)
        return pages

    def leave(self, pages: set[Gpa]) -> None:
        """Add to the set ``pages``, which ``join`` returned, no more; does nothing the second time."""
        self._members = [member for member in self._members if member is not pages]

    @property
    def is_shared(self) -> bool:
        """Return whether more than one has joined."""
        return len(self._members) > 1

    def collect(self) -> None:
        """Ask KVM, and tell everyone. Raises: KvmError if a ring ran over."""
        try:
            pages = self._vm.take_dirty_pages()
        except KvmError:
            self.losses += 1
            raise
        for member in self._members:
            member.update(pages)
