"""What a run came to, as plain data. Leaves out how it is put into words: see ``report``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pykvm.kvm import Exit, Regs, Sregs
from pykvm.machine.observer import describe_exit
from pykvm.machine.output import Output
from pykvm.machine.stop import DebugExitWritten, Stop, exit_status
from pykvm.markup import facts, folded, preformatted, stacked, table
from pykvm.x86.registers import registers_html

__all__ = ["CpuResult", "RunResult"]


@dataclass(frozen=True, slots=True)
class CpuResult:
    """One CPU at the end of a run.

    ``stop`` is why it ended the run, None if another CPU, or somebody outside, did. ``activity`` is what it was about:
    "running", "halted", "waits for INIT", "waits for SIPI".
    """

    id: int
    stop: Stop | None
    activity: str
    registers: Regs
    sregs: Sregs

    def __str__(self) -> str:
        what = self.activity if self.stop is None else str(self.stop)
        return f"CPU {self.id}: {what}, RIP {self.registers.rip:#x}"

    def _repr_html_(self) -> str:
        return stacked(facts([("CPU", str(self))]), registers_html(self.registers, self.sregs))


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    ``stop`` says why it ended, ``cpu`` which CPU's doing that was (0 if nobody's), ``registers`` and ``sregs`` are
    that CPU's, and ``cpus`` has all of them. ``serial`` and ``debugcon`` are what the guest has printed since the
    machine was made; ``exits`` counts the exits of this run and ``last_exits`` holds the last few; ``report`` is the
    explanation in words of a crash or a time-out, else empty; ``note`` is a sentence on what a guest
    that halted may not have meant, mostly empty; ``duration`` is in seconds.
    """

    stop: Stop
    cpu: int
    cpus: tuple[CpuResult, ...]
    serial: Output
    debugcon: Output
    exits: int
    last_exits: tuple[Exit, ...]
    duration: float
    report: str
    note: str = ""

    def _repr_html_(self) -> str:
        exits = [(describe_exit(exit),) for exit in self.last_exits]
        parts = [facts(self._facts(), "run"), folded("last exits", table(["exit"], exits))]
        parts += [folded(str(cpu), registers_html(cpu.registers, cpu.sregs)) for cpu in self.cpus]
        return stacked(*parts, *([folded("report", preformatted(self.report))] if self.report else []))

    def _facts(self) -> Iterator[tuple[str, object]]:
        yield "stop", str(self.stop)
        if self.exit_code is not None:
            yield "exit code", str(self.exit_code)
        for name, output in (("serial", self.serial), ("debugcon", self.debugcon)):
            if output.data:
                yield name, preformatted(output.text)
        yield "exits", str(self.exits)
        yield "duration", f"{self.duration * 1e3:.3g} ms"

    @property
    def registers(self) -> Regs:
        """Return the general registers of the CPU that ended the run."""
        return self.cpus[self.cpu].registers

    @property
    def sregs(self) -> Sregs:
        """Return the special registers of the CPU that ended the run."""
        return self.cpus[self.cpu].sregs

    @property
    def exit_code(self) -> int | None:
        """Return ``(value << 1) | 1`` for a guest that wrote ``value`` to the debug-exit port, else None."""
        return self.stop.exit_code if isinstance(self.stop, DebugExitWritten) else None

    @property
    def status(self) -> int:
        """Return the exit status that ``pykvm run`` ends with."""
        return exit_status(self.stop)
