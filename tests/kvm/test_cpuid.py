"""What KVM is told by KVM_SET_CPUID2 is what a guest's CPUID answers, where the host's KVM obeys it."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING

import pytest

from pykvm.cli.main import main
from pykvm.kvm import Cap, Kvm
from pykvm.x86.cpuid import SIGNIFICANT_INDEX, Cpuid

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

CPUID_HLT = bytes.fromhex("0f a2 f4")
FREQUENCIES = 0x4000_0010
HYPERVISOR = 0x4000_0000


@pytest.fixture
def supported(kvm: Kvm) -> Cpuid:
    return Cpuid(kvm.get_supported_cpuid())


def seen(guest: RealModeGuest, function: int, index: int = 0) -> tuple[int, ...]:
    """Return EAX to EDX as the guest's CPUID leaves them."""
    guest.load(CPUID_HLT, rax=function, rcx=index)
    assert guest.run() == []
    regs = guest.regs
    return tuple(register & 0xFFFF_FFFF for register in (regs.rax, regs.rbx, regs.rcx, regs.rdx))


def told(cpuid: Cpuid, function: int, index: int = 0) -> tuple[int, ...]:
    return astuple(cpuid.leaf(function, index))[3:]


def accepted(guest: RealModeGuest, cpuid: Cpuid) -> Cpuid:
    """Give ``cpuid`` to the vCPU; return what KVM says it has got."""
    guest.vcpu.set_cpuid2(cpuid.entries)
    return Cpuid(guest.vcpu.get_cpuid2())


def require(cpuid: Cpuid, kept: Cpuid, *functions: int) -> None:
    """Skip unless KVM kept these leaves as it was told."""
    for change in cpuid.difference(kept):
        if change.function in functions:
            pytest.skip(f"this host's KVM does not obey KVM_SET_CPUID2: {change}")


def test_what_kvm_supports_is_a_cpuid_with_the_flags_kvm_uses(supported: Cpuid) -> None:
    assert supported.vendor
    assert supported.family
    assert supported.hypervisor == "KVMKVMKVM"
    assert supported.leaf(0xD).flags == SIGNIFICANT_INDEX
    assert supported.leaf(0x1).flags == 0
    assert len(supported.rows()) == len(supported.entries)


def test_kvm_takes_everything_a_machine_changes_at_once(bare_guest: RealModeGuest, supported: Cpuid) -> None:
    cpuid = supported.with_tsc_frequency(2_500_000, 1_000_000).with_apic_id(3, 6).with_signature()
    kept = accepted(bare_guest, cpuid.without("rdrand", "kvm_steal_time"))
    assert {entry.function for entry in kept.entries} == {entry.function for entry in cpuid.entries}


def test_a_guest_finds_pykvms_signature_first_and_kvm_behind_it(bare_guest: RealModeGuest, supported: Cpuid) -> None:
    cpuid = supported.with_signature()
    require(cpuid, accepted(bare_guest, cpuid), HYPERVISOR, HYPERVISOR + 0x100, HYPERVISOR + 0x101)
    letters = b"".join(register.to_bytes(4, "little") for register in seen(bare_guest, HYPERVISOR)[1:])
    assert letters == b"pykvmpykvm\0\0"
    limit, *signature = seen(bare_guest, HYPERVISOR + 0x100)
    assert limit == HYPERVISOR + 0x101
    assert tuple(signature) == told(supported, HYPERVISOR)[1:]
    assert seen(bare_guest, HYPERVISOR + 0x101) == told(supported, HYPERVISOR + 1)
    assert seen(bare_guest, HYPERVISOR + 1) == (0, 0, 0, 0)


def test_a_guest_can_work_the_tscs_frequency_out(bare_guest: RealModeGuest, supported: Cpuid) -> None:
    if not bare_guest.vm.check_extension(Cap.GET_TSC_KHZ):
        pytest.skip("this host's KVM does not tell the TSC's frequency")
    khz = bare_guest.vcpu.get_tsc_khz()
    cpuid = supported.with_tsc_frequency(khz, 1_000_000)
    require(cpuid, accepted(bare_guest, cpuid), 0x0, 0x15, HYPERVISOR, FREQUENCIES)
    assert seen(bare_guest, 0x0)[0] >= 0x15
    denominator, numerator, hertz, _ = seen(bare_guest, 0x15)
    assert abs(hertz * numerator // denominator - khz * 1000) <= khz  # 0.1 %
    assert seen(bare_guest, HYPERVISOR)[0] >= FREQUENCIES
    assert seen(bare_guest, FREQUENCIES) == (khz, 1_000_000, 0, 0)
    assert seen(bare_guest, 0x14) == told(supported, 0x14)


@pytest.mark.parametrize("id", [0, 3])
def test_a_guest_finds_its_apic_id_in_every_leaf(id: int, bare_guest: RealModeGuest, supported: Cpuid) -> None:
    cpuid = supported.with_apic_id(id, 4)
    if supported.leaf(0).eax < 0xB:
        pytest.skip("this host's CPUID ends before leaf 0xb")
    require(cpuid, accepted(bare_guest, cpuid), 0xB)
    assert seen(bare_guest, 0x1)[1] >> 16 == id << 8 | 4
    assert seen(bare_guest, 0xB, 0) == (0, 1, 0x100, id)
    assert seen(bare_guest, 0xB, 1) == (2, 4, 0x201, id)
    assert seen(bare_guest, 0xB, 2) == (0, 0, 2, id)


@pytest.mark.parametrize("name", ["x2apic", "rdrand", "lm", "kvm_steal_time"])
def test_a_guest_does_not_see_a_feature_that_was_masked(name: str, bare_guest: RealModeGuest, supported: Cpuid) -> None:
    cpuid = supported.without(name)
    kept = accepted(bare_guest, cpuid)
    if kept.has(name):
        pytest.skip(f"this host's KVM does not obey KVM_SET_CPUID2: {name} stays")
    change = next(iter(supported.with_(name).difference(cpuid)))
    place = (change.function, change.index)
    assert seen(bare_guest, *place) == told(kept, *place)


def test_a_guest_sees_a_leaf_that_was_overridden(bare_guest: RealModeGuest, supported: Cpuid) -> None:
    cpuid = supported.override(0x8000_0002, eax=0x4B59_4B50, ebx=0x4D56)
    require(cpuid, accepted(bare_guest, cpuid), 0x8000_0002)
    assert seen(bare_guest, 0x8000_0002) == (0x4B59_4B50, 0x4D56, 0, 0)
    assert cpuid.brand == "PKYKVM"


def test_the_command_shows_every_entry_that_kvm_gives(supported: Cpuid, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cpuid", "--raw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(supported.entries)
    limit = supported.leaf(0x8000_0000).eax
    assert any(line.startswith(f"0x80000000 0x00: eax=0x{limit:08x}") for line in lines)
    assert main(["cpuid"]) == 0
    assert f"{supported.vendor}, leaves up to {supported.leaf(0).eax:#x}" in capsys.readouterr().out
