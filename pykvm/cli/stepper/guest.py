"""``Guest``: what the screen needs of whoever steps a guest, and ``Standing``, what it shows of it.

The commands take as long as the guest does, so they run on a thread of their own; ``interrupt`` alone may be called
from another. Leaves out how a step is made: see ``pykvm.observe.stepping``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pykvm.cli.stepper.look import Look
from pykvm.devices.screen import COLUMNS, ROWS, Cell, Screen
from pykvm.machine.output import Output
from pykvm.observe.stepping import Watchpoint

__all__ = ["Command", "Guest", "Standing"]


def _blank() -> Screen:
    return Screen(((Cell(),) * COLUMNS,) * ROWS)


@dataclass(frozen=True, slots=True)
class Standing:
    """A guest that stands still: what all panes show, taken at one time.

    ``why`` it does is in words, and so is the ``report`` on a bad end; ``exits`` are the last ones, oldest first.
    ``cpu`` is which CPU's registers these are, None if there is one alone.
    """

    look: Look
    why: str = ""
    report: str = ""
    serial: Output = field(default_factory=lambda: Output(b""))
    screen: Screen = field(default_factory=_blank)
    exits: tuple[str, ...] = ()
    breakpoints: frozenset[int] = frozenset()
    watchpoints: tuple[Watchpoint, ...] = ()
    cpu: int | None = None


class Guest(Protocol):
    """A guest that is stepped. Every method but ``interrupt`` is called on one thread. All raise: PykvmError."""

    @property
    def name(self) -> str:
        """Return what the guest is called."""

    def stand(self) -> Standing:
        """Return what there is to see."""

    def step(self) -> None:
        """Execute one instruction."""

    def step_over(self) -> None:
        """Execute one instruction, and if it is a call, or repeats, all that belongs to it."""

    def back(self) -> None:
        """Undo the last step, or all that was run at full speed since."""

    def back_on(self) -> None:
        """Go back to where a breakpoint is, or a watched write was, or as far as the history goes."""

    def go_on(self) -> None:
        """Run to the next breakpoint, watched access, or end."""

    def run_to(self, address: int) -> None:
        """Run to the instruction at linear ``address``, or wherever ``go_on`` would stop."""

    def toggle_breakpoint(self, address: int) -> None:
        """Set a breakpoint at linear ``address``, or take it away."""

    def watch(self, watchpoint: Watchpoint) -> None:
        """Stop at accesses to what ``watchpoint`` names as well."""

    def unwatch(self) -> None:
        """Watch nothing any more."""

    def next_cpu(self) -> None:
        """Look at the next CPU, and step that."""

    def interrupt(self) -> None:
        """Have the command under way end soon. From any thread; does nothing if there is none."""


Command = Callable[[Guest], None]
