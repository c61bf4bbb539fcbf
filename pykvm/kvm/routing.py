"""Where an interrupt line leads: the entries of KVM's GSI routing table.

A GSI (global system interrupt) is a number that a device raises, by KVM_IRQ_LINE or an irqfd. The table says what it
means: a pin of an interrupt controller inside the kernel, or a message (MSI) to a local APIC. One GSI may lead to a pin
of every controller at once, as GSIs 0 to 15 do after KVM_CREATE_IRQCHIP: to the PIC and to the I/O APIC.

See: Documentation/virt/kvm/api.rst, KVM_SET_GSI_ROUTING; SDM volume 3, section 11.11, for a message's address and data.
Leaves out: the routes of Hyper-V, Xen and s390 adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from pykvm._shim import ffi, lib
from pykvm.kvm.constants import IrqchipId

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["IrqchipRoute", "MsiRoute", "Route", "routing_table", "split_address"]


@dataclass(frozen=True, slots=True)
class IrqchipRoute:
    """``gsi`` is ``pin`` of a controller: 0 to 7 of a PIC, 0 to 23 of the I/O APIC."""

    gsi: int
    irqchip: IrqchipId
    pin: int


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """``gsi`` sends a message: ``data``, 32 bits, written to ``address``, 64 bits (0xfee00000 and up, on x86)."""

    gsi: int
    address: int
    data: int


Route = IrqchipRoute | MsiRoute


def routing_table(routes: Sequence[Route]) -> CData:
    """Return ``routes`` as ``struct kvm_irq_routing``. Raises: OverflowError if a number does not fit."""
    table = ffi.new("struct kvm_irq_routing *", {"nr": len(routes), "entries": len(routes)})
    for position, route in enumerate(routes):
        entry = table.entries[position]
        entry.gsi = route.gsi
        match route:
            case IrqchipRoute(irqchip=irqchip, pin=pin):
                entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
                entry.u.irqchip.irqchip = irqchip
                entry.u.irqchip.pin = pin
            case MsiRoute(address=address, data=data):
                entry.type = lib.KVM_IRQ_ROUTING_MSI
                entry.u.msi.address_hi, entry.u.msi.address_lo = split_address(address)
                entry.u.msi.data = data
            case _:
                assert_never(route)
    return table


def split_address(address: int) -> tuple[int, int]:
    """Return the high and the low 32 bits of a message's address."""
    return address >> 32, address & 0xFFFF_FFFF
