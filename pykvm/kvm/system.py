"""``Kvm``: the descriptor of /dev/kvm, where everything begins.

See: Documentation/virt/kvm/api.rst, section 4, the ioctls of type "system ioctl". Leaves out: nested virtualization
and confidential guests.
"""

from __future__ import annotations

import errno
import getpass
import grp
import os
import stat
from pathlib import Path
from typing import Self

from pykvm._shim import ffi, lib
from pykvm.errors import KvmError, KvmUnavailableError
from pykvm.kvm.calls import CallLog, Calls
from pykvm.kvm.constants import Cap
from pykvm.kvm.descriptor import Descriptor, check_error, kernel_values
from pykvm.kvm.structs import CpuidEntry, from_c
from pykvm.kvm.vm import Vm

__all__ = ["DEFAULT_PATH", "Kvm", "why_unavailable"]

DEFAULT_PATH = "/dev/kvm"


class Kvm(Descriptor):
    """An open /dev/kvm."""

    @classmethod
    def open(cls, path: str = DEFAULT_PATH, *, log: CallLog | None = None) -> Self:
        """Open /dev/kvm read-write and check that it speaks the API this code was compiled for.

        ``log`` is told of each system call that is made by what is returned, its VMs and their vCPUs.

        Raises: KvmUnavailableError, which says why and what to do about it.
        """
        calls: Calls = lib if log is None else _logged(log)
        fd = calls.pykvm_open(path.encode())
        if fd < 0:
            raise why_unavailable(path, -fd)
        kvm = cls(fd, path, calls)
        try:
            version = kvm.get_api_version()
        except KvmError as error:
            kvm.close()
            raise KvmUnavailableError(
                f"{path} is not a KVM device: {error}", "give the path of the real /dev/kvm"
            ) from error
        if version != lib.KVM_API_VERSION:
            kvm.close()
            raise KvmUnavailableError(
                f"{path} speaks KVM API version {version}, but {lib.KVM_API_VERSION} is needed",
                "use Linux 2.6.22 or newer; every newer kernel speaks version 12",
            )
        return kvm

    def get_api_version(self) -> int:
        """Return KVM_GET_API_VERSION: 12 on every kernel since Linux 2.6.22."""
        return self._ioctl("KVM_GET_API_VERSION")

    def check_extension(self, cap: Cap | int) -> int:
        """Return KVM_CHECK_EXTENSION: 0 if the host lacks ``cap``, else 1 or a figure that belongs to it."""
        return self._ioctl("KVM_CHECK_EXTENSION", cap, f"cap={cap!r}")

    def get_vcpu_mmap_size(self) -> int:
        """Return KVM_GET_VCPU_MMAP_SIZE: the bytes a vCPU shares with the kernel, ``struct kvm_run`` first."""
        return self._ioctl("KVM_GET_VCPU_MMAP_SIZE")

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """Return KVM_GET_SUPPORTED_CPUID: what CPUID can say on this host, as KVM_SET_CPUID2 takes it."""
        count = 128
        while True:
            cpuid = ffi.new("struct kvm_cpuid2 *", {"nent": count, "entries": count})
            try:
                self._ioctl_struct("KVM_GET_SUPPORTED_CPUID", cpuid, f"nent={count}")
            except KvmError as error:
                if error.errno != errno.E2BIG or count > 1 << 16:
                    raise
                count *= 2
                continue
            return [from_c(CpuidEntry, cpuid.entries[n]) for n in range(cpuid.nent)]

    def get_msr_index_list(self) -> list[int]:
        """Return KVM_GET_MSR_INDEX_LIST: the numbers of the MSRs that make up a guest's state on this host."""
        self._check_open()
        counter = ffi.new("struct kvm_msr_list *", {"nmsrs": 0, "indices": 0})
        # With no room for the list the kernel answers E2BIG and how many there are (api.rst, KVM_GET_MSR_INDEX_LIST).
        result = self.calls.pykvm_ioctl_pointer(self._fd, lib.KVM_GET_MSR_INDEX_LIST, counter)
        if result != -errno.E2BIG:
            check_error(result, "KVM_GET_MSR_INDEX_LIST")
        msrs = ffi.new("struct kvm_msr_list *", {"nmsrs": counter.nmsrs, "indices": counter.nmsrs})
        self._ioctl_struct("KVM_GET_MSR_INDEX_LIST", msrs, f"nmsrs={counter.nmsrs}")
        return list(msrs.indices[0 : msrs.nmsrs])

    def create_vm(self, type: int = 0) -> Vm:
        """Return a new VM: KVM_CREATE_VM. It has no memory and no vCPU yet. ``type`` is 0 on ordinary x86."""
        self._check_open()
        with kernel_values("KVM_CREATE_VM"):
            fd = self.calls.pykvm_create_vm(self._fd, type)
        check_error(fd, "KVM_CREATE_VM", f"type={type}")
        return Vm(fd, self.get_vcpu_mmap_size(), self.calls)


def _logged(log: CallLog) -> Calls:
    from pykvm.kvm.logged import LoggedCalls  # with all that decodes what a call was given

    return LoggedCalls(log)


def why_unavailable(path: str, error: int) -> KvmUnavailableError:
    """Return the error that explains why ``path`` could not be opened; ``error`` is the errno."""
    match error:
        case errno.ENOENT:
            return KvmUnavailableError(
                f"{path} does not exist",
                "load KVM: sudo modprobe kvm_intel (or kvm_amd); if that fails, enable VT-x or AMD-V in the firmware, "
                "nested virtualization if this is a virtual machine, or pass --device /dev/kvm to the container",
            )
        case errno.EACCES | errno.EPERM:
            return KvmUnavailableError(f"{path} may not be opened: permission denied for {_user()}", _grant(path))
        case errno.ENODEV | errno.ENXIO:
            return KvmUnavailableError(
                f"{path} exists, but no KVM is behind it",
                "load KVM: sudo modprobe kvm_intel (or kvm_amd)",
            )
    return KvmUnavailableError(f"{path} cannot be opened: {os.strerror(error)}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        return f"user {os.getuid()}"


def _grant(path: str) -> str:
    """Return the command that gives this user access to ``path``."""
    try:
        status = Path(path).stat()
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return f"sudo chmod a+rw {path}"
    if status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP and group != "root":
        return f"sudo usermod --append --groups {group} {_user()} && newgrp {group}"
    return f"sudo chmod a+rw {path}"
