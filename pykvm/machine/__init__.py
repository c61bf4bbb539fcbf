"""The machine: the only layer that knows both KVM and devices. ``Machine`` ties them, ``RunLoop`` runs them."""

from pykvm.machine.control import Control
from pykvm.machine.interrupts import IrqchipKind
from pykvm.machine.machine import DEFAULT_TIMEOUT, Machine
from pykvm.machine.observer import LastExits, Observer, describe_exit
from pykvm.machine.output import Output, OutputLog
from pykvm.machine.result import CpuResult, RunResult
from pykvm.machine.runloop import ExitHandlers, RunLoop, VcpuProtocol
from pykvm.machine.stop import (
    Breakpoint,
    Crashed,
    DebugExitWritten,
    Halted,
    Interrupted,
    PoweredOff,
    ResetRequested,
    ShutdownRequested,
    Stop,
    Stopped,
    TimedOut,
    exit_status,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "Breakpoint",
    "Control",
    "CpuResult",
    "Crashed",
    "DebugExitWritten",
    "ExitHandlers",
    "Halted",
    "Interrupted",
    "IrqchipKind",
    "LastExits",
    "Machine",
    "Observer",
    "Output",
    "OutputLog",
    "PoweredOff",
    "ResetRequested",
    "RunLoop",
    "RunResult",
    "ShutdownRequested",
    "Stop",
    "Stopped",
    "TimedOut",
    "VcpuProtocol",
    "describe_exit",
    "exit_status",
]
