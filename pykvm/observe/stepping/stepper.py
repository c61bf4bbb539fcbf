"""``Stepper``: a machine, an instruction at a time, forwards and backwards. The interface; being written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from pykvm.machine import Machine
from pykvm.observe.stepping.step import Arrival, Step, Stretch, Watchpoint
from pykvm.units import MiB
from pykvm.x86 import Instruction

__all__ = ["Stepper"]

HISTORY = 256 * MiB

ShouldStop = Callable[[], bool]


class Stepper:
    """Steps ``machine``; keeps up to ``history`` bytes of what was before, and drops the oldest.

    While there is one, nobody else may set ``machine.debug()``. Closing it leaves the machine where it is. Whoever
    changes registers or memory between its calls calls ``touched()``, so that the way back is known.

    Raises: ConfigurationError, if the machine cannot be saved; InUseError while it runs.
    """

    def __init__(self, machine: Machine, *, history: int = HISTORY) -> None: ...

    # ---- where it is ----

    @property
    def position(self) -> int:
        """Return how many steps and stretches were made from the beginning to here."""

    @property
    def oldest(self) -> int:
        """Return the earliest position that ``back`` can reach."""

    def address(self, cpu: int = 0) -> int:
        """Return the linear address of the next instruction of ``cpu``."""

    def instruction(self, cpu: int = 0) -> Instruction | None:
        """Return the next instruction of ``cpu``, None where the code cannot be read."""

    def past(self, count: int) -> Sequence[Step | Stretch]:
        """Return the last ``count`` of what was done, oldest first."""

    def touched(self) -> None:
        """Take note that somebody changed registers, memory or devices since the last call; going back undoes it."""

    # ---- forwards ----

    def step(self, cpu: int = 0, *, should_stop: ShouldStop | None = None) -> Step:
        """Execute one instruction of ``cpu``, while others stand still, and return what it did."""

    def step_over(
        self,
        cpu: int = 0,
        *,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        should_stop: ShouldStop | None = None,
    ) -> Arrival:
        """Execute one instruction of ``cpu``, and if it is a call, or an interrupt comes, all until that returns."""

    def run_to(
        self,
        address: int,
        cpu: int = 0,
        *,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        should_stop: ShouldStop | None = None,
    ) -> Arrival:
        """Go on until ``cpu`` stands at linear ``address``, or wherever ``continue_`` would stop."""

    def continue_(
        self,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        *,
        condition: Callable[[Step], bool] | None = None,
        limit: int | None = None,
        timeout: float | None = None,
        should_stop: ShouldStop | None = None,
        stepping: bool = False,
    ) -> Arrival:
        """Go on, on all CPUs, until one is about to execute the instruction at one of ``breakpoints`` (linear).

        Or until one accesses what ``watchpoints`` watch, ``condition(step)`` is true, ``limit`` steps were made,
        ``timeout`` seconds have passed, ``should_stop()`` says so (it is asked about ten times a second), or the guest
        cannot go on. The CPU leaves the breakpoint at which it stands. At full speed where that is possible, which is
        with up to four breakpoints, without watchpoints, conditions and limits; ``stepping`` forbids it.
        """

    # ---- backwards ----

    def back(self) -> Step | Stretch | None:
        """Undo the last step or stretch and return it; None if there is nothing older."""

    def back_to(self, position: int) -> None:
        """Undo all that was done after ``position``. Raises: ConfigurationError if that is not in the history."""

    def reverse_continue(
        self,
        breakpoints: Iterable[int] = (),
        watchpoints: Iterable[Watchpoint] = (),
        *,
        should_stop: ShouldStop | None = None,
    ) -> Arrival:
        """Go back until a CPU stands at one of ``breakpoints``, or what ``watchpoints`` watch is as before a write."""

    # ---- closing ----

    def close(self) -> None:
        """Let the machine run freely again, and forget the history. Does nothing the second time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
