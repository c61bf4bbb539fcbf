"""Where a CPU says it sits among others: the CPUID leaves that differ from CPU to CPU, or depend on how many there are.

All CPUs are cores of one package, with one thread each, so that a core's number is its APIC id. See: Intel SDM volume
2, CPUID, leaves 1, 4, 0xB and 0x1F, volume 3, section 9.9; the AMD64 manual, volume 3, appendix E.4, leaves 0x80000008,
0x8000001D and 0x8000001E. Leaves out threads, dies, NUMA nodes and AMD's leaf 0x80000026, which KVM does not give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.x86.cpuid import Cpuid

__all__ = ["Changes", "topology_changes"]

Changes = dict[tuple[int, int], dict[str, int]]  # registers by leaf and subleaf

AMD = ("AuthenticAMD", "HygonGenuine")
# Level types of leaves 0xB and 0x1F, in their place in ECX.
THREAD = 1 << 8
CORE = 2 << 8

LAST_LEVEL = 3  # the cache that the cores share
MOST_SUBLEAVES = 16  # of a leaf of caches; there are four or five


def topology_changes(cpuid: Cpuid, id: int, cpus: int) -> Changes:
    """Return the registers that tell of APIC ``id`` and of ``cpus``, for the leaves that ``cpuid`` has."""
    limit = cpuid.leaf(0).eax
    changes = _leaf_1(cpuid, id, cpus)
    for function in (0xB, 0x1F):
        if limit >= function:
            changes |= _levels(function, id, cpus)
    if cpuid.vendor in AMD:
        changes |= _caches(cpuid, 0x8000_001D, cpus) | _amd(cpuid, id, cpus)
    else:
        changes |= _caches(cpuid, 0x4, cpus)
    return changes


def _leaf_1(cpuid: Cpuid, id: int, cpus: int) -> Changes:
    """Leaf 1 EBX: the APIC id (8 bits of it), how many ids the package has, and two fields that stay.

    31     24 23     16 15    8 7     0
    +--------+---------+-------+-------+
    |APIC id | CPUs    |CLFLUSH| brand |
    +--------+---------+-------+-------+
    """
    return {(0x1, 0): {"ebx": cpuid.leaf(1).ebx & 0xFFFF | (id & 0xFF) << 24 | min(cpus, 255) << 16}}


def _levels(function: int, id: int, cpus: int) -> Changes:
    """Leaves 0xB and 0x1F, a subleaf a level: EAX the shift from an id to the next level's, EBX CPUs at this one."""
    return {
        (function, 0): {"eax": 0, "ebx": 1, "ecx": THREAD, "edx": id},
        (function, 1): {"eax": _width(cpus), "ebx": cpus, "ecx": CORE | 1, "edx": id},
        (function, 2): {"eax": 0, "ebx": 0, "ecx": 2, "edx": id},  # level type 0: no more levels
    }


def _caches(cpuid: Cpuid, function: int, cpus: int) -> Changes:
    """EAX of leaves 4 and 0x8000001D, a subleaf a cache. The cores' number is Intel's only, and a power of 2.

    31     26 25            14 13  10  9  8 7   5 4  0
    +--------+----------------+------+--+--+-----+----+
    |cores -1|CPUs sharing - 1|  0   |FA|SI|level|type|
    +--------+----------------+------+--+--+-----+----+
    """
    cores = min((1 << _width(cpus)) - 1, 63) << 26 if function == 0x4 else 0
    changes: Changes = {}
    for index in range(MOST_SUBLEAVES):
        eax = cpuid.leaf(function, index).eax
        if not eax & 0x1F:  # type 0: no more caches
            break
        sharing = min(cpus - 1, 0xFFF) if eax >> 5 & 7 >= LAST_LEVEL else 0
        changes[function, index] = {"eax": eax & 0x3FFF | sharing << 14 | cores}
    return changes


def _amd(cpuid: Cpuid, id: int, cpus: int) -> Changes:
    """AMD's own: 0x80000001 ECX.CmpLegacy (bit 1), cores and their ids' width in 0x80000008 ECX, ids in 0x8000001E."""
    limit = cpuid.leaf(0x8000_0000).eax
    cmp_legacy = cpuid.leaf(0x8000_0001).ecx & ~(1 << 1) | (cpus > 1) << 1
    # ECX: bits 15 to 12 the width, bits 7 to 0 the CPUs less one; what is above stays.
    cores = cpuid.leaf(0x8000_0008).ecx & ~0xF0FF | _width(cpus) << 12 | min(cpus - 1, 0xFF)
    changes: Changes = {(0x8000_0001, 0): {"ecx": cmp_legacy}, (0x8000_0008, 0): {"ecx": cores}}
    # EAX the APIC id, EBX the core's number (8 bits) and its threads less one, ECX the node.
    changes[0x8000_001E, 0] = {"eax": id, "ebx": id & 0xFF, "ecx": 0}
    return {place: registers for place, registers in changes.items() if place[0] <= limit}


def _width(cpus: int) -> int:
    """Return how many bits the ids 0 to ``cpus`` - 1 need."""
    return (cpus - 1).bit_length()
