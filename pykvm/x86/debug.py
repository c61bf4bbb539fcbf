"""Hardware breakpoints and watchpoints as values, and the debug registers that make the CPU stop at them.

DR0 to DR3 hold four linear addresses, DR7 says what is watched there, and DR6 tells afterwards which one it was. See:
Intel SDM volume 3, section 17.2; Documentation/virt/kvm/api.rst, KVM_SET_GUEST_DEBUG, which takes the eight registers.
Leaves out debug registers of the guest's own (KVM_SET_DEBUGREGS), and AMD's breakpoints with address masks.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from pykvm.errors import ConfigurationError
from pykvm.x86.registers import Dr6, Dr7

__all__ = ["BreakpointKind", "HardwareBreakpoint", "encode_breakpoints", "hit_breakpoints", "is_single_step"]

PORTS = 1 << 16

# By breakpoint: the bit of DR7 that switches it on, its two fields there, and its bit of DR6.
_ENABLE = (Dr7.G0, Dr7.G1, Dr7.G2, Dr7.G3)
_RW = (Dr7.RW0, Dr7.RW1, Dr7.RW2, Dr7.RW3)
_LEN = (Dr7.LEN0, Dr7.LEN1, Dr7.LEN2, Dr7.LEN3)
_HIT = (Dr6.B0, Dr6.B1, Dr6.B2, Dr6.B3)
# How DR7's LEN writes a length in bytes: eight came last, and took the value that was free.
_LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}


class BreakpointKind(enum.Enum):
    """What is watched, as DR7's RW writes it. The CPU can watch writes without reads, but not reads without writes."""

    EXECUTE = 0  # stops before the instruction
    WRITE = 1  # stops after the instruction that wrote, as the next two do
    IO = 2  # IN and OUT; needs CR4.DE
    READ_WRITE = 3


@dataclass(frozen=True, slots=True)
class HardwareBreakpoint:
    """One of the four. Any access that touches the watched bytes counts.

    ``address`` is linear (a port for IO), and a multiple of ``length``: 1, 2, 4 or 8 bytes; always 1 for EXECUTE, whose
    address is that of an instruction's first byte, and not 8 for IO.

    Raises: ConfigurationError if the CPU has no such breakpoint.
    """

    address: int
    kind: BreakpointKind = BreakpointKind.EXECUTE
    length: int = 1

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise ConfigurationError(f"a hardware breakpoint at {self.address:#x} ({self.kind.name}): {problem}")

    def _problem(self) -> str:
        is_io = self.kind is BreakpointKind.IO
        if self.length not in _LENGTHS:
            return f"watches 1, 2, 4 or 8 bytes, not {self.length}: use several"
        if self.kind is BreakpointKind.EXECUTE and self.length != 1:
            return f"has length 1, not {self.length}: it watches for an instruction's first byte"
        if is_io and self.length == 8:
            return "has length 1, 2 or 4: no port is wider"
        if not 0 <= self.address < (PORTS if is_io else 1 << 64):
            return f"an address has {16 if is_io else 64} bits"
        if self.address % self.length:
            return f"is not aligned to its length of {self.length}: use {self.address & -self.length:#x}, or length 1"
        return ""


def encode_breakpoints(breakpoints: Sequence[HardwareBreakpoint]) -> tuple[int, ...]:
    """Return DR0 to DR7, eight numbers for KVM_SET_GUEST_DEBUG, that watch for ``breakpoints``, the first in DR0.

    Raises: ConfigurationError if they are more than four.
    """
    if len(breakpoints) > len(_ENABLE):
        raise ConfigurationError(f"the CPU has {len(_ENABLE)} hardware breakpoints, not {len(breakpoints)}")
    addresses = [breakpoint.address for breakpoint in breakpoints]
    dr7 = 0
    for number, breakpoint in enumerate(breakpoints):
        dr7 |= _ENABLE[number].value
        dr7 |= _field(_RW[number], breakpoint.kind.value)
        dr7 |= _field(_LEN[number], _LENGTHS[breakpoint.length])
    return (*addresses, *[0] * (7 - len(addresses)), dr7)


def hit_breakpoints(dr6: int) -> list[int]:
    """Return the numbers, 0 to 3, of the breakpoints whose condition was met, by ``dr6`` of a ``Debug`` exit.

    One instruction may meet several. The CPU may also report a breakpoint that is switched off.
    """
    return [number for number, bit in enumerate(_HIT) if dr6 & bit.value]


def is_single_step(dr6: int) -> bool:
    """Return whether ``dr6`` says that a single step ended (BS); breakpoints may have been hit at the same time."""
    return bool(dr6 & Dr6.BS.value)


def _field(field: Dr7, value: int) -> int:
    """Return ``value`` at the place of a field of two bits."""
    return value * (field.value & -field.value)
