"""The vCPUs of a machine: how many, what CPUID tells them, how they start, and what each is doing.

With a local APIC, vCPU 0 is the bootstrap processor and runs at once; the others wait inside KVM_RUN until it sends
them INIT and SIPI, as on any PC (SDM volume 3, section 9.4). See: Documentation/virt/kvm/api.rst, KVM_CREATE_VCPU,
KVM_SET_CPUID2, KVM_GET_MP_STATE. Leaves out adding and removing processors at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm import Cap, Kvm, MpState, MpStateValue, Vcpu, VcpuEvents, Vm
from pykvm.machine.interrupts import IrqchipKind
from pykvm.memory import platform
from pykvm.units import Gpa
from pykvm.x86 import Cpuid, CpuState, check, real_mode

__all__ = ["Processors"]

APIC_BUS_KHZ = 1_000_000  # KVM's local APIC timer counts nanoseconds

# What a vCPU does that is not running, by KVM_GET_MP_STATE.
ACTIVITIES = {
    MpStateValue.HALTED: "halted",
    MpStateValue.UNINITIALIZED: "waits for INIT",
    MpStateValue.INIT_RECEIVED: "waits for SIPI",
    MpStateValue.SIPI_RECEIVED: "has got SIPI",
}
WAITS_FOR_ANOTHER = (MpStateValue.UNINITIALIZED, MpStateValue.INIT_RECEIVED)


class Processors:
    """The vCPUs ``vcpus`` of one machine, by APIC id."""

    def __init__(
        self,
        kvm: Kvm,
        vm: Vm,
        count: int,
        irqchip: IrqchipKind,
        resources: ExitStack,
        choose_cpuid: Callable[[Cpuid], Cpuid] | None = None,
    ) -> None:
        _check_count(kvm, count, irqchip)
        self._has_local_apic = irqchip.has_local_apic
        self.vcpus: tuple[Vcpu, ...] = tuple(resources.enter_context(vm.create_vcpu(id)) for id in range(count))
        self.cpuid = self._make_cpuid(kvm, count, choose_cpuid)
        for vcpu in self.vcpus:
            entries = self.cpuid if count == 1 else self.cpuid.with_apic_id(vcpu.id, count)
            vcpu.set_cpuid2(entries.entries)
        self.reset_sregs = self.vcpus[0].get_sregs()
        self._reset_lapics = [vcpu.get_lapic() for vcpu in self.vcpus] if self._has_local_apic else []

    # ---- state ----

    def set_state(self, state: CpuState) -> None:
        """Set vCPU 0's registers, and have it run. Raises: ConfigurationError that says why KVM refuses them."""
        vcpu = self.vcpus[0]
        try:
            vcpu.set_sregs(state.sregs)
            vcpu.set_regs(state.regs)
        except KvmError as error:
            problems = check(state.regs, state.sregs)
            raise ConfigurationError("\n".join([str(error), *(f"  {problem}" for problem in problems)])) from error
        # Nothing is left of what it was at: an interrupt on its way, an NMI not returned from, a HLT.
        vcpu.set_vcpu_events(VcpuEvents(flags=vcpu.get_vcpu_events().flags))
        if self._has_local_apic:
            vcpu.set_mp_state(MpState(MpStateValue.RUNNABLE))

    def park_others(self) -> None:
        """Have every vCPU but the first wait for INIT and SIPI again."""
        if self._has_local_apic:
            for vcpu in self.vcpus[1:]:
                vcpu.set_mp_state(MpState(MpStateValue.UNINITIALIZED))

    def wake_at(self, vector: Gpa) -> None:
        """Reset all vCPUs and start the first in real mode at ``vector``: waking from S3 (ACPI, section 16.3)."""
        for vcpu, lapic in zip(self.vcpus, self._reset_lapics, strict=False):
            vcpu.set_lapic(lapic)
        self.park_others()
        self.set_state(real_mode(self.reset_sregs, vector >> 4, vector & 0xF))

    def activity(self, vcpu: Vcpu) -> str:
        """Return what ``vcpu``, which is not in KVM_RUN, is about, in a few words."""
        if not self._has_local_apic:
            return "running"
        state = vcpu.get_mp_state().mp_state
        return ACTIVITIES.get(MpStateValue(state), "running")

    def is_asleep(self, vcpu: Vcpu) -> bool:
        """Return whether ``vcpu`` does nothing before another vCPU, or an NMI, wakes it."""
        state = vcpu.get_mp_state().mp_state
        if state in WAITS_FOR_ANOTHER:
            return True
        return state == MpStateValue.HALTED and not vcpu.if_flag and not vcpu.get_vcpu_events().nmi.pending

    # ---- inside ----

    def _make_cpuid(self, kvm: Kvm, count: int, choose: Callable[[Cpuid], Cpuid] | None) -> Cpuid:
        # KVM offers the APIC id and the topology of that CPU of the host's which was asked.
        cpuid = Cpuid(kvm.get_supported_cpuid()).with_apic_id(0, count)
        if kvm.check_extension(Cap.GET_TSC_KHZ):
            cpuid = cpuid.with_tsc_frequency(self.vcpus[0].get_tsc_khz(), APIC_BUS_KHZ)
        return cpuid if choose is None else choose(cpuid)


def _check_count(kvm: Kvm, count: int, irqchip: IrqchipKind) -> None:
    most = kvm.check_extension(Cap.MAX_VCPUS) or kvm.check_extension(Cap.NR_VCPUS) or 4
    most = min(most, platform.MAX_CPUS)
    if not 1 <= count <= most:
        raise ConfigurationError(f"a machine has 1 to {most} CPUs on this host, not {count}")
    if count > 1 and not irqchip.has_local_apic:
        raise ConfigurationError(
            f"{count} CPUs need local APICs, by which one starts the others: choose irqchip kernel or split, "
            f"not {irqchip.value} (--irqchip on the command line)"
        )
