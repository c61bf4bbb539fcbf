"""The log of exits: why the guest left KVM_RUN, the last few of it, by the step that did it.

Going back takes out what has not happened yet. Leaves out the exits that only say that a step is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pykvm.kvm import Debug, Exit, Intr
from pykvm.machine.observer import describe_exit

__all__ = ["ExitLog"]

MOST = 1000


class ExitLog:
    """An observer that keeps the last exits; ``position`` says how many steps were made before each."""

    def __init__(self, position: Callable[[], int]) -> None:
        self._position = position
        self._exits: deque[tuple[int, int, Exit]] = deque(maxlen=MOST)
        self.count = 0  # of all that happened and are not undone

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Keep ``exit``."""
        if not isinstance(exit, Debug | Intr):
            self._exits.append((self._position() + 1, vcpu, exit))
            self.count += 1

    def tick(self) -> None:
        """Do nothing."""

    def forget(self, position: int) -> None:
        """Forget what came after ``position`` steps."""
        while self._exits and self._exits[-1][0] > position:
            self._exits.pop()
            self.count -= 1

    def lines(self) -> tuple[str, ...]:
        """Return a line for each exit, oldest first: the step, the CPU, and what it was."""
        return tuple(f"step {step:>6}  cpu {cpu}  {describe_exit(exit)}" for step, cpu, exit in self._exits)
