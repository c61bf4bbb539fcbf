"""Running a snippet of assembly as a guest, and what came of it: the fixture ``guest``, and the same without pytest.

    with Guests() as guest:
        assert guest("mov $42, %al; out %al, $0xf4").exit_code == 85

The machines of the last few guests stay open until the ``Guests`` they came from are closed, so that a test can look
into their memory or run them on. Leaves out guests in files: ``Machine.load`` has them.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypedDict, TypeVar, Unpack, overload

from pykvm.boot import Image
from pykvm.devices import Unclaimed
from pykvm.errors import ConfigurationError
from pykvm.kvm import CallLog, Exit, IoOut, MmioWrite, Regs, Sregs
from pykvm.machine import DEFAULT_TIMEOUT, IrqchipKind, Machine, Observer, Output, RunResult, Stop
from pykvm.memory import GuestMemory
from pykvm.testing.assembly import Assembler, Place, caller
from pykvm.testing.exits import AllExits, ExitPattern, assert_exits, select
from pykvm.testing.scripted import Devices
from pykvm.x86 import Cpuid, Mode

__all__ = ["GuestResult", "Guests", "WatchedMachine", "run_guest"]

KEPT = 8  # machines of snippets that stay open

E = TypeVar("E", bound=Exit)
P = ParamSpec("P")


class MachineOptions(TypedDict, total=False):
    """The arguments of ``Machine`` by name, but for ``memory``."""

    irqchip: IrqchipKind | str
    cpus: int
    cpuid: Callable[[Cpuid], Cpuid] | None
    devices: Sequence[str]
    dirty: str | None
    rom: bytes
    assist: bool
    serial_output: Callable[[bytes], object] | None
    serial_input: Callable[[int], bytes] | None
    debugcon_output: Callable[[bytes], object] | None
    on_unclaimed: Callable[[Unclaimed], None] | None
    strict_io: bool
    observers: Sequence[Observer]
    ioctls: CallLog | None


class SnippetOptions(MachineOptions, total=False):
    """The arguments of ``Machine`` by name."""

    memory: int | str | GuestMemory


class WatchedMachine(Machine):
    """A Machine that keeps all its exits in ``watched``, and the result of its last run in ``last_result``."""

    def __init__(self, memory: int | str | GuestMemory = "16M", **options: Unpack[MachineOptions]) -> None:
        self.watched = AllExits()
        self.last_result: RunResult | None = None
        self.place: Place | None = None  # where the guest's source stands in a test, if it is a snippet
        options["observers"] = (self.watched, *options.get("observers", ()))
        super().__init__(memory, **options)

    @property
    def image(self) -> Image | None:
        """Return what was loaded."""
        return self._image

    def run(self, timeout: float | None = DEFAULT_TIMEOUT) -> RunResult:
        """Run the guest: see ``Machine.run``."""
        self.last_result = None
        self.last_result = super().run(timeout)
        return self.last_result


class GuestResult:
    """What came of a guest: ``run`` is the RunResult, and ``machine`` the machine it ran on."""

    def __init__(self, run: RunResult, machine: WatchedMachine, screen: str) -> None:
        self.run = run
        self.machine = machine
        self.screen = screen
        self._exits = machine.watched.copy()  # the machine may run on

    # ---- how it ended ----

    @property
    def stop(self) -> Stop:
        """Return why the run ended: ``Halted()``, ``DebugExitWritten(42)`` ..."""
        return self.run.stop

    @property
    def exit_code(self) -> int | None:
        """Return ``(value << 1) | 1`` for a guest that wrote ``value`` to the debug-exit port 0xf4, else None."""
        return self.run.exit_code

    @property
    def report(self) -> str:
        """Return the explanation in words of a crash or a time-out, else an empty string."""
        return self.run.report

    @property
    def registers(self) -> Regs:
        """Return the general registers at the end, of the CPU that ended the run."""
        return self.run.registers

    @property
    def sregs(self) -> Sregs:
        """Return the special registers at the end, of the CPU that ended the run."""
        return self.run.sregs

    # ---- what it left behind ----

    @property
    def serial(self) -> Output:
        """Return what the guest sent by the serial port: ``serial.text``, ``serial.data``."""
        return self.run.serial

    @property
    def debugcon(self) -> Output:
        """Return what the guest wrote to the debug console, port 0xe9."""
        return self.run.debugcon

    @property
    def memory(self) -> GuestMemory:
        """Return the guest's memory, which is there until the machine is closed: by the eighth guest after it."""
        return self.machine.memory

    # ---- its exits ----

    @overload
    def exits(self, kind: type[E], *, vcpu: int | None = None, **fields: object) -> list[E]: ...
    @overload
    def exits(self, kind: None = None, *, vcpu: int | None = None, **fields: object) -> list[Exit]: ...
    def exits(self, kind: type[E] | None = None, *, vcpu: int | None = None, **fields: object) -> Sequence[Exit]:
        """Return the exits of ``kind`` (None: of every kind) whose ``fields`` have these values: ``port=0x3F8``.

        A range stands for every number in it. ``vcpu`` is one CPU's id, None for all.

        Raises: ConfigurationError if there is no such kind or field.
        """
        return select(self._exits.exits(vcpu), kind, **fields)

    def assert_exits(self, expected: Sequence[ExitPattern]) -> None:
        """Raise AssertionError, which says the first difference in words, unless the exits are as ``expected``.

        An element is an exit, a ``like(...)``, ``ANY`` for any one exit, or ``...`` for any exits or none.
        """
        __tracebackhide__ = True
        if self._exits.dropped:
            raise AssertionError(f"there were too many exits: the last {self._exits.dropped} of them were not kept")
        assert_exits(self._exits.exits(), expected)

    def written(self, *, port: int | None = None, address: int | None = None) -> bytes:
        """Return all bytes the guest wrote to ``port``, or to the MMIO ``address``, in order.

        KVM may hand over the output of one string instruction in several exits: this is the same however it does.
        """
        if (port is None) == (address is None):
            raise ConfigurationError("give a port or an address: written(port=0x3f8)")
        if port is not None:
            return b"".join(exit.data for exit in self.exits(IoOut, port=port))
        return b"".join(exit.data for exit in self.exits(MmioWrite, address=address))

    def __repr__(self) -> str:
        return f"<GuestResult: {self.stop}, {self.run.exits} exits>"


class Guests:
    """Makes machines, runs snippets on them, and closes them all; ``assembler`` is by default one of its own."""

    def __init__(self, assembler: Assembler | None = None) -> None:
        self._assembler = assembler or Assembler()
        self._machines: list[WatchedMachine] = []
        self._spent: deque[WatchedMachine] = deque()  # those of snippets, the oldest first

    def machine(self, memory: int | str | GuestMemory = "16M", **options: Unpack[MachineOptions]) -> WatchedMachine:
        """Return a Machine with these options, closed with the others. Raises: what ``Machine`` does."""
        machine = WatchedMachine(memory, **options)
        self._machines.append(machine)
        return machine

    def named_machines(self) -> list[tuple[str, WatchedMachine]]:
        """Return the machines that are open, newest last, each with a name."""
        if len(self._machines) == 1:
            return [("machine", self._machines[0])]
        named = [(f"machine {number}", machine) for number, machine in enumerate(self._machines)]
        return [(name, machine) for name, machine in named if not machine.closed]

    def __call__(
        self,
        code: str | bytes | Image,
        *,
        mode: Mode | str | None = None,
        syntax: str = "att",
        registers: Mapping[str, int] | None = None,
        input: bytes = b"",
        pio: Devices | None = None,
        mmio: Devices | None = None,
        setup: Callable[[Machine], object] | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        ring: int = 0,
        load: int | None = None,
        **options: Unpack[SnippetOptions],
    ) -> GuestResult:
        """Run ``code`` (assembly, or machine code as bytes) until it stops, and return what came of it.

        ``mode`` is "real", "protected", "paged", "pae" or "long", by default what the first ``.code16`` or the like
        says, else long; ``syntax`` "att" or "intel". ``registers`` are set before the first instruction:
        ``{"rax": 5}``. ``input`` waits at the serial port. ``pio`` and ``mmio`` plug devices in, with how many
        addresses each has: ``pio={0x500: (Dice(), 2)}``. ``setup(machine)`` is called before the run, for what else
        there is to do. ``timeout`` is in seconds; ``options`` are those of ``Machine``.

        Raises: AssemblerError, at the snippet's own line; what ``Machine`` and ``Machine.run`` do.
        """
        __tracebackhide__ = True
        place = caller(code) if isinstance(code, str) else None
        image = self._assemble(code, mode, syntax, load, place)
        if input:
            options["serial_input"] = _Input(input).take
        machine = self._machine_for_snippet(options)
        machine.place = place
        _plug_in(machine, pio or {}, mmio or {})
        machine.load(image, mode=mode, ring=ring, load=load if isinstance(code, bytes) else None)
        _set_registers(machine, registers or {})
        if setup is not None:
            setup(machine)
        result = machine.run(timeout)
        return GuestResult(result, machine, machine.screen.text())

    def _machine_for_snippet(self, options: SnippetOptions) -> WatchedMachine:
        if len(self._spent) == KEPT:  # a test may run thousands
            self._spent.popleft().close()
        machine = self.machine(**options)
        self._spent.append(machine)
        return machine

    def _assemble(
        self, code: str | bytes | Image, mode: Mode | str | None, syntax: str, load: int | None, place: Place | None
    ) -> Image | bytes:
        __tracebackhide__ = True
        if isinstance(code, str):
            return self._assembler.assemble(code, mode=mode, syntax=syntax, load=load, place=place)
        return code

    # ---- closing ----

    def __repr__(self) -> str:
        return f"<Guests: {len(self._machines)} machines>"

    def close(self) -> None:
        """Close all machines; does nothing the second time."""
        with ExitStack() as stack:
            for machine in self._machines:
                stack.callback(machine.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _once(call: Callable[Concatenate[Guests, P], GuestResult]) -> Callable[P, GuestResult]:
    def run(*args: P.args, **kwargs: P.kwargs) -> GuestResult:
        __tracebackhide__ = True
        with Guests() as guests:
            return call(guests, *args, **kwargs)

    run.__name__ = run.__qualname__ = "run_guest"
    run.__doc__ = "Run a guest as ``Guests`` do, with their arguments, and close its machine: for one run."
    return run


run_guest = _once(Guests.__call__)


class _Input:
    """Bytes that wait at the other end of a serial line."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, limit: int) -> bytes:
        taken, self._data = self._data[:limit], self._data[limit:]
        return taken


def _plug_in(machine: Machine, pio: Devices, mmio: Devices) -> None:
    for bus, devices in ((machine.pio, pio), (machine.mmio, mmio)):
        for base, (device, length) in devices.items():
            bus.register(device, base, length)


def _set_registers(machine: Machine, registers: Mapping[str, int]) -> None:
    if not registers:
        return
    known = [field.name for field in dataclasses.fields(Regs)]
    for name in registers:
        if name not in known:
            raise ConfigurationError(f"there is no register {name!r}: there are {', '.join(known)}")
    machine.vcpu.set_regs(dataclasses.replace(machine.vcpu.get_regs(), **registers))
