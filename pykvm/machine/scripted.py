"""A vCPU without KVM: it makes the exits of a list, and is as strict about the answers as KVM's own.

It stands in for ``pykvm.kvm.Vcpu`` in the run loop. What KVM would never report is refused when the list is given, and
a wrong answer when it comes, so that a test cannot pass that has no counterpart on a real host. See:
Documentation/virt/kvm/api.rst, section 5, for what an exit can say. Leaves out registers: there is no guest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import fields
from typing import get_args

from pykvm.errors import ConfigurationError, UnansweredReadError
from pykvm.kvm import (
    Exit,
    Hlt,
    Hypercall,
    Intr,
    IoapicEoi,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Rdmsr,
    ReadExit,
    Wrmsr,
)

__all__ = ["PIO_BUFFER", "ScriptedVcpu", "StandInVcpu", "answer_size", "check_exit"]

PORTS = 1 << 16
PORT_SIZES = (1, 2, 4)
PIO_BUFFER = 4096  # bytes: KVM keeps the data of one exit in a page of the vCPU's mapping
ADDRESSES = 1 << 52  # the widest guest-physical address that x86 allows (MAXPHYADDR)
LONGEST_MMIO = 8  # bytes: the data of struct kvm_run's mmio
VECTORS = 256
ARGUMENTS = 6  # of a hypercall
BITS = 64  # of the widest field that the kernel has
TYPES: dict[str, type] = {"int": int, "Gpa": int, "bool": bool, "bytes": bytes, "tuple[int, ...]": tuple}


class StandInVcpu(ABC):
    """What stands in for KVM's vCPU: base class. It checks the answers; where the exits come from is its heirs' affair.

    ``replies`` has, for each read so far, what the guest would have got, and None for an MSR access that was refused;
    ``interrupts`` the vectors it was handed, and ``nmis`` how many NMIs.
    """

    def __init__(self, id: int = 0) -> None:
        self.id = id
        self.request_interrupt_window = False
        self.replies: list[bytes | None] = []
        self.interrupts: list[int] = []
        self.nmis = 0
        self._unanswered: ReadExit | None = None
        self._refusable: Rdmsr | Wrmsr | None = None
        self._answered: ReadExit | None = None  # the last exit, if it was a read
        self._kicked = False

    @property
    @abstractmethod
    def ready_for_interrupt_injection(self) -> bool:
        """Whether ``interrupt()`` would be taken at once."""

    @property
    @abstractmethod
    def if_flag(self) -> bool:
        """RFLAGS.IF as of the last exit."""

    @abstractmethod
    def next_exit(self) -> Exit:
        """Return the next exit."""

    def run(self) -> Exit:
        """Return the next exit, or ``Intr`` after a kick.

        Raises: UnansweredReadError if the last exit still wants an answer.
        """
        self._check_answered()
        if self._kicked:
            self._kicked = False
            return Intr()
        exit = self.next_exit()
        self._unanswered = exit if isinstance(exit, ReadExit) else None
        self._refusable = exit if isinstance(exit, Rdmsr | Wrmsr) else None
        self._answered = None
        return exit

    def complete(self, exit: ReadExit, data: bytes) -> None:
        """Answer ``exit``, the last one, with ``data``.

        Raises: UnansweredReadError if it is not waiting for an answer, or not for so many bytes.
        """
        if self._unanswered is None or exit != self._unanswered:
            raise UnansweredReadError(self._why_not(exit))
        wanted = answer_size(exit)
        if len(data) != wanted:
            raise UnansweredReadError(f"{exit} wants {wanted} bytes, not {len(data)}")
        self.replies.append(bytes(data))
        self._answered, self._unanswered, self._refusable = exit, None, None

    def refuse(self, exit: Rdmsr | Wrmsr) -> None:
        """Refuse the MSR access ``exit``, the last one. Raises: UnansweredReadError if it is not waiting for that."""
        if self._refusable is None or exit != self._refusable:
            raise UnansweredReadError(
                f"{exit} is not waiting for an answer: it is not the last exit, or has one already"
            )
        self.replies.append(None)
        self._unanswered = self._refusable = None

    def complete_pending(self) -> Exit | None:
        """Do nothing: an instruction has no parts here. Raises: UnansweredReadError as ``run`` does."""
        self._check_answered()
        return None

    def interrupt(self, vector: int) -> None:
        """Take note of an interrupt. Raises: ConfigurationError if KVM would refuse it."""
        if not 0 <= vector < VECTORS:
            raise ConfigurationError(f"KVM_INTERRUPT: there is no vector {vector}, only 0 to {VECTORS - 1}")
        self.interrupts.append(vector)

    def nmi(self) -> None:
        """Count a non-maskable interrupt."""
        self.nmis += 1

    def kick(self) -> None:
        """Make the next ``run()`` return ``Intr``."""
        self._kicked = True

    def abandon(self) -> None:
        """Have done with the last exit, whatever it still wants."""
        self._unanswered = self._refusable = None

    def start_ticks(self, first: float, interval: float) -> None:  # noqa: B027 - not for heirs to define
        """Do nothing: no exit takes any time."""

    def stop_ticks(self) -> None:  # noqa: B027
        """Do nothing."""

    # ---- inside ----

    def _check_answered(self) -> None:
        if self._unanswered is not None:
            raise UnansweredReadError(f"{self._unanswered} was not answered: call complete(exit, data) before run()")

    def _why_not(self, exit: object) -> str:
        if not isinstance(exit, ReadExit):
            return f"{exit} is no read: nobody waits for an answer"
        if exit == self._answered:
            return f"{exit} is not waiting for an answer: it has one already"
        return f"{exit} is not waiting for an answer: it is not the last exit"


class ScriptedVcpu(StandInVcpu):
    """A vCPU that makes ``exits``, one at each ``run()``, and then halts for good.

    ``interruptible`` says whether the guest has interrupts on: it then takes those that a controller has for it, and
    waits for one at HLT. With them off, as at the start, HLT is the end.

    Raises: ConfigurationError if KVM would never make one of the exits.
    """

    def __init__(self, exits: Iterable[Exit] = (), *, id: int = 0, interruptible: bool = False) -> None:
        super().__init__(id)
        self.interruptible = interruptible
        self._exits: list[Exit] = []
        self._position = 0
        self.extend(exits)

    def extend(self, exits: Iterable[Exit]) -> None:
        """Add ``exits`` to the list. Raises: ConfigurationError if KVM would never make one of them."""
        new = list(exits)
        for position, exit in enumerate(new, len(self._exits)):
            check_exit(exit, f"exit {position}: ")
        self._exits += new

    @property
    def position(self) -> int:
        """Return how many of the exits were made so far."""
        return self._position

    @property
    def last(self) -> Exit | None:
        """Return the exit of the list that was made last, None if none was."""
        return self._exits[self._position - 1] if self._position else None

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Whether the guest has interrupts on."""
        return self.interruptible

    @property
    def if_flag(self) -> bool:
        """Whether the guest has interrupts on, and something is left for it to do."""
        return self.interruptible and self._position < len(self._exits)

    def next_exit(self) -> Exit:
        """Return the next exit of the list, ``Hlt`` at its end."""
        if self._position == len(self._exits):
            return Hlt()
        self._position += 1
        return self._exits[self._position - 1]


def answer_size(exit: ReadExit) -> int:
    """Return how many bytes the answer to ``exit`` has."""
    match exit:
        case IoIn(size=size, count=count):
            return size * count
        case MmioRead(size=size):
            return size
        case Rdmsr() | Hypercall():
            return 8


def check_exit(exit: Exit, where: str = "") -> None:
    """Raise ConfigurationError, its message after ``where``, if KVM would never make ``exit``."""
    if not isinstance(exit, get_args(Exit)):
        raise ConfigurationError(f"{where}{exit!r} is no exit of a vCPU")
    problem = _type_problem(exit) or _problem(exit)
    if problem:
        raise ConfigurationError(f"{where}{exit}: {problem}")


def _type_problem(exit: Exit) -> str:
    for field in fields(exit):
        value: object = getattr(exit, field.name)
        wanted = TYPES[str(field.type)]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            return f"{field.name} is {value!r}, and not of type {wanted.__name__}"
        numbers = value if isinstance(value, tuple) else (value,)
        if wanted in (int, tuple) and not all(
            isinstance(number, int) and 0 <= number < 1 << BITS for number in numbers
        ):
            return f"{field.name} is {value!r}, and no number of up to {BITS} bits"
    return ""


def _problem(exit: Exit) -> str:
    match exit:
        case IoIn():
            return _port_problem(exit.port, exit.size, exit.count)
        case IoOut():
            return _port_problem(exit.port, exit.size, exit.count) or _length_problem(exit)
        case MmioRead() | MmioWrite():
            return _mmio_problem(exit.address, exit.size)
        case Rdmsr() | Wrmsr():
            return _msr_problem(exit.index)
        case Hypercall():
            return "" if len(exit.args) == ARGUMENTS else f"a hypercall has {ARGUMENTS} arguments, not {len(exit.args)}"
        case IoapicEoi():
            return "" if 0 <= exit.vector < VECTORS else f"there is no vector {exit.vector}, only 0 to {VECTORS - 1}"
    return ""


def _port_problem(port: int, size: int, count: int) -> str:
    if size not in PORT_SIZES:
        return f"a port is 1, 2 or 4 bytes wide, not {size}"
    if not 0 <= port < PORTS:
        return f"there is no port {port:#x}, only 0 to {PORTS - 1:#x}"
    if not 1 <= count <= PIO_BUFFER // size:
        return f"KVM makes exits of 1 to {PIO_BUFFER // size} items of this size, not of {count}"
    return ""


def _length_problem(exit: IoOut) -> str:
    wanted = exit.size * exit.count
    return "" if len(exit.data) == wanted else f"size * count is {wanted} bytes, and data has {len(exit.data)}"


def _mmio_problem(address: int, size: int) -> str:
    if not 1 <= size <= LONGEST_MMIO:
        return f"an MMIO access has 1 to {LONGEST_MMIO} bytes, not {size}"
    if not 0 <= address < ADDRESSES:
        return f"{address:#x} is no guest-physical address: those have 52 bits"
    return ""


def _msr_problem(index: int) -> str:
    return "" if 0 <= index < 1 << 32 else f"an MSR's number has 32 bits, and {index:#x} does not fit"
