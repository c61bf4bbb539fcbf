"""The devices of a recorded machine without that machine: two buses, a clock, interrupt lines and a mainboard.

Where KVM would be there is nothing, and what came from outside comes out of the recording. See:
docs/reference/recording.md. Leaves out who accesses the devices: see ``replaying``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from pykvm.devices import Alarm, Bus, IrqLine, ManualClock
from pykvm.errors import ConfigurationError, PykvmError, RecordingError
from pykvm.kvm import Vm
from pykvm.machine import Control, DebugExitWritten, IrqchipKind, PoweredOff, ResetRequested
from pykvm.machine.board import Board, Wishes
from pykvm.machine.interrupts import make_interrupts
from pykvm.machine.journal import Input, Keys, MemoryRead, PowerButton, Rings, Setup
from pykvm.memory import GuestMemory
from pykvm.observe.recording import EventLine, ExitLine, Header

__all__ = ["Workbench"]

PORTS = 1 << 16
ADDRESSES = 1 << 52  # the widest guest-physical address that x86 allows (MAXPHYADDR)
S3 = 3
MOST_CALLS = 200_000


class BoundedClock(ManualClock):
    """A clock that refuses to make more than ``MOST_CALLS`` calls in one step, as an edited recording may want."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def advance(self, nanoseconds: int) -> None:
        """Let time pass. Raises: ConfigurationError if there are too many calls on the way."""
        self._calls = 0
        super().advance(nanoseconds)

    def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
        """Call ``callback`` during the ``advance()`` that reaches ``when``."""

        def count_and_call() -> None:
            self._calls += 1
            if self._calls > MOST_CALLS:
                raise ConfigurationError(f"devices have more than {MOST_CALLS} alarms on the way to t")
            callback()

        return super().call_at(when, count_and_call)


class Workbench:
    """The devices: plug in more on ``pio`` and ``mmio``, with ``clock`` and ``line()``.

    ``board`` is the mainboard, None without one; ``control`` is asked to stop the run.
    """

    def __init__(
        self, setup: Setup, memory: GuestMemory, output: Callable[[bytes], object], *, with_board: bool
    ) -> None:
        self.pio, self.mmio = Bus("port", PORTS), Bus("MMIO", ADDRESSES)
        self.clock = BoundedClock()
        self.control = Control()
        self._memory = memory
        kind = IrqchipKind(setup.irqchip)
        self.interrupts = make_interrupts(kind, cast(Vm, _NoKernel()), self.clock, lambda level: None)
        self._input: list[bytes] = []  # what the serial port is to read during this exit
        self._reads: list[MemoryRead] = []  # what devices are to read of guest memory during it
        self._bells: dict[int, Callable[[int], None]] = {}
        self._asleep = False
        self.board = self._make_board(setup, output) if with_board else None

    @classmethod
    @contextmanager
    def open(
        cls, name: str, header: Header, output: Callable[[bytes], object], *, with_board: bool
    ) -> Iterator[Workbench]:
        """Make the devices that the machine of a recording called ``name`` had, all as after power-on.

        Raises: RecordingError if there can be no such machine.
        """
        with GuestMemory() as memory:
            try:
                for gpa, size, readonly in header.setup.memory:
                    if not readonly:
                        memory.add_ram(gpa, size)
                bench = cls(header.setup, memory, output, with_board=with_board)
            except (PykvmError, OSError, OverflowError) as error:
                raise RecordingError(f"{name}: line 1: there can be no such machine: {error}") from error
            yield bench

    def line(self, irq: int, owner: str = "device") -> IrqLine:
        """Return the interrupt line ``irq`` for ``owner``. Raises: ConfigurationError as ``Interrupts.line`` does."""
        return self.interrupts.line(irq, owner)

    # ---- what the recording has beside the exits ----

    def advance(self, line: ExitLine | EventLine) -> None:
        """Turn the clock to the time of ``line``. Raises: ConfigurationError."""
        self.clock.advance(line.time - self.clock.now())

    def prepare(self, line: ExitLine) -> None:
        """Lay out what devices are to get from outside during ``line``."""
        self._input[:], self._reads[:] = line.input, line.memory

    def play(self, line: EventLine) -> None:
        """Let what ``line`` says come from outside. Raises: PykvmError if it makes no sense."""
        board = self.board
        if board is None:
            return
        match line.event:
            case Input(data=data):
                self._input[:] = [data]
                board.serial.poll()
            case Keys(events=events, queued=True):
                board.keyboard.enqueue(events)
            case Keys(events=events):
                for event in events:
                    (board.keyboard.press if event.pressed else board.keyboard.release)(event.key)
            case PowerButton():
                board.press_power_button()
            case Rings(port=port, times=times) if port in self._bells:
                self._bells[port](times)

    # ---- inside ----

    def _make_board(self, setup: Setup, output: Callable[[bytes], object]) -> Board:
        board = Board(
            self.pio,
            self.mmio,
            self._memory,
            self.interrupts,
            self.clock,
            Wishes(self._on_debug_exit, self._on_reset, self._on_sleep, self._on_wake, self._on_doorbell),
            cpus=setup.cpus,
            serial_output=output,
            serial_input=lambda limit: self._input.pop(0)[:limit] if self._input else b"",
            debugcon_output=output,
            screen_memory=lambda offset, size: bytes(size),
            start=setup.start,
            dma_read=self._dma_read,
        )
        for name in setup.devices:
            board.add(name)
        return board

    def _dma_read(self, gpa: int, size: int) -> bytes:
        if self._reads and self._reads[0].gpa == gpa and len(self._reads[0].data) == size:
            return self._reads.pop(0).data
        return self._memory.read(gpa, size)

    def _on_debug_exit(self, value: int) -> None:
        self.control.stop(DebugExitWritten(value))

    def _on_reset(self, by: str) -> None:
        self.control.stop(ResetRequested(by))

    def _on_sleep(self, state: int) -> None:
        if state == S3:
            self._asleep = True
        else:
            self.control.stop(PoweredOff())

    def _on_wake(self) -> bool:
        was_asleep, self._asleep = self._asleep, False
        return was_asleep

    def _on_doorbell(self, port: int, size: int, callback: Callable[[int], None]) -> None:
        self._bells[port] = callback


class _NoKernel:
    """What the interrupt controllers need of a VM, where there is none: nobody hears them."""

    def check_extension(self, cap: object) -> int:
        return 1

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **named: None
