"""Decoding ``struct kvm_run``: every exit, from a mapping made here, and hostile mappings. Needs no /dev/kvm."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import random
import typing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._shim import ffi, lib
from pykvm.errors import MalformedExitError
from pykvm.kvm import (
    BusLock,
    Debug,
    DirtyRingFull,
    ExceptionExit,
    Exit,
    ExitReason,
    FailEntry,
    Hlt,
    Hypercall,
    InternalError,
    InternalErrorSuberror,
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
    SystemEventType,
    TprAccess,
    Unknown,
    Wrmsr,
)
from pykvm.kvm.exits import decode
from pykvm.units import PAGE_SIZE, Gpa

if TYPE_CHECKING:
    from pykvm._shim import CData

MAPPING = 3 * PAGE_SIZE  # what KVM_GET_VCPU_MMAP_SIZE says on today's kernels: kvm_run, PIO data, coalesced MMIO
IO_DATA = PAGE_SIZE  # where the kernel puts the bytes of a port access
IO_OUT: int = lib.KVM_EXIT_IO_OUT
IO_IN = 1 - IO_OUT


class Mapping:
    """A vCPU's shared pages with an inaccessible page behind them: a decoder that reads outside ends with SIGSEGV."""

    def __init__(self, content: bytes = b"") -> None:
        self._memory = mmap.mmap(-1, MAPPING + PAGE_SIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + MAPPING), PAGE_SIZE, 0) == 0
        self.page = memoryview(self._memory)[:MAPPING]
        self.page[: len(content)] = content
        # SAFETY: the mapping lives as long as self, which keeps both.
        self.run: CData = ffi.cast("struct kvm_run *", ffi.from_buffer("char[]", self.page))

    def decode(self) -> Exit:
        return decode(self.run, self.page)


def make(reason: ExitReason, member: str = "", /, **values: object) -> Mapping:
    """Return a mapping with ``reason`` and with ``values`` in the union's ``member``."""
    mapping = Mapping()
    mapping.run.exit_reason = reason
    target = getattr(mapping.run, member) if member else None
    for name, value in values.items():
        setattr(target, name, value)
    return mapping


def make_io(direction: int, size: int, count: int, data: bytes = b"", offset: int = IO_DATA) -> Mapping:
    mapping = make(ExitReason.IO, "io", direction=direction, size=size, port=0x3F8, count=count, data_offset=offset)
    mapping.page[IO_DATA : IO_DATA + len(data)] = data
    return mapping


def make_memory_fault() -> Mapping:
    mapping = make(ExitReason.MEMORY_FAULT)
    fault = ffi.cast("struct pykvm_memory_fault *", ffi.addressof(mapping.run, "hw"))
    fault.flags, fault.gpa, fault.size = 8, 0x1234000, 0x1000
    return mapping


INSTRUCTION = bytes.fromhex("66 0f 6f c1") + bytes(11)
EMULATION_WORDS = (
    lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    int.from_bytes(b"\x0f" + INSTRUCTION[:7], "little"),
    int.from_bytes(INSTRUCTION[7:], "little"),
)
EMULATION, DELIVERY_EV = InternalErrorSuberror.EMULATION, InternalErrorSuberror.DELIVERY_EV
SIXTEEN = list(range(100, 116))

CASES: list[tuple[Mapping, Exit]] = [
    (make_io(IO_OUT, 1, 5, b"hello!"), IoOut(0x3F8, 1, 5, b"hello")),
    (make_io(IO_OUT, 4, 2, bytes(range(9))), IoOut(0x3F8, 4, 2, bytes(range(8)))),
    (make_io(IO_IN, 2, 3), IoIn(0x3F8, 2, 3)),
    (make(ExitReason.MMIO, "mmio", phys_addr=0xFEE00000, len=8), MmioRead(Gpa(0xFEE00000), 8)),
    (
        make(ExitReason.MMIO, "mmio", phys_addr=0xD0000003, len=3, is_write=1, data=list(b"abcdefgh")),
        MmioWrite(Gpa(0xD0000003), b"abc"),
    ),
    (make(ExitReason.HLT), Hlt()),
    (make(ExitReason.SHUTDOWN), Shutdown()),
    (
        make(ExitReason.FAIL_ENTRY, "fail_entry", hardware_entry_failure_reason=0x8000_0021, cpu=3),
        FailEntry(0x8000_0021, 3),
    ),
    (
        make(ExitReason.INTERNAL_ERROR, "internal", suberror=DELIVERY_EV, ndata=2, data=SIXTEEN),
        InternalError(DELIVERY_EV, (100, 101)),
    ),
    (
        make(ExitReason.INTERNAL_ERROR, "internal", suberror=EMULATION, ndata=3, data=list(EMULATION_WORDS)),
        InternalError(EMULATION, EMULATION_WORDS, EMULATION_WORDS[0], INSTRUCTION),
    ),
    (make(ExitReason.DEBUG), Debug(0, 0, 0, 0)),
    (make(ExitReason.EXCEPTION, "ex", exception=13, error_code=0x18), ExceptionExit(13, 0x18)),
    (
        make(ExitReason.HYPERCALL, "hypercall", nr=12, args=[1, 2, 3, 4, 5, 6], longmode=1),
        Hypercall(12, (1, 2, 3, 4, 5, 6), 1),
    ),
    (make(ExitReason.IRQ_WINDOW_OPEN), IrqWindowOpen()),
    (make(ExitReason.SET_TPR), SetTpr()),
    (make(ExitReason.TPR_ACCESS, "tpr_access", rip=1 << 63, is_write=1), TprAccess(1 << 63, True)),
    (
        make(ExitReason.SYSTEM_EVENT, "system_event", type=SystemEventType.RESET, ndata=1, data=SIXTEEN),
        SystemEvent(SystemEventType.RESET, (100,)),
    ),
    (make(ExitReason.IOAPIC_EOI, "eoi", vector=0x31), IoapicEoi(0x31)),
    (make(ExitReason.X86_RDMSR, "msr", reason=2, index=0xC000_0080), Rdmsr(0xC000_0080, 2)),
    (make(ExitReason.X86_WRMSR, "msr", reason=4, index=0x10, data=1 << 63), Wrmsr(0x10, 1 << 63, 4)),
    (make(ExitReason.X86_BUS_LOCK), BusLock()),
    (make(ExitReason.NOTIFY, "notify", flags=1), Notify(1)),
    (make(ExitReason.DIRTY_RING_FULL), DirtyRingFull()),
    (make_memory_fault(), MemoryFault(8, Gpa(0x1234000), 0x1000)),
    (make(ExitReason.INTR), Intr()),
    (make(ExitReason.NMI), Nmi()),
    (make(ExitReason.UNKNOWN, "hw", hardware_exit_reason=77), Unknown(ExitReason.UNKNOWN, 77)),
]


@pytest.mark.parametrize(("mapping", "expected"), CASES, ids=[f"{n}-{exit!r:.40}" for n, (_, exit) in enumerate(CASES)])
def test_an_exit_is_decoded_with_everything_the_kernel_said(mapping: Mapping, expected: Exit) -> None:
    assert mapping.decode() == expected


def test_every_exit_has_a_case_above() -> None:
    assert {type(exit) for _, exit in CASES} == set(typing.get_args(Exit))


def test_every_exit_reason_has_a_case_above() -> None:
    assert {mapping.run.exit_reason for mapping, _ in CASES} == set(ExitReason)


@pytest.mark.parametrize("kind", typing.get_args(Exit))
def test_an_exit_is_a_frozen_slotted_dataclass_that_knows_its_reason(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    assert not hasattr(next(exit for _, exit in CASES if type(exit) is kind), "__dict__")
    assert kind.__hash__ is not None, "frozen"
    assert isinstance(kind.reason, ExitReason)  # type: ignore[attr-defined]  # of every member of Exit


def test_a_debug_exit_has_the_exception_the_address_and_the_debug_registers() -> None:
    mapping = make(ExitReason.DEBUG)
    arch = mapping.run.debug.arch
    arch.exception, arch.pc, arch.dr6, arch.dr7 = 1, 0xFFFF_8000_0000_1000, 0x4FF0, 0x400
    assert mapping.decode() == Debug(1, 0xFFFF_8000_0000_1000, 0x4FF0, 0x400)


def test_an_exit_keeps_its_data_when_the_guest_runs_on() -> None:
    mapping = make_io(IO_OUT, 1, 2, b"ok")
    exit = mapping.decode()
    mapping.page[IO_DATA : IO_DATA + 2] = b"no"
    assert exit == IoOut(0x3F8, 1, 2, b"ok")


def test_an_mmio_write_knows_its_size() -> None:
    assert MmioWrite(Gpa(0), b"abcd").size == 4


def test_an_unheard_of_exit_reason_is_kept_as_a_number() -> None:
    mapping = Mapping()
    mapping.run.exit_reason = 0xDEAD
    assert mapping.decode() == Unknown(0xDEAD)


@pytest.mark.parametrize("count", [0, 1, 4096 * 8])
def test_port_data_may_reach_to_the_last_byte_of_the_mapping(count: int) -> None:
    offset = max(0, MAPPING - count)
    if count > MAPPING:
        with pytest.raises(MalformedExitError):
            make_io(IO_OUT, 1, count, offset=offset).decode()
    else:
        exit = make_io(IO_OUT, 1, count, offset=offset).decode()
        assert isinstance(exit, IoOut) and len(exit.data) == count


@pytest.mark.parametrize("direction", [IO_IN, IO_OUT])
@pytest.mark.parametrize(
    ("size", "count", "offset"),
    [
        (1, 1, MAPPING),
        (4, 1, MAPPING - 3),
        (4, 0xFFFF_FFFF, IO_DATA),
        (1, 1, (1 << 64) - 1),
        (2, 2, (1 << 63) - 2),
    ],
)
def test_port_data_outside_the_mapping_is_refused(direction: int, size: int, count: int, offset: int) -> None:
    with pytest.raises(MalformedExitError, match="KVM_EXIT_IO: data at 0x"):
        make_io(direction, size, count, offset=offset).decode()


@pytest.mark.parametrize("size", [0, 3, 5, 8, 255])
def test_a_port_access_of_a_size_that_no_port_has_is_refused(size: int) -> None:
    with pytest.raises(MalformedExitError, match=f"{size} bytes"):
        make_io(IO_IN, size, 1).decode()


@pytest.mark.parametrize("is_write", [0, 1])
def test_an_mmio_access_of_more_than_8_bytes_is_refused(is_write: int) -> None:
    with pytest.raises(MalformedExitError, match="9 bytes"):
        make(ExitReason.MMIO, "mmio", phys_addr=0, len=9, is_write=is_write).decode()


def test_a_word_count_beyond_the_array_gives_the_words_there_are() -> None:
    for reason, member in ((ExitReason.INTERNAL_ERROR, "internal"), (ExitReason.SYSTEM_EVENT, "system_event")):
        exit = make(reason, member, ndata=0xFFFF_FFFF, data=SIXTEEN).decode()
        assert isinstance(exit, InternalError | SystemEvent)
        assert exit.data == tuple(SIXTEEN)


@pytest.mark.parametrize("words", [(), (0,), (1,), (1, 0x0F), (0, 0x0F, 0)])
def test_an_emulation_error_without_instruction_bytes_says_that_there_are_none(words: tuple[int, ...]) -> None:
    mapping = make(ExitReason.INTERNAL_ERROR, "internal", suberror=EMULATION, ndata=len(words), data=list(words))
    exit = mapping.decode()
    assert isinstance(exit, InternalError)
    assert (exit.data, exit.instruction) == (words, b"")


def test_an_instruction_is_never_longer_than_15_bytes() -> None:
    words = [1, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF]
    exit = make(ExitReason.INTERNAL_ERROR, "internal", suberror=EMULATION, ndata=3, data=words).decode()
    assert isinstance(exit, InternalError)
    assert exit.instruction == b"\xff" * 15


def decode_or_refuse(mapping: Mapping) -> None:
    before = bytes(mapping.page)
    try:
        exit = mapping.decode()
    except MalformedExitError:
        return
    finally:
        assert bytes(mapping.page) == before, "decoding changes nothing"
    assert isinstance(exit, typing.get_args(Exit))
    if isinstance(exit, IoOut):
        assert len(exit.data) == exit.size * exit.count
    if isinstance(exit, MmioRead | MmioWrite):
        assert exit.size <= 8


REASONS = st.one_of(st.sampled_from(ExitReason), st.integers(0, (1 << 32) - 1))


@given(reason=REASONS, seed=st.integers(0, (1 << 64) - 1))
def test_random_mappings_are_decoded_or_refused(reason: int, seed: int) -> None:
    mapping = Mapping(random.Random(seed).randbytes(MAPPING))
    mapping.run.exit_reason = reason
    decode_or_refuse(mapping)


@given(reason=REASONS, union=st.binary(max_size=256))
def test_random_unions_are_decoded_or_refused(reason: int, union: bytes) -> None:
    mapping = Mapping()
    mapping.run.exit_reason = reason
    start = ffi.offsetof("struct kvm_run", "hw")
    mapping.page[start : start + len(union)] = union
    decode_or_refuse(mapping)


@given(
    direction=st.integers(0, 255),
    size=st.one_of(st.sampled_from([1, 2, 4]), st.integers(0, 255)),
    count=st.one_of(st.integers(0, MAPPING + 1), st.integers(0, (1 << 32) - 1)),
    offset=st.one_of(st.integers(0, MAPPING + 1), st.integers(0, (1 << 64) - 1)),
)
def test_port_accesses_of_any_shape_stay_inside_the_mapping(direction: int, size: int, count: int, offset: int) -> None:
    decode_or_refuse(make_io(direction, size, count, offset=offset))
