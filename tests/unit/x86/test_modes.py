"""pykvm.x86.modes: each call gives a state that nobody would refuse, and the tables it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pykvm.errors import ConfigurationError, PagingError
from pykvm.kvm import Regs, Segment, Sregs
from pykvm.memory import GuestMemory, layout
from pykvm.units import GiB, KiB, MiB
from pykvm.x86 import (
    Mode,
    Paging,
    check,
    cpu_mode,
    decode_descriptor,
    dump,
    linear_rip,
    long_mode,
    pae_mode,
    paged_mode,
    protected_mode,
    real_mode,
    reset_vector,
    set_up,
    to_mode,
    walk,
)

ENTRY = 0x100000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as memory:
        yield memory


@pytest.fixture
def sregs() -> Sregs:
    """What KVM gives after reset, as far as it matters here."""
    return Sregs(cr0=0x60000010, apic_base=0xFEE00900, ldt=Segment(limit=0xFFFF, type=2, present=1))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("ring", [0, 3])
def test_no_state_has_a_problem(memory: GuestMemory, sregs: Sregs, mode: Mode, ring: int) -> None:
    if mode is Mode.REAL and ring == 3:
        with pytest.raises(ConfigurationError, match="no rings"):
            set_up(mode, sregs, memory, 0x8000, ring=ring)
        return
    sregs.tr = real_mode(sregs).sregs.tr
    state = set_up(mode, sregs, memory, 0x8000 if mode is Mode.REAL else ENTRY, ring=ring)
    problems = [problem for problem in check(state.regs, state.sregs) if problem.where != "TR"]
    assert problems == []
    assert cpu_mode(state.sregs, state.regs).ring == ring


def test_the_state_given_is_not_changed(memory: GuestMemory, sregs: Sregs) -> None:
    before = str(sregs)
    for mode in Mode:
        set_up(mode, sregs, memory, 0x8000 if mode is Mode.REAL else ENTRY)
    assert str(sregs) == before


def test_real_mode_takes_any_segment_and_offset(sregs: Sregs) -> None:
    state = real_mode(sregs, 0xF000, 0xFFF0)
    assert (state.sregs.cs.base, state.regs.rip) == (0xF0000, 0xFFF0)
    assert linear_rip(state.regs, state.sregs) == 0xFFFF0
    assert cpu_mode(state.sregs, state.regs).width == 16


@pytest.mark.parametrize("arguments", [(0x10000, 0), (0, 0x10000), (-1, 0)])
def test_a_real_mode_address_has_16_bits_twice(sregs: Sregs, arguments: tuple[int, int]) -> None:
    with pytest.raises(ConfigurationError, match="16 bits"):
        real_mode(sregs, *arguments)


@pytest.mark.parametrize(("entry", "cs", "ip"), [(0x8000, 0, 0x8000), (0x12345, 0x1000, 0x2345)])
def test_a_linear_entry_becomes_segment_and_offset(
    memory: GuestMemory, sregs: Sregs, entry: int, cs: int, ip: int
) -> None:
    state = set_up(Mode.REAL, sregs, memory, entry)
    assert (state.sregs.cs.selector, state.regs.rip) == (cs, ip)


def test_the_first_fetch_after_reset_is_16_bytes_below_4_gib(sregs: Sregs) -> None:
    state = reset_vector(sregs)
    assert linear_rip(state.regs, state.sregs) == layout.RESET_VECTOR
    assert state.sregs.cs.selector == 0xF000
    assert state.regs.rip == 0xFFF0


def test_protected_mode_writes_the_gdt_its_selectors_name(memory: GuestMemory, sregs: Sregs) -> None:
    state = protected_mode(sregs, memory, ENTRY)
    for segment in (state.sregs.cs, state.sregs.ds, state.sregs.tr):
        index = segment.selector & ~7
        assert decode_descriptor(memory.read_u64(layout.GDT + index), segment.selector) == segment
    assert str(cpu_mode(state.sregs, state.regs)) == "protected mode, 32-bit code, ring 0"


@pytest.mark.parametrize("ring", [0, 3])
def test_the_tss_has_a_stack_for_the_way_into_ring_0(memory: GuestMemory, sregs: Sregs, ring: int) -> None:
    long_mode(sregs, memory, ENTRY, ring=ring)
    assert memory.read_u64(layout.TSS + 4) == layout.KERNEL_STACK_TOP
    protected_mode(sregs, memory, ENTRY, ring=ring)
    assert memory.read_u32(layout.TSS + 4) == layout.KERNEL_STACK_TOP


@pytest.mark.parametrize(
    ("build", "page_size", "top"),
    [
        (paged_mode, 4 * MiB, 4 * GiB),
        (paged_mode, 4 * KiB, 2 * MiB),
        (pae_mode, 2 * MiB, 4 * GiB),
        (pae_mode, 4 * KiB, 2 * MiB),
        (long_mode, 4 * KiB, 2 * MiB),
        (long_mode, 2 * MiB, 4 * GiB),
        (long_mode, GiB, 4 * GiB),
    ],
)
@pytest.mark.parametrize("ring", [0, 3])
def test_paged_modes_map_addresses_to_themselves(
    memory: GuestMemory, sregs: Sregs, build: Callable[..., object], page_size: int, top: int, ring: int
) -> None:
    state = build(sregs, memory, ENTRY, page_size, ring=ring)
    paging = Paging.of(state.sregs)  # type: ignore[attr-defined]
    for address in (0, ENTRY, top - 1):
        found = walk(memory, paging, address)
        assert (found.gpa, found.page_size, found.user, found.writable) == (address, page_size, ring == 3, True)
    assert walk(memory, paging, top).gpa is None or paging.mode.address_bits == 32
    assert len(dump(memory, paging).splitlines()) == 1


def test_long_mode_maps_ram_above_4_gib(sregs: Sregs) -> None:
    with GuestMemory("4G") as memory:
        state = long_mode(sregs, memory, ENTRY)
        assert walk(memory, Paging.of(state.sregs), 5 * GiB - 1).gpa == 5 * GiB - 1


def test_too_much_memory_for_small_pages_says_to_use_bigger_ones(sregs: Sregs) -> None:
    with GuestMemory("1G") as memory, pytest.raises(PagingError, match="bigger pages"):
        long_mode(sregs, memory, ENTRY, 4 * KiB)


def test_a_state_says_where_its_tables_are(memory: GuestMemory, sregs: Sregs) -> None:
    state = long_mode(sregs, memory, ENTRY)
    assert set(state.tables) == {"GDT", "TSS", "page tables"}
    assert state.tables["page tables"] == range(layout.PAGE_TABLES, layout.PAGE_TABLES + 6 * 4096)
    assert real_mode(sregs).tables == {}


@pytest.mark.parametrize(
    ("mode", "entry", "arguments", "words"),
    [
        (Mode.REAL, 1 << 20, {}, "below 1 MiB"),
        (Mode.REAL, 0x8000, {"page_size": 4096}, "no pages"),
        (Mode.PROTECTED, 1 << 32, {}, "more than 32 bits"),
        (Mode.PROTECTED, ENTRY, {"page_size": 4096}, "no page size"),
        (Mode.LONG, 1 << 47, {}, "not canonical"),
        (Mode.LONG, ENTRY, {"ring": 1}, "ring 0 or 3"),
    ],
)
def test_a_start_that_cannot_be_is_refused(
    memory: GuestMemory, sregs: Sregs, mode: Mode, entry: int, arguments: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        set_up(mode, sregs, memory, entry, **arguments)


def test_modes_have_names() -> None:
    assert to_mode("long") is Mode.LONG
    assert to_mode(Mode.PAE) is Mode.PAE
    with pytest.raises(ConfigurationError, match="there are real, protected, paged, pae, long"):
        to_mode("quantum")


def test_the_cpu_mode_is_read_from_the_registers(memory: GuestMemory, sregs: Sregs) -> None:
    state = long_mode(sregs, memory, ENTRY)
    state.sregs.cs.l, state.sregs.cs.db = 0, 1
    assert str(cpu_mode(state.sregs, state.regs)) == "compatibility mode, 32-bit code, ring 0"
    state = protected_mode(sregs, memory, ENTRY)
    state.regs.rflags |= 1 << 17
    assert str(cpu_mode(state.sregs, state.regs)) == "virtual-8086 mode, 16-bit code, ring 3"


def test_linear_rip_adds_the_base_except_in_64_bit_code(memory: GuestMemory, sregs: Sregs) -> None:
    state = long_mode(sregs, memory, ENTRY)
    state.sregs.cs.base = 0x1000
    assert linear_rip(state.regs, state.sregs) == ENTRY
    flat = protected_mode(sregs, memory, ENTRY)
    flat.sregs.cs.base = 0xFFFF_F000
    assert linear_rip(Regs(rip=0x2000), flat.sregs) == 0x1000


def test_a_state_prints_as_registers(sregs: Sregs) -> None:
    text = str(real_mode(sregs))
    assert "rip 0x8000" in text
    assert "cr0" in text
