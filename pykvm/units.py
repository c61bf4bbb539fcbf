"""Address spaces, sizes and alignment.

Three address spaces meet in a hypervisor, and mixing them up is its classic bug, so each has a type:

    Gva  --(guest page tables: CR3)-->  Gpa  --(memory slots: KVM)-->  Hva
    guest-virtual                       guest-physical                 host-virtual

See: Intel SDM volume 3, section 4.1 (linear and physical addresses); Documentation/virt/kvm/api.rst,
KVM_SET_USER_MEMORY_REGION (guest-physical to host-virtual). Leaves out segmentation: see ``pykvm.x86.segments``.
"""

from __future__ import annotations

import re
from typing import NewType

from pykvm.errors import ConfigurationError

__all__ = [
    "PAGE_SIZE",
    "GiB",
    "Gpa",
    "Gva",
    "Hva",
    "KiB",
    "MiB",
    "align_down",
    "align_up",
    "format_size",
    "is_aligned",
    "parse_size",
]

Gpa = NewType("Gpa", int)
Gva = NewType("Gva", int)
Hva = NewType("Hva", int)

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
PAGE_SIZE = 4 * KiB

_SIZE = re.compile(r"(?P<number>0[xX][0-9a-fA-F]+|[0-9]+)\s*(?P<unit>[kKmMgG]?)(?:i?[bB])?")
_UNITS = {"": 1, "K": KiB, "M": MiB, "G": GiB}


def align_down(value: int, alignment: int = PAGE_SIZE) -> int:
    """Return the greatest multiple of ``alignment`` (a power of two) that is not above ``value``."""
    return value & ~(alignment - 1)


def align_up(value: int, alignment: int = PAGE_SIZE) -> int:
    """Return the least multiple of ``alignment`` (a power of two) that is not below ``value``."""
    return align_down(value + alignment - 1, alignment)


def is_aligned(value: int, alignment: int = PAGE_SIZE) -> bool:
    """Return whether ``value`` is a multiple of ``alignment`` (a power of two)."""
    return value & (alignment - 1) == 0


def parse_size(text: str | int) -> int:
    """Return the number of bytes that ``text`` names: ``"16M"``, ``"512KiB"``, ``"0x1000"``, ``4096``.

    Units are powers of two: K, M and G, with or without ``B`` or ``iB``.

    Raises: ConfigurationError if it is no size.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is not a size: write bytes, or a number with K, M or G, such as 16M")
    return int(match["number"], 0) * _UNITS[match["unit"].upper()]


def format_size(size: int) -> str:
    """Return ``size`` in bytes in the largest unit that divides it: ``"16 MiB"``, ``"5 bytes"``."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
