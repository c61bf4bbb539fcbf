"""Boot protocols: what a guest finds when it starts, beside its own bytes. Registers, and structures in memory.

A plain image starts in a mode (``pykvm.x86.set_up``) and finds nothing. Kernels expect more, each after its protocol:

    loaded image --Platform--> BootProtocol.start() --CpuState--> the first CPU

What the user gives with a kernel (a command line, an initrd, modules) is in ``BootOptions``, which each protocol takes
what it knows from. Leaves out the protocols themselves, which have a module each.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

from pykvm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykvm.boot.image import Image
    from pykvm.kvm.structs import Sregs
    from pykvm.memory import GuestMemory
    from pykvm.x86 import CpuState

__all__ = ["BootModule", "BootOptions", "BootProtocol", "Platform"]


@dataclass(frozen=True, slots=True)
class BootModule:
    """A file that is loaded beside a kernel, called ``name``, with the ``arguments`` the kernel is told of it."""

    name: str
    data: bytes = field(repr=False)
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class BootOptions:
    """What goes with a kernel: its command line, an initial RAM disk, modules."""

    append: str = ""
    initrd: bytes = field(default=b"", repr=False)
    modules: tuple[BootModule, ...] = ()

    def check(self, known: Iterable[str], image: str, kind: str) -> None:
        """Refuse what the protocol of an ``image`` of this ``kind`` has no place for. Raises: ImageError."""
        for option in fields(self):
            if getattr(self, option.name) and option.name not in known:
                raise ImageError(f"{image}: is a {kind}, to which nobody could give {_WORDS[option.name]}")


_WORDS = {"append": "a command line (--append)", "initrd": "an initrd (--initrd)", "modules": "modules (--module)"}


@dataclass(frozen=True, slots=True)
class Platform:
    """What a boot protocol may know of the machine: its RAM, the special registers after reset, and how many CPUs."""

    memory: GuestMemory
    reset: Sregs
    cpus: int


class BootProtocol(Protocol):
    """How an image starts. ``name`` is for people: "multiboot".

    ``irqchip`` and ``memory`` are what a machine for such guests has if nobody says otherwise, ``rom`` is what it must
    have: see ``Machine``.
    """

    @property
    def name(self) -> str:
        """Return what people call it."""

    @property
    def irqchip(self) -> str:
        """Return an ``IrqchipKind``'s value."""

    @property
    def memory(self) -> str:
        """Return a size."""

    @property
    def rom(self) -> bytes:
        """Return a ROM's content, empty for none."""

    def start(self, image: Image, platform: Platform) -> CpuState:
        """Write what the guest is to find into memory, where ``image`` is already, and return the state it starts in.

        Nothing that belongs to the image is overwritten. Raises: ImageError if the machine lacks what it wants, most
        often memory.
        """
