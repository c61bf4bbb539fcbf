"""The bytes around RIP, read through the guest's page tables, and whether they are still the same.

Leaves out which instruction they are.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import NamedTuple, Self

from pykvm.kvm import Regs, Sregs
from pykvm.memory import GuestMemory
from pykvm.units import PAGE_SIZE
from pykvm.x86 import LONGEST_INSTRUCTION, Paging, cpu_mode, linear_rip, walk

__all__ = ["Code", "Evidence"]


class Evidence(NamedTuple):
    """Bytes of guest memory that something was concluded from: ``expected``, from ``start`` to ``stop`` of ``mapping``.

    A tuple, for several are looked at in every exit.
    """

    mapping: mmap.mmap
    start: int
    stop: int
    expected: bytes


@dataclass(frozen=True, slots=True)
class Code:
    """Up to 15 bytes ``before`` the linear ``address``, which is RIP's, and as many ``after``; code of ``width`` bits.

    ``evidence`` is all that it was read by: the bytes, and the page tables' entries on the way to them.
    """

    address: int
    width: int
    before: bytes
    after: bytes
    evidence: tuple[Evidence, ...]

    @classmethod
    def around(cls, memory: GuestMemory, regs: Regs, sregs: Sregs) -> Self:
        """Return what is around RIP in ``memory``. Where nothing is mapped, or no memory is, there are fewer bytes."""
        reader = _Reader(memory, Paging.of(sregs))
        address, width = linear_rip(regs, sregs), cpu_mode(sregs, regs).width
        before, after = reader.read_back(address), reader.read_on(address)
        return cls(address, width, before, after, tuple(reader.evidence()))

    def is_there(self) -> bool:
        """Return whether reading it again would give the same."""
        for mapping, start, stop, expected in self.evidence:  # noqa: SIM110 - all() takes twice as long, at every exit
            if mapping[start:stop] != expected:
                return False
        return True


class _Reader:
    """Reads at linear addresses, and keeps what it went by."""

    def __init__(self, memory: GuestMemory, paging: Paging) -> None:
        self._memory = memory
        self._paging = paging
        self._read_parts: dict[tuple[mmap.mmap, int], bytes] = {}

    def evidence(self) -> list[Evidence]:
        """Return what was read, adjoining parts joined."""
        joined: list[Evidence] = []
        for (mapping, start), data in sorted(self._read_parts.items(), key=lambda item: (id(item[0][0]), item[0][1])):
            last = joined[-1] if joined else None
            if last is not None and last.mapping is mapping and last.stop == start:
                joined[-1] = Evidence(mapping, last.start, start + len(data), last.expected + data)
            else:
                joined.append(Evidence(mapping, start, start + len(data), data))
        return joined

    def read_back(self, address: int) -> bytes:
        """Return the bytes before ``address``, those of them that adjoin it."""
        here = min(LONGEST_INSTRUCTION, address % PAGE_SIZE)
        near = self._read(address - here, here)
        if len(near) < here or here == LONGEST_INSTRUCTION or address <= PAGE_SIZE:
            return near
        return self._read(address - LONGEST_INSTRUCTION, LONGEST_INSTRUCTION - here) + near

    def read_on(self, address: int) -> bytes:
        """Return the bytes from ``address`` on, those of them that adjoin it."""
        here = min(LONGEST_INSTRUCTION, PAGE_SIZE - address % PAGE_SIZE)
        near = self._read(address, here)
        if len(near) < here or here == LONGEST_INSTRUCTION:
            return near
        return near + self._read(address + here, LONGEST_INSTRUCTION - here)

    def _read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes that are in one page, or none if there is no such memory."""
        if size == 0:
            return b""
        found = walk(self._memory, self._paging, address)
        for level in found.levels:
            self._take(level.entry_gpa, self._paging.mode.entry_size)
        return b"" if found.gpa is None else self._take(found.gpa, size)

    def _take(self, gpa: int, size: int) -> bytes:
        region = self._memory.find(gpa)
        if region is None or gpa + size > region.end:
            return b""
        start = region.offset + gpa - region.gpa
        data = region.mapping[start : start + size]
        self._read_parts[region.mapping, start] = data
        return data
