"""``Snapshot``: what a machine was at some time, to be restored any number of times, into it or into one like it.

    shape        what a machine must be like for the rest to fit
    memory       the pages that are not zeros
    vcpus, vm    what KVM knows: registers, MSRs, local APICs, interrupt controllers, clock
    devices      what each device remembers
    situation    what the machine knows beside: time, lines, requests, output

It is a value: nothing changes it, and several threads may restore it into several machines. Leaves out how it is taken
and restored: see ``snapshotter``; and how it is a file: see ``snapshot_file``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pykvm.boot import Image
from pykvm.devices.fields import Json
from pykvm.devices.state import State
from pykvm.errors import ConfigurationError, SnapshotError
from pykvm.kvm.saved import SavedVcpu, SavedVm
from pykvm.machine.control import Requests
from pykvm.machine.interrupts import Levels
from pykvm.machine.output import Output
from pykvm.machine.stop import DebugExitWritten, PoweredOff, ResetRequested, Stop
from pykvm.markup import facts
from pykvm.memory.pages import PageImage

__all__ = ["Shape", "Situation", "Snapshot"]

T = TypeVar("T")

BITS_64 = 1 << 64


@dataclass(frozen=True, slots=True)
class Shape:
    """What a machine was made as, in words: two machines of the same shape can have each other's state."""

    cpus: int
    irqchip: str
    memory: tuple[str, ...]
    devices: tuple[str, ...]  # and where on the buses they are
    handled_msrs: tuple[str, ...]
    cpuid: tuple[str, ...]

    def differences(self, snapshots: Shape) -> str:
        """Return how this shape, a machine's, differs from ``snapshots``, a snapshot's."""
        return "; ".join(self._differences(snapshots))

    def _differences(self, snapshots: Shape) -> Iterator[str]:
        for name in self.__slots__:
            here, there = getattr(self, name), getattr(snapshots, name)
            if here == there:
                continue
            if isinstance(here, tuple):
                lists = [("the machine", here, there), ("the snapshot", there, here)]
                parts = [
                    f"only {whose} has {_some(own, other)}" for whose, own, other in lists if set(own) - set(other)
                ]
                yield f"{name.replace('_', ' ')}: {', '.join(parts) or 'another order'}"
            else:
                yield f"{name}: {here} here, {there} in the snapshot"


@dataclass(frozen=True, slots=True)
class Situation:
    """What a machine knows that neither KVM nor a device does.

    ``time`` is its clock's nanoseconds, ``halted`` which CPUs wait outside the kernel, ``stops`` which stand at a
    breakpoint and where, ``stored_msrs`` what ``machine.msr.store`` holds.
    """

    time: int
    halted: tuple[bool, ...]
    requests: Requests
    stops: Mapping[int, int]
    stored_msrs: Mapping[int, int]
    levels: Levels
    serial: Output
    debugcon: Output


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Snapshot:
    """See ``Machine.snapshot``. ``image`` is what reports look up names in, and is not saved to a file."""

    shape: Shape
    memory: PageImage = field(repr=False)
    vcpus: tuple[SavedVcpu, ...] = field(repr=False)
    vm: SavedVm = field(repr=False)
    devices: Mapping[str, State] = field(repr=False)
    situation: Situation = field(repr=False)
    image: Image | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        return facts(
            [
                ("time", f"{self.situation.time / 1e9:.6f} s"),
                ("CPUs", str(self.shape.cpus)),
                ("memory", ", ".join(self.shape.memory)),
                ("pages kept", str(len(self.memory))),
                ("devices", ", ".join(self.shape.devices)),
                ("serial", f"{len(self.situation.serial.data)} bytes"),
            ],
            "snapshot",
        )

    def save(self, path: str | Path) -> None:
        """Write this to a file, in the place of whatever is there, all or nothing: see ``snapshot_file``.

        Raises: SnapshotError if it cannot be written, or a device's state is not plain data.
        """
        # Loaded only now: with hashlib and tempfile it takes as long as the rest of snapshots, and few are ever saved.
        from pykvm.machine.snapshot_file import write_snapshot

        write_snapshot(Path(path), _document(self), self.memory)

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Return what ``save`` wrote.

        Raises: SnapshotError if the file cannot be read, is no snapshot, is damaged, or is of another version or host.
        """
        from pykvm.machine.snapshot_file import read_snapshot

        document, pages = read_snapshot(Path(path))
        try:
            return _snapshot(_Node(document, "the document"), pages)
        except ConfigurationError as error:
            raise SnapshotError(f"the snapshot {path} cannot be used: {error}") from error


def _some(own: tuple[str, ...], other: tuple[str, ...]) -> str:
    found = [one for one in own if one not in other]
    return " and ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


# ---- to JSON ----


def _document(snapshot: Snapshot) -> dict[str, Json]:
    shape, situation = snapshot.shape, snapshot.situation
    return {
        "shape": {
            "cpus": shape.cpus,
            "irqchip": shape.irqchip,
            **{name: list(getattr(shape, name)) for name in ("memory", "devices", "handled_msrs", "cpuid")},
        },
        "vcpus": [_hex(vcpu.pieces) for vcpu in snapshot.vcpus],
        "vm": _hex(snapshot.vm.pieces),
        "devices": dict(snapshot.devices),
        "situation": {
            "time": situation.time,
            "halted": list(situation.halted),
            "requests": _requests_document(situation.requests),
            "stops": [[cpu, at] for cpu, at in situation.stops.items()],
            "stored_msrs": [[index, value] for index, value in situation.stored_msrs.items()],
            "levels": [[gsi, number] for gsi, number in situation.levels],
            "serial": _output_document(situation.serial),
            "debugcon": _output_document(situation.debugcon),
        },
    }


def _hex(pieces: Mapping[str, bytes]) -> dict[str, Json]:
    return {name: data.hex() for name, data in pieces.items()}


def _output_document(output: Output) -> Json:
    return {"data": output.data.hex(), "dropped": output.dropped}


def _requests_document(requests: Requests) -> Json:
    stop: Json = None
    match requests.stop:
        case DebugExitWritten(value):
            stop = ["debug exit", value]
        case ResetRequested(by):
            stop = ["reset", by]
        case PoweredOff():
            stop = ["power off", 0]
    return {
        "nmis": [*sorted(requests.nmis)],
        "asleep": requests.asleep,
        "waking": requests.waking,
        "stop": stop,
        "cpu": requests.cpu,
    }


# ---- from JSON, which may say anything ----


class _Node:
    """A JSON object, and in words where it is; its fields are asked for by name and type."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise ConfigurationError(f"{where} is not an object")
        self._value = value
        self._where = where

    def get(self, name: str, kind: type[T]) -> T:
        """Return the field ``name``, a ``kind``; numbers have up to 64 bits. Raises: ConfigurationError."""
        value = self._value.get(name)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < BITS_64):
            raise ConfigurationError(f"{self._where}: {name} is not a {kind.__name__} as it ought to be")
        return value

    def node(self, name: str) -> _Node:
        """Return the field ``name``, an object."""
        return _Node(self.get(name, dict), f"{self._where}: {name}")

    def many(self, name: str, kind: type[T]) -> tuple[T, ...]:
        """Return the field ``name``, a list of ``kind``."""
        values = self.get(name, list)
        return tuple(_Node({"": value}, f"{self._where}: {name}").get("", kind) for value in values)

    def pairs(self, name: str) -> list[tuple[int, int]]:
        """Return the field ``name``, a list of pairs of numbers."""
        found = [_Node({"": pair}, f"{self._where}: {name}").many("", int) for pair in self.many(name, list)]
        if any(len(pair) != 2 for pair in found):
            raise ConfigurationError(f"{self._where}: {name} is not a list of pairs")
        return [(pair[0], pair[1]) for pair in found]

    def octets(self, name: str) -> bytes:
        """Return the field ``name``, hexadecimal digits."""
        try:
            return bytes.fromhex(self.get(name, str))
        except ValueError:
            raise ConfigurationError(f"{self._where}: {name} is not hexadecimal digits") from None

    def all_octets(self) -> dict[str, bytes]:
        """Return all fields, of hexadecimal digits."""
        return {name: self.octets(name) for name in self._value}

    def optional(self, name: str, read: Callable[[str], T]) -> T | None:
        """Return the field ``name`` by ``read``, or None for null."""
        return None if name in self._value and self._value[name] is None else read(name)


def _snapshot(document: _Node, pages: PageImage) -> Snapshot:
    shape = _shape(document.node("shape"))
    vcpus = [_Node(vcpu, "vcpus") for vcpu in document.many("vcpus", dict)]
    situation = _situation(document.node("situation"))
    if not len(vcpus) == len(situation.halted) == shape.cpus:
        raise ConfigurationError(f"there are {shape.cpus} CPUs and the state of {len(vcpus)}")
    return Snapshot(
        shape,
        pages,
        tuple(SavedVcpu.from_pieces(vcpu.all_octets()) for vcpu in vcpus),
        SavedVm.from_pieces(document.node("vm").all_octets()),
        document.get("devices", dict),
        situation,
    )


def _shape(node: _Node) -> Shape:
    lists = [node.many(name, str) for name in ("memory", "devices", "handled_msrs", "cpuid")]
    return Shape(node.get("cpus", int), node.get("irqchip", str), *lists)


def _situation(node: _Node) -> Situation:
    return Situation(
        node.get("time", int),
        node.many("halted", bool),
        _requests(node.node("requests")),
        dict(node.pairs("stops")),
        dict(node.pairs("stored_msrs")),
        dict.fromkeys(node.pairs("levels"), True),
        _output(node.node("serial")),
        _output(node.node("debugcon")),
    )


def _requests(node: _Node) -> Requests:
    cpu = node.optional("cpu", lambda name: node.get(name, int))
    nmis = frozenset(node.many("nmis", int))
    stop = node.optional("stop", lambda name: _stop(node.get(name, list)))
    return Requests(nmis, node.get("asleep", bool), node.get("waking", bool), stop, cpu)


def _stop(words: list[object]) -> Stop:
    match words:
        case ["debug exit", int(value)]:
            return DebugExitWritten(value)
        case ["reset", str(by)]:
            return ResetRequested(by)
        case ["power off", 0]:
            return PoweredOff()
    raise ConfigurationError("requests: stop is none that there is")


def _output(node: _Node) -> Output:
    return Output(node.octets("data"), node.get("dropped", int))
