"""KVM_INTERRUPT and KVM_NMI without an in-kernel irqchip: delivery through the real-mode interrupt vector table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigurationError
from pykvm.kvm import Hlt, IoOut, IrqWindowOpen

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

HANDLER = 0x9000
READY = IoOut(0x80, 1, 1, b"\x00")
HANDLED = IoOut(0x81, 1, 1, b"\x01")
STATUS_IF = 1 << 9


def install_handler(guest: RealModeGuest, vector: int) -> None:
    guest.set_vector(vector, HANDLER)
    # mov $1, %al; out %al, $0x81; iret
    guest.write(HANDLER, bytes.fromhex("b0 01 e6 81 cf"))


def test_an_interrupt_waits_for_the_window_that_was_asked_for(bare_guest: RealModeGuest) -> None:
    install_handler(bare_guest, 0x20)
    # out %al, $0x80; sti; again: cmp $1, %al; jne again; hlt
    bare_guest.load(bytes.fromhex("e6 80 fb 3c 01 75 fc f4"))
    vcpu = bare_guest.vcpu
    assert vcpu.run() == READY
    assert not vcpu.if_flag
    assert not vcpu.ready_for_interrupt_injection
    assert not vcpu.request_interrupt_window
    vcpu.request_interrupt_window = True
    assert vcpu.request_interrupt_window
    assert vcpu.run() == IrqWindowOpen()
    assert vcpu.if_flag
    assert vcpu.ready_for_interrupt_injection
    vcpu.request_interrupt_window = False
    vcpu.interrupt(0x20)
    assert vcpu.run() == HANDLED
    assert vcpu.run() == Hlt()
    assert bare_guest.regs.rip == 0x8008, "the handler returned to where the guest was"
    assert bare_guest.regs.rsp == 0x7C00


def test_an_interrupt_wakes_a_halted_guest(bare_guest: RealModeGuest) -> None:
    install_handler(bare_guest, 0x31)
    bare_guest.load(bytes.fromhex("fb f4 e6 80 f4"))  # sti; hlt; out %al, $0x80; hlt
    vcpu = bare_guest.vcpu
    assert vcpu.run() == Hlt()
    assert vcpu.if_flag
    assert vcpu.ready_for_interrupt_injection
    vcpu.interrupt(0x31)
    assert vcpu.run() == HANDLED
    assert vcpu.run() == IoOut(0x80, 1, 1, b"\x01")
    assert vcpu.run() == Hlt()


def test_the_handler_finds_the_interrupted_address_and_flags_on_its_stack(bare_guest: RealModeGuest) -> None:
    bare_guest.set_vector(0x20, HANDLER)
    bare_guest.write(HANDLER, b"\xf4")  # hlt
    bare_guest.load(bytes.fromhex("fb f4"))  # sti; hlt
    assert bare_guest.vcpu.run() == Hlt()
    bare_guest.vcpu.interrupt(0x20)
    assert bare_guest.vcpu.run() == Hlt()
    assert bare_guest.regs.rip == HANDLER + 1
    assert bare_guest.regs.rsp == 0x7C00 - 6
    frame = [int.from_bytes(bare_guest.read(0x7C00 - 6 + offset, 2), "little") for offset in (0, 2, 4)]
    assert frame[:2] == [0x8002, 0], "IP and CS"
    assert frame[2] & STATUS_IF
    assert not bare_guest.regs.rflags & STATUS_IF, "which the handler runs without"


@pytest.mark.parametrize("vector", [0, 0x20, 255])
def test_every_vector_can_be_delivered(bare_guest: RealModeGuest, vector: int) -> None:
    install_handler(bare_guest, vector)
    bare_guest.load(bytes.fromhex("fb f4 f4"))  # sti; hlt; hlt
    assert bare_guest.vcpu.run() == Hlt()
    bare_guest.vcpu.interrupt(vector)
    assert bare_guest.vcpu.run() == HANDLED
    assert bare_guest.vcpu.run() == Hlt()


@pytest.mark.parametrize("vector", [-1, 256])
def test_a_vector_that_does_not_exist_is_refused(bare_guest: RealModeGuest, vector: int) -> None:
    with pytest.raises(ConfigurationError, match=f"an interrupt vector is 0 to 255, not {vector}"):
        bare_guest.vcpu.interrupt(vector)


def test_an_nmi_reaches_vector_2_even_with_interrupts_off(bare_guest: RealModeGuest) -> None:
    install_handler(bare_guest, 2)
    bare_guest.load(bytes.fromhex("fa e6 80 f4"))  # cli; out %al, $0x80; hlt
    assert bare_guest.vcpu.run() == READY
    bare_guest.vcpu.nmi()
    assert bare_guest.vcpu.run() == HANDLED
    assert bare_guest.vcpu.run() == Hlt()
    assert bare_guest.regs.rip == 0x8004


def test_an_nmi_is_seen_in_the_events_until_it_is_delivered(bare_guest: RealModeGuest) -> None:
    install_handler(bare_guest, 2)
    bare_guest.vcpu.nmi()
    nmi = bare_guest.vcpu.get_vcpu_events().nmi
    assert nmi.pending or nmi.injected
    assert bare_guest.vcpu.run() == HANDLED
    assert bare_guest.vcpu.run() == Hlt()
    nmi = bare_guest.vcpu.get_vcpu_events().nmi
    assert (nmi.pending, nmi.injected, nmi.masked) == (0, 0, 0), "IRET has ended it"
