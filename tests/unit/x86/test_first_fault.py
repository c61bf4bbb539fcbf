"""pykvm.x86.faults.first_fault: what the instruction at RIP raises, and why."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.kvm import Segment, Sregs
from pykvm.memory import GuestMemory
from pykvm.units import Gpa, KiB
from pykvm.x86 import (
    Cr0,
    Cr4,
    FrameAllocator,
    Mode,
    PageTables,
    PagingMode,
    Pte,
    Rflags,
    Selector,
    code_segment,
    data_segment,
    encode_descriptor,
    set_up,
)
from pykvm.x86.faults import Fault, Moment, first_fault

DE, UD, NM, NP, SS, GP, PF = 0, 6, 7, 11, 12, 13, 14
CODE = 0x10_0000
UNMAPPED = 0x80_0000_0000
NOT_CANONICAL = 0x8000_0000_0000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as memory:
        yield memory


def make(memory: GuestMemory, code: str, mode: Mode = Mode.LONG, *, ring: int = 0, **registers: int) -> Moment:
    entry = 0x8000 if mode is Mode.REAL else CODE
    state = set_up(mode, Sregs(), memory, entry, ring=ring)
    memory.write(Gpa(entry), bytes.fromhex(code).ljust(16, b"\x90"))
    for name, value in registers.items():
        setattr(state.regs, name, value)
    return Moment(state.regs, state.sregs, memory)


def fault_of(moment: Moment) -> Fault:
    fault = first_fault(moment)
    assert fault is not None
    return fault


def check(moment: Moment, vector: int, error_code: int | None, words: str) -> None:
    fault = fault_of(moment)
    assert (fault.vector, fault.error_code) == (vector, error_code), fault
    assert words in fault.reason
    assert fault.is_certain


@pytest.mark.parametrize("code", ["90", "f4", "48 89 03", "50", "c3", "0f 01 18", "b8 01 00 00 00", "fa", "0f 20 c0"])
def test_a_good_instruction_raises_nothing(memory: GuestMemory, code: str) -> None:
    assert first_fault(make(memory, code, rbx=0x5000, rax=0x5000)) is None


# ---- fetching and decoding ----


def test_a_rip_that_is_not_canonical(memory: GuestMemory) -> None:
    check(make(memory, "90", rip=NOT_CANONICAL), GP, 0, "RIP 0x800000000000 is not canonical")


def test_a_rip_that_is_not_mapped(memory: GuestMemory) -> None:
    moment = make(memory, "90", rip=UNMAPPED)
    check(moment, PF, 16, "PML4[1] is not present")
    assert fault_of(moment).address == UNMAPPED


def test_a_rip_beyond_the_code_segment(memory: GuestMemory) -> None:
    moment = make(memory, "b8 01 00 00 00", Mode.PROTECTED)
    moment.sregs.cs.limit = CODE + 3
    check(moment, GP, 0, "beyond CS's limit 0x100003")


def test_an_instruction_that_goes_on_where_nothing_is_mapped(memory: GuestMemory) -> None:
    moment = make(memory, "90")
    tables = PageTables(memory, PagingMode.LONG4, FrameAllocator(0x14_0000, 0x16_0000))
    tables.map(CODE, CODE, 0x1000, 4 * KiB)
    moment.sregs.cr3 = tables.cr3
    memory.write(Gpa(CODE + 0xFFE), b"\xb8\x01")  # mov $..., %eax: three bytes are on the next page
    moment.regs.rip = CODE + 0xFFE
    fault = fault_of(moment)
    assert (fault.vector, fault.address) == (PF, CODE + 0x1000)


def test_a_hole_is_not_the_guests_fault(memory: GuestMemory) -> None:
    assert first_fault(make(memory, "90", rip=0xE000_0000)) is None


def test_what_is_no_instruction_is_likely_an_invalid_opcode(memory: GuestMemory) -> None:
    fault = fault_of(make(memory, "ff ff"))
    assert (fault.vector, fault.is_certain) == (UD, False)


def test_ud2_is_invalid_by_definition(memory: GuestMemory) -> None:
    check(make(memory, "0f 0b"), UD, None, "defined to be invalid")


@pytest.mark.parametrize(
    ("code", "cr0", "cr4", "vector", "words"),
    [
        ("0f 28 c1", 0, 0, UD, "CR4.OSFXSR"),  # movaps %xmm1, %xmm0
        ("0f 28 c1", Cr0.EM.value, Cr4.OSFXSR.value, UD, "CR0.EM = 1"),
        ("0f 28 c1", Cr0.TS.value, Cr4.OSFXSR.value, NM, "CR0.TS"),
        ("c5 f8 28 c1", 0, Cr4.OSFXSR.value, UD, "CR4.OSXSAVE"),
        ("d9 e8", Cr0.EM.value, 0, NM, "FPU"),  # fld1
    ],
)
def test_units_that_are_off(memory: GuestMemory, code: str, cr0: int, cr4: int, vector: int, words: str) -> None:
    moment = make(memory, code)
    moment.sregs.cr0 |= cr0
    moment.sregs.cr4 |= cr4
    check(moment, vector, None, words)


def test_sse_that_is_on_is_fine_but_wants_its_operands_aligned(memory: GuestMemory) -> None:
    moment = make(memory, "0f 28 03", rbx=0x5008)  # movaps (%rbx), %xmm0
    moment.sregs.cr4 |= Cr4.OSFXSR.value
    check(moment, GP, 0, "at a multiple of 16, not at 0x5008")
    moment.regs.rbx = 0x5010
    assert first_fault(moment) is None


# ---- privilege ----


@pytest.mark.parametrize(
    "code", ["f4", "0f 01 13", "0f 22 c0", "0f 20 c0", "0f 30", "0f 32", "0f 06", "0f 09", "0f 01 f8"]
)
def test_instructions_for_ring_0_alone(memory: GuestMemory, code: str) -> None:
    check(make(memory, code, ring=3, rbx=0x5000), GP, 0, "for ring 0 only, and this is ring 3")


def test_cli_asks_for_the_right_to_input_and_output(memory: GuestMemory) -> None:
    moment = make(memory, "fa", ring=3)
    check(moment, GP, 0, "RFLAGS.IOPL = 0")
    moment.regs.rflags |= Rflags.IOPL.value
    assert first_fault(moment) is None


def test_a_port_may_be_allowed_by_the_tss(memory: GuestMemory) -> None:
    fault = fault_of(make(memory, "e6 80", ring=3))  # out %al, $0x80
    assert fault.vector == GP
    assert not fault.is_certain


# ---- memory ----


@pytest.mark.parametrize(("code", "error_code"), [("8b 03", 0), ("89 03", 2), ("01 03", 2), ("ff 23", 0)])
def test_an_operand_that_is_not_mapped(memory: GuestMemory, code: str, error_code: int) -> None:
    moment = make(memory, code, rbx=UNMAPPED)
    check(moment, PF, error_code, "0x8000000000 cannot be reached: PML4[1] is not present")
    assert fault_of(moment).address == UNMAPPED


def test_an_operand_that_straddles_into_what_is_not_mapped(memory: GuestMemory) -> None:
    assert fault_of(make(memory, "48 89 03", rbx=0x7F_FFFF_FFFC)).address == 0x7F_FFFF_FFFC
    moment = make(memory, "48 89 03", rbx=0xFFFF_FFFC)
    assert fault_of(moment).address == 0x1_0000_0000


def test_an_operand_that_is_not_canonical(memory: GuestMemory) -> None:
    check(make(memory, "89 03", rbx=NOT_CANONICAL), GP, 0, "bits 63 to 47 must be equal")
    check(make(memory, "50", rsp=NOT_CANONICAL + 0x100), SS, 0, "the stack pointer")


def remap(moment: Moment, change: int, *, clear: int = 0) -> int:
    """Map the first 512 GiB a second time, through a changed PML4 entry, and return where that is."""
    top = Gpa(moment.sregs.cr3)
    moment.memory.write_u64(Gpa(top + 8), moment.memory.read_u64(top) & ~clear | change)
    return UNMAPPED


def test_a_reserved_bit(memory: GuestMemory) -> None:
    moment = make(memory, "8b 03", rbx=UNMAPPED)
    remap(moment, Pte.PS.value)
    check(moment, PF, 9, "PML4[1] has reserved bits set: 0x80")


def test_a_page_that_may_not_be_executed(memory: GuestMemory) -> None:
    moment = make(memory, "90", rip=UNMAPPED + CODE)
    remap(moment, Pte.NX.value)
    check(moment, PF, 17, "PML4[1] has NX = 1, and EFER.NXE makes that count")


def test_a_page_that_may_not_be_written(memory: GuestMemory) -> None:
    moment = make(memory, "89 03", rbx=UNMAPPED + 0x5000)
    remap(moment, 0, clear=Pte.W.value)
    assert first_fault(moment) is None  # ring 0 without CR0.WP
    moment.sregs.cr0 |= Cr0.WP.value
    check(moment, PF, 3, "PML4[1] has W = 0, so the page is read-only, which CR0.WP = 1 makes ring 0 obey")


def test_a_page_of_ring_0(memory: GuestMemory) -> None:
    moment = make(memory, "8b 03", ring=3, rbx=UNMAPPED + 0x5000)
    remap(moment, 0, clear=Pte.U.value)
    check(moment, PF, 5, "PML4[1] has U = 0")


def test_pages_of_ring_3_are_kept_from_ring_0(memory: GuestMemory) -> None:
    moment = make(memory, "8b 03", ring=3, rbx=0x5000)
    moment.sregs.ss = data_segment(selector=Selector.KERNEL_DATA)
    assert moment.cpl == 0
    moment.sregs.cr4 |= Cr4.SMAP.value
    check(moment, PF, 1, "SMAP")
    moment.regs.rflags |= Rflags.AC.value
    assert first_fault(moment) is None
    moment.sregs.cr4 |= Cr4.SMEP.value
    check(moment, PF, 17, "SMEP")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unusable": 1}, "DS holds no segment"),
        ({"limit": 0xFFF}, "DS ends at 0xfff, before offset 0x5003"),
        ({"type": 1}, "DS is not writable"),
        ({"type": 7, "limit": 0x6000}, "DS begins above 0x6000"),
    ],
)
def test_segments_have_bounds_outside_64_bit_code(memory: GuestMemory, changes: dict[str, int], words: str) -> None:
    moment = make(memory, "89 03", Mode.PROTECTED, rbx=0x5000)
    for name, value in changes.items():
        setattr(moment.sregs.ds, name, value)
    check(moment, GP, 0, words)


# ---- arithmetic ----


@pytest.mark.parametrize(
    ("code", "registers", "words"),
    [
        ("f7 f1", {"rcx": 0}, "a division by 0"),
        ("f6 f1", {"rcx": 0x100}, "a division by 0"),
        ("f7 f9", {"rcx": 0}, "a division by 0"),
        ("f7 f1", {"rcx": 1, "rdx": 1}, "does not fit into 32 bits"),
        ("f7 f9", {"rcx": 0xFFFFFFFF, "rax": 0x80000000, "rdx": 0xFFFFFFFF}, "does not fit into 32 bits"),
        ("48 f7 f1", {"rcx": 1, "rdx": 1}, "does not fit into 64 bits"),
        ("f7 33", {"rbx": 0x5000}, "a division by 0"),
    ],
)
def test_divisions(memory: GuestMemory, code: str, registers: dict[str, int], words: str) -> None:
    check(make(memory, code, Mode.LONG, **registers), DE, None, words)


@pytest.mark.parametrize(
    ("code", "registers"),
    [("f7 f1", {"rcx": 3, "rax": 10}), ("f7 f9", {"rcx": 0xFFFFFFFD, "rax": 10}), ("f6 f1", {"rcx": 1, "rax": 0xFF})],
)
def test_divisions_that_are_good(memory: GuestMemory, code: str, registers: dict[str, int]) -> None:
    assert first_fault(make(memory, code, Mode.LONG, **registers)) is None


# ---- jumps ----


@pytest.mark.parametrize(
    ("code", "words"),
    [("ff e3", "the target of the jump is"), ("ff d3", "the target of the jump is"), ("c3", "the return address is")],
)
def test_near_jumps_want_an_address_there_is(memory: GuestMemory, code: str, words: str) -> None:
    memory.write_u64(Gpa(0x7000), NOT_CANONICAL)
    moment = make(memory, code, rbx=NOT_CANONICAL, rsp=0x7000)
    check(moment, GP, 0, f"{words} 0x800000000000, which is not canonical")


def test_a_near_jump_through_memory_is_followed(memory: GuestMemory) -> None:
    memory.write_u64(Gpa(0x5000), NOT_CANONICAL)
    check(make(memory, "ff 23", rbx=0x5000), GP, 0, "the target of the jump is 0x800000000000")
    assert first_fault(make(memory, "ff 23", rbx=0x6000)) is None


def test_a_near_jump_stays_inside_the_code_segment(memory: GuestMemory) -> None:
    moment = make(memory, "ff e3", Mode.PROTECTED, rbx=0x20_0000)
    moment.sregs.cs.limit = 0x1F_FFFF
    check(moment, GP, 0, "beyond CS's limit 0x1fffff")


# ---- selectors ----


def set_descriptor(moment: Moment, selector: int, segment: Segment) -> None:
    moment.memory.write_u64(Gpa(0x1000 + selector), encode_descriptor(segment))


@pytest.mark.parametrize(
    ("code", "selector", "vector", "error_code", "words"),
    [
        ("8e d8", 0x100, GP, 0x100, "GDT ends at byte 0x3f, and selector 0x100 needs 0x100 to 0x107"),
        ("8e d8", 0x30, GP, 0x30, "selector 0x30 is a busy TSS, not data"),
        ("8e d0", 0x08, GP, 0x08, "is code, not writable data"),
        ("8e d0", 0x23, GP, 0x20, "is of ring 3 with RPL 3"),
        ("8e d0", 0x03, GP, 0, "SS cannot be the null selector"),
        ("8e c8", 0x08, UD, None, "CS cannot be loaded by MOV"),
        ("0f 00 d8", 0x10, GP, 0x10, "is data, not a free TSS"),
        ("0f 00 d8", 0x30, GP, 0x30, "is a busy TSS, not a free TSS"),
        ("0f 00 d8", 0x00, GP, 0, "TR cannot be the null selector"),
        ("0f 00 d0", 0x10, GP, 0x10, "is data, not an LDT"),
        ("0f 00 d0", 0x0C, GP, 0x0C, "must be in the GDT"),
    ],
)
def test_selectors_that_cannot_be_loaded(
    memory: GuestMemory, code: str, selector: int, vector: int, error_code: int | None, words: str
) -> None:
    check(make(memory, code, rax=selector), vector, error_code, words)


@pytest.mark.parametrize(("code", "selector"), [("8e d8", 0), ("8e d8", 0x23), ("8e d0", 0), ("0f 00 d0", 0)])
def test_selectors_that_can(memory: GuestMemory, code: str, selector: int) -> None:
    assert first_fault(make(memory, code, rax=selector)) is None


def test_a_segment_that_is_not_present(memory: GuestMemory) -> None:
    moment = make(memory, "8e d8", rax=0x10)
    set_descriptor(moment, 0x10, replace(data_segment(), present=0))
    check(moment, NP, 0x10, "not present (P = 0)")
    memory.write(Gpa(CODE), b"\x8e\xd0")
    check(moment, SS, 0x10, "not present (P = 0)")


@pytest.mark.parametrize(
    ("selector", "error_code", "words"),
    [
        (0, 0, "CS cannot be the null selector"),
        (0x10, 0x10, "selector 0x10 is data, not code"),
        (0x200, 0x200, "GDT ends"),
        (0x1B, 0x18, "for ring 3, and this is ring 0"),
    ],
)
def test_far_jumps_want_code(memory: GuestMemory, selector: int, error_code: int, words: str) -> None:
    jump = "ea" + struct.pack("<IH", CODE, selector).hex()
    check(make(memory, jump, Mode.PROTECTED), GP, error_code, words)
    memory.write(Gpa(0x5000), struct.pack("<IH", CODE, selector))
    check(make(memory, "ff 2b", rbx=0x5000), GP, error_code, words)


def test_a_far_jump_to_code_is_good(memory: GuestMemory) -> None:
    assert first_fault(make(memory, "ea 00 00 10 00 08 00", Mode.PROTECTED)) is None
    assert first_fault(make(memory, "ea 00 00 10 00", Mode.REAL)) is None


def test_code_cannot_be_of_64_and_of_32_bits(memory: GuestMemory) -> None:
    moment = make(memory, "ff 2b", rbx=0x5000)
    memory.write(Gpa(0x5000), struct.pack("<IH", CODE, 8))
    set_descriptor(moment, 8, replace(code_segment(64), db=1))
    check(moment, GP, 8, "L = 1 and D = 1")


@pytest.mark.parametrize(
    ("frame", "error_code", "words"),
    [
        ((CODE, 0, 2, 0x7000, 0x10), 0, "the frame's CS is the null selector"),
        ((CODE, 0x10, 2, 0x7000, 0x10), 0x10, "in the frame that it pops, selector 0x10 is data, not code"),
        ((NOT_CANONICAL, 8, 2, 0x7000, 0x10), 0, "is not canonical"),
        ((CODE, 0x2B, 2, 0x7000, 0), 0, "SS is the null selector"),
        ((CODE, 0x2B, 2, 0x7000, 0x10), 0x10, "SS needs 3 for both"),
        ((CODE, 0x28, 2, 0x7000, 0x10), 0x28, "code of ring 3 with RPL 0"),
    ],
)
def test_iret_wants_a_good_frame(memory: GuestMemory, frame: tuple[int, ...], error_code: int, words: str) -> None:
    memory.write(Gpa(0x7000), struct.pack("<5Q", *frame))
    check(make(memory, "48 cf", rsp=0x7000), GP, error_code, words)


def test_iret_with_a_good_frame_returns(memory: GuestMemory) -> None:
    for frame in ((CODE, 8, 2, 0x7000, 0x10), (CODE, 0x2B, 2, 0x7000, 0x23), (CODE, 8, 2, 0x7000, 0)):
        memory.write(Gpa(0x7000), struct.pack("<5Q", *frame))
        assert first_fault(make(memory, "48 cf", rsp=0x7000)) is None


def test_ring_3_cannot_return_to_ring_0(memory: GuestMemory) -> None:
    memory.write(Gpa(0x7000), struct.pack("<5Q", CODE, 8, 2, 0x7000, 0x10))
    check(make(memory, "48 cf", ring=3, rsp=0x7000), GP, 8, "asks for ring 0")


# ---- control registers and MSRs ----


@pytest.mark.parametrize(
    ("code", "rax", "words"),
    [
        ("0f 22 c0", 0x8000_0000, "CR0.PG = 1 with CR0.PE = 0"),
        ("0f 22 c0", 0xA000_0011, "CR0.NW = 1 with CR0.CD = 0"),
        ("0f 22 c0", 0x11, "paging can be switched off in compatibility mode only"),
        ("0f 22 c0", 1 << 40 | 0x8000_0011, "bits 0x10000000000 of CR0 are reserved"),
        ("0f 22 e0", 0, "CR4.PAE = 0 in long mode"),
        ("0f 22 e0", 1 << 50 | 0x20, "bits 0x4000000000000 of CR4 are reserved"),
        ("0f 22 e0", Cr4.LA57.value | 0x20, "LA57 cannot change"),
        ("0f 22 d8", 1 << 60 | 0x1_0000, "of CR3 are reserved"),
        ("0f 30", 0, "EFER.LME cannot change while CR0.PG = 1"),
    ],
)
def test_values_that_control_registers_refuse(memory: GuestMemory, code: str, rax: int, words: str) -> None:
    check(make(memory, code, rax=rax, rcx=0xC000_0080), GP, 0, words)


def test_long_mode_without_pae(memory: GuestMemory) -> None:
    moment = make(memory, "0f 22 c0", Mode.PROTECTED, rax=0x8000_0011)
    moment.sregs.efer = 0x100
    check(moment, GP, 0, "long mode wants PAE")


def test_a_forgotten_lme_makes_a_pdpt_of_the_pml4(memory: GuestMemory) -> None:
    moment = make(memory, "0f 22 c0", Mode.PROTECTED, rax=0x8000_0011)
    moment.sregs.cr4, moment.sregs.cr3 = Cr4.PAE.value, 0x5000
    memory.write_u64(Gpa(0x5000), 0x6003)
    check(moment, GP, 0, "with EFER.LME = 0 this begins PAE paging, not long mode")
    assert "entry 0, 0x6003, has reserved bits set (0x2)" in fault_of(moment).reason
    moment.sregs.efer = 0x100
    assert first_fault(moment) is None


def test_which_msrs_there_are_is_not_known(memory: GuestMemory) -> None:
    for code, words in (("0f 32", "may not exist here"), ("0f 30", "or not take 0x500000003")):
        fault = fault_of(make(memory, code, rcx=0x12345, rax=3, rdx=5))
        assert words in fault.reason
        assert not fault.is_certain


def test_a_new_bit_of_cr4_may_need_a_feature(memory: GuestMemory) -> None:
    fault = fault_of(make(memory, "0f 22 e0", rax=0x20 | Cr4.SMEP.value))
    assert "SMEP" in fault.reason
    assert not fault.is_certain


# ---- any state at all ----

NUMBERS = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF), st.sampled_from((0x1000, 0x8000, 0x7C00)))
NAMES = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rflags")
OPCODES = (
    *("ff2b", "48cf", "cf", "cb", "8ed8", "8ed0", "0f00d8", "0f00d0", "0f22c0", "0f22e0", "0f30", "f7f1", "f63b", "60"),
    *("f3a4", "17", "0fa1", "ea000000000800", "ff1b", "c5f858", "c4e27d", "62", "8f", "0f2803", "d7", "c8000000"),
)
STARTS = st.sampled_from(("", *OPCODES)).map(bytes.fromhex)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_no_code_and_no_state_break_it(data: st.DataObject) -> None:
    with GuestMemory("1M") as memory:
        mode = data.draw(st.sampled_from((Mode.REAL, Mode.PROTECTED, Mode.PAGED, Mode.LONG)))
        ring = 0 if mode is Mode.REAL else data.draw(st.sampled_from((0, 3)))
        state = set_up(mode, Sregs(), memory, 0x8000, ring=ring)
        memory.write(Gpa(0x8000), data.draw(STARTS) + data.draw(st.binary(max_size=16)))
        if data.draw(st.booleans()):
            memory.write(Gpa(0x1000), data.draw(st.binary(min_size=64, max_size=64)))
        for name in data.draw(st.sets(st.sampled_from(("cr0", "cr3", "cr4", "efer")), max_size=1)):
            setattr(state.sregs, name, data.draw(NUMBERS))
        for name in NAMES:
            setattr(state.regs, name, data.draw(NUMBERS))
        state.sregs.cs.l, state.sregs.cs.db = data.draw(st.sampled_from(((0, 0), (0, 1), (1, 0))))
        fault = first_fault(Moment(state.regs, state.sregs, memory))
        assert fault is None or (0 <= fault.vector < 32 and fault.reason)
