"""The strategy of page tables: mappings that do not overlap, in any paging mode, to be built in guest memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.memory import GuestMemory
from pykvm.units import Gpa
from pykvm.x86 import FrameAllocator, Mapping, PageTables, PagingMode

__all__ = ["PageMap", "page_tables"]

MODES = (PagingMode.LONG4, PagingMode.BITS32, PagingMode.PAE, PagingMode.LONG5)
MOST_PAGES = 8  # of one mapping
TABLES_A_MAPPING = 5  # at most, as a mapping never crosses into another table of the level above its pages


@dataclass(frozen=True)
class PageMap:
    """What page tables of ``mode`` shall map, lowest linear address first."""

    mode: PagingMode
    mappings: tuple[Mapping, ...]

    @property
    def most_tables(self) -> int:
        """Return how many frames of 4 KiB ``build`` needs at most."""
        return 1 + TABLES_A_MAPPING * len(self.mappings)

    def build(self, memory: GuestMemory, frames: FrameAllocator) -> PageTables:
        """Write the tables into ``memory``. Raises: PagingError if ``frames`` run out."""
        tables = PageTables(memory, self.mode, frames)
        for one in self.mappings:
            rights = {"writable": one.writable, "user": one.user, "executable": one.executable}
            tables.map(one.gva, one.gpa, one.size, one.page_size, **rights)
        return tables


def page_tables(modes: Collection[PagingMode] = MODES, *, max_size: int = 4) -> st.SearchStrategy[PageMap]:
    """Return maps of up to ``max_size`` mappings in one of ``modes``, with pages of every size and all rights.

    They shrink to fewer mappings, of one small page at low addresses, with all rights but ring 3's.

    Raises: ConfigurationError for no modes, or without paging.
    """
    if not modes or PagingMode.NONE in modes:
        raise ConfigurationError("page tables want at least one paging mode, and none that has no pages")
    return st.sampled_from(list(modes)).flatmap(lambda mode: _maps(mode, max_size))


def _maps(mode: PagingMode, max_size: int) -> st.SearchStrategy[PageMap]:
    # Each mapping has a region as large as the largest page to itself, so that no two can overlap.
    region = max(level.page_size for level in mode.levels if level.may_be_page)
    mappings = st.lists(_mappings(mode, region), max_size=max_size, unique_by=lambda one: one.gva // region)
    return mappings.map(lambda chosen: PageMap(mode, tuple(sorted(chosen, key=lambda one: one.gva))))


@st.composite
def _mappings(draw: st.DrawFn, mode: PagingMode, region: int) -> Mapping:
    page_size = draw(st.sampled_from(sorted(level.page_size for level in mode.levels if level.may_be_page)))
    pages = region // page_size
    first = draw(st.integers(0, pages - 1))
    size = page_size * draw(st.integers(1, min(pages - first, MOST_PAGES)))
    gva = draw(_regions(mode, region)) + first * page_size
    top = 1 << (32 if mode is PagingMode.BITS32 else 52)
    gpa = Gpa(page_size * draw(st.integers(0, (top - size) // page_size)))
    writable, supervisor = draw(st.sampled_from((True, False))), draw(st.sampled_from((True, False)))
    executable = mode is PagingMode.BITS32 or draw(st.sampled_from((True, False)))
    return Mapping(gva, gpa, size, page_size, writable, not supervisor, executable)


def _regions(mode: PagingMode, region: int) -> st.SearchStrategy[int]:
    if mode.address_bits == 32:
        return st.integers(0, (1 << 32) // region - 1).map(lambda number: number * region)
    half = 1 << mode.address_bits - 1  # the other half is at the top, because addresses are sign-extended
    low = st.integers(0, half // region - 1).map(lambda number: number * region)
    return low | low.map(lambda gva: gva + (1 << 64) - half)
