"""The mainboard: the devices of a small PC, where they sit, and which interrupt line each has.

    ports                      device                        IRQ
    0x020-021, 0x0a0-0a1       two 8259A interrupt controllers         (irqchip user, split)
    0x040-043, 0x061           8254 timer, and its gate       0        (irqchip user, split)
    0x060, 0x064               i8042 keyboard controller      1
    0x070-071                  MC146818 clock and CMOS RAM    8
    0x080                      POST code
    0x092                      system control port A: A20, reset
    0x0b2-0b3                    SMI command: ACPI on and off
    0x0e9, 0x402               debug console
    0x0f4-0f7                  debug exit
    0x3c0-3df                  VGA, text mode
    0x3f8-3ff                  16550A serial port             4
    0x4d0-4d1                  the two 8259A: edge or level            (irqchip user, split)
    0x510-51b                  fw_cfg
    0x600-60b                  ACPI PM1 and timer             9
    0xcf8-cff                  PCI configuration: an empty bus; 0xcf9 resets

    memory                     device
    0x000b_8000                VGA text memory, which is RAM
    0xd000_0000                the serial port again
    0xfec0_0000                I/O APIC                                (irqchip split)
    0xfed0_0000                HPET: the main counter

Devices that no PC has come only when asked for: see ``OPTIONAL_DEVICES``. Leaves out disks, networks, and PCI devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pykvm.devices import (
    I8042,
    A20Gate,
    AcpiPm,
    Bus,
    Clock,
    DebugConsole,
    DebugExit,
    Doorbell,
    FwCfg,
    Hpet,
    Keyboard,
    PciConfig,
    PcTestdev,
    PostCode,
    ResetControl,
    Rtc,
    Serial,
    SystemControlPortA,
    Vga,
    acpipm,
    cmos_memory,
    debugcon,
    debugexit,
    doorbell,
    fwcfg,
    hpet,
    i8042,
    ioapic,
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
from pykvm.devices.device import Device
from pykvm.devices.state import Stateful
from pykvm.errors import ConfigurationError
from pykvm.machine.interrupts import Interrupts
from pykvm.memory import GuestMemory, layout, platform

__all__ = ["OPTIONAL_DEVICES", "Board", "Wishes", "check_device"]

SERIAL_IRQ, KEYBOARD_IRQ = 4, 1

OPTIONAL_DEVICES = {
    "testdev": "QEMU's pc-testdev: ports that echo, interrupt lines at will, memory that exits",
    "doorbell": "a port that rings without an exit, and another that counts",
}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What devices ask of the machine: to end the run by a debug exit or a reset, to sleep (S3, S5), to wake up.

    ``wake`` returns whether it was asleep.
    """

    debug_exit: Callable[[int], None]
    reset: Callable[[str], None]
    sleep: Callable[[int], None]
    wake: Callable[[], bool]
    on_doorbell: Callable[[int, int, Callable[[int], None]], None]


class Board:
    """The devices of one machine, on its two buses: ``serial``, ``keyboard``, ``vga``, ``rtc`` and so on.

    ``start`` is what the real-time clock shows at time 0, by default the host's time; ``dma_read`` is how a device
    reads guest memory, by default ``memory.read``.
    """

    def __init__(
        self,
        pio: Bus,
        mmio: Bus,
        memory: GuestMemory,
        interrupts: Interrupts,
        clock: Clock,
        wishes: Wishes,
        *,
        cpus: int,
        serial_output: Callable[[bytes], object],
        serial_input: Callable[[int], bytes] | None,
        debugcon_output: Callable[[bytes], object],
        screen_memory: Callable[[int, int], bytes],
        start: datetime | None = None,
        dma_read: Callable[[int, int], bytes] | None = None,
    ) -> None:
        self._pio = pio
        self._mmio = mmio
        self._interrupts = interrupts
        self._wishes = wishes
        self._optional: dict[str, Stateful] = {}
        self.on_power_button: Callable[[], None] = lambda: None  # hears of it before it has an effect
        ram_size = sum(region.size for region in memory.regions if not region.readonly)
        self.serial = Serial(serial_output, serial_input, interrupts.line(SERIAL_IRQ, "serial"))
        pio.register(self.serial, serial.COM1, serial.REGISTERS)
        mmio.register(self.serial, layout.MMIO_SERIAL, serial.REGISTERS)
        self.debug_exit = DebugExit(wishes.debug_exit)
        pio.register(self.debug_exit, debugexit.PORT, debugexit.REGISTERS)
        self.debug_console = DebugConsole(debugcon_output)
        for port in debugcon.PORTS:
            pio.register(self.debug_console, port, 1)
        self.post_code = PostCode()
        pio.register(self.post_code, postcode.PORT, 1)
        self.vga = Vga(screen_memory)
        pio.register(self.vga, vga.PORT, vga.REGISTERS)
        self.fw_cfg = FwCfg(dma_read or memory.read, memory.write, ram_size=ram_size, cpus=cpus)
        pio.register(self.fw_cfg, fwcfg.PORT, fwcfg.REGISTERS)
        self._plug_in_interrupt_controllers()
        self._plug_in_clocks(clock, start or datetime.now(UTC), cmos_memory(max(ram_size, 1), cpus))
        self._plug_in_keyboard()

    def add(self, name: str) -> None:
        """Plug in the optional device called ``name``. Raises: ConfigurationError if there is none of that name."""
        check_device(name)
        if name == "testdev":
            self._optional[name] = device = PcTestdev(self._set_line)
            self._pio.register(device.ports, testdev.PORT, 8)
            self._pio.register(device.irq_lines, testdev.IRQ_PORT, testdev.IRQ_LINES)
            self._mmio.register(device.memory, testdev.MEMORY, testdev.MEMORY_SIZE)
        else:
            self._optional[name] = bell = Doorbell()
            self._pio.register(bell, doorbell.PORT, doorbell.REGISTERS)
            self._wishes.on_doorbell(doorbell.PORT, doorbell.SIZE, bell.ring)

    def devices(self) -> dict[str, Stateful]:
        """Return the board's devices by name, those included that were added: all that a snapshot has to remember."""
        chips = self._interrupts
        controllers: dict[str, Stateful | None] = {"pic": chips.pic, "pit": chips.pit, "ioapic": chips.ioapic}
        return {
            "serial": self.serial,
            "debug_exit": self.debug_exit,
            "debug_console": self.debug_console,
            "post_code": self.post_code,
            "vga": self.vga,
            "fw_cfg": self.fw_cfg,
            **{name: chip for name, chip in controllers.items() if chip is not None},
            "pm": self.pm,
            "rtc": self.rtc,
            "hpet": self.hpet,
            "keyboard": self.keyboard,
            "i8042": self.i8042,
            "a20": self.a20,
            "port_92": self.port_92,
            "reset_control": self.reset_control,
            "pci_config": self.pci_config,
            **self._optional,
        }

    def others(self) -> tuple[Device, ...]:
        """Return what is on the buses and is not the board's: devices that somebody else plugged in."""
        own = {id(part) for device in self.devices().values() for part in device.with_parts()}
        found = {id(place.device): place.device for bus in (self._pio, self._mmio) for place in bus.ranges}
        return tuple(device for key, device in found.items() if key not in own)

    def press_power_button(self) -> None:
        """Press the power button: a guest that listens hears of it, one that sleeps wakes up. With the lock held."""
        self.on_power_button()
        if not self._wake(by_rtc=False):
            self.pm.press_power_button()

    # ---- inside ----

    def _plug_in_interrupt_controllers(self) -> None:
        chips = self._interrupts
        if chips.pic is not None:
            self._pio.register(chips.pic.master, pic.MASTER, pic.REGISTERS)
            self._pio.register(chips.pic.slave, pic.SLAVE, pic.REGISTERS)
            self._pio.register(chips.pic.elcr, pic.ELCR, pic.REGISTERS)
        if chips.pit is not None:
            self._pio.register(chips.pit, pit.PORT, pit.REGISTERS)
            self._pio.register(chips.pit.port61, pit.PORT_B, 1)
        if chips.ioapic is not None:
            self._mmio.register(chips.ioapic, ioapic.BASE, ioapic.SIZE)

    def _plug_in_clocks(self, clock: Clock, start: datetime, cmos: dict[int, int]) -> None:
        self.pm = AcpiPm(clock, self._interrupts.line(platform.SCI_IRQ, "ACPI"), self._on_sleep)
        self._pio.register(self.pm, platform.PM1_EVENT, acpipm.REGISTERS)
        self._pio.register(self.pm.smi_command, platform.SMI_COMMAND, acpipm.SMI_REGISTERS)
        line = self._interrupts.line(rtc.IRQ, "RTC")
        self.rtc = Rtc(clock, line, start, cmos, self._on_rtc_alarm)
        self._pio.register(self.rtc, rtc.PORT, rtc.REGISTERS)
        self.hpet = Hpet(clock)
        self._mmio.register(self.hpet, hpet.BASE, hpet.SIZE)

    def _plug_in_keyboard(self) -> None:
        self.a20, reset = A20Gate(), self._wishes.reset
        self.keyboard = Keyboard()
        line = self._interrupts.line(KEYBOARD_IRQ, "keyboard")
        self.i8042 = I8042(self.keyboard, line, lambda: reset("the keyboard controller, port 0x64"), self.a20)
        self._pio.register(self.i8042.data, i8042.DATA_PORT, 1)
        self._pio.register(self.i8042.status, i8042.STATUS_PORT, 1)
        self.port_92 = SystemControlPortA(self.a20, reset)
        self._pio.register(self.port_92, resetcontrol.PORT_92, 1)
        self.reset_control = ResetControl(reset)
        self.pci_config = PciConfig(self.reset_control)
        self._pio.register(self.pci_config, pciconfig.PORT, pciconfig.REGISTERS)

    def _on_sleep(self, state: int) -> None:
        self._wishes.sleep(state)
        # What came between the guest's last look and its falling asleep must not be lost.
        pending = self.pm.pending
        if pending & (acpipm.Pm1Sts.RTC_STS | acpipm.Pm1Sts.PWRBTN_STS):
            self._wake(by_rtc=acpipm.Pm1Sts.RTC_STS in pending)

    def _on_rtc_alarm(self) -> None:
        if not (self.pm.wakes_by_rtc and self._wake(by_rtc=True)):
            self.pm.rtc_alarm()

    def _wake(self, *, by_rtc: bool) -> bool:
        if not self._wishes.wake():
            return False
        self.pm.wake(by_rtc)
        return True

    def _set_line(self, gsi: int, level: bool) -> None:
        self._interrupts.drive(gsi, level)


def check_device(name: str) -> str:
    """Return ``name`` if it is an optional device's. Raises: ConfigurationError."""
    if name not in OPTIONAL_DEVICES:
        raise ConfigurationError(f"there is no optional device {name!r}: there are {', '.join(OPTIONAL_DEVICES)}")
    return name
