"""The devices of a small PC, and the bus they are plugged into. They know no KVM and no machine."""

from __future__ import annotations

from pykvm.devices import (
    acpipm,
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
from pykvm.devices.acpipm import AcpiPm
from pykvm.devices.bus import Bus, Range, Unclaimed
from pykvm.devices.clock import SECOND, Alarm, AlarmQueue, Clock, ManualClock
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.debugexit import DebugExit
from pykvm.devices.device import ByteRegisters, Device
from pykvm.devices.doorbell import Doorbell
from pykvm.devices.fwcfg import FwCfg
from pykvm.devices.hpet import Hpet
from pykvm.devices.i8042 import I8042
from pykvm.devices.ioapic import IoApic
from pykvm.devices.irq import Disconnected, IrqLine
from pykvm.devices.keyboard import Keyboard
from pykvm.devices.pciconfig import PciConfig
from pykvm.devices.pic import PicPair
from pykvm.devices.pit import Pit
from pykvm.devices.postcode import PostCode
from pykvm.devices.resetcontrol import A20Gate, ResetControl, SystemControlPortA
from pykvm.devices.rtc import Rtc, cmos_memory
from pykvm.devices.scancodes import KeyEvent, TerminalKeys, keys_for_text, parse_keys
from pykvm.devices.screen import Cell, Screen
from pykvm.devices.serial import Serial
from pykvm.devices.testdev import PcTestdev
from pykvm.devices.vga import Vga

__all__ = [
    "I8042",
    "SECOND",
    "A20Gate",
    "AcpiPm",
    "Alarm",
    "AlarmQueue",
    "Bus",
    "ByteRegisters",
    "Cell",
    "Clock",
    "DebugConsole",
    "DebugExit",
    "Device",
    "Disconnected",
    "Doorbell",
    "FwCfg",
    "Hpet",
    "IoApic",
    "IrqLine",
    "KeyEvent",
    "Keyboard",
    "ManualClock",
    "PcTestdev",
    "PciConfig",
    "PicPair",
    "Pit",
    "PostCode",
    "Range",
    "ResetControl",
    "Rtc",
    "Screen",
    "Serial",
    "SystemControlPortA",
    "TerminalKeys",
    "Unclaimed",
    "Vga",
    "acpipm",
    "cmos_memory",
    "debugcon",
    "debugexit",
    "doorbell",
    "fwcfg",
    "hpet",
    "i8042",
    "ioapic",
    "keys_for_text",
    "parse_keys",
    "pciconfig",
    "pic",
    "pit",
    "postcode",
    "resetcontrol",
    "rtc",
    "serial",
    "testdev",
    "vga",
]
