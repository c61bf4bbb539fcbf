"""``Moment``: what a machine was between two instructions, but for its memory; thousands of them, kept in little room.

    vcpus     what KVM knows of each CPU, piece by piece; pieces that did not change are shared with the moment before
    vm        interrupt controllers in the kernel, where there are any
    devices   what each device remembers, shared with the moment before unless something reached a device
    rest      what the machine knows beside, in the same way

See: ``snapshotter`` for what is restored in which order, and for what is outside. Leaves out memory: see ``diary``; and
KVM's clock, which goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from pykvm.devices.state import State, Stateful
from pykvm.kvm.saved import SavedVcpu, SavedVm
from pykvm.machine.control import Requests
from pykvm.machine.interrupts import Levels
from pykvm.machine.prepared import HasState, prepare_devices
from pykvm.machine.snapshotter import Parts

__all__ = ["Moment", "Moments"]

# The pieces of a CPU's state that any instruction may change, and those that only some do: see ``SavedVcpu``.
ALWAYS = ("regs", "sregs", "events")
ALL = (*ALWAYS, "mp_state", "xcrs", "xsave", "debugregs", "lapic", "msrs")

# About how many bytes a moment takes that shares all it can, and the large pieces.
SMALLEST = 1500
SIZES = {"xsave": 4096, "lapic": 1024, "msrs": 2048, "sregs": 400}
DEVICES_SIZE = 16384
VM_SIZE = 2048


@dataclass(frozen=True, slots=True)
class Rest:
    """What a machine knows beside, and changes only when something reaches a device: see ``snapshot.Situation``.

    ``serial`` and ``debugcon`` are how many bytes were printed.
    """

    requests: Requests
    stored_msrs: Mapping[int, int]
    levels: Levels
    serial: int
    debugcon: int


@dataclass(frozen=True, slots=True)
class Moment:
    """See above. ``time`` is the machine's clock in nanoseconds; ``size`` about how many bytes it takes."""

    vcpus: tuple[SavedVcpu, ...]
    vm: SavedVm | None
    devices: Mapping[str, State]
    rest: Rest
    time: int
    halted: tuple[bool, ...]
    size: int


class Moments:
    """Takes moments of the machine made of ``parts`` and ``devices``, and puts them back. With no vCPU in KVM_RUN."""

    def __init__(self, parts: Parts, devices: Mapping[str, HasState]) -> None:
        self._parts = parts
        self._devices = devices
        self._has_local_apic = parts.interrupts.kind.has_local_apic
        self._msrs, _ = parts.vcpus[0].find_msrs(parts.msrs)

    def take(self) -> Moment:
        """Return what the machine is now. Raises: KvmError; InUseError in the middle of an instruction."""
        parts = self._parts
        vcpus = tuple(vcpu.save_state(self._msrs) for vcpu in parts.vcpus)
        return self._make(vcpus, self._save_devices({}), self._rest(), SMALLEST + sum(SIZES.values()) + DEVICES_SIZE)

    def take_again(self, before: Moment, cpu: int | None, *, is_plain: bool, is_touched: bool) -> Moment:
        """Return what the machine is now if since ``before`` only ``cpu`` has run (None: all may have).

        ``is_plain`` says that it changed general registers, segments and control registers at most, ``is_touched`` that
        something reached a device.
        """
        parts, everything = self._parts, self._has_local_apic or cpu is None
        names = ALWAYS if is_plain and not everything else ALL
        vcpus = tuple(
            vcpu.save_state_again(known, names) if everything or vcpu.id == cpu else known
            for vcpu, known in zip(parts.vcpus, before.vcpus, strict=True)
        )
        size = SMALLEST + sum(_new_size(known, now) for known, now in zip(before.vcpus, vcpus, strict=True))
        if not is_touched:
            return self._make(vcpus, before.devices, before.rest, size)
        return self._make(vcpus, self._save_devices(before.devices), self._rest(), size + DEVICES_SIZE)

    def put_back(self, moment: Moment, now: Moment) -> None:
        """Make the machine what ``moment`` says; memory is so already. ``now`` is what it is.

        Raises: KvmError, after which only another ``put_back`` mends it.
        """
        parts = self._parts
        for vcpu in parts.vcpus:
            vcpu.abandon()
        parts.vm.drain_coalesced()
        if moment.devices is now.devices:
            parts.events.go_back(moment.time)
        else:
            parts.forget_rings()
            parts.events.set_time(moment.time)
            prepare_devices(moment.devices, self._devices)()
            self._put_rest_back(moment.rest)
        if any(saved.is_paged for saved in (*moment.vcpus, *now.vcpus)):
            parts.vm.forget_translations()
        if moment.vm is not None:
            parts.vm.load_state(moment.vm)
        for vcpu, saved, current in zip(parts.vcpus, moment.vcpus, now.vcpus, strict=True):
            if self._has_local_apic or saved is not current:
                vcpu.load_state(saved)
        for loop, is_halted in zip(parts.loops, moment.halted, strict=True):
            loop.put_back(is_halted, 0)
        parts.debugger.forget_stops()

    # ---- inside ----

    def _make(self, vcpus: tuple[SavedVcpu, ...], devices: Mapping[str, State], rest: Rest, size: int) -> Moment:
        parts = self._parts
        vm = parts.vm.save_state() if self._has_local_apic else None
        halted = tuple(loop.is_halted for loop in parts.loops)
        return Moment(vcpus, vm, devices, rest, parts.events.now(), halted, size + (VM_SIZE if vm else 0))

    def _save_devices(self, before: Mapping[str, State]) -> dict[str, State]:
        states: dict[str, State] = {}
        for name, device in self._devices.items():
            state = device.save() if isinstance(device, Stateful) else copy.deepcopy(device.save())
            known = before.get(name)
            states[name] = known if known is not None and known == state else state
        return states

    def _rest(self) -> Rest:
        parts = self._parts
        return Rest(
            parts.control.requests,
            parts.handlers.stored,
            parts.interrupts.levels,
            parts.serial_log.total,
            parts.debugcon_log.total,
        )

    def _put_rest_back(self, rest: Rest) -> None:
        parts = self._parts
        parts.interrupts.put_back(rest.levels)
        parts.handlers.put_back(rest.stored_msrs)
        parts.serial_log.take_back(rest.serial)
        parts.debugcon_log.take_back(rest.debugcon)
        parts.control.put_back(rest.requests, parts.wake_up)


def _new_size(before: SavedVcpu, now: SavedVcpu) -> int:
    if before is now:
        return 0
    return sum(size for name, size in SIZES.items() if not now.shares(before, name))
