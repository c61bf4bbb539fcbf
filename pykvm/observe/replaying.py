"""Replaying a recording: the recorded exits go to the devices of today, and the first answer that differs ends it.

The very same run loop runs, with a vCPU that makes the recorded exits, a clock that is turned to the recorded times,
and a mainboard like the recorded machine's. Neither KVM nor a guest is needed. What no device answers, MSRs and
hypercalls, is answered as it was. See: docs/reference/recording.md. Leaves out what devices say to the interrupt
controllers in the kernel, which a recording does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

from pykvm.errors import ConfigurationError, MsrRefusedError, PykvmError, RecordingError
from pykvm.kvm import Debug, Exit, Intr, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, ReadExit, Wrmsr
from pykvm.machine import (
    Breakpoint,
    Crashed,
    DebugExitWritten,
    ExitHandlers,
    Halted,
    PoweredOff,
    ResetRequested,
    RunLoop,
    ShutdownRequested,
    Stop,
    Stopped,
)
from pykvm.machine.runloop import SETTLE_LIMIT, InterruptSource
from pykvm.machine.scripted import StandInVcpu
from pykvm.observe.divergence import Divergence, Place, describe, difference, shown
from pykvm.observe.recording import UNFINISHED, BrokenOff, EndLine, EventLine, ExitLine, Interrupt, Line, Recording
from pykvm.observe.recordingreader import read_recording
from pykvm.observe.workbench import Workbench

__all__ = ["ReplayResult", "replay"]

# Ends that are some exit's doing; the others come from outside, and a replay ends so because the recording says so.
OWN_DOING = (DebugExitWritten, ShutdownRequested, PoweredOff, ResetRequested, Crashed)


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay came to.

    ``divergence`` is the first difference, or None; ``stop`` is how the recorded run ended (the last one, if there are
    several), and ``exits`` counts those that were replayed.
    """

    stop: Stop | BrokenOff
    divergence: Divergence | None
    exits: int


def replay(
    recording: Recording | str | Path,
    devices: Callable[[Workbench], object] | None = None,
    *,
    board: bool = True,
    output: Callable[[bytes], object] = lambda data: None,
) -> ReplayResult:
    """Feed the exits of ``recording`` (or of the file of that name) to devices, up to the first that differs.

    ``devices(bench)`` plugs in one's own, on ``bench.pio`` and ``bench.mmio``, with ``bench.clock`` and
    ``bench.line(irq)``; the standard ones are there already, unless ``board`` is False. ``output`` gets what the
    recorded guest prints.

    Raises: RecordingError; whatever ``devices`` or ``output`` raises.
    """
    if not isinstance(recording, Recording):
        recording = read_recording(recording)
    elif not recording.lines or not isinstance(recording.lines[-1], EndLine):
        raise RecordingError(f"{recording.name}: the last line is not the end of a run")

    def pass_on(data: bytes) -> None:
        try:
            output(data)
        except Exception as error:
            raise _OutputFailed(error) from error

    with Workbench.open(recording.name, recording.header, pass_on, with_board=board) as bench:
        if devices is not None:
            devices(bench)
        try:
            return _Replay(recording, bench).run()
        except _OutputFailed as failed:
            raise failed.error from None


class _Diverged(Exception):
    def __init__(self, divergence: Divergence) -> None:
        self.divergence = divergence
        super().__init__(str(divergence))


class _OutputFailed(Exception):
    """Whoever gets the output raised ``error``: no device's doing."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(str(error))


class _Replay:
    """The lines of ``recording``, played one after the other: what the run loop asks its vCPU for comes from here."""

    def __init__(self, recording: Recording, bench: Workbench) -> None:
        self._recording = recording
        self._lines = recording.lines
        self._bench = bench
        self._position = 0  # of the line that comes next
        self._exits = 0
        self._current = 0  # the line of the exit that is being handled
        self._was_offered = False  # whether the run loop had its chance to hand over the interrupt that comes next
        self._source = bench.interrupts.source
        self._vcpu = _ReplayedVcpu(self)
        self._loop = RunLoop(
            self._vcpu,
            bench.pio,
            bench.mmio,
            control=bench.control,
            interrupts=None if self._source is None else _ReplayedSource(self, self._source),
            handlers=self._make_handlers(),
            now=lambda: 0,
        )

    def run(self) -> ReplayResult:
        """Play all runs."""
        stop: Stop | BrokenOff = Stopped()
        try:
            while self._position < len(self._lines):
                stop = self._run_once()
        except _Diverged as diverged:
            return ReplayResult(stop, diverged.divergence, self._exits)
        return ReplayResult(stop, None, self._exits)

    @property
    def is_halted(self) -> bool:
        """Return whether the run loop waits for what ends a HLT."""
        return self._loop.is_halted

    # ---- a run ----

    def _make_handlers(self) -> ExitHandlers:
        return ExitHandlers(
            rdmsr=self._rdmsr,
            wrmsr=lambda index, value: self._check_refused(index),
            hypercall=lambda call: int.from_bytes(self._answer or b"", "little"),
            ioapic_eoi=self._bench.interrupts.eoi,
            dirty_ring_full=lambda: None,
            debug=self._on_debug,
        )

    def _run_once(self) -> Stop | BrokenOff:
        try:
            now = self._loop.run(None)
            self._finish(now)
        except (_Diverged, _OutputFailed, RecordingError):
            raise
        except Exception as error:
            return self._on_error(error)
        finally:
            self._bench.control.take()
        end = self._end()
        if end != now and not isinstance(end, BrokenOff):
            self._diverge(self._position, "the run", f"ended: {end}", f"ends: {now}")
        self._position += 1
        return end

    def _finish(self, stop: Stop) -> None:
        """Play what came after the exit that ended the run: the rest of its instruction, and what other CPUs did."""
        left = SETTLE_LIMIT * self._recording.header.setup.cpus
        self.play_events()
        while not isinstance(self._next, EndLine):
            left -= 1
            if left < 0 or self._end() != stop:
                self._diverge(self._current, "the run", "goes on", f"ends: {stop}", last=self._position)
            if self.is_at_interrupt and self._source is not None:
                self.check_vector(self._source.acknowledge())
            else:
                self._loop.handle(self._vcpu.run())
            self.play_events()

    def _on_error(self, error: Exception) -> BrokenOff:
        """Compare an error of a device with that in the recording, if there is one."""
        words = f"{type(error).__name__}: {error}"
        end = self._next.stop if isinstance(self._next, EndLine) else None
        if not isinstance(end, BrokenOff) or end.error not in (words, UNFINISHED):
            recorded = "went on" if self._answer is None else shown(self._answer)
            was = str(end) if isinstance(end, BrokenOff) else recorded
            self._diverge(self._current, self._who(), was, f"raises {words}", error=error)
        self._vcpu.abandon()
        self._position += 1
        return end

    # ---- what the vCPU asks ----

    @property
    def is_last_halt(self) -> bool:
        """Return whether the HLT that was made last ended the recorded run."""
        position = self._position
        while isinstance(line := self._lines[position], EventLine) and not isinstance(line.event, Interrupt):
            position += 1
        return isinstance(line, EndLine) and isinstance(line.stop, Halted)

    @property
    def is_at_interrupt(self) -> bool:
        """Return whether the CPU is to take an interrupt now."""
        line = self._next
        return isinstance(line, EventLine) and isinstance(line.event, Interrupt)

    def next_exit(self) -> Exit:
        """Play events up to the next exit, and return it; or Intr, for the run loop to do something else first."""
        self.play_events()
        match self._next:
            case ExitLine() as line:
                return self._make(line)
            case EndLine(stop=stop):
                self._end_run(stop)
            case _ if self._was_offered:
                self._diverge_at_interrupt("no interrupt waits")
            case _:
                self._was_offered = True
        return Intr()

    def play_events(self) -> None:
        """Let everything happen that came from outside before the next exit, interrupt or end."""
        while isinstance(line := self._next, EventLine) and not isinstance(line.event, Interrupt):
            self._position += 1
            self._advance(line)
            try:
                self._bench.play(line)
            except PykvmError as error:
                raise self._error("event", error) from error

    def check_answer(self, data: bytes) -> None:
        """Compare what a device answers with what was answered."""
        recorded = self._answer
        if data == recorded:
            return
        was = f"none: {self._end()}" if recorded is None else shown(recorded)
        self._diverge(self._current, self._who(), was, shown(data), hint=difference(recorded, data))

    def check_vector(self, vector: int) -> None:
        """Compare an interrupt that the CPU is handed with the one that it took."""
        line = self._next
        if isinstance(line, EventLine) and isinstance(line.event, Interrupt):
            if line.event.vector != vector:
                self._diverge_at_interrupt(f"{vector:#x}")
            self._position += 1
            self._was_offered = False

    # ---- inside ----

    @property
    def _next(self) -> Line:
        return self._lines[self._position]

    @property
    def _answer(self) -> bytes | None:
        line = self._lines[self._current]
        return line.answer if isinstance(line, ExitLine) else None

    def _end(self) -> Stop | BrokenOff:
        """Return how the run ended that is being played."""
        return next(line.stop for line in islice(self._lines, self._position, None) if isinstance(line, EndLine))

    def _make(self, line: ExitLine) -> Exit:
        self._current = self._position
        self._position += 1
        self._exits += 1
        self._advance(line)
        self._bench.prepare(line)
        return line.exit

    def _advance(self, line: ExitLine | EventLine) -> None:
        try:
            self._bench.advance(line)
        except ConfigurationError as error:
            raise self._error("t", error) from error

    def _error(self, field: str, error: Exception) -> RecordingError:
        number = self._recording.number(self._position - 1)
        return RecordingError(f"{self._recording.name}: line {number}: {field}: {error}")

    def _end_run(self, stop: Stop | BrokenOff) -> None:
        if isinstance(stop, OWN_DOING):
            self._diverge(self._position, "the run", f"ended: {stop}", "goes on")
        self._bench.control.stop(Stopped() if isinstance(stop, BrokenOff) else stop)

    def _rdmsr(self, index: int) -> int:
        self._check_refused(index)
        return int.from_bytes(self._answer or b"", "little")

    def _check_refused(self, index: int) -> None:
        line = self._lines[self._current]
        if isinstance(line, ExitLine) and line.refused:
            raise MsrRefusedError(index)

    def _on_debug(self, cpu: int, exit: Debug) -> Stop | None:
        line = self._next
        return Breakpoint(exit) if isinstance(line, EndLine) and isinstance(line.stop, Breakpoint) else None

    def _who(self) -> str:
        """Return who answers the exit that is being handled."""
        line = self._lines[self._current]
        match line.exit if isinstance(line, ExitLine) else None:
            case IoIn(port=address) | IoOut(port=address):
                bus = self._bench.pio
            case MmioRead(address=address) | MmioWrite(address=address):
                bus = self._bench.mmio
            case _:
                return "nobody"
        return str(bus.find(address) or f"nothing is at {bus.name} {address:#x}")

    def _diverge_at_interrupt(self, now: str) -> NoReturn:
        line = self._next
        vector = line.event.vector if isinstance(line, EventLine) and isinstance(line.event, Interrupt) else 0
        self._diverge(self._position, "interrupt controllers", f"{vector:#x}", now)

    def _diverge(
        self,
        position: int,
        who: str,
        recorded: str,
        now: str,
        *,
        hint: str = "",
        last: int | None = None,
        error: Exception | None = None,
    ) -> NoReturn:
        line = self._lines[position]
        where = Place(self._recording.name, self._recording.number(position), self._exits, line.time, position, last)
        raise _Diverged(Divergence(where, describe(line), who, recorded, now, hint, error))


class _ReplayedVcpu(StandInVcpu):
    """A vCPU that gets its exits from ``replay``, and has its answers and interrupts compared there."""

    def __init__(self, replay: _Replay) -> None:
        super().__init__()
        self._replay = replay

    @property
    def ready_for_interrupt_injection(self) -> bool:
        return self._replay.is_at_interrupt

    @property
    def if_flag(self) -> bool:
        return not self._replay.is_last_halt

    def next_exit(self) -> Exit:
        return self._replay.next_exit()

    def complete(self, exit: ReadExit, data: bytes) -> None:
        super().complete(exit, data)
        self.replies.clear()  # of a recording without end, too
        self._replay.check_answer(data)

    def refuse(self, exit: Rdmsr | Wrmsr) -> None:
        super().refuse(exit)
        self.replies.clear()

    def interrupt(self, vector: int) -> None:
        self._replay.check_vector(vector)


class _ReplayedSource:
    """The interrupt controllers as the run loop sees them: while it is halted, the recording's events happen."""

    def __init__(self, replay: _Replay, source: InterruptSource) -> None:
        self._replay = replay
        self._source = source

    @property
    def output(self) -> bool:
        if not self._replay.is_halted:
            return self._source.output
        self._replay.play_events()
        return True  # the recorded CPU woke up: whether it had a reason is seen when it takes its interrupt

    def acknowledge(self) -> int:
        return self._source.acknowledge()
