"""pykvm.testing.strategies: what is drawn is well-formed, and what is found is small."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from pykvm import assemble
from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Hlt, InternalError, IoIn, IoOut, MmioRead, MmioWrite, Regs
from pykvm.memory import GuestMemory
from pykvm.testing.strategies import (
    SCRATCH,
    SCRATCH_SIZE,
    PageMap,
    Program,
    exits,
    forms,
    instructions,
    mmio_accesses,
    page_tables,
    port_accesses,
    register_states,
)
from pykvm.units import PAGE_SIZE, Gpa, KiB, MiB
from pykvm.x86 import FrameAllocator, Mode, Paging, PagingMode, Rflags, mappings, walk
from pykvm.x86.disassembly import disassemble

MODES = [Mode.REAL, Mode.PROTECTED, Mode.LONG]
WIDTHS = {Mode.REAL: 16, Mode.PROTECTED: 32, Mode.LONG: 64}
SEARCH = settings(max_examples=5000, database=None, derandomize=True)


# ---- exits ----


@pytest.mark.parametrize("kind", get_args(Exit), ids=lambda kind: kind.__name__)
def test_exits_of_every_kind_can_be_had(kind: type) -> None:
    assert isinstance(find(exits(kind), lambda exit: True, settings=SEARCH), kind)


@given(exits(IoIn, IoOut, MmioRead, MmioWrite))
def test_the_fields_of_an_exit_go_together(exit: object) -> None:
    match exit:
        case IoIn(port, size, count):
            assert port <= 0xFFFF and size in (1, 2, 4) and count >= 1
        case IoOut(port, size, count, data):
            assert port <= 0xFFFF and size in (1, 2, 4) and len(data) == size * count > 0
        case MmioRead(address, size):
            assert address < 1 << 64 and 1 <= size <= 8
        case MmioWrite(address, data):
            assert address < 1 << 64 and 1 <= len(data) <= 8
        case _:
            pytest.fail(f"{exit} was not asked for")


def test_an_emulation_failure_carries_the_instruction_in_its_words() -> None:
    failure = find(exits(InternalError), lambda exit: len(exit.instruction) == 9, settings=SEARCH)
    raw = b"".join(word.to_bytes(8, "little") for word in failure.data[1:])
    assert raw[: 1 + raw[0]] == b"\x09" + failure.instruction


def test_an_exit_shrinks_to_small_fields() -> None:
    assert find(exits(), lambda exit: True, settings=SEARCH) == Hlt()
    assert find(exits(IoOut), lambda exit: exit.size > 1, settings=SEARCH) == IoOut(0, 2, 1, b"\0\0")


def test_what_is_no_exit_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="Regs is no kind of exit"):
        exits(Regs)


# ---- accesses ----


@given(port_accesses(range(0x3F8, 0x400)))
def test_port_accesses_start_at_the_ports_given(accesses: list[IoIn | IoOut]) -> None:
    for access in accesses:
        assert access.port in range(0x3F8, 0x400)
        assert access.size in (1, 2, 4)


@given(mmio_accesses(0x1000, 12, sizes=range(1, 9)))
def test_mmio_accesses_stay_inside_their_range(accesses: list[MmioRead | MmioWrite]) -> None:
    assert all(access.address >= 0x1000 and access.address + access.size <= 0x100C for access in accesses)


def test_accesses_shrink_to_the_few_that_matter() -> None:
    def has_a_read_after_an_odd_write(accesses: list[MmioRead | MmioWrite]) -> bool:
        written = [n for n, access in enumerate(accesses) if isinstance(access, MmioWrite) and access.data[0] & 1]
        return any(isinstance(access, MmioRead) for access in accesses[written[0] :]) if written else False

    found = find(mmio_accesses(0, 8), has_a_read_after_an_odd_write, settings=SEARCH)
    assert found == [MmioWrite(Gpa(0), b"\x01"), MmioRead(Gpa(0), 1)]
    assert find(port_accesses([0x70, 0x71]), bool, settings=SEARCH) == [IoIn(0x70)]


@pytest.mark.parametrize("value", [b"\x80", b"\xff", b"\x7f", b"\x00\x80", b"\xff\xff\xff\xff"])
def test_values_that_tend_to_matter_are_drawn_often(value: bytes) -> None:
    wanted = settings(max_examples=1000, database=None, derandomize=True)
    find(mmio_accesses(0, 4), lambda accesses: any(a == MmioWrite(a.address, value) for a in accesses), settings=wanted)


@pytest.mark.parametrize("ports", [[], [0x1_0000], [-1]])
def test_ports_that_are_none_are_refused(ports: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="there are no such ports"):
        port_accesses(ports)


@pytest.mark.parametrize(("base", "length", "sizes"), [(0, 0, (1,)), (-1, 8, (1,)), (0, 2, (4,)), (0, 8, (9,))])
def test_ranges_and_sizes_that_do_not_fit_are_refused(base: int, length: int, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="access"):
        mmio_accesses(base, length, sizes=sizes)


# ---- instructions ----


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=60)
@given(data=st.data())
def test_every_instruction_is_one_to_a_disassembler(mode: Mode, data: st.DataObject) -> None:
    program = data.draw(instructions(mode))
    for instruction in program.instructions:
        (decoded,) = disassemble(instruction.code, 0, WIDTHS[mode])
        assert decoded.mnemonic != ".byte"


@pytest.mark.parametrize("mode", MODES)
def test_the_text_assembles_to_instructions_that_read_the_same(mode: Mode) -> None:
    programs: list[Program] = []

    @settings(max_examples=60, database=None, derandomize=True)
    @given(instructions(mode, without=AMBIGUOUS))
    def collect(program: Program) -> None:
        programs.append(program)

    collect()
    text = "".join(program.text for program in programs)
    (segment,) = assemble(text, mode=mode).segments
    assert mnemonics(segment.data, mode) == mnemonics(b"".join(program.code for program in programs), mode)


# What the assembler encodes in another way, which the disassembler writes in another way.
AMBIGUOUS = {"jmp", "jcc", "call", "loop", "loope", "loopne", "jcxz", "xchg"}
AMBIGUOUS |= {"rol", "ror", "rcl", "rcr", "shl", "shr", "sar"}


def mnemonics(code: bytes, mode: Mode) -> list[str]:
    return [f"{one.mnemonic} {one.operands}" for one in disassemble(code, 0, WIDTHS[mode])]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["jmp", "jcc", "call", "loop", "jcxz"])
def test_a_jump_goes_forward_to_the_start_of_a_step_or_to_the_end(mode: Mode, form: str) -> None:
    @settings(max_examples=60, database=None)
    @given(instructions(mode, only=[form, "div", "movs"], min_size=1))
    def check(program: Program) -> None:
        decoded = disassemble(program.code, 0, WIDTHS[mode])
        starts = {one.address for one in decoded} | {len(program.code)}
        for one in decoded:
            if one.mnemonic.startswith(("j", "call", "loop")):
                assert int(one.operands, 16) in starts
                assert int(one.operands, 16) >= one.address + len(one.bytes)

    check()


@pytest.mark.parametrize("mode", MODES)
def test_instructions_of_every_kind_come(mode: Mode) -> None:
    seen: set[str] = set()

    @settings(max_examples=400, database=None, derandomize=True)
    @given(instructions(mode, min_size=6))
    def collect(program: Program) -> None:
        seen.update(one.form.removeprefix("lock ").split()[0] for one in program.instructions)

    collect()
    assert set(forms(mode)) - {"pushf"} <= seen  # it reads all flags, and so comes only where all are defined


@pytest.mark.parametrize("mode", MODES)
def test_no_instruction_reads_an_undefined_flag(mode: Mode) -> None:
    # The disassembler's mnemonics tell who reads flags; whoever follows MUL, which undefines four, must not read them.
    @settings(max_examples=200, database=None)
    @given(instructions(mode, only=["mul", "pushf", "jcc", "cmovcc", "setcc", "rcl", "lahf", "mov"]))
    def check(program: Program) -> None:
        undefined = Rflags(0)
        for instruction in program.instructions:
            assert not instruction.reads & undefined
            undefined = undefined & ~instruction.defines | instruction.undefines
        assert program.undefined & undefined == undefined

    check()


def test_flags_are_undefined_at_the_end_if_they_are_on_any_way_there() -> None:
    jump = find(
        instructions("long", only=["mul", "jmp", "test"], min_size=3),
        lambda p: [one.form for one in p.instructions] == ["mul", "jmp", "test"] and p.instructions[1].code[1] > 0,
        settings=SEARCH,
    )
    assert jump.undefined == Rflags.ZF | Rflags.SF | Rflags.PF | Rflags.AF


@pytest.mark.parametrize("mode", MODES)
def test_a_program_shrinks_to_one_simple_instruction(mode: Mode) -> None:
    program = find(instructions(mode), lambda p: any(one.form == "sub" for one in p.instructions), settings=SEARCH)
    (only,) = program.instructions
    assert only.form == "sub"
    assert len(only.code) <= 6
    assert "%eax" in program.text or "%ax" in program.text
    assert find(instructions(mode), lambda p: True, settings=SEARCH).code == b""


def test_a_program_prints_as_what_it_does() -> None:
    program = find(instructions("long", only=["mov"]), lambda p: bool(p.instructions), settings=SEARCH)
    assert program.text == "movl $0, %eax\n"
    assert repr(program) == "<long mode program b800000000: movl $0, %eax>"


def test_kinds_left_out_do_not_come() -> None:
    without = {"div", "lock add", "cmpxchg r32"}

    @settings(max_examples=200, database=None)
    @given(instructions("long", only=["div", "add", "cmpxchg"], without=without))
    def check(program: Program) -> None:
        assert not without & {one.form for one in program.instructions}

    check()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "long", "only": ["daa"]}, "no instructions are left for long mode"),
        ({"mode": "long", "without": ["vaddps"]}, "no instructions called vaddps"),
        ({"mode": "long", "max_size": 25}, "0 to 24 steps"),
        ({"mode": "real", "scratch": 0x10000}, "cannot have its scratch memory at 0x10000"),
        ({"mode": "vm86"}, "is no mode"),
    ],
)
def test_what_no_program_can_be_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        instructions(**arguments)  # type: ignore[arg-type]


def test_scratch_memory_is_free_of_what_pykvm_puts_into_memory() -> None:
    assert 0x8000 < SCRATCH < SCRATCH + SCRATCH_SIZE <= 0x10000


# ---- register states ----


@given(register_states("real", rsp=0x7C00))
def test_outside_long_mode_registers_have_32_bits(regs: Regs) -> None:
    assert max(regs.rax, regs.rdi, regs.rbp) < 1 << 32
    assert (regs.rsp, regs.rip, regs.r8) == (0x7C00, 0, 0)


@given(register_states("long", rflags=Rflags.IOPL.value))
def test_flags_are_arithmetic_ones_and_those_given(regs: Regs) -> None:
    flags = Rflags(regs.rflags & ~2)
    assert Rflags.IOPL in flags
    assert not flags & (Rflags.TF | Rflags.IF | Rflags.NT | Rflags.VM)


def test_a_register_state_shrinks_to_zeros() -> None:
    found = find(register_states("real"), lambda regs: regs.rdx >= 1 << 31, settings=SEARCH)
    assert found == Regs(rdx=1 << 31)


def test_a_register_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no register called rxx"):
        register_states("long", rxx=1)


# ---- page tables ----


@settings(max_examples=60)
@given(page_tables(), st.integers(0, 1 << 32))
def test_page_tables_that_are_built_are_those_that_are_walked(pages: PageMap, seed: int) -> None:
    with GuestMemory(1 * MiB) as memory:
        tables = pages.build(memory, FrameAllocator(0, pages.most_tables * PAGE_SIZE))
        paging = Paging(tables.mode, tables.root)
        for wanted in pages.mappings:
            offset = random.Random(seed).randrange(wanted.size)
            found = walk(memory, paging, wanted.gva + offset)
            assert found.gpa == wanted.gpa + offset
            rights = found.page_size, found.writable, found.user, found.executable
            assert rights == (wanted.page_size, wanted.writable, wanted.user, wanted.executable)
        mapped = sum(one.size for one in mappings(memory, paging))
        assert mapped == sum(one.size for one in pages.mappings)


def test_page_tables_shrink_to_one_small_page() -> None:
    pages = find(page_tables(), lambda pages: bool(pages.mappings), settings=SEARCH)
    (only,) = pages.mappings
    assert (pages.mode, only.gva, only.gpa, only.size) == (PagingMode.LONG4, 0, 0, 4 * KiB)
    assert (only.writable, only.user, only.executable) == (True, False, True)


@pytest.mark.parametrize("mode", [PagingMode.LONG4, PagingMode.LONG5])
def test_the_upper_half_is_mapped_too(mode: PagingMode) -> None:
    high = find(page_tables([mode]), lambda pages: any(one.gva >> 63 for one in pages.mappings), settings=SEARCH)
    assert high.mappings[-1].gva == (1 << 64) - (1 << mode.address_bits - 1)


def test_without_paging_there_are_no_page_tables() -> None:
    with pytest.raises(ConfigurationError, match="no pages"):
        page_tables([PagingMode.NONE])
