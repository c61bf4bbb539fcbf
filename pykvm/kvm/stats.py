"""KVM's own counters of a VM or a vCPU, read by KVM_GET_STATS_FD: how often it exited, halted, was interrupted.

The descriptor that the ioctl returns is a file in four parts, which describes itself, so that a counter this page has
never heard of is read as well:

    +--------+----+---------------------------------+----------------------+
    | header | id | descriptors: name, kind, unit   | data: 64-bit values  |
    +--------+----+---------------------------------+----------------------+
                    num_desc, each with an offset -->  size values each

See: Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD. Leaves out: counters of a kind or a unit that <linux/kvm.h> did
not know when this was compiled.
"""

from __future__ import annotations

import enum
import errno
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm.calls import Calls
from pykvm.kvm.descriptor import Descriptor
from pykvm.units import format_size

__all__ = ["StatKind", "StatUnit", "Statistic", "StatsFd", "StatsSource"]


class StatKind(enum.Enum):
    """``KVM_STATS_TYPE_*``: what the values of a statistic are."""

    CUMULATIVE = lib.KVM_STATS_TYPE_CUMULATIVE  # only grows
    INSTANT = lib.KVM_STATS_TYPE_INSTANT  # as of now
    PEAK = lib.KVM_STATS_TYPE_PEAK  # the most there ever was
    LINEAR_HIST = lib.KVM_STATS_TYPE_LINEAR_HIST  # how often, in buckets of the same width
    LOG_HIST = lib.KVM_STATS_TYPE_LOG_HIST  # how often, in buckets each twice as wide as the one before


class StatUnit(enum.Enum):
    """``KVM_STATS_UNIT_*``: what the values count."""

    NONE = lib.KVM_STATS_UNIT_NONE
    BYTES = lib.KVM_STATS_UNIT_BYTES
    SECONDS = lib.KVM_STATS_UNIT_SECONDS
    CYCLES = lib.KVM_STATS_UNIT_CYCLES
    BOOLEAN = lib.KVM_STATS_UNIT_BOOLEAN


_HISTOGRAMS = (StatKind.LINEAR_HIST, StatKind.LOG_HIST)
_KINDS = {kind.value for kind in StatKind}
_UNITS = {unit.value for unit in StatUnit}
_SECONDS = {(10, 0): "s", (10, -3): "ms", (10, -6): "us", (10, -9): "ns"}


@dataclass(frozen=True, slots=True)
class Statistic:
    """One of KVM's counters: ``values`` of ``base ** exponent`` times ``unit``; several only for a histogram.

    ``bucket_size`` is the width of a LINEAR_HIST's buckets, in the same unit.
    """

    name: str
    values: tuple[int, ...]
    unit: StatUnit
    base: int
    exponent: int
    kind: StatKind
    bucket_size: int

    @property
    def value(self) -> int:
        """Return the only value. Raises: ConfigurationError if this is a histogram."""
        if len(self.values) != 1:
            raise ConfigurationError(f"{self.name} is a histogram of {len(self.values)} buckets: use values")
        return self.values[0]

    def __str__(self) -> str:
        if self.kind not in _HISTOGRAMS:
            return f"{self.name}: {', '.join(map(self._amount, self.values))}"
        buckets = [f"{count:,} {self._bucket(n)}" for n, count in enumerate(self.values) if count]
        return f"{self.name}: {', '.join(buckets) or 'none'}"

    def _amount(self, value: int) -> str:
        match self.unit:
            case StatUnit.BOOLEAN:
                return "yes" if value else "no"
            case StatUnit.BYTES if self.exponent >= 0:
                return format_size(value * self.base**self.exponent)
            case StatUnit.SECONDS if (self.base, self.exponent) in _SECONDS:
                return f"{value:,} {_SECONDS[self.base, self.exponent]}"
        scale = f" x {self.base}^{self.exponent}" if self.exponent else ""
        unit = "" if self.unit is StatUnit.NONE else f" {self.unit.name.lower()}"
        return f"{value:,}{scale}{unit}"

    def _bucket(self, number: int) -> str:
        start, end = self._limits(number), self._limits(number + 1)
        if number == len(self.values) - 1:
            return f"from {self._amount(start)} up"
        return f"from {start:,} to below {self._amount(end)}"

    def _limits(self, number: int) -> int:
        if self.kind is StatKind.LINEAR_HIST:
            return number * self.bucket_size
        return 1 << number - 1 if number else 0


class StatsFd(Descriptor):
    """The descriptor of a VM's or a vCPU's statistics; it may be read at any time, from any thread."""

    def __init__(self, fd: int, owner: str, calls: Calls = lib) -> None:
        super().__init__(fd, f"the statistics of {owner}", calls)
        # What a statistic is does not change; where its values begin in the data, and how many there are.
        self._layout: list[tuple[Statistic, int, int]] | None = None
        self._data = (0, 0)

    def read(self) -> dict[str, Statistic]:
        """Return every statistic as of now, by name. Raises: KvmError; ClosedError."""
        if self._layout is None:
            self._layout = list(self._describe())
        offset, size = self._data
        values = array("Q", self._pread(size, offset))
        return {
            statistic.name: _with_values(statistic, tuple(values[start : start + count]))
            for statistic, start, count in self._layout
        }

    def _describe(self) -> Iterator[tuple[Statistic, int, int]]:
        header = ffi.from_buffer("struct kvm_stats_header *", self._pread(ffi.sizeof("struct kvm_stats_header"), 0))
        fixed = ffi.sizeof("struct kvm_stats_desc")
        stride = fixed + header.name_size
        table = self._pread(header.num_desc * stride, header.desc_offset)
        end = 0
        for position in range(0, len(table), stride):
            # SAFETY: from_buffer holds the bytes and checks that they are as long as the structure.
            desc = ffi.from_buffer("struct kvm_stats_desc *", table[position : position + fixed])
            end = max(end, desc.offset + 8 * desc.size)
            name = table[position + fixed : position + stride].split(b"\0")[0].decode("ascii", "replace")
            kind, unit = desc.flags & lib.KVM_STATS_TYPE_MASK, desc.flags & lib.KVM_STATS_UNIT_MASK
            if kind in _KINDS and unit in _UNITS:
                base = 2 if desc.flags & lib.KVM_STATS_BASE_MASK == lib.KVM_STATS_BASE_POW2 else 10
                about = Statistic(name, (), StatUnit(unit), base, desc.exponent, StatKind(kind), desc.bucket_size)
                yield about, desc.offset // 8, desc.size
        self._data = (header.data_offset, end)

    def _pread(self, size: int, offset: int) -> bytes:
        self._check_open()
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise KvmError("pread", error.errno or 0, f"{self.label}, size={size}, offset={offset}") from error
        if len(data) != size:
            why = f"the kernel gave {len(data)} bytes only"
            raise KvmError("pread", errno.EIO, f"{self.label}, size={size}, offset={offset}", why)
        return data


class StatsSource(Descriptor):
    """What a VM and a vCPU have in common: counters."""

    def get_stats_fd(self) -> StatsFd:
        """Return a descriptor of the counters, to be read often: KVM_GET_STATS_FD. The caller closes it."""
        return StatsFd(self._ioctl("KVM_GET_STATS_FD"), self.label, self.calls)

    def stats(self) -> dict[str, Statistic]:
        """Return KVM's counters by name, as of now. To read them often, keep ``get_stats_fd()``."""
        with self.get_stats_fd() as stats:
            return stats.read()


def _with_values(about: Statistic, values: tuple[int, ...]) -> Statistic:
    return Statistic(about.name, values, about.unit, about.base, about.exponent, about.kind, about.bucket_size)
