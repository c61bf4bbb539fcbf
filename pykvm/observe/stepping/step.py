"""What a stepper returns: a step and what it changed, a stretch at full speed, and why a guest stands where it does.

    Step       one instruction of one CPU, or an interrupt or exception that it took instead
    Stretch    what was run at full speed: what it changed, but not in which order
    Arrival    why ``continue_``, ``step_over``, ``run_to`` or ``reverse_continue`` came to an end

Leaves out how any of them comes about: see ``stepper``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Regs, Sregs
from pykvm.machine import Stop
from pykvm.machine.diary import MemoryChange
from pykvm.x86 import Instruction

__all__ = [
    "Access",
    "Arrival",
    "Event",
    "EventKind",
    "MemoryChange",
    "Reason",
    "Step",
    "Stretch",
    "Watchpoint",
]

LINEAR_LIMIT = 1 << 64


class EventKind(enum.Enum):
    """What makes a CPU leave the order of its instructions."""

    INTERRUPT = "interrupt"  # from outside: maskable, or an NMI
    EXCEPTION = "exception"  # of the instruction, INT n among them

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Event:
    """The CPU took ``vector``, through its IDT or IVT; None where several have the same handler and nobody can tell."""

    kind: EventKind
    vector: int | None

    def __str__(self) -> str:
        return f"{self.kind} {'?' if self.vector is None else f'{self.vector:#x}'}"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of ``cpu``: the CPU stood at linear ``address``, and executed ``instruction``.

    ``number`` counts all that was done since the beginning, from 1 on. ``instruction`` is None where the code cannot be
    read. With ``events`` the CPU went to a handler in the instruction's stead, whose first instruction is the next
    step's; INT n is executed, and taken. ``changes`` are those of guest memory, by the CPU and by devices, lowest
    address first; ``exits`` what KVM handed over meanwhile. ``stop`` is why the guest cannot go on, or None.
    """

    number: int
    cpu: int
    address: int
    instruction: Instruction | None
    before: tuple[Regs, Sregs]
    after: tuple[Regs, Sregs]
    changes: tuple[MemoryChange, ...] = ()
    exits: tuple[Exit, ...] = ()
    events: tuple[Event, ...] = ()
    stop: Stop | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was run at full speed, on all CPUs: undone as one. As ``Step``; ``cpu`` is the one that ended it."""

    number: int
    cpu: int
    address: int
    before: tuple[Regs, Sregs]
    after: tuple[Regs, Sregs]
    changes: tuple[MemoryChange, ...] = ()
    stop: Stop | None = None


class Access(enum.Enum):
    """Which accesses a watchpoint is for."""

    WRITE = "write"
    READ = "read"
    ANY = "access"


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """Stop after an instruction that accesses one of ``length`` bytes from linear ``address`` on.

    Raises: ConfigurationError if there are no such bytes.
    """

    address: int
    length: int = 1
    access: Access = Access.WRITE

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.address <= LINEAR_LIMIT - self.length:
            raise ConfigurationError(
                f"nobody can watch {self.length} bytes at {self.address:#x}: a length is above 0, and addresses have "
                "64 bits"
            )


class Reason(enum.Enum):
    """Why a guest that was let go stands still again."""

    STEP = "step"  # what was asked for is done
    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"
    CONDITION = "condition"
    LIMIT = "limit"  # of steps
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"  # ``should_stop`` said so
    STOP = "stop"  # the guest cannot go on: ``Arrival.stop``
    HISTORY = "history"  # reverse: there is nothing older


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where and why it ended: ``cpu`` stands at linear ``address``, after ``steps`` steps and stretches.

    ``watchpoint`` is the one that was hit, ``stop`` why the guest cannot go on.
    """

    reason: Reason
    cpu: int
    address: int
    steps: int
    watchpoint: Watchpoint | None = None
    stop: Stop | None = None
