"""Which instruction an exit is about: found at RIP, or right before it, by what the exit says that it did.

At an IN and at a read of memory RIP is on the instruction, for KVM has still to finish it, and at a write to memory it
is past it. At an OUT and some others it may be either, which depends on whether the processor or KVM's emulator
executed it: where the bytes fit at both places, what was seen at unambiguous exits decides, and before there was one,
nothing is shown.

Reading code means walking page tables in guest memory, which the guest may change at any time. What was found is kept
together with all the bytes that it was found by: table entries and code. They are compared at each exit, so that what
is shown is true. Leaves out a guest's accesses that other CPUs race with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pykvm.boot import Image, source_line
from pykvm.kvm import Debug, Exit, InternalError, IoIn, IoOut, MmioRead, MmioWrite, Regs, Sregs, Whereabouts
from pykvm.memory import GuestMemory
from pykvm.observe.tracing.code import Code
from pykvm.observe.tracing.encodings import Encoding, Fits, Form, fits, is_prefix
from pykvm.observe.tracing.line import Place
from pykvm.observe.tracing.stores import repeated_store, store_before
from pykvm.x86 import LONGEST_INSTRUCTION, instruction_at
from pykvm.x86.disassembly import make_decoder

__all__ = ["InstructionFinder", "TracedVcpu"]

MOST_KEPT = 4096  # instructions; a hostile guest can have any number of them


class TracedVcpu(Protocol):
    """What is needed of a vCPU: ``pykvm.kvm.Vcpu`` has it."""

    def whereabouts(self) -> Whereabouts:
        """Return where the guest was at the last exit."""

    def get_regs(self) -> Regs:
        """Return its general registers."""

    def get_sregs(self) -> Sregs:
        """Return its other registers."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An instruction that fits an exit."""

    place: Place
    form: Form


@dataclass(frozen=True, slots=True)
class _Found:
    """The instruction ``at`` RIP that fits an exit, and the one right ``before`` it, and the ``code`` they are in."""

    at: _Candidate | None
    before: _Candidate | None
    code: Code


class InstructionFinder:
    """Finds the instructions of a machine's exits."""

    def __init__(self, vcpus: Sequence[TracedVcpu], memory: GuestMemory) -> None:
        self._vcpus = vcpus
        self._memory = memory
        self._image: Image | None = None
        self._kept: dict[tuple[Whereabouts, object], _Found] = {}
        self._is_past: dict[tuple[type[Exit], Form, int], bool] = {}  # by exit, form and ring: whether RIP is past it

    def prepare(self, image: Image | None) -> None:
        """Load what takes long, before anybody takes the time: the decoder, and the table of source lines."""
        make_decoder(64)
        if image is not None:
            source_line(image, image.entry)

    def find(self, cpu: int, exit: Exit, image: Image | None) -> Place | None:
        """Return the instruction of ``exit``, the last one of ``cpu``; ``image`` is for source lines."""
        kind = _kind(exit)
        if kind is None:
            return None
        if image is not self._image:
            self._image = image
            self._kept.clear()
        vcpu = self._vcpus[cpu]
        here = vcpu.whereabouts()
        key = here, kind
        found = self._kept.get(key)
        if found is None or not found.code.is_there():
            found = self._search(vcpu, exit)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = found
        return self._choose(found, type(exit), here.ss_dpl)

    # ---- which of two ----

    def _choose(self, found: _Found, kind: type[Exit], ring: int) -> Place | None:
        at, before = found.at, found.before
        if at is not None and before is not None:
            is_at = self._habit(at, kind, ring) is False
            is_before = self._habit(before, kind, ring) is True
            if is_at == is_before:
                return None
            return at.place if is_at else before.place
        only = at or before
        if only is None:
            return None
        self._is_past[kind, only.form, ring] = only is before
        return only.place

    def _habit(self, candidate: _Candidate, kind: type[Exit], ring: int) -> bool | None:
        if candidate.form is Form.REPEATED:
            return False
        return self._is_past.get((kind, candidate.form, ring))

    # ---- searching ----

    def _search(self, vcpu: TracedVcpu, exit: Exit) -> _Found:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        code = Code.around(self._memory, regs, sregs)
        match exit:
            case MmioRead() | Debug():
                return _Found(self._at(code, Encoding(LONGEST_INSTRUCTION)), None, code)
            case InternalError(instruction=refused):
                is_it = code.after.startswith(refused)
                return _Found(self._at(code, Encoding(LONGEST_INSTRUCTION) if is_it else None), None, code)
            case MmioWrite():
                return self._search_store(code, exit, regs, sregs)
        fit = fits(exit)
        if fit is None:
            return _Found(None, None, code)
        at = self._at(code, fit(code.after, code.width))
        is_never_past = isinstance(exit, IoIn)
        return _Found(at, None if is_never_past else self._search_before(code, fit), code)

    def _search_before(self, code: Code, fit: Fits) -> _Candidate | None:
        """Find the shortest that ends at RIP and fits: longer ones may have an operand of another for a prefix."""
        ends = [(size, fit(code.before[-size:], code.width)) for size in range(1, len(code.before) + 1)]
        whole = [encoding for size, encoding in ends if encoding is not None and encoding.length == size]
        if not whole:
            return None
        if any(not is_prefix(code.before[-encoding.length], code.width) for encoding in whole[1:]):
            return None  # "e6 ee" is OUT to port 0xee, and its end alone another OUT
        return self._before(code, whole[0])

    def _search_store(self, code: Code, exit: MmioWrite, regs: Regs, sregs: Sregs) -> _Found:
        """Find what has written before RIP, or writes at RIP again and again."""
        at = self._at(code, repeated_store(code))
        encoding = None if at is not None else store_before(code, exit, regs, sregs)
        return _Found(at, None if encoding is None else self._before(code, encoding), code)

    def _at(self, code: Code, encoding: Encoding | None) -> _Candidate | None:
        if encoding is None or not code.after:
            return None
        return self._candidate(code.after[:LONGEST_INSTRUCTION], code.address, code.width, encoding)

    def _before(self, code: Code, encoding: Encoding) -> _Candidate | None:
        start = code.address - encoding.length
        return self._candidate(code.before[-encoding.length :], start, code.width, encoding)

    def _candidate(self, code: bytes, address: int, width: int, encoding: Encoding) -> _Candidate | None:
        found = instruction_at(code, address, width)
        if found is None or found.mnemonic == ".byte":
            return None
        text = f"{found.mnemonic} {found.operands}".rstrip()
        return _Candidate(Place(found.address, text, self._source(found.address)), encoding.form)

    def _source(self, address: int) -> str:
        if self._image is None:
            return ""
        line = source_line(self._image, address)
        symbol = self._image.symbol_at(address) if line is None else None
        return line or (f"<{symbol}>" if symbol else "")


def _kind(exit: Exit) -> object:
    """Return what of ``exit`` decides which instructions fit it; None if that cannot be told by any."""
    match exit:
        case IoIn(port=port, size=size) | IoOut(port=port, size=size):
            return type(exit), port, size
        case MmioWrite(data=data):
            return MmioWrite, len(data)
        case InternalError(instruction=refused):
            return refused or None
        case MmioRead() | Debug():
            return type(exit)
    return type(exit) if fits(exit) is not None else None
