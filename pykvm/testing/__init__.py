"""The testing kit: guests and devices in tests, with pytest (see ``plugin``) or without.

The names below are imported when first used, so that a test of a device loads nothing that needs /dev/kvm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.testing.assembly import Assembler
    from pykvm.testing.exits import ANY, AllExits, assert_exits, like
    from pykvm.testing.farend import LoneSerial, Wire
    from pykvm.testing.guest import GuestResult, Guests, WatchedMachine, run_guest

__all__ = [
    "ANY",
    "AllExits",
    "Assembler",
    "GuestResult",
    "Guests",
    "LoneSerial",
    "WatchedMachine",
    "Wire",
    "assert_exits",
    "like",
    "run_guest",
]

_HOMES = {
    "pykvm.testing.assembly": ("Assembler",),
    "pykvm.testing.exits": ("ANY", "AllExits", "assert_exits", "like"),
    "pykvm.testing.farend": ("LoneSerial", "Wire"),
    "pykvm.testing.guest": ("GuestResult", "Guests", "WatchedMachine", "run_guest"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'pykvm.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
