"""Routes and MSR filters as the kernel's structures."""

from __future__ import annotations

import pytest

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError
from pykvm.kvm import IrqchipId, IrqchipRoute, MsiRoute, MsrFilterRange
from pykvm.kvm.msr_filter import msr_filter
from pykvm.kvm.routing import routing_table


def test_a_table_keeps_the_order_and_the_kind_of_its_routes() -> None:
    table = routing_table([IrqchipRoute(4, IrqchipId.IOAPIC, 17), MsiRoute(5, 0x1_FEE0_3000, 0x41)])
    assert (table.nr, table.flags) == (2, 0)
    pin, message = table.entries[0], table.entries[1]
    assert (pin.gsi, pin.type, pin.u.irqchip.irqchip, pin.u.irqchip.pin) == (4, lib.KVM_IRQ_ROUTING_IRQCHIP, 2, 17)
    assert (message.gsi, message.type) == (5, lib.KVM_IRQ_ROUTING_MSI)
    assert (message.u.msi.address_hi, message.u.msi.address_lo, message.u.msi.data) == (1, 0xFEE0_3000, 0x41)


def test_an_empty_table_is_a_table() -> None:
    assert routing_table([]).nr == 0


def test_routes_are_values() -> None:
    assert len({IrqchipRoute(1, IrqchipId.IOAPIC, 1), IrqchipRoute(1, IrqchipId.IOAPIC, 1)}) == 1


@pytest.mark.parametrize("nmsrs", [1, 8, 9, 63, 64, 65, 12288])
def test_a_bitmap_is_as_long_as_the_kernel_reads(nmsrs: int) -> None:
    _, (bitmap,) = msr_filter([MsrFilterRange(0, b"\xff" * ((nmsrs + 7) // 8), nmsrs)], default_deny=False)
    assert len(bitmap) == (nmsrs + 63) // 64 * 8
    assert bytes(ffi.buffer(bitmap)).rstrip(b"\0") == b"\xff" * ((nmsrs + 7) // 8)


def test_a_filter_says_what_its_ranges_are_about() -> None:
    ranges = [MsrFilterRange(0x10, b"\1", 1, write=False), MsrFilterRange(0x20, b"\1", 1, read=False)]
    c, bitmaps = msr_filter(ranges, default_deny=True)
    assert c.flags == lib.KVM_MSR_FILTER_DEFAULT_DENY
    assert [c.ranges[n].flags for n in range(3)] == [lib.KVM_MSR_FILTER_READ, lib.KVM_MSR_FILTER_WRITE, 0]
    assert [c.ranges[n].base for n in range(2)] == [0x10, 0x20]
    assert c.ranges[1].bitmap == bitmaps[1]


def test_a_range_of_no_msr_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the MSR range from 0x10 has 1 to 12288 MSRs, not 0"):
        msr_filter([MsrFilterRange(0x10, b"", 0)], default_deny=False)
