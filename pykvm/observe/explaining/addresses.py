"""Guest-physical addresses: what is at each address of the default machine, and why there.

See: ``pykvm.memory.layout`` and ``pykvm.memory.platform``, which say where each number comes from. Leaves out where
a guest's own image puts its parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.devices import hpet, ioapic, serial, testdev
from pykvm.memory import layout, platform
from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import one, parse_number
from pykvm.observe.explaining.places import Part, Place, describe, find, neighbours
from pykvm.units import GiB, KiB

__all__ = ["PLACES", "explain"]

LAYOUT, PLATFORM = "pykvm.memory.layout", "pykvm.memory.platform"
PAGE = 4 * KiB
LOCAL_APIC = 'Intel SDM volume 3, "Local APIC Register Address Map"'
MOST = 1 << 52  # no guest-physical address is wider

PLACES: tuple[Place, ...] = (
    Place(layout.IVT, layout.BDA, "real mode's interrupt vectors (IVT)", "256 far pointers, vector * 4.", (LAYOUT,)),
    Place(layout.BDA, 0x100, "the BIOS data area", "Where real-mode programs expect what the BIOS knows.", (LAYOUT,)),
    Place(
        layout.GDT,
        PAGE,
        "the GDT that pykvm makes",
        "For guests that start in protected or long mode.",
        (LAYOUT, "pykvm.x86.modes"),
    ),
    Place(layout.IDT, PAGE, "room for an IDT", "Left free for the guest's own.", (LAYOUT,)),
    Place(layout.TSS, PAGE, "the TSS that pykvm makes", "For the stack of ring 0.", (LAYOUT, "pykvm.x86.modes")),
    Place(
        0x4000,
        layout.KERNEL_STACK_TOP - 0x4000,
        "the stack of ring 0",
        "Used on the way in from ring 3; it grows down from 0x6000.",
        (LAYOUT,),
    ),
    Place(
        layout.KERNEL_STACK_TOP,
        layout.STACK_TOP - layout.KERNEL_STACK_TOP,
        "the first stack",
        "RSP starts at 0x7c00.",
        (LAYOUT,),
    ),
    Place(layout.BOOT_SECTOR, 512, "the boot sector", "Where a BIOS loads and starts one.", (LAYOUT,)),
    Place(layout.REAL_LOAD, layout.PAGE_TABLES - layout.REAL_LOAD, "real-mode guests", "Loaded here.", (LAYOUT,)),
    Place(
        layout.PAGE_TABLES,
        layout.PAGE_TABLES_END - layout.PAGE_TABLES,
        "page tables that pykvm makes",
        "For guests that start in a paged mode; the first one is CR3's.",
        (LAYOUT, "pykvm.x86.paging"),
    ),
    Place(
        layout.VGA_TEXT,
        layout.VGA_TEXT_SIZE,
        "the VGA text screen",
        "Plain memory: a character and its colours in 2 bytes, 80 in a line; writing it is no exit.",
        (LAYOUT, "pykvm.devices.vga"),
    ),
    Place(
        platform.RSDP,
        platform.ACPI_TABLES_END - platform.RSDP,
        "the ACPI tables",
        'A kernel searches here for "RSD PTR ".',
        (PLATFORM, "ACPI specification 4.0, section 5.2.5"),
        (
            Part(0, "RSDP", "the first table", platform.FACS - platform.RSDP),
            Part(platform.FACS - platform.RSDP, "FACS", "the waking vector", platform.ACPI_TABLES - platform.FACS),
            Part(
                platform.ACPI_TABLES - platform.RSDP,
                "tables",
                "all the others",
                platform.ACPI_TABLES_END - platform.ACPI_TABLES,
            ),
        ),
    ),
    Place(
        platform.MP_TABLE,
        64 * KiB,
        "the MP table, and where a BIOS would be",
        'A kernel searches here for "_MP_".',
        (PLATFORM, "MultiProcessor specification 1.4, chapter 4"),
    ),
    Place(
        layout.LOAD,
        layout.MMIO_HOLE_START - layout.LOAD,
        "guest memory from 1 MiB on",
        "RAM as far as the machine has it; protected-mode and long-mode guests are loaded at 1 MiB.",
        (LAYOUT,),
        advice="Behind the end of RAM an access is KVM_EXIT_MMIO, and nothing answers.",
    ),
    Place(
        layout.MMIO_SERIAL,
        serial.REGISTERS,
        "the serial port's registers again, as memory",
        "The same 16550A as at port 0x3f8.",
        (LAYOUT, "pykvm explain port 0x3f8"),
    ),
    Place(
        platform.IO_APIC,
        ioapic.SIZE,
        "the I/O APIC",
        "24 pins, and for each an entry that says which interrupt it sends.",
        ("pykvm.devices.ioapic", "Intel 82093AA data sheet (290566)"),
        (
            Part(0x00, "IOREGSEL", "which register IOWIN shows", 4),
            Part(0x10, "IOWIN", "that register", 4),
            Part(0x40, "EOI", "the vector of an interrupt that has ended", 4),
        ),
        "With irqchip split it is pykvm's; with irqchip kernel it is inside KVM, without exits; else there is none.",
    ),
    Place(
        platform.HPET,
        hpet.SIZE,
        "the HPET",
        "A counter of 64 bits at 100 MHz.",
        ("pykvm.devices.hpet", "IA-PC HPET Specification 1.0a"),
        (
            Part(0x00, "GCAP_ID", "capabilities, and how long a tick is", 8),
            Part(0x10, "GEN_CONF", "whether it runs", 8),
            Part(0x20, "GINTR_STA", "which timers have interrupted: none", 8),
            Part(0xF0, "MAIN_CNT", "the counter", 8),
            Part(0x100, "TIM0_CONF", "the one timer", 8),
            Part(0x108, "TIM0_COMP", "its comparator", 8),
        ),
    ),
    Place(
        platform.LOCAL_APIC,
        PAGE,
        "the local APIC",
        "Each CPU has its own here: interrupts, the timer, messages to other CPUs.",
        (PLATFORM, LOCAL_APIC, "pykvm explain msr IA32_APIC_BASE"),
        (
            Part(0x20, "ID", "this CPU's id, in bits 31:24", 4),
            Part(0x30, "version", "the version, and how many LVT entries", 4),
            Part(0x80, "TPR", "task priority", 4),
            Part(0xA0, "PPR", "processor priority", 4),
            Part(0xB0, "EOI", "write 0: the interrupt has ended", 4),
            Part(0xD0, "LDR", "logical destination", 4),
            Part(0xE0, "DFR", "destination format", 4),
            Part(0xF0, "SVR", "spurious vector; bit 8 switches the APIC on", 4),
            Part(0x100, "ISR", "in service, 32 vectors each 16 bytes", 0x80),
            Part(0x180, "TMR", "level-triggered", 0x80),
            Part(0x200, "IRR", "requested", 0x80),
            Part(0x280, "ESR", "errors", 4),
            Part(0x300, "ICR low", "sends an interrupt, INIT or SIPI", 4),
            Part(0x310, "ICR high", "to whom, in bits 31:24", 4),
            Part(0x320, "LVT timer", "the timer's vector and mode", 4),
            Part(0x350, "LVT LINT0", "the pin of the 8259A", 4),
            Part(0x360, "LVT LINT1", "the pin of the NMI", 4),
            Part(0x370, "LVT error", "the vector of errors", 4),
            Part(0x380, "initial count", "starts the timer", 4),
            Part(0x390, "current count", "how much is left", 4),
            Part(0x3E0, "divide", "the timer's divider", 4),
        ),
        "With irqchip kernel or split it is inside KVM, without exits; else there is none, and an access is an exit.",
    ),
    Place(
        testdev.MEMORY,
        testdev.MEMORY_SIZE,
        "the test device's memory",
        "Each access is an exit; it keeps what is written.",
        ("pykvm.devices.testdev",),
        condition="Only with --device testdev.",
    ),
    Place(
        layout.IDENTITY_MAP,
        PAGE,
        "KVM's identity map",
        "Hidden by KVM on VT-x hosts: a page table for guests without paging.",
        (LAYOUT, "pykvm explain ioctl KVM_SET_IDENTITY_MAP_ADDR"),
    ),
    Place(
        layout.TSS_REGION,
        3 * PAGE,
        "KVM's hidden TSS",
        "Hidden by KVM on VT-x hosts, for real mode.",
        (LAYOUT, "pykvm explain ioctl KVM_SET_TSS_ADDR"),
    ),
    Place(
        layout.RESET_VECTOR,
        16,
        "the reset vector",
        "The first instruction after reset: CS.base 0xffff0000, RIP 0xfff0.",
        (LAYOUT, 'Intel SDM volume 3, "First Instruction Executed"'),
        advice="A machine without a ROM starts its guests elsewhere.",
    ),
    Place(
        4 * GiB,
        MOST - 4 * GiB,
        "guest memory from 4 GiB on",
        "RAM that does not fit below the hole of devices at 3 GiB; nothing, if all of it does.",
        (LAYOUT,),
    ),
)


def explain(words: Sequence[str]) -> Explanation:
    """Return what is at the guest-physical address in ``words``. Raises: ConfigurationError."""
    number = parse_number(one(words, "one guest-physical address, as 0xfee00000"), 64, "a guest-physical address")
    place = find(PLACES, number)
    if place is not None:
        return describe("address", number, place)
    if number >= MOST:
        what = "A guest-physical address has 52 bits at most: this is none. It may be a linear address."
        advice = "Walk the guest's page tables for it: pykvm.x86.walk."
    elif number < layout.LOAD:
        what = "Guest memory below 1 MiB that nobody has claimed."
        advice = neighbours(PLACES, number)
    else:
        what = (
            "The hole of devices between 3 and 4 GiB, where no device is: reads give all ones, writes are lost. A "
            "machine that starts from a ROM has it here, up to 4 GiB."
        )
        advice = neighbours(PLACES, number)
    title = f"address {number:#x}: nothing in particular"
    return Explanation(title, what, advice=(advice,), see=(LAYOUT, PLATFORM), known=False)
