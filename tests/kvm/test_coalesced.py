"""Coalesced zones: writes that are queued instead of exiting, and come out in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ClosedError, ConfigurationError, KvmError
from pykvm.kvm import Cap, Hlt, IoOut, MmioWrite, Vm
from pykvm.units import Gpa

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

HOLE = Gpa(0x20000)  # where FS points: see conftest.py
HLT = b"\xf4"
STORE = bytes.fromhex("64 88 04")  # mov %al, %fs:(%si)
STORE_4 = bytes.fromhex("66 64 89 04")  # mov %eax, %fs:(%si)
# again: out %al, $0x80; inc %ax; loop again; hlt
COUNT = bytes.fromhex("e6 80 40 e2 fb f4")


def out(port: int, value: int) -> bytes:
    return bytes([0xB0, value, 0xE6, port])  # mov $value, %al; out %al, $port


def test_port_writes_are_queued_and_come_out_in_order(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.load(COUNT, rcx=20)
    assert bare_guest.run() == []
    assert bare_guest.vm.drain_coalesced() == [IoOut(0x80, 1, 1, bytes([value])) for value in range(20)]
    assert bare_guest.vm.drain_coalesced() == []


def test_memory_writes_are_queued_with_their_address_and_size(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(HOLE, 0x100)
    bare_guest.load(STORE, STORE_4, HLT, rsi=0x10, rax=0x11223344)
    assert bare_guest.run() == []
    assert bare_guest.vm.drain_coalesced() == [
        MmioWrite(Gpa(HOLE + 0x10), b"\x44"),
        MmioWrite(Gpa(HOLE + 0x10), b"\x44\x33\x22\x11"),
    ]


def test_a_wide_port_write_keeps_its_size(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 4, pio=True)
    bare_guest.load(bytes.fromhex("e7 80 66 e7 80"), HLT, rax=0x44332211)  # out %ax, $0x80; out %eax, $0x80
    assert bare_guest.run() == []
    assert bare_guest.vm.drain_coalesced() == [IoOut(0x80, 2, 1, b"\x11\x22"), IoOut(0x80, 4, 1, b"\x11\x22\x33\x44")]


def test_what_is_queued_came_before_the_next_exit(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.vm.register_coalesced_mmio(HOLE, 0x100)
    bare_guest.load(out(0x80, 1), STORE, out(0x81, 2), out(0x80, 3), HLT, rsi=4)
    exit = bare_guest.vcpu.run()
    assert [*bare_guest.vm.drain_coalesced(), exit] == [
        IoOut(0x80, 1, 1, b"\x01"),
        MmioWrite(Gpa(HOLE + 4), b"\x01"),
        IoOut(0x81, 1, 1, b"\x02"),
    ]
    assert bare_guest.vcpu.run() == Hlt()
    assert bare_guest.vm.drain_coalesced() == [IoOut(0x80, 1, 1, b"\x03")]


def test_a_full_queue_is_an_exit_and_nothing_is_lost(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.load(COUNT, rcx=1000)
    seen: list[object] = []
    exits = 0
    while (exit := bare_guest.vcpu.run()) != Hlt():
        seen += bare_guest.vm.drain_coalesced()
        seen.append(exit)
        exits += 1
    seen += bare_guest.vm.drain_coalesced()
    assert seen == [IoOut(0x80, 1, 1, bytes([value & 0xFF])) for value in range(1000)]
    assert 0 < exits < 100


def test_reads_of_a_zone_are_exits_all_the_same(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.load(out(0x80, 5), bytes.fromhex("e4 80"), HLT)  # in $0x80, %al
    assert len(bare_guest.run(lambda exit: b"\x42")) == 1
    assert bare_guest.regs.rax & 0xFF == 0x42
    assert bare_guest.vm.drain_coalesced() == [IoOut(0x80, 1, 1, b"\x05")]


def test_an_unregistered_zone_exits_again_and_keeps_what_is_queued(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.load(out(0x80, 5), HLT)
    assert bare_guest.run() == []
    bare_guest.vm.unregister_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.load(out(0x80, 6), HLT)
    assert bare_guest.run() == [IoOut(0x80, 1, 1, b"\x06")]
    assert bare_guest.vm.drain_coalesced() == [IoOut(0x80, 1, 1, b"\x05")]


def test_the_queue_outlives_the_vcpu_that_filled_it(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.load(out(0x80, 5), HLT)
    assert bare_guest.run() == []
    bare_guest.vcpu.close()
    assert bare_guest.vm.drain_coalesced() == [IoOut(0x80, 1, 1, b"\x05")]


def test_a_zone_may_be_registered_before_the_first_vcpu(vm: Vm) -> None:
    vm.register_coalesced_mmio(0x80, 1, pio=True)
    assert vm.drain_coalesced() == []
    with vm.create_vcpu():
        assert vm.drain_coalesced() == []


def test_a_vm_without_zones_has_nothing_to_drain(bare_guest: RealModeGuest) -> None:
    bare_guest.load(out(0x80, 5), HLT)
    assert bare_guest.run() == [IoOut(0x80, 1, 1, b"\x05")]
    assert bare_guest.vm.drain_coalesced() == []


def test_a_closed_vm_has_no_queue(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.register_coalesced_mmio(0x80, 1, pio=True)
    bare_guest.vm.close()
    with pytest.raises(ClosedError):
        bare_guest.vm.drain_coalesced()


@pytest.mark.parametrize(("address", "size"), [(-1, 1), (1 << 64, 1), (0, -1), (0, 1 << 32)])
def test_a_zone_that_does_not_fit_is_refused(bare_guest: RealModeGuest, address: int, size: int) -> None:
    for use in (bare_guest.vm.register_coalesced_mmio, bare_guest.vm.unregister_coalesced_mmio):
        with pytest.raises(ConfigurationError, match=r"KVM_(UN)?REGISTER_COALESCED_MMIO: .*fit"):
            use(address, size)


def test_too_many_zones_are_refused(bare_guest: RealModeGuest) -> None:
    with pytest.raises(
        KvmError, match=r"KVM_REGISTER_COALESCED_MMIO\(address=0x[0-9a-f]+, size=0x1, pio=True\): ENOSPC"
    ):
        for port in range(5000):
            bare_guest.vm.register_coalesced_mmio(port, 1, pio=True)


def test_the_kernel_says_where_the_queue_is(vm: Vm) -> None:
    assert vm.check_extension(Cap.COALESCED_MMIO) > 0
