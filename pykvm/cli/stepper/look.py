"""``Look``: what there is to see of a guest that stands still, taken once for all panes.

Registers are copies. Memory is the guest's own, read when a pane wants it: by linear address, through the guest's page
tables, where bytes that are not there are None. Leaves out how the guest came here: see ``engine``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pykvm.boot import Image
from pykvm.kvm import Regs, Sregs
from pykvm.memory import GuestMemory
from pykvm.units import PAGE_SIZE
from pykvm.x86 import CpuMode, Paging, cpu_mode, linear_rip, read_linear

__all__ = ["Look"]

ADDRESSES = 1 << 64


@dataclass(frozen=True)
class Look:
    """A guest after ``step`` instructions. ``earlier`` are its registers when it was last looked at, or None."""

    step: int
    regs: Regs
    sregs: Sregs
    memory: GuestMemory
    image: Image | None = None
    earlier: tuple[Regs, Sregs] | None = None

    @cached_property
    def rip(self) -> int:
        """Return the linear address of the next instruction."""
        return linear_rip(self.regs, self.sregs)

    @cached_property
    def mode(self) -> CpuMode:
        """Return the mode that the CPU is in."""
        return cpu_mode(self.sregs, self.regs)

    @cached_property
    def paging(self) -> Paging:
        """Return what the control registers say about translation."""
        return Paging.of(self.sregs)

    def read(self, address: int, size: int) -> list[int | None]:
        """Return ``size`` bytes from linear ``address`` on; None for each that is not mapped, or not memory."""
        found: list[int | None] = []
        while len(found) < size:
            here = (address + len(found)) % ADDRESSES
            room = min(size - len(found), PAGE_SIZE - here % PAGE_SIZE)
            found += read_linear(self.memory, self.paging, here, room) or [None] * room
        return found

    def code(self, address: int, size: int) -> bytes:
        """Return up to ``size`` bytes from linear ``address`` on, as many as follow one another."""
        return read_linear(self.memory, self.paging, address, size)

    def symbol_at(self, address: int) -> str | None:
        """Return ``address`` in the source's words, or None if it has none."""
        return None if self.image is None else self.image.symbol_at(address)
