"""``VmDoorbells``: guest accesses that the kernel deals with by itself, as ``Vm`` has them.

An ordinary access to a device is an exit, microseconds of it. Three ioctls spare it: a write may signal an eventfd
(KVM_IOEVENTFD), be queued until somebody looks (KVM_REGISTER_COALESCED_MMIO), and an MSR may be left to the guest or
denied it (KVM_X86_SET_MSR_FILTER).

See: Documentation/virt/kvm/api.rst, section 4, under the ioctls' names. Leaves out: draining the queue, which
``pykvm.kvm.vm`` does.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError
from pykvm.kvm.descriptor import Descriptor, kernel_values
from pykvm.kvm.msr_filter import MsrFilterRange, msr_filter

__all__ = ["VmDoorbells"]

_IOEVENTFD_SIZES = (0, 1, 2, 4, 8)
_IOEVENTFD_ERRORS = {
    errno.EEXIST: "another ioeventfd watches the same address, size and value",
    errno.ENOENT: "no ioeventfd watches that: give the address, size, fd and datamatch it was made with",
    errno.EBADF: "there is no such file descriptor",
    errno.EINVAL: "fd is no eventfd, or the address runs past the end of the address space",
}


class VmDoorbells(Descriptor):
    """Which accesses of its guest a virtual machine's kernel side takes."""

    def ioeventfd(
        self,
        address: int,
        size: int,
        fd: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        deassign: bool = False,
    ) -> None:
        """Make a guest's write of ``size`` bytes to ``address`` signal the eventfd ``fd``, not exit: KVM_IOEVENTFD.

        ``size`` is 1, 2, 4 or 8, or 0 for a write of any size; ``pio`` makes ``address`` a port. With ``datamatch``
        only that value signals; others exit as ever. ``deassign`` ends what the same arguments began. The kernel holds
        the eventfd by itself: ``fd`` may be closed.

        Raises: ConfigurationError for another size, or a ``datamatch`` without one; KvmError (EEXIST: the address is
        taken; ENOENT: nothing to end).
        """
        if size not in _IOEVENTFD_SIZES:
            raise ConfigurationError(f"KVM_IOEVENTFD watches writes of 1, 2, 4 or 8 bytes, or 0 for any, not {size}")
        if datamatch is not None and size == 0:
            raise ConfigurationError("KVM_IOEVENTFD: a datamatch needs a size: give the write's, 1, 2, 4 or 8")
        if datamatch is not None and not 0 <= datamatch < 1 << 8 * size:
            raise ConfigurationError(f"KVM_IOEVENTFD: a write of {size} bytes never has the value {datamatch:#x}")
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH if datamatch is not None else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN if deassign else 0
        values = {"datamatch": datamatch or 0, "addr": address, "len": size, "fd": fd, "flags": flags}
        with kernel_values("KVM_IOEVENTFD"):
            c = ffi.new("struct kvm_ioeventfd *", values)
        arguments = f"address={address:#x}, size={size}, fd={fd}, pio={pio}, datamatch={datamatch}, deassign={deassign}"
        self._ioctl_struct("KVM_IOEVENTFD", c, arguments, _IOEVENTFD_ERRORS)

    def register_coalesced_mmio(self, address: int, size: int, *, pio: bool = False) -> None:
        """Say KVM_REGISTER_COALESCED_MMIO; ``Vm`` maps the queue too."""
        self._coalesced_zone("KVM_REGISTER_COALESCED_MMIO", address, size, pio)

    def unregister_coalesced_mmio(self, address: int, size: int, *, pio: bool = False) -> None:
        """Let writes exit again: KVM_UNREGISTER_COALESCED_MMIO, for every zone inside ``size`` bytes from ``address``.

        What is in the queue already stays there. The kernel does not mind if there is no such zone.
        """
        self._coalesced_zone("KVM_UNREGISTER_COALESCED_MMIO", address, size, pio)

    def x86_set_msr_filter(self, ranges: Sequence[MsrFilterRange], *, default_deny: bool = False) -> None:
        """Say which MSRs the guest may access: KVM_X86_SET_MSR_FILTER. It replaces the filter before.

        ``default_deny`` is about MSRs in no range. No range and no ``default_deny`` is no filter.

        Raises: ConfigurationError if there are more than 16 ranges, or one has the wrong bitmap; KvmError.
        """
        with kernel_values("KVM_X86_SET_MSR_FILTER"):
            c, bitmaps = msr_filter(ranges, default_deny=default_deny)
        why = "nothing but default_deny denies everything: give a range" if default_deny and not ranges else ""
        self._ioctl_struct("KVM_X86_SET_MSR_FILTER", c, f"{len(bitmaps)} ranges, default_deny={default_deny}", why)

    def _coalesced_zone(self, ioctl: str, address: int, size: int, pio: bool) -> None:
        zone = ffi.new("struct kvm_coalesced_mmio_zone *")
        with kernel_values(ioctl):
            zone.addr, zone.size, zone.pio = address, size, pio
        self._ioctl_struct(ioctl, zone, f"address={address:#x}, size={size:#x}, pio={pio}")
