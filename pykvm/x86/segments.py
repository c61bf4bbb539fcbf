"""Segments: descriptors and their encoding, and builders for the GDT, the IDT and the TSS.

A descriptor is eight bytes (SDM volume 3, section 3.4.5):

    63      56 55  54 53  52 51         48 47 46 45 44 43  40 39      32
    +---------+---+---+---+---+------------+--+-----+--+------+---------+
    |base31:24| G |D/B| L |AVL|limit 19:16 | P| DPL | S| type |base23:16|
    +---------+---+---+---+---+------------+--+-----+--+------+---------+
    |            base 15:0                 |        limit 15:0          |
    +--------------------------------------+----------------------------+
    31                                   16 15                          0

A system descriptor (S = 0) of long mode is sixteen: the second eight hold bits 63 to 32 of the base. See also:
section 6.11 (IDT), section 7.2 and 7.7 (TSS). Leaves out call gates, task gates and expand-down segments.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from pykvm.errors import ConfigurationError
from pykvm.kvm.structs import DescriptorTable, Segment
from pykvm.memory import GuestMemory
from pykvm.units import Gpa

__all__ = [
    "FLAT_LIMIT",
    "Gate",
    "Gdt",
    "Idt",
    "Selector",
    "code_segment",
    "data_segment",
    "decode_descriptor",
    "encode_descriptor",
    "encode_tss32",
    "encode_tss64",
    "real_mode_segment",
    "task_segment",
]

FLAT_LIMIT = 0xFFFF_FFFF
PAGE_GRANULE = 0xFFF

# Types of code and data segments (S = 1; SDM volume 3, table 3-1), already marked as accessed, as a loaded segment is.
DATA_READ_WRITE = 0x3
CODE_EXECUTE_READ = 0xB

# Types of system segments and gates (S = 0; SDM volume 3, table 3-2).
TSS_BUSY = 0xB
INTERRUPT_GATE = 0xE
TRAP_GATE = 0xF


class Selector:
    """The selectors of the GDT that ``pykvm.x86.modes`` makes. The order is the one that SYSCALL and SYSRET want.

    SYSRET takes its CS from STAR[63:48] + 16 and its SS from + 8 (SDM volume 2, SYSRET). A selector is index * 8,
    plus in its low two bits the privilege asked for.
    """

    KERNEL_CODE = 0x08
    KERNEL_DATA = 0x10
    USER_CODE32 = 0x18
    USER_DATA = 0x20
    USER_CODE64 = 0x28
    TSS = 0x30


def code_segment(width: int, *, dpl: int = 0, selector: int = 0) -> Segment:
    """Return a flat code segment of 16, 32 or 64 bits. Raises: ConfigurationError for another ``width``."""
    if width not in (16, 32, 64):
        raise ConfigurationError(f"a code segment is 16, 32 or 64 bits wide, not {width}")
    return Segment(
        limit=FLAT_LIMIT,
        selector=selector | dpl,
        type=CODE_EXECUTE_READ,
        present=1,
        dpl=dpl,
        db=int(width == 32),
        s=1,
        l=int(width == 64),
        g=1,
    )


def data_segment(*, dpl: int = 0, selector: int = 0) -> Segment:
    """Return a flat, writable data segment, which is a 32-bit stack segment as well."""
    return Segment(limit=FLAT_LIMIT, selector=selector | dpl, type=DATA_READ_WRITE, present=1, dpl=dpl, db=1, s=1, g=1)


def real_mode_segment(selector: int, *, is_code: bool = False) -> Segment:
    """Return a real-mode segment: base = selector * 16, limit 64 KiB (SDM volume 3, section 20.1.1)."""
    kind = CODE_EXECUTE_READ if is_code else DATA_READ_WRITE
    return Segment(base=selector << 4, limit=0xFFFF, selector=selector, type=kind, present=1, s=1)


def task_segment(base: int, limit: int, selector: int = Selector.TSS) -> Segment:
    """Return a task register for the TSS at linear ``base``; it is busy, as one that LTR has loaded."""
    return Segment(base=base, limit=limit, selector=selector, type=TSS_BUSY, present=1)


def encode_descriptor(segment: Segment) -> int:
    """Return the eight bytes of ``segment``'s descriptor as a number; of a long-mode system segment the lower eight.

    Raises: ConfigurationError if the limit cannot be encoded: above 1 MiB it must end on a page.
    """
    limit = segment.limit
    if segment.g:
        if limit & PAGE_GRANULE != PAGE_GRANULE:
            raise ConfigurationError(
                f"a segment limit of {limit:#x} does not end on a page, so G = 1 cannot express it"
            )
        limit >>= 12
    if limit > 0xF_FFFF:
        raise ConfigurationError(f"a segment limit of {segment.limit:#x} needs G = 1: without it 0xfffff is the most")
    return (
        limit & 0xFFFF
        | (segment.base & 0xFF_FFFF) << 16
        | segment.type << 40
        | segment.s << 44
        | segment.dpl << 45
        | segment.present << 47
        | (limit >> 16) << 48
        | segment.avl << 52
        | segment.l << 53
        | segment.db << 54
        | segment.g << 55
        | (segment.base >> 24 & 0xFF) << 56
    )


def decode_descriptor(descriptor: int, selector: int = 0) -> Segment:
    """Return the segment that eight bytes describe; of a long-mode system segment, the base's low half."""
    granular = descriptor >> 55 & 1
    limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
    return Segment(
        base=descriptor >> 16 & 0xFF_FFFF | (descriptor >> 56 & 0xFF) << 24,
        limit=limit << 12 | PAGE_GRANULE if granular else limit,
        selector=selector,
        type=descriptor >> 40 & 0xF,
        present=descriptor >> 47 & 1,
        dpl=descriptor >> 45 & 3,
        db=descriptor >> 54 & 1,
        s=descriptor >> 44 & 1,
        l=descriptor >> 53 & 1,
        g=granular,
        avl=descriptor >> 52 & 1,
    )


class Gdt:
    """Builds a Global Descriptor Table. Entry 0 is the null descriptor, which no segment may use."""

    def __init__(self) -> None:
        self._entries: list[int] = [0]

    def add(self, segment: Segment) -> int:
        """Append ``segment``'s descriptor and return its selector, with the segment's DPL as the RPL."""
        self._entries.append(encode_descriptor(segment))
        return (len(self._entries) - 1) * 8 | (segment.dpl if segment.s else 0)

    def add_system64(self, segment: Segment) -> int:
        """Append a system segment of long mode, which takes two entries, and return its selector."""
        selector = self.add(segment)
        self._entries.append(segment.base >> 32)
        return selector

    def encode(self) -> bytes:
        """Return the table as bytes."""
        return struct.pack(f"<{len(self._entries)}Q", *self._entries)

    def write(self, memory: GuestMemory, gpa: Gpa) -> DescriptorTable:
        """Write the table at ``gpa`` and return what GDTR must hold, if ``gpa`` is the linear address as well."""
        table = self.encode()
        memory.write(gpa, table)
        return DescriptorTable(gpa, len(table) - 1)


@dataclass(frozen=True, slots=True)
class Gate:
    """An entry of the IDT: where an exception or interrupt goes.

    ``handler`` is an offset in the code segment ``selector``. A trap gate leaves RFLAGS.IF as it is. ``dpl`` 3 allows
    INT n from ring 3; ``ist`` 1 to 7 switches to that stack of a 64-bit TSS.
    """

    handler: int
    selector: int = Selector.KERNEL_CODE
    is_trap: bool = False
    dpl: int = 0
    ist: int = 0

    def encode32(self) -> bytes:
        """Return the gate in protected mode's eight bytes (SDM volume 3, figure 6-2)."""
        attributes = (TRAP_GATE if self.is_trap else INTERRUPT_GATE) << 8 | self.dpl << 13 | 1 << 15
        return struct.pack("<HHHH", self.handler & 0xFFFF, self.selector, attributes, self.handler >> 16 & 0xFFFF)

    def encode64(self) -> bytes:
        """Return the gate in long mode's sixteen bytes (SDM volume 3, figure 6-8)."""
        low = replace(self, handler=self.handler & 0xFFFF_FFFF).encode32()
        return low[:4] + bytes((self.ist,)) + low[5:] + struct.pack("<II", self.handler >> 32, 0)


class Idt:
    """Builds an Interrupt Descriptor Table of 256 gates; vectors without a gate are not present."""

    def __init__(self) -> None:
        self._gates: dict[int, Gate] = {}

    def set(self, vector: int, gate: Gate) -> None:
        """Let ``vector`` (0 to 255) go through ``gate``. Raises: ConfigurationError."""
        if not 0 <= vector <= 255:
            raise ConfigurationError(f"an interrupt vector is 0 to 255, not {vector}")
        self._gates[vector] = gate

    def encode(self, *, long: bool) -> bytes:
        """Return the table as bytes, in long mode's format or in protected mode's."""
        size = 16 if long else 8
        empty = bytes(size)
        gates = (self._gates.get(vector) for vector in range(256))
        return b"".join(empty if gate is None else gate.encode64() if long else gate.encode32() for gate in gates)

    def write(self, memory: GuestMemory, gpa: Gpa, *, long: bool) -> DescriptorTable:
        """Write the table at ``gpa`` and return what IDTR must hold, if ``gpa`` is the linear address as well."""
        table = self.encode(long=long)
        memory.write(gpa, table)
        return DescriptorTable(gpa, len(table) - 1)


def encode_tss32(esp0: int, ss0: int = Selector.KERNEL_DATA) -> bytes:
    """Return a 32-bit TSS of 104 bytes that holds ring 0's stack (SDM volume 3, figure 7-2) and allows no ports."""
    return struct.pack("<III", 0, esp0, ss0) + bytes(104 - 14) + struct.pack("<H", 104)


def encode_tss64(rsp0: int) -> bytes:
    """Return a 64-bit TSS of 104 bytes that holds ring 0's stack (SDM volume 3, figure 7-11) and allows no ports."""
    return struct.pack("<IQ", 0, rsp0) + bytes(104 - 14) + struct.pack("<H", 104)
