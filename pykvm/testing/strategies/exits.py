"""The strategy of exits: everything KVM_RUN can return, with fields that go together as the kernel's do.

See: Documentation/virt/kvm/api.rst, section 5, "The kvm_run structure"; ``pykvm.kvm.exits``.
"""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import (
    BusLock,
    Debug,
    DirtyRingFull,
    ExceptionExit,
    Exit,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    Intr,
    IoapicEoi,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MemoryFault,
    MmioRead,
    MmioWrite,
    Nmi,
    Notify,
    Rdmsr,
    SetTpr,
    Shutdown,
    SystemEvent,
    TprAccess,
    Unknown,
    Wrmsr,
)
from pykvm.kvm.constants import ExitReason, InternalErrorSuberror
from pykvm.testing.strategies.values import numbers
from pykvm.units import Gpa

__all__ = ["exits"]

T = TypeVar("T")

MOST_ITEMS = 16  # of a string instruction; KVM gives up to a page of them, and nothing new begins there
LONGEST_INSTRUCTION = 15

BYTES, WORDS, DWORDS, QWORDS = (numbers(size) for size in (1, 2, 4, 8))
ADDRESSES = QWORDS.map(Gpa)
PORT_SIZES = st.sampled_from((1, 2, 4))
COUNTS = st.integers(1, MOST_ITEMS)


def exits(*kinds: type[T]) -> st.SearchStrategy[T]:
    """Return well-formed exits of ``kinds``, such as ``exits(IoIn, MmioRead)``; of all kinds if none is given.

    They shrink to a HLT, or to the first of ``kinds`` with all fields as small as they can be.

    Raises: ConfigurationError for a class that is no exit.
    """
    wanted = kinds or tuple(_BY_KIND)
    unknown = [kind.__name__ for kind in wanted if kind not in _BY_KIND]
    if unknown:
        raise ConfigurationError(f"{', '.join(unknown)} is no kind of exit: those of pykvm.kvm.Exit are")
    return st.one_of(*(_BY_KIND[kind] for kind in wanted))


def _io_out(port: int, size: int, items: list[int]) -> IoOut:
    data = b"".join((item & (1 << 8 * size) - 1).to_bytes(size, "little") for item in items)
    return IoOut(port, size, len(items), data)


def _internal_error(suberror: int, words: list[int]) -> InternalError:
    return InternalError(suberror, tuple(words))


def _emulation_failure(instruction: bytes) -> InternalError:
    # struct emulation_failure of kvm.h: flags, then a byte of size and up to 15 of instruction, in words of 64 bits.
    raw = bytes([len(instruction)]) + instruction.ljust(LONGEST_INSTRUCTION, b"\0")
    words = 1, int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
    return InternalError(InternalErrorSuberror.EMULATION, words, words[0], instruction)


_OTHER_SUBERRORS = st.integers(2, 8)
_UNKNOWN_REASONS = st.integers(0, 0xFF).filter(lambda reason: reason not in set(ExitReason))

_BY_KIND: dict[type, st.SearchStrategy[Exit]] = {
    Hlt: st.just(Hlt()),
    IoIn: st.builds(IoIn, WORDS, PORT_SIZES, COUNTS),
    IoOut: st.builds(_io_out, WORDS, PORT_SIZES, st.lists(DWORDS, min_size=1, max_size=MOST_ITEMS)),
    MmioRead: st.builds(MmioRead, ADDRESSES, st.integers(1, 8)),
    MmioWrite: st.builds(MmioWrite, ADDRESSES, st.binary(min_size=1, max_size=8)),
    Rdmsr: st.builds(Rdmsr, DWORDS, st.sampled_from((1, 2, 4))),
    Wrmsr: st.builds(Wrmsr, DWORDS, QWORDS, st.sampled_from((1, 2, 4))),
    Hypercall: st.builds(Hypercall, QWORDS, st.tuples(*[QWORDS] * 6), st.integers(0, 1)),
    Debug: st.builds(Debug, st.sampled_from((1, 3)), QWORDS, DWORDS, DWORDS),
    Shutdown: st.just(Shutdown()),
    FailEntry: st.builds(FailEntry, QWORDS, BYTES),
    InternalError: st.builds(_emulation_failure, st.binary(max_size=LONGEST_INSTRUCTION))
    | st.builds(_internal_error, _OTHER_SUBERRORS, st.lists(QWORDS, max_size=16)),
    ExceptionExit: st.builds(ExceptionExit, st.integers(0, 31), DWORDS),
    IrqWindowOpen: st.just(IrqWindowOpen()),
    SetTpr: st.just(SetTpr()),
    TprAccess: st.builds(TprAccess, QWORDS, st.booleans()),
    SystemEvent: st.builds(SystemEvent, st.integers(1, 6), st.lists(QWORDS, max_size=16).map(tuple)),
    IoapicEoi: st.builds(IoapicEoi, BYTES),
    BusLock: st.just(BusLock()),
    Notify: st.builds(Notify, st.integers(0, 1)),
    DirtyRingFull: st.just(DirtyRingFull()),
    MemoryFault: st.builds(MemoryFault, st.sampled_from((0, 8)), ADDRESSES, st.integers(1, 1 << 20)),
    Intr: st.just(Intr()),
    Nmi: st.just(Nmi()),
    Unknown: st.builds(Unknown, _UNKNOWN_REASONS) | st.builds(Unknown, st.just(int(ExitReason.UNKNOWN)), QWORDS),
}
