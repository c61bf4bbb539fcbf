"""Linux's boot_params, the "zero page": a page in which a loader tells the kernel what it was loaded with.

    0x000  screen_info       what is on the screen
    0x070  acpi_rsdp_addr    where the ACPI tables begin
    0x1e8  e820_entries      how many there are in the table
    0x1f1  setup_header      the kernel's own header, with the loader's answers in it (see SetupHeader)
    0x2d0  e820_table        at most 128 entries of 20 bytes

See: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header", and zero-page.rst. Leaves out EFI, EDD and setup
data.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pykvm.boot.memorymap import E820Entry
from pykvm.errors import ImageError
from pykvm.memory import platform
from pykvm.units import PAGE_SIZE

__all__ = ["HEADER_OFFSET", "OTHER_LOADER", "LoadFlags", "SetupHeader", "XLoadFlags", "boot_params", "read_header"]

HEADER_OFFSET = 0x1F1
HEADER_END_OF_JUMP = 0x202  # the byte before says, from here, how long the header is
BOOT_FLAG = 0xAA55
MAGIC = b"HdrS"
E820_COUNT, E820_TABLE, E820_MOST = 0x1E8, 0x2D0, 128
ACPI_RSDP = 0x70
OTHER_LOADER = 0xFF  # type_of_loader of those that have no number of their own
TEXT_COLUMNS, TEXT_ROWS = 80, 25
VGA_COLOUR = 1  # orig_video_isVGA
CHARACTER_HEIGHT = 16

# The fields, by boot.rst's names, from 0x1f1 on without gaps.
_FIELDS = {
    "setup_sects": "B",
    "root_flags": "H",
    "syssize": "I",
    "ram_size": "H",
    "vid_mode": "H",
    "root_dev": "H",
    "boot_flag": "H",
    "jump": "H",
    "header": "4s",
    "version": "H",
    "realmode_swtch": "I",
    "start_sys_seg": "H",
    "kernel_version": "H",
    "type_of_loader": "B",
    "loadflags": "B",
    "setup_move_size": "H",
    "code32_start": "I",
    "ramdisk_image": "I",
    "ramdisk_size": "I",
    "bootsect_kludge": "I",
    "heap_end_ptr": "H",
    "ext_loader_ver": "B",
    "ext_loader_type": "B",
    "cmd_line_ptr": "I",
    "initrd_addr_max": "I",
    "kernel_alignment": "I",
    "relocatable_kernel": "B",
    "min_alignment": "B",
    "xloadflags": "H",
    "cmdline_size": "I",
    "hardware_subarch": "I",
    "hardware_subarch_data": "Q",
    "payload_offset": "I",
    "payload_length": "I",
    "setup_data": "Q",
    "pref_address": "Q",
    "init_size": "I",
    "handover_offset": "I",
}
_LAYOUT = struct.Struct("<" + "".join(_FIELDS.values()))


class LoadFlags(enum.Flag, boundary=enum.KEEP):
    """loadflags.

        7         6          5        4..2    1       0
    +--------+---------+------------+------+------+-----------+
    |CAN_USE_|KEEP_    |QUIET       |  0   |KASLR |LOADED_HIGH|
    |HEAP    |SEGMENTS |            |      |      |           |
    +--------+---------+------------+------+------+-----------+
    """

    LOADED_HIGH = 1 << 0  # the kernel goes to 1 MiB: a bzImage


class XLoadFlags(enum.Flag, boundary=enum.KEEP):
    """xloadflags, from boot protocol 2.12 on.

      15..5        4..2          1            0
    +-------+---------------+---------+-------------+
    |       | EFI           |ABOVE_4G |  KERNEL_64  |
    +-------+---------------+---------+-------------+
    """

    KERNEL_64 = 1 << 0  # it has a 64-bit entry, 0x200 after its beginning
    CAN_BE_LOADED_ABOVE_4G = 1 << 1


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The setup header by its fields' names; ``values`` of those that this version of the protocol lacks are 0."""

    values: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def answered(self, answers: Mapping[str, int]) -> SetupHeader:
        """Return the header with the loader's ``answers`` in it."""
        return SetupHeader({**self.values, **answers})

    def encode(self) -> bytes:
        """Return it as it is in the zero page, from 0x1f1 on."""
        return _LAYOUT.pack(*(MAGIC if name == "header" else self.values[name] for name in _FIELDS))


def read_header(data: bytes, name: str) -> SetupHeader:
    """Return the setup header of the bzImage ``data``. Raises: ImageError if it has none, or a very old one."""
    size = HEADER_END_OF_JUMP + data[HEADER_END_OF_JUMP - 1] - HEADER_OFFSET if len(data) > HEADER_END_OF_JUMP else 0
    header = data[HEADER_OFFSET : HEADER_OFFSET + min(size, _LAYOUT.size)].ljust(_LAYOUT.size, b"\0")
    values = dict(zip(_FIELDS, _LAYOUT.unpack(header), strict=True))
    if values["boot_flag"] != BOOT_FLAG or values.pop("header") != MAGIC:
        raise ImageError(f"{name}: is no bzImage: 55 aa at 0x1fe and HdrS at 0x202 are missing")
    return SetupHeader(values | {"header": 0})


def boot_params(header: SetupHeader, entries: Iterable[E820Entry]) -> bytes:
    """Return the zero page, 4096 bytes: ``header`` with the loader's answers, and the memory map."""
    page = bytearray(PAGE_SIZE)
    _fill_screen_info(page)
    struct.pack_into("<Q", page, ACPI_RSDP, platform.RSDP)
    page[HEADER_OFFSET : HEADER_OFFSET + _LAYOUT.size] = header.encode()
    table = [struct.pack("<QQI", entry.base, entry.size, entry.type.value) for entry in entries][:E820_MOST]
    page[E820_COUNT] = len(table)
    page[E820_TABLE : E820_TABLE + 20 * len(table)] = b"".join(table)
    return bytes(page)


def _fill_screen_info(page: bytearray) -> None:
    # orig_x, orig_y, ext_mem_k; page, mode, columns; unused, ega_bx, unused, lines, isVGA, points.
    struct.pack_into(
        "<BBHHBBHHHBBH", page, 0, 0, 0, 0, 0, 3, TEXT_COLUMNS, 0, 0, 0, TEXT_ROWS, VGA_COLOUR, CHARACTER_HEIGHT
    )
