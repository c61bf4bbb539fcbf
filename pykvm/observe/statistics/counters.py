"""``KernelCounters``: what KVM's own counters of a VM and its vCPUs have gained since some moment.

They know what no observer sees: exits that the kernel handled by itself, halts, injected interrupts, pages mapped. A
counter that only grows is shown by how much it grew, others by what they are now; those that are 0 are left out. See:
Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD. Leaves out what each of them means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from pykvm.errors import KvmError
from pykvm.kvm import Statistic, StatKind, StatsFd, Vcpu, Vm

__all__ = ["KernelCounters"]

_STATES = (StatKind.INSTANT, StatKind.PEAK)  # the others only grow


class KernelCounters:
    """The counters of ``vm`` and ``vcpus`` from now on; a host whose KVM has none gives none. A context manager."""

    def __init__(self, vm: Vm, vcpus: Sequence[Vcpu]) -> None:
        self._files: dict[str, StatsFd] = {}
        try:
            for name, source in [("VM", vm), *((f"vCPU {vcpu.id}", vcpu) for vcpu in vcpus)]:
                self._files[name] = source.get_stats_fd()
        except KvmError:  # KVM_CAP_BINARY_STATS_FD is younger than KVM
            self.close()
        self._before = self._read()

    def gained(self) -> dict[str, tuple[Statistic, ...]]:
        """Return what there is to say of the VM and each vCPU, by what they are called. Raises: KvmError."""
        return {
            name: tuple(gain for gain in map(_gain, self._before[name].values(), now.values()) if any(gain.values))
            for name, now in self._read().items()
        }

    def close(self) -> None:
        """Close what is read from; does nothing the second time."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> dict[str, dict[str, Statistic]]:
        return {name: file.read() for name, file in self._files.items()}


def _gain(before: Statistic, now: Statistic) -> Statistic:
    if now.kind in _STATES:
        return now
    gained = (new - old for old, new in zip(before.values, now.values, strict=True))
    return replace(now, values=tuple(gained))
