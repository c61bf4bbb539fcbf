r"""Devices tested without KVM: a list of exits goes through the run loop and buses that a guest's exits go through.

    result = run_script([IoOut(0x300, data=b"\x01"), IoIn(0x301)], pio={0x300: (Lamp(), 2)})
    assert result.replies == (b"\x01",)

/dev/kvm is not opened. What KVM would never report is refused, and so is an answer that it would not take: see
``pykvm.machine.scripted``. Leaves out the guest: there is no memory and there are no registers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pykvm.devices import Bus, Device, ManualClock
from pykvm.kvm import Exit
from pykvm.machine import Control, ExitHandlers, Observer, RunLoop, Stop, Stopped
from pykvm.machine.journal import NO_MACHINE, Journal, StepClock
from pykvm.machine.scripted import ScriptedVcpu
from pykvm.testing.farend import Wire

__all__ = ["DeviceBench", "Devices", "ScriptResult", "ScriptedVcpu", "run_script"]

PORTS = 1 << 16
ADDRESSES = 1 << 52  # the widest guest-physical address that x86 allows (MAXPHYADDR)

# Who answers where: base address, the device, and how many addresses it has.
Devices = Mapping[int, tuple[Device, int]]


@dataclass(frozen=True, slots=True)
class ScriptResult:
    """What a script came to.

    ``stop`` is why it ended, ``Halted`` at its end. ``replies`` has the bytes that each read was answered with, in
    order, and None for an MSR access that was refused. ``exits`` counts the exits of the list that were made: fewer
    than it has if something ended the run before.
    """

    stop: Stop
    replies: tuple[bytes | None, ...]
    exits: int

    @property
    def reply(self) -> bytes:
        """Return the answer of the last read, empty if there was none or it was refused."""
        return (self.replies[-1] if self.replies else None) or b""


class DeviceBench:
    """Two buses, ``pio`` and ``mmio``, a ``clock`` that goes on by ``advance()``, and a run loop between them.

    ``handlers`` answer MSR accesses and hypercalls; ``observers`` look on, a ``Recorder`` for instance; with ``strict``
    an access that no device claims is an error. ``control`` is what a device is given to end the run: see ``stop()``.

    Raises: BusError if two devices claim an address.
    """

    def __init__(
        self,
        *,
        pio: Devices | None = None,
        mmio: Devices | None = None,
        handlers: ExitHandlers | None = None,
        observers: Sequence[Observer] = (),
        strict: bool = False,
    ) -> None:
        self.pio = Bus("port", PORTS, strict=strict)
        self.mmio = Bus("MMIO", ADDRESSES, strict=strict)
        self.clock = ManualClock()
        self.control = Control()
        self._handlers = handlers
        self._observers = observers
        self._journals = [observer for observer in observers if isinstance(observer, Journal)]
        for journal in self._journals:
            journal.begin(NO_MACHINE, StepClock(self.clock, lambda: None))
        for bus, devices in ((self.pio, pio or {}), (self.mmio, mmio or {})):
            for base, (device, length) in devices.items():
                bus.register(device, base, length)

    def line(self) -> Wire:
        """Return an interrupt line for a device, whose other end tells its level and how often it rose."""
        return Wire()

    def stop(self, stop: Stop | None = None) -> None:
        """End the run under way after this exit; for a device to call."""
        self.control.stop(stop or Stopped())

    def run(self, exits: Iterable[Exit]) -> ScriptResult:
        """Make ``exits`` one after the other, and return how the devices answered. They keep their state.

        Raises: ConfigurationError if KVM would never make one of them; whatever a device raises, with a note on the
        exit; BusError or UnansweredReadError for an answer that KVM would not take.
        """
        vcpu = ScriptedVcpu(exits)
        loop = RunLoop(
            vcpu, self.pio, self.mmio, self._observers, self.control, handlers=self._handlers, now=self.clock.now
        )
        try:
            stop = loop.run(None)
        except Exception as error:
            error.add_note(f"at exit {vcpu.position} of the script: {vcpu.last}")
            raise
        finally:
            self.control.take()
        for journal in self._journals:
            journal.end(stop)
        return ScriptResult(stop, tuple(vcpu.replies), vcpu.position)


def run_script(
    exits: Iterable[Exit],
    *,
    pio: Devices | None = None,
    mmio: Devices | None = None,
    handlers: ExitHandlers | None = None,
    strict: bool = False,
) -> ScriptResult:
    """Make ``exits`` against the devices on the two buses: a ``DeviceBench`` for one run.

    Raises: as ``DeviceBench`` and its ``run`` do.
    """
    return DeviceBench(pio=pio, mmio=mmio, handlers=handlers, strict=strict).run(exits)
