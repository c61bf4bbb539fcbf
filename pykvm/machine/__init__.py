"""The machine: the only layer that knows both KVM and devices. ``Machine`` ties them, ``RunLoop`` runs them."""

from pykvm.machine.control import Control
from pykvm.machine.interrupts import IrqchipKind
from pykvm.machine.journal import Journal
from pykvm.machine.machine import DEFAULT_TIMEOUT, Machine
from pykvm.machine.observer import CloseObserver, EntryObserver, LastExits, MachineObserver, Observer, describe_exit
from pykvm.machine.output import Output, OutputLog
from pykvm.machine.result import CpuResult, RunResult
from pykvm.machine.runloop import ExitHandlers, RunLoop, VcpuProtocol
from pykvm.machine.scripted import ScriptedVcpu, StandInVcpu
from pykvm.machine.snapshot import Snapshot
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
    "CloseObserver",
    "Control",
    "CpuResult",
    "Crashed",
    "DebugExitWritten",
    "EntryObserver",
    "ExitHandlers",
    "Halted",
    "Interrupted",
    "IrqchipKind",
    "Journal",
    "LastExits",
    "Machine",
    "MachineObserver",
    "Observer",
    "Output",
    "OutputLog",
    "PoweredOff",
    "ResetRequested",
    "RunLoop",
    "RunResult",
    "ScriptedVcpu",
    "ShutdownRequested",
    "Snapshot",
    "StandInVcpu",
    "Stop",
    "Stopped",
    "TimedOut",
    "VcpuProtocol",
    "describe_exit",
    "exit_status",
]
