"""pykvm.x86.paging and .walk: what is built is what is walked, and hostile tables harm nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.errors import PagingError
from pykvm.kvm import Sregs
from pykvm.memory import GuestMemory
from pykvm.units import GiB, Gpa, KiB, MiB
from pykvm.x86 import (
    Cr0,
    Cr4,
    Efer,
    FrameAllocator,
    PageTables,
    Paging,
    PagingMode,
    dump,
    mappings,
    read_linear,
    walk,
)

TABLES = 0x10000
MODES = [PagingMode.BITS32, PagingMode.PAE, PagingMode.LONG4, PagingMode.LONG5]
SIZES = {
    PagingMode.BITS32: [4 * KiB, 4 * MiB],
    PagingMode.PAE: [4 * KiB, 2 * MiB],
    PagingMode.LONG4: [4 * KiB, 2 * MiB, GiB],
    PagingMode.LONG5: [4 * KiB, 2 * MiB, GiB],
}
COMBINATIONS = [(mode, size) for mode in MODES for size in SIZES[mode]]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("1M") as memory:
        yield memory


def new_tables(memory: GuestMemory, mode: PagingMode, end: int = 0x100000) -> PageTables:
    return PageTables(memory, mode, FrameAllocator(TABLES, end))


def paging_of(tables: PageTables) -> Paging:
    return Paging(tables.mode, Gpa(tables.cr3), nxe=tables.mode is not PagingMode.BITS32)


@pytest.mark.parametrize(("mode", "page_size"), COMBINATIONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_built_is_what_is_walked(mode: PagingMode, page_size: int, data: st.DataObject) -> None:
    low_half = 1 << (mode.address_bits - (mode.address_bits > 32))
    page = data.draw(st.integers(0, low_half // page_size - 8))
    count = data.draw(st.integers(1, 4))
    physical_bits = 32 if mode is PagingMode.BITS32 else 52
    frame = data.draw(st.integers(0, (1 << physical_bits) // page_size - 8))
    offset = data.draw(st.integers(0, count * page_size - 1))
    writable, user, executable = (data.draw(st.booleans()) for _ in range(3))
    executable = executable or mode is PagingMode.BITS32
    gva, gpa, size = page * page_size, frame * page_size, count * page_size
    with GuestMemory("1M") as memory:
        tables = new_tables(memory, mode)
        tables.map(gva, gpa, size, page_size, writable=writable, user=user, executable=executable)
        found = walk(memory, paging_of(tables), gva + offset)
        assert found.gpa == gpa + offset
        assert found.page_size == page_size
        assert (found.writable, found.user, found.executable) == (writable, user, executable)
        assert walk(memory, paging_of(tables), gva + size).gpa is None
        if gva:
            assert walk(memory, paging_of(tables), gva - 1).gpa is None
        (mapping,) = mappings(memory, paging_of(tables))
        assert (mapping.gva, mapping.gpa, mapping.size, mapping.page_size) == (gva, gpa, size, page_size)


@pytest.mark.parametrize("mode", [PagingMode.LONG4, PagingMode.LONG5])
def test_the_upper_half_is_mapped_too(memory: GuestMemory, mode: PagingMode) -> None:
    tables = new_tables(memory, mode)
    gva = (1 << 64) - 2 * MiB
    tables.map(gva, 0x200000, 2 * MiB, 2 * MiB)
    assert walk(memory, paging_of(tables), gva + 5).gpa == 0x200005
    assert dump(memory, paging_of(tables)) == f"{gva:#x}-{(1 << 64) - 1:#x} -> 0x200000 2M RWX supervisor"


def test_a_walk_prints_every_level(memory: GuestMemory) -> None:
    tables = new_tables(memory, PagingMode.LONG4)
    tables.map(0, 0, 2 * MiB, 2 * MiB)
    found = walk(memory, paging_of(tables), 0x1007)
    assert str(found) == "0x1007 -> PML4[0] 0x11003 P W -> PDPT[0] 0x12003 P W -> PD[0] 0x83 P W 2M -> gpa 0x1007"
    missing = walk(memory, paging_of(tables), 0x200000)
    assert str(missing).endswith("PD[1] 0x0 -> not mapped: PD[1] is not present")


def test_a_dump_joins_adjoining_pages_and_keeps_rights_apart(memory: GuestMemory) -> None:
    tables = new_tables(memory, PagingMode.LONG4)
    tables.map(0, 0, GiB, 2 * MiB)
    tables.map(GiB, 0, 4 * KiB, writable=False)
    tables.map(GiB + 4 * KiB, 4 * KiB, 4 * KiB, user=True, executable=False)
    assert dump(memory, paging_of(tables)).splitlines() == [
        "0x0-0x3fffffff -> 0x0 2M RWX supervisor",
        "0x40000000-0x40000fff -> 0x0 4K R-X supervisor",
        "0x40001000-0x40001fff -> 0x1000 4K RW- user",
    ]


def test_without_paging_an_address_is_itself(memory: GuestMemory) -> None:
    none = Paging(PagingMode.NONE, Gpa(0))
    assert walk(memory, none, 0x1234).gpa == 0x1234
    assert dump(memory, none).startswith("no paging")


@pytest.mark.parametrize("mode", MODES)
def test_empty_tables_map_nothing(memory: GuestMemory, mode: PagingMode) -> None:
    assert "nothing is mapped" in dump(memory, paging_of(new_tables(memory, mode)))


@pytest.mark.parametrize(
    ("mode", "arguments", "words"),
    [
        (PagingMode.LONG4, (0x1001, 0, 4096, 4096), "not a multiple"),
        (PagingMode.LONG4, (0x1000, 1, 4096, 4096), "not a multiple"),
        (PagingMode.LONG4, (0, 0, 100, 4096), "not a multiple"),
        (PagingMode.LONG4, (0, 0, 0, 4096), "not addresses"),
        (PagingMode.LONG4, (0, 0, 4 * MiB, 4 * MiB), "no pages of 4 MiB: it has 4 KiB, 2 MiB, 1 GiB"),
        (PagingMode.LONG4, (1 << 47, 0, 4096, 4096), "not addresses"),
        (PagingMode.LONG4, ((1 << 47) - 4096, 0, 8192, 4096), "not addresses"),
        (PagingMode.LONG4, (0, 1 << 52, 4096, 4096), "beyond"),
        (PagingMode.BITS32, (0, 1 << 32, 4096, 4096), "beyond"),
        (PagingMode.BITS32, (1 << 32, 0, 4096, 4096), "not addresses"),
        (PagingMode.BITS32, (0, 0, 2 * MiB, 2 * MiB), "no pages of 2 MiB"),
        (PagingMode.PAE, (0, 0, GiB, GiB), "no pages of 1 GiB"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(
    memory: GuestMemory, mode: PagingMode, arguments: tuple[int, int, int, int], words: str
) -> None:
    with pytest.raises(PagingError, match=words):
        new_tables(memory, mode).map(*arguments)


def test_32_bit_pages_are_always_executable(memory: GuestMemory) -> None:
    with pytest.raises(PagingError, match="no NX bit"):
        new_tables(memory, PagingMode.BITS32).map(0, 0, 4096, executable=False)


@pytest.mark.parametrize("again", [4 * KiB, 2 * MiB])
def test_what_is_mapped_cannot_be_mapped_again(memory: GuestMemory, again: int) -> None:
    tables = new_tables(memory, PagingMode.LONG4)
    tables.map(0, 0, 2 * MiB, 2 * MiB)
    with pytest.raises(PagingError, match="mapped already"):
        tables.map(0, 0, again, again)


def test_running_out_of_frames_says_to_use_bigger_pages(memory: GuestMemory) -> None:
    tables = new_tables(memory, PagingMode.LONG4, end=TABLES + 4 * 4096)
    with pytest.raises(PagingError, match="bigger pages"):
        tables.map(0, 0, 4 * MiB, 4 * KiB)


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "mode"),
    [
        (0, Cr4.PAE, Efer.LME, PagingMode.NONE),
        (Cr0.PG | Cr0.PE, Cr4.PSE, Efer(0), PagingMode.BITS32),
        (Cr0.PG | Cr0.PE, Cr4.PAE, Efer.NXE, PagingMode.PAE),
        (Cr0.PG | Cr0.PE, Cr4.PAE, Efer.LME | Efer.LMA, PagingMode.LONG4),
        (Cr0.PG | Cr0.PE, Cr4.PAE | Cr4.LA57, Efer.LME | Efer.LMA, PagingMode.LONG5),
    ],
)
def test_control_registers_choose_the_mode(cr0: Cr0 | int, cr4: Cr4, efer: Efer, mode: PagingMode) -> None:
    sregs = Sregs(cr0=cr0 if isinstance(cr0, int) else cr0.value, cr3=0x10018, cr4=cr4.value, efer=efer.value)
    paging = Paging.of(sregs)
    assert paging.mode is mode
    if mode is PagingMode.PAE:
        assert paging.root == 0x10000  # 32-byte aligned; bits 4:3 are PWT and PCD
    elif mode is not PagingMode.NONE:
        assert paging.root == 0x10000


# ---- what only hostile or odd tables have ----


def test_a_non_canonical_address_is_named(memory: GuestMemory) -> None:
    found = walk(memory, paging_of(new_tables(memory, PagingMode.LONG4)), 1 << 47)
    assert "not canonical" in found.reason


def test_a_table_outside_memory_is_named(memory: GuestMemory) -> None:
    found = walk(memory, Paging(PagingMode.LONG4, Gpa(0xDEAD000)), 0)
    assert "PML4 at 0xdead000 is outside guest memory" in found.reason


@pytest.mark.parametrize(
    ("mode", "where", "entry", "nxe", "bits"),
    [
        (PagingMode.LONG4, 0, 0x83, True, "0x80"),  # PS in a PML4 entry
        (PagingMode.LONG4, 0, 1 << 63 | 3, False, "0x8000000000000000"),  # NX without EFER.NXE
        (PagingMode.PAE, 0, 0x11003, True, "0x2"),  # W in a PDPT entry
        (PagingMode.BITS32, 0, 0x200083, False, "0x200000"),  # bit 21 of a 4 MiB page
    ],
)
def test_reserved_bits_are_named(
    memory: GuestMemory, mode: PagingMode, where: int, entry: int, nxe: bool, bits: str
) -> None:
    memory.write(TABLES + where, entry.to_bytes(8, "little"))
    found = walk(memory, Paging(mode, Gpa(TABLES), nxe=nxe), 0)
    assert found.gpa is None
    assert found.reason.endswith(f"reserved bits set: {bits}")


def test_ps_means_nothing_in_32_bit_paging_without_cr4_pse(memory: GuestMemory) -> None:
    memory.write_u32(TABLES, 0x11083)
    memory.write_u32(0x11000, 0x5003)
    assert walk(memory, Paging(PagingMode.BITS32, Gpa(TABLES), pse=False), 0x10).gpa == 0x5010


def test_a_4_mib_page_can_lie_above_4_gib(memory: GuestMemory) -> None:
    memory.write_u32(TABLES, 0x83 | 1 << 13)  # PSE-36
    assert walk(memory, Paging(PagingMode.BITS32, Gpa(TABLES)), 0x123456).gpa == (1 << 32) + 0x123456


@pytest.mark.parametrize("mode", MODES)
def test_a_table_that_points_at_itself_is_dumped_in_bounds(memory: GuestMemory, mode: PagingMode) -> None:
    size = mode.entry_size
    entry = TABLES | (1 if mode is PagingMode.PAE else 3)
    memory.write(TABLES, entry.to_bytes(size, "little") * (4096 // size))
    assert dump(memory, Paging(mode, Gpa(TABLES), pse=False))
    assert isinstance(str(walk(memory, Paging(mode, Gpa(TABLES)), 0x1234)), str)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODES), st.binary(min_size=64, max_size=512), st.integers(0, (1 << 64) - 1), st.booleans())
def test_no_tables_make_a_walk_or_a_dump_raise(mode: PagingMode, noise: bytes, gva: int, nxe: bool) -> None:
    with GuestMemory("64K") as memory:
        for page in range(16):
            memory.write(page * 4096, noise[page % 8 :] * (4096 // len(noise)))
        paging = Paging(mode, Gpa(0x1000), nxe=nxe)
        found = walk(memory, paging, gva)
        assert found.gpa is not None or found.reason
        assert dump(memory, paging)


# ---- reading by linear address ----


def test_a_read_goes_on_from_page_to_page_wherever_those_are(memory: GuestMemory) -> None:
    tables = new_tables(memory, PagingMode.LONG4)
    tables.map(0x5000, 0xA_0000, 4096, 4096)
    tables.map(0x6000, 0x9_0000, 4096, 4096)
    memory.write(0xA_0FFC, b"abcd")
    memory.write(0x9_0000, b"efgh")
    assert read_linear(memory, paging_of(tables), 0x5FFC, 8) == b"abcdefgh"


def test_a_read_ends_where_nothing_is_mapped_or_no_memory_is(memory: GuestMemory) -> None:
    tables = new_tables(memory, PagingMode.LONG4)
    tables.map(0x5000, 0xA_0000, 4096, 4096)
    tables.map(0x9000, 0xF000_0000, 4096, 4096)
    assert len(read_linear(memory, paging_of(tables), 0x5FF0, 100)) == 16
    assert read_linear(memory, paging_of(tables), 0x9000, 4) == b""
    assert read_linear(memory, paging_of(tables), 1 << 60, 4) == b""


def test_without_64_bit_paging_addresses_wrap_at_4_gib(memory: GuestMemory) -> None:
    memory.write(0, b"low")
    memory.add_rom(4 * GiB - 4096, b"\xff" * 4093 + b"top")
    assert read_linear(memory, Paging.of(Sregs()), 4 * GiB - 3, 6) == b"toplow"


@given(address=st.integers(0, (1 << 64) - 1), size=st.integers(0, 3 * 4096), mode=st.sampled_from(PagingMode))
def test_no_read_raises_or_is_longer_than_asked(address: int, size: int, mode: PagingMode) -> None:
    with GuestMemory("64K") as memory:
        assert len(read_linear(memory, Paging(mode, Gpa(0x1000)), address, size)) <= size
