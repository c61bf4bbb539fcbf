"""``LoggedCalls``: the compiled shim's system calls, each told of once it is made, with its arguments by name.

    Descriptor -> LoggedCalls -> shim -> kernel
                       |
                       +-> CallLog.call(IoctlCall("vm", "KVM_CREATE_VCPU", 0, result=5, created="vcpu 0"))

It stands between a descriptor and the shim, so that who wants no log pays for none. What the shim does in one C
function is told as the calls that it makes: KVM_CREATE_VCPU, then an mmap. Leaves out ioctls that the shim repeats by
itself: KVM_CREATE_VM after EINTR, KVM_RUN after EAGAIN.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib
from pykvm.errors import MalformedExitError
from pykvm.kvm.calls import CallLog, Calls, IoctlCall, OtherCall
from pykvm.kvm.constants import ExitReason
from pykvm.kvm.decoding import (
    Direction,
    Structure,
    Value,
    decode_number,
    decode_pointer,
    direction_of,
    flag_names,
    ioctl_name,
    room_of,
)
from pykvm.kvm.exits import Exit, Hypercall, IoIn, MmioRead, Rdmsr, decode

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["LoggedCalls"]

_UNTOUCHED = -2  # a descriptor that no system call returns


class LoggedCalls:
    """Makes system calls by ``calls``, and tells ``log`` of each."""

    def __init__(self, log: CallLog, calls: Calls = lib) -> None:
        self._log = log.call
        self._calls = calls
        self._labels: dict[int, str] = {}  # by descriptor
        self._exits: dict[int, Exit] = {}  # the last of each vCPU, by descriptor
        self._vms = 0

    # ---- descriptors ----

    def pykvm_open(self, path: bytes, /) -> int:
        """Open a device."""
        result = self._calls.pykvm_open(path)
        self._log(OtherCall("open", (path.decode(errors="replace"),), result, self._adopt(result, "kvm")))
        return result

    def pykvm_close(self, fd: int, /) -> int:
        """Close a descriptor."""
        label = self._forget(fd)
        result = self._calls.pykvm_close(fd)
        self._log(OtherCall("close", (label,), result))
        return result

    def pykvm_create_vm(self, kvm_fd: int, type: int, /) -> int:
        """KVM_CREATE_VM."""
        result = self._calls.pykvm_create_vm(kvm_fd, type)
        created = ""
        if result >= 0:
            self._vms += 1
            created = self._adopt(result, "vm" if self._vms == 1 else f"vm {self._vms}")
        self._log(IoctlCall(self._label(kvm_fd), "KVM_CREATE_VM", type, result, created=created))
        return result

    def pykvm_create_vcpu(self, vm_fd: int, id: int, run_size: int, vcpu: CData, /) -> int:
        """KVM_CREATE_VCPU, and map its ``struct kvm_run``."""
        vcpu.fd = _UNTOUCHED
        result = self._calls.pykvm_create_vcpu(vm_fd, id, run_size, vcpu)
        if vcpu.fd == _UNTOUCHED:  # it was not even asked for: the signal that stops a vCPU is taken
            return result
        owner = self._label(vm_fd)
        is_mapped, fd = result >= 0, int(vcpu.fd)
        created = self._adopt(fd, f"vcpu {id}" if owner == "vm" else f"vcpu {id} of {owner}")
        self._log(IoctlCall(owner, "KVM_CREATE_VCPU", id, fd if fd >= 0 else result, created=created))
        if fd >= 0:
            self._log(OtherCall("mmap", (run_size, created, 0), _address(vcpu.run) if is_mapped else result))
        if fd >= 0 and not is_mapped:
            self._log(OtherCall("close", (self._forget(fd),), 0))
        return result

    def pykvm_close_vcpu(self, vcpu: CData, /) -> int:
        """Unmap ``struct kvm_run`` and close the vCPU."""
        fd, start, size = int(vcpu.fd), _address(vcpu.run), int(vcpu.run_size)
        label = self._forget(fd)
        result = self._calls.pykvm_close_vcpu(vcpu)
        self._log(OtherCall("munmap", (start, size), 0))
        self._log(OtherCall("close", (label,), result))
        return result

    def pykvm_map(self, fd: int, offset: int, size: int, mapping: CData, /) -> int:
        """Map what a descriptor shares."""
        result = self._calls.pykvm_map(fd, offset, size, mapping)
        start = _address(mapping[0]) if result == 0 else result
        self._log(OtherCall("mmap", (size, self._label(fd), offset), start))
        return result

    def pykvm_unmap(self, mapping: CData, size: int, /) -> int:
        """Unmap it."""
        start = _address(mapping)
        result = self._calls.pykvm_unmap(mapping, size)
        self._log(OtherCall("munmap", (start, size), result))
        return result

    # ---- ioctls ----

    def pykvm_ioctl(self, fd: int, request: int, argument: int, /) -> int:
        """Issue an ioctl that takes a number."""
        name, label = ioctl_name(request), self._label(fd)
        result = self._calls.pykvm_ioctl(fd, request, argument)
        created = self._adopt(result, f"stats of {label}") if name == "KVM_GET_STATS_FD" else ""
        self._log(IoctlCall(label, name, decode_number(name, argument), result, created=created))
        return result

    def pykvm_ioctl_pointer(self, fd: int, request: int, argument: CData, /) -> int:
        """Issue an ioctl that takes a pointer."""
        name, direction = ioctl_name(request), direction_of(request)
        room = room_of(name, argument)
        before = decode_pointer(name, argument, room) if Direction.READ in direction else None
        result = self._calls.pykvm_ioctl_pointer(fd, request, argument)
        # E2BIG comes with how much room there should have been.
        is_told = Direction.WRITTEN in direction and (result >= 0 or result == -errno.E2BIG)
        after = decode_pointer(name, argument, room) if is_told else None
        self._log(IoctlCall(self._label(fd), name, before, result, after))
        return result

    def pykvm_issue(self, steps: CData, count: int, result: CData, /) -> int:
        """Issue ioctls, one after another and each told of."""
        for done in range(count):
            step = steps[done]
            result[0] = self.pykvm_ioctl_pointer(step.fd, step.request, step.argument)
            if result[0] != step.wanted:
                return done
        return count

    def pykvm_set_user_memory_region(
        self, vm_fd: int, slot: int, flags: int, gpa: int, size: int, memory: CData, /
    ) -> int:
        """KVM_SET_USER_MEMORY_REGION."""
        result = self._calls.pykvm_set_user_memory_region(vm_fd, slot, flags, gpa, size, memory)
        fields: tuple[tuple[str, Value], ...] = (
            ("slot", slot),
            ("flags", flag_names(flags, "KVM_MEM_")),
            ("guest_phys_addr", int(gpa)),
            ("memory_size", size),
            ("userspace_addr", _address(memory)),
        )
        region = Structure("kvm_userspace_memory_region", fields)
        self._log(IoctlCall(self._label(vm_fd), "KVM_SET_USER_MEMORY_REGION", region, result))
        return result

    # ---- running ----

    def pykvm_run(self, vcpu: CData, /) -> int:
        """KVM_RUN."""
        return self._run(vcpu, self._carried_in(vcpu), self._calls.pykvm_run(vcpu))

    def pykvm_complete(self, vcpu: CData, /) -> int:
        """KVM_RUN with ``immediate_exit``."""
        before = (*self._carried_in(vcpu), ("immediate_exit", 1))
        return self._run(vcpu, before, self._calls.pykvm_complete(vcpu))

    def _run(self, vcpu: CData, before: tuple[tuple[str, Value], ...], result: int) -> int:
        fd = int(vcpu.fd)
        self._exits.pop(fd, None)
        exit = None
        if result >= 0 or vcpu.run.exit_reason == ExitReason.MEMORY_FAULT:
            # SAFETY: a look, which is over before close() can unmap what the vCPU shares.
            with contextlib.suppress(MalformedExitError), memoryview(ffi.buffer(vcpu.run, vcpu.run_size)) as page:
                exit = self._exits[fd] = decode(vcpu.run, page)
        carried_in = Structure("kvm_run", before) if before else None
        self._log(IoctlCall(self._label(fd), "KVM_RUN", carried_in, result, exit=exit))
        return result

    def _carried_in(self, vcpu: CData) -> tuple[tuple[str, Value], ...]:
        """Return what ``struct kvm_run`` tells the kernel now: the answer to the last exit, and what is asked for."""
        run = vcpu.run
        fields: list[tuple[str, Value]] = []
        match self._exits.get(int(vcpu.fd)):
            case IoIn(size=size, count=count):
                start = ffi.cast("uint8_t *", run) + run.io.data_offset
                fields.append(("io data", bytes(ffi.buffer(start, size * count))))
            case MmioRead(size=size):
                fields.append(("mmio.data", bytes(run.mmio.data[0:size])))
            case Rdmsr():
                fields.append(("msr.error", 1) if run.msr.error else ("msr.data", int(run.msr.data)))
            case Hypercall():
                fields.append(("hypercall.ret", int(run.hypercall.ret)))
        if run.request_interrupt_window:
            fields.append(("request_interrupt_window", 1))
        return tuple(fields)

    # ---- what descriptors are called ----

    def _adopt(self, fd: int, label: str) -> str:
        if fd < 0:
            return ""
        self._labels[fd] = label
        return label

    def _label(self, fd: int) -> str:
        return self._labels.get(fd, f"fd {fd}")

    def _forget(self, fd: int) -> str:
        self._exits.pop(fd, None)
        return self._labels.pop(fd, f"fd {fd}")


def _address(pointer: CData) -> int:
    return int(ffi.cast("uintptr_t", pointer))
