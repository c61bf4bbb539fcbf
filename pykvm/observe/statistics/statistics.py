"""``Statistics``: watches a machine's runs, and says what their time went into.

    with Machine() as machine, Statistics(machine) as statistics:
        machine.load(...)
        machine.run()
        print(statistics.result())

Leaves out counting: see ``times`` for exits, ``counters`` for what the kernel counts.
"""

from __future__ import annotations

from typing import Self

from pykvm.devices import Bus
from pykvm.machine import Machine
from pykvm.observe.statistics.counters import KernelCounters
from pykvm.observe.statistics.result import ExitStatistics, StatisticsResult
from pykvm.observe.statistics.times import NOWHERE, OTHERS, PLACES, ExitTimes, Times
from pykvm.x86 import msr_name

__all__ = ["Statistics", "summarize"]


class Statistics:
    """Watches ``machine`` from the next run on, until ``close()``; the first ``places`` addresses by themselves.

    Raises: InUseError while the machine runs; ConfigurationError if ``places`` is below 1.
    """

    def __init__(self, machine: Machine, *, places: int = PLACES) -> None:
        self._machine = machine
        self._times = ExitTimes(places)
        machine.add_observer(self._times)
        self._counters = KernelCounters(machine.vm, machine.vcpus)

    def result(self) -> StatisticsResult:
        """Return what was counted so far, of all runs. Registers are called what the devices call them now."""
        machine = self._machine
        exits = summarize(self._times.times, machine.pio, machine.mmio)
        return StatisticsResult(exits, self._counters.gained())

    def close(self) -> None:
        """Watch no more; does nothing the second time. Raises: InUseError while the machine runs."""
        if not self._machine.closed:
            self._machine.remove_observer(self._times)
        self._counters.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def summarize(counted: list[Times], pio: Bus, mmio: Bus) -> tuple[ExitStatistics, ...]:
    """Return ``counted`` as statistics, what took longest first; ``pio`` and ``mmio`` say who is at an address."""
    whole = sum(_time(times) for times in counted) or 1
    buses = {"io": pio, "coalesced out": pio, "mmio": mmio, "coalesced mmio": mmio}
    ordered = sorted(counted, key=lambda times: (-_time(times), -times.count, times.reason, times.place))
    return tuple(_statistics(times, _bus(buses, times.reason), whole) for times in ordered)


def _statistics(times: Times, bus: Bus | None, whole: int) -> ExitStatistics:
    user, guest = times.user, times.guest
    return ExitStatistics(
        times.reason,
        times.place if times.place >= 0 else None,
        _where(times, bus),
        times.count,
        times.bytes,
        _time(times) / whole,
        user.total,
        user.percentile(50),
        user.percentile(99),
        guest.total,
        guest.percentile(50),
        guest.percentile(99),
    )


def _time(times: Times) -> int:
    return times.user.total + times.guest.total


def _bus(buses: dict[str, Bus], reason: str) -> Bus | None:
    return next((bus for start, bus in buses.items() if reason.startswith(start)), None)


def _where(times: Times, bus: Bus | None) -> str:
    if times.place == NOWHERE:
        return ""
    if times.place == OTHERS:
        return "others"
    if bus is not None:
        return f"{times.place:#x} {_name_at(bus, times)}"
    if times.reason.endswith("msr") and msr_name(times.place) != f"{times.place:#x}":
        return f"{times.place:#x} {msr_name(times.place)}"
    return f"{times.place:#x}"


def _name_at(bus: Bus, times: Times) -> str:
    found = bus.find(times.place)
    if found is None:
        return "nobody"
    is_write = not times.reason.endswith((" in", " read"))
    register = getattr(found.device, "register_name", lambda offset, is_write: "")
    return f"{found.device.name} {register(times.place - found.base, is_write)}".rstrip()
