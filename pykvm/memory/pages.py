"""Guest memory page by page: what it held at some time, and putting it back.

A picture of memory, a ``PageImage``, has the pages that are not all zeros, by guest-physical address. Pictures of the
same memory share the pages that did not change between them. A page that the guest sees at several addresses, through
an alias, goes by the one in the region that it belongs to. Leaves out which pages were written: a machine asks KVM
about the guest, and ``GuestMemory.log_writes`` about everybody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pykvm.memory.guest import GuestMemory, Region, RegionKind
from pykvm.units import PAGE_SIZE, Gpa

__all__ = ["ZERO_PAGE", "PageImage", "PageTable", "differing"]

PageImage = Mapping[Gpa, bytes]  # of PAGE_SIZE bytes each, and never changed once it is made

ZERO_PAGE = bytes(PAGE_SIZE)
CHUNK = 64 * PAGE_SIZE  # looked at as a whole first, because most of a guest's memory is zeros
ZERO_CHUNK = bytes(CHUNK)


class PageTable:
    """The pages of ``memories``, whose addresses do not overlap. It does not see regions that are added later."""

    def __init__(self, *memories: GuestMemory) -> None:
        regions = [region for memory in memories for region in memory.regions]
        self._own = [region for region in regions if region.kind is not RegionKind.ALIAS]
        self._aliases = [region for region in regions if region.kind is RegionKind.ALIAS]

    def owners(self, pages: Iterable[Gpa]) -> Iterable[Gpa]:
        """Return ``pages`` by the addresses that a PageImage knows them by."""
        return map(self._owner, pages) if self._aliases else pages

    def as_seen(self, image: PageImage) -> Iterator[tuple[Gpa, bytes]]:
        """Return the pages of ``image`` at all addresses at which the guest sees them."""
        yield from image.items()
        for alias in self._aliases:
            for gpa in range(alias.gpa, alias.end, PAGE_SIZE):
                page = self._owner(Gpa(gpa))
                if page in image:
                    yield Gpa(gpa), image[page]

    def capture(self) -> dict[Gpa, bytes]:
        """Return all pages that are not zeros."""
        return {page: data for region in self._own for page, data in _pages_of(region)}

    def capture_again(self, before: PageImage, changed: Iterable[Gpa]) -> dict[Gpa, bytes]:
        """Return what ``capture`` would, if since ``before`` only the pages ``changed`` can have changed."""
        image = dict(before)
        for page in changed:
            region = self._region(page)
            data = region.mapping[page - region.gpa : page - region.gpa + PAGE_SIZE]
            if data == ZERO_PAGE:
                image.pop(page, None)
            elif data != before.get(page):
                image[page] = data
        return image

    def put_back(self, image: PageImage, pages: Iterable[Gpa]) -> None:
        """Make ``pages`` what they are in ``image``."""
        wanted = image.get
        start = end = Gpa(0)
        for page in pages:
            if not start <= page < end:
                region = self._region(page)
                start, end, mapping = region.gpa, region.end, region.mapping
            mapping[page - start : page - start + PAGE_SIZE] = wanted(page, ZERO_PAGE)

    def put_back_different(self, image: PageImage, pages: Iterable[Gpa] | None = None) -> None:
        """Do what ``put_back`` does, of all pages by default, and leave alone those that are like ``image`` already."""
        looked_at = self.all_pages() if pages is None else pages
        self.put_back(image, (page for page in looked_at if self.read(page) != image.get(page, ZERO_PAGE)))

    def read(self, page: Gpa) -> bytes:
        """Return what ``page`` holds now."""
        region = self._region(page)
        return region.mapping[page - region.gpa : page - region.gpa + PAGE_SIZE]

    def all_pages(self) -> Iterator[Gpa]:
        """Return all pages there are, by the addresses that a PageImage knows them by."""
        return (Gpa(page) for region in self._own for page in range(region.gpa, region.end, PAGE_SIZE))

    # ---- inside ----

    def _region(self, page: int) -> Region:
        return next(region for region in self._own if region.gpa <= page < region.end)

    def _owner(self, page: Gpa) -> Gpa:
        for alias in self._aliases:
            if alias.gpa <= page < alias.end:
                owner = next(region for region in self._own if region.mapping is alias.mapping)
                return Gpa(page - alias.gpa + alias.offset + owner.gpa)
        return page


def differing(one: PageImage, other: PageImage) -> Iterator[Gpa]:
    """Return the pages that are not the same in both."""
    for page, data in one.items():
        there = other.get(page)
        if there is not data and there != data:
            yield page
    yield from other.keys() - one.keys()


def _pages_of(region: Region) -> Iterator[tuple[Gpa, bytes]]:
    for start in range(0, region.size, CHUNK):
        chunk = region.mapping[start : min(start + CHUNK, region.size)]
        if chunk == ZERO_CHUNK[: len(chunk)]:
            continue
        for offset in range(0, len(chunk), PAGE_SIZE):
            data = chunk[offset : offset + PAGE_SIZE]
            if data != ZERO_PAGE:
                yield Gpa(region.gpa + start + offset), data
