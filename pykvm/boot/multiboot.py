r"""Multiboot 1: the protocol by which GRUB starts small kernels, in 32-bit protected mode.

A kernel is any file with this header in its first 8 KiB, 4-byte aligned; with ADDRESSES set it need not be an ELF:

      0  magic 0x1badb002        12  header_addr    \
      4  flags                   16  load_addr       | ADDRESSES: where what part of
      8  checksum: the sum of    20  load_end_addr   | the file goes, and the entry
         these three is 0        24  bss_end_addr    |
                                 28  entry_addr     /
                                 32  mode_type, width, height, depth: VIDEO

It starts with EAX = 0x2badb002, EBX = the address of an information structure, flat 32-bit segments, paging and
interrupts off. See: Multiboot Specification 0.6.96, sections 3.1 (header), 3.2 (machine state), 3.3 (information).
Leaves out symbols for the kernel, drives, APM and VBE: their bits in the information are clear.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, fields, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pykvm.boot.image import Image, Segment, choose_entry
from pykvm.boot.memorymap import HIGH_MEMORY, E820Entry, E820Type, Room, memory_map
from pykvm.errors import ImageError
from pykvm.memory import layout
from pykvm.units import PAGE_SIZE, Gpa, KiB
from pykvm.x86 import Mode, flat_protected_mode

if TYPE_CHECKING:
    from pykvm.boot.protocol import BootOptions, Platform
    from pykvm.x86 import CpuState

__all__ = ["LOADER_NAME", "Header", "HeaderFlags", "InfoFlags", "Multiboot", "find_header", "multiboot_image"]

HEADER_MAGIC = 0x1BADB002
BOOT_MAGIC = 0x2BADB002  # EAX at entry
SEARCHED = 8 * KiB  # the header is in here, as a whole
LOADER_NAME = b"pykvm"

FRAMEBUFFER_TEXT = 2  # framebuffer_type of the information
TEXT_COLUMNS, TEXT_ROWS = 80, 25

# Low memory just below the BIOS's, as GRUB does it: small kernels use the first bytes after their own as a heap.
INFORMATION = range(0x9_0000, 0x9_F000)
ABOVE = range(HIGH_MEMORY, layout.MMIO_HOLE_START)


class HeaderFlags(enum.Flag, boundary=enum.KEEP):
    """What the kernel wants. The low 16 bits must be known, or else it cannot be started; the others are offers.

     31..17     16     15..3     2       1        0
    +------+---------+-------+-------+--------+---------+
    |      |ADDRESSES|   0   | VIDEO | MEMORY |  PAGES  |
    +------+---------+-------+-------+--------+---------+
    """

    PAGES = 1 << 0  # modules at page borders
    MEMORY = 1 << 1  # mem_lower and mem_upper, and the memory map if there is one
    VIDEO = 1 << 2  # the fields of the header about the screen count
    ADDRESSES = 1 << 16  # load by the header's addresses, whatever the file is


MUST_KNOW = 0xFFFF


class InfoFlags(enum.Flag):
    """Which fields of the information structure are filled in.

      12     11   10    9       8      7      6     5     4     3      2        1       0
    +------+-----+---+------+------+-------+-----+-----+-----+------+-------+--------+------+
    |SCREEN| VBE |APM|LOADER|CONFIG|DRIVES | MAP | ELF |A.OUT|MODULE|CMDLINE|BOOT_DEV|MEMORY|
    +------+-----+---+------+------+-------+-----+-----+-----+------+-------+--------+------+
    """

    MEMORY = 1 << 0
    CMDLINE = 1 << 2
    MODULES = 1 << 3
    MEMORY_MAP = 1 << 6
    LOADER = 1 << 9
    FRAMEBUFFER = 1 << 12


@dataclass(frozen=True, slots=True)
class Header:
    """The header at ``offset`` of the file; addresses are physical, and 0 unless ADDRESSES is set."""

    offset: int
    flags: HeaderFlags
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0
    mode_type: int = 0
    width: int = 0
    height: int = 0
    depth: int = 0


_FIELDS = struct.Struct("<9I")  # from header_addr on


def find_header(data: bytes) -> Header | None:
    """Return the header of ``data``, the first whose checksum is right; None if there is none."""
    magic = HEADER_MAGIC.to_bytes(4, "little")
    end = min(len(data), SEARCHED)
    offset = data.find(magic, 0, end)
    while offset >= 0:
        if offset % 4 == 0 and offset + 12 <= end:
            flags, checksum = struct.unpack_from("<II", data, offset + 4)
            if (HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF == 0:
                return _read_header(data, offset, flags)
        offset = data.find(magic, offset + 1, end)
    return None


def multiboot_image(
    data: bytes, *, name: str, entry: int | str | None = None, options: BootOptions | None = None
) -> Image:
    """Return the kernel in ``data``: an ELF file, or one with addresses in its header.

    ``entry`` takes the place of the file's own. Raises: ImageError if there is no header, or it wants what is unknown.
    """
    from pykvm.boot.elf import ELF_MAGIC, elf_image
    from pykvm.boot.protocol import BootOptions

    options = options or BootOptions()
    options.check(("append", "modules"), name, "multiboot kernel")
    header = find_header(data)
    if header is None:
        raise ImageError(f"{name}: has no multiboot header in its first 8 KiB: a magic number and a checksum that fits")
    unknown = header.flags.value & MUST_KNOW & ~(HeaderFlags.PAGES | HeaderFlags.MEMORY | HeaderFlags.VIDEO).value
    if unknown:
        raise ImageError(f"{name}: its multiboot header wants what nobody knows: bits {unknown:#x} of the flags")
    if header.flags & HeaderFlags.ADDRESSES:
        image = _by_addresses(data, header, name, entry)
    elif data.startswith(ELF_MAGIC):
        image = elf_image(data, name=name, mode=Mode.PROTECTED, entry=entry)
    else:
        raise ImageError(f"{name}: is no ELF file, and its multiboot header has no addresses (bit 16 of the flags)")
    return replace(image, format=f"multiboot, {image.format}", protocol=Multiboot(header, options))


class Multiboot:
    """The protocol, for a kernel with ``header``. See ``BootProtocol``."""

    name = "multiboot"
    irqchip = "none"
    memory = "16M"
    rom = b""

    def __init__(self, header: Header, options: BootOptions) -> None:
        self._header = header
        self._options = options

    def start(self, image: Image, platform: Platform) -> CpuState:
        """See ``BootProtocol.start``. Raises: ImageError if there is no room for modules or the information."""
        room = Room(platform.memory, [range(segment.gpa, segment.end) for segment in image.segments])
        information = room.put(self._information(image, platform, room), "the information structure", _LOW_FIRST)
        state = flat_protected_mode(platform.reset, image.entry)
        state.regs.rax, state.regs.rbx = BOOT_MAGIC, information
        return state

    # ---- the information structure ----

    def _information(self, image: Image, platform: Platform, room: Room) -> bytes:
        flags = InfoFlags.MEMORY | InfoFlags.CMDLINE | InfoFlags.MEMORY_MAP | InfoFlags.LOADER
        entries = memory_map(platform.memory)
        table = b"".join(map(_map_entry, entries))
        modules = self._modules(room)
        if modules:
            flags |= InfoFlags.MODULES
        # GRUB's first word is the kernel's name, and kernels skip it.
        words = [PurePosixPath(image.name).name, self._options.append]
        info = _Information(
            mem_lower=_ram_from(entries, 0) // KiB,
            mem_upper=_ram_from(entries, HIGH_MEMORY) // KiB,
            cmdline=_put_text(room, " ".join(filter(None, words)), "the command line"),
            mods_count=len(modules) // _MODULE.size,
            mods_addr=room.put(modules, "the list of modules", _LOW_FIRST) if modules else 0,
            mmap_length=len(table),
            mmap_addr=room.put(table, "the memory map", _LOW_FIRST),
            boot_loader_name=room.put(LOADER_NAME + b"\0", "the loader's name", _LOW_FIRST),
        )
        if self._header.flags & HeaderFlags.VIDEO:
            flags |= InfoFlags.FRAMEBUFFER
            info = _with_text_screen(info)
        return replace(info, flags=flags.value).encode()

    def _modules(self, room: Room) -> bytes:
        records = b""
        for module in self._options.modules:
            start = room.put(module.data, f"the module {module.name}", (ABOVE,), PAGE_SIZE)
            words = [module.name, module.arguments]
            text = _put_text(room, " ".join(filter(None, words)), f"the arguments of {module.name}")
            records += _MODULE.pack(start, start + len(module.data), text, 0)
        return records


_LOW_FIRST = (INFORMATION, ABOVE)
_MODULE = struct.Struct("<IIII")  # mod_start, mod_end, string, reserved


@dataclass(frozen=True, slots=True)
class _Information:
    """The information structure, field for field in its order; each has 4 bytes but for those in ``_WIDTHS``."""

    flags: int = 0
    mem_lower: int = 0
    mem_upper: int = 0
    boot_device: int = 0
    cmdline: int = 0
    mods_count: int = 0
    mods_addr: int = 0
    syms_0: int = 0
    syms_1: int = 0
    syms_2: int = 0
    syms_3: int = 0
    mmap_length: int = 0
    mmap_addr: int = 0
    drives_length: int = 0
    drives_addr: int = 0
    config_table: int = 0
    boot_loader_name: int = 0
    apm_table: int = 0
    vbe_control_info: int = 0
    vbe_mode_info: int = 0
    vbe_mode: int = 0
    vbe_interface_seg: int = 0
    vbe_interface_off: int = 0
    vbe_interface_len: int = 0
    framebuffer_addr: int = 0
    framebuffer_pitch: int = 0
    framebuffer_width: int = 0
    framebuffer_height: int = 0
    framebuffer_bpp: int = 0
    framebuffer_type: int = 0

    def encode(self) -> bytes:
        return b"".join(
            int(getattr(self, field.name)).to_bytes(_WIDTHS.get(field.name, 4), "little") for field in fields(self)
        )


_WIDTHS = {
    "vbe_mode": 2,
    "vbe_interface_seg": 2,
    "vbe_interface_off": 2,
    "vbe_interface_len": 2,
    "framebuffer_addr": 8,
    "framebuffer_bpp": 1,
    "framebuffer_type": 1,
}


def _with_text_screen(info: _Information) -> _Information:
    # Whatever mode the kernel asked for: the specification lets a loader choose another one, and says which it is.
    return replace(
        info,
        framebuffer_addr=layout.VGA_TEXT,
        framebuffer_pitch=2 * TEXT_COLUMNS,
        framebuffer_width=TEXT_COLUMNS,
        framebuffer_height=TEXT_ROWS,
        framebuffer_bpp=16,
        framebuffer_type=FRAMEBUFFER_TEXT,
    )


def _put_text(room: Room, text: str, what: str) -> Gpa:
    return room.put(text.encode() + b"\0", what, _LOW_FIRST, align=4)


def _map_entry(entry: E820Entry) -> bytes:
    # Its size does not count itself.
    return struct.pack("<IQQI", 20, entry.base, entry.size, entry.type.value)


def _ram_from(entries: tuple[E820Entry, ...], base: int) -> int:
    """Return how many bytes of RAM there are from ``base`` on without a gap."""
    return next((entry.size for entry in entries if entry.base == base and entry.type is E820Type.RAM), 0)


# ---- the file ----


def _read_header(data: bytes, offset: int, flags: int) -> Header:
    header = Header(offset, HeaderFlags(flags))
    if not header.flags & (HeaderFlags.ADDRESSES | HeaderFlags.VIDEO):
        return header
    wanted = data[offset + 12 : offset + 12 + _FIELDS.size].ljust(_FIELDS.size, b"\0")
    return Header(offset, header.flags, *_FIELDS.unpack(wanted))


def _by_addresses(data: bytes, header: Header, name: str, entry: int | str | None) -> Image:
    """Return the image that the header's addresses make of the file, as it was for a.out kernels."""
    start = header.offset - (header.header_addr - header.load_addr)
    if header.load_addr > header.header_addr or start < 0:
        raise ImageError(
            f"{name}: its multiboot header is at {header.header_addr:#x} in memory and at {header.offset:#x} in the "
            f"file: then memory from {header.load_addr:#x} on begins before the file"
        )
    length = header.load_end_addr - header.load_addr if header.load_end_addr else len(data) - start
    if not 0 < length <= len(data) - start:
        raise ImageError(
            f"{name}: its multiboot header wants {length:#x} bytes from {start:#x} on, and the file has {len(data):#x}"
        )
    size = max(length, header.bss_end_addr - header.load_addr)
    segment = Segment(Gpa(header.load_addr), data[start : start + length], size)
    first = choose_entry(name, entry, header.entry_addr, ())
    return Image(name, (segment,), first, Mode.PROTECTED, format="by addresses")
