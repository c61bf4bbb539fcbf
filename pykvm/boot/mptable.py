"""An MP table: how a kernel that knows no ACPI finds the CPUs and learns where the interrupt lines end.

    0xf0000    floating pointer   16 bytes; a kernel searches 0xf0000-0xfffff for "_MP_", 16 bytes at a time
    0xf0010    configuration      44 bytes; then 20 for each CPU, and 8 for each bus, I/O APIC and interrupt line

Why there: ``pykvm.memory.platform``. See: MultiProcessor specification 1.4 (Intel 242016), chapter 4. Leaves out the
extended entries, PCI, and I/O APIC pin 0, to which no PIC is wired here.
"""

from __future__ import annotations

import enum
import functools
import struct

from pykvm.errors import ConfigurationError
from pykvm.memory import platform
from pykvm.units import Gpa

__all__ = ["InterruptType", "IntiFlags", "check_cpus", "checksum", "mp_table"]

SPECIFICATION = 4  # of 1.4
POINTER_SIZE = 16
OEM, PRODUCT = b"PYKVM   ", b"PYKVM GUEST "

PROCESSOR, BUS, IO_APIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)  # types of entries
ENABLED = 1 << 0  # in the flags of a processor, and of an I/O APIC
BOOT_PROCESSOR = 1 << 1
LOCAL_APIC_VERSION, IO_APIC_VERSION = 0x14, 0x11  # what the APICs' version registers say
SIGNATURE = 0x600  # of a CPU: family 6; what it really is CPUID says
FEATURES = 1 << 0 | 1 << 9  # CPUID leaf 1 EDX: an FPU, and an APIC
ISA_BUS = 0
EVERY_APIC = 0xFF


class InterruptType(enum.Enum):
    """Who gives the vector of an interrupt."""

    INT = 0  # the I/O APIC's table
    NMI = 1
    SMI = 2
    EXT_INT = 3  # the PIC


class IntiFlags(enum.Flag):
    """Polarity and trigger mode of an interrupt line, here and in ACPI's MADT.

     15..4   3  2   1  0
    +------+------+------+
    |  0   |  EL  |  PO  |    0: as its bus has it; on ISA, by edge and active high
    +------+------+------+
    """

    AS_THE_BUS = 0
    ACTIVE_HIGH = 0b01
    ACTIVE_LOW = 0b11
    EDGE = 0b01_00
    LEVEL = 0b11_00


@functools.cache
def mp_table(cpus: int) -> tuple[tuple[Gpa, bytes], ...]:
    """Return what to write where for a machine with ``cpus`` CPUs, whose APIC ids are 0 to cpus - 1.

    Raises: ConfigurationError if ``cpus`` is not 1 to 255.
    """
    check_cpus(cpus)
    at = Gpa(platform.MP_TABLE + POINTER_SIZE)
    return (platform.MP_TABLE, floating_pointer(at)), (at, configuration(cpus))


def check_cpus(cpus: int) -> None:
    """Raise ConfigurationError if a table cannot describe ``cpus`` CPUs."""
    if not 1 <= cpus <= platform.MAX_CPUS:
        raise ConfigurationError(f"firmware tables cannot describe {cpus} CPUs: have 1 to {platform.MAX_CPUS}")


def checksum(data: bytes) -> int:
    """Return the byte that makes the sum of ``data`` and itself 0, modulo 256."""
    return -sum(data) & 0xFF


def floating_pointer(configuration: Gpa) -> bytes:
    """Return the floating pointer structure; without feature bits: virtual wire mode, no IMCR."""
    layout = struct.Struct("<4sIBBB5x")
    before = layout.pack(b"_MP_", configuration, POINTER_SIZE // 16, SPECIFICATION, 0)
    return layout.pack(b"_MP_", configuration, POINTER_SIZE // 16, SPECIFICATION, checksum(before))


def configuration(cpus: int) -> bytes:
    """Return the configuration table."""
    all_entries = entries(cpus)
    body = b"".join(all_entries)
    layout = struct.Struct("<4sHBB8s12sIHHIHBx")

    def header(check: int) -> bytes:
        size = layout.size + len(body)
        oem_table, oem_size, extended, extended_check = 0, 0, 0, 0
        return layout.pack(
            *(b"PCMP", size, SPECIFICATION, check, OEM, PRODUCT, oem_table, oem_size),
            *(len(all_entries), platform.LOCAL_APIC, extended, extended_check),
        )

    return header(checksum(header(0) + body)) + body


def entries(cpus: int) -> list[bytes]:
    """Return the entries, in the order of their types, as the specification demands it."""
    io_apic = struct.pack("<BBBBI", IO_APIC, platform.IO_APIC_ID, IO_APIC_VERSION, ENABLED, platform.IO_APIC)
    return [
        *(processor(apic_id) for apic_id in range(cpus)),
        struct.pack("<BB6s", BUS, ISA_BUS, b"ISA   "),
        io_apic,
        *(io_interrupt(irq) for irq in range(16) if irq != 2),  # IRQ 2 is the PICs' cascade: no line
        local_interrupt(InterruptType.EXT_INT, lint=0),
        local_interrupt(InterruptType.NMI, lint=1),
    ]


def processor(apic_id: int) -> bytes:
    """Return the entry of a CPU; the first one is the boot processor."""
    flags = ENABLED | (BOOT_PROCESSOR if apic_id == 0 else 0)
    return struct.pack("<BBBBII8x", PROCESSOR, apic_id, LOCAL_APIC_VERSION, flags, SIGNATURE, FEATURES)


def io_interrupt(irq: int) -> bytes:
    """Return the entry that says at which pin of the I/O APIC the ISA interrupt ``irq`` comes in, and how."""
    flags = IntiFlags.LEVEL | IntiFlags.ACTIVE_HIGH if irq == platform.SCI_IRQ else IntiFlags.AS_THE_BUS
    pin = platform.TIMER_PIN if irq == 0 else irq
    return interrupt(IO_INTERRUPT, InterruptType.INT, flags, irq, platform.IO_APIC_ID, pin)


def local_interrupt(type: InterruptType, lint: int) -> bytes:
    """Return the entry that says what comes in at pin ``lint`` of every local APIC."""
    return interrupt(LOCAL_INTERRUPT, type, IntiFlags.AS_THE_BUS, 0, EVERY_APIC, lint)


def interrupt(entry: int, type: InterruptType, flags: IntiFlags, irq: int, apic: int, pin: int) -> bytes:
    """Return an entry of either kind: they have one layout."""
    return struct.pack("<BBHBBBB", entry, type.value, flags.value, ISA_BUS, irq, apic, pin)
