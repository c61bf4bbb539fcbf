"""Where a vCPU is comes with the exit, and is what KVM_GET_REGS and KVM_GET_SREGS say."""

from __future__ import annotations

import pytest

from pykvm import Machine, assemble
from pykvm.errors import ClosedError
from pykvm.kvm import IoOut, MmioRead, Whereabouts

GUEST = """
        .globl  _start
_start: out     %al, $0x80
        mov     $0xd0000008, %ebx
        mov     (%rbx), %al
        out     %al, $0x80
"""

pytestmark = pytest.mark.kvm


def by_ioctls(machine: Machine) -> Whereabouts:
    vcpu = machine.vcpu
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    code = (sregs.cs.base, sregs.cs.l, sregs.cs.db, sregs.ss.dpl)
    return Whereabouts(regs.rip, *code, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)


@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_whereabouts_are_what_the_ioctls_say(mode: str, synced: bool) -> None:
    source = GUEST if mode == "long" else GUEST.replace("%rbx", "%ebx")
    with Machine() as machine:
        machine.load(assemble(source, mode=mode))
        machine.vcpu.sync_registers(synced)
        exit = machine.vcpu.run()
        assert isinstance(exit, IoOut)
        assert machine.vcpu.whereabouts() == by_ioctls(machine)


def test_the_exit_of_a_read_brings_them_too() -> None:
    with Machine() as machine:
        machine.load(assemble(GUEST, mode="long"))
        machine.vcpu.sync_registers(True)
        machine.vcpu.run()
        exit = machine.vcpu.run()
        assert isinstance(exit, MmioRead)
        assert machine.vcpu.whereabouts() == by_ioctls(machine)
        machine.vcpu.complete(exit, b"\0")
        machine.vcpu.run()
        assert machine.vcpu.whereabouts() == by_ioctls(machine)


def test_syncing_can_end_and_begin_again() -> None:
    with Machine() as machine:
        machine.load(assemble("1: out %al, $0x80; jmp 1b", mode="real"))
        for synced in (True, True, False, True):
            machine.vcpu.sync_registers(synced)
            machine.vcpu.run()
            assert machine.vcpu.whereabouts() == by_ioctls(machine)


def test_a_closed_vcpu_says_so() -> None:
    with Machine() as machine:
        machine.vcpu.sync_registers(True)
        vcpu = machine.vcpu
    with pytest.raises(ClosedError):
        vcpu.whereabouts()
    with pytest.raises(ClosedError):
        vcpu.sync_registers(False)
