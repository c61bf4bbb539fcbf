"""PVH: how a hypervisor starts a kernel that says so in a note, Linux's vmlinux among them.

The kernel is an ELF file with a note of the owner "Xen" and the type PHYS32_ENTRY, which holds the physical address of
its 32-bit entry. It starts there in flat protected mode, paging and interrupts off, with EBX = the address of

    hvm_start_info     magic 0x336ec578, version, command line, ACPI RSDP
      -> modules       hvm_modlist_entry: the initrd is the first
      -> memory map    hvm_memmap_table_entry, E820 with 64-bit fields

See: Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h; Documentation/arch/x86/pvh.rst of Linux. Leaves out
hypercalls: nobody answers Xen's.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pykvm.boot.image import Image, choose_entry
from pykvm.boot.linux import LOW, linux_version, place_initrd
from pykvm.boot.memorymap import HIGH_MEMORY, Room, memory_map
from pykvm.boot.protocol import BootModule, BootOptions
from pykvm.errors import ImageError
from pykvm.memory import layout, platform
from pykvm.x86 import Mode, flat_protected_mode

if TYPE_CHECKING:
    from pykvm.boot.protocol import Platform
    from pykvm.x86 import CpuState

__all__ = ["PvhBoot", "pvh_entry", "pvh_image"]

OWNER, PHYS32_ENTRY = b"Xen", 18
MAGIC = 0x336EC578
VERSION = 1  # the first with a memory map

_START_INFO = struct.Struct("<IIIIQQQQII")  # ... cmdline, rsdp, memmap; entries, reserved
_MODULE = struct.Struct("<QQQQ")  # address, size, command line, reserved
_MAP_ENTRY = struct.Struct("<QQII")  # address, size, type, reserved
_LOW = (LOW, range(HIGH_MEMORY, layout.MMIO_HOLE_START))


def pvh_entry(data: bytes) -> int | None:
    """Return the physical address of the 32-bit entry that a note of the ELF file ``data`` tells, or None."""
    from pykvm.boot.elf import elf_notes

    for owner, kind, content in elf_notes(data):
        if owner == OWNER and kind == PHYS32_ENTRY and len(content) in (4, 8):
            return int.from_bytes(content, "little")
    return None


def pvh_image(data: bytes, *, name: str, entry: int | str | None = None, options: BootOptions | None = None) -> Image:
    """Return the kernel in the ELF file ``data``, started by PVH. Raises: ImageError if it has no such note."""
    from pykvm.boot.elf import elf_image

    options = options or BootOptions()
    options.check(("append", "initrd", "modules"), name, "PVH kernel")
    start = pvh_entry(data)
    if start is None:
        raise ImageError(f"{name}: has no PVH entry: an ELF note of Xen's, of type {PHYS32_ENTRY}")
    image = elf_image(data, name=name, entry=start)
    first = choose_entry(name, entry, start, image.symbols)
    version = linux_version(data)
    text = f"{f'Linux {version}' if version else 'PVH kernel'}, {image.format}, by PVH"
    return replace(image, entry=first, mode=Mode.PROTECTED, format=text, protocol=PvhBoot(options))


class PvhBoot:
    """The protocol. See ``BootProtocol``."""

    name = "PVH"
    irqchip = "kernel"
    memory = "64M"
    rom = b""

    def __init__(self, options: BootOptions) -> None:
        self._options = options

    def start(self, image: Image, platform: Platform) -> CpuState:
        """See ``BootProtocol.start``. Raises: ImageError if there is no room."""
        room = Room(platform.memory, [range(segment.gpa, segment.end) for segment in image.segments])
        state = flat_protected_mode(platform.reset, image.entry)
        state.regs.rbx = room.put(self._start_info(platform, room), "the start information", _LOW)
        return state

    def _start_info(self, machine: Platform, room: Room) -> bytes:
        entries = [_MAP_ENTRY.pack(e.base, e.size, e.type.value, 0) for e in memory_map(machine.memory)]
        modules = self._modules(room)
        return _START_INFO.pack(
            MAGIC,
            VERSION,
            0,
            len(modules),
            room.put(b"".join(modules), "the list of modules", _LOW) if modules else 0,
            room.put(self._options.append.encode() + b"\0", "the command line", _LOW),
            platform.RSDP,
            room.put(b"".join(entries), "the memory map", _LOW),
            len(entries),
            0,
        )

    def _modules(self, room: Room) -> list[bytes]:
        initrd = [BootModule("initrd", self._options.initrd)] if self._options.initrd else []
        records = []
        for module in (*initrd, *self._options.modules):
            start = place_initrd(room, module.data, layout.MMIO_HOLE_START)
            words = f"{PurePosixPath(module.name).name} {module.arguments}".strip()
            text = room.put(words.encode() + b"\0", f"the arguments of {module.name}", _LOW)
            records.append(_MODULE.pack(start, len(module.data), text, 0))
        return records
