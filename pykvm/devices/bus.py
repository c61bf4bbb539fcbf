"""A bus: which device answers at which address. A PC has two, one of I/O ports and one of memory addresses.

An address that no device claims reads as all ones, for nothing drives the lines, and swallows writes. An access that
straddles the end of a range is split there, and each part goes where it belongs. See: Intel SDM volume 1, chapter 19
(I/O ports). Leaves out priorities between devices: ranges cannot overlap.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pykvm.devices.device import Device
from pykvm.errors import BusError, UnclaimedAccessError

__all__ = ["Bus", "Range", "Unclaimed"]

# How many unclaimed addresses are remembered, to report each once. A guest may sweep them all.
REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Range:
    """``length`` addresses from ``base`` on, and the device that answers there."""

    base: int
    length: int
    device: Device

    @property
    def end(self) -> int:
        """Return the address after the last one."""
        return self.base + self.length

    def __str__(self) -> str:
        return f"{self.device.name} at {self.base:#x}-{self.end - 1:#x}"


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """An access of ``size`` bytes at ``address`` of the bus called ``bus``, where no device is."""

    bus: str
    address: int
    size: int
    is_write: bool

    def __str__(self) -> str:
        effect = "is lost" if self.is_write else "gives all ones"
        kind = "write to" if self.is_write else "read from"
        return f"nothing is at {self.bus} {self.address:#x}: a {kind} it ({self.size} bytes) {effect}"


class Bus:
    """Finds the device for an address.

    ``name`` is for messages, ``size`` the number of addresses. ``on_unclaimed`` hears of each address that no device
    claims, once; with ``strict`` such an access raises instead.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        strict: bool = False,
        on_unclaimed: Callable[[Unclaimed], None] | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self._strict = strict
        self._on_unclaimed = on_unclaimed
        self._reported: set[int] = set()
        self._bases: list[int] = []
        self._ranges: dict[int, Range] = {}

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Return what is plugged in, lowest address first."""
        return tuple(self._ranges[base] for base in self._bases)

    def register(self, device: Device, base: int, length: int) -> None:
        """Let ``device`` answer at ``length`` addresses from ``base`` on; one device may have several ranges.

        Raises: BusError if the range is empty, leaves the bus, or overlaps another.
        """
        new = Range(base, length, device)
        if length <= 0 or base < 0 or new.end > self.size:
            raise BusError(
                f"{device.name} cannot have {length} addresses from {base:#x} on: the {self.name} bus has 0-{self.size - 1:#x}"
            )
        for old in self._ranges.values():
            if base < old.end and old.base < new.end:
                raise BusError(f"{new} overlaps {old} on the {self.name} bus")
        insort(self._bases, base)
        self._ranges[base] = new

    def unregister(self, device: Device) -> None:
        """Unplug ``device`` from all its ranges. Raises: BusError if it has none."""
        bases = [base for base, found in self._ranges.items() if found.device is device]
        if not bases:
            raise BusError(f"{device.name} is not on the {self.name} bus")
        for base in bases:
            self._bases.remove(base)
            del self._ranges[base]

    def find(self, address: int) -> Range | None:
        """Return the range that ``address`` is in, or None."""
        position = bisect_right(self._bases, address) - 1
        if position < 0:
            return None
        found = self._ranges[self._bases[position]]
        return found if address < found.end else None

    def read(self, address: int, size: int) -> bytes:
        """Return what the guest reads at ``address``: ``size`` bytes, little-endian.

        Raises: UnclaimedAccessError on a strict bus; BusError if a device answers with the wrong number of bytes.
        """
        found = self.find(address)
        if found is not None and address + size <= found.end:
            return self._read_device(found, address, size)
        parts = []
        for owner, start, length in self._split(address, size):
            if owner is None:
                self._nobody(start, length, is_write=False)
                parts.append(b"\xff" * length)
            else:
                parts.append(self._read_device(owner, start, length))
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Pass on what the guest wrote at ``address``. Raises: UnclaimedAccessError on a strict bus."""
        found = self.find(address)
        if found is not None and address + len(data) <= found.end:
            found.device.write(address - found.base, data)
            return
        for owner, start, length in self._split(address, len(data)):
            part = data[start - address : start - address + length]
            if owner is None:
                self._nobody(start, length, is_write=True)
            else:
                owner.device.write(start - owner.base, part)

    def _read_device(self, owner: Range, address: int, size: int) -> bytes:
        data = owner.device.read(address - owner.base, size)
        if len(data) != size:
            raise BusError(f"{owner} answered a read of {size} bytes at {address:#x} with {len(data)}")
        return data

    def _split(self, address: int, size: int) -> Iterator[tuple[Range | None, int, int]]:
        """Yield the parts of an access that belong together: their owner, address and length."""
        end = address + size
        while address < end:
            owner = self.find(address)
            stop = min(end, owner.end if owner else self._next_base(address, end))
            yield owner, address, stop - address
            address = stop

    def _next_base(self, address: int, default: int) -> int:
        position = bisect_right(self._bases, address)
        return self._bases[position] if position < len(self._bases) else default

    def _nobody(self, address: int, size: int, *, is_write: bool) -> None:
        access = Unclaimed(self.name, address, size, is_write)
        if self._strict:
            raise UnclaimedAccessError(f"{access}; register a device there, or do without strict", address)
        if self._on_unclaimed is None or address in self._reported or len(self._reported) >= REMEMBERED:
            return
        self._reported.add(address)
        self._on_unclaimed(access)
