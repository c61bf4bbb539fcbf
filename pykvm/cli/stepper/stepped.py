"""``SteppedGuest``: a machine and its ``Stepper`` as the screen wants them.

It keeps what the stepper does not: breakpoints and watchpoints from one command to the next, the log of exits, why the
guest stands where it does, and what its registers were when it was last looked at. Leaves out how a step is made: see
``pykvm.observe.stepping``.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from pykvm.boot import Image
from pykvm.cli.stepper.exits import ExitLog
from pykvm.cli.stepper.guest import Standing
from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.words import arrived, stepped, undone
from pykvm.errors import ConfigurationError
from pykvm.kvm import Regs, Sregs
from pykvm.machine import Crashed, Halted, Machine, Stop, Stopped
from pykvm.observe.stepping import Arrival, Stepper, Watchpoint

__all__ = ["SteppedGuest"]


class SteppedGuest:
    """``machine``, which has loaded ``image`` and stands still; ``options`` may limit the time of a command.

    A context manager: it lets the machine run freely again. Raises: ConfigurationError if it cannot be stepped.
    """

    def __init__(self, machine: Machine, image: Image, options: argparse.Namespace) -> None:
        self.name = image.name
        self._machine, self._image = machine, image
        self._timeout: float | None = getattr(options, "timeout", None)
        self._interrupted = threading.Event()
        self._stepper = Stepper(machine)
        self._log = ExitLog(lambda: self._stepper.position)
        machine.add_observer(self._log)
        self._cpu = 0
        self._breakpoints: frozenset[int] = frozenset()
        self._watchpoints: tuple[Watchpoint, ...] = ()
        self._stop: Stop | None = None  # why the guest cannot go on
        self._duration = 0.0  # seconds that all commands took
        self._why = "before the first instruction"
        self._looked: tuple[tuple[int, int], tuple[Regs, Sregs]] | None = None  # where, and at what
        self._earlier: tuple[Regs, Sregs] | None = None

    # ---- what there is to see ----

    def stand(self) -> Standing:
        """Return what there is to see."""
        result = self._machine.result(self._stop or Stopped(), self._log.count, self._duration, self._cpu)
        with self._machine.lock:
            screen = self._machine.screen.snapshot()
        return Standing(
            self._look(),
            self._why,
            result.report if isinstance(self._stop, Crashed) else "",
            result.serial,
            screen,
            self._log.lines(),
            self._breakpoints,
            self._watchpoints,
            cpu=self._cpu if len(self._machine.vcpus) > 1 else None,
        )

    def _look(self) -> Look:
        vcpu = self._machine.vcpus[self._cpu]
        registers = (vcpu.get_regs(), vcpu.get_sregs())
        where = (self._stepper.position, self._cpu)
        if self._looked is not None and self._looked[0] != where:
            self._earlier = self._looked[1] if self._looked[0][1] == self._cpu else None
        self._looked = (where, registers)
        return Look(where[0], *registers, self._machine.memory, self._image, self._earlier)

    # ---- forwards ----

    def step(self) -> None:
        """Execute one instruction."""
        with self._going():
            step = self._stepper.step(self._cpu, should_stop=self._interrupted.is_set)
        self._stop, self._why = step.stop, stepped(step)

    def step_over(self) -> None:
        """Execute one instruction, and if it is a call, or an interrupt comes, all until that returns."""
        with self._going():
            arrival = self._stepper.step_over(
                self._cpu,
                breakpoints=self._breakpoints,
                watchpoints=self._watchpoints,
                should_stop=self._interrupted.is_set,
            )
        self._arrive(arrival)

    def go_on(self) -> None:
        """Run to the next breakpoint, watched access, or end."""
        with self._going():
            arrival = self._stepper.continue_(
                self._breakpoints, self._watchpoints, timeout=self._timeout, should_stop=self._interrupted.is_set
            )
        self._arrive(arrival)

    def run_to(self, address: int) -> None:
        """Run to the instruction at linear ``address``, or wherever ``go_on`` would stop."""
        with self._going():
            arrival = self._stepper.run_to(
                address,
                self._cpu,
                breakpoints=self._breakpoints,
                watchpoints=self._watchpoints,
                should_stop=self._interrupted.is_set,
            )
        self._arrive(arrival)

    @contextlib.contextmanager
    def _going(self) -> Iterator[None]:
        if self._stop is not None:
            raise ConfigurationError(f"the guest cannot go on, b goes back: {self._stop}")
        self._interrupted.clear()
        began = time.monotonic()
        try:
            yield
        finally:
            self._duration += time.monotonic() - began

    def _arrive(self, arrival: Arrival) -> None:
        self._cpu, self._stop, self._why = arrival.cpu, arrival.stop, arrived(arrival)

    # ---- backwards ----

    def back(self) -> None:
        """Undo the last step, or all that was run at full speed since."""
        done = self._stepper.back()
        if done is None:
            raise ConfigurationError(self._nothing_older())
        self._cpu, self._stop, self._why = done.cpu, None, undone(done)
        self._log.forget(self._stepper.position)

    def back_on(self) -> None:
        """Go back to where a breakpoint is, or a watched write was, or as far as the history goes."""
        self._interrupted.clear()
        arrival = self._stepper.reverse_continue(
            self._breakpoints, self._watchpoints, should_stop=self._interrupted.is_set
        )
        if arrival.steps == 0:
            raise ConfigurationError(self._nothing_older())
        self._cpu, self._stop, self._why = arrival.cpu, None, arrived(arrival)
        self._log.forget(self._stepper.position)

    def _nothing_older(self) -> str:
        if self._stepper.position:
            return "nothing older is kept: the history is full, and drops the oldest"
        return "this is where the guest began"

    # ---- where to stop ----

    def toggle_breakpoint(self, address: int) -> None:
        """Set a breakpoint at linear ``address``, or take it away."""
        self._breakpoints ^= {address}

    def watch(self, watchpoint: Watchpoint) -> None:
        """Stop at accesses to what ``watchpoint`` names as well."""
        self._watchpoints = (*self._watchpoints, watchpoint)

    def unwatch(self) -> None:
        """Watch nothing any more."""
        self._watchpoints = ()

    def next_cpu(self) -> None:
        """Look at the next CPU, and step that."""
        count = len(self._machine.vcpus)
        if count == 1:
            raise ConfigurationError("this machine has one CPU")
        self._cpu, self._why = (self._cpu + 1) % count, ""
        if isinstance(self._stop, Halted):
            self._stop = None  # one CPU waits; another may go on, and wake it

    def interrupt(self) -> None:
        """Have the command under way end soon. From any thread; does nothing if there is none."""
        self._interrupted.set()

    # ---- closing ----

    def close(self) -> None:
        """Let the machine run freely again. Does nothing the second time."""
        self._stepper.close()
        if not self._machine.closed:
            self._machine.remove_observer(self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
