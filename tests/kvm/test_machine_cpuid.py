"""Machine(cpuid=...): what a guest's CPUID says, masked, signed and overridden by a callable."""

from __future__ import annotations

import pytest

from pykvm import Machine, assemble
from pykvm.errors import ConfigurationError
from pykvm.machine import Halted
from pykvm.testing import Guests
from pykvm.x86 import Cpuid

HYPERVISOR = 0x4000_0000
XSAVE = 1 << 26  # leaf 1, ECX


def seen(machine: Machine, function: int) -> tuple[int, ...]:
    """Return EAX to EDX as CPUID leaves them in the guest."""
    machine.load(assemble(f"mov ${function:#x}, %eax\nxor %ecx, %ecx\ncpuid\nhlt", mode="long"), mode="long")
    result = machine.run(timeout=20)
    assert result.stop == Halted()
    regs = result.registers
    return (regs.rax, regs.rbx, regs.rcx, regs.rdx)


def test_a_guest_finds_pykvms_signature_if_it_is_asked_for(guest: Guests) -> None:
    machine = guest.machine("2M", cpuid=lambda cpuid: cpuid.with_signature())
    registers = seen(machine, HYPERVISOR)
    if b"".join(value.to_bytes(4, "little") for value in registers[1:]) != b"pykvmpykvm\0\0":
        pytest.skip("this host's KVM does not obey KVM_SET_CPUID2 at leaf 0x40000000")
    assert registers[0] >= HYPERVISOR


def test_without_asking_the_signature_is_kvms(guest: Guests) -> None:
    machine = guest.machine("2M")
    assert b"".join(value.to_bytes(4, "little") for value in seen(machine, HYPERVISOR)[1:]) == b"KVMKVMKVM\0\0\0"
    assert machine.cpuid.hypervisor == "KVMKVMKVM"


def test_a_masked_feature_is_gone_from_what_the_machine_tells(guest: Guests) -> None:
    machine = guest.machine("2M", cpuid=lambda cpuid: cpuid.without("xsave", "kvm_steal_time"))
    assert not machine.cpuid.has("xsave")
    assert not machine.cpuid.has("kvm_steal_time")
    if Cpuid(machine.vcpu.get_cpuid2()).has("xsave"):
        pytest.skip("this host's KVM does not obey KVM_SET_CPUID2: xsave stays")
    assert not seen(machine, 1)[2] & XSAVE


def test_an_overridden_leaf_is_what_the_guest_reads(guest: Guests) -> None:
    machine = guest.machine("2M", cpuid=lambda cpuid: cpuid.override(0x4000_0000, ebx=0x1234))
    registers = seen(machine, HYPERVISOR)
    if registers[1] != 0x1234:
        pytest.skip("this host's KVM does not obey KVM_SET_CPUID2 at leaf 0x40000000")
    assert registers[2] == machine.cpuid.leaf(HYPERVISOR).ecx


def test_every_cpu_is_told_the_same_but_for_its_apic_id(guest: Guests) -> None:
    machine = guest.machine("2M", cpus=2, irqchip="kernel", cpuid=lambda cpuid: cpuid.with_signature())
    first, second = (Cpuid(vcpu.get_cpuid2()) for vcpu in machine.vcpus)
    assert first.hypervisor == second.hypervisor == "pykvmpykvm"
    assert (first.leaf(1).ebx >> 24, second.leaf(1).ebx >> 24) == (0, 1)


def test_a_callable_that_raises_leaves_no_machine_behind() -> None:
    def refuse(cpuid: Cpuid) -> Cpuid:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Machine("2M", cpuid=refuse)


def test_a_feature_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="xsaev"):
        Machine("2M", cpuid=lambda cpuid: cpuid.without("xsaev"))
