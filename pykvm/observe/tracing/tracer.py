"""``Tracer``: an observer that writes a line for each exit while the guest runs.

    with Tracer("trace.txt") as tracer, Machine(observers=[tracer]) as machine:
        machine.load("mine.S")
        machine.run()

Lines are written as they come, so a run without end needs no memory without end. A filter is asked before anything is
looked up or put into words, and where there is none nobody is asked. It is not in the shim, in C: each exit comes to
Python anyway, since a device has to see it, so that there is nothing to spare there. See: ``pykvm.machine.observer``
for what an observer hears of. Leaves out time spent, which statistics add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from pykvm.devices import Bus
from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Hypercall, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, ReadExit, Wrmsr
from pykvm.machine import Stop
from pykvm.observe.tracing.filters import TraceFilter
from pykvm.observe.tracing.instructions import InstructionFinder
from pykvm.observe.tracing.line import Coalesced, Event, InterruptTaken, TraceEnd, TraceLine
from pykvm.observe.tracing.names import NOBODY, Names
from pykvm.observe.tracing.words import stop_words
from pykvm.observe.tracing.writer import FORMATS, Seen, TraceWriter

if TYPE_CHECKING:
    from pykvm.machine import Machine

__all__ = ["Tracer"]

EVENT = 5  # where it is in what is seen

_ANSWERED = (IoIn, MmioRead, Rdmsr, Wrmsr, Hypercall)  # what may still be answered, or refused


class Tracer:
    """An observer, and a context manager: writes a trace to ``output``, a path or a binary stream.

    A path's file is created or emptied, and closed by ``close()``; a stream stays the caller's. ``on_line`` gets every
    line as a value, with an ``output`` or without. ``format`` is "text", "jsonl" or "perfetto"; ``only`` says what is
    wanted, ``limit`` how many lines at most: later ones cost next to nothing. ``instructions=False`` leaves those out,
    which is faster. ``guest`` is a name for people. ``clock`` gives nanoseconds. A tracer is for one machine.

    What cannot be written ends the run. Raises: ConfigurationError; OSError, here and from ``Machine.run()``, with
    ``filename`` if it is about a path.
    """

    def __init__(
        self,
        output: str | Path | BinaryIO | None = None,
        *,
        format: str = "text",
        only: TraceFilter | None = None,
        limit: int | None = None,
        instructions: bool = True,
        guest: str = "",
        on_line: Callable[[TraceLine], object] | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        if format not in FORMATS:
            raise ConfigurationError(f"there is no trace format {format!r}: there are {', '.join(FORMATS)}")
        if limit is not None and limit < 1:
            raise ConfigurationError(f"a trace has 1 line or more, not {limit}")
        self._wants = None if only is None else only.predicate()
        self._limit = limit
        self._with_instructions = instructions
        self._on_line = on_line
        self._clock = clock
        self._machine: Machine | None = None
        self._names: Names | None = None
        self._instructions: InstructionFinder | None = None
        self._writer = None if output is None else TraceWriter(output, format, guest)
        # Times are the clock's until they are put into a line.
        self._start: int | None = None  # when the guest was first entered
        self._last: int | None = None  # when the last line's event was
        self._resumed: dict[int, int] = {}  # by CPU: its first entry since its last line
        self._number = 0
        self._lines = 0
        self._open: Seen | None = None  # the last line, whose answer may still come
        self._run_start: int | None = None
        self._run_number = 0

    # ---- what the machine tells ----

    def attach(self, machine: Machine) -> None:
        """Look into ``machine`` for the names of its devices' registers, and for instructions."""
        self._machine = machine
        self.name_devices(machine.pio, machine.mmio)
        if self._with_instructions:
            self._instructions = InstructionFinder(machine.vcpus, machine.memory)
            for vcpu in machine.vcpus:
                vcpu.sync_registers(True)

    def detach(self) -> None:
        """Look into no machine any more."""
        if self._machine is not None and self._instructions is not None:
            for vcpu in self._machine.vcpus:
                vcpu.sync_registers(False)
        self._machine = self._instructions = self._names = None

    def name_devices(self, pio: Bus, mmio: Bus) -> None:
        """Name the registers of devices on these buses: for exits that come from no machine."""
        self._names = Names(pio, mmio)

    def enter(self, vcpu: int) -> None:
        """Take the time. Called without the machine's lock, so it only ever adds the CPU's own."""
        if vcpu not in self._resumed:
            if self._start is None and self._instructions is not None and self._machine is not None:
                self._instructions.prepare(self._machine.image)
            self._resumed[vcpu] = now = self._clock()
            if self._run_start is None:
                self._run_start = now
                if self._start is None:
                    self._start = self._last = now

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Write ``exit`` down; if it wants an answer, as soon as that is known."""
        self._number += 1
        if self._open is not None:
            self._finish()
        wants = self._wants
        if wants is None or wants(vcpu, exit):
            self._begin(self._number, vcpu, exit)
            if not isinstance(exit, _ANSWERED):
                self._finish()

    def answer(self, vcpu: int, exit: ReadExit | Wrmsr, data: bytes | None) -> None:
        """Write down what the last exit was answered, or that it was refused."""
        if self._open is not None and self._open[EVENT] is exit:
            self._finish(data, data is None)

    def interrupt(self, vcpu: int, vector: int) -> None:
        """Write down an interrupt that the CPU takes."""
        self._note(vcpu, InterruptTaken(vector))

    def coalesced(self, vcpu: int, write: IoOut | MmioWrite) -> None:
        """Write down a write that KVM had kept back."""
        self._note(vcpu, Coalesced(write))

    def tick(self) -> None:
        """Hand the lines so far to the operating system."""
        self._finish()
        if self._writer is not None:
            self._writer.flush()

    def stopped(self, stop: Stop) -> None:
        """Write down the end of a run; does nothing if that was done."""
        self._end(stop_words(stop))

    # ---- closing ----

    def close(self) -> None:
        """Write what is left and close the file that was opened here; does nothing the second time. Raises: OSError."""
        self._end("the trace was closed")
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._end("Ctrl-C")
        elif error is not None:
            self._end(type(error).__name__)
        self.close()

    # ---- inside ----

    def _note(self, cpu: int, event: InterruptTaken | Coalesced) -> None:
        self._finish()
        wants = self._wants
        if wants is None or wants(cpu, event):
            self._begin(None, cpu, event)
            self._finish()

    def _begin(self, number: int | None, cpu: int, event: Event) -> None:
        now = self._clock()
        name, is_text = NOBODY
        if self._names is not None:
            name, is_text = self._names.find(event)
        place, resumed = None, now
        if not isinstance(event, InterruptTaken | Coalesced):
            resumed = self._resumed.pop(cpu, now)
            if self._instructions is not None and self._machine is not None:
                place = self._instructions.find(cpu, event, self._machine.image)
        start = self._start
        if start is None or self._last is None:
            start = self._start = self._last = now
        self._open = (number, now - start, now - self._last, resumed - start, cpu, event, name, is_text, place)
        self._last = now

    def _finish(self, answer: bytes | None = None, refused: bool = False) -> None:
        seen, self._open = self._open, None
        if seen is None:
            return
        self._lines += 1
        if self._lines == self._limit:
            self._wants = _nothing
        if self._on_line is not None:
            self._on_line(TraceLine(*seen, answer, refused))
        if self._writer is not None:
            self._writer.add(seen, answer, refused)

    def _end(self, words: str) -> None:
        self._finish()
        exits, start = self._number - self._run_number, self._run_start
        if start is None and exits == 0:
            return  # nothing has run since the last end
        now = self._clock()
        since_start, duration = (0 if then is None else now - then for then in (self._start, start))
        self._run_start, self._run_number = None, self._number
        self._resumed.clear()
        if self._writer is not None:
            self._writer.end(TraceEnd(words, exits, duration, since_start))


def _nothing(cpu: int, event: Event) -> bool:
    return False
