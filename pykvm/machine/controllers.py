"""What the interrupt controllers hold back at the end of a run: in service, waiting, and what may come at all.

    waiting (IRR) --- RFLAGS.IF, priority ---> in service (ISR) --- EOI ---> gone

While an interrupt is in service, none of the same or lower priority is taken. See: Intel's data sheet of the 8259A;
SDM volume 3, section 10.8 (IRR, ISR, EOI), figure 10-28 (their registers); <asm/kvm.h>, struct kvm_pic_state. Leaves
out the I/O APIC, which keeps little: what it sends waits in a local APIC.
"""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.devices import PicPair
from pykvm.devices.pic import CASCADE, Pic
from pykvm.errors import PykvmError
from pykvm.kvm import IrqchipId, Vcpu, Vm
from pykvm.machine.interrupts import Interrupts

__all__ = ["Controller", "decode_lapic", "decode_pic", "has_taken_interrupts", "look_at_controllers"]

# Bytes of struct kvm_pic_state, in the order of <asm/kvm.h>: last_irr, irr, imr, isr, priority_add, irq_base.
PIC_IRR, PIC_IMR, PIC_ISR, PIC_BASE = 1, 2, 3, 5
# Offsets in a local APIC's registers (SDM volume 3, table 10-1).
APIC_SVR, APIC_ISR, APIC_IRR, APIC_LVT_TIMER, APIC_TIMER_INITIAL = 0xF0, 0x100, 0x200, 0x320, 0x380
APIC_ENABLED, LVT_MASKED = 1 << 8, 1 << 16


@dataclass(frozen=True, slots=True)
class Controller:
    """An interrupt controller: vectors ``in_service`` and ``waiting``, and those of lines that are not masked."""

    name: str
    in_service: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    open: tuple[int, ...] = ()

    @property
    def is_pic(self) -> bool:
        """Return whether it is an 8259A, not a local APIC."""
        return "8259A" in self.name


def look_at_controllers(interrupts: Interrupts, vm: Vm, vcpu: Vcpu) -> tuple[Controller, ...]:
    """Return the 8259As of a machine that stands still, and the local APIC of ``vcpu``: as many as there are."""
    found: list[Controller] = []
    if interrupts.pic is not None:
        found += _user_pics(interrupts.pic)
    elif interrupts.kind.has_local_apic:
        found.append(decode_pic("master 8259A", vm.get_irqchip(IrqchipId.PIC_MASTER)))
        found.append(decode_pic("slave 8259A", vm.get_irqchip(IrqchipId.PIC_SLAVE)))
    if interrupts.kind.has_local_apic:
        found.append(decode_lapic(f"local APIC of CPU {vcpu.id}", vcpu.get_lapic()))
    return tuple(found)


def has_taken_interrupts(vcpu: Vcpu) -> bool:
    """Return whether ``vcpu`` has ever taken an interrupt; True where KVM does not count them."""
    try:
        counted = vcpu.stats().get("irq_injections")
    except PykvmError:
        return True
    return counted is None or counted.value > 0


def decode_pic(name: str, state: bytes) -> Controller:
    """Return the 8259A whose ``state`` KVM_GET_IRQCHIP gave."""
    return _pic(name, state[PIC_BASE], state[PIC_IRR], state[PIC_ISR], state[PIC_IMR])


def decode_lapic(name: str, state: bytes) -> Controller:
    """Return the local APIC whose registers KVM_GET_LAPIC gave."""
    timer, initial = _register(state, APIC_LVT_TIMER), _register(state, APIC_TIMER_INITIAL)
    is_on = _register(state, APIC_SVR) & APIC_ENABLED
    runs = is_on and initial and not timer & LVT_MASKED
    return Controller(name, _vectors(state, APIC_ISR), _vectors(state, APIC_IRR), (timer & 0xFF,) if runs else ())


def _user_pics(pics: PicPair) -> list[Controller]:
    return [_user_pic("master 8259A", pics.master), _user_pic("slave 8259A", pics.slave)]


def _user_pic(name: str, pic: Pic) -> Controller:
    return _pic(name, pic.vector(0), pic.irr, pic.isr, pic.imr)


def _pic(name: str, base: int, irr: int, isr: int, imr: int) -> Controller:
    def vectors(bits: int) -> tuple[int, ...]:
        return tuple(base + number for number in range(8) if bits >> number & 1)

    if base == 0:  # nobody has programmed it
        return Controller(name)
    is_master = name.startswith("master")
    opened = ~imr & ~(1 << CASCADE) if is_master else ~imr
    return Controller(name, vectors(isr), vectors(irr & ~imr), vectors(opened))


def _register(state: bytes, offset: int) -> int:
    return int.from_bytes(state[offset : offset + 4], "little")


def _vectors(state: bytes, offset: int) -> tuple[int, ...]:
    # 256 bits in eight registers of 32, each 16 bytes after the one before.
    words = [_register(state, offset + 16 * index) for index in range(8)]
    return tuple(32 * index + bit for index, word in enumerate(words) for bit in range(32) if word >> bit & 1)
