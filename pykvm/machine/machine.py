"""``Machine``: a small PC, and a run of it in one call.

It ties the layers together: memory slots from ``GuestMemory``, the vCPUs, the interrupt controllers, the mainboard with
its devices, and a run loop for each vCPU. Everything it does can be done by hand with ``pykvm.kvm``; docs/book shows
both. Leaves out what a machine is made of: see ``hardware``.
"""

from __future__ import annotations

import contextlib
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pykvm.boot import Image, Platform, flat_image, open_image
from pykvm.devices import Unclaimed
from pykvm.errors import ClosedError, ConfigurationError, GuestMemoryError, ImageError, InUseError, PykvmError
from pykvm.kvm import CallLog, Regs
from pykvm.machine.control import TICK
from pykvm.machine.hardware import Outside, to_dirty
from pykvm.machine.interrupts import IrqchipKind, to_irqchip
from pykvm.machine.journal import Journal
from pykvm.machine.observer import LastExits, Observer
from pykvm.machine.output import OutputLog
from pykvm.machine.result import CpuResult, RunResult
from pykvm.machine.rewinding import Rewindable
from pykvm.machine.runloop import DeferredInterrupt, RunLoop
from pykvm.machine.stop import Breakpoint, Stop, Stopped, wants_words
from pykvm.memory import GuestMemory, layout
from pykvm.units import GiB, format_size
from pykvm.x86 import Cpuid, CpuState, Mode, format_registers, set_up, to_mode

if TYPE_CHECKING:
    from pykvm.machine.assist import Assist

__all__ = ["DEFAULT_TIMEOUT", "Machine"]

DEFAULT_TIMEOUT = 10.0  # seconds: a broken guest loops for ever more often than it crashes


class Machine(Rewindable):
    """A PC with RAM from address 0 on, one CPU or several, the devices of ``pykvm.machine.board``, and a way out.

    ``memory`` is a size (``"16M"``, bytes) or a GuestMemory of one's own, which stays the caller's to close.
    ``irqchip`` says where the interrupt controllers are: "none" (HLT ends the run), "user" (devices in Python),
    "kernel" or "split" (see ``pykvm.machine.interrupts``); ``cpus`` above 1 needs one of the last two. ``cpuid`` makes
    what CPUID tells the guest from what the host supports; ``devices`` names optional ones; ``dirty`` keeps track of
    the pages the guest writes, by KVM's "log" or its "ring": see ``dirty_pages``. ``rom`` ends at 4 GiB, where the CPU
    starts after reset. ``assist`` finishes instructions that KVM cannot emulate: see ``pykvm.machine.assist``.

    ``serial_output`` gets what the guest prints as it comes, ``serial_input(n)`` is asked for up to n bytes when the
    guest looks for some, and must not block. ``strict_io`` makes an access that no device claims an error. All these
    are called with the lock ``machine.lock`` held, on the thread of whichever CPU it was. ``ioctls`` is told of every
    system call that KVM gets, by whichever thread makes it.

    Raises: KvmUnavailableError, KvmError, GuestMemoryError, ConfigurationError.
    """

    def __init__(
        self,
        memory: int | str | GuestMemory = "16M",
        *,
        irqchip: IrqchipKind | str = IrqchipKind.NONE,
        cpus: int = 1,
        cpuid: Callable[[Cpuid], Cpuid] | None = None,
        devices: Sequence[str] = (),
        dirty: str | None = None,
        rom: bytes = b"",
        assist: bool = False,
        serial_output: Callable[[bytes], object] | None = None,
        serial_input: Callable[[int], bytes] | None = None,
        debugcon_output: Callable[[bytes], object] | None = None,
        on_unclaimed: Callable[[Unclaimed], None] | None = None,
        strict_io: bool = False,
        observers: Sequence[Observer] = (),
        ioctls: CallLog | None = None,
    ) -> None:
        self._image: Image | None = None
        self._run_lock = threading.Lock()
        self._runner: int | None = None  # the thread inside run()
        self._serial_log = OutputLog(serial_output)
        self._debugcon_log = OutputLog(debugcon_output)
        self._journal = next((observer for observer in observers if isinstance(observer, Journal)), None)
        outside = Outside(
            self._serial_log.write,
            serial_input,
            self._debugcon_log.write,
            on_unclaimed,
            strict_io,
            self._journal,
            ioctls,
        )
        if assist:
            from pykvm.machine.assist import require_unicorn

            require_unicorn()
        super().__init__(memory, to_irqchip(irqchip), cpus, cpuid, outside, devices, to_dirty(dirty), rom)
        self.assist = self._make_assist() if assist else None
        self._last_exits = LastExits()
        self._observers: tuple[Observer, ...] = (self._last_exits, *observers)
        self._make_loops()
        self._tell(observers, "attach", self)

    # ---- loading and running ----

    def load(
        self,
        image: Image | bytes | str | Path,
        *,
        mode: Mode | str | None = None,
        ring: int = 0,
        page_size: int | None = None,
        entry: int | str | None = None,
        load: int | None = None,
    ) -> None:
        """Put ``image`` into memory and set the CPU up to start it.

        ``image`` is an Image, the path of a file (see ``pykvm.boot.formats``), or the bytes of a flat binary. ``mode``
        is the state the CPU starts in, by default the image's own, or what its boot protocol says; ``ring`` 3 starts it
        unprivileged, in protected and long mode; ``page_size`` is that of the page tables made for paged modes, in
        bytes. ``entry`` (an address or a symbol) and ``load`` (a guest-physical address) override the image's.

        Raises: ImageError, AssemblerError, ConfigurationError, GuestMemoryError, PagingError; InUseError while the
        machine runs.
        """
        self._check_idle()
        chosen = None if mode is None else to_mode(mode)
        if isinstance(image, bytes):
            image = flat_image(image, mode=chosen, load=load, entry=entry)
        elif not isinstance(image, Image):
            image = open_image(image, mode=chosen, load=load, entry=entry)
        if image.protocol is None or chosen is not None:
            state = self._set_up(chosen or image.mode, image.entry, ring, page_size)
            _check_apart(image, state)
            self._put(image)
        elif ring or page_size is not None:
            raise ConfigurationError(
                f"{image.name}: starts as {image.protocol.name} says: neither ring nor page size go"
            )
        else:
            self._put(image)
            state = image.protocol.start(image, Platform(self.memory, self._processors.reset_sregs, len(self.vcpus)))
        self._image = image
        self.set_state(state)

    def set_state(self, state: CpuState) -> None:
        """Set the first CPU's registers, for instance to what ``pykvm.x86.reset_vector`` returns; the others wait.

        Raises: ConfigurationError that says in words why KVM refuses them; InUseError while the machine runs.
        """
        self._check_idle()
        self._control.forget_sleep()
        self._debugger.forget_stops()
        for vcpu in self.vcpus:
            vcpu.abandon()
        self._processors.park_others()
        self._processors.set_state(state)
        for loop in self._loops:
            loop.reset()

    def run(self, timeout: float | None = DEFAULT_TIMEOUT) -> RunResult:
        """Run the guest until it stops, or for ``timeout`` seconds (None: no limit), and say what it came to.

        It can be called again to let a guest go on that halted, timed out or was stopped. Time while the machine is
        paused does not count. Ctrl-C comes through as KeyboardInterrupt and leaves the machine as it was, so that
        ``result()`` can look at it.

        Raises: what a device, an observer or a handler raises, with a note on where the guest was; InUseError if
        another thread is running it.
        """
        # Whatever is between the first thread's start and the last one's end, Ctrl-C must not break into it.
        with DeferredInterrupt() as ctrl_c:
            if not self._run_lock.acquire(blocking=False):
                raise InUseError("this machine is running on another thread: stop() it first")
            try:
                self._runner = threading.get_ident()
                return self._run(timeout, ctrl_c)
            finally:
                self._runner = None
                self._run_lock.release()

    def stop(self) -> None:
        """Make the ``run()`` under way, or else the next one, end with ``Stopped``. From any thread or device."""
        self._check_open()
        self._control.stop(Stopped())

    def pause(self) -> None:
        """Stop all CPUs, and time, until ``resume()``; returns when every vCPU is out of KVM_RUN.

        A run that starts meanwhile waits, and ``stop()`` ends it all the same. Timers inside the kernel go on. From any
        thread but those that run the machine.

        Raises: InUseError when called from inside the run, by a device, an observer or a handler.
        """
        self._check_open()
        with self.lock:
            self._control.pause()
            if self._control.is_paused:  # nobody has called resume() meanwhile
                self.events.stand_still()

    def resume(self) -> None:
        """End ``pause()``; does nothing if there is none. From any thread."""
        self._check_open()
        with self.lock:
            self._control.resume()
            self.events.go()

    def result(self, stop: Stop, exits: int = 0, duration: float = 0.0, cpu: int = 0) -> RunResult:
        """Return the machine's state as the result of a run that ``cpu`` ended with ``stop``, explained if need be."""
        self._check_open()
        cpus = tuple(self._look_at(loop, stop if loop.id == cpu else None) for loop in self._loops)
        if self._journal is not None:
            with self.lock:
                self._journal.end(stop)
        with self.lock:
            self._tell(self._observers, "stopped", stop)
        last_exits = self._last_exits.exits(cpu)
        text = note = ""
        if wants_words(stop, has_interrupts=self.interrupts.kind is not IrqchipKind.NONE):
            from pykvm.machine.explaining import explain  # which is half of this layer, and most runs end well

            text, note = explain(self, stop, cpu, cpus, last_exits, exits, duration, self._image)
        if self.assist is not None:
            text += self.assist.remark(stop)
        output = self._serial_log.output(), self._debugcon_log.output()
        return RunResult(stop, cpu, cpus, *output, exits, last_exits, duration, text, note)

    # ---- snapshots: see also ``Rewindable`` ----

    def fork(
        self,
        *,
        serial_output: Callable[[bytes], object] | None = None,
        serial_input: Callable[[int], bytes] | None = None,
        debugcon_output: Callable[[bytes], object] | None = None,
        observers: Sequence[Observer] = (),
    ) -> Machine:
        """Return a new machine that is what this one is now; the two have nothing to do with each other from then on.

        It is a context manager as any machine. Guest memory is its own; handlers of MSRs and hypercalls are shared,
        but for what ``msr.store`` holds. Breakpoints, doorbells and whoever watches this machine it does not have.

        Raises: ConfigurationError if somebody has plugged in a device, of which there is no second: make the other
        machine yourself, and ``restore()`` it; and as ``snapshot``.
        """
        others = self.board.others()
        if others:
            raise ConfigurationError(
                f"there is no second {others[0].name} for another machine: make it yourself, and restore(snapshot)"
            )
        snapshot = self.snapshot()
        memory = self.memory.make_alike()
        try:
            child = Machine(
                memory,
                irqchip=self.interrupts.kind,
                cpus=len(self.vcpus),
                cpuid=lambda _: self.cpuid,
                devices=self._devices,
                dirty=None if self._dirty is None else self._dirty.value,
                assist=self.assist is not None,
                serial_output=serial_output,
                serial_input=serial_input,
                debugcon_output=debugcon_output,
                strict_io=self._strict_io,
                observers=observers,
            )
        except BaseException:
            memory.close()
            raise
        child._own_memory(memory)
        try:
            child._act_like(self)
            child._get_snapshotter().begin_empty()
            child.restore(snapshot)
        except BaseException:
            child.close()
            raise
        return child

    # ---- looking and reaching in ----

    def add_observer(self, observer: Observer) -> None:
        """Have ``observer`` watch from the next run on, after those that do already.

        Raises: InUseError while the machine runs.
        """
        self._check_idle()
        self._observe((*self._observers, observer))
        self._tell((observer,), "attach", self)

    def remove_observer(self, observer: Observer) -> None:
        """Have ``observer`` watch no more; does nothing if it does not. Raises: InUseError while the machine runs."""
        self._check_idle()
        if observer in self._observers:
            self._observe(tuple(other for other in self._observers if other is not observer))
            self._tell((observer,), "detach")

    @property
    def is_running(self) -> bool:
        """Return whether a thread is inside ``run()``."""
        return self._run_lock.locked()

    @property
    def image(self) -> Image | None:
        """Return what was loaded last, None if that was nothing."""
        return self._image

    @property
    def registers(self) -> Regs:
        """Return the first CPU's general registers, true even in the middle of an exit's instruction."""
        self._check_open()
        self._loops[0].settle()
        return self.vcpu.get_regs()

    # ---- closing ----

    @property
    def closed(self) -> bool:
        """Return whether ``close()`` has run."""
        return self._closed

    def close(self) -> None:
        """Stop a run on another thread and wait for its end, then close the VM and release the memory.

        Does nothing the second time. Raises: InUseError when called from inside ``run()``, by a device or an observer.
        """
        if self._closed:
            return
        if self._is_calling:
            raise InUseError("this machine is running: stop() it, and close it when run() has returned")
        self._stop_and_lock()
        try:
            self._closed = True
            self._resources.close()
        finally:
            self._run_lock.release()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside ----

    def _check_idle(self) -> None:
        self._check_open()
        if self.is_running:
            raise InUseError("this machine is running: stop() it, and set it up when run() has returned")

    def _make_assist(self) -> Assist:
        from pykvm.machine.assist import Assist

        assist = Assist(self.vcpus, self.memory, self._debugger)
        self._resources.callback(assist.close)
        self._handlers.assist, self._handlers.debug = assist.finish, assist.on_debug
        self._handlers.on_tick = assist.look
        return assist

    def _put(self, image: Image) -> None:
        image.load(self.memory)
        self._write_tables(image)

    def _set_up(self, mode: Mode, entry: int, ring: int, page_size: int | None) -> CpuState:
        if page_size == GiB and not self.cpuid.has("pdpe1gb"):
            raise ConfigurationError(
                "this host's KVM offers guests no pages of 1 GiB: CPUID 0x80000001 EDX bit 26 is 0"
            )
        try:
            return set_up(mode, self._processors.reset_sregs, self.memory, entry, ring=ring, page_size=page_size)
        except GuestMemoryError as error:
            needed = format_size(layout.PAGE_TABLES_END)
            raise GuestMemoryError(
                f"{mode.value} mode's tables have no room: {error}; give the machine {needed} of memory or more",
                error.address,
            ) from error

    def _tell(self, observers: Sequence[Observer], what: str, *arguments: object) -> None:
        """Call the methods called ``what`` of those observers that have one: see ``MachineObserver``."""
        for observer in observers:
            if hasattr(observer, what):
                getattr(observer, what)(*arguments)

    def _observe(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        for loop in self._loops:
            loop.observe(observers)

    def _make_loops(self) -> None:
        handlers = self._handlers
        handlers.rdmsr, handlers.wrmsr = self.msr.read, self.msr.write
        if self.interrupts.kind.has_local_apic:
            handlers.ioapic_eoi, handlers.is_idle = self.interrupts.eoi, self._is_idle
        self._loops = tuple(
            RunLoop(
                vcpu,
                self.pio,
                self.mmio,
                self._observers,
                self._control,
                interrupts=self.interrupts.source if vcpu.id == 0 else None,
                handlers=handlers,
                now=self.events.now,
            )
            for vcpu in self.vcpus
        )
        self._control.attach(self._loops)

    def _run(self, timeout: float | None, ctrl_c: DeferredInterrupt) -> RunResult:
        self._check_open()
        before, start = self._last_exits.count, time.perf_counter()
        self._debugger.go_on()
        if self.assist is not None:
            self.assist.begin()
        with self.events.running():
            stop, cpu = self._run_cpus(timeout, ctrl_c)
            self._hear_bells()
        if isinstance(stop, Breakpoint):
            self._debugger.stopped(cpu, stop.exit)
        return self.result(stop, self._last_exits.count - before, time.perf_counter() - start, cpu)

    def _run_cpus(self, timeout: float | None, ctrl_c: DeferredInterrupt) -> tuple[Stop, int]:
        """Run each vCPU on a thread of its own, the first on this one; return the stop, and whose doing it was."""
        first = self._loops[0]
        threads = self._start_others()
        self._run_one(first, lambda: first.run(timeout, ctrl_c))
        for thread in threads:
            thread.join()
        stop, cpu = self._control.take() or (Stopped(), None)
        return stop, cpu or 0

    def _start_others(self) -> list[threading.Thread]:
        threads: list[threading.Thread] = []
        try:
            for loop in self._loops[1:]:
                name = f"pykvm vCPU {loop.id}"
                thread = threading.Thread(target=self._run_one, args=(loop, loop.run_beside), name=name)
                thread.start()
                threads.append(thread)
        except RuntimeError as error:  # the host has no more threads: those that have begun must end
            self._control.fail(error)
        return threads

    def _run_one(self, loop: RunLoop, run: Callable[[], Stop]) -> None:
        try:
            self._control.stop(run(), loop.id)
        except BaseException as error:
            self._control.fail(error)
            if isinstance(error, Exception):
                with contextlib.suppress(PykvmError):  # what cannot be read is not worth losing the error for
                    error.add_note(self._where(loop))

    def _stop_and_lock(self) -> None:
        """Have no run any more from now on: a run under way is stopped, and one that begins meanwhile too."""
        while True:
            if self._run_lock.locked():
                with contextlib.suppress(ClosedError):  # by another thread
                    self.stop()
            if self._run_lock.acquire(timeout=TICK):
                return

    def _where(self, loop: RunLoop) -> str:
        vcpu = self.vcpus[loop.id]
        registers = format_registers(vcpu.get_regs(), vcpu.get_sregs())
        return f"the guest, on CPU {loop.id}:\n" + textwrap.indent(registers, "  ")

    def _look_at(self, loop: RunLoop, stop: Stop | None) -> CpuResult:
        loop.settle()
        vcpu = self.vcpus[loop.id]
        return CpuResult(loop.id, stop, self._activity(loop.id), vcpu.get_regs(), vcpu.get_sregs())

    def _is_idle(self) -> bool:
        """Return whether no CPU will do anything any more; called on the first one's thread, at a tick."""
        is_asleep = self._processors.is_asleep
        if not is_asleep(self.vcpu):
            return False
        with self._control.others_parked(self._loops[0]):
            return not self._control.has_nmi and all(map(is_asleep, self.vcpus))


def _check_apart(image: Image, state: CpuState) -> None:
    """Raise ImageError if ``image`` would overwrite the tables that its mode starts with."""
    for segment in image.segments:
        for name, table in state.tables.items():
            if segment.gpa < table.stop and table.start < segment.end:
                raise ImageError(
                    f"{image.name}: {segment} overlaps the {name} at {table.start:#x}-{table.stop - 1:#x} "
                    f"that the mode starts with: load or link it elsewhere, such as at {layout.LOAD:#x}"
                )
