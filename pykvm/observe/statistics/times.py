"""``ExitTimes``: an observer that counts exits by reason and place, and how long each took, here and in the guest.

                  enter()                exit()                       enter()
    user space    ---|                     |----- devices, observers ----|
    kernel, guest    |-- KVM_RUN ----------|                             |-- KVM_RUN ...
                     '---- guest time -----'---------- user time --------'
                              both are those of the exit in the middle

What the guest did is paid for by the exit that ended it. Handling begins with the first write that KVM had kept back,
if there are any. A KVM_RUN that a signal or a tick ended is no exit: its time and that of the next one are one, and
that of a run's last one is counted as ``no exit``. Memory has an end whatever the guest does: the first ``places``
addresses of each CPU are counted by themselves, others together. Leaves out what is made of it: see ``result``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Hypercall, IoapicEoi, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Wrmsr
from pykvm.observe.statistics.histogram import Histogram

__all__ = ["OTHERS", "PLACES", "ExitTimes", "Times"]

PLACES = 256  # of each CPU
OTHERS = -1  # the place of what is counted together
NOWHERE = -2  # the place of exits that have none

# Of an exit: where it was, and how many bytes it moved.
_DETAILS: dict[type, Callable[..., tuple[int, int]]] = {
    IoOut: lambda exit: (exit.port, len(exit.data)),
    IoIn: lambda exit: (exit.port, exit.size * exit.count),
    MmioWrite: lambda exit: (exit.address, len(exit.data)),
    MmioRead: lambda exit: (exit.address, exit.size),
    Rdmsr: lambda exit: (exit.index, 8),
    Wrmsr: lambda exit: (exit.index, 8),
    Hypercall: lambda exit: (exit.nr, 0),
    IoapicEoi: lambda exit: (exit.vector, 0),
}
_NAMES = {
    IoOut: "io out",
    IoIn: "io in",
    MmioWrite: "mmio write",
    MmioRead: "mmio read",
    Rdmsr: "rdmsr",
    Wrmsr: "wrmsr",
}
_COALESCED = {IoOut: "coalesced out", MmioWrite: "coalesced mmio"}
_NO_EXIT = "no exit"  # what a guest did last that was stopped from outside


class Times:
    """What was counted of one reason at one place; times are in nanoseconds."""

    __slots__ = ("bytes", "count", "guest", "place", "reason", "user")

    def __init__(self, reason: str, place: int) -> None:
        self.reason = reason
        self.place = place
        self.count = 0
        self.bytes = 0
        self.user = Histogram()
        self.guest = Histogram()

    @classmethod
    def sum(cls, parts: Iterable[Times]) -> Times:
        """Return all of ``parts``, of which there is one at least, together."""
        parts = list(parts)
        whole = cls(parts[0].reason, parts[0].place)
        whole.count = sum(part.count for part in parts)
        whole.bytes = sum(part.bytes for part in parts)
        whole.user = Histogram.sum(part.user for part in parts)
        whole.guest = Histogram.sum(part.guest for part in parts)
        return whole


class _Cpu:
    """What one CPU's thread knows, and nobody else writes."""

    __slots__ = ("entered", "left", "pending", "times")

    def __init__(self) -> None:
        self.times: dict[tuple[object, int], Times] = {}
        self.entered = 0  # when it entered the guest; 0: it is not there
        self.left = 0  # when it left; 0: that is told to ``pending`` already
        self.pending: Times | None = None  # what is being handled


class ExitTimes:
    """Counts exits. ``clock`` tells nanoseconds."""

    def __init__(self, places: int = PLACES, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        if places < 1:
            raise ConfigurationError(f"statistics need 1 place at least, not {places}")
        self._places = places
        self._clock = clock
        self._cpus: dict[int, _Cpu] = {}

    @property
    def times(self) -> list[Times]:
        """Return what was counted so far, of all CPUs together."""
        parts: dict[tuple[str, int], list[Times]] = {}
        for cpu in list(self._cpus.values()):
            for times in list(cpu.times.values()):
                parts.setdefault((times.reason, times.place), []).append(times)
        return [Times.sum(part) for part in parts.values()]

    # ---- what the run loop calls ----

    def enter(self, vcpu: int) -> None:
        """Take note that the guest goes on."""
        now = self._clock()
        cpu = self._cpus.get(vcpu) or self._add_cpu(vcpu)
        pending = cpu.pending
        if pending is not None:
            pending.user.add(now - cpu.left)
            cpu.pending = None
            cpu.entered, cpu.left = now, 0
        elif not cpu.entered:
            cpu.entered = now

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Count ``exit``, and the time up to it."""
        now = self._clock()
        cpu = self._cpus.get(vcpu) or self._add_cpu(vcpu)
        kind = type(exit)
        details = _DETAILS.get(kind)
        place, size = details(exit) if details is not None else (NOWHERE, 0)
        times = cpu.times.get((kind, place)) or self._add_times(cpu, kind, _name(exit), place)
        times.count += 1
        times.bytes += size
        if not cpu.entered:  # an instruction that is finished after the run
            return
        if not cpu.left:
            cpu.left = now
        times.guest.add(cpu.left - cpu.entered)
        cpu.entered = 0
        cpu.pending = times

    def coalesced(self, vcpu: int, write: IoOut | MmioWrite) -> None:
        """Count ``write``, which was no exit."""
        cpu = self._cpus.get(vcpu) or self._add_cpu(vcpu)
        name = _COALESCED[type(write)]
        place, size = _DETAILS[type(write)](write)
        times = cpu.times.get((name, place)) or self._add_times(cpu, name, name, place)
        times.count += 1
        times.bytes += size
        if cpu.entered and not cpu.left:
            cpu.left = self._clock()
            cpu.pending = times

    def leave(self, vcpu: int) -> None:
        """Take note that the CPU's run is over."""
        cpu = self._cpus.get(vcpu)
        if cpu is None:
            return
        now = self._clock()
        if cpu.pending is not None:
            cpu.pending.user.add(now - cpu.left)
        elif cpu.entered:
            times = cpu.times.get((_NO_EXIT, NOWHERE)) or self._add_times(cpu, _NO_EXIT, _NO_EXIT, NOWHERE)
            times.guest.add(now - cpu.entered)
        cpu.entered, cpu.left, cpu.pending = 0, 0, None

    def tick(self) -> None:
        """Do nothing."""

    # ---- inside ----

    def _add_cpu(self, vcpu: int) -> _Cpu:
        cpu = self._cpus[vcpu] = _Cpu()
        return cpu

    def _add_times(self, cpu: _Cpu, kind: object, name: str, place: int) -> Times:
        """Return what counts ``kind`` at ``place`` from now on; for a place too many, what counts the others."""
        if place != NOWHERE and len(cpu.times) >= self._places:
            place = OTHERS
        return cpu.times.setdefault((kind, place), Times(name, place))


def _name(exit: Exit) -> str:
    return _NAMES.get(type(exit)) or exit.reason.name.lower().replace("_", " ")
