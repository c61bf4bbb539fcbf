"""CPU modes: the register state that each wants, made in one call.

    mode        CR0.PE  CR0.PG  CR4.PAE  EFER.LMA  code
    real                                           16 bits, segment * 16 + offset
    protected      1                               32 bits, flat segments
    paged          1       1                       32 bits, 32-bit paging
    pae            1       1       1               32 bits, PAE paging
    long           1       1       1        1      64 bits, 4-level paging

Each function takes the special registers that KVM gave after reset and returns a new state; it writes the tables the
state needs (GDT, TSS, page tables) into guest memory at the addresses of ``pykvm.memory.layout``. Page tables map
linear addresses to the same physical ones. There is no IDT (limit 0). See: Intel SDM volume 3, sections 9.8
(switching to protected mode), 9.8.5 (to long mode), 20.1 (real mode). Leaves out virtual-8086 mode and SMM.
"""

from __future__ import annotations

import copy
import enum
from dataclasses import dataclass, field

from pykvm.errors import ConfigurationError
from pykvm.kvm.structs import DescriptorTable, Regs, Segment, Sregs
from pykvm.memory import GuestMemory, layout
from pykvm.units import GiB, KiB, MiB, align_up
from pykvm.x86.paging import FrameAllocator, PageTables, PagingMode
from pykvm.x86.registers import Cr0, Cr4, Efer, Rflags, format_registers
from pykvm.x86.segments import (
    Gdt,
    Selector,
    code_segment,
    data_segment,
    encode_tss32,
    encode_tss64,
    real_mode_segment,
    task_segment,
)

__all__ = [
    "CpuMode",
    "CpuState",
    "Mode",
    "cpu_mode",
    "flat_protected_mode",
    "linear_rip",
    "long_mode",
    "pae_mode",
    "paged_mode",
    "protected_mode",
    "real_mode",
    "reset_vector",
    "set_up",
    "to_mode",
]

REAL_MODE_SPACE = 1 << 20
TSS_LIMIT = 104 - 1


class Mode(enum.Enum):
    """The states a guest can start in."""

    REAL = "real"
    PROTECTED = "protected"
    PAGED = "paged"
    PAE = "pae"
    LONG = "long"


@dataclass(frozen=True, slots=True)
class CpuState:
    """A state to give to KVM_SET_REGS and KVM_SET_SREGS; prints as a block of registers.

    ``tables`` are the guest-physical addresses of the tables written for it, by name.
    """

    regs: Regs
    sregs: Sregs
    tables: dict[str, range] = field(default_factory=dict)

    def __str__(self) -> str:
        return format_registers(self.regs, self.sregs)


@dataclass(frozen=True, slots=True)
class CpuMode:
    """What a CPU is doing: the mode's name, the code width in bits (16, 32 or 64), and the ring."""

    name: str
    width: int
    ring: int

    def __str__(self) -> str:
        return f"{self.name}, {self.width}-bit code, ring {self.ring}"


def set_up(
    mode: Mode, sregs: Sregs, memory: GuestMemory, entry: int, *, ring: int = 0, page_size: int | None = None
) -> CpuState:
    """Return the state that starts ``mode`` at linear address ``entry``; ``page_size`` is for the paged modes.

    Raises: ConfigurationError for a ring other than 0 and 3, or one that the mode does not have; PagingError.
    """
    if mode is Mode.REAL and (ring != 0 or page_size is not None):
        raise ConfigurationError("real mode has no rings and no pages: ring and page size do not go with it")
    if mode is Mode.PROTECTED and page_size is not None:
        raise ConfigurationError("protected mode without paging has no page size: use the modes paged, pae or long")
    match mode:
        case Mode.REAL:
            return real_mode_at(sregs, entry)
        case Mode.PROTECTED:
            return protected_mode(sregs, memory, entry, ring=ring)
        case Mode.PAGED:
            return paged_mode(sregs, memory, entry, page_size or 4 * MiB, ring=ring)
        case Mode.PAE:
            return pae_mode(sregs, memory, entry, page_size or 2 * MiB, ring=ring)
        case Mode.LONG:
            return long_mode(sregs, memory, entry, page_size or 2 * MiB, ring=ring)


def to_mode(name: Mode | str) -> Mode:
    """Return the mode called ``name``, such as "long". Raises: ConfigurationError."""
    try:
        return Mode(name)
    except ValueError:
        raise ConfigurationError(f"{name!r} is no mode: there are {', '.join(mode.value for mode in Mode)}") from None


def real_mode(sregs: Sregs, segment: int = 0, offset: int = layout.REAL_LOAD) -> CpuState:
    """Return real mode at ``segment``:``offset`` (16 bits each); the data segments are 0, the stack is at 0000:7c00.

    Raises: ConfigurationError if one of them has more than 16 bits.
    """
    for name, value in (("segment", segment), ("offset", offset)):
        if not 0 <= value <= 0xFFFF:
            raise ConfigurationError(f"a real-mode {name} has 16 bits; {value:#x} does not fit")
    state = copy.deepcopy(sregs)
    state.cr0 = Cr0.ET.value
    state.cr4 = state.efer = 0
    state.cs = real_mode_segment(segment, is_code=True)
    _set_data_segments(state, real_mode_segment(0))
    state.idt = DescriptorTable(layout.IVT, 0x3FF)
    return CpuState(Regs(rip=offset, rsp=layout.STACK_TOP), state)


def real_mode_at(sregs: Sregs, entry: int) -> CpuState:
    """Return real mode at linear ``entry``: 0000:entry in the first 64 KiB, above that the offset is its low 16 bits.

    Raises: ConfigurationError above 1 MiB.
    """
    if not 0 <= entry < REAL_MODE_SPACE:
        raise ConfigurationError(f"real mode reaches addresses below 1 MiB; the entry {entry:#x} is not one")
    return real_mode(sregs, (entry & ~0xFFFF) >> 4, entry & 0xFFFF)


def reset_vector(sregs: Sregs) -> CpuState:
    """Return the state after reset: CS base 0xffff0000 and RIP 0xfff0, so that the first fetch is 16 bytes below 4 GiB.

    A ROM must be there. See: SDM volume 3, section 9.1.4.
    """
    state = real_mode(sregs).sregs
    state.cs.base, state.cs.selector = 0xFFFF_0000, 0xF000
    return CpuState(Regs(rip=layout.RESET_VECTOR - state.cs.base), state)


def protected_mode(sregs: Sregs, memory: GuestMemory, entry: int, *, ring: int = 0) -> CpuState:
    """Return 32-bit protected mode without paging at ``entry``, with flat segments of 4 GiB.

    Raises: ConfigurationError if ``entry`` has more than 32 bits or ``ring`` is not 0 or 3; GuestMemoryError.
    """
    if not 0 <= entry < 1 << 32:
        raise ConfigurationError(f"32-bit code cannot start at {entry:#x}, which has more than 32 bits")
    state = _with_segments(sregs, memory, ring, width=32)
    state.cr0 = (Cr0.PE | Cr0.ET | Cr0.NE).value
    state.cr4 = state.efer = 0
    return CpuState(Regs(rip=entry, rsp=layout.STACK_TOP), state, _segment_tables(state))


def paged_mode(sregs: Sregs, memory: GuestMemory, entry: int, page_size: int = 4 * MiB, *, ring: int = 0) -> CpuState:
    """Return protected mode with 32-bit paging: pages of 4 MiB map all 4 GiB, pages of 4 KiB map the RAM.

    Raises: as ``protected_mode``, and PagingError.
    """
    state = protected_mode(sregs, memory, entry, ring=ring)
    state.sregs.cr3, state.tables["page tables"] = _identity_map(memory, PagingMode.BITS32, page_size, ring)
    state.sregs.cr4 = Cr4.PSE.value
    state.sregs.cr0 |= Cr0.PG.value
    return state


def flat_protected_mode(sregs: Sregs, entry: int) -> CpuState:
    """Return protected mode as boot protocols have it: flat segments in ring 0, and no table of them in memory.

    The guest makes its own GDT before it loads a segment register, so that nothing of its memory is taken. There is no
    stack.
    """
    state = copy.deepcopy(sregs)
    state.gdt = state.idt = DescriptorTable()
    state.cs = code_segment(32, selector=Selector.KERNEL_CODE)
    _set_data_segments(state, data_segment(selector=Selector.KERNEL_DATA))
    state.cr0 = (Cr0.PE | Cr0.ET).value
    return CpuState(Regs(rip=entry), state)


def pae_mode(sregs: Sregs, memory: GuestMemory, entry: int, page_size: int = 2 * MiB, *, ring: int = 0) -> CpuState:
    """Return protected mode with PAE paging: pages of 2 MiB map 4 GiB, pages of 4 KiB map the RAM.

    Raises: as ``protected_mode``, and PagingError.
    """
    state = protected_mode(sregs, memory, entry, ring=ring)
    state.sregs.cr3, state.tables["page tables"] = _identity_map(memory, PagingMode.PAE, page_size, ring)
    state.sregs.cr4 = Cr4.PAE.value
    state.sregs.efer = Efer.NXE.value
    state.sregs.cr0 |= Cr0.PG.value
    return state


def long_mode(sregs: Sregs, memory: GuestMemory, entry: int, page_size: int = 2 * MiB, *, ring: int = 0) -> CpuState:
    """Return 64-bit long mode at ``entry``: pages of 2 MiB or 1 GiB map 4 GiB or all RAM, pages of 4 KiB the RAM.

    Raises: ConfigurationError if ``entry`` is not canonical or ``ring`` is not 0 or 3; PagingError; GuestMemoryError.
    """
    if not PagingMode.LONG4.is_canonical(entry):
        raise ConfigurationError(f"64-bit code cannot start at {entry:#x}, which is not canonical")
    state = _with_segments(sregs, memory, ring, width=64)
    state.cr3, page_tables = _identity_map(memory, PagingMode.LONG4, page_size, ring)
    state.cr4 = Cr4.PAE.value
    state.efer = (Efer.LME | Efer.LMA | Efer.NXE).value
    state.cr0 = (Cr0.PE | Cr0.PG | Cr0.ET | Cr0.NE).value
    tables = _segment_tables(state) | {"page tables": page_tables}
    return CpuState(Regs(rip=entry, rsp=layout.STACK_TOP), state, tables)


def cpu_mode(sregs: Sregs, regs: Regs) -> CpuMode:
    """Return what mode the registers put the CPU in (SDM volume 3, section 2.2)."""
    ring = sregs.ss.dpl
    if not sregs.cr0 & Cr0.PE.value:
        return CpuMode("real mode", 16, 0)
    if sregs.efer & Efer.LMA.value:
        if sregs.cs.l:
            return CpuMode("long mode", 64, ring)
        return CpuMode("compatibility mode", 32 if sregs.cs.db else 16, ring)
    if regs.rflags & Rflags.VM.value:
        return CpuMode("virtual-8086 mode", 16, 3)
    paged = " with paging" if sregs.cr0 & Cr0.PG.value else ""
    return CpuMode(f"protected mode{paged}", 32 if sregs.cs.db else 16, ring)


def linear_rip(regs: Regs, sregs: Sregs) -> int:
    """Return the linear address of the next instruction: CS.base + RIP, and in 64-bit code RIP alone."""
    if cpu_mode(sregs, regs).width == 64:
        return regs.rip
    return (sregs.cs.base + regs.rip) & 0xFFFF_FFFF


def _with_segments(sregs: Sregs, memory: GuestMemory, ring: int, *, width: int) -> Sregs:
    """Return ``sregs`` with flat segments of ``ring``; writes the GDT and the TSS that they come from."""
    if ring not in (0, 3):
        raise ConfigurationError(f"a guest starts in ring 0 or 3, not in ring {ring}")
    is_long = width == 64
    tss = task_segment(layout.TSS, TSS_LIMIT)
    gdt = Gdt()
    gdt.add(code_segment(width))
    gdt.add(data_segment())
    gdt.add(code_segment(32, dpl=3))
    gdt.add(data_segment(dpl=3))
    gdt.add(code_segment(64, dpl=3))
    (gdt.add_system64 if is_long else gdt.add)(tss)

    state = copy.deepcopy(sregs)
    state.gdt = gdt.write(memory, layout.GDT)
    state.idt = DescriptorTable()
    memory.write(layout.TSS, (encode_tss64 if is_long else encode_tss32)(layout.KERNEL_STACK_TOP))
    state.tr = tss
    if ring == 0:
        state.cs = code_segment(width, selector=Selector.KERNEL_CODE)
        _set_data_segments(state, data_segment(selector=Selector.KERNEL_DATA))
    else:
        code = Selector.USER_CODE64 if is_long else Selector.USER_CODE32
        state.cs = code_segment(width, dpl=3, selector=code)
        _set_data_segments(state, data_segment(dpl=3, selector=Selector.USER_DATA))
    return state


def _set_data_segments(sregs: Sregs, segment: Segment) -> None:
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, copy.copy(segment))


def _segment_tables(sregs: Sregs) -> dict[str, range]:
    gdt, tss = sregs.gdt, sregs.tr
    return {
        "GDT": range(gdt.base, gdt.base + gdt.limit + 1),
        "TSS": range(tss.base, tss.base + tss.limit + 1),
    }


def _identity_map(memory: GuestMemory, mode: PagingMode, page_size: int, ring: int) -> tuple[int, range]:
    """Write page tables that map addresses to themselves. Returns the value for CR3, and where the tables are."""
    frames = FrameAllocator(layout.PAGE_TABLES, layout.PAGE_TABLES_END)
    tables = PageTables(memory, mode, frames)
    if page_size == 4 * KiB:
        for region in memory.regions:
            tables.map(region.gpa, region.gpa, region.size, page_size, user=ring == 3)
    else:
        end = max((region.end for region in memory.regions), default=0)
        top = 4 * GiB if mode.address_bits == 32 else max(4 * GiB, align_up(end, page_size))
        tables.map(0, 0, top, page_size, user=ring == 3)
    return tables.cr3, frames.used
