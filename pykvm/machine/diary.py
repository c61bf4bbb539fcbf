"""``Diary``: what became of guest memory from one look to the next, as the bytes that changed.

    pages that KVM, or the host's own log, says were written  --compare-->  the bytes that differ  -->  MemoryChange

It keeps one picture of memory, as it was at the last look; so the changes lead forwards and back. Leaves out who looks,
and when: see ``moment``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from pykvm.errors import KvmError
from pykvm.kvm import Vm
from pykvm.machine.dirty import DirtyPages
from pykvm.memory import GuestMemory
from pykvm.memory.pages import ZERO_PAGE, PageTable
from pykvm.units import PAGE_SIZE, Gpa

__all__ = ["Diary", "MemoryChange", "differences"]

CHUNK = 64  # bytes compared at once: most of a page that was written is as before
ZEROS = bytes(CHUNK)


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """The bytes ``old`` from guest-physical ``gpa`` on became ``new``, which are as many; the first and last differ."""

    gpa: Gpa
    old: bytes
    new: bytes

    def __str__(self) -> str:
        return f"[{self.gpa:#x}] {self.old.hex(' ')} -> {self.new.hex(' ')}"


class Diary:
    """The changes of ``memories``, which are the guest memory of ``vm``. With no vCPU in KVM_RUN."""

    def __init__(self, vm: Vm, dirty: DirtyPages, memories: tuple[GuestMemory, ...]) -> None:
        vm.log_dirty_pages()
        self._dirty = dirty
        self._memories = memories
        self._pages = PageTable(*memories)
        self._logs = [memory.log_writes() for memory in memories]
        self._written = dirty.join()
        self._losses = dirty.losses
        with contextlib.suppress(KvmError):  # one more loss, of what nobody has looked at yet
            dirty.collect()
        self._written.clear()
        self._losses = dirty.losses
        self._picture: dict[Gpa, bytes] = self._pages.capture()

    def look(self) -> tuple[MemoryChange, ...]:
        """Return what changed since the last look, lowest address first."""
        changes: list[MemoryChange] = []
        for page in sorted(self._suspects()):
            old, new = self._picture.get(page, ZERO_PAGE), self._pages.read(page)
            if new != old:
                changes += differences(page, old, new)
                self._keep(page, new)
        return tuple(changes)

    def undo(self, changes: Iterable[MemoryChange]) -> None:
        """Make memory what it was before ``changes``, which are those of the last look that was not undone."""
        for page, group in groupby(changes, lambda change: Gpa(change.gpa & -PAGE_SIZE)):
            data = bytearray(self._picture.get(page, ZERO_PAGE))
            for change in group:
                start = change.gpa - page
                data[start : start + len(change.old)] = change.old
                self._memory_at(change.gpa).write(change.gpa, change.old)
            self._keep(page, bytes(data))

    def leave(self) -> None:
        """Take part no more."""
        self._dirty.leave(self._written)

    # ---- inside ----

    def _memory_at(self, gpa: Gpa) -> GuestMemory:
        return next(memory for memory in self._memories if memory.find(gpa) is not None)

    def _keep(self, page: Gpa, data: bytes) -> None:
        if data == ZERO_PAGE:
            self._picture.pop(page, None)
        else:
            self._picture[page] = data

    def _suspects(self) -> set[Gpa]:
        with contextlib.suppress(KvmError):  # a ring ran over, which is one more loss
            self._dirty.collect()
        if self._dirty.losses != self._losses:
            self._losses = self._dirty.losses
            self._written.clear()
            return set(self._pages.all_pages())
        suspects = set(self._pages.owners(self._written))
        self._written.clear()
        for memory, log in zip(self._memories, self._logs, strict=True):
            if log.has_pages:
                suspects.update(self._pages.owners(log.take()))
            if memory.has_views:
                suspects.update(self._pages.owners(memory.viewed_pages()))
        return suspects


def differences(page: Gpa, old: bytes, new: bytes) -> Iterator[MemoryChange]:
    """Yield how the page at ``page`` changed from ``old`` to ``new``: runs that differ, those that adjoin as one."""
    start = end = 0
    for first, last in _differing(old, new):
        if first > end:
            if end > start:
                yield MemoryChange(Gpa(page + start), old[start:end], new[start:end])
            start = first
        elif end == 0:
            start = first
        end = last
    if end > start:
        yield MemoryChange(Gpa(page + start), old[start:end], new[start:end])


def _differing(old: bytes, new: bytes) -> Iterator[tuple[int, int]]:
    """Yield where a chunk differs: its first byte that does, and the one after the last."""
    for offset in range(0, len(new), CHUNK):
        one, other = old[offset : offset + CHUNK], new[offset : offset + CHUNK]
        if one != other:
            differs = [position for position in range(len(one)) if one[position] != other[position]]
            yield offset + differs[0], offset + differs[-1] + 1
