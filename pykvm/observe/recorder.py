"""``Recorder``: writes a run down while it happens, so that it can be replayed without its guest and without KVM.

    with Recorder("run.jsonl", guest="mine") as recorder, Machine(observers=[recorder]) as machine:
        machine.load("mine.S")
        machine.run()

Every line goes to the file as it comes, so that a run without end needs no memory without end. See: ``recording`` for
what a line is, ``pykvm.machine.journal`` for what is told beside the exits. Leaves out reading.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from pykvm.kvm import Exit, IoIn, IoOut, MmioRead, MmioWrite, ReadExit, Wrmsr
from pykvm.machine import Interrupted, Stop
from pykvm.machine.journal import NO_MACHINE, Event, Input, MemoryRead, Setup, StepClock
from pykvm.observe.recording import (
    UNFINISHED,
    BrokenOff,
    EndLine,
    EventLine,
    ExitLine,
    Header,
    Interrupt,
    Line,
    encode_header,
    encode_line,
)

__all__ = ["Recorder"]

BUFFER = 1 << 16  # bytes that wait for a tick at most
MOST_BEHIND = 64  # events that wait for the answer of their exit


class Recorder:
    """An observer that records to the file ``path``, which it creates or empties: a context manager.

    ``guest`` is a name for people who read it. A recorder is for one machine. What it cannot write ends the run.

    Raises: OSError, with ``filename``, here and from ``Machine.run()``.
    """

    def __init__(self, path: str | Path, *, guest: str = "") -> None:
        self._path = str(path)
        self._guest = guest
        self._file = Path(path).open("wb", BUFFER)  # noqa: SIM115 - this class is the context manager
        self._clock: StepClock | None = None
        self._has_header = False
        self._in_run = True  # an end is still to be written
        self._failed = False
        # The last exit, whose answer may still come, and what came after it.
        self._open: ExitLine | None = None
        self._input: list[bytes] = []
        self._memory: list[MemoryRead] = []
        self._behind: list[Line] = []

    # ---- what the machine tells ----

    def begin(self, setup: Setup, clock: StepClock) -> None:
        """Write the header."""
        self._clock = clock
        self._write_header(setup)

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Write ``exit`` down, as soon as its answer is known."""
        self._finish_exit()
        self._in_run = True
        self._open = ExitLine(self._step(), vcpu, exit)

    def answer(self, vcpu: int, exit: ReadExit | Wrmsr, data: bytes | None) -> None:
        """Write down what the last exit was answered, or that it was refused."""
        if self._open is not None:
            self._open = replace(self._open, answer=data, refused=data is None)

    def coalesced(self, vcpu: int, write: IoOut | MmioWrite) -> None:
        """Write down a write that KVM had kept back."""
        self.exit(vcpu, write)
        if self._open is not None:
            self._open = replace(self._open, coalesced=True)

    def interrupt(self, vcpu: int, vector: int) -> None:
        """Write down an interrupt that the CPU takes."""
        self._finish_exit()
        self._write(EventLine(self._now(), Interrupt(vcpu, vector)))

    def tell(self, event: Event, *, inside: bool) -> None:
        """Write ``event`` down: with the exit if it belongs to it, else after it."""
        if isinstance(event, Input | MemoryRead) and self._open is not None and (inside or self._is_unanswered):
            self._belongs(event)
        elif inside and self._open is not None and len(self._behind) < MOST_BEHIND:
            self._behind.append(EventLine(self._now(), event))
        elif not isinstance(event, MemoryRead):
            self._finish_exit()
            self._write(EventLine(self._step(), event))

    def end(self, stop: Stop | BrokenOff) -> None:
        """Write down the end of a run; does nothing if that was done."""
        if self._in_run:
            self._finish_exit()
            self._write(EndLine(self._now(), stop))
            self._in_run = False
            self._flush()

    def tick(self) -> None:
        """Hand the lines so far to the operating system."""
        self._finish_exit()
        self._flush()

    # ---- closing ----

    def close(self) -> None:
        """Write what is left and close the file; does nothing the second time. Raises: OSError."""
        try:
            if not self._failed and not self._file.closed:
                self.end(BrokenOff(UNFINISHED))
        finally:
            self._close_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            if not self._failed:
                is_ctrl_c = isinstance(error, KeyboardInterrupt)
                self.end(Interrupted() if is_ctrl_c else BrokenOff(f"{type(error).__name__}: {error}"))
        finally:
            self._close_file()

    # ---- inside ----

    @property
    def _is_unanswered(self) -> bool:
        line = self._open
        return line is not None and isinstance(line.exit, IoIn | MmioRead) and line.answer is None

    def _belongs(self, event: Input | MemoryRead) -> None:
        if isinstance(event, Input):
            self._input.append(event.data)
        else:
            self._memory.append(event)

    def _now(self) -> int:
        return 0 if self._clock is None else self._clock.now()

    def _step(self) -> int:
        return 0 if self._clock is None else self._clock.step()

    def _finish_exit(self) -> None:
        if self._open is None:
            return
        while self._input and not self._input[-1]:  # asked in vain, and nothing came after it
            self._input.pop()
        line = replace(self._open, input=tuple(self._input), memory=tuple(self._memory))
        behind, self._behind, self._open = self._behind, [], None
        self._input, self._memory = [], []
        for each in (line, *behind):
            self._write(each)

    def _write(self, line: Line) -> None:
        self._write_header(NO_MACHINE)
        self._in_run = True
        self._write_text(encode_line(line))

    def _write_header(self, setup: Setup) -> None:
        if not self._has_header:
            self._has_header = True
            self._write_text(encode_header(Header(self._guest, setup)))
            self._flush()

    def _write_text(self, text: str) -> None:
        try:
            self._file.write(text.encode("ascii") + b"\n")
        except OSError as error:
            self._fail(error)

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failed = True
        raise OSError(error.errno, error.strerror, self._path) from error

    def _close_file(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            if not self._failed:
                self._fail(error)
