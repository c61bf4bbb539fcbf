"""Which MSRs a guest may touch without asking: the ranges of KVM_X86_SET_MSR_FILTER.

What the filter denies is a #GP for the guest; with KVM_CAP_X86_USER_SPACE_MSR (and ``MsrExitReason.FILTER``) enabled it
is an exit, ``Rdmsr`` or ``Wrmsr``, instead.

See: Documentation/virt/kvm/api.rst, KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR. Leaves out nothing; but the
kernel lets nobody filter the x2APIC's MSRs, 0x800 to 0x8ff.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["MsrFilterRange", "msr_filter"]

_LONG = 8  # bytes: the kernel reads bitmaps in units of unsigned long


@dataclass(frozen=True, slots=True)
class MsrFilterRange:
    """A bit for each of ``nmsrs`` MSRs from ``base`` up, low bit of ``bitmap[0]`` first: 1 allows, 0 denies.

    ``bitmap`` has a byte for every eight MSRs begun. ``read`` and ``write`` say which accesses the range is about; the
    others are left to the default.
    """

    base: int
    bitmap: bytes
    nmsrs: int
    read: bool = True
    write: bool = True


def msr_filter(ranges: Sequence[MsrFilterRange], *, default_deny: bool) -> tuple[CData, list[CData]]:
    """Return ``struct kvm_msr_filter``, and the bitmaps it points to, which the caller keeps until the ioctl is over.

    Raises: ConfigurationError if a range cannot be; OverflowError if a number does not fit.
    """
    c = ffi.new("struct kvm_msr_filter *")
    c.flags = lib.KVM_MSR_FILTER_DEFAULT_DENY if default_deny else lib.KVM_MSR_FILTER_DEFAULT_ALLOW
    if len(ranges) > len(c.ranges):
        raise ConfigurationError(f"an MSR filter has at most {len(c.ranges)} ranges, not {len(ranges)}: merge some")
    bitmaps = []
    for position, wanted in enumerate(ranges):
        bitmap = _bitmap(wanted)
        bitmaps.append(bitmap)
        target = c.ranges[position]
        target.flags = (lib.KVM_MSR_FILTER_READ if wanted.read else 0) | (
            lib.KVM_MSR_FILTER_WRITE if wanted.write else 0
        )
        target.base, target.nmsrs = wanted.base, wanted.nmsrs
        # SAFETY: the kernel copies the bitmap during the ioctl; it reads whole longs, and _bitmap made it as long.
        target.bitmap = bitmap
    return c, bitmaps


def _bitmap(wanted: MsrFilterRange) -> CData:
    where = f"the MSR range from {wanted.base:#x}"
    most = lib.KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8
    if not 0 < wanted.nmsrs <= most:
        raise ConfigurationError(f"{where} has 1 to {most} MSRs, not {wanted.nmsrs}")
    if not (wanted.read or wanted.write):
        raise ConfigurationError(f"{where} is about neither reads nor writes: set one of them, or leave it out")
    if len(wanted.bitmap) != (wanted.nmsrs + 7) // 8:
        raise ConfigurationError(
            f"{where} has {wanted.nmsrs} MSRs: its bitmap has {(wanted.nmsrs + 7) // 8} bytes, not {len(wanted.bitmap)}"
        )
    length = (len(wanted.bitmap) + _LONG - 1) // _LONG * _LONG
    return ffi.new("uint8_t[]", list(wanted.bitmap.ljust(length, b"\0")))
