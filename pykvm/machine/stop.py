"""Why a run ended: one frozen dataclass per reason, and the exit status each has on the command line.

The statuses are the contract that docs/design.md and ``pykvm run --help`` state. Leaves out what the guest did
before: see ``RunResult``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from pykvm.kvm import Debug, Exit, SystemEvent
from pykvm.machine.observer import describe_exit

__all__ = [
    "Breakpoint",
    "Crashed",
    "DebugExitWritten",
    "Halted",
    "Interrupted",
    "PoweredOff",
    "ResetRequested",
    "ShutdownRequested",
    "Stop",
    "Stopped",
    "TimedOut",
    "exit_status",
    "wants_words",
]


@dataclass(frozen=True, slots=True)
class Halted:
    """The guest executed HLT, and nothing can wake it."""

    def __str__(self) -> str:
        return "halted: HLT, and nothing can wake this CPU"


@dataclass(frozen=True, slots=True)
class DebugExitWritten:
    """The guest wrote ``value`` to the debug-exit port."""

    value: int

    @property
    def exit_code(self) -> int:
        """Return what QEMU's isa-debug-exit makes of it: ``(value << 1) | 1``; an exit status keeps 8 bits of that."""
        return (self.value << 1) | 1

    def __str__(self) -> str:
        return f"debug exit: the guest wrote {self.value:#x} to port 0xf4"


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """The guest asked for power-off or reset through KVM (KVM_EXIT_SYSTEM_EVENT)."""

    event: SystemEvent

    def __str__(self) -> str:
        return f"shut down: the guest asked for it (system event {self.event.type})"


@dataclass(frozen=True, slots=True)
class PoweredOff:
    """The guest switched the machine off: ACPI's sleep state S5."""

    def __str__(self) -> str:
        return "powered off: the guest entered S5"


@dataclass(frozen=True, slots=True)
class ResetRequested:
    """The guest asked for a reset, and ``by`` what: "port 0xcf9"."""

    by: str

    def __str__(self) -> str:
        return f"reset: the guest asked for it by {self.by}"


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A breakpoint, watchpoint or step of ``Machine.debug()``; ``exit`` says where, and which."""

    exit: Debug

    def __str__(self) -> str:
        return f"stopped by the debugger at {self.exit.pc:#x}"


@dataclass(frozen=True, slots=True)
class Crashed:
    """The guest cannot go on; ``exit`` is what KVM said about it."""

    exit: Exit

    def __str__(self) -> str:
        return f"crashed: {describe_exit(self.exit)}"


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The guest was still running after ``limit`` seconds."""

    limit: float

    def __str__(self) -> str:
        return f"timed out: still running after {self.limit:g} s"


@dataclass(frozen=True, slots=True)
class Stopped:
    """``Machine.stop()`` was called."""

    def __str__(self) -> str:
        return "stopped from outside"


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Ctrl-C: ``Machine.run`` raised KeyboardInterrupt, and somebody wants to know what the guest was doing."""

    def __str__(self) -> str:
        return "interrupted with Ctrl-C"


Stop = (
    Halted
    | DebugExitWritten
    | ShutdownRequested
    | PoweredOff
    | ResetRequested
    | Breakpoint
    | Crashed
    | TimedOut
    | Stopped
    | Interrupted
)


def wants_words(stop: Stop, *, has_interrupts: bool) -> bool:
    """Return whether ``stop`` is to be reported on: trouble, and a HLT where an interrupt could have ended it."""
    return isinstance(stop, Crashed | TimedOut | Interrupted) or (isinstance(stop, Halted) and has_interrupts)


def exit_status(stop: Stop) -> int:
    """Return the exit status, 0 to 255, that ``pykvm run`` ends with after ``stop``."""
    match stop:
        case Halted() | ShutdownRequested() | PoweredOff() | ResetRequested() | Breakpoint() | Stopped():
            return 0
        case DebugExitWritten():
            return stop.exit_code & 0xFF
        case TimedOut():
            return 124
        case Crashed():
            return 125
        case Interrupted():
            return 130
        case _:
            assert_never(stop)
