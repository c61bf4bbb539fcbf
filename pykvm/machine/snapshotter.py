"""Takes snapshots of one machine and restores them, any number of times and fast.

Most of a machine is memory, and most of that does not change. From the first snapshot on KVM keeps track of the pages
that the guest writes, and guest memory of those that we do; so it is known which pages differ from the ``base``, the
snapshot that was taken or restored last:

    restore the base        only those pages are written
    restore another         those, and where the two snapshots differ
    take a snapshot         only those pages are read; all others are shared with the base

Nobody else's idea of which pages are dirty changes by that: see ``dirty``. What is restored comes in this order:

    pending instructions are abandoned, for they would go on later; then memory, which that may have changed
    the clock, then the devices, which ask it for their alarms
    interrupt lines, whose edges the kernel's controllers would see; these then, and the CPUs with their local APICs

See: ``pykvm.kvm.saved`` for the order within a CPU. Leaves out what is outside: what was printed stays printed, files
and other ends of lines are where they are; and timers inside the kernel, which begin their period anew.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pykvm.boot import Image
from pykvm.devices import Bus, Clock
from pykvm.errors import ConfigurationError, KvmError, SnapshotError
from pykvm.kvm import CpuidEntry, Vcpu, Vm
from pykvm.machine.board import Board
from pykvm.machine.control import Control
from pykvm.machine.debugger import Debugger
from pykvm.machine.dirty import DirtyPages
from pykvm.machine.events import EventLoop
from pykvm.machine.interrupts import Interrupts
from pykvm.machine.msrs import MsrHandlers
from pykvm.machine.output import OutputLog
from pykvm.machine.prepared import HasState, Prepared, memory_of
from pykvm.machine.runloop import RunLoop
from pykvm.machine.snapshot import Shape, Situation, Snapshot
from pykvm.memory import GuestMemory, Region, RegionKind
from pykvm.memory.pages import PageImage, PageTable, differing
from pykvm.units import Gpa
from pykvm.x86 import Cpuid, msr_name

__all__ = ["Parts", "Snapshotter"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a machine is made of, for who saves and restores it.

    ``msrs`` is KVM_GET_MSR_INDEX_LIST, ``forget_rings`` drops what doorbells have rung and nobody has heard,
    ``wake_up`` is what ends a sleep.
    """

    vm: Vm
    vcpus: tuple[Vcpu, ...]
    msrs: tuple[int, ...]
    cpuid: Cpuid
    memories: tuple[GuestMemory, ...]
    dirty: DirtyPages
    pio: Bus
    mmio: Bus
    board: Board
    interrupts: Interrupts
    events: EventLoop
    clock: Clock
    control: Control
    loops: tuple[RunLoop, ...]
    debugger: Debugger
    handlers: MsrHandlers
    serial_log: OutputLog
    debugcon_log: OutputLog
    forget_rings: Callable[[], None]
    wake_up: Callable[[], None]


class Snapshotter:
    """Saves and restores the machine made of ``parts``. All with its lock held, and with no vCPU in KVM_RUN."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._pages = PageTable(*parts.memories)
        self._slots = len(parts.vm.slots)
        self._logs = [memory.log_writes() for memory in parts.memories]
        self._msrs, self.refused_msrs = parts.vcpus[0].find_msrs(parts.msrs)
        self._around: object = None  # what the shape and the devices were found from
        self._shape: Shape | None = None
        self._devices: dict[str, HasState] = {}
        self._written: set[Gpa] | None = None  # by the guest, since the base; None: nobody has counted yet
        self._base: Callable[[], PageImage | None] = _unknown
        self._losses = 0
        self._prepared: weakref.WeakKeyDictionary[Snapshot, Prepared] = weakref.WeakKeyDictionary()

    def take(self, image: Image | None) -> Snapshot:
        """Return what the machine is now. Raises: SnapshotError, ConfigurationError, KvmError."""
        parts = self._parts
        shape = self._look_around()
        self._settle()
        vcpus = tuple(vcpu.save_state(self._msrs) for vcpu in parts.vcpus)
        situation = Situation(
            parts.clock.now(),
            tuple(loop.is_halted for loop in parts.loops),
            parts.control.requests,
            parts.debugger.stops,
            parts.handlers.stored,
            parts.interrupts.levels,
            parts.serial_log.output(),
            parts.debugcon_log.output(),
        )
        devices = {name: copy.deepcopy(device.save()) for name, device in self._devices.items()}
        snapshot = Snapshot(shape, self._take_memory(), vcpus, parts.vm.save_state(), devices, situation, image)
        self._base = memory_of(snapshot)
        return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Make the machine what ``snapshot`` says.

        Raises: ConfigurationError if it is of another shape, or a device cannot have been in such a state, before
        anything changes; KvmError.
        """
        parts, situation = self._parts, snapshot.situation
        prepared = self._prepare(snapshot)
        for vcpu in parts.vcpus:
            vcpu.abandon()
        parts.vm.drain_coalesced()
        parts.forget_rings()
        self._restore_memory(prepared)
        self._base = prepared.base
        shift = situation.time - parts.events.now()
        parts.events.set_time(situation.time)
        prepared.restore_devices()
        parts.interrupts.put_back(situation.levels)
        prepared.load_kernel()
        for loop, is_halted in zip(parts.loops, situation.halted, strict=True):
            loop.put_back(is_halted, shift)
        parts.debugger.put_back(situation.stops)
        parts.handlers.put_back(situation.stored_msrs)
        parts.serial_log.put_back(situation.serial)
        parts.debugcon_log.put_back(situation.debugcon)
        parts.control.put_back(situation.requests, parts.wake_up)

    @property
    def devices(self) -> dict[str, HasState]:
        """Return the devices that are saved, by name. Raises: ConfigurationError if one cannot be."""
        self._look_around()
        return dict(self._devices)

    def begin_empty(self) -> None:
        """Take it that memory is all zeros, as in a machine that was just made: it need not be looked at then."""
        self._count_writes()
        self._base = dict

    # ---- what the machine is ----

    def _look_around(self) -> Shape:
        """Return the machine's shape, looked at anew if somebody has plugged a device in or out."""
        parts = self._parts
        around = (parts.pio.changes, parts.mmio.changes, parts.handlers.changes, parts.vm.slot_changes)
        if self._shape is None or around != self._around:
            if len(parts.vm.slots) != self._slots:
                raise ConfigurationError("the VM has memory slots that this machine did not make: nobody can save them")
            self._devices = {**parts.board.devices(), **self._devices_of_others()}
            self._shape = self._make_shape()
            self._around = around
            self._prepared.clear()
        return self._shape

    def _devices_of_others(self) -> dict[str, HasState]:
        found: dict[str, HasState] = {}
        for device in self._parts.board.others():
            if not isinstance(device, HasState):
                raise ConfigurationError(
                    f"the device {device.name} cannot be saved: give it save() and restore(), as "
                    "pykvm.devices.Stateful does, or take it off the bus"
                )
            found[f"{device.name} ({len(found)})"] = device
        return found

    def _make_shape(self) -> Shape:
        parts, cpus = self._parts, len(self._parts.vcpus)
        regions = [region for memory in parts.memories for region in memory.regions]
        return Shape(
            cpus,
            parts.interrupts.kind.value,
            tuple(_describe(region, regions) for region in regions),
            tuple(f"{bus.name} {place}" for bus in (parts.pio, parts.mmio) for place in bus.ranges),
            tuple(msr_name(index) for index in parts.handlers.handled),
            # On one CPU of a host and another, KVM says different things about topology.
            tuple(f"leaf {_registers(entry)}" for entry in parts.cpuid.with_apic_id(0, cpus).entries),
        )

    def _prepare(self, snapshot: Snapshot) -> Prepared:
        """Return ``snapshot`` made ready, kept for the next time. Raises: ConfigurationError if it does not fit."""
        shape = self._look_around()
        known = self._prepared.get(snapshot)
        if known is not None:
            return known
        if snapshot.shape != shape:
            raise ConfigurationError(
                f"this machine is not like the one that the snapshot is of: {shape.differences(snapshot.shape)}"
            )
        prepared = Prepared(snapshot, self._parts.vm, self._parts.vcpus, self._devices, self._pages)
        self._prepared[snapshot] = prepared
        return prepared

    # ---- instructions ----

    def _settle(self) -> None:
        parts = self._parts
        for loop, vcpu in zip(parts.loops, parts.vcpus, strict=True):
            loop.settle()
            if not vcpu.is_settled:
                raise SnapshotError(
                    f"CPU {vcpu.id} is in the middle of an instruction that cannot be finished: a read that nobody "
                    "answered, or one with more than 64 exits; run() on, and take the snapshot then"
                )
        for write in parts.vm.drain_coalesced():
            parts.loops[0].handle(write)

    # ---- memory ----

    def _count_writes(self) -> None:
        """Have KVM, and guest memory, tell of writes from now on."""
        if self._written is None:
            self._parts.vm.log_dirty_pages()
            self._written = self._parts.dirty.join()
        self._changed()

    def _changed(self) -> Iterable[Gpa] | None:
        """Return the pages that were written since this was asked last; None if nobody knows."""
        parts, written = self._parts, self._written
        if written is None:
            return None
        losses = parts.dirty.losses
        with contextlib.suppress(KvmError):  # a ring ran over, which is one more loss
            parts.dirty.collect()
        pages = [*self._pages.owners(written), *self._written_by_host()]
        written.clear()
        lost, self._losses = losses != self._losses or parts.dirty.losses != losses, parts.dirty.losses
        return None if lost else pages

    def _written_by_host(self) -> list[Gpa]:
        written: list[Gpa] = []
        for log in self._logs:
            written += self._pages.owners(log.take())
        return written

    def _viewed(self) -> list[Gpa]:
        viewed: list[Gpa] = []
        for memory in self._parts.memories:
            if memory.has_views:
                viewed += self._pages.owners(memory.viewed_pages())
        return viewed

    def _take_memory(self) -> PageImage:
        base, changed = self._base(), self._changed()
        if base is None or changed is None:
            self._count_writes()
            return self._pages.capture()
        return self._pages.capture_again(base, [*changed, *self._viewed()])

    def _restore_memory(self, prepared: Prepared) -> None:
        parts, wanted, base = self._parts, prepared.memory, self._base()
        self._base = _unknown  # until it is done
        is_alone = not (self._written or parts.dirty.is_shared or parts.vm.has_dirty_rings)
        if base is wanted and is_alone:
            prepared.put_back_written()
            for log in self._logs:
                if log.has_pages:
                    self._pages.put_back(wanted, self._pages.owners(log.take()))
        else:
            self._make_memory(wanted, base)
        for memory in parts.memories:
            if memory.has_views:
                self._pages.put_back_different(wanted, self._pages.owners(memory.viewed_pages()))

    def _make_memory(self, wanted: PageImage, base: PageImage | None) -> None:
        changed = self._changed()
        if base is None or changed is None:
            self._count_writes()
            self._pages.put_back_different(wanted)
        elif base is wanted:
            self._pages.put_back(wanted, changed)
        else:
            self._pages.put_back(wanted, {*changed, *differing(wanted, base)})


def _unknown() -> None:
    """Return the memory of a base that there is not."""


def _describe(region: Region, regions: list[Region]) -> str:
    where = f"{region.kind.value} {region.gpa:#x}-{region.end - 1:#x}"
    if region.kind is not RegionKind.ALIAS:
        return where
    owner = next(own for own in regions if own.kind is not RegionKind.ALIAS and own.mapping is region.mapping)
    return f"{where} of {owner.gpa + region.offset:#x}"


def _registers(entry: CpuidEntry) -> str:
    registers = " ".join(f"{getattr(entry, name):08x}" for name in ("eax", "ebx", "ecx", "edx"))
    return f"{entry.function:#x}.{entry.index} {registers}"
