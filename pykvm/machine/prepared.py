"""``Prepared``: a snapshot made ready for one machine, so that restoring it again does no more than it must.

    devices      a plan, of states that were checked
    vm, vcpus    one batch of ioctls, their arguments made
    memory       pointers to the saved pages, for copying those that KVM says were written

Leaves out when each of them is due: see ``snapshotter``.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from pykvm.devices.restoring import RestorePlan
from pykvm.devices.state import Checked, State, Stateful
from pykvm.errors import ConfigurationError
from pykvm.kvm import Vcpu, Vm
from pykvm.kvm.batch import Batch
from pykvm.kvm.written import WrittenPages
from pykvm.machine.snapshot import Snapshot
from pykvm.memory.pages import PageImage, PageTable

__all__ = ["HasState", "Prepared", "memory_of", "prepare_devices"]


@runtime_checkable
class HasState(Protocol):
    """A device that somebody plugged in, and that can be saved: ``Stateful`` or something like it."""

    def save(self) -> State:
        """Return the state as plain data."""

    def restore(self, state: State) -> None:
        """Be as ``state`` says."""


class Prepared:
    """What restoring ``snapshot`` takes. It keeps what the snapshot holds, but not the snapshot itself.

    Raises: ConfigurationError if one of ``devices`` cannot have been in such a state.
    """

    def __init__(
        self, snapshot: Snapshot, vm: Vm, vcpus: tuple[Vcpu, ...], devices: Mapping[str, HasState], pages: PageTable
    ) -> None:
        self.restore_devices = prepare_devices(snapshot.devices, devices)
        self.memory = snapshot.memory
        self.base = memory_of(snapshot)
        pairs = list(zip(vcpus, snapshot.vcpus, strict=True))
        steps = [step for vcpu, saved in pairs for step in vcpu.load_steps(saved)]
        self._kernel = Batch([*vm.load_steps(snapshot.vm), *steps], vm.calls)
        self._shows = [(vcpu.show, saved) for vcpu, saved in pairs]
        self._vm = vm
        self._pages = pages
        self._written: WrittenPages | None = None

    def load_kernel(self) -> None:
        """Give KVM back what it knew: the VM, then the vCPUs. Raises: KvmError."""
        self._kernel.issue()
        for show, saved in self._shows:
            show(saved)

    def put_back_written(self) -> None:
        """Put back the pages that the guest wrote since KVM was asked last. Not with dirty rings. Raises: KvmError."""
        if self._written is None:
            self._written = self._vm.written_pages(self._pages.as_seen(self.memory))
        self._written.put_back()


def memory_of(snapshot: Snapshot) -> Callable[[], PageImage | None]:
    """Return what returns the memory of ``snapshot``, for as long as somebody else keeps that."""
    reference = weakref.ref(snapshot)

    def memory() -> PageImage | None:
        kept = reference()
        return None if kept is None else kept.memory

    return memory


def prepare_devices(states: Mapping[str, State], devices: Mapping[str, HasState]) -> Callable[[], None]:
    """Return what restores ``devices`` to ``states``, which are checked. Raises: ConfigurationError."""
    checked: list[tuple[Stateful, Checked]] = []
    others: list[tuple[HasState, State]] = []
    for name, device in devices.items():
        if name not in states:
            raise ConfigurationError(f"the snapshot has no state of the device {name}")
        state = states[name]
        if isinstance(device, Stateful):
            checked.append((device, device.check(state)))
        else:
            others.append((device, state))
    plan = RestorePlan(checked)

    def restore() -> None:
        plan.restore()
        for device, state in others:
            device.restore(copy.deepcopy(state))  # which it may change later on

    return restore if others else plan.restore
