"""``VcpuState``: the ioctls that read and write a virtual processor's state, as ``Vcpu`` has them.

Every one of them wants the vCPU out of KVM_RUN. See: Documentation/virt/kvm/api.rst, section 4, the ioctls of type
"vcpu ioctl". Leaves out: running, which ``pykvm.kvm.vcpu`` does, and state of confidential and nested guests.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from pykvm._shim import ffi
from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm.constants import GuestDebugControl
from pykvm.kvm.descriptor import Descriptor, fill_state, kernel_values
from pykvm.kvm.structs import (
    CpuidEntry,
    DebugRegs,
    Fpu,
    MpState,
    MsrEntry,
    Regs,
    Sregs,
    Translation,
    VcpuEvents,
    Xcr,
    from_c,
    to_c,
)
from pykvm.units import Gva

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["VcpuState"]

T = TypeVar("T")

_LAPIC_ERRORS = {errno.EINVAL: "the kernel has no local APIC for this vCPU: call create_irqchip() before create_vcpu()"}
_INTERRUPT_ERRORS = {
    errno.ENXIO: "the interrupt controllers are in the kernel: use Vm.irq_line()",
    errno.EEXIST: "an interrupt is queued already: wait until the guest takes it",
}
_TSC_ERRORS = {errno.EINVAL: "this host cannot scale its TSC to that speed"}


class VcpuState(Descriptor):
    """What a virtual processor remembers: registers, MSRs, CPUID, events, its local APIC."""

    def get_regs(self) -> Regs:
        """Return KVM_GET_REGS. Stale after an IN or MMIO read until ``complete_pending()``."""
        return self._get("KVM_GET_REGS", "struct kvm_regs *", Regs)

    def set_regs(self, regs: Regs) -> None:
        """KVM_SET_REGS."""
        self._set("KVM_SET_REGS", "struct kvm_regs *", regs)

    def get_sregs(self) -> Sregs:
        """Return KVM_GET_SREGS."""
        return self._get("KVM_GET_SREGS", "struct kvm_sregs *", Sregs)

    def set_sregs(self, sregs: Sregs) -> None:
        """KVM_SET_SREGS. On EINVAL ``pykvm.x86.check`` says in words what is wrong with ``sregs``."""
        self._set("KVM_SET_SREGS", "struct kvm_sregs *", sregs)

    def get_fpu(self) -> Fpu:
        """Return KVM_GET_FPU: x87 and SSE registers. The kernel leaves ``mxcsr`` out: ``get_xsave()`` has it."""
        return self._get("KVM_GET_FPU", "struct kvm_fpu *", Fpu)

    def set_fpu(self, fpu: Fpu) -> None:
        """KVM_SET_FPU."""
        self._set("KVM_SET_FPU", "struct kvm_fpu *", fpu)

    def get_xsave(self) -> bytes:
        """Return KVM_GET_XSAVE: the 4096-byte XSAVE area (SDM volume 1, section 13.4)."""
        xsave = ffi.new("struct kvm_xsave *")
        self._ioctl_struct("KVM_GET_XSAVE", xsave)
        return bytes(ffi.buffer(xsave))

    def set_xsave(self, area: bytes) -> None:
        """KVM_SET_XSAVE. Raises: ConfigurationError if ``area`` is not as long as ``get_xsave()`` returns."""
        xsave = ffi.new("struct kvm_xsave *")
        fill_state(xsave, area, "an XSAVE area")
        self._ioctl_struct("KVM_SET_XSAVE", xsave)

    def get_xcrs(self) -> list[Xcr]:
        """Return KVM_GET_XCRS: on today's processors XCR0 alone."""
        xcrs = ffi.new("struct kvm_xcrs *")
        self._ioctl_struct("KVM_GET_XCRS", xcrs)
        return [from_c(Xcr, xcrs.xcrs[n]) for n in range(xcrs.nr_xcrs)]

    def set_xcrs(self, xcrs: Sequence[Xcr]) -> None:
        """KVM_SET_XCRS. Raises: ConfigurationError if there are more than the kernel's structure holds."""
        c = ffi.new("struct kvm_xcrs *")
        if len(xcrs) > len(c.xcrs):
            raise ConfigurationError(f"KVM_SET_XCRS takes at most {len(c.xcrs)} registers, not {len(xcrs)}")
        c.nr_xcrs = len(xcrs)
        for position, xcr in enumerate(xcrs):
            with kernel_values("KVM_SET_XCRS"):
                to_c(xcr, c.xcrs[position])
        self._ioctl_struct("KVM_SET_XCRS", c, f"xcrs={list(xcrs)}")

    def get_msrs(self, indices: Sequence[int]) -> list[MsrEntry]:
        """Return KVM_GET_MSRS: the values of the MSRs ``indices``, in that order.

        Raises: KvmError (EINVAL) that names the first MSR the host does not let be read.
        """
        msrs = _make_msrs("KVM_GET_MSRS", [MsrEntry(index) for index in indices])
        done = self._ioctl_struct("KVM_GET_MSRS", msrs, f"nmsrs={len(indices)}")
        _check_all_msrs("KVM_GET_MSRS", done, indices)
        return [from_c(MsrEntry, msrs.entries[n]) for n in range(done)]

    def set_msrs(self, entries: Sequence[MsrEntry]) -> None:
        """KVM_SET_MSRS. Raises: KvmError (EINVAL) that names the first MSR refused; those before it are set."""
        msrs = _make_msrs("KVM_SET_MSRS", entries)
        done = self._ioctl_struct("KVM_SET_MSRS", msrs, f"nmsrs={len(entries)}")
        _check_all_msrs("KVM_SET_MSRS", done, [entry.index for entry in entries])

    def get_cpuid2(self) -> list[CpuidEntry]:
        """Return KVM_GET_CPUID2: what CPUID tells this vCPU."""
        room = 256  # the kernel's own limit for KVM_SET_CPUID2, KVM_MAX_CPUID_ENTRIES
        cpuid = ffi.new("struct kvm_cpuid2 *", {"nent": room, "entries": room})
        self._ioctl_struct("KVM_GET_CPUID2", cpuid, f"nent={room}")
        return [from_c(CpuidEntry, cpuid.entries[n]) for n in range(cpuid.nent)]

    def set_cpuid2(self, entries: Sequence[CpuidEntry]) -> None:
        """KVM_SET_CPUID2, before the first ``run()``."""
        cpuid = ffi.new("struct kvm_cpuid2 *", {"nent": len(entries), "entries": len(entries)})
        for position, entry in enumerate(entries):
            with kernel_values("KVM_SET_CPUID2"):
                to_c(entry, cpuid.entries[position])
        self._ioctl_struct("KVM_SET_CPUID2", cpuid, f"nent={len(entries)}")

    def get_vcpu_events(self) -> VcpuEvents:
        """Return KVM_GET_VCPU_EVENTS: exceptions, interrupts and NMIs injected, pending or masked."""
        return self._get("KVM_GET_VCPU_EVENTS", "struct kvm_vcpu_events *", VcpuEvents)

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self._set("KVM_SET_VCPU_EVENTS", "struct kvm_vcpu_events *", events)

    def get_debugregs(self) -> DebugRegs:
        """Return KVM_GET_DEBUGREGS."""
        return self._get("KVM_GET_DEBUGREGS", "struct kvm_debugregs *", DebugRegs)

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        """KVM_SET_DEBUGREGS."""
        self._set("KVM_SET_DEBUGREGS", "struct kvm_debugregs *", debugregs)

    def get_mp_state(self) -> MpState:
        """Return KVM_GET_MP_STATE."""
        return self._get("KVM_GET_MP_STATE", "struct kvm_mp_state *", MpState)

    def set_mp_state(self, state: MpState) -> None:
        """KVM_SET_MP_STATE. Without an in-kernel irqchip only KVM_MP_STATE_RUNNABLE is taken."""
        self._set("KVM_SET_MP_STATE", "struct kvm_mp_state *", state)

    def translate(self, linear_address: Gva) -> Translation:
        """Return KVM_TRANSLATE: KVM's own page walk of ``linear_address``."""
        with kernel_values("KVM_TRANSLATE"):
            translation = ffi.new("struct kvm_translation *", {"linear_address": linear_address})
        self._ioctl_struct("KVM_TRANSLATE", translation, f"linear_address={linear_address:#x}")
        return from_c(Translation, translation)

    def interrupt(self, vector: int) -> None:
        """Queue the external interrupt ``vector`` (0 to 255): KVM_INTERRUPT.

        Raises: ConfigurationError for another vector; KvmError (ENXIO: the controllers are in the kernel; EEXIST, with
        the split irqchip: one is queued already).
        """
        if not 0 <= vector <= 255:
            raise ConfigurationError(f"an interrupt vector is 0 to 255, not {vector}")
        irq = ffi.new("struct kvm_interrupt *", {"irq": vector})
        self._ioctl_struct("KVM_INTERRUPT", irq, f"irq={vector}", _INTERRUPT_ERRORS)

    def nmi(self) -> None:
        """Queue a non-maskable interrupt: KVM_NMI."""
        self._ioctl("KVM_NMI")

    def set_guest_debug(self, control: GuestDebugControl, debugreg: Sequence[int] = (0,) * 8) -> None:
        """Step and stop the guest from outside: KVM_SET_GUEST_DEBUG; its events are ``Debug`` exits.

        ``debugreg`` is DR0 to DR7 as USE_HW_BP takes them (SDM volume 3, section 17.2.4). GuestDebugControl(0) ends it.

        Raises: ConfigurationError if ``debugreg`` is not eight values.
        """
        if len(debugreg) != 8:
            raise ConfigurationError(f"KVM_SET_GUEST_DEBUG takes eight debug registers, not {len(debugreg)}")
        arch = {"debugreg": list(debugreg)}
        with kernel_values("KVM_SET_GUEST_DEBUG"):
            debug = ffi.new("struct kvm_guest_debug *", {"control": control.value, "arch": arch})
        self._ioctl_struct("KVM_SET_GUEST_DEBUG", debug, f"control={control}")

    def get_lapic(self) -> bytes:
        """Return KVM_GET_LAPIC: the local APIC's registers, 1024 bytes as SDM volume 3, table 11-1, lays them out.

        Raises: KvmError (EINVAL) without a local APIC in the kernel.
        """
        state = ffi.new("struct kvm_lapic_state *")
        self._ioctl_struct("KVM_GET_LAPIC", state, "", _LAPIC_ERRORS)
        return bytes(ffi.buffer(state))

    def set_lapic(self, state: bytes) -> None:
        """KVM_SET_LAPIC. Raises: ConfigurationError if ``state`` is not as long as ``get_lapic()`` returns."""
        c = ffi.new("struct kvm_lapic_state *")
        fill_state(c, state, "a local APIC's state")
        self._ioctl_struct("KVM_SET_LAPIC", c, "", _LAPIC_ERRORS)

    def get_tsc_khz(self) -> int:
        """Return KVM_GET_TSC_KHZ: how fast the guest's time stamp counter runs, in kHz."""
        return self._ioctl("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ. A speed other than the host's needs hardware that scales the TSC, or costs accuracy."""
        self._ioctl("KVM_SET_TSC_KHZ", khz, f"khz={khz}", _TSC_ERRORS)

    # ---- inside ----

    def _get(self, name: str, declaration: str, kind: type[T]) -> T:
        c = ffi.new(declaration)
        self._ioctl_struct(name, c)
        return from_c(kind, c)

    def _set(self, name: str, declaration: str, value: object) -> None:
        c = ffi.new(declaration)
        with kernel_values(name):
            to_c(value, c)
        self._ioctl_struct(name, c)


def _make_msrs(ioctl: str, entries: Sequence[MsrEntry]) -> CData:
    msrs = ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": len(entries)})
    for position, entry in enumerate(entries):
        with kernel_values(ioctl):
            to_c(entry, msrs.entries[position])
    return msrs


def _check_all_msrs(ioctl: str, done: int, indices: Sequence[int]) -> None:
    # The kernel stops at the first MSR it refuses and returns how many went well (api.rst, KVM_GET_MSRS).
    if done < len(indices):
        raise KvmError(ioctl, errno.EINVAL, f"nmsrs={len(indices)}", f"MSR {indices[done]:#x} was refused")
