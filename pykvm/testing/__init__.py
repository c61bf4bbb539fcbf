"""The testing kit: guests and devices in tests, with pytest (see ``plugin``) or without.

The names below are imported when first used, so that a test of a device loads nothing that needs /dev/kvm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.observe import Recorder, minimize, read_recording, replay
    from pykvm.testing.assembly import Assembler
    from pykvm.testing.exits import ANY, AllExits, assert_exits, like
    from pykvm.testing.farend import LoneSerial, Wire
    from pykvm.testing.fuzz import DeviceFault, fuzz_device
    from pykvm.testing.guest import GuestResult, Guests, WatchedMachine, run_guest
    from pykvm.testing.scripted import DeviceBench, ScriptedVcpu, ScriptResult, run_script

__all__ = [
    "ANY",
    "AllExits",
    "Assembler",
    "DeviceBench",
    "DeviceFault",
    "GuestResult",
    "Guests",
    "LoneSerial",
    "Recorder",
    "ScriptResult",
    "ScriptedVcpu",
    "WatchedMachine",
    "Wire",
    "assert_exits",
    "fuzz_device",
    "like",
    "minimize",
    "read_recording",
    "replay",
    "run_guest",
    "run_script",
]

_HOMES = {
    "pykvm.observe": ("Recorder", "minimize", "read_recording", "replay"),
    "pykvm.testing.assembly": ("Assembler",),
    "pykvm.testing.exits": ("ANY", "AllExits", "assert_exits", "like"),
    "pykvm.testing.farend": ("LoneSerial", "Wire"),
    "pykvm.testing.fuzz": ("DeviceFault", "fuzz_device"),
    "pykvm.testing.guest": ("GuestResult", "Guests", "WatchedMachine", "run_guest"),
    "pykvm.testing.scripted": ("DeviceBench", "ScriptResult", "ScriptedVcpu", "run_script"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'pykvm.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
