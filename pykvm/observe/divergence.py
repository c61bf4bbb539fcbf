"""The first difference between a recording and the devices of today, as data and in words.

    run.jsonl: line 14, exit 12, after 0.412 ms: io in 0x3fd
      the recording   60
      now             61   serial at 0x3f8-0x3ff
      bit 0 differs

Leaves out finding it: see ``replaying``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pykvm.machine import describe_exit
from pykvm.observe.recording import EndLine, EventLine, ExitLine, Interrupt, Line

__all__ = ["Divergence", "Place", "describe", "difference", "shown"]

MOST_SHOWN = 32  # bytes
WIDEST_NUMBER = 8  # bytes whose bits are worth a word
MILLISECOND = 1_000_000  # nanoseconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a recording: the file's ``name``, the ``line``, how many ``exits`` up to there, the ``time`` in ns.

    ``position`` counts the lines after the header from 0, and ``last`` is that of the last line that it takes to see
    the divergence, if that is another.
    """

    name: str
    line: int
    exits: int
    time: int
    position: int
    last: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: line {self.line}, exit {self.exits}, after {self.time / MILLISECOND:.3f} ms"


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a replay differs from its recording.

    ``what`` is the recorded exit, event or end; ``recorded`` and ``now`` are what came of it, ``who`` says who does it
    now, and ``hint`` in what the two differ. ``error`` is the exception that a device raised, if it is that.
    """

    place: Place
    what: str
    who: str
    recorded: str
    now: str
    hint: str = ""
    error: Exception | None = field(default=None, compare=False)

    def is_like(self, other: Divergence) -> bool:
        """Return whether ``other`` is the same difference, perhaps at another place."""
        return (self.what, self.who, self.recorded, self.now) == (other.what, other.who, other.recorded, other.now)

    def __str__(self) -> str:
        width = max(len(self.recorded), len(self.now))
        lines = [
            f"{self.place}: {self.what}",
            f"  the recording   {self.recorded}",
            f"  now             {self.now:{width}}   {self.who}",
        ]
        return "\n".join([*lines, f"  {self.hint}"] if self.hint else lines)


def describe(line: Line) -> str:
    """Return ``line`` in a few words."""
    match line:
        case ExitLine(exit=exit):
            return describe_exit(exit)
        case EventLine(event=Interrupt(vcpu=vcpu)):
            return f"CPU {vcpu} takes an interrupt"
        case EventLine(event=event):
            return type(event).__name__
        case EndLine():
            return "the end of the run"


def shown(data: bytes) -> str:
    """Return ``data`` in hexadecimal, the first bytes of it."""
    return data[:MOST_SHOWN].hex(" ") + (f" ... ({len(data)} bytes)" if len(data) > MOST_SHOWN else "")


def difference(recorded: bytes | None, now: bytes) -> str:
    """Return which bits of a number, or which byte of many, differ: empty if the two cannot be compared."""
    if recorded is None or len(recorded) != len(now):
        return ""
    if len(now) > WIDEST_NUMBER:
        first = next((position for position, pair in enumerate(zip(recorded, now, strict=True)) if len({*pair}) > 1), 0)
        return f"byte {first} is the first that differs: {recorded[first]:02x}, now {now[first]:02x}"
    bits = int.from_bytes(recorded, "little") ^ int.from_bytes(now, "little")
    numbers = [str(bit) for bit in range(8 * len(now)) if bits >> bit & 1]
    return f"bit {numbers[0]} differs" if len(numbers) == 1 else f"bits {', '.join(numbers)} differ"
