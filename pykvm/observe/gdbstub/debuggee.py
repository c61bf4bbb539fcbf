"""``Debuggee``: what gdb's commands need of a guest, and how it says why it stands still again.

Addresses are linear. A guest has CPUs by number; gdb calls them threads. Leaves out how it is done: see ``guest``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from pykvm.observe.gdbstub.registers import CpuRegisters
from pykvm.observe.stepping.step import Watchpoint

__all__ = ["Debuggee", "Ended", "Outcome", "Standing", "Why"]


class Why(enum.Enum):
    """Why a guest stands still."""

    STEP = "step"  # what was asked for is done, or nothing has been yet
    BREAKPOINT = "breakpoint"
    WATCHPOINT = "watchpoint"
    INTERRUPT = "interrupt"
    CRASH = "crash"  # it cannot go on, but it can be looked at, and go back
    OLDEST = "oldest"  # there is nothing before this any more


@dataclass(frozen=True, slots=True)
class Standing:
    """The guest stands still; ``cpu`` is the one whose doing it was, ``watchpoint`` the one that was hit.

    ``words`` is what there is to say about it, for gdb to show; often nothing.
    """

    why: Why
    cpu: int = 0
    watchpoint: Watchpoint | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over, with the exit status that ``pykvm run`` ends with."""

    status: int


Outcome = Standing | Ended


class Debuggee(Protocol):
    """A guest that stands still, but inside ``step``, ``go``, ``step_back`` and ``go_back``.

    All methods raise: PykvmError, whose message gdb shows.
    """

    @property
    def cpus(self) -> int:
        """Return how many CPUs there are."""

    def registers(self, cpu: int) -> CpuRegisters:
        """Return the registers of ``cpu``."""

    def set_registers(self, cpu: int, registers: CpuRegisters) -> None:
        """Make ``registers`` those of ``cpu``."""

    def activity(self, cpu: int) -> str:
        """Return what ``cpu`` is about, in a few words."""

    def read(self, cpu: int, address: int, size: int) -> bytes:
        """Return up to ``size`` bytes of memory as ``cpu`` sees it, fewer where it ends. Raises: GuestMemoryError."""

    def write(self, cpu: int, address: int, data: bytes) -> None:
        """Write ``data`` into memory as ``cpu`` sees it, all of it or nothing. Raises: GuestMemoryError."""

    def set_breakpoints(self, breakpoints: frozenset[int], watchpoints: frozenset[Watchpoint]) -> None:
        """Stop at these, on all CPUs, and at no others."""

    def step(self, cpu: int) -> Outcome:
        """Execute one instruction of ``cpu``; the others stand still."""

    def go(self) -> Outcome:
        """Go on, on all CPUs."""

    def step_back(self) -> Outcome:
        """Undo what was done last."""

    def go_back(self) -> Outcome:
        """Go back until something stops it."""

    def interrupt(self) -> None:
        """Have the command under way, or else the next one, end soon. From any thread."""

    def forget_interrupt(self) -> None:
        """Forget an interrupt that came when nothing was under way any more."""
