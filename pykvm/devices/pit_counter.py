"""One of the three counters of an 8254, as a function of the ticks of its input clock.

Nothing is simulated tick by tick: what a counter does is one of two ``Phase``s, a ``Run`` with a formula for the count
and for the pin OUT at any tick, or a ``Still``. Software and the pin GATE change what comes next:

    count written          GATE rises           cycle ends
         |                     |                    |
    -----+--> loaded at   -----+--> loaded at  -----+--> loaded, if a new count was written
              the next tick         the next tick        (modes 2 and 3)
              (0, 4; first          (1, 2, 3, 5)
              count of 2, 3)

See: Intel 8254 data sheet (order 231164), chapters "Write Operations", "Read Operations" and "Mode Definitions". Where
that leaves things open: before it is programmed a counter is in mode 3, has OUT high and reads 0; a count of 1 in
modes 2 and 3, which it forbids, leaves OUT high; BCD digits above 9 carry over; a counter that GATE stops in the very
tick of its strobe goes on with that tick afterwards.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import ClassVar

from pykvm.devices.fields import BYTE, Bool, Choice, Either, Maybe, Member, Number, Record
from pykvm.devices.state import Remembered, Stateful

__all__ = ["Access", "Control", "Counter", "Mode", "Phase", "Run", "Status", "Still"]


class Mode(enum.Enum):
    """What a counter does with its count N, and when OUT is high."""

    INTERRUPT_ON_TERMINAL_COUNT = 0  # from N ticks after the count was loaded on
    ONE_SHOT = 1  # but for N ticks after GATE rose
    RATE_GENERATOR = 2  # but for the last of every N ticks
    SQUARE_WAVE = 3  # in the first half of every N ticks, the longer one
    SOFTWARE_STROBE = 4  # but for one tick, N ticks after the count was loaded
    HARDWARE_STROBE = 5  # but for one tick, N ticks after GATE rose


COUNTS_WHILE_GATE_IS_HIGH = (Mode.INTERRUPT_ON_TERMINAL_COUNT, Mode.SOFTWARE_STROBE)  # loaded when the count is written
PERIODIC = (Mode.RATE_GENERATOR, Mode.SQUARE_WAVE)
TRIGGERED = (Mode.ONE_SHOT, Mode.HARDWARE_STROBE)  # loaded when GATE rises, whatever it does then


class Access(enum.Enum):
    """Which bytes of the 16-bit count software reads and writes; a byte that is not written is 0."""

    LOW = 0b01
    HIGH = 0b10
    BOTH = 0b11  # the low one first


class Control(enum.Flag):
    """The control word.

      7   6   5   4   3   2   1   0
    +---+---+---+---+---+---+---+---+
    |counter| Access|    Mode   |BCD|      Mode: 110 and 111 are 010 and 011
    +---+---+---+---+---+---+---+---+
    """

    BCD = 1 << 0  # the count has four decimal digits
    MODE = 0b111 << 1
    ACCESS = 0b11 << 4
    COUNTER = 0b11 << 6


class Status(enum.Flag):
    """The status byte; its lower six bits are those of the control word.

      7    6   5   4   3   2   1   0
    +---+----+---+---+---+---+---+---+
    |OUT|NULL| Access|    Mode   |BCD|
    +---+----+---+---+---+---+---+---+
    """

    NULL_COUNT = 1 << 6  # the count last written has not been loaded yet
    OUT = 1 << 7


@dataclass(frozen=True, slots=True)
class Run:
    """Counting down from ``count``, which was loaded at tick ``origin``; beyond 0 comes ``modulus`` - 1."""

    mode: Mode
    count: int
    modulus: int
    origin: int

    @property
    def high_half(self) -> int:
        """Return how many ticks of a square wave's cycle OUT is high."""
        return (self.count + 1) // 2

    def value(self, tick: int) -> int:
        """Return what is left of the count at ``tick``."""
        elapsed = tick - self.origin
        match self.mode:
            case Mode.RATE_GENERATOR:
                left = self.count - elapsed % self.count
            case Mode.SQUARE_WAVE:
                # Each half counts the even part of the count down, by two.
                place = elapsed % self.count
                left = self.count // 2 * 2 - 2 * (place if place < self.high_half else place - self.high_half)
            case _:
                left = self.count - elapsed
        return left % self.modulus

    def output(self, tick: int) -> bool:
        """Return the level of OUT at ``tick``."""
        elapsed = tick - self.origin
        match self.mode:
            case Mode.INTERRUPT_ON_TERMINAL_COUNT | Mode.ONE_SHOT:
                return elapsed >= self.count
            case Mode.RATE_GENERATOR:
                return self.count == 1 or elapsed % self.count < self.count - 1
            case Mode.SQUARE_WAVE:
                return elapsed % self.count < self.high_half
            case Mode.SOFTWARE_STROBE | Mode.HARDWARE_STROBE:
                return elapsed != self.count

    def next_rise(self, tick: int) -> int | None:
        """Return the first tick after ``tick`` at which OUT goes from low to high, or None."""
        if self.mode in PERIODIC:
            return None if self.count == 1 else self._next_cycle(tick)
        one_shot = self.mode in (Mode.INTERRUPT_ON_TERMINAL_COUNT, Mode.ONE_SHOT)
        rise = self.origin + self.count + (0 if one_shot else 1)
        return rise if rise > tick else None

    def next_reload(self, tick: int, count: int) -> tuple[int, Run]:
        """Return when, after ``tick``, a periodic counter takes a new ``count``, and how it runs from then on."""
        cycle_end = self._next_cycle(tick)
        middle = cycle_end - self.count + self.high_half
        if self.mode is Mode.SQUARE_WAVE and tick < middle < cycle_end:
            new = replace(self, count=count)  # its low half begins in the middle of the old cycle
            return middle, replace(new, origin=middle - new.high_half)
        return cycle_end, replace(self, count=count, origin=cycle_end)

    def _next_cycle(self, tick: int) -> int:
        return tick + self.count - (tick - self.origin) % self.count


@dataclass(frozen=True, slots=True)
class Still:
    """Not counting. ``paused`` is what goes on when GATE rises, stopped at tick ``since``."""

    held_value: int
    held_output: bool
    since: int = 0
    paused: Run | None = None

    def value(self, tick: int) -> int:
        """Return the count, which stays the same."""
        return self.held_value

    def output(self, tick: int) -> bool:
        """Return the level of OUT, which stays the same."""
        return self.held_output

    def next_rise(self, tick: int) -> int | None:
        """Return None: OUT does not rise."""
        return None


Phase = Run | Still

CONTROL_BITS = (Control.ACCESS | Control.MODE | Control.BCD).value


def meaning(control: int) -> tuple[Mode, Access, int]:
    """Return what the bits of a control word say: the mode, how counts are accessed, and their modulus."""
    mode = (control & Control.MODE.value) >> 1
    chosen = Mode(mode & 0b011 if mode > Mode.HARDWARE_STROBE.value else mode)
    access = Access((control & Control.ACCESS.value) >> 4)
    return chosen, access, 10_000 if control & Control.BCD.value else 0x10000


# Every control word that is not a command to latch.
MEANING = {control: meaning(control) for control in range(CONTROL_BITS + 1) if control & Control.ACCESS.value}
COUNT = Number(0x10000, 1)
TICK = Number(2**53, -(2**53))  # of which the nanoseconds are a TIME
RUN = Record(Run, mode=Member(Mode), count=COUNT, modulus=Choice(10_000, 0x10000), origin=TICK)
STILL = Record(Still, held_value=Number(0xFFFF), held_output=Bool(), since=TICK, paused=Maybe(RUN))


class Counter(Stateful):
    """A counter, ``gate`` being the level of its pin GATE at first. ``advance`` tells it how late it is."""

    remembers: ClassVar[Remembered] = {
        "_gate": Bool(),
        "_tick": TICK,
        "_control": Choice(*MEANING),
        "_count": Maybe(COUNT),
        "_null_count": Bool(),
        "_first_byte": Maybe(BYTE),
        "_second_is_next": Bool(),
        "_latched_count": Maybe(Number(0xFFFF)),
        "_latched_status": Maybe(BYTE),
        "_load_at": Maybe(TICK),
        "_phase": Either(RUN, STILL),
    }

    def __init__(self, *, gate: bool) -> None:
        self._gate = gate
        self._tick = 0
        self.program(Access.BOTH.value << 4 | Mode.SQUARE_WAVE.value << 1)

    def program(self, control: int) -> None:
        """Take a control word that is meant for this counter, and is not a latch command."""
        self._control = control & CONTROL_BITS
        self._restored()
        self._count: int | None = None  # the one last written, 1 to the modulus
        self._null_count = True
        self._first_byte: int | None = None  # of a count being written
        self._second_is_next = False  # of a count being read
        self._latched_count: int | None = None
        self._latched_status: int | None = None
        self._load_at: int | None = None  # the tick at which the count is loaded, but for the ends of cycles
        self._phase: Phase = Still(0, self._mode is not Mode.INTERRUPT_ON_TERMINAL_COUNT)

    def _restored(self) -> None:
        self._mode, self._access, self._modulus = MEANING[self._control]

    # ---- time ----

    @property
    def output(self) -> bool:
        """Return the level of OUT."""
        return self._phase.output(self._tick)

    def advance(self, tick: int) -> bool:
        """Let the clock tick until it has done so ``tick`` times in all; return whether OUT rose meanwhile."""
        rise = self.next_rise()
        for begin, phase in self._coming():
            if begin <= tick:
                self._phase, self._null_count, self._load_at = phase, False, None
        self._tick = tick
        return rise is not None and rise <= tick

    def next_rise(self) -> int | None:
        """Return the next tick at which OUT goes from low to high, as things stand, or None."""
        rise = self._phase.next_rise(self._tick)
        for begin, phase in self._coming():
            if rise is not None and rise < begin:
                return rise
            if phase.output(begin) and not self._phase.output(begin - 1):
                return begin
            return phase.next_rise(begin)
        return rise

    def _coming(self) -> list[tuple[int, Phase]]:
        """Return the phase that will follow the present one, with its first tick, if there is one."""
        if self._load_at is not None:
            return [(self._load_at, self._loaded(self._load_at))]
        running = self._phase
        if isinstance(running, Run) and running.mode in PERIODIC and self._null_count and self._count is not None:
            return [running.next_reload(self._tick, self._count)]
        return []

    def _loaded(self, tick: int) -> Phase:
        if self._count is None:
            return self._phase
        run = Run(self._mode, self._count, self._modulus, tick)
        return run if self._gate or self._mode in TRIGGERED else self._stopped(run, tick)

    def _stopped(self, run: Run, tick: int) -> Still:
        if self._mode in PERIODIC:
            return Still(run.value(tick), True)
        return Still(run.value(tick), run.output(tick), tick, run)

    def set_gate(self, level: bool) -> None:
        """Drive the pin GATE high or low."""
        if level == self._gate:
            return
        self._gate = level
        phase = self._phase
        if not level and isinstance(phase, Run) and self._mode not in TRIGGERED:
            self._phase = self._stopped(phase, self._tick)
        elif level and self._mode not in COUNTS_WHILE_GATE_IS_HIGH and self._count is not None:
            self._load_at = self._tick + 1
        elif level and isinstance(phase, Still) and phase.paused is not None:
            self._phase = replace(phase.paused, origin=phase.paused.origin + self._tick - phase.since)

    # ---- writing a count ----

    def write(self, value: int) -> None:
        """Take a byte of a count."""
        match self._access:
            case Access.LOW:
                self._set_count(value)
            case Access.HIGH:
                self._set_count(value << 8)
            case Access.BOTH if self._first_byte is None:
                self._write_first(value)
            case Access.BOTH:
                self._set_count(value << 8 | (self._first_byte or 0))

    def _write_first(self, value: int) -> None:
        self._first_byte = value
        if self._mode is Mode.INTERRUPT_ON_TERMINAL_COUNT:  # the others go on until they have both bytes
            self._phase = Still(self._phase.value(self._tick), False)
            self._load_at = None

    def _set_count(self, written: int) -> None:
        is_initial = self._count is None
        self._first_byte = None
        self._count = self._decode(written) % self._modulus or self._modulus  # 0 stands for the greatest
        self._null_count = True
        if self._mode in COUNTS_WHILE_GATE_IS_HIGH or (self._mode in PERIODIC and is_initial):
            self._load_at = self._tick + 1

    # ---- reading ----

    def latch_count(self) -> None:
        """Keep the count of this moment until it has been read; does nothing if one is being kept."""
        if self._latched_count is None:
            self._latched_count = self._phase.value(self._tick)

    def latch_status(self) -> None:
        """Keep the status of this moment until it has been read; does nothing if one is being kept."""
        if self._latched_status is None:
            status = Status.OUT.value if self.output else 0
            null_count = Status.NULL_COUNT.value if self._null_count else 0
            self._latched_status = status | null_count | self._control

    def read(self) -> int:
        """Return the status if it is latched, else the next byte of the latched count, else of the count."""
        if self._latched_status is not None:
            status, self._latched_status = self._latched_status, None
            return status
        latched = self._latched_count
        count = self._encode(self._phase.value(self._tick) if latched is None else latched)
        high = self._access is Access.HIGH or self._second_is_next
        self._second_is_next = self._access is Access.BOTH and not self._second_is_next
        if not self._second_is_next:
            self._latched_count = None
        return (count >> 8 if high else count) & 0xFF

    @property
    def _is_bcd(self) -> bool:
        return bool(self._control & Control.BCD.value)

    def _decode(self, written: int) -> int:
        if not self._is_bcd:
            return written
        return sum((written >> 4 * place & 0xF) * 10**place for place in range(4))

    def _encode(self, count: int) -> int:
        return int(str(count), 16) if self._is_bcd else count
