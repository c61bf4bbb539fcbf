"""What a CPU took instead of an instruction, from what it pushed and where it stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm.kvm import Regs, Sregs
from pykvm.memory import GuestMemory
from pykvm.observe.stepping.delivery import handler_of, pushed_flags, return_address, taken
from pykvm.observe.stepping.reading import Reader
from pykvm.observe.stepping.step import Event, EventKind
from pykvm.units import Gpa
from pykvm.x86 import CpuState, Gate, Idt, Mode
from tests.unit.observe.stepping.conftest import CODE

HANDLER, OTHER, STACK = 0x9000, 0x9800, 0x7000
TABLE = Gpa(0x5000)


@pytest.fixture
def gated(memory: GuestMemory, long: CpuState) -> CpuState:
    """64-bit code with an IDT: 6 and 32 lead to HANDLER, 14 to OTHER."""
    idt = Idt()
    for vector, place in ((6, HANDLER), (32, HANDLER), (14, OTHER)):
        idt.set(vector, Gate(handler=place, selector=long.sregs.cs.selector))
    long.sregs.idt = idt.write(memory, TABLE, long=True)
    long.regs.rsp = STACK
    memory.write(Gpa(HANDLER), b"\x90\x90")
    memory.write(Gpa(OTHER), b"\x50")  # push %rax
    return long


def push(memory: GuestMemory, state: CpuState, rip: int, rsp: int, error: int | None = None) -> Regs:
    """Push what the CPU does, and return the registers then, without RIP."""
    words = [rip, state.sregs.cs.selector, 0x102, STACK, state.sregs.ss.selector]
    words = words if error is None else [error, *words]
    for number, word in enumerate(words):
        memory.write_u64(rsp + 8 * number, word)
    return replace(state.regs, rsp=rsp)


@pytest.mark.parametrize(("behind", "is_there"), [(0, True), (1, False)])
def test_an_exception_is_told_by_its_frame_and_handler(
    memory: GuestMemory, reader: Reader, gated: CpuState, behind: int, is_there: bool
) -> None:
    memory.write(Gpa(CODE), b"\x0f\x0b")
    now = reader.next(gated.regs, gated.sregs)
    after = replace(push(memory, gated, CODE, 0x6000), rip=HANDLER + behind)
    found = taken(reader, now, (gated.regs, gated.sregs), (after, gated.sregs), 0)
    assert found is not None
    assert (found.event, found.handler, found.is_there) == (Event(EventKind.EXCEPTION, 6), HANDLER, is_there)


def test_a_handler_that_pushes_is_seen_through(memory: GuestMemory, reader: Reader, gated: CpuState) -> None:
    memory.write(Gpa(CODE), b"\x8b\x07")
    now = reader.next(gated.regs, gated.sregs)
    after = replace(push(memory, gated, CODE, 0x6008, error=2), rip=OTHER + 1, rsp=0x6000)
    found = taken(reader, now, (gated.regs, gated.sregs), (after, replace(gated.sregs, cr2=0xABC)), 0)
    assert found is not None
    assert (found.event, found.is_there) == (Event(EventKind.EXCEPTION, 14), False)


def test_vectors_with_one_handler_cannot_always_be_told_apart(
    memory: GuestMemory, reader: Reader, gated: CpuState
) -> None:
    memory.write(Gpa(CODE), b"\x90")
    now = reader.next(gated.regs, gated.sregs)
    after = replace(push(memory, gated, CODE, 0x6000), rip=HANDLER)
    before = gated.regs, gated.sregs
    events = [taken(reader, now, before, (after, gated.sregs), last) for last in (0, 6, 32)]
    assert [found and found.event.vector for found in events] == [None, 6, 32]


@pytest.mark.parametrize("rip", [CODE + 1, CODE + 0x100, HANDLER])
def test_what_left_no_frame_is_no_event(memory: GuestMemory, reader: Reader, gated: CpuState, rip: int) -> None:
    memory.write(Gpa(CODE), b"\x90")
    now = reader.next(gated.regs, gated.sregs)
    after = replace(gated.regs, rip=rip)
    assert taken(reader, now, (gated.regs, gated.sregs), (after, gated.sregs), 6) is None


def test_a_real_mode_handler_is_the_ivts(memory: GuestMemory, reader: Reader) -> None:
    sregs = Sregs()
    sregs.idt.limit = 0x3FF
    memory.write(Gpa(4 * 0x21), bytes.fromhex("34 12 00 f0"))
    assert handler_of(reader, sregs, 0x21) == 0xF1234
    sregs.idt.limit = 4 * 0x21
    assert handler_of(reader, sregs, 0x21) is None


def test_a_gate_that_is_not_there_leads_nowhere(reader: Reader, gated: CpuState) -> None:
    assert handler_of(reader, gated.sregs, 6) == HANDLER
    assert handler_of(reader, gated.sregs, 7) is None, "not present"
    assert handler_of(reader, gated.sregs, 255) is None, "beyond the limit"


def test_iret_leads_to_what_is_on_the_stack(memory: GuestMemory, reader: Reader, gated: CpuState) -> None:
    memory.write(Gpa(CODE), b"\x48\xcf")
    regs = push(memory, gated, 0x1234, 0x6000)
    assert return_address(reader, reader.next(regs, gated.sregs), (regs, gated.sregs)) == 0x1234
    memory.write(Gpa(CODE), b"\x90")
    assert return_address(reader, reader.next(regs, gated.sregs), (regs, gated.sregs)) is None


def test_the_flags_that_were_pushed_are_found(memory: GuestMemory, reader: Reader, gated: CpuState) -> None:
    memory.write(Gpa(CODE), b"\x9c")
    now = reader.next(gated.regs, gated.sregs)
    before, after = (gated.regs, gated.sregs), (replace(gated.regs, rsp=0x6FF8), gated.sregs)
    assert pushed_flags(reader, now, before, after, is_event=False) == 0x6FF8
    regs = replace(push(memory, gated, CODE, 0x6000, error=0), rip=HANDLER)
    assert pushed_flags(reader, now, before, (regs, gated.sregs), is_event=True) == 0x6018


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.binary(min_size=64, max_size=64),
    base=st.sampled_from([TABLE, 0xF_FFF8, 1 << 40, (1 << 64) - 8]),
    limit=st.integers(0, 0xFFFF),
    rsp=st.sampled_from([0, STACK, 0xF_FFFF, 1 << 63, (1 << 64) - 1]),
)
def test_no_table_and_no_stack_breaks_it(
    memory: GuestMemory, any_mode: Mode, state: CpuState, table: bytes, base: int, limit: int, rsp: int
) -> None:
    reader = Reader(memory)
    memory.write(TABLE, table)
    state.sregs.idt.base, state.sregs.idt.limit, state.regs.rsp = base, limit, rsp
    now = reader.next(state.regs, state.sregs)
    after = replace(state.regs, rip=HANDLER, rsp=rsp)
    taken(reader, now, (state.regs, state.sregs), (after, state.sregs), 0)
    return_address(reader, now, (state.regs, state.sregs))
    pushed_flags(reader, now, (state.regs, state.sregs), (after, state.sregs), is_event=True)
