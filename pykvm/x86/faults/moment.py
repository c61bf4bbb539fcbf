"""A moment in a guest's life: what decides whether an instruction, an access or a handler comes to pass.

Also the exception that stands in the way. See: Intel SDM volume 3, section 6.13 (error code), section 4.7 (page
fault). Leaves out the rules: see the modules beside this one.
"""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.errors import PykvmError
from pykvm.kvm.structs import Regs, Sregs
from pykvm.memory import GuestMemory
from pykvm.x86.exceptions import EXCEPTIONS, vector_name
from pykvm.x86.modes import cpu_mode
from pykvm.x86.paging import Paging
from pykvm.x86.registers import Cr0, Efer, Rflags

__all__ = ["DF", "GP", "NP", "PF", "SS", "TS", "UD", "Fault", "Moment", "selector_code"]

UD, DF, TS, NP, SS, GP, PF = 6, 8, 10, 11, 12, 13, 14  # vectors


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception: its ``vector``, its error code if it has one, and the ``reason`` as a clause.

    ``address`` is what a page fault puts into CR2. ``is_certain`` is False where the manual's rule is not all that
    counts, such as which MSRs there are.
    """

    vector: int
    error_code: int | None
    reason: str
    address: int | None = None
    is_certain: bool = True

    @property
    def name(self) -> str:
        """Return ``"#PF"``, or the vector in words if it has no mnemonic."""
        mnemonic = EXCEPTIONS[self.vector].mnemonic if self.vector < len(EXCEPTIONS) else ""
        return mnemonic or vector_name(self.vector)


@dataclass(frozen=True, slots=True)
class Moment:
    """The registers and the memory of a guest, which may hold anything."""

    regs: Regs
    sregs: Sregs
    memory: GuestMemory

    @property
    def is_real(self) -> bool:
        """Return whether the CPU is in real mode."""
        return not self.sregs.cr0 & Cr0.PE.value

    @property
    def is_long(self) -> bool:
        """Return whether long mode is active, be it with 64-bit code or with 32-bit code."""
        return bool(self.sregs.efer & Efer.LMA.value) and not self.is_real

    @property
    def is_virtual_8086(self) -> bool:
        """Return whether the CPU is in virtual-8086 mode."""
        return bool(self.regs.rflags & Rflags.VM.value) and not self.is_real and not self.is_long

    @property
    def width(self) -> int:
        """Return the width of the code, in bits."""
        return cpu_mode(self.sregs, self.regs).width

    @property
    def cpl(self) -> int:
        """Return the current privilege level: the ring."""
        return cpu_mode(self.sregs, self.regs).ring

    @property
    def paging(self) -> Paging:
        """Return how linear addresses are translated."""
        return Paging.of(self.sregs)

    @property
    def linear_mask(self) -> int:
        """Return the highest linear address there is."""
        return (1 << 64) - 1 if self.is_long else 0xFFFF_FFFF

    def read(self, gpa: int, size: int) -> bytes | None:
        """Return ``size`` bytes of guest-physical memory, None if they are not all there."""
        try:
            return self.memory.read(gpa, size)
        except PykvmError:
            return None


def selector_code(selector: int, *, external: bool = False) -> int:
    """Return the error code that names ``selector``: its index and table, and the bit EXT."""
    return selector & 0xFFFC | int(external)
