"""Linux: a bzImage or an uncompressed vmlinux, by the 32-bit or the 64-bit boot protocol.

    bzImage    boot sector and setup code (16-bit, not run here), then the kernel that unpacks itself: loaded at 1 MiB
               or where it prefers; the 32-bit entry is its first byte, the 64-bit entry 0x200 bytes on
    vmlinux    an ELF64 file that runs where it is linked; its entry is the 64-bit one

Either finds the address of the zero page (``linux_params``) in RSI, flat segments with the selectors 0x10 and 0x18,
interrupts off; at the 64-bit entry the first 4 GiB are mapped to themselves.

See: Documentation/arch/x86/boot.rst, "32-bit Boot Protocol" and "64-bit Boot Protocol". Leaves out the 16-bit entry,
zImages, and kernels that are EFI applications only.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from pykvm.boot.image import Image, Segment, choose_entry
from pykvm.boot.linux_params import (
    HEADER_OFFSET,
    OTHER_LOADER,
    LoadFlags,
    SetupHeader,
    XLoadFlags,
    boot_params,
    read_header,
)
from pykvm.boot.memorymap import HIGH_MEMORY, Room, memory_map
from pykvm.boot.protocol import BootOptions
from pykvm.errors import ImageError
from pykvm.memory import layout
from pykvm.units import PAGE_SIZE, Gpa, align_down
from pykvm.x86 import Gdt, Mode, code_segment, data_segment, flat_protected_mode, long_mode

if TYPE_CHECKING:
    from pykvm.boot.protocol import Platform
    from pykvm.x86 import CpuState

__all__ = ["LOW", "LinuxBoot", "bzimage_image", "linux_version", "place_initrd", "vmlinux_image"]

SECTOR = 512
OLDEST = 0x0202  # the first that knows initrd_addr_max and cmd_line_ptr
WITH_INIT_SIZE = 0x020A
WITH_64_BIT_ENTRY = 0x020C
ENTRY_64 = 0x200
DEFAULT_SETUP_SECTORS = 4  # what 0 means
MOST_COMMAND_LINE = 2047  # for kernels that do not say
INITRD_MAX = 0x37FF_FFFF  # the same

# Below the page tables and above what a real-mode kernel would touch; the guest's low memory is free otherwise.
LOW = range(0x8_0000, 0x9_F000)
CODE_SELECTOR, DATA_SELECTOR = 0x10, 0x18
BANNER = re.compile(rb"Linux version (\d[\x21-\x7e]*)")


def linux_version(data: bytes) -> str | None:
    """Return the version that an uncompressed kernel's banner tells, such as "6.1.192"; None if it has no banner."""
    found = BANNER.search(data)
    return None if found is None else found[1].decode("ascii")


def vmlinux_image(
    data: bytes, *, name: str, entry: int | str | None = None, options: BootOptions | None = None
) -> Image:
    """Return the uncompressed kernel in the ELF64 file ``data``. Raises: ImageError."""
    from pykvm.boot.elf import elf_image

    options = options or BootOptions()
    options.check(("append", "initrd"), name, "Linux kernel")
    image = elf_image(data, name=name, mode=Mode.LONG, entry=entry)
    if not image.format.startswith("ELF64"):
        raise ImageError(f"{name}: is an {image.format} file: the 64-bit boot protocol starts 64-bit kernels only")
    version = linux_version(data) or "of an unknown version"
    # What a bzImage's header would say; an ELF file has none.
    header = _blank_header().answered({"initrd_addr_max": INITRD_MAX, "cmdline_size": MOST_COMMAND_LINE})
    protocol = LinuxBoot(header, options, is_64=True)
    return replace(image, format=f"Linux {version}, {image.format}", protocol=protocol)


def bzimage_image(
    data: bytes,
    *,
    name: str,
    is_64: bool | None = None,
    entry: int | str | None = None,
    options: BootOptions | None = None,
) -> Image:
    """Return the kernel in the bzImage ``data``, started at its 64-bit entry, or at its 32-bit one.

    ``is_64`` None takes the 64-bit entry if there is one. Raises: ImageError if it has not the one asked for, is
    truncated, or too old.
    """
    options = options or BootOptions()
    options.check(("append", "initrd"), name, "Linux kernel")
    header = read_header(data, name)
    _check_kernel(header, name)
    has_64 = header["version"] >= WITH_64_BIT_ENTRY and bool(XLoadFlags(header["xloadflags"]) & XLoadFlags.KERNEL_64)
    if is_64 and not has_64:
        raise ImageError(f"{name}: this kernel has no 64-bit entry: start it at its 32-bit one (--format linux32)")
    start_64 = has_64 if is_64 is None else is_64
    start = (header["setup_sects"] or DEFAULT_SETUP_SECTORS) * SECTOR + SECTOR
    if start >= len(data):
        raise ImageError(
            f"{name}: is truncated: its kernel begins at {start:#x}, and the file has {len(data):#x} bytes"
        )
    load = _load_address(header)
    # It unpacks itself into init_size bytes, which nothing else may be in.
    size = max(len(data) - start, header["init_size"] if header["version"] >= WITH_INIT_SIZE else 0)
    segment = Segment(Gpa(load), data[start:], size)
    first = choose_entry(name, entry, load + ENTRY_64 if start_64 else load, ())
    text = f"Linux {_version_of(data, header)}, bzImage, {64 if start_64 else 32}-bit entry"
    mode = Mode.LONG if start_64 else Mode.PROTECTED
    protocol = LinuxBoot(header, options, is_64=start_64)
    return Image(name, (segment,), first, mode, format=text, protocol=protocol)


class LinuxBoot:
    """The 64-bit boot protocol, or else the 32-bit one, for a kernel with ``header``. See ``BootProtocol``."""

    name = "the Linux boot protocol"
    irqchip = "kernel"
    memory = "64M"
    rom = b""

    def __init__(self, header: SetupHeader, options: BootOptions, *, is_64: bool) -> None:
        self._header = header
        self._options = options
        self._is_64 = is_64

    def start(self, image: Image, platform: Platform) -> CpuState:
        """See ``BootProtocol.start``. Raises: ImageError if there is no room, or the command line is too long."""
        tables = [range(layout.GDT, layout.PAGE_TABLES_END)] if self._is_64 else []
        room = Room(platform.memory, [*tables, *(range(segment.gpa, segment.end) for segment in image.segments)])
        answers = self._answers(image, room)
        entries = memory_map(platform.memory)
        params = room.put(boot_params(self._header.answered(answers), entries), "the zero page", (LOW,), PAGE_SIZE)
        width = 64 if self._is_64 else 32
        gdt = _boot_gdt(width)
        if self._is_64:
            state = long_mode(platform.reset, platform.memory, image.entry)
        else:
            state = flat_protected_mode(platform.reset, image.entry)
        state.sregs.gdt = gdt.write(platform.memory, room.put(gdt.encode(), "a GDT", (LOW,)))
        state.sregs.cs = code_segment(width, selector=CODE_SELECTOR)
        for register in ("ds", "es", "fs", "gs", "ss"):
            setattr(state.sregs, register, data_segment(selector=DATA_SELECTOR))
        state.regs.rsi = params
        return state

    def _answers(self, image: Image, room: Room) -> dict[str, int]:
        """Return what the loader fills in: where the command line and the initrd are."""
        line = self._options.append.encode()
        most = self._header["cmdline_size"] or MOST_COMMAND_LINE
        if len(line) > most:
            raise ImageError(f"{image.name}: the command line has {len(line)} bytes, and this kernel reads {most}")
        answers = {
            "type_of_loader": OTHER_LOADER,
            "loadflags": self._header["loadflags"] | LoadFlags.LOADED_HIGH.value,
            "cmd_line_ptr": room.put(line + b"\0", "the command line", (LOW,)),
        }
        if self._options.initrd:
            limit = (self._header["initrd_addr_max"] or INITRD_MAX) + 1
            answers["ramdisk_image"] = place_initrd(room, self._options.initrd, limit)
            answers["ramdisk_size"] = len(self._options.initrd)
        return answers


def place_initrd(room: Room, initrd: bytes, limit: int) -> Gpa:
    """Put ``initrd`` as high as it goes below ``limit``, out of the kernel's way. Raises: ImageError."""
    return room.put(initrd, "the initrd", (range(HIGH_MEMORY, limit),), PAGE_SIZE, highest=True)


def _boot_gdt(width: int) -> Gdt:
    gdt = Gdt()
    for segment in (code_segment(width), code_segment(width), data_segment()):  # 0x08 is not used
        gdt.add(segment)
    return gdt


def _check_kernel(header: SetupHeader, name: str) -> None:
    version = header["version"]
    if version < OLDEST:
        raise ImageError(
            f"{name}: speaks boot protocol {version >> 8}.{version & 0xFF:02}: a kernel from 2.4 on has {OLDEST >> 8}."
            f"{OLDEST & 0xFF:02} or more"
        )
    if not LoadFlags(header["loadflags"]) & LoadFlags.LOADED_HIGH:
        raise ImageError(f"{name}: is a zImage, which is loaded below 1 MiB: make it a bzImage")


def _load_address(header: SetupHeader) -> int:
    preferred = header["pref_address"] if header["version"] >= WITH_INIT_SIZE else 0
    return align_down(preferred) or header["code32_start"] or HIGH_MEMORY


def _version_of(data: bytes, header: SetupHeader) -> str:
    start = header["kernel_version"] + SECTOR
    text = data[start : start + 256].split(b"\0")[0].split(b" ")[0] if header["kernel_version"] else b""
    return text.decode("ascii") if text.isascii() and text.decode("ascii").isprintable() and text else "(unknown)"


def _blank_header() -> SetupHeader:
    blank = bytearray(HEADER_OFFSET + 0x80)
    blank[0x1FE:0x206] = b"\x55\xaa\xeb\x6bHdrS"
    blank[0x206:0x208] = (0x020F).to_bytes(2, "little")
    return read_header(bytes(blank), "")
