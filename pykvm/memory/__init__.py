"""Guest memory by guest-physical address, and the map of fixed addresses. Knows no KVM."""

from pykvm.memory import layout, platform
from pykvm.memory.guest import GuestMemory, Region, RegionKind

__all__ = ["GuestMemory", "Region", "RegionKind", "layout", "platform"]
