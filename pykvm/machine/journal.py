"""What reaches a machine's devices from outside, for whoever writes a run down so that it can be played again.

A device does what the guest's accesses make it do, and what comes from outside. All of that goes through here:

    the time              stands still between steps, and each exit is one: see ``StepClock``
    input and keys        what the serial port was given to read, what was typed, the power button
    doorbells             what rang without an exit
    guest memory          what a device read of it by itself: DMA

With these written down beside the exits, a run can be repeated without its guest. Leaves out what somebody does to a
device by calling its other methods during a run, and what devices say to the interrupt controllers in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pykvm.devices import Alarm, Clock, KeyEvent, ManualClock
from pykvm.machine.observer import CloseObserver
from pykvm.machine.stop import Stop

if TYPE_CHECKING:
    from pykvm.machine.board import Board

__all__ = [
    "NO_MACHINE",
    "Event",
    "Input",
    "Journal",
    "Keys",
    "MemoryRead",
    "PowerButton",
    "Rings",
    "Setup",
    "StepClock",
    "Tap",
    "TimePassed",
]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a machine's devices depend on.

    ``memory`` is the regions of guest memory: address, bytes, whether read-only. ``start`` is what the real-time clock
    shows at time 0.
    """

    cpus: int
    memory: tuple[tuple[int, int, bool], ...]
    irqchip: str
    devices: tuple[str, ...]
    start: datetime


# For who records no machine, but exits given to devices by hand.
NO_MACHINE = Setup(1, (), "none", (), datetime(1970, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The time came for which a device had set an alarm."""


@dataclass(frozen=True, slots=True)
class Input:
    """The serial port asked for input and got ``data``: by the guest's access, or else because there was some."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys were pressed and released: ``queued`` one after the other, or at once."""

    events: tuple[KeyEvent, ...]
    queued: bool


@dataclass(frozen=True, slots=True)
class PowerButton:
    """The power button was pressed."""


@dataclass(frozen=True, slots=True)
class Rings:
    """The doorbell at ``port`` rang ``times`` times."""

    port: int
    times: int


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """A device read ``data`` at ``gpa`` of guest memory."""

    gpa: int
    data: bytes


Event = TimePassed | Input | Keys | PowerButton | Rings | MemoryRead


@runtime_checkable
class Journal(CloseObserver, Protocol):
    """An observer that a machine tells everything. All is called with the machine's lock held."""

    def begin(self, setup: Setup, clock: StepClock) -> None:
        """Take note of the machine, once, when it is made. ``clock`` is to be stepped at each exit."""

    def tell(self, event: Event, *, inside: bool) -> None:
        """Take note of ``event``, which has no effect yet; ``inside`` says that it happens while an exit is handled."""

    def end(self, stop: Stop) -> None:
        """Take note of the end of a run. It may be told twice."""


class Tap:
    """Sits between the devices of a machine and what is outside, and tells ``journal``.

    ``clock`` is for the devices; ``is_inside`` returns whether the calling thread is handling an exit.
    """

    def __init__(self, journal: Journal, source: Clock, is_inside: Callable[[], bool]) -> None:
        self.clock = StepClock(source, lambda: self._tell(TimePassed()))
        self._journal = journal
        self._is_inside = is_inside

    def begin(self, setup: Setup, board: Board) -> None:
        """Begin to tell what happens to ``board``."""
        self._journal.begin(setup, self.clock)
        board.keyboard.on_keys = self._on_keys
        board.on_power_button = lambda: self._tell(PowerButton())

    def serial_input(self, read: Callable[[int], bytes] | None) -> Callable[[int], bytes] | None:
        """Return ``read`` as the serial port is to call it."""
        if read is None:
            return None

        def read_and_tell(limit: int) -> bytes:
            data = read(limit)[:limit]
            if data or self._is_inside():
                self._tell(Input(data))
            return data

        return read_and_tell

    def dma_read(self, read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
        """Return ``read``, of guest memory, as a device is to call it."""

        def read_and_tell(gpa: int, size: int) -> bytes:
            data = read(gpa, size)
            self._tell(MemoryRead(gpa, data))
            return data

        return read_and_tell

    def doorbell(self, port: int, ring: Callable[[int], None]) -> Callable[[int], None]:
        """Return ``ring``, of the device at ``port``, as whoever hears the doorbell is to call it."""

        def tell_and_ring(times: int) -> None:
            self._tell(Rings(port, times))
            ring(times)

        return tell_and_ring

    def _on_keys(self, events: tuple[KeyEvent, ...], queued: bool) -> None:
        if events:
            self._tell(Keys(events, queued))

    def _tell(self, event: Event) -> None:
        self._journal.tell(event, inside=self._is_inside())


class StepClock:
    """A clock that goes on only in steps, each up to the time of ``source``: what devices see can be written down.

    ``on_due`` is called when an alarm is due, and is to call ``step()``.
    """

    def __init__(self, source: Clock, on_due: Callable[[], None]) -> None:
        self._source = source
        self._on_due = on_due
        self._hands = ManualClock()

    def now(self) -> int:
        """Return the nanoseconds up to the last step."""
        return self._hands.now()

    def step(self) -> int:
        """Go on to the time that it is, make the calls that are due on the way, and return the time."""
        self._hands.advance(max(0, self._source.now() - self._hands.now()))
        return self._hands.now()

    def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
        """Call ``callback`` in the step that reaches ``when``."""
        wake_up = self._source.call_at(when, self._on_due)

        def ring() -> None:
            wake_up.cancel()
            callback()

        return _Both(wake_up, self._hands.call_at(when, ring))


@dataclass(frozen=True, slots=True)
class _Both:
    first: Alarm
    second: Alarm

    def cancel(self) -> None:
        self.first.cancel()
        self.second.cancel()
