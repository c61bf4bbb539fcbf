"""``SavedVcpu`` and ``SavedVm``: what a virtual processor and a VM remember, kept as the kernel gave it.

A snapshot is restored thousands of times a second, so nothing is decoded: each piece is the C structure of one ioctl,
and putting it back is that ioctl. The order matters, and is this one:

    KVM_SET_REGS         forgets a pending exception: before KVM_SET_VCPU_EVENTS
    KVM_SET_SREGS        has IA32_APIC_BASE and EFER: before the local APIC and the other MSRs
    KVM_SET_XCRS, KVM_SET_XSAVE, KVM_SET_DEBUGREGS
    KVM_SET_LAPIC        before IA32_TSC_DEADLINE, which arms its timer
    KVM_SET_MSRS
    KVM_SET_MP_STATE     after KVM_SET_SREGS, which may wake a processor
    KVM_SET_VCPU_EVENTS

Saving asks KVM_GET_MP_STATE first, since that lets a waiting INIT or SIPI take effect.

See: Documentation/virt/kvm/api.rst, under the ioctls' names. Leaves out MSRs beyond KVM_GET_MSR_INDEX_LIST, nested
guests' state, and an XSAVE area above 4096 bytes (AMX).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pykvm._shim import ffi, lib
from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm.batch import Step
from pykvm.kvm.calls import Calls
from pykvm.kvm.constants import IrqchipId
from pykvm.kvm.descriptor import check_error
from pykvm.kvm.structs import DebugRegs, Regs, Sregs, from_c

if TYPE_CHECKING:
    from pykvm._shim import CData

__all__ = ["SHOWN", "SavedVcpu", "SavedVm", "find_msrs"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One structure of the state: ``get`` fills it, ``set`` puts it back."""

    name: str
    get: str
    set: str
    declaration: str
    is_optional: bool = False  # not every vCPU or VM has it


# In the order in which they are put back.
_VCPU_PIECES = (
    _Piece("regs", "KVM_GET_REGS", "KVM_SET_REGS", "struct kvm_regs *"),
    _Piece("sregs", "KVM_GET_SREGS", "KVM_SET_SREGS", "struct kvm_sregs *"),
    _Piece("xcrs", "KVM_GET_XCRS", "KVM_SET_XCRS", "struct kvm_xcrs *"),
    _Piece("xsave", "KVM_GET_XSAVE", "KVM_SET_XSAVE", "struct kvm_xsave *"),
    _Piece("debugregs", "KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS", "struct kvm_debugregs *"),
    _Piece("lapic", "KVM_GET_LAPIC", "KVM_SET_LAPIC", "struct kvm_lapic_state *", is_optional=True),
    _Piece("msrs", "KVM_GET_MSRS", "KVM_SET_MSRS", "struct kvm_msrs *"),
    _Piece("mp_state", "KVM_GET_MP_STATE", "KVM_SET_MP_STATE", "struct kvm_mp_state *"),
    _Piece("events", "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS", "struct kvm_vcpu_events *"),
)
_VM_PIECES = (
    *(
        _Piece(chip.name.lower(), "KVM_GET_IRQCHIP", "KVM_SET_IRQCHIP", "struct kvm_irqchip *", is_optional=True)
        for chip in IrqchipId
    ),
    _Piece("pit2", "KVM_GET_PIT2", "KVM_SET_PIT2", "struct kvm_pit_state2 *", is_optional=True),
    _Piece("clock", "KVM_GET_CLOCK", "KVM_SET_CLOCK", "struct kvm_clock_data *"),
)
_ASKED = (_VCPU_PIECES[-2], *_VCPU_PIECES[:-2], _VCPU_PIECES[-1])  # KVM_GET_MP_STATE first
_CHIPS = {chip.name.lower(): chip for chip in IrqchipId}

# ready_for_interrupt_injection, if_flag, flags and cr8, of which the last is taken in at KVM_RUN without a local APIC.
SHOWN = slice(
    ffi.offsetof("struct kvm_run", "ready_for_interrupt_injection"), ffi.offsetof("struct kvm_run", "apic_base")
)

PAGING = 1 << 31  # CR0.PG
DR7_ENABLES = 0xFF  # L0 to G3 (SDM volume 3, section 17.2.4)

_HAS_NONE = (errno.EINVAL, errno.ENXIO)  # what the kernel answers who asks for an optional piece that is not there


class _Saved:
    """C structures by name. They are never changed once the object is made."""

    _known: tuple[_Piece, ...] = ()

    def __init__(self, structures: Mapping[str, CData]) -> None:
        self._structures = dict(structures)

    @property
    def pieces(self) -> dict[str, bytes]:
        """Return the structures as bytes, by name: ``regs``, ``sregs`` and so on."""
        return {name: bytes(ffi.buffer(c)) for name, c in self._structures.items()}

    @classmethod
    def _structures_of(cls, pieces: Mapping[str, bytes]) -> dict[str, CData]:
        known = {piece.name: piece for piece in cls._known}
        for name in pieces:
            if name not in known:
                raise ConfigurationError(f"KVM's state here has no {name!r}: there are {', '.join(known)}")
        missing = [piece.name for piece in cls._known if not piece.is_optional and piece.name not in pieces]
        if missing:
            raise ConfigurationError(f"KVM's state lacks {', '.join(missing)}")
        return {name: _from_bytes(known[name], data) for name, data in pieces.items()}

    def steps(self, fd: int) -> list[Step]:
        """Return the ioctls of ``fd`` that put everything back; a KvmError of theirs names the ioctl, or the MSR."""
        return [
            _step(fd, piece, self._structures[piece.name]) for piece in self._known if piece.name in self._structures
        ]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.pieces == other.pieces

    def __hash__(self) -> int:
        return hash(tuple(self.pieces.items()))


class SavedVcpu(_Saved):
    """The state of a virtual processor: see ``Vcpu.save_state``.

    ``shown`` is the part of ``struct kvm_run`` that tells of the processor, as of the last exit: see SHOWN.
    """

    _known = _VCPU_PIECES

    def __init__(self, structures: Mapping[str, CData], shown: bytes) -> None:
        super().__init__(structures)
        self.shown = shown

    @classmethod
    def save(cls, calls: Calls, fd: int, msrs: Sequence[int], shown: bytes) -> SavedVcpu:
        """Return the state of the vCPU ``fd``, with the MSRs ``msrs``. Raises: KvmError."""
        structures = {"mp_state": _get(calls, fd, _VCPU_PIECES[-2])}
        for piece in _VCPU_PIECES:
            if piece.name == "msrs":
                structures["msrs"] = _get_msrs(calls, fd, msrs)
            elif piece.name != "mp_state":
                _get_if_any(calls, fd, piece, structures)
        return cls(structures, shown)

    @classmethod
    def save_again(cls, calls: Calls, fd: int, before: SavedVcpu, names: Collection[str], shown: bytes) -> SavedVcpu:
        """Return the state of the vCPU ``fd``, of which since ``before`` only the pieces ``names`` can have changed.

        What did not change is shared with ``before``. Raises: KvmError.
        """
        structures = dict(before._structures)
        for piece in _ASKED:
            if piece.name in names and piece.name in structures:
                known = structures[piece.name]
                new = _get_msrs(calls, fd, list(before.msrs)) if piece.name == "msrs" else _get(calls, fd, piece)
                if ffi.buffer(new)[:] != ffi.buffer(known)[:]:
                    structures[piece.name] = new
        return cls(structures, before.shown if shown == before.shown else shown)

    def shares(self, other: SavedVcpu, name: str) -> bool:
        """Return whether the piece ``name`` is not only equal to that of ``other``, but kept once for both."""
        return self._structures.get(name) is other._structures.get(name)

    @property
    def regs(self) -> Regs:
        """Return the general registers."""
        return from_c(Regs, self._structures["regs"])

    @property
    def sregs(self) -> Sregs:
        """Return segments, tables and control registers."""
        return from_c(Sregs, self._structures["sregs"])

    @property
    def is_paged(self) -> bool:
        """Return whether CR0.PG is on."""
        return bool(self._structures["sregs"].cr0 & PAGING)

    @property
    def debugregs(self) -> DebugRegs:
        """Return the guest's debug registers."""
        return from_c(DebugRegs, self._structures["debugregs"])

    @property
    def has_breakpoints(self) -> bool:
        """Return whether one of the guest's own breakpoints, or watchpoints, is switched on in DR7."""
        return bool(self._structures["debugregs"].dr7 & DR7_ENABLES)

    @property
    def coming_exception(self) -> int | None:
        """Return the vector of the exception that the guest takes at the next KVM_RUN, None if there is none."""
        exception = self._structures["events"].exception
        return int(exception.nr) if exception.injected else None

    @property
    def pieces(self) -> dict[str, bytes]:
        """Return the structures as bytes, by name, and ``shown``."""
        return super().pieces | {"shown": self.shown}

    @classmethod
    def from_pieces(cls, pieces: Mapping[str, bytes]) -> Self:
        """Return what ``pieces`` was made of. Raises: ConfigurationError if it is not what this host's KVM has."""
        shown = pieces.get("shown", b"")
        if len(shown) != SHOWN.stop - SHOWN.start:
            raise ConfigurationError(f"shown has {SHOWN.stop - SHOWN.start} bytes here, not {len(shown)}")
        return cls(cls._structures_of({name: data for name, data in pieces.items() if name != "shown"}), shown)

    @property
    def msrs(self) -> dict[int, int]:
        """Return the MSRs that are part of the state, and their values."""
        c = self._structures["msrs"]
        return {c.entries[n].index: c.entries[n].data for n in range(c.nmsrs)}


class SavedVm(_Saved):
    """What a VM remembers beside its vCPUs and its memory: see ``Vm.save_state``."""

    _known = _VM_PIECES

    @classmethod
    def from_pieces(cls, pieces: Mapping[str, bytes]) -> Self:
        """Return what ``pieces`` was made of. Raises: ConfigurationError if it is not what this host's KVM has."""
        return cls(cls._structures_of(pieces))

    @classmethod
    def save(cls, calls: Calls, fd: int) -> SavedVm:
        """Return the state of the VM ``fd``. Raises: KvmError."""
        structures: dict[str, CData] = {}
        for piece in _VM_PIECES:
            _get_if_any(calls, fd, piece, structures)
        structures["clock"].flags = 0  # what the kernel told about it; it is refused on the way back
        return cls(structures)


def find_msrs(calls: Calls, fd: int, indices: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return those MSRs of ``indices`` that the vCPU ``fd`` lets be read and written back, and those it refuses."""
    kept: list[int] = []
    for index in indices:
        c = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": [{"index": index}]})
        if all(calls.pykvm_ioctl_pointer(fd, request, c) == 1 for request in (lib.KVM_GET_MSRS, lib.KVM_SET_MSRS)):
            kept.append(index)
    return kept, [index for index in indices if index not in kept]


# ---- inside ----


def _new(piece: _Piece) -> CData:
    if piece.declaration == "struct kvm_irqchip *":
        return ffi.new(piece.declaration, {"chip_id": _CHIPS[piece.name]})
    return ffi.new(piece.declaration)


def _get(calls: Calls, fd: int, piece: _Piece) -> CData:
    c = _new(piece)
    check_error(calls.pykvm_ioctl_pointer(fd, getattr(lib, piece.get), c), piece.get)
    return c


def _get_if_any(calls: Calls, fd: int, piece: _Piece, structures: dict[str, CData]) -> None:
    try:
        structures[piece.name] = _get(calls, fd, piece)
    except KvmError as error:
        if not piece.is_optional or error.errno not in _HAS_NONE:
            raise


def _get_msrs(calls: Calls, fd: int, indices: Sequence[int]) -> CData:
    c = ffi.new("struct kvm_msrs *", {"nmsrs": len(indices), "entries": [{"index": index} for index in indices]})
    done = calls.pykvm_ioctl_pointer(fd, lib.KVM_GET_MSRS, c)
    if done != len(indices):
        _explain("KVM_GET_MSRS", done, c)
    return c


def _from_bytes(piece: _Piece, data: bytes) -> CData:
    if piece.name == "msrs":
        room = (len(data) - ffi.sizeof("struct kvm_msrs")) // ffi.sizeof("struct kvm_msr_entry")
        c = ffi.new("struct kvm_msrs *", {"nmsrs": 0, "entries": max(0, room)})
    else:
        c = _new(piece)
    target = ffi.buffer(c)
    if len(data) != len(target):
        raise ConfigurationError(f"{piece.name} has {len(target)} bytes here, not {len(data)}")
    target[:] = data
    if piece.name == "msrs" and c.nmsrs != room:
        raise ConfigurationError(f"msrs has room for {room} registers and is said to hold {c.nmsrs}")
    if piece.name in _CHIPS and c.chip_id != _CHIPS[piece.name]:
        raise ConfigurationError(f"{piece.name} holds the state of another interrupt controller, number {c.chip_id}")
    return c


def _step(fd: int, piece: _Piece, c: CData) -> Step:
    if piece.name != "msrs":
        return Step(fd, piece.set, c)
    return Step(fd, piece.set, c, int(c.nmsrs), lambda done: _explain(piece.set, done, c))


def _explain(name: str, result: int, c: CData) -> None:
    """Raise KvmError for an ioctl that returned ``result``, which is an errno or how many MSRs went well."""
    check_error(result, name)
    raise KvmError(name, errno.EINVAL, f"nmsrs={c.nmsrs}", f"MSR {c.entries[result].index:#x} was refused")
