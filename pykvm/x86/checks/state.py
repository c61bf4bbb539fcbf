"""A vCPU's state as the rules look at it, and what a rule has to say.

Leaves out the rules themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pykvm.kvm.structs import CpuidEntry, DebugRegs, Regs, Sregs
from pykvm.x86.registers import Cr0, Cr4, Efer, Rflags

__all__ = ["MASK64", "Problem", "Refusal", "Rule", "State", "fits", "unnamed_bits"]

MASK64 = (1 << 64) - 1


class Refusal(enum.Enum):
    """What happens to a state that breaks a rule."""

    EINVAL = "KVM's ioctl fails with EINVAL"
    ENTRY = "the processor fails the VM entry"
    LOST = "it is accepted, but does not arrive in the register"


@dataclass(frozen=True, slots=True)
class Problem:
    """A broken rule: the register, what is wrong with it, the reason for the rule, and what comes of it."""

    where: str
    what: str
    why: str
    refusal: Refusal

    def __str__(self) -> str:
        return f"{self.where}: {self.what} ({self.why})"


@dataclass(frozen=True, slots=True)
class State:
    """All registers of a vCPU; ``maxphyaddr`` in bits; ``cpuid`` as KVM_SET_CPUID2 got it, None if unknown."""

    regs: Regs
    sregs: Sregs
    debugregs: DebugRegs
    maxphyaddr: int
    cpuid: Sequence[CpuidEntry] | None = None

    def has(self, bit: Cr0 | Cr4 | Efer | Rflags) -> bool:
        """Return whether ``bit`` is set in the register that its type names."""
        match bit:
            case Cr0():
                value = self.sregs.cr0
            case Cr4():
                value = self.sregs.cr4
            case Efer():
                value = self.sregs.efer
            case Rflags():
                value = self.regs.rflags
        return bool(value & bit.value)

    @property
    def long_mode(self) -> bool:
        """Return whether long mode is active: KVM tells the processor so ("IA-32e mode guest") by EFER.LMA."""
        return self.has(Efer.LMA)

    @property
    def code64(self) -> bool:
        """Return whether CS holds 64-bit code."""
        return self.long_mode and bool(self.sregs.cs.l)

    @property
    def virtual_8086(self) -> bool:
        """Return whether RFLAGS.VM is in force."""
        return self.has(Rflags.VM) and self.has(Cr0.PE) and not self.long_mode

    @property
    def linear_width(self) -> int:
        """Return the width of a linear address in bits: 57 with five-level paging, else 48."""
        return 57 if self.has(Cr4.LA57) else 48

    def canonical(self, address: int) -> bool:
        """Return whether all bits above the linear width repeat the highest bit in use (SDM volume 1, 3.3.7.1)."""
        upper = (address & MASK64) >> (self.linear_width - 1)
        return upper in (0, MASK64 >> (self.linear_width - 1))


Rule = Callable[[State], Problem | None]


def fits(value: int, width: int) -> bool:
    """Return whether ``value`` is an unsigned number of ``width`` bits."""
    return 0 <= value < 1 << width


def unnamed_bits(kind: type[enum.Flag], value: int) -> int:
    """Return the bits of ``value`` that are no member of ``kind``: those the manuals call reserved."""
    named = 0
    for member in kind.__members__.values():
        named |= member.value
    return value & MASK64 & ~named
