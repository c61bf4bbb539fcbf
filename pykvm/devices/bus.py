"""A bus: which device answers at which address. A PC has two, one of I/O ports and one of memory addresses.

An address that no device claims reads as all ones, for nothing pulls the lines down, and a write there is lost. An
access that straddles the end of a range is split there, and each part goes where it belongs, as here with four bytes
read from port 0x3fe:

    port     0x3fe   0x3ff   0x400   0x401
    owner    serial  serial  nobody  nobody
    answer   MSR     SCR     0xff    0xff

An access that runs over the end of the address space is one more of these: nobody is out there. See: Intel SDM
volume 1, chapter "Input/Output". Leaves out priorities between devices: ranges cannot overlap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pykvm.devices.device import Device
from pykvm.errors import BusError, UnclaimedAccessError

__all__ = ["REMEMBERED", "Bus", "Range", "Unclaimed"]

# How many unclaimed addresses are remembered, so as to report each once. A hostile guest sweeps all 2**52 of them;
# after this many different ones the bus says no more.
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
        kind, effect = ("write to", "is lost") if self.is_write else ("read from", "gives all ones")
        size = "1 byte" if self.size == 1 else f"{self.size} bytes"
        return f"nothing is at {self.bus} {self.address:#x}: a {kind} it ({size}) {effect}"


class Bus:
    """Finds the device for an address.

    ``name`` ("port") is for messages, ``size`` is the number of addresses. ``on_unclaimed`` hears of each address that
    no device claims, once, and of the first ``REMEMBERED`` of them; with ``strict`` such an access raises instead.
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
        # Sorted by base; the two lists run in parallel, because bisect wants plain numbers to be fast.
        self._bases: list[int] = []
        self._ranges: list[Range] = []
        self._changes = 0

    # ---- plugging in ----

    @property
    def changes(self) -> int:
        """Return how many times something was plugged in or unplugged."""
        return self._changes

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Return what is plugged in, lowest address first."""
        return tuple(self._ranges)

    def register(self, device: Device, base: int, length: int) -> None:
        """Let ``device`` answer at ``length`` addresses from ``base`` on. A device may have several ranges.

        Raises: BusError if the range is empty, leaves the bus, or overlaps another.
        """
        if length <= 0 or base < 0 or base + length > self.size:
            wanted = f"{device.name} cannot have {length} addresses from {base:#x} on"
            raise BusError(f"{wanted}: the {self.name} bus has 0x0-{self.size - 1:#x}")
        new = Range(base, length, device)
        for old in self._ranges:
            if new.base < old.end and old.base < new.end:
                raise BusError(f"{new} overlaps {old} on the {self.name} bus: unregister that, or choose another base")
        position = bisect_right(self._bases, base)
        self._changes += 1
        self._bases.insert(position, base)
        self._ranges.insert(position, new)

    def unregister(self, device: Device) -> None:
        """Unplug ``device`` from all its ranges. Raises: BusError if it has none."""
        remaining = [found for found in self._ranges if found.device is not device]
        if len(remaining) == len(self._ranges):
            raise BusError(f"{device.name} is not on the {self.name} bus")
        self._changes += 1
        self._ranges = remaining
        self._bases = [found.base for found in remaining]

    # ---- finding and accessing ----

    def find(self, address: int) -> Range | None:
        """Return the range that ``address`` is in, or None."""
        position = bisect_right(self._bases, address) - 1
        if position < 0:
            return None
        found = self._ranges[position]
        return found if address < found.end else None

    def read(self, address: int, size: int) -> bytes:
        """Return what the guest reads at ``address``: ``size`` bytes (1, 2, 4 or 8), little-endian.

        Raises: UnclaimedAccessError on a strict bus, before any device sees the access; BusError if a device answers
        with the wrong number of bytes.
        """
        found = self.find(address)
        if found is not None and address + size <= found.end:
            return read_device(found, address, size)
        answer = bytearray()
        for owner, start, length in self._split(address, size, is_write=False):
            answer += b"\xff" * length if owner is None else read_device(owner, start, length)
        return bytes(answer)

    def write(self, address: int, data: bytes) -> None:
        """Pass on ``data`` (1, 2, 4 or 8 bytes, little-endian) that the guest wrote at ``address``.

        Raises: UnclaimedAccessError on a strict bus, before any device sees the access.
        """
        found = self.find(address)
        if found is not None and address + len(data) <= found.end:
            found.device.write(address - found.base, data)
            return
        for owner, start, length in self._split(address, len(data), is_write=True):
            if owner is not None:
                owner.device.write(start - owner.base, data[start - address : start - address + length])

    # ---- inside ----

    def _split(self, address: int, size: int, *, is_write: bool) -> list[tuple[Range | None, int, int]]:
        """Return the parts of an access (owner, address, length), having reported those without an owner."""
        parts = list(self._parts(address, address + size))
        for owner, start, length in parts:
            if owner is None:
                self._report(Unclaimed(self.name, start, length, is_write))
        return parts

    def _parts(self, address: int, end: int) -> Iterator[tuple[Range | None, int, int]]:
        while address < end:
            owner = self.find(address)
            stop = min(end, self._next_base(address, end) if owner is None else owner.end)
            yield owner, address, stop - address
            address = stop

    def _next_base(self, address: int, default: int) -> int:
        position = bisect_right(self._bases, address)
        return self._bases[position] if position < len(self._bases) else default

    def _report(self, access: Unclaimed) -> None:
        if self._strict:
            raise UnclaimedAccessError(f"{access}; register a device there, or do without strict", access.address)
        if self._on_unclaimed is None or access.address in self._reported or len(self._reported) >= REMEMBERED:
            return
        self._reported.add(access.address)
        self._on_unclaimed(access)


def read_device(owner: Range, address: int, size: int) -> bytes:
    """Return what the device of ``owner`` answers. Raises: BusError if that is not ``size`` bytes."""
    data = owner.device.read(address - owner.base, size)
    if len(data) != size:
        raise BusError(f"{owner} answered a read of {size} bytes at {address:#x} with {len(data)}")
    return data
