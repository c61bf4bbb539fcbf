r"""The PC's fixed hardware: which port, address, interrupt and number belongs to what, for all who must agree on it.

A device answers where a firmware table says that it is; the tables (``pykvm.boot``) and the devices
(``pykvm.devices``) do not know one another, and so both look here.

    0x000b2          SMI_COMMAND     where chipsets have had it since the APM days; port 0xb3 is its companion
    0x00600          PM1_EVENT       the ACPI power management block where QEMU's PC has it, so that a kernel which
    0x00604          PM1_CONTROL     writes 0x2000 to port 0x604 without looking for any table is powered off here too
    0x00608          PM_TIMER
    0x00cf9          RESET_CONTROL   Intel chipsets' reset register; writing RESET_VALUE is a hard reset
    0x0e0000         RSDP            the first place where ACPI lets a kernel search for "RSD PTR "
    0x0e0040         FACS            needs a multiple of 64, and RAM that a guest can write
    0x0e0080         ACPI_TABLES     all the others, up to ACPI_TABLES_END
    0x0f0000         MP_TABLE        the start of the 64 KiB where MP lets a kernel search for "_MP_"
    0xfec0_0000      IO_APIC         where every PC has it
    0xfed0_0000      HPET            the same
    0xfee0_0000      LOCAL_APIC      where the CPU has it after reset (IA32_APIC_BASE)

See: ACPI specification 4.0, section 5.2.5 (RSDP), 5.2.10 (FACS), 4.7.3 (fixed hardware), 7.3.4 (\_Sx);
MultiProcessor specification 1.4, chapter 4. Leaves out what the CPU or the boot code needs: ``pykvm.memory.layout``.
"""

from __future__ import annotations

from pykvm.units import Gpa

__all__ = [
    "ACPI_DISABLE",
    "ACPI_ENABLE",
    "ACPI_TABLES",
    "ACPI_TABLES_END",
    "CMOS_CENTURY",
    "FACS",
    "HPET",
    "IO_APIC",
    "IO_APIC_ID",
    "LOCAL_APIC",
    "MAX_CPUS",
    "MP_TABLE",
    "PM1_CONTROL",
    "PM1_EVENT",
    "PM_TIMER",
    "RESET_CONTROL",
    "RESET_VALUE",
    "RSDP",
    "SCI_IRQ",
    "SLP_TYP_S0",
    "SLP_TYP_S3",
    "SLP_TYP_S5",
    "SMI_COMMAND",
    "TIMER_PIN",
]

# ---- I/O ports ----

SMI_COMMAND = 0xB2
ACPI_ENABLE = 0xF1  # written there: hand the power management events over to the kernel (SCI_EN on)
ACPI_DISABLE = 0xF0  # and take them back

PM1_EVENT = 0x600
PM1_CONTROL = 0x604
PM_TIMER = 0x608

RESET_CONTROL = 0xCF9
RESET_VALUE = 0x06  # SYS_RST and RST_CPU: reset everything, as the power button would

CMOS_CENTURY = 0x32  # no port: the byte of the CMOS memory that holds the century

# ---- what SLP_TYP means: the same numbers as in Intel's PIIX4 and in QEMU ----

SLP_TYP_S0 = 5
SLP_TYP_S3 = 1
SLP_TYP_S5 = 0

# ---- interrupts ----

SCI_IRQ = 9  # the System Control Interrupt: level-triggered, active high
TIMER_PIN = 2  # of the I/O APIC: the timer, IRQ 0; the PIC's cascade, IRQ 2, goes nowhere and so leaves it free
IO_APIC_ID = 0  # what its ID register holds after reset
MAX_CPUS = 255  # local APIC ids are 0 to 254 in 8 bits; 255 means all of them

# ---- guest-physical addresses ----

RSDP = Gpa(0xE_0000)
FACS = Gpa(0xE_0040)
ACPI_TABLES = Gpa(0xE_0080)
ACPI_TABLES_END = Gpa(0xE_8000)
MP_TABLE = Gpa(0xF_0000)

IO_APIC = Gpa(0xFEC0_0000)
HPET = Gpa(0xFED0_0000)
LOCAL_APIC = Gpa(0xFEE0_0000)
