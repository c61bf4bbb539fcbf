"""``StatisticsResult``: what a run's time went into, as data and as columns of text.

Leaves out how it is counted: see ``times`` and ``counters``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pykvm.kvm import Statistic

__all__ = ["ExitStatistics", "StatisticsResult"]

_HEADINGS = ("exit", "where", "count", "time", "user p50", "user p99", "guest p50", "guest p99", "bytes")
_TEXTS = (0, 1)  # columns; the others are numbers
_MOST_LINES = 40


@dataclass(frozen=True, slots=True)
class ExitStatistics:
    """All exits for one ``reason`` at one place: a port, an address, an MSR, a hypercall or a vector.

    ``place`` is None if such exits have none, or if they are those of many places that were counted together;
    ``where`` says it in words. Times are in nanoseconds: in user space from the exit to the next entry (``user_*``), in
    the kernel and the guest from the entry to the exit (``guest_*``); percentiles are within 1/16 of the truth, and
    None if nothing was timed. ``share`` is the part of all time, 0 to 1.
    """

    reason: str
    place: int | None
    where: str
    count: int
    bytes: int
    share: float
    user_total: int
    user_p50: int | None
    user_p99: int | None
    guest_total: int
    guest_p50: int | None
    guest_p99: int | None


@dataclass(frozen=True, slots=True)
class StatisticsResult:
    """What was counted: ``exits``, what took longest first, and KVM's own ``counters`` of the VM and each vCPU."""

    exits: tuple[ExitStatistics, ...]
    counters: Mapping[str, tuple[Statistic, ...]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Return how many exits there were. Writes that KVM kept back were none."""
        return sum(exits.count for exits in self.exits if not exits.reason.startswith("coalesced"))

    @property
    def user_total(self) -> int:
        """Return the nanoseconds in user space, of all CPUs together."""
        return sum(exits.user_total for exits in self.exits)

    @property
    def guest_total(self) -> int:
        """Return the nanoseconds in the kernel and the guest, of all CPUs together."""
        return sum(exits.guest_total for exits in self.exits)

    def __str__(self) -> str:
        total = f"{self.count:,} exits, {_duration(self.user_total)} in user space"
        lines = [f"{total}, {_duration(self.guest_total)} in the kernel and the guest"]
        if self.exits:
            lines += ["", *_columns([_HEADINGS, *map(_cells, self.exits[:_MOST_LINES])])]
        rest = self.exits[_MOST_LINES:]
        if rest:
            lines.append(f"and {len(rest)} more, {sum(exits.share for exits in rest):.1%} of the time")
        for name, counters in self.counters.items():
            rows = [("", *str(counter).split(": ", 1)) for counter in counters]
            lines += ["", f"KVM's own counters of the {name}", *(_columns(rows) if rows else ["  all 0"])]
        return "\n".join(lines)


def _cells(exits: ExitStatistics) -> tuple[str, ...]:
    times = (exits.user_p50, exits.user_p99, exits.guest_p50, exits.guest_p99)
    durations = ("-" if time is None else _duration(time) for time in times)
    size = f"{exits.bytes:,}" if exits.bytes else "-"
    return exits.reason, exits.where, f"{exits.count:,}", f"{exits.share:.1%}", *durations, size


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_pad(cell, widths[n], n) for n, cell in enumerate(row)) for row in rows]


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in _TEXTS else cell.rjust(width)


def _duration(nanoseconds: int) -> str:
    if nanoseconds < 1000:
        return f"{nanoseconds} ns"
    for unit, size in (("us", 1e3), ("ms", 1e6)):
        if nanoseconds < 999.95 * size:
            return f"{nanoseconds / size:.1f} {unit}"
    return f"{nanoseconds / 1e9:.2f} s"
