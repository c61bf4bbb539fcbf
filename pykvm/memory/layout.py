"""The guest-physical map: every fixed address, with its reason.

    0x0000_0000  IVT            real mode's interrupt vectors; the CPU looks for them here
    0x0000_0400  BDA            the BIOS data area, where real-mode programs expect it
    0x0000_1000  GDT            made by the host for protected and long mode
    0x0000_2000  IDT            left free for the guest's own
    0x0000_3000  TSS            made by the host, for the stack of ring 0
    0x0000_4000  stacks         of ring 0 on its way in from ring 3 up to 0x6000, the first one up to 0x7c00
    0x0000_7c00  BOOT_SECTOR    where a BIOS loads and starts one
    0x0000_8000  REAL_LOAD      real-mode guests
    0x0001_0000  PAGE_TABLES    made by the host for paged modes
    0x000b_8000  VGA_TEXT       the screen in text mode, a character and its colours in 2 bytes
    0x0010_0000  LOAD           protected-mode and long-mode guests: 1 MiB, as on every PC since the 286
    0xc000_0000  MMIO hole      RAM that does not fit below goes on at 4 GiB
    0xd000_0000  MMIO_SERIAL    the serial port's registers again, as memory
    0xfffb_c000  IDENTITY_MAP   hidden by KVM in the guest's address space on VT-x hosts
    0xfffb_d000  TSS_REGION     the same, three pages
    0xffff_fff0  RESET_VECTOR   the first instruction after reset

See: Intel SDM volume 3, section 9.1.4 (first instruction), section 20.1 (real mode). Leaves out addresses that a
device's owner chooses.
"""

from __future__ import annotations

from pykvm.units import GiB, Gpa, KiB

__all__ = [
    "BDA",
    "BOOT_SECTOR",
    "GDT",
    "IDENTITY_MAP",
    "IDT",
    "IVT",
    "KERNEL_STACK_TOP",
    "LOAD",
    "MMIO_HOLE_END",
    "MMIO_HOLE_START",
    "MMIO_SERIAL",
    "PAGE_TABLES",
    "PAGE_TABLES_END",
    "REAL_LOAD",
    "RESET_VECTOR",
    "STACK_TOP",
    "TSS",
    "TSS_REGION",
    "VGA_TEXT",
    "VGA_TEXT_SIZE",
]

IVT = Gpa(0x0000)
BDA = Gpa(0x0400)
GDT = Gpa(0x1000)
IDT = Gpa(0x2000)
TSS = Gpa(0x3000)
KERNEL_STACK_TOP = Gpa(0x6000)
STACK_TOP = Gpa(0x7C00)
BOOT_SECTOR = Gpa(0x7C00)
REAL_LOAD = Gpa(0x8000)
PAGE_TABLES = Gpa(0x1_0000)
PAGE_TABLES_END = Gpa(0x8_0000)  # 112 tables: enough for 4 KiB pages on 200 MiB
VGA_TEXT = Gpa(0xB_8000)
VGA_TEXT_SIZE = 32 * KiB
LOAD = Gpa(0x10_0000)

MMIO_HOLE_START = Gpa(3 * GiB)
MMIO_HOLE_END = Gpa(4 * GiB)
MMIO_SERIAL = Gpa(0xD000_0000)

# VT-x hosts without "unrestricted guest" need four pages nobody else uses (api.rst, KVM_SET_TSS_ADDR and
# KVM_SET_IDENTITY_MAP_ADDR); just below a 256 KiB BIOS is where every VMM puts them.
IDENTITY_MAP = Gpa(0xFFFB_C000)
TSS_REGION = Gpa(0xFFFB_D000)

RESET_VECTOR = Gpa(0xFFFF_FFF0)
