"""The machine: the only layer that knows both KVM and devices. ``Machine`` ties them, ``RunLoop`` runs them."""

from pykvm.machine.machine import DEFAULT_TIMEOUT, Machine, RunResult
from pykvm.machine.observer import LastExits, Observer, describe_exit
from pykvm.machine.output import Output, OutputLog
from pykvm.machine.runloop import RunLoop, VcpuProtocol
from pykvm.machine.stop import (
    Crashed,
    DebugExitWritten,
    Halted,
    Interrupted,
    ShutdownRequested,
    Stop,
    Stopped,
    TimedOut,
    exit_status,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "Crashed",
    "DebugExitWritten",
    "Halted",
    "Interrupted",
    "LastExits",
    "Machine",
    "Observer",
    "Output",
    "OutputLog",
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
