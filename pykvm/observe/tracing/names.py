"""Which device and register an access reaches: ``"serial THR"``.

Asked before the device sees the access, for that may change what is where. See: ``NamedRegisters`` in
``pykvm.devices.device``. Leaves out the screen's memory, which is plain memory: writing to it is no exit.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices import Bus
from pykvm.kvm import IoIn, IoOut, MmioRead, MmioWrite
from pykvm.observe.tracing.line import Coalesced, Event

__all__ = ["NOBODY", "Names"]

NOBODY = ("", False)


class Names:
    """The names on the two buses of a machine."""

    def __init__(self, pio: Bus, mmio: Bus) -> None:
        self._pio = pio
        self._mmio = mmio

    def find(self, event: Event) -> tuple[str, bool]:
        """Return the device's name and the register's, and whether its bytes are characters; "" if nobody is there."""
        match event.write if isinstance(event, Coalesced) else event:
            case IoOut() as access:
                return self._name(self._pio, access.port, True)
            case IoIn() as access:
                return self._name(self._pio, access.port, False)
            case MmioWrite() as access:
                return self._name(self._mmio, access.address, True)
            case MmioRead() as access:
                return self._name(self._mmio, access.address, False)
        return NOBODY

    def _name(self, bus: Bus, address: int, is_write: bool) -> tuple[str, bool]:
        place = bus.find(address)
        if place is None:
            return NOBODY
        device = place.device
        ask: Callable[[int, bool], str] | None = getattr(device, "register_name", None)
        if ask is None:
            return device.name, False
        register = ask(address - place.base, is_write)
        is_text = register in getattr(device, "text_registers", ())
        return (f"{device.name} {register}" if register else device.name), is_text
