"""Model-specific registers that answer in Python: ``machine.msr``.

KVM handles the MSRs it knows and refuses the others with #GP. Two switches bring an access here instead: an *unknown*
MSR exits once KVM_CAP_X86_USER_SPACE_MSR is on, and a *known* one once the MSR filter denies it to the kernel. Both are
set from one table, that of the handlers.

See: Documentation/virt/kvm/api.rst, KVM_X86_SET_MSR_FILTER, section 7.21 (KVM_CAP_X86_USER_SPACE_MSR), and
KVM_EXIT_X86_RDMSR. Leaves out the x2APIC's MSRs, 0x800 to 0x8ff, which no filter can deny.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from pykvm.errors import ConfigurationError, MsrRefusedError
from pykvm.kvm import Cap, MsrExitReason, MsrFilterRange, Vm
from pykvm.x86 import msr_name, parse_msr

__all__ = ["MsrHandlers"]

T = TypeVar("T")

X2APIC = range(0x800, 0x900)
MOST_RANGES = 16  # KVM_MSR_FILTER_MAX_RANGES
SPAN = 0x3000  # MSRs that one range's bitmap has room for: KVM_MSR_FILTER_MAX_BITMAP_SIZE bytes


@dataclass(slots=True, eq=False)
class _Cell:
    """A register in Python."""

    value: int

    def read(self) -> int:
        return self.value

    def write(self, value: int) -> None:
        self.value = value


class MsrHandlers:
    """Who answers for which MSR. A handler may be set before the machine runs, or by another handler."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._readers: dict[int, Callable[[], int]] = {}
        self._writers: dict[int, Callable[[int], None]] = {}
        self._cells: dict[int, _Cell] = {}
        self.changes = 0  # how many times a handler was set

    def on_read(self, msr: int | str, handler: Callable[[], int]) -> None:
        """Let ``handler()`` say what RDMSR of ``msr``, a number or a name such as ``"IA32_TSC"``, reads: 64 bits.

        It may raise MsrRefusedError: the guest takes #GP. Any other exception ends the run, and comes out of it.

        Raises: ConfigurationError if KVM cannot hand this MSR over, or the host lacks MSR exits.
        """
        self._set(self._readers, msr, handler)

    def on_write(self, msr: int | str, handler: Callable[[int], None]) -> None:
        """Let ``handler(value)`` take what WRMSR writes to ``msr``; else as ``on_read``."""
        self._set(self._writers, msr, handler)

    def store(self, msr: int | str, value: int) -> None:
        """Make ``msr`` a register that holds ``value`` until the guest writes another.

        Raises: ConfigurationError as ``on_read`` does, or if ``value`` has more than 64 bits.
        """
        cell = _Cell(_checked(value, f"MSR {msr} cannot hold {value!r}"))
        self.on_read(msr, cell.read)
        self.on_write(msr, cell.write)
        self._cells[_index(msr)] = cell

    # ---- what snapshots keep ----

    @property
    def handled(self) -> tuple[int, ...]:
        """Return the MSRs that have a handler."""
        return tuple(sorted({*self._readers, *self._writers}))

    @property
    def stored(self) -> dict[int, int]:
        """Return the MSRs that ``store`` made, and what they hold."""
        return {index: cell.value for index, cell in self._cells.items()}

    def put_back(self, stored: Mapping[int, int]) -> None:
        """Let those that ``store`` made hold what ``stored`` says."""
        for index, cell in self._cells.items():
            cell.value = stored.get(index, cell.value)

    def take_over(self, other: MsrHandlers) -> None:
        """Handle what ``other`` handles: with a register of our own for each that it stores, else by its handlers."""
        for index, cell in other._cells.items():
            self.store(index, cell.value)
        for index, reader in other._readers.items():
            if index not in other._cells or reader != other._cells[index].read:
                self.on_read(index, reader)
        for index, writer in other._writers.items():
            if index not in other._cells or writer != other._cells[index].write:
                self.on_write(index, writer)

    # ---- what the run loop calls ----

    def read(self, index: int) -> int:
        """Return what the guest reads. Raises: MsrRefusedError; whatever the handler raises."""
        if index not in self._readers:
            raise MsrRefusedError(index)
        value = self._readers[index]()
        return _checked(value, f"the handler of MSR {msr_name(index)} returned {value!r}")

    def write(self, index: int, value: int) -> None:
        """Hand over what the guest wrote. Raises: MsrRefusedError; whatever the handler raises."""
        if index not in self._writers:
            raise MsrRefusedError(index)
        self._writers[index](value)

    # ---- inside ----

    def _set(self, table: dict[int, T], msr: int | str, handler: T) -> None:
        index = _index(msr)
        if not 0 <= index < 1 << 32:
            raise ConfigurationError(f"an MSR's number has 32 bits: {index:#x} does not fit")
        if index in X2APIC:
            raise ConfigurationError(f"MSR {index:#x} is the x2APIC's, which KVM hands to nobody")
        for cap in (Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER):
            if not self._vm.check_extension(cap):
                raise ConfigurationError(f"this host's KVM has no MSR exits (KVM_CAP_{cap.name})")
        self.changes += 1
        before = dict(table)
        table[index] = handler
        try:
            ranges = _filter(set(self._readers), set(self._writers))
        except ConfigurationError:
            table.clear()
            table.update(before)
            raise
        reasons = MsrExitReason.UNKNOWN | MsrExitReason.INVAL | MsrExitReason.FILTER
        self._vm.enable_cap(Cap.X86_USER_SPACE_MSR, (reasons.value,))
        self._vm.x86_set_msr_filter(ranges)


def _index(msr: int | str) -> int:
    return parse_msr(msr) if isinstance(msr, str) else msr


def _checked(value: int, problem: str) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise ConfigurationError(f"{problem}: an MSR is a number of 64 bits, 0 or above")
    return value


def _filter(readers: set[int], writers: set[int]) -> list[MsrFilterRange]:
    """Return the ranges that deny the kernel these MSRs: a bit of 0 for each, 1 for all between them."""
    ranges = []
    for denied, reading in ((readers, True), (writers, False)):
        for _, group in groupby(sorted(denied), key=lambda index: index // SPAN):
            indices = list(group)
            base, count = indices[0], indices[-1] - indices[0] + 1
            bits = (1 << count) - 1
            for index in indices:
                bits &= ~(1 << (index - base))
            bitmap = bits.to_bytes((count + 7) // 8, "little")
            ranges.append(MsrFilterRange(base, bitmap, count, read=reading, write=not reading))
    if len(ranges) > MOST_RANGES:
        raise ConfigurationError(
            f"the handlers' MSRs lie in {len(ranges)} ranges of {SPAN:#x}, for reading and writing: "
            f"KVM's filter has room for {MOST_RANGES}"
        )
    return ranges
