r"""ACPI tables, as a PC's firmware leaves them: which hardware is there, and how to power the machine off.

    0xe0000    RSDP     what a kernel searches 0xe0000-0xfffff for, 16 bytes at a time: "RSD PTR "
    0xe0040    FACS     shared with the guest, which puts there where to go on after S3; so it needs RAM
    0xe0080    DSDT     byte code: SLP_TYP of S0, S3 and S5
    and then,  FADT     the fixed hardware: power management ports, PM timer, reset register
    16-byte    MADT     CPUs, I/O APIC, and where interrupt lines end
    aligned,   HPET     only if the machine has one
    up to      RSDT     where FADT, MADT and HPET are, in 32 bits
    0xe7fff    XSDT     the same in 64 bits

Why there: ``pykvm.memory.platform``. See: ACPI specification 4.0, section 5.2; IA-PC HPET specification 1.0a, section
3.2.4. Leaves out everything that would need AML that runs (devices, PCI), and the FACS's 64-bit waking vector: its
version is 0, which has none, so that a kernel gives the 32-bit one, which is entered in real mode.
"""

from __future__ import annotations

import enum
import functools
import struct

from pykvm.boot import aml
from pykvm.boot.mptable import IntiFlags, check_cpus, checksum
from pykvm.memory import GuestMemory, platform
from pykvm.units import Gpa, align_up

__all__ = ["BootArchitecture", "FadtFlags", "acpi_tables", "wake_vector"]

OEM = b"PYKVM "
OEM_TABLE = b"PYKVMPC "
CREATOR = b"PYKV"
HEADER = struct.Struct("<4sIBB6s8sI4sI")  # signature, length, revision, checksum; who made it, and which
CHECKSUM = 9  # where it is in a header
ALIGNMENT = 16

FACS_SIZE = 64
WAKING_VECTOR = 12  # where it is in the FACS

DESKTOP = 1  # preferred power management profile
NO_C2, NO_C3 = 101, 1001  # us of latency; more than 100 and 1000 say that there is no such state
SYSTEM_MEMORY, SYSTEM_IO = 0, 1  # address spaces
ACCESS_SIZES = {8: 1, 16: 2, 32: 3, 64: 4}  # bits, and how a generic address says it
EVERY_PROCESSOR = 0xFF
LINT1 = 1


class FadtFlags(enum.Flag):
    """Fixed feature flags: those that are set here.

    Some say something by being 0: the power button (4) and the RTC's wake-up (6) are fixed features, PM_TMR has 24
    bits (8), and there is fixed hardware (20).

      31..11      10       9..6    5     4..3     2      1    0
    +--------+----------+------+------+-------+-------+----+------+
    |   0    |RESET_SUP |  0   |SLPBTN|   0   |PROC_C1| 0  |WBINVD|
    +--------+----------+------+------+-------+-------+----+------+
    """

    WBINVD = 1 << 0  # it works
    PROC_C1 = 1 << 2  # so does HLT, on every CPU
    SLP_BUTTON = 1 << 5  # there is no sleep button among the fixed features
    RESET_REG_SUP = 1 << 10


class BootArchitecture(enum.Flag):
    """IA-PC boot architecture flags: what a kernel may expect without looking.

     15..2    1     0
    +-----+------+------+
    |  0  | 8042 |LEGACY|
    +-----+------+------+
    """

    LEGACY_DEVICES = 1 << 0  # on an ISA bus: serial ports and their like
    HAS_8042 = 1 << 1


# The FADT's fields after its header, by the specification's names, in their order. GAS: a generic address, 12 bytes.
GAS = "12s"
FADT_FIELDS = (
    *(("FIRMWARE_CTRL", "I"), ("DSDT", "I"), ("reserved1", "B"), ("PREFERRED_PM_PROFILE", "B"), ("SCI_INT", "H")),
    *(("SMI_CMD", "I"), ("ACPI_ENABLE", "B"), ("ACPI_DISABLE", "B"), ("S4BIOS_REQ", "B"), ("PSTATE_CNT", "B")),
    *(("PM1A_EVT_BLK", "I"), ("PM1B_EVT_BLK", "I"), ("PM1A_CNT_BLK", "I"), ("PM1B_CNT_BLK", "I")),
    *(("PM2_CNT_BLK", "I"), ("PM_TMR_BLK", "I"), ("GPE0_BLK", "I"), ("GPE1_BLK", "I")),
    *(("PM1_EVT_LEN", "B"), ("PM1_CNT_LEN", "B"), ("PM2_CNT_LEN", "B"), ("PM_TMR_LEN", "B")),
    *(("GPE0_BLK_LEN", "B"), ("GPE1_BLK_LEN", "B"), ("GPE1_BASE", "B"), ("CST_CNT", "B")),
    *(("P_LVL2_LAT", "H"), ("P_LVL3_LAT", "H"), ("FLUSH_SIZE", "H"), ("FLUSH_STRIDE", "H")),
    *(("DUTY_OFFSET", "B"), ("DUTY_WIDTH", "B"), ("DAY_ALRM", "B"), ("MON_ALRM", "B"), ("CENTURY", "B")),
    *(("IAPC_BOOT_ARCH", "H"), ("reserved2", "B"), ("FLAGS", "I"), ("RESET_REG", GAS), ("RESET_VALUE", "B")),
    *(("reserved3", "3s"), ("X_FIRMWARE_CTRL", "Q"), ("X_DSDT", "Q"), ("X_PM1A_EVT_BLK", GAS)),
    *(("X_PM1B_EVT_BLK", GAS), ("X_PM1A_CNT_BLK", GAS), ("X_PM1B_CNT_BLK", GAS), ("X_PM2_CNT_BLK", GAS)),
    *(("X_PM_TMR_BLK", GAS), ("X_GPE0_BLK", GAS), ("X_GPE1_BLK", GAS)),
)


@functools.cache
def acpi_tables(cpus: int, hpet: int | None = None) -> tuple[tuple[Gpa, bytes], ...]:
    """Return what to write where for a machine with ``cpus`` CPUs, whose APIC ids are 0 to cpus - 1.

    ``hpet`` is the low 32 bits of the HPET's capabilities register, or None if the machine has none.

    Raises: ConfigurationError if ``cpus`` is not 1 to 255.
    """
    check_cpus(cpus)
    placed = [(platform.FACS, facs())]
    dsdt_at = place(placed, dsdt())
    described = [place(placed, fadt(dsdt_at)), place(placed, madt(cpus))]
    if hpet is not None:
        described.append(place(placed, hpet_table(hpet)))
    rsdt = place(placed, table(b"RSDT", 1, struct.pack(f"<{len(described)}I", *described)))
    xsdt = place(placed, table(b"XSDT", 1, struct.pack(f"<{len(described)}Q", *described)))
    return (platform.RSDP, rsdp(rsdt, xsdt)), *placed


def wake_vector(memory: GuestMemory) -> int:
    """Return where the guest wants to go on after S3: what it wrote into the FACS, or 0 if nothing.

    It is the guest-physical address of real-mode code: CS is the address / 16, IP the low four bits (ACPI
    specification 4.0, section 5.2.10). The guest can have written any 32 bits. Raises: GuestMemoryError, if the FACS
    is not in ``memory``.
    """
    return memory.read_u32(platform.FACS + WAKING_VECTOR)


# ---- finding ----


def place(placed: list[tuple[Gpa, bytes]], data: bytes) -> Gpa:
    """Append ``data`` to ``placed``, behind the last one, and return where that is."""
    before, content = placed[-1]
    at = Gpa(align_up(before + len(content), ALIGNMENT))
    placed.append((at, data))
    return at


def rsdp(rsdt: Gpa, xsdt: Gpa) -> bytes:
    """Return the root pointer, of revision 2. It has two checksums: of its first 20 bytes, and of all 36."""
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, OEM, 2, rsdt)
    first = first[:8] + bytes((checksum(first),)) + first[9:]
    second = first + struct.pack("<IQB3x", 36, xsdt, 0)
    return second[:32] + bytes((checksum(second),)) + second[33:]


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Return a table: the header that all have, with its checksum, and ``body``."""
    size = HEADER.size + len(body)
    data = HEADER.pack(signature, size, revision, 0, OEM, OEM_TABLE, 1, CREATOR, 1) + body
    return data[:CHECKSUM] + bytes((checksum(data),)) + data[CHECKSUM + 1 :]


# ---- the tables ----


def facs() -> bytes:
    """Return the FACS, which has no checksum, for the guest writes into it."""
    hardware_signature = waking_vector = global_lock = flags = x_waking_vector = version = 0
    numbers = (hardware_signature, waking_vector, global_lock, flags, x_waking_vector, version)
    return struct.pack("<4sIIIIIQB31x", b"FACS", FACS_SIZE, *numbers)


def dsdt() -> bytes:
    r"""Return the DSDT. \_Sx is a package: SLP_TYP for PM1a_CNT, the same for PM1b_CNT, and two reserved."""

    def sleep_state(name: str, slp_typ: int) -> bytes:
        return aml.name(name, aml.package(*map(aml.integer, (slp_typ, slp_typ, 0, 0))))

    states = (("_S0", platform.SLP_TYP_S0), ("_S3", platform.SLP_TYP_S3), ("_S5", platform.SLP_TYP_S5))
    return table(b"DSDT", 2, b"".join(sleep_state(name, slp_typ) for name, slp_typ in states))


def fadt(dsdt_at: Gpa) -> bytes:
    """Return the FADT; fields that are not named are 0. Only one of the FACS's two addresses may be given."""
    fields: dict[str, int | bytes] = {
        "FIRMWARE_CTRL": platform.FACS,
        "DSDT": dsdt_at,
        "PREFERRED_PM_PROFILE": DESKTOP,
        "SCI_INT": platform.SCI_IRQ,
        "SMI_CMD": platform.SMI_COMMAND,
        "ACPI_ENABLE": platform.ACPI_ENABLE,
        "ACPI_DISABLE": platform.ACPI_DISABLE,
        "PM1A_EVT_BLK": platform.PM1_EVENT,
        "PM1A_CNT_BLK": platform.PM1_CONTROL,
        "PM_TMR_BLK": platform.PM_TIMER,
        "PM1_EVT_LEN": 4,
        "PM1_CNT_LEN": 2,
        "PM_TMR_LEN": 4,
        "P_LVL2_LAT": NO_C2,
        "P_LVL3_LAT": NO_C3,
        "CENTURY": platform.CMOS_CENTURY,
        "IAPC_BOOT_ARCH": (BootArchitecture.LEGACY_DEVICES | BootArchitecture.HAS_8042).value,
        "FLAGS": sum(flag.value for flag in FadtFlags),
        "RESET_REG": generic_address(SYSTEM_IO, 8, platform.RESET_CONTROL, access=8),
        "RESET_VALUE": platform.RESET_VALUE,
        "X_DSDT": dsdt_at,
        "X_PM1A_EVT_BLK": generic_address(SYSTEM_IO, 32, platform.PM1_EVENT, access=16),
        "X_PM1A_CNT_BLK": generic_address(SYSTEM_IO, 16, platform.PM1_CONTROL, access=16),
        "X_PM_TMR_BLK": generic_address(SYSTEM_IO, 32, platform.PM_TIMER, access=32),
    }
    empty: dict[str, int | bytes] = {GAS: bytes(12), "3s": bytes(3)}
    values = [fields.get(name, empty.get(code, 0)) for name, code in FADT_FIELDS]
    return table(b"FACP", 4, struct.pack("<" + "".join(code for _, code in FADT_FIELDS), *values))


def generic_address(space: int, bits: int, address: int, access: int) -> bytes:
    """Return a generic address structure: ``bits`` at ``address``, to be accessed ``access`` bits at a time."""
    return struct.pack("<BBBBQ", space, bits, 0, ACCESS_SIZES[access], address)


def madt(cpus: int) -> bytes:
    """Return the MADT. The PIC is there as well (PCAT_COMPAT): a kernel that uses the APICs has to mask it."""
    pcat_compat = 1 << 0
    edge, level = IntiFlags.EDGE | IntiFlags.ACTIVE_HIGH, IntiFlags.LEVEL | IntiFlags.ACTIVE_HIGH
    entries = [
        *(local_apic(cpu) for cpu in range(cpus)),
        struct.pack("<BBBxII", 1, 12, platform.IO_APIC_ID, platform.IO_APIC, 0),  # its pins are GSI 0 and on
        source_override(0, platform.TIMER_PIN, edge),
        source_override(platform.SCI_IRQ, platform.SCI_IRQ, level),
        struct.pack("<BBBHB", 4, 6, EVERY_PROCESSOR, edge.value, LINT1),  # where an NMI comes in
    ]
    return table(b"APIC", 3, struct.pack("<II", platform.LOCAL_APIC, pcat_compat) + b"".join(entries))


def local_apic(cpu: int) -> bytes:
    """Return the MADT's entry for a CPU that is there: processor id, APIC id."""
    enabled = 1 << 0
    return struct.pack("<BBBBI", 0, 8, cpu, cpu, enabled)


def source_override(irq: int, gsi: int, flags: IntiFlags) -> bytes:
    """Return the MADT's entry for an ISA interrupt that is not at the pin, or not of the kind, that one would think."""
    isa = 0
    return struct.pack("<BBBBIH", 2, 10, isa, irq, gsi, flags.value)


def hpet_table(capabilities: int) -> bytes:
    """Return the HPET's table, for the first and only one, without a limit on how fast it may interrupt."""
    number, minimum_tick, protection = 0, 0, 0
    address = generic_address(SYSTEM_MEMORY, 64, platform.HPET, access=64)
    return table(b"HPET", 1, struct.pack("<I12sBHB", capabilities, address, number, minimum_tick, protection))
