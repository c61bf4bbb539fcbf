"""What a machine is made of: memory slots, vCPUs, interrupt controllers and the mainboard, and how to reach into them.

``Hardware`` is the half of ``Machine`` that stands still: here everything is made, in the order that KVM wants, and
here are the switches of KVM that change how a guest is watched (breakpoints, dirty pages, coalesced writes,
hypercalls). The other half runs it. See: Documentation/virt/kvm/api.rst, sections 4 to 7. Leaves out loading and
running.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from pykvm.boot import Image, acpi_tables, mp_table, wake_vector
from pykvm.devices import Bus, Clock, Serial, Unclaimed, Vga, hpet
from pykvm.errors import ClosedError, ConfigurationError, GuestMemoryError, InUseError
from pykvm.kvm import CallLog, Cap, Hypercall, Kvm, Vcpu
from pykvm.machine.board import Board, Wishes
from pykvm.machine.control import Control
from pykvm.machine.debugger import Debugger
from pykvm.machine.dirty import DirtyPages
from pykvm.machine.events import EventLoop
from pykvm.machine.interrupts import Interrupts, IrqchipKind, make_interrupts
from pykvm.machine.journal import Journal, Setup, Tap
from pykvm.machine.msrs import MsrHandlers
from pykvm.machine.processors import Processors
from pykvm.machine.runloop import ExitHandlers, RunLoop
from pykvm.machine.stop import DebugExitWritten, PoweredOff, ResetRequested
from pykvm.memory import GuestMemory, layout
from pykvm.units import GiB, Gpa, MiB, align_up
from pykvm.x86 import Cpuid, HardwareBreakpoint

__all__ = ["DirtyTracking", "Hardware", "Outside", "to_dirty"]

PIO_SPACE = 1 << 16
MMIO_SPACE = 1 << 52  # the widest guest-physical address that x86 allows (MAXPHYADDR)
ROM_END = 4 * GiB
S3 = 3
RING_SIZE = MiB  # bytes of each vCPU's dirty ring, for 65536 pages that get dirty between two exits


class DirtyTracking(enum.Enum):
    """How KVM keeps track of the pages that a guest writes."""

    LOG = "log"  # a bitmap for each slot: KVM_GET_DIRTY_LOG
    RING = "ring"  # a ring for each vCPU: KVM_CAP_DIRTY_LOG_RING


@dataclass(frozen=True, slots=True)
class Outside:
    """Who is at the other end of a machine's wires: see ``Machine``."""

    serial_output: Callable[[bytes], object]
    serial_input: Callable[[int], bytes] | None
    debugcon_output: Callable[[bytes], object]
    on_unclaimed: Callable[[Unclaimed], None] | None
    strict_io: bool
    journal: Journal | None = None
    ioctls: CallLog | None = None


class _Bell:
    """An eventfd that a guest rings, and who hears how often."""

    def __init__(self, fd: int, callback: Callable[[int], None]) -> None:
        self._fd = fd
        self._callback = callback

    def take(self) -> int:
        """Return how often it rang since the last call."""
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:  # taken already
            return 0

    def hear(self) -> None:
        """Pass on how often it rang, if it did."""
        times = self.take()
        if times:
            self._callback(times)


class Hardware:
    """The parts of a machine, made and not running: the base of ``Machine``, which says what the arguments mean."""

    _loops: tuple[RunLoop, ...] = ()

    def __init__(
        self,
        memory: int | str | GuestMemory,
        irqchip: IrqchipKind,
        cpus: int,
        choose_cpuid: Callable[[Cpuid], Cpuid] | None,
        outside: Outside,
        devices: Sequence[str],
        dirty: DirtyTracking | None,
        rom: bytes,
    ) -> None:
        self._dirty = dirty
        self._devices = tuple(devices)
        self._strict_io = outside.strict_io
        self._coalesced: list[tuple[int, int, bool]] = []
        self._hypercalls: dict[int, Callable[[Hypercall], int]] = {}
        self._bells: list[_Bell] = []
        self._control = Control()
        self._handlers = ExitHandlers()
        self._resources = ExitStack()
        self._closed = False
        try:
            self.events = EventLoop(self._control)
            self._resources.callback(self.events.close)
            self._tap = None if outside.journal is None else Tap(outside.journal, self.events, self._is_inside)
            self._clock: Clock = self.events if self._tap is None else self._tap.clock
            # Before the VM, so that the memory is still there when that is closed.
            self.memory = memory if isinstance(memory, GuestMemory) else self._own(GuestMemory(memory))
            if rom:
                self.memory.add_rom(ROM_END - align_up(len(rom)), rom)
            self._screen = self._find_screen()
            self._open_kvm(outside.ioctls, irqchip, cpus, choose_cpuid)
            self.pio = Bus("port", PIO_SPACE, strict=outside.strict_io, on_unclaimed=outside.on_unclaimed)
            self.mmio = Bus("MMIO", MMIO_SPACE, strict=outside.strict_io, on_unclaimed=outside.on_unclaimed)
            self.board = self._make_board(outside, devices)
        except BaseException:
            self._closed = True
            self._resources.close()
            raise

    # ---- looking and reaching in ----

    @property
    def lock(self) -> threading.RLock:
        """Return the lock that is held whenever a device is accessed: for those who reach into one from outside."""
        return self._control.lock

    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """Return the vCPUs; the first is ``vcpu``."""
        return self._processors.vcpus

    @property
    def cpuid(self) -> Cpuid:
        """Return what CPUID tells the guest, but for what differs from CPU to CPU."""
        return self._processors.cpuid

    @property
    def serial(self) -> Serial:
        """Return the serial port."""
        return self.board.serial

    @property
    def screen(self) -> Vga:
        """Return the screen: ``screen.text()`` is what is on it, ``screen.snapshot()`` that with colours."""
        return self.board.vga

    def nmi(self, cpu: int = 0) -> None:
        """Have ``cpu`` take a non-maskable interrupt: now if it runs, else when it does. From any thread or device.

        Raises: ConfigurationError if there is no such CPU.
        """
        self._check_open()
        self._check_cpu(cpu)
        self._control.nmi(cpu)

    def activity(self, cpu: int = 0) -> str:
        """Return what ``cpu``, which stands still, is about: "running", "halted", "waits for INIT", "waits for SIPI".

        Raises: ConfigurationError if there is no such CPU; InUseError while the machine runs.
        """
        self._check_open()
        self._check_cpu(cpu)
        self._check_still("asked what it is about", cpu)
        return self._activity(cpu)

    def debug(self, *breakpoints: HardwareBreakpoint, step: bool = False, cpu: int = 0) -> None:
        """Stop ``cpu`` at up to four ``breakpoints`` and watchpoints, and with ``step`` after every instruction.

        ``run()`` then ends with ``Breakpoint``, and can be called again: it goes on from there. With no arguments
        nothing stops it any more. There is no stop after an instruction that exits, such as OUT, and where
        ``pykvm doctor --probe`` says so (single-step-hlt) a CPU that is stepped runs past HLT. The guest's own debug
        registers have no effect meanwhile.

        Raises: ConfigurationError for more than the CPU has or misaligned ones; InUseError while the machine runs.
        """
        self._check_open()
        self._check_cpu(cpu)
        self._check_still("given breakpoints", cpu)
        self._debugger.watch(cpu, breakpoints, step)

    def on_hypercall(self, nr: int, handler: Callable[[Hypercall], int]) -> None:
        """Let ``handler`` answer the hypercall ``nr`` with the guest's RAX, or an errno below 0.

        KVM offers this for some of its own.

        Raises: ConfigurationError if this host's KVM does not hand ``nr`` over.
        """
        self._check_open()
        offered = self.vm.check_extension(Cap.EXIT_HYPERCALL)
        if not 0 <= nr < 64 or not offered >> nr & 1:
            numbers = ", ".join(str(bit) for bit in range(64) if offered >> bit & 1) or "none"
            raise ConfigurationError(f"this host's KVM does not hand hypercall {nr} over; it does: {numbers}")
        self._hypercalls[nr] = handler
        self.vm.enable_cap(Cap.EXIT_HYPERCALL, (sum(1 << known for known in self._hypercalls),))
        self._handlers.hypercall = lambda call: self._hypercalls[call.nr](call) % (1 << 64)  # an errno is below 0

    def coalesce(self, address: int, size: int, *, pio: bool = False) -> None:
        """Let KVM keep back writes to ``size`` ports or bytes from ``address`` on, without an exit for each.

        The device sees them, in order, before the next exit of any kind and at the latest at the next tick; so a
        register whose write has an effect that must be seen at once does not belong there.

        Raises: KvmError; ConfigurationError if the host's KVM cannot do it.
        """
        self._check_open()
        needed = Cap.COALESCED_PIO if pio else Cap.COALESCED_MMIO
        if not self.vm.check_extension(needed):
            raise ConfigurationError(f"this host's KVM cannot keep writes back (KVM_CAP_{needed.name})")
        self.vm.register_coalesced_mmio(address, size, pio=pio)
        self._coalesced.append((address, size, pio))
        self._handlers.drain = self.vm.drain_coalesced

    def on_doorbell(
        self,
        address: int,
        size: int,
        callback: Callable[[int], None],
        *,
        pio: bool = False,
        datamatch: int | None = None,
    ) -> None:
        """Have the guest's writes of ``size`` bytes at ``address`` ring, by an ioeventfd, without an exit.

        ``callback(times)`` is called soon after, and at the latest before ``run()`` returns, with how often it rang
        since the last call; from any thread, with the lock held.
        With ``datamatch`` only writes of that value ring; other accesses exit as ever.

        Raises: KvmError.
        """
        self._check_open()
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._resources.callback(os.close, fd)
        self.vm.ioeventfd(address, size, fd, pio=pio, datamatch=datamatch)

        bell = _Bell(fd, callback)

        def on_ring() -> None:
            bell.hear()
            watch.arm()

        self._bells.append(bell)
        watch = self.events.watch(fd, on_ring)
        watch.arm()

    def dirty_pages(self) -> Iterator[Gpa]:
        """Return the pages that the guest wrote since the last call, lowest first, if ``dirty`` was asked for.

        Raises: ConfigurationError if it was not; InUseError while the guest runs.
        """
        self._check_open()
        if self._dirty is None:
            raise ConfigurationError('nobody keeps track of dirty pages: Machine(dirty="log") or "ring"')
        self._check_still("asked for dirty pages", *range(len(self.vcpus)))
        self._dirty_pages.collect()
        pages = sorted(self._written)
        self._written.clear()
        return iter(pages)

    # ---- inside ----

    def _activity(self, cpu: int) -> str:
        return "halted" if self._loops[cpu].is_halted else self._processors.activity(self.vcpus[cpu])

    def _own(self, memory: GuestMemory) -> GuestMemory:
        return self._resources.enter_context(memory)

    def _open_kvm(
        self,
        log: CallLog | None,
        irqchip: IrqchipKind,
        cpus: int,
        choose_cpuid: Callable[[Cpuid], Cpuid] | None,
    ) -> None:
        kvm = self._resources.enter_context(Kvm.open(log=log))
        self.vm = self._resources.enter_context(kvm.create_vm())
        self._dirty_pages = DirtyPages(self.vm)
        self._written = self._dirty_pages.join() if self._dirty is not None else set()
        self._msr_indices = tuple(kvm.get_msr_index_list())
        # VT-x without "unrestricted guest" runs real mode inside a hidden task and page table.
        if self.vm.check_extension(Cap.SET_IDENTITY_MAP_ADDR):
            self.vm.set_identity_map_addr(layout.IDENTITY_MAP)
        if self.vm.check_extension(Cap.SET_TSS_ADDR):
            self.vm.set_tss_addr(layout.TSS_REGION)
        if self._dirty is DirtyTracking.RING:
            self.vm.enable_dirty_ring(RING_SIZE)
            self._handlers.dirty_ring_full = self._dirty_pages.collect
        self._map(self.memory)
        if self._screen is not self.memory:
            self._map(self._screen)
        self.interrupts: Interrupts = make_interrupts(irqchip, self.vm, self._clock, self._on_interrupt)
        self._resources.callback(self.interrupts.close)
        self._processors = Processors(kvm, self.vm, cpus, irqchip, self._resources, choose_cpuid)
        self.vcpu = self._processors.vcpus[0]
        self.msr = MsrHandlers(self.vm)
        self._debugger = Debugger(self.vcpus)
        self._handlers.debug = self._debugger.on_debug

    def _find_screen(self) -> GuestMemory:
        """Return the memory that holds the screen: guest memory, or one of its own if guest memory ends below."""
        if self.memory.find(layout.VGA_TEXT) is not None:
            return self.memory
        screen = self._own(GuestMemory())
        screen.add_ram(layout.VGA_TEXT, layout.VGA_TEXT_SIZE, "screen")
        return screen

    def _map(self, memory: GuestMemory) -> None:
        for slot, region in enumerate(memory.regions, start=len(self.vm.slots)):
            self.vm.set_user_memory_region(
                slot, region.gpa, region.buffer, readonly=region.readonly, log_dirty_pages=self._dirty is not None
            )

    def _make_board(self, outside: Outside, devices: Sequence[str]) -> Board:
        tap, start = self._tap, datetime.now(UTC)
        board = Board(
            self.pio,
            self.mmio,
            self.memory,
            self.interrupts,
            self._clock,
            Wishes(self._on_debug_exit, self._on_reset, self._on_sleep, self._on_wake, self._on_port_doorbell),
            cpus=len(self.vcpus),
            serial_output=outside.serial_output,
            serial_input=outside.serial_input if tap is None else tap.serial_input(outside.serial_input),
            debugcon_output=outside.debugcon_output,
            screen_memory=self._read_screen,
            start=start,
            dma_read=None if tap is None else tap.dma_read(self.memory.read),
        )
        for name in devices:
            board.add(name)
        if tap is not None:
            regions = tuple((region.gpa, region.size, region.readonly) for region in self.memory.regions)
            tap.begin(Setup(len(self.vcpus), regions, self.interrupts.kind.value, tuple(devices), start), board)
        return board

    def _write_tables(self, image: Image) -> None:
        """Put ACPI's tables and the MP table where a guest looks for them, unless ``image`` or nothing is there."""
        tables = [*acpi_tables(len(self.vcpus), hpet.GCAP_ID & 0xFFFF_FFFF), *mp_table(len(self.vcpus))]
        start, end = tables[0][0], max(gpa + len(data) for gpa, data in tables)
        region = self.memory.find(start)
        taken = any(segment.gpa < end and start < segment.end for segment in image.segments)
        if region is None or region.readonly or end > region.end or taken:
            return
        for gpa, data in tables:
            self.memory.write(gpa, data)

    # ---- inside: what devices ask for, with the lock held ----

    def _is_inside(self) -> bool:
        return self._control.current_cpu() is not None

    def _on_interrupt(self, level: bool) -> None:
        """The 8259A's INTR pin: wake the CPU from HLT, or get it out of KVM_RUN, so that it takes the interrupt."""
        if level:
            self._control.notify()
            if self._control.current_cpu() != 0:
                self._loops[0].kick()

    def _on_debug_exit(self, value: int) -> None:
        self._control.stop(DebugExitWritten(value), self._control.current_cpu())

    def _on_reset(self, by: str) -> None:
        self._control.stop(ResetRequested(by), self._control.current_cpu())

    def _on_sleep(self, state: int) -> None:
        if state == S3:
            self._control.sleep()
        else:
            self._control.stop(PoweredOff(), self._control.current_cpu())

    def _on_wake(self) -> bool:
        return self._control.wake(self._wake_up)

    def _wake_up(self) -> None:
        vector = self._waking_vector()
        if not 0 < vector < MiB:
            why = (
                f"with the waking vector {vector:#x}, beyond real mode"
                if vector
                else "without a waking vector in the FACS"
            )
            self._control.stop(ResetRequested(f"waking from S3 {why}"))
            return
        for loop in self._loops:
            loop.settle()  # or else the rest of the last instruction would change the registers that are set now
            loop.reset()
        self._processors.wake_at(Gpa(vector))

    def _waking_vector(self) -> int:
        try:
            return wake_vector(self.memory)
        except GuestMemoryError:
            return 0  # memory ends below the FACS

    def _on_port_doorbell(self, port: int, size: int, callback: Callable[[int], None]) -> None:
        self.on_doorbell(port, size, callback if self._tap is None else self._tap.doorbell(port, callback), pio=True)

    def _act_like(self, other: Hardware) -> None:
        """Answer hypercalls and MSRs as ``other`` does, and let KVM keep back the same writes."""
        for nr, handler in other._hypercalls.items():
            self.on_hypercall(nr, handler)
        for address, size, pio in other._coalesced:
            self.coalesce(address, size, pio=pio)
        self.msr.take_over(other.msr)

    def _own_memory(self, memory: GuestMemory) -> None:
        """Close ``memory``, which this was made with, together with everything else, and after it."""
        everything_else = self._resources.pop_all()
        self._resources.enter_context(memory)
        self._resources.enter_context(everything_else)

    def _hear_bells(self) -> None:
        """Hear the rings at the end of a run that nobody has heard yet."""
        with self.lock:
            for bell in self._bells:
                bell.hear()

    def _forget_rings(self) -> None:
        for bell in self._bells:
            bell.take()

    def _read_screen(self, offset: int, size: int) -> bytes:
        start = layout.VGA_TEXT + offset
        try:
            return self._screen.read(start, size)
        except GuestMemoryError:  # memory ends inside the text memory; beyond it, nothing pulls the lines down
            region = self._screen.find(start)
            return (b"" if region is None else self._screen.read(start, region.end - start)).ljust(size, b"\xff")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this machine is closed: create a new one")

    def _check_still(self, purpose: str, *cpus: int) -> None:
        """Raise InUseError if one of ``cpus`` may be in KVM_RUN: a run is under way and neither paused nor ours."""
        if self._control.is_running and self._control.current_cpu() is None:
            raise InUseError(f"this machine runs and cannot be {purpose}: pause() or stop() it first")
        for cpu in cpus:
            self.vcpus[cpu].check_idle(purpose)

    def _check_cpu(self, cpu: int) -> None:
        if not 0 <= cpu < len(self.vcpus):
            raise ConfigurationError(f"there is no CPU {cpu}: this machine has 0 to {len(self.vcpus) - 1}")


def to_dirty(dirty: str | None) -> DirtyTracking | None:
    """Return the tracking called ``dirty``, None for none. Raises: ConfigurationError if there is no such."""
    if dirty is None:
        return None
    try:
        return DirtyTracking(dirty)
    except ValueError:
        raise ConfigurationError(f'dirty pages are tracked by "log" or "ring", not by {dirty!r}') from None
