"""Which exits a trace is about. A filter that lets everything through is none at all: nobody asks it anything.

    kinds       io, in, out, mmio, msr, interrupt, coalesced, and every KVM_EXIT_* in lower case without its prefix
    ports       of I/O ports, inclusive       with kinds: of those, which I/O exits
    addresses   of guest-physical addresses   without: only I/O exits there, only MMIO exits there, or both
    cpus        ids of vCPUs

Leaves out how many lines are wanted, which the tracer counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pykvm.errors import ConfigurationError
from pykvm.kvm import ExitReason, IoIn, IoOut, MmioRead, MmioWrite
from pykvm.names import did_you_mean
from pykvm.observe.tracing.line import Coalesced, Event
from pykvm.observe.tracing.words import reason_of

__all__ = ["TraceFilter", "check_kinds"]

_IO, _MMIO = (IoIn, IoOut), (MmioRead, MmioWrite)
_GROUPS = {"in": {"io"}, "out": {"io"}, "msr": {"x86_rdmsr", "x86_wrmsr"}}

Predicate = Callable[[int, Event], bool]


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """What is wanted; whatever is empty does not matter. A range's stop is not in it."""

    kinds: Collection[str] = ()
    ports: Sequence[range] = ()
    addresses: Sequence[range] = ()
    cpus: Collection[int] = ()

    def predicate(self) -> Predicate | None:
        """Return what says of a CPU's id and an event whether they are wanted; None if everything is.

        Raises: ConfigurationError for a kind that does not exist.
        """
        check_kinds(self.kinds)
        parts = [part for part in (self._by_cpu(), self._by_kind(), self._by_place()) if part is not None]
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0]
        return lambda cpu, event: all(part(cpu, event) for part in parts)

    def _by_cpu(self) -> Predicate | None:
        cpus = frozenset(self.cpus)
        return (lambda cpu, event: cpu in cpus) if cpus else None

    def _by_kind(self) -> Predicate | None:
        kinds = frozenset(self.kinds)
        if not kinds:
            return None
        reasons = kinds.union(*(_GROUPS[kind] for kind in kinds & {"msr"}))

        def is_wanted(cpu: int, event: Event) -> bool:
            return (
                reason_of(event) in reasons
                or ("in" in kinds and isinstance(event, IoIn))
                or ("out" in kinds and isinstance(event, IoOut))
            )

        return is_wanted

    def _by_place(self) -> Predicate | None:
        ports, addresses = tuple(self.ports), tuple(self.addresses)
        if not ports and not addresses:
            return None
        others = bool(self.kinds)  # whoever names kinds wants them, and restricts only those that have a place

        def is_wanted(cpu: int, event: Event) -> bool:
            access = event.write if isinstance(event, Coalesced) else event
            if isinstance(access, _IO):
                return _meets(access.port, access.size, ports) if ports else others
            if isinstance(access, _MMIO):
                return _meets(access.address, access.size, addresses) if addresses else others
            return others

        return is_wanted


def check_kinds(kinds: Collection[str]) -> None:
    """Raise ConfigurationError for the first of ``kinds`` that does not exist."""
    known = ["io", *_GROUPS, "interrupt", "coalesced", *(reason.name.lower() for reason in ExitReason)]
    for kind in kinds:
        if kind not in known:
            hint = did_you_mean(kind, known) or "such as io, in, out, mmio, hlt, msr, interrupt, coalesced"
            raise ConfigurationError(f"there is no kind of exit called {kind!r}: {hint}")


def _meets(start: int, size: int, ranges: Sequence[range]) -> bool:
    return any(start < wanted.stop and wanted.start < start + size for wanted in ranges)
