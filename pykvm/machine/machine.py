"""``Machine``: a small PC, and a run of it in one call.

It ties the layers together: memory slots from ``GuestMemory``, one vCPU, the buses with the standard devices, the
run loop. Everything it does can be done by hand with ``pykvm.kvm``; docs/book shows both. Leaves out so far:
interrupts, several CPUs, snapshots.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pykvm.boot import Image, flat_image, open_image
from pykvm.devices import (
    Bus,
    DebugConsole,
    DebugExit,
    PostCode,
    Serial,
    Unclaimed,
    debugcon,
    debugexit,
    postcode,
    serial,
)
from pykvm.errors import ClosedError, ConfigurationError, GuestMemoryError, ImageError, InUseError, KvmError
from pykvm.kvm import Cap, Exit, Kvm, Regs, Sregs
from pykvm.machine.observer import LastExits, Observer
from pykvm.machine.output import Output, OutputLog
from pykvm.machine.report import Scene, report
from pykvm.machine.runloop import RunLoop
from pykvm.machine.stop import Crashed, DebugExitWritten, Interrupted, Stop, Stopped, TimedOut, exit_status
from pykvm.memory import GuestMemory, layout
from pykvm.units import GiB, format_size
from pykvm.x86 import CpuState, Mode, check, set_up, to_mode

__all__ = ["DEFAULT_TIMEOUT", "Machine", "RunResult"]

DEFAULT_TIMEOUT = 10.0  # seconds: a broken guest loops for ever more often than it crashes

PDPE1GB = 1 << 26  # CPUID 0x80000001 EDX: pages of 1 GiB (SDM volume 2, CPUID)

PIO_SPACE = 1 << 16
MMIO_SPACE = 1 << 52  # the widest guest-physical address that x86 allows (MAXPHYADDR)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    ``stop`` says why it ended; ``serial`` and ``debugcon`` are what the guest has printed since the machine was made;
    ``exits`` counts the exits of this run and ``last_exits`` holds the last few;
    ``report`` is the explanation in words of a crash or a time-out, else empty; ``duration`` is in seconds.
    """

    stop: Stop
    registers: Regs
    sregs: Sregs
    serial: Output
    debugcon: Output
    exits: int
    last_exits: tuple[Exit, ...]
    duration: float
    report: str

    @property
    def exit_code(self) -> int | None:
        """Return ``(value << 1) | 1`` for a guest that wrote ``value`` to the debug-exit port, else None."""
        return self.stop.exit_code if isinstance(self.stop, DebugExitWritten) else None

    @property
    def status(self) -> int:
        """Return the exit status that ``pykvm run`` ends with."""
        return exit_status(self.stop)


class Machine:
    """A PC with one CPU, RAM from address 0 on, a serial port, and a way out.

    ``memory`` is a size (``"16M"``, bytes) or a GuestMemory of one's own, which stays the caller's to close.
    ``serial_output`` gets what the guest prints as it comes, ``serial_input(n)`` is asked for up to n bytes when the
    guest looks for some, and must not block. ``strict_io`` makes an access that no device claims an error.

    The standard devices: a 16550A at ports 0x3f8 to 0x3ff and again at guest-physical 0xd0000000; debug exit at port
    0xf4; debug console at 0xe9; POST code at 0x80. More go onto ``pio`` and ``mmio``.

    Raises: KvmUnavailableError, KvmError, GuestMemoryError, ConfigurationError.
    """

    def __init__(
        self,
        memory: int | str | GuestMemory = "16M",
        *,
        serial_output: Callable[[bytes], object] | None = None,
        serial_input: Callable[[int], bytes] | None = None,
        debugcon_output: Callable[[bytes], object] | None = None,
        on_unclaimed: Callable[[Unclaimed], None] | None = None,
        strict_io: bool = False,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._requested: Stop | None = None
        self._image: Image | None = None
        self._run_lock = threading.Lock()
        self._runner: int | None = None  # the thread inside run()
        self._resources = ExitStack()
        self._closed = False
        try:
            self.memory = memory if isinstance(memory, GuestMemory) else self._own(GuestMemory(memory))
            self._open_kvm()
        except BaseException:
            self._closed = True
            self._resources.close()
            raise
        self._serial_log = OutputLog(serial_output)
        self._debugcon_log = OutputLog(debugcon_output)
        self.serial = Serial(output=self._serial_log.write, input=serial_input)
        self.pio = Bus("port", PIO_SPACE, strict=strict_io, on_unclaimed=on_unclaimed)
        self.mmio = Bus("MMIO", MMIO_SPACE, strict=strict_io, on_unclaimed=on_unclaimed)
        self._plug_in()
        self._last_exits = LastExits()
        self._loop = RunLoop(self.vcpu, self.pio, self.mmio, (self._last_exits, *observers), self._take_request)

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

        ``image`` is an Image, the path of a file (ELF, assembly source or flat binary), or the bytes of a flat
        binary. ``mode`` is the state the CPU starts in, by default the image's own; ``ring`` 3 starts it
        unprivileged, in protected and long mode; ``page_size`` is that of the page tables made for paged modes, in
        bytes. ``entry`` (an address or a symbol) and ``load`` (a guest-physical address) override the image's.

        Raises: ImageError, AssemblerError, ConfigurationError, GuestMemoryError, PagingError.
        """
        self._check_open()
        chosen = None if mode is None else to_mode(mode)
        if isinstance(image, bytes):
            image = flat_image(image, mode=chosen, load=load, entry=entry)
        elif not isinstance(image, Image):
            image = open_image(image, mode=chosen, load=load, entry=entry)
        if page_size == GiB and not self._has_1g_pages():
            raise ConfigurationError(
                "this host's KVM offers guests no pages of 1 GiB: CPUID 0x80000001 EDX bit 26 is 0"
            )
        state = self._set_up(chosen or image.mode, image.entry, ring, page_size)
        _check_apart(image, state)
        image.load(self.memory)
        self._image = image
        self.set_state(state)

    def set_state(self, state: CpuState) -> None:
        """Set the CPU's registers, for instance to what ``pykvm.x86.reset_vector`` returns.

        Raises: ConfigurationError that says in words why KVM refuses them.
        """
        self._check_open()
        try:
            self.vcpu.set_sregs(state.sregs)
            self.vcpu.set_regs(state.regs)
        except KvmError as error:
            problems = check(state.regs, state.sregs)
            raise ConfigurationError("\n".join([str(error), *(f"  {problem}" for problem in problems)])) from error

    def run(self, timeout: float | None = DEFAULT_TIMEOUT) -> RunResult:
        """Run the guest until it stops, or for ``timeout`` seconds (None: no limit), and say what it came to.

        It can be called again to let a guest go on that halted, timed out or was stopped. Ctrl-C comes through as
        KeyboardInterrupt and leaves the machine as it was, so that ``result()`` can look at it.

        Raises: what a device raises; InUseError if another thread is running it.
        """
        self._check_open()
        if not self._run_lock.acquire(blocking=False):
            raise InUseError("this machine is running on another thread: stop() it first")
        self._runner = threading.get_ident()
        before, start = self._last_exits.count, time.perf_counter()
        try:
            stop = self._loop.run(timeout)
            return self.result(stop, self._last_exits.count - before, time.perf_counter() - start)
        finally:
            self._runner = None
            self._run_lock.release()

    def stop(self) -> None:
        """Make the ``run()`` under way, or else the next one, end with ``Stopped``. From any thread or device."""
        self._check_open()
        self._requested = Stopped()
        self.vcpu.kick()

    def result(self, stop: Stop, exits: int = 0, duration: float = 0.0) -> RunResult:
        """Return the machine's state as the result of a run that ended with ``stop``, explained where it is due."""
        self._check_open()
        self._loop.settle()
        registers, sregs = self.vcpu.get_regs(), self.vcpu.get_sregs()
        last_exits = self._last_exits.exits()
        text = ""
        if isinstance(stop, Crashed | TimedOut | Interrupted):
            text = report(Scene(stop, registers, sregs, self.memory, last_exits, exits, duration, self._image))
        return RunResult(
            stop,
            registers,
            sregs,
            self._serial_log.output(),
            self._debugcon_log.output(),
            exits,
            last_exits,
            duration,
            text,
        )

    @property
    def is_running(self) -> bool:
        """Return whether a thread is inside ``run()``."""
        return self._run_lock.locked()

    @property
    def registers(self) -> Regs:
        """Return the general registers, true even in the middle of an exit's instruction."""
        self._check_open()
        self._loop.settle()
        return self.vcpu.get_regs()

    # ---- closing ----

    def close(self) -> None:
        """Stop a run on another thread and wait for its end, then close the VM and release the memory.

        Does nothing the second time. Raises: InUseError when called from inside ``run()``, by a device or an observer.
        """
        if self._closed:
            return
        if self._runner == threading.get_ident():
            raise InUseError("this machine is running: stop() it, and close it when run() has returned")
        if self._run_lock.locked():
            self.stop()
        with self._run_lock:
            self._closed = True
            self._resources.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside ----

    def _own(self, memory: GuestMemory) -> GuestMemory:
        return self._resources.enter_context(memory)

    def _open_kvm(self) -> None:
        kvm = self._resources.enter_context(Kvm.open())
        self.vm = self._resources.enter_context(kvm.create_vm())
        # VT-x without "unrestricted guest" runs real mode inside a hidden task and page table.
        if self.vm.check_extension(Cap.SET_IDENTITY_MAP_ADDR):
            self.vm.set_identity_map_addr(layout.IDENTITY_MAP)
        if self.vm.check_extension(Cap.SET_TSS_ADDR):
            self.vm.set_tss_addr(layout.TSS_REGION)
        for slot, region in enumerate(self.memory.regions):
            self.vm.set_user_memory_region(slot, region.gpa, region.buffer, readonly=region.readonly)
        self.vcpu = self._resources.enter_context(self.vm.create_vcpu())
        self._cpuid = kvm.get_supported_cpuid()
        self.vcpu.set_cpuid2(self._cpuid)
        self._reset_sregs = self.vcpu.get_sregs()

    def _plug_in(self) -> None:
        self.pio.register(self.serial, serial.COM1, serial.REGISTERS)
        self.mmio.register(self.serial, layout.MMIO_SERIAL, serial.REGISTERS)
        self.pio.register(DebugExit(self._on_debug_exit), debugexit.PORT, debugexit.REGISTERS)
        self.pio.register(DebugConsole(self._debugcon_log.write), debugcon.PORT, 1)
        self.post_code = PostCode()
        self.pio.register(self.post_code, postcode.PORT, 1)

    def _on_debug_exit(self, value: int) -> None:
        self._requested = DebugExitWritten(value)

    def _set_up(self, mode: Mode, entry: int, ring: int, page_size: int | None) -> CpuState:
        try:
            return set_up(mode, self._reset_sregs, self.memory, entry, ring=ring, page_size=page_size)
        except GuestMemoryError as error:
            needed = format_size(layout.PAGE_TABLES_END)
            raise GuestMemoryError(
                f"{mode.value} mode's tables have no room: {error}; give the machine {needed} of memory or more",
                error.address,
            ) from error

    def _has_1g_pages(self) -> bool:
        return any(leaf.function == 0x8000_0001 and leaf.edx & PDPE1GB for leaf in self._cpuid)

    def _take_request(self) -> Stop | None:
        request, self._requested = self._requested, None
        return request

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this machine is closed: create a new one")


def _check_apart(image: Image, state: CpuState) -> None:
    """Raise ImageError if ``image`` would overwrite the tables that its mode starts with."""
    for segment in image.segments:
        for name, table in state.tables.items():
            if segment.gpa < table.stop and table.start < segment.end:
                raise ImageError(
                    f"{image.name}: {segment} overlaps the {name} at {table.start:#x}-{table.stop - 1:#x} "
                    f"that the mode starts with: load or link it elsewhere, such as at {layout.LOAD:#x}"
                )
