"""pykvm: learn, run and test on raw KVM.

Two layers: ``pykvm.kvm`` is KVM's interface, one method per ioctl, and ``Machine`` is the comfortable one. The names
below are imported when first used, so that ``import pykvm`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot import Image, assemble, open_image
    from pykvm.errors import PykvmError
    from pykvm.kvm import Kvm, Vcpu, Vm
    from pykvm.machine import Machine, RunResult
    from pykvm.memory import GuestMemory
    from pykvm.units import GiB, Gpa, Gva, Hva, KiB, MiB
    from pykvm.x86 import Mode

__all__ = [
    "GiB",
    "Gpa",
    "GuestMemory",
    "Gva",
    "Hva",
    "Image",
    "KiB",
    "Kvm",
    "Machine",
    "MiB",
    "Mode",
    "PykvmError",
    "RunResult",
    "Vcpu",
    "Vm",
    "assemble",
    "open_image",
]

_HOMES = {
    "pykvm.boot": ("Image", "assemble", "open_image"),
    "pykvm.errors": ("PykvmError",),
    "pykvm.kvm": ("Kvm", "Vcpu", "Vm"),
    "pykvm.machine": ("Machine", "RunResult"),
    "pykvm.memory": ("GuestMemory",),
    "pykvm.units": ("GiB", "Gpa", "Gva", "Hva", "KiB", "MiB"),
    "pykvm.x86": ("Mode",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'pykvm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
