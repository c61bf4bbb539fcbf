"""pykvm.x86.faults: from an exception to its handler, or to the shutdown, by tables made by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.kvm import DescriptorTable, Regs, Segment, Sregs
from pykvm.memory import GuestMemory
from pykvm.units import Gpa, KiB
from pykvm.x86 import (
    Cr0,
    FrameAllocator,
    Gate,
    Idt,
    Mode,
    PageTables,
    PagingMode,
    Rflags,
    Selector,
    code_segment,
    encode_descriptor,
    encode_tss32,
    encode_tss64,
    set_up,
)
from pykvm.x86.faults import (
    Delivered,
    Fault,
    Moment,
    TripleFault,
    Unclear,
    Undelivered,
    chain,
    deliver,
)

DE, UD, DF, TS, NP, SS, GP, PF = 0, 6, 8, 10, 11, 12, 13, 14
IDT, GDT, TSS = 0x2000, 0x1000, 0x3000
HANDLER = 0x10_0500
UNMAPPED = 0x80_0000_0000  # 512 GiB: PML4[1]
NOT_CANONICAL = 0x8000_0000_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as memory:
        yield memory


def make(memory: GuestMemory, mode: Mode = Mode.LONG, *, ring: int = 0, **gates: Gate) -> Moment:
    """Return a guest in ``mode`` with an IDT in which all gates are good, but for ``gates`` ("v6=...")."""
    state = set_up(mode, Sregs(), memory, 0x10_0000, ring=ring)
    idt = Idt()
    for vector in range(256):
        idt.set(vector, gates.get(f"v{vector}", Gate(HANDLER)))
    state.sregs.idt = idt.write(memory, Gpa(IDT), long=mode is Mode.LONG)
    return Moment(state.regs, state.sregs, memory)


def why_not(moment: Moment, vector: int = UD, error_code: int | None = None) -> Fault:
    outcome = deliver(moment, vector, error_code)
    assert isinstance(outcome, Undelivered), outcome
    return outcome.fault


def patch_gate(moment: Moment, vector: int, offset: int, data: bytes) -> None:
    size = 16 if moment.is_long else 8
    moment.memory.write(Gpa(IDT + vector * size + offset), data)


def set_descriptor(moment: Moment, selector: int, segment: Segment) -> None:
    moment.memory.write_u64(Gpa(GDT + selector), encode_descriptor(segment))


# ---- what arrives ----


def test_a_handler_in_long_mode_gets_five_words_on_an_aligned_stack(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.regs.rsp = 0x7BF3
    assert deliver(moment, UD) == Delivered(Selector.KERNEL_CODE, HANDLER, 0x7BF0 - 40)


def test_an_error_code_is_one_word_more(memory: GuestMemory) -> None:
    moment = make(memory)
    assert deliver(moment, GP, 0) == Delivered(Selector.KERNEL_CODE, HANDLER, 0x7C00 - 48)


def test_a_handler_in_protected_mode_gets_three_words(memory: GuestMemory) -> None:
    moment = make(memory, Mode.PROTECTED)
    assert deliver(moment, UD) == Delivered(Selector.KERNEL_CODE, HANDLER, 0x7C00 - 12)
    assert deliver(moment, GP, 0) == Delivered(Selector.KERNEL_CODE, HANDLER, 0x7C00 - 16)


def test_a_16_bit_gate_pushes_words_of_two_bytes(memory: GuestMemory) -> None:
    moment = make(memory, Mode.PROTECTED)
    patch_gate(moment, UD, 5, b"\x86")
    assert deliver(moment, UD) == Delivered(Selector.KERNEL_CODE, HANDLER & 0xFFFF, 0x7C00 - 6)


@pytest.mark.parametrize(("mode", "rsp"), [(Mode.LONG, 0x6000 - 40), (Mode.PROTECTED, 0x6000 - 20)])
def test_from_ring_3_the_stack_is_the_one_of_the_tss(memory: GuestMemory, mode: Mode, rsp: int) -> None:
    assert deliver(make(memory, mode, ring=3), UD) == Delivered(Selector.KERNEL_CODE, HANDLER, rsp)


def test_an_ist_entry_takes_the_place_of_the_stack(memory: GuestMemory) -> None:
    moment = make(memory, v6=Gate(HANDLER, ist=2))
    memory.write_u64(Gpa(TSS + 36 + 8), 0x5000)
    assert deliver(moment, UD) == Delivered(Selector.KERNEL_CODE, HANDLER, 0x5000 - 40)


def test_real_mode_takes_any_vector_for_an_address(memory: GuestMemory) -> None:
    memory.write(Gpa(0), struct.pack("<HH", 0x1234, 0xF000))
    moment = Moment(*_real(memory), memory)
    assert deliver(moment, DE) == Delivered(0xF000, 0x1234, 0x7C00 - 6)


# ---- the gate ----


@pytest.mark.parametrize(
    ("limit", "words"), [(0, "no IDT (IDTR's limit is 0)"), (0x6E, "IDTR's limit is 0x6e, and vector 6")]
)
def test_a_gate_beyond_the_limit_is_a_general_protection_fault(memory: GuestMemory, limit: int, words: str) -> None:
    moment = make(memory)
    moment.sregs.idt.limit = limit
    fault = why_not(moment)
    assert (fault.vector, fault.error_code) == (GP, 6 * 8 + 2 + 1)
    assert words in fault.reason
    assert "needs bytes 0x60 to 0x6f" in fault.reason


def test_the_last_byte_of_a_gate_may_be_the_limit(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.idt.limit = 0x6F
    assert isinstance(deliver(moment, UD), Delivered)
    assert why_not(moment, 7).vector == GP


def test_a_gate_of_protected_mode_has_eight_bytes(memory: GuestMemory) -> None:
    moment = make(memory, Mode.PROTECTED)
    moment.sregs.idt.limit = 6 * 8 + 6
    assert "needs bytes 0x30 to 0x37" in why_not(moment).reason


def test_real_modes_vectors_have_a_limit_too(memory: GuestMemory) -> None:
    moment = Moment(*_real(memory), memory)
    moment.sregs.idt.limit = 0x1A
    assert "needs bytes 0x18 to 0x1b" in why_not(moment).reason


@pytest.mark.parametrize("mode", [Mode.LONG, Mode.PROTECTED])
def test_a_gate_that_is_not_present_is_its_own_fault(memory: GuestMemory, mode: Mode) -> None:
    moment = make(memory, mode)
    patch_gate(moment, UD, 5, b"\x0e")
    fault = why_not(moment)
    assert (fault.vector, fault.error_code) == (NP, 6 * 8 + 2 + 1)
    assert fault.reason == "gate 6 of the IDT is not present (P = 0)"


def test_an_empty_gate_is_no_gate(memory: GuestMemory) -> None:
    moment = make(memory)
    patch_gate(moment, UD, 0, bytes(16))
    fault = why_not(moment)
    assert fault.vector == GP
    assert "all zeros" in fault.reason


@pytest.mark.parametrize("kind", [0, 1, 2, 4, 5, 6, 7, 9, 12, 13, 0x1E])
def test_long_mode_has_but_two_types_of_gate(memory: GuestMemory, kind: int) -> None:
    moment = make(memory)
    patch_gate(moment, UD, 5, bytes((0x80 | kind,)))
    fault = why_not(moment)
    assert fault.vector == GP
    assert f"is of type {kind}" in fault.reason


def test_a_task_gate_is_not_followed(memory: GuestMemory) -> None:
    moment = make(memory, Mode.PROTECTED)
    patch_gate(moment, UD, 5, b"\x85")
    assert deliver(moment, UD) == Unclear("gate 6 of the IDT is a task gate")


def test_only_software_interrupts_look_at_the_gates_privilege(memory: GuestMemory) -> None:
    moment = make(memory, ring=3, v128=Gate(HANDLER), v129=Gate(HANDLER, dpl=3))
    refused = deliver(moment, 128, is_software=True)
    assert isinstance(refused, Undelivered)
    assert (refused.fault.vector, refused.fault.error_code) == (GP, 128 * 8 + 2)
    assert isinstance(deliver(moment, 129, is_software=True), Delivered)
    assert isinstance(deliver(moment, 128), Delivered)


def test_an_idt_that_is_not_mapped_is_a_page_fault(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.idt.base = UNMAPPED
    fault = why_not(moment)
    assert (fault.vector, fault.address, fault.error_code) == (PF, UNMAPPED + 0x60, 0)
    assert "PML4[1] is not present" in fault.reason


def test_an_idt_in_a_hole_is_not_guessed_at(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.idt.base = 0xE000_0000
    assert isinstance(deliver(moment, UD), Unclear)


# ---- the code segment ----


@pytest.mark.parametrize(
    ("selector", "vector", "error_code", "words"),
    [
        (0, GP, 1, "null selector"),
        (0x100, GP, 0x101, "GDT ends at byte 0x3f"),
        (0x0C, GP, 0x0D, "LDT ends at byte"),
        (Selector.KERNEL_DATA, GP, 0x11, "is data, not code"),
        (Selector.TSS, GP, 0x31, "is a busy TSS, not code"),
        (Selector.USER_CODE64 | 3, GP, 0x29, "code of ring 3, less privileged"),
    ],
)
def test_a_gate_needs_the_selector_of_code(
    memory: GuestMemory, selector: int, vector: int, error_code: int, words: str
) -> None:
    fault = why_not(make(memory, v6=Gate(HANDLER, selector=selector)))
    assert (fault.vector, fault.error_code) == (vector, error_code)
    assert words in fault.reason


@pytest.mark.parametrize(
    ("changes", "vector", "words"),
    [
        ({"l": 0, "db": 1}, GP, "L = 0"),
        ({"l": 1, "db": 1}, GP, "L = 1 and D = 1"),
        ({"present": 0}, NP, "P = 0"),
        ({"type": 3}, GP, "data"),
    ],
)
def test_the_code_segment_must_suit_long_mode(
    memory: GuestMemory, changes: dict[str, int], vector: int, words: str
) -> None:
    moment = make(memory)
    set_descriptor(moment, 8, replace(code_segment(64), **changes))
    fault = why_not(moment)
    assert (fault.vector, fault.error_code) == (vector, 9)
    assert words in fault.reason


def test_conforming_code_keeps_the_ring_and_its_stack(memory: GuestMemory) -> None:
    moment = make(memory, ring=3)
    set_descriptor(moment, 8, replace(code_segment(64), type=0xF))
    moment.regs.rsp = 0x7000
    assert deliver(moment, UD) == Delivered(Selector.KERNEL_CODE, HANDLER, 0x7000 - 40)


def test_a_gdt_that_is_not_mapped_is_a_page_fault(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.gdt.base = UNMAPPED
    fault = why_not(moment)
    assert (fault.vector, fault.address) == (PF, UNMAPPED + 8)


# ---- the stack ----


def test_a_stack_that_is_not_mapped_is_a_page_fault(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.regs.rsp = UNMAPPED + 0x1000
    fault = why_not(moment)
    assert (fault.vector, fault.error_code, fault.address) == (PF, 2, UNMAPPED + 0x1000 - 40)
    assert "its frame cannot be pushed, RSP is 0x8000001000" in fault.reason


def test_a_frame_that_straddles_two_pages_needs_both(memory: GuestMemory) -> None:
    moment = make(memory)
    frames = FrameAllocator(0x10_0000 + 0x4_0000, 0x10_0000 + 0x6_0000)
    tables = PageTables(memory, PagingMode.LONG4, frames)
    tables.map(0, 0, 0x8000, 4 * KiB)
    moment.sregs.cr3 = tables.cr3
    moment.regs.rsp = 0x8010
    fault = why_not(moment)
    assert (fault.vector, fault.address) == (PF, 0x8000)


def test_a_stack_that_is_read_only_is_a_page_fault_if_ring_0_must_obey(memory: GuestMemory) -> None:
    moment = make(memory)
    entry = memory.read_u64(Gpa(moment.sregs.cr3))
    memory.write_u64(Gpa(moment.sregs.cr3), entry & ~2)
    assert isinstance(deliver(moment, UD), Delivered)
    moment.sregs.cr0 |= Cr0.WP.value
    fault = why_not(moment)
    assert (fault.vector, fault.error_code) == (PF, 3)
    assert "PML4[0] has W = 0" in fault.reason


@pytest.mark.parametrize("rsp", [NOT_CANONICAL + 0x100, 0xFFFF_7FFF_FFFF_FFFF])
def test_a_stack_that_is_not_canonical_is_a_stack_fault(memory: GuestMemory, rsp: int) -> None:
    moment = make(memory)
    moment.regs.rsp = rsp
    fault = why_not(moment)
    assert (fault.vector, fault.error_code) == (SS, 1)
    assert "not canonical" in fault.reason


def test_a_segment_too_small_for_the_frame_is_a_stack_fault(memory: GuestMemory) -> None:
    moment = make(memory, Mode.PROTECTED)
    moment.sregs.ss.limit = 0x7000
    fault = why_not(moment)
    assert (fault.vector, fault.error_code) == (SS, 1)
    assert "SS ends at 0x7000" in fault.reason


def test_in_real_mode_three_words_must_fit(memory: GuestMemory) -> None:
    moment = Moment(*_real(memory), memory)
    moment.regs.rsp = 3
    assert why_not(moment).vector == SS
    moment.regs.rsp = 0  # wraps
    assert deliver(moment, UD) == Delivered(0, 0, 0xFFFA)


def test_from_ring_3_there_must_be_a_tss(memory: GuestMemory) -> None:
    moment = make(memory, ring=3)
    moment.sregs.tr.unusable = 1
    fault = why_not(moment)
    assert fault.vector == TS
    assert "there is no TSS" in fault.reason


def test_a_tss_may_be_too_short(memory: GuestMemory) -> None:
    moment = make(memory, v6=Gate(HANDLER, ist=7))
    moment.sregs.tr.limit = 36 + 6 * 8 + 6
    fault = why_not(moment)
    assert (fault.vector, fault.error_code) == (TS, Selector.TSS | 1)
    assert "IST7 is at 0x54" in fault.reason


@pytest.mark.parametrize(("top", "vector"), [(UNMAPPED, PF), (NOT_CANONICAL + 0x1000, SS)])
def test_the_stack_in_the_tss_may_be_no_good(memory: GuestMemory, top: int, vector: int) -> None:
    moment = make(memory, ring=3)
    memory.write(Gpa(TSS), encode_tss64(top))
    fault = why_not(moment)
    assert fault.vector == vector
    assert f"RSP0 of the TSS is {top:#x}" in fault.reason


@pytest.mark.parametrize(
    ("ss0", "vector", "words"),
    [
        (0, TS, "SS0 of the TSS is the null selector"),
        (0x200, TS, "GDT ends"),
        (Selector.KERNEL_CODE, TS, "is code, not writable data"),
        (Selector.USER_DATA | 3, TS, "of ring 3"),
    ],
)
def test_the_stack_segment_in_a_32_bit_tss_is_checked(memory: GuestMemory, ss0: int, vector: int, words: str) -> None:
    moment = make(memory, Mode.PROTECTED, ring=3)
    memory.write(Gpa(TSS), encode_tss32(0x6000, ss0))
    fault = why_not(moment)
    assert fault.vector == vector
    assert words in fault.reason


def test_a_handler_must_be_at_an_address_there_is(memory: GuestMemory) -> None:
    assert "not canonical" in why_not(make(memory, v6=Gate(NOT_CANONICAL))).reason
    moment = make(memory, Mode.PROTECTED)
    set_descriptor(moment, 8, replace(code_segment(32), limit=0xFFF, g=0))
    assert "beyond its code segment's limit 0xfff" in why_not(moment).reason


# ---- the chain ----


def vectors(moment: Moment, first: int, error_code: int | None = None) -> list[int]:
    return [link.fault.vector for link in chain(moment, Fault(first, error_code, "a test"))]


def test_without_an_idt_an_invalid_opcode_ends_in_a_triple_fault(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.idt = DescriptorTable()
    links = chain(moment, Fault(UD, None, "ud2"))
    assert [link.fault.vector for link in links] == [UD, GP, DF]
    assert isinstance(links[-1].outcome, TripleFault)
    assert links[-1].outcome.fault.vector == GP
    assert links[-1].fault.reason == "#GP while #GP was being delivered"


def test_a_contributory_exception_is_a_double_fault_at_once(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.idt = DescriptorTable()
    assert vectors(moment, DE) == [DE, DF]
    assert vectors(moment, GP, 0) == [GP, DF]
    assert vectors(moment, PF, 0) == [PF, DF]


def test_a_page_fault_while_a_general_protection_fault_is_delivered_comes_first(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.idt.base = UNMAPPED
    assert vectors(moment, GP, 0) == [GP, PF, DF]


def test_a_stack_that_is_not_mapped_makes_a_double_fault_of_a_page_fault(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.regs.rsp = UNMAPPED
    assert vectors(moment, PF, 2) == [PF, DF]
    assert vectors(moment, UD) == [UD, PF, DF]


def test_a_double_faults_handler_with_a_stack_of_its_own_ends_the_chain(memory: GuestMemory) -> None:
    moment = make(memory, v8=Gate(HANDLER, ist=1))
    memory.write_u64(Gpa(TSS + 36), 0x5000)
    moment.regs.rsp = UNMAPPED
    links = chain(moment, Fault(PF, 2, "a push"))
    assert [link.fault.vector for link in links] == [PF, DF]
    assert links[-1].outcome == Delivered(Selector.KERNEL_CODE, HANDLER, 0x5000 - 48)


def test_a_missing_gate_is_handled_if_its_own_fault_has_one(memory: GuestMemory) -> None:
    moment = make(memory)
    patch_gate(moment, UD, 5, b"\x0e")
    links = chain(moment, Fault(UD, None, "ud2"))
    assert [link.fault.vector for link in links] == [UD, NP]
    assert isinstance(links[-1].outcome, Delivered)


def test_a_double_fault_alone_can_be_what_is_not_delivered(memory: GuestMemory) -> None:
    moment = make(memory)
    moment.sregs.idt = DescriptorTable()
    links = chain(moment, Fault(DF, 0, "injected"))
    assert isinstance(links[0].outcome, TripleFault)


# ---- any state at all ----

NUMBERS = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF), st.sampled_from((0x1000, 0x2000, 0x7C00)))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_tables_and_no_registers_break_the_delivery(data: st.DataObject) -> None:
    with GuestMemory("1M") as memory:
        mode = data.draw(st.sampled_from((Mode.REAL, Mode.PROTECTED, Mode.PAGED, Mode.LONG)))
        state = set_up(mode, Sregs(), memory, 0x8000)
        for page in (0x0, 0x1000, 0x2000, 0x3000, 0x1_0000, 0x1_1000):
            if data.draw(st.booleans()):
                memory.write(Gpa(page), data.draw(st.binary(min_size=256, max_size=512)))
        for name in data.draw(st.sets(st.sampled_from(("cr0", "cr3", "cr4", "efer")))):
            setattr(state.sregs, name, data.draw(NUMBERS))
        for table in (state.sregs.gdt, state.sregs.idt):
            table.base, table.limit = data.draw(NUMBERS), data.draw(st.integers(0, 0xFFFF))
        state.regs.rsp, state.regs.rflags = data.draw(NUMBERS), data.draw(NUMBERS)
        for segment in (state.sregs.ss, state.sregs.cs, state.sregs.tr, state.sregs.ldt):
            segment.base, segment.limit = data.draw(NUMBERS), data.draw(st.integers(0, 0xFFFF_FFFF))
            segment.dpl, segment.type = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 15))
            segment.l, segment.db = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
        moment = Moment(state.regs, state.sregs, memory)
        links = chain(moment, Fault(data.draw(st.integers(0, 255)), data.draw(st.sampled_from((None, 0))), "drawn"))
        assert 1 <= len(links) <= 5
        assert all(isinstance(link.outcome, Undelivered) for link in links[:-1])
        assert not isinstance(links[-1].outcome, Undelivered)


def _real(memory: GuestMemory) -> tuple[Regs, Sregs]:
    state = set_up(Mode.REAL, Sregs(), memory, 0x8000)
    assert not state.regs.rflags & Rflags.IF.value
    return state.regs, state.sregs
