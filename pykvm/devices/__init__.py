"""The devices of a small PC, and the bus they are plugged into. They know no KVM and no machine."""

from __future__ import annotations

from pykvm.devices import debugcon, debugexit, postcode, serial
from pykvm.devices.bus import Bus, Range, Unclaimed
from pykvm.devices.clock import SECOND, Alarm, Clock, ManualClock
from pykvm.devices.debugcon import DebugConsole
from pykvm.devices.debugexit import DebugExit
from pykvm.devices.device import ByteRegisters, Device
from pykvm.devices.irq import Disconnected, IrqLine
from pykvm.devices.postcode import PostCode
from pykvm.devices.serial import Serial

__all__ = [
    "SECOND",
    "Alarm",
    "Bus",
    "ByteRegisters",
    "Clock",
    "DebugConsole",
    "DebugExit",
    "Device",
    "Disconnected",
    "IrqLine",
    "ManualClock",
    "PostCode",
    "Range",
    "Serial",
    "Unclaimed",
    "debugcon",
    "debugexit",
    "postcode",
    "serial",
]
