"""The ways an interrupt reaches a CPU: four arrangements of the same chips, in the kernel or outside.

    irqchip   8259A pair, 8254   I/O APIC    local APIC   HLT            several CPUs
    none      -                  -           -            ends the run   no
    user      devices/           -           -            waits here     no
    split     devices/           devices/    KVM          sleeps in KVM  yes
    kernel    KVM                KVM         KVM          sleeps in KVM  yes

Whatever the arrangement, a device gets an ``IrqLine`` for the number that a PC gives it: ISA's IRQ 0 to 15, and GSI 16
to 23, which only an I/O APIC has. IRQ 0, the timer's, is wired to pin 2 of the I/O APIC, as on every PC; MADT and MP
table say so.

See: Documentation/virt/kvm/api.rst, KVM_CREATE_IRQCHIP, KVM_IRQ_LINE, KVM_IRQFD, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI,
KVM_INTERRUPT, and section 7.5, KVM_CAP_SPLIT_IRQCHIP. Leaves out PCI's interrupt pins.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

from pykvm.devices import Clock, Disconnected, IoApic, IrqLine, PicPair, Pit
from pykvm.devices.pic import CASCADE
from pykvm.errors import ClosedError, ConfigurationError, KvmError
from pykvm.kvm import Cap, IrqchipRoute, MsiRoute, Vm
from pykvm.kvm.constants import IrqchipId
from pykvm.machine.runloop import InterruptSource
from pykvm.memory.platform import TIMER_PIN

__all__ = [
    "Interrupts",
    "IrqchipKind",
    "IrqfdLine",
    "KernelLine",
    "make_interrupts",
    "to_irqchip",
]

GSIS = 24  # what an I/O APIC has pins for
ISA_IRQS = 16


Levels = Mapping[tuple[int, int], bool]  # of lines, by GSI and which of that GSI


class IrqchipKind(enum.Enum):
    """Where the interrupt controllers are."""

    NONE = "none"
    USER = "user"
    KERNEL = "kernel"
    SPLIT = "split"

    @property
    def has_local_apic(self) -> bool:
        """Return whether each CPU has a local APIC, by which it can be started and sent interrupts."""
        return self in (IrqchipKind.KERNEL, IrqchipKind.SPLIT)

    @property
    def has_user_pic(self) -> bool:
        """Return whether the 8259A pair and the 8254 are devices on our bus."""
        return self in (IrqchipKind.USER, IrqchipKind.SPLIT)


def to_irqchip(irqchip: IrqchipKind | str) -> IrqchipKind:
    """Return the arrangement called ``irqchip``. Raises: ConfigurationError if there is none of that name."""
    try:
        return IrqchipKind(irqchip)
    except ValueError:
        known = ", ".join(kind.value for kind in IrqchipKind)
        raise ConfigurationError(f"there is no irqchip {irqchip!r}: choose one of {known}") from None


class KernelLine:
    """A line into the kernel's interrupt controllers: KVM_IRQ_LINE, a level of 0 or 1 on a GSI."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self.gsi = gsi
        self.level = False

    def set_level(self, level: bool) -> None:
        """Drive the line; costs an ioctl when the level changes."""
        if level != self.level:
            self.level = level
            self._vm.irq_line(self.gsi, level)

    def put_back(self, level: bool) -> None:
        """Have the level that a snapshot says."""
        self.set_level(level)


class IrqfdLine:
    """A line that is an eventfd: KVM turns a write to it into an edge on a GSI, without an ioctl.

    ``fd`` may be given to another thread or process. There is no level: who is edge-triggered is served, who is
    level-triggered is not. A context manager.
    """

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self.gsi = gsi
        self.level = False
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            vm.irqfd(self.fd, gsi)
        except KvmError:
            os.close(self.fd)
            raise

    def set_level(self, level: bool) -> None:
        """Make an edge if the line goes high. Raises: ClosedError."""
        if self.fd < 0:
            raise ClosedError(f"the irqfd of interrupt line {self.gsi} is closed")
        if level and not self.level:
            os.eventfd_write(self.fd, 1)
        self.level = level

    def put_back(self, level: bool) -> None:
        """Have the level that a snapshot says, without making an edge."""
        self.level = level

    def close(self) -> None:
        """Take the eventfd off the GSI and close it; does nothing the second time."""
        if self.fd >= 0:
            self._vm.irqfd(self.fd, self.gsi, deassign=True)
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Both:
    """A wire with two ends."""

    def __init__(self, *lines: IrqLine) -> None:
        self._lines = lines

    def set_level(self, level: bool) -> None:
        for line in self._lines:
            line.set_level(level)


class Interrupts:
    """The interrupt controllers of a machine, and who is connected to them.

    This class is the arrangement ``none``: every line ends nowhere. ``source`` is what interrupts CPU 0 from outside
    the kernel, if anything does.
    """

    kind = IrqchipKind.NONE
    source: InterruptSource | None = None
    pic: PicPair | None = None
    pit: Pit | None = None
    ioapic: IoApic | None = None

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}
        self._irqfds: list[IrqfdLine] = []
        self._lines: list[KernelLine | IrqfdLine] = []
        self._driven: dict[int, IrqLine] = {}

    @property
    def owners(self) -> dict[int, str]:
        """Return who is connected to which line."""
        return dict(self._owners)

    def line(self, gsi: int, owner: str) -> IrqLine:
        """Connect ``owner`` to the line ``gsi``: an ISA IRQ 0 to 15, or 16 to 23 with an I/O APIC.

        Raises: ConfigurationError if there is no such line, or it has an owner.
        """
        self._claim(gsi, owner)
        return self._make_line(gsi)

    def drive(self, gsi: int, level: bool) -> None:
        """Drive the line ``gsi`` from outside, whoever owns it, as a test device does; no effect if there is none."""
        last = GSIS if self.kind.has_local_apic else ISA_IRQS
        if 0 <= gsi < last and gsi != CASCADE:
            if gsi not in self._driven:
                self._driven[gsi] = self._make_line(gsi)
            self._driven[gsi].set_level(level)

    def irqfd(self, gsi: int, owner: str) -> IrqfdLine:
        """Connect ``owner`` to the line ``gsi`` by an irqfd; it is closed with the machine.

        Raises: ConfigurationError as for ``line``, or if the interrupt controllers are not in the kernel.
        """
        raise self._cannot("an irqfd")

    def signal_msi(self, address: int, data: int) -> None:
        """Send a message-signalled interrupt: ``data`` to ``address`` (SDM volume 3, section 11.11).

        Raises: ConfigurationError if there is no local APIC to take it.
        """
        raise self._cannot("a message-signalled interrupt")

    def eoi(self, vector: int) -> None:
        """Take note that a CPU ended the level-triggered interrupt ``vector`` (KVM_EXIT_IOAPIC_EOI)."""

    @property
    def levels(self) -> Levels:
        """Return the levels of the lines into the kernel, which does not tell them: lines that are low are left out."""
        return {place: True for place, line in self._places() if line.level}

    def put_back(self, levels: Levels) -> None:
        """Let the lines have ``levels``. Before the kernel's controllers are restored, which this may set off."""
        if not (levels or self._lines):
            return
        left = dict(levels)
        for place, line in self._places():
            line.put_back(left.pop(place, False))
        for gsi, _ in left:
            self.drive(gsi, True)

    def _places(self) -> Iterator[tuple[tuple[int, int], KernelLine | IrqfdLine]]:
        """Return each line into the kernel, by its GSI and how many of the same GSI were made before it."""
        counts: dict[int, int] = {}
        for line in self._lines:
            number = counts[line.gsi] = counts.get(line.gsi, -1) + 1
            yield (line.gsi, number), line

    def close(self) -> None:
        """Close the irqfds."""
        while self._irqfds:
            self._irqfds.pop().close()

    def _claim(self, gsi: int, owner: str) -> None:
        last = (GSIS if self.kind.has_local_apic else ISA_IRQS) - 1
        if not 0 <= gsi <= last or gsi == CASCADE:
            raise ConfigurationError(
                f"{owner}: there is no interrupt line {gsi}: with irqchip {self.kind.value} there are 0 to {last}, "
                f"without {CASCADE}, which connects the two 8259A"
            )
        if gsi in self._owners:
            free = [number for number in range(last + 1) if number not in self._owners and number != CASCADE]
            raise ConfigurationError(
                f"{owner}: interrupt line {gsi} belongs to {self._owners[gsi]} already; free are {_list(free)}"
            )
        self._owners[gsi] = owner

    def _make_line(self, gsi: int) -> IrqLine:
        return Disconnected()

    def _cannot(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"irqchip {self.kind.value} has no way for {what}: choose irqchip kernel")


class _UserInterrupts(Interrupts):
    """The learner's version: both 8259A and the 8254 are devices here, and KVM_INTERRUPT takes the vector in."""

    kind = IrqchipKind.USER

    def __init__(self, clock: Clock, on_output: Callable[[bool], None]) -> None:
        super().__init__()
        self.pic = PicPair(on_output)
        self.source = self.pic
        self.pit = Pit(clock, self.line(0, "timer"))

    def _make_line(self, gsi: int) -> IrqLine:
        if self.pic is None:
            return Disconnected()
        return self.pic.line(gsi)


class _KernelInterrupts(Interrupts):
    """Everything in the kernel: KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2."""

    kind = IrqchipKind.KERNEL

    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self._vm = vm
        vm.create_irqchip()
        vm.create_pit2(speaker_dummy=True)
        vm.set_gsi_routing(_pc_routing())
        self._claim(0, "timer")

    def irqfd(self, gsi: int, owner: str) -> IrqfdLine:
        self._claim(gsi, owner)
        line = IrqfdLine(self._vm, gsi)
        self._irqfds.append(line)
        self._lines.append(line)
        return line

    def signal_msi(self, address: int, data: int) -> None:
        self._vm.signal_msi(address, data)

    def _make_line(self, gsi: int) -> IrqLine:
        line = KernelLine(self._vm, gsi)
        self._lines.append(line)
        return line


class _SplitInterrupts(_UserInterrupts):
    """The local APICs in the kernel, where they are fast; the old chips and the I/O APIC here."""

    kind = IrqchipKind.SPLIT

    def __init__(self, vm: Vm, clock: Clock, on_output: Callable[[bool], None]) -> None:
        self._vm = vm
        if not vm.check_extension(Cap.SPLIT_IRQCHIP):
            raise ConfigurationError("this host's KVM has no split irqchip: choose irqchip kernel")
        vm.enable_cap(Cap.SPLIT_IRQCHIP, (GSIS,))
        self._routes: list[MsiRoute] = []
        self._io_apic = IoApic(self.signal_msi, on_change=self._route)
        super().__init__(clock, on_output)
        self.ioapic = self._io_apic

    def signal_msi(self, address: int, data: int) -> None:
        self._vm.signal_msi(address, data)

    def eoi(self, vector: int) -> None:
        self._io_apic.eoi(vector)

    def _make_line(self, gsi: int) -> IrqLine:
        if gsi >= ISA_IRQS:
            return self._io_apic.line(gsi)
        return _Both(super()._make_line(gsi), self._io_apic.line(TIMER_PIN if gsi == 0 else gsi))

    def put_back(self, levels: Levels) -> None:
        """Do as ``Interrupts``; the I/O APIC is restored already, and KVM's routing table follows it."""
        super().put_back(levels)
        self._route()

    def _route(self) -> None:
        # KVM tells of the end of those level-triggered interrupts that it finds in its routing table, and of no others.
        entries = enumerate(self._io_apic.entries)
        routes = [MsiRoute(pin, e.address, e.data) for pin, e in entries if not e.masked]
        if routes != self._routes:
            self._vm.set_gsi_routing(routes)
            self._routes = routes


def make_interrupts(kind: IrqchipKind, vm: Vm, clock: Clock, on_output: Callable[[bool], None]) -> Interrupts:
    """Return the arrangement ``kind``, made before the first vCPU; ``on_output`` hears of an 8259A's INTR pin.

    Raises: KvmError, ConfigurationError if the host lacks it.
    """
    match kind:
        case IrqchipKind.NONE:
            return Interrupts()
        case IrqchipKind.USER:
            return _UserInterrupts(clock, on_output)
        case IrqchipKind.KERNEL:
            return _KernelInterrupts(vm)
        case IrqchipKind.SPLIT:
            return _SplitInterrupts(vm, clock, on_output)


def _pc_routing() -> list[IrqchipRoute | MsiRoute]:
    """Return the wires of a PC: each ISA IRQ goes to an 8259A and to the I/O APIC."""
    routes: list[IrqchipRoute | MsiRoute] = []
    for gsi in range(GSIS):
        if gsi < ISA_IRQS and gsi != CASCADE:
            chip = IrqchipId.PIC_MASTER if gsi < 8 else IrqchipId.PIC_SLAVE
            routes.append(IrqchipRoute(gsi, chip, gsi % 8))
        if gsi != CASCADE:
            routes.append(IrqchipRoute(gsi, IrqchipId.IOAPIC, TIMER_PIN if gsi == 0 else gsi))
    return routes


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
