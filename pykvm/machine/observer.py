"""Who watches a run: the protocol, and the log of the last exits.

The run loop tells its observers about every exit before any device sees it. Whatever looks into a machine is one:
tracers, statistics, recorders. An observer that also has one of the methods of the other protocols hears of more; who
has none of them pays for none. Leaves out changing the guest: an observer looks on.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from pykvm.kvm import (
    Exit,
    FailEntry,
    InternalError,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    ReadExit,
    Shutdown,
    Wrmsr,
)

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine
    from pykvm.machine.stop import Stop

__all__ = ["CloseObserver", "EntryObserver", "LastExits", "MachineObserver", "Observer", "describe_exit"]


class Observer(Protocol):
    """What the run loop calls. ``vcpu`` is the vCPU's id."""

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Take note of ``exit``, which has not been handled yet."""

    def tick(self) -> None:
        """Take note that some time has passed: called about ten times a second while the guest runs, and at the end."""


class CloseObserver(Observer, Protocol):
    """An observer of everything. Each of these methods is optional; all are called with the machine's lock held."""

    def answer(self, vcpu: int, exit: ReadExit | Wrmsr, data: bytes | None) -> None:
        """Take note that ``exit`` was answered with ``data``, or refused if that is None: an MSR access."""

    def interrupt(self, vcpu: int, vector: int) -> None:
        """Take note that the CPU takes the interrupt ``vector`` from a controller outside the kernel."""

    def coalesced(self, vcpu: int, write: IoOut | MmioWrite) -> None:
        """Take note of a write that KVM had kept back, and that a device is about to see: it was no exit."""


class EntryObserver(Observer, Protocol):
    """An observer of how long things take. Each of these methods is optional, and is called without the lock."""

    def enter(self, vcpu: int) -> None:
        """Take note that the CPU is about to enter the guest: what its last exit wanted is done."""

    def leave(self, vcpu: int) -> None:
        """Take note that the CPU's run is over."""


class MachineObserver(Observer, Protocol):
    """An observer that looks into the machine it watches. Each of these methods is optional."""

    def attach(self, machine: Machine) -> None:
        """Take note that ``machine`` is what is watched from now on: it is complete, and does not run."""

    def detach(self) -> None:
        """Take note that it is watched no more."""

    def stopped(self, stop: Stop) -> None:
        """Take note of the end of a run, with the lock held. It may be told twice."""


class LastExits:
    """Keeps the last ``limit`` exits of each vCPU, and counts them all."""

    def __init__(self, limit: int = 16) -> None:
        self._limit = limit
        self._exits: dict[int, deque[Exit]] = {}
        self.count = 0

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Keep ``exit``."""
        try:
            self._exits[vcpu].append(exit)
        except KeyError:
            self._exits[vcpu] = deque([exit], self._limit)
        self.count += 1

    def tick(self) -> None:
        """Do nothing."""

    def forget(self) -> None:
        """Forget the exits, and go on counting."""
        self._exits.clear()

    def exits(self, vcpu: int = 0) -> tuple[Exit, ...]:
        """Return the exits kept of ``vcpu``, oldest first."""
        return tuple(self._exits.get(vcpu, ()))


def describe_exit(exit: Exit) -> str:
    """Return ``exit`` in a few words, as a trace or a report shows it: ``io out 0x3f8 'H'``."""
    match exit:
        case IoOut():
            return f"io out {exit.port:#x}{_shape(exit.size, exit.count)} {_data(exit.data)}"
        case IoIn():
            return f"io in {exit.port:#x}{_shape(exit.size, exit.count)}"
        case MmioWrite():
            return f"mmio write {exit.address:#x} {_data(exit.data)}"
        case MmioRead():
            return f"mmio read {exit.address:#x} {exit.size} bytes"
        case Shutdown():
            return "shutdown (triple fault)"
        case InternalError(instruction=code) if code:
            return f"internal error {exit.suberror} (emulation of {code[:4].hex(' ')} ...)"
        case InternalError():
            return f"internal error {exit.suberror}"
        case FailEntry():
            return f"fail entry {exit.hardware_entry_failure_reason:#x}"
    return exit.reason.name.lower().replace("_", " ")


def _shape(size: int, count: int) -> str:
    return "" if size == count == 1 else f" {count}x{size}"


def _data(data: bytes) -> str:
    shown = data[:16]
    if all(0x20 <= byte < 0x7F for byte in shown):
        text = f"'{shown.decode()}'"
    elif len(data) <= 8:
        text = f"{int.from_bytes(data, 'little'):#x}"
    else:
        text = shown.hex(" ")
    return text + ("..." if len(data) > len(shown) else "")
