"""I/O ports: what is at each port of the default machine, and what PCs have at well-known others.

See: the modules of ``pykvm.devices``, which draw the registers, and ``pykvm.machine.board``. Leaves out ports of
devices that somebody else plugs in.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.devices import (
    acpipm,
    debugcon,
    debugexit,
    doorbell,
    fwcfg,
    i8042,
    pciconfig,
    pic,
    pit,
    postcode,
    resetcontrol,
    rtc,
    serial,
    testdev,
    vga,
)
from pykvm.memory import platform
from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import one, parse_number
from pykvm.observe.explaining.places import Part, Place, describe, find, neighbours

__all__ = ["ELSEWHERE", "PORTS", "explain"]

IN_USER_SPACE = (
    "On machines with irqchip user or split; with irqchip kernel the same chip is inside KVM, without exits."
)
PIC_PARTS = (
    Part(0, "command", "ICW1, OCW2 (0x20: end of interrupt), OCW3; reads IRR or ISR"),
    Part(1, "data", "the mask (OCW1), and ICW2 to ICW4 while it is initialised"),
)

PORTS: tuple[Place, ...] = (
    Place(
        pic.MASTER,
        pic.REGISTERS,
        "the master 8259A interrupt controller",
        "IRQ 0 to 7; the slave is at its input 2.",
        ("pykvm.devices.pic", "Intel 8259A data sheet (231468)"),
        PIC_PARTS,
        IN_USER_SPACE,
    ),
    Place(
        pit.PORT,
        pit.REGISTERS,
        "the 8254 timer",
        "Three counters at 1,193,182 Hz; counter 0 is IRQ 0.",
        ("pykvm.devices.pit", "Intel 8254 data sheet (231164)"),
        (
            Part(0, "counter 0", "the timer interrupt, IRQ 0"),
            Part(1, "counter 1", "memory refresh; nothing here needs it"),
            Part(2, "counter 2", "the speaker; its gate and output are in port 0x61"),
            Part(3, "control", "control words; write only"),
        ),
        IN_USER_SPACE,
    ),
    Place(
        i8042.DATA_PORT,
        1,
        "the i8042 keyboard controller's data port",
        "Reads what the keyboard sent; writes go to the keyboard, or are a command's parameter.",
        ("pykvm.devices.i8042", "IBM PS/2 Hardware Interface Technical Reference"),
        advice="Look at bit 0 of port 0x64 before reading: it says whether there is a byte.",
    ),
    Place(
        pit.PORT_B,
        1,
        "port B: the timer's gate and the speaker",
        "Bit 0 is counter 2's gate, bit 1 the speaker, bit 4 toggles, bit 5 is counter 2's output.",
        ("pykvm.devices.pit", "IBM PC AT Technical Reference, Port B"),
        condition=IN_USER_SPACE,
    ),
    Place(
        i8042.STATUS_PORT,
        1,
        "the i8042 keyboard controller's status and command port",
        "Reads the status; a write is a command. 0xfe resets the CPU, 0xd1 leads to the A20 gate.",
        ("pykvm.devices.i8042", "IBM PS/2 Hardware Interface Technical Reference"),
    ),
    Place(
        rtc.PORT,
        rtc.REGISTERS,
        "the MC146818 real-time clock and CMOS memory",
        "128 bytes behind two ports.",
        ("pykvm.devices.rtc", "Motorola MC146818A data sheet"),
        (
            Part(0, "index", "which byte; bit 7 masks the NMI"),
            Part(1, "data", "that byte"),
        ),
    ),
    Place(
        postcode.PORT,
        1,
        "the POST code",
        "Firmware writes how far it has got. Linux writes here to wait a little.",
        ("pykvm.devices.postcode", "IBM PC AT Technical Reference, Power-On Self Test"),
    ),
    Place(
        resetcontrol.PORT_92,
        1,
        "system control port A",
        "Bit 1 is the A20 gate (without effect under KVM), bit 0 going from 0 to 1 resets the CPU.",
        ("pykvm.devices.resetcontrol", "IBM PS/2 Hardware Interface Technical Reference"),
    ),
    Place(
        pic.SLAVE,
        pic.REGISTERS,
        "the slave 8259A interrupt controller",
        "IRQ 8 to 15; it hangs at the master's input 2.",
        ("pykvm.devices.pic", "Intel 8259A data sheet (231468)"),
        PIC_PARTS,
        IN_USER_SPACE,
        "The end of an interrupt of the slave goes to both: 0x20 to port 0xa0, then to port 0x20.",
    ),
    Place(
        platform.SMI_COMMAND,
        acpipm.SMI_REGISTERS,
        "ACPI's SMI command port",
        "Writing 0xf1 hands power management over to the kernel (SCI_EN), 0xf0 takes it back.",
        ("pykvm.devices.acpipm", "ACPI specification 4.0, section 4.7.3"),
        (Part(0, "SMI_CMD", "the command"), Part(1, "status", "kept, without effect")),
    ),
    *(
        Place(
            port,
            1,
            "the debug console",
            "A byte written is a byte printed; reading gives 0xe9. No real PC has it: Bochs and QEMU do, for firmware "
            "at port 0x402 too.",
            ("pykvm.devices.debugcon",),
        )
        for port in debugcon.PORTS
    ),
    Place(
        debugexit.PORT,
        debugexit.REGISTERS,
        "the debug exit",
        "A value v written ends the run with exit status (v << 1) | 1, as QEMU's isa-debug-exit does.",
        ("pykvm.devices.debugexit", "pykvm explain status 85"),
    ),
    Place(
        vga.PORT,
        vga.REGISTERS,
        "VGA",
        "The registers of text mode; the characters are memory at 0xb8000.",
        ("pykvm.devices.vga", "IBM VGA Technical Reference, Registers"),
        (
            Part(0x0, "attribute", "index, then data, in turns"),
            Part(0x1, "attribute data", "reads the data"),
            Part(0x2, "misc output", "written here; reads input status 0"),
            Part(0x4, "sequencer index", "which register"),
            Part(0x5, "sequencer data", "that register"),
            Part(0x6, "DAC mask", "which bits of a pixel count"),
            Part(0x7, "DAC read index", "the colour to read"),
            Part(0x8, "DAC write index", "the colour to write"),
            Part(0x9, "DAC data", "red, green, blue in turns"),
            Part(0xC, "misc output", "read here"),
            Part(0xE, "graphics index", "which register"),
            Part(0xF, "graphics data", "that register"),
            Part(0x14, "CRTC index", "which register: 0xe and 0xf are the cursor"),
            Part(0x15, "CRTC data", "that register"),
            Part(0x1A, "input status 1", "retrace; reading it makes 0x3c0 expect an index"),
        ),
    ),
    Place(
        serial.COM1,
        serial.REGISTERS,
        "the serial port COM1, a 16550A",
        "A byte written to THR is sent; LSR says whether one has come. Its interrupt is IRQ 4.",
        ("pykvm.devices.serial", "PC16550D data sheet (SNLS378)"),
        (
            Part(0, "THR / RBR", "sends a byte / the received one; with DLAB the divisor's low byte (DLL)"),
            Part(1, "IER", "which interrupts; with DLAB the divisor's high byte (DLM)"),
            Part(2, "IIR / FCR", "read: why it interrupts; written: FIFOs"),
            Part(3, "LCR", "the frame, and DLAB in bit 7"),
            Part(4, "MCR", "modem outputs, loopback"),
            Part(5, "LSR", "bit 0: a byte is there; bit 5: THR is empty"),
            Part(6, "MSR", "modem inputs"),
            Part(7, "SCR", "scratch: keeps what is written"),
        ),
    ),
    Place(
        pic.ELCR,
        pic.REGISTERS,
        "the 8259A's edge/level control",
        "A bit for each IRQ: 1 is level-triggered.",
        ("pykvm.devices.pic", "Intel 82371AB (PIIX4) data sheet, section 4.2.2"),
        (Part(0, "ELCR1", "IRQ 0 to 7"), Part(1, "ELCR2", "IRQ 8 to 15")),
        IN_USER_SPACE,
    ),
    Place(
        fwcfg.PORT,
        fwcfg.REGISTERS,
        "fw_cfg",
        "Files and figures that the host hands to the guest, as QEMU does.",
        ("pykvm.devices.fwcfg", "QEMU, docs/specs/fw_cfg.rst"),
        (
            Part(0, "selector", "16 bits: which item"),
            Part(1, "data", "the item's next byte"),
            Part(4, "DMA address", "64 bits, big-endian; writing its low half starts a transfer", 8),
        ),
    ),
    Place(
        platform.PM1_EVENT,
        acpipm.REGISTERS,
        "ACPI power management",
        "Events, sleeping and the timer; the SCI is IRQ 9.",
        ("pykvm.devices.acpipm", "ACPI specification 4.0, section 4.7.3"),
        (
            Part(acpipm.Offset.PM1_STS, "PM1_STS", "events; writing a 1 takes one away", 2),
            Part(acpipm.Offset.PM1_EN, "PM1_EN", "which of them interrupt", 2),
            Part(acpipm.Offset.PM1_CNT, "PM1_CNT", "SCI_EN and going to sleep; 0x2000 powers off", 2),
            Part(acpipm.Offset.PM_TMR, "PM_TMR", "24 bits at 3,579,545 Hz", 4),
        ),
    ),
    Place(
        pciconfig.PORT,
        pciconfig.REGISTERS,
        "PCI configuration",
        "An empty bus: every device reads as all ones.",
        ("pykvm.devices.pciconfig", "PCI Local Bus Specification 3.0, section 3.2.2.3.2"),
        (
            Part(0, "CONFIG_ADDRESS", "4 bytes: which register of which device"),
            Part(1, "reset control", "1 byte: 0x06 resets everything"),
            Part(4, "CONFIG_DATA", "that register", 4),
        ),
    ),
    Place(
        testdev.PORT,
        8,
        "the test device's registers",
        "QEMU's pc-testdev: keeps what is written at 0xe0, flushes at 0xe4.",
        ("pykvm.devices.testdev", "QEMU, hw/misc/pc-testdev.c"),
        (Part(0, "echo", "32 bits that keep what is written", 4), Part(4, "flush", "an address; reads as 0", 4)),
        "Only with --device testdev.",
    ),
    Place(
        testdev.IRQ_PORT,
        testdev.IRQ_LINES,
        "the test device's interrupt lines",
        "Port 0x2000 + n raises interrupt line n if what is written is not 0, and lowers it for 0.",
        ("pykvm.devices.testdev", "QEMU, hw/misc/pc-testdev.c"),
        condition="Only with --device testdev.",
    ),
    Place(
        doorbell.PORT,
        doorbell.REGISTERS,
        "the doorbell",
        "A write rings, without an exit where an ioeventfd takes it.",
        ("pykvm.devices.doorbell", "pykvm explain ioctl KVM_IOEVENTFD"),
        (Part(0, "ring", "a write of 4 bytes", 4), Part(4, "count", "how often it rang", 4)),
        "Only with --device doorbell.",
    ),
)

# What PCs have there, and pykvm's machine does not.
ELSEWHERE: tuple[Place, ...] = (
    Place(0x00, 0x10, "the first 8237 DMA controller", "Channels 0 to 3.", ("Intel 8237A data sheet",)),
    Place(0x81, 0xF, "the DMA page registers", "Bits 23:16 of DMA addresses.", ("IBM PC AT Technical Reference",)),
    Place(0xC0, 0x20, "the second 8237 DMA controller", "Channels 4 to 7.", ("Intel 8237A data sheet",)),
    Place(0xED, 1, "a port that nobody has", "Linux writes here to wait a little.", ()),
    Place(0xF0, 2, "the 387's error latch", "Clears IRQ 13.", ("IBM PC AT Technical Reference",)),
    Place(0x170, 8, "the second IDE channel", "Disks.", ("ATA specification",)),
    Place(0x1F0, 8, "the first IDE channel", "Disks.", ("ATA specification",)),
    Place(0x278, 8, "the second parallel port", "A printer.", ("IEEE 1284",)),
    Place(0x2E8, 8, "the serial port COM4", "A 16550A.", ("PC16550D data sheet",)),
    Place(0x2F8, 8, "the serial port COM2", "A 16550A.", ("PC16550D data sheet",)),
    Place(0x376, 1, "the second IDE channel's control", "Disks.", ("ATA specification",)),
    Place(0x378, 8, "the first parallel port", "A printer.", ("IEEE 1284",)),
    Place(0x3B0, 12, "VGA's monochrome registers", "As at 0x3d0.", ("IBM VGA Technical Reference",)),
    Place(0x3E8, 8, "the serial port COM3", "A 16550A.", ("PC16550D data sheet",)),
    Place(0x3F0, 6, "the floppy controller", "An 82077AA.", ("Intel 82077AA data sheet",)),
    Place(0x3F6, 1, "the first IDE channel's control", "Disks.", ("ATA specification",)),
    Place(0x3F7, 1, "the floppy controller's rate", "An 82077AA.", ("Intel 82077AA data sheet",)),
    Place(0x5658, 1, "VMware's backdoor", "A hypervisor call by IN.", ("VMware, open-vm-tools",)),
)


def explain(words: Sequence[str]) -> Explanation:
    """Return what is at the I/O port in ``words``. Raises: ConfigurationError."""
    number = parse_number(one(words, "one I/O port, as 0x3f8"), 16, "an I/O port")
    place = find(PORTS, number)
    if place is not None:
        return describe("port", number, place)
    other = find(ELSEWHERE, number)
    what = "No device of pykvm's machine has this port: reads give all ones, writes are lost."
    if other is not None:
        what += f" A PC may have {other.title} there, at {other.span}."
    elsewhere = f" here; on PCs {other.title}" if other is not None else ""
    return Explanation(
        f"port {number:#x}: nothing{elsewhere}",
        what,
        advice=(neighbours(PORTS, number), "Machine.pio.register() plugs a device in; docs/howto/test-your-device.md."),
        see=("pykvm.machine.board: which device sits where", *(other.see if other else ())),
        known=other is not None,
    )
