"""A line of a trace, as a value: what happened, when, where, and what was answered.

Three things make a line: an exit; an interrupt that a CPU takes from a controller outside the kernel; and a write that
KVM had kept back, which was no exit when it happened. Leaves out how a line looks: see ``words`` and the formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.kvm import Exit, IoOut, MmioWrite

__all__ = ["Coalesced", "Event", "InterruptTaken", "Place", "TraceEnd", "TraceLine"]


@dataclass(frozen=True, slots=True)
class InterruptTaken:
    """The CPU takes the interrupt ``vector``."""

    vector: int


@dataclass(frozen=True, slots=True)
class Coalesced:
    """KVM had kept ``write`` back, and the device sees it now."""

    write: IoOut | MmioWrite


Event = Exit | InterruptTaken | Coalesced


@dataclass(frozen=True, slots=True)
class Place:
    """The instruction that an exit is about: its linear ``address``, its ``text``, and ``source``, if that is known.

    ``source`` is a line (``"hello.S:14"``), else the symbol before it (``"<print+0x3>"``), else empty.
    """

    address: int
    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class TraceLine:
    """Something that happened to ``cpu``. Times are in nanoseconds.

    ``number`` counts exits from 1, those included that are not shown; None for what is no exit. ``time`` is since the
    first entry into the guest, ``since`` the time since the line before, of whichever CPU, and ``resumed`` when this
    CPU went on after its line before, on the scale of ``time``: the guest and the kernel had it from then on.
    ``register`` is the device's name and the register's ("serial THR"), and ``is_text`` says that its bytes are
    characters. ``answer`` is what a read was answered; ``refused`` an MSR access that was, with #GP.
    """

    number: int | None
    time: int
    since: int
    resumed: int
    cpu: int
    event: Event
    register: str = ""
    is_text: bool = False
    place: Place | None = None
    answer: bytes | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class TraceEnd:
    """The end of a run: why it ended, in a few ``words``, after how many ``exits`` and nanoseconds of ``duration``.

    ``time`` is the end, on the scale of a line's.
    """

    words: str
    exits: int
    duration: int
    time: int
