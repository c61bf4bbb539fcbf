"""ROM images: firmware that starts where the CPU does after reset, 16 bytes below 4 GiB.

    0xffff_ffff  +-----------+      the whole image, read-only, in the machine's ``rom``
                 |    ROM    |
                 +-----------+
    0x000f_ffff  +-----------+      its last 256 KiB once more, in RAM: firmware runs here in real mode, and writes
                 | the same  |      to it when it has "shadowed" itself
    0x000c_0000  +-----------+

See: Intel SDM volume 3, section 9.1.4 (first instruction executed). Leaves out a chipset whose registers make the RAM
below 1 MiB read-only, and flash memory that can be written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pykvm.boot.image import Image, Segment
from pykvm.boot.memorymap import HIGH_MEMORY
from pykvm.errors import ImageError
from pykvm.units import Gpa, KiB, MiB, format_size
from pykvm.x86 import Mode, reset_vector

if TYPE_CHECKING:
    from pykvm.boot.protocol import BootOptions, Platform
    from pykvm.x86 import CpuState

__all__ = ["RomBoot", "rom_image"]

BLOCK = 64 * KiB  # a ROM has whole ones: real mode's segments
MOST = 16 * MiB
LOW_SIZE = 256 * KiB
FIRST_INSTRUCTION = 16  # bytes before the end


def rom_image(data: bytes, *, name: str, options: BootOptions | None = None) -> Image:
    """Return the firmware ``data``. The machine wants it as its ``rom``. Raises: ImageError."""
    if options is not None:
        options.check((), name, "ROM")
    if not data or len(data) % BLOCK or len(data) > MOST:
        raise ImageError(
            f"{name}: a ROM has whole blocks of 64 KiB, up to {format_size(MOST)}, and this file {len(data):#x} bytes"
        )
    low = data[-LOW_SIZE:]
    segment = Segment(Gpa(HIGH_MEMORY - len(low)), low, len(low))
    entry = HIGH_MEMORY - FIRST_INSTRUCTION
    return Image(name, (segment,), entry, Mode.REAL, format="ROM", protocol=RomBoot(data))


@dataclass(frozen=True, slots=True)
class RomBoot:
    """The reset vector. See ``BootProtocol``; ``rom`` is what is to be below 4 GiB."""

    rom: bytes = field(repr=False)
    name: str = "a ROM at the reset vector"
    irqchip: str = "kernel"
    memory: str = "64M"

    def start(self, image: Image, platform: Platform) -> CpuState:
        """See ``BootProtocol.start``. Raises: ImageError if the machine has another ROM, or none."""
        top = 1 << 32
        region = platform.memory.find(top - 1)
        if region is None or platform.memory.read(top - len(self.rom), len(self.rom)) != self.rom:
            raise ImageError(f"{image.name}: is not in the machine: make it with this ROM, Machine(rom=...)")
        return reset_vector(platform.reset)
