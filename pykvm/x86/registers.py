"""Control, flags and debug registers: their bits by name, and all registers as a block of text.

The bits are specified in the Intel SDM: volume 3, section 2.5 (CR0, CR3, CR4, CR8), volume 3, section 2.2.1 (EFER;
the AMD64 manual, volume 2, section 3.1.7, has more of its bits), volume 1, section 3.4.3 (RFLAGS), volume 3, section
17.2 (DR6, DR7) and volume 3, section 10.4.4 (IA32_APIC_BASE). Each register is a type of its own, so that CR0's bits
cannot be given to CR4. A guest may put anything into a register, so every type takes any value:
``Cr4(sregs.cr4)`` never fails. Leaves out: all other model-specific registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import KEEP, Flag

from pykvm.kvm.structs import DescriptorTable, Regs, Segment, Sregs
from pykvm.markup import Markup, grid, stacked, table

__all__ = [
    "ApicBase",
    "Cr0",
    "Cr3",
    "Cr4",
    "Dr6",
    "Dr7",
    "Efer",
    "Rflags",
    "describe",
    "format_registers",
    "registers_html",
]


class Cr0(Flag, boundary=KEEP):
    """CR0: protection, paging, caching and the x87 unit.

    31 30 29      18   16       5  4  3  2  1  0
    +--+--+--+---+--+--+--+---+--+--+--+--+--+--+
    |PG|CD|NW| 0 |AM| 0|WP| 0 |NE|ET|TS|EM|MP|PE|
    +--+--+--+---+--+--+--+---+--+--+--+--+--+--+
    """

    PE = 1 << 0  # protection enable: off is real mode
    MP = 1 << 1  # monitor coprocessor: WAIT obeys TS
    EM = 1 << 2  # emulation: no x87, x87 instructions give #NM
    TS = 1 << 3  # task switched: the next x87 or SSE instruction gives #NM
    ET = 1 << 4  # extension type: always 1 since the 486
    NE = 1 << 5  # numeric error: x87 errors are #MF, not an external interrupt
    WP = 1 << 16  # write protect: ring 0 obeys read-only pages too
    AM = 1 << 18  # alignment mask: RFLAGS.AC works in ring 3
    NW = 1 << 29  # not write-through
    CD = 1 << 30  # cache disable
    PG = 1 << 31  # paging


class Cr3(Flag, boundary=KEEP):
    """CR3: the physical address of the top page table, and two caching bits.

    63  62       61    60   M-1                12 11   5  4   3   2  0
    +--+-------+-------+----+----------------------+-----+---+---+----+
    | 0|LAM_U48|LAM_U57|  0 | address, 4 KiB pages |  0  |PCD|PWT|  0 |
    +--+-------+-------+----+----------------------+-----+---+---+----+

    M is MAXPHYADDR. With CR4.PCIDE, bits 11 to 0 are the PCID; with PAE paging, the address reaches down to bit 5.
    """

    PWT = 1 << 3  # page-level write-through
    PCD = 1 << 4  # page-level cache disable
    LAM_U57 = 1 << 61  # linear address masking of user pointers: bits 62 to 57 are ignored
    LAM_U48 = 1 << 62  # the same, bits 62 to 48


class Cr4(Flag, boundary=KEEP):
    """CR4: what else is switched on.

    15   14   13   12   11   10         9      8   7   6   5   4   3  2   1   0
    +--+----+----+----+----+----------+------+---+---+---+---+---+--+---+---+---+
    | 0|SMXE|VMXE|LA57|UMIP|OSXMMEXCPT|OSFXSR|PCE|PGE|MCE|PAE|PSE|DE|TSD|PVI|VME|
    +--+----+----+----+----+----------+------+---+---+---+---+---+--+---+---+---+

     32  31  29   28      27   26   25   24  23  22  21   20   19   18     17     16
    +----+------+-------+----+---+-----+---+---+---+----+----+--+-------+-----+--------+
    |FRED|  0   |LAM_SUP|LASS| 0 |UINTR|PKS|CET|PKE|SMAP|SMEP|KL|OSXSAVE|PCIDE|FSGSBASE|
    +----+------+-------+----+---+-----+---+---+---+----+----+--+-------+-----+--------+
    """

    VME = 1 << 0  # virtual-8086 mode extensions
    PVI = 1 << 1  # protected-mode virtual interrupts
    TSD = 1 << 2  # RDTSC in ring 0 only
    DE = 1 << 3  # debugging extensions: DR4 and DR5 are gone, I/O breakpoints exist
    PSE = 1 << 4  # 4 MiB pages in 32-bit paging
    PAE = 1 << 5  # 64-bit page-table entries
    MCE = 1 << 6  # machine-check exceptions
    PGE = 1 << 7  # global pages
    PCE = 1 << 8  # RDPMC in every ring
    OSFXSR = 1 << 9  # the system saves SSE state, so SSE may be used
    OSXMMEXCPT = 1 << 10  # the system handles #XM
    UMIP = 1 << 11  # SGDT, SIDT, SLDT, SMSW and STR in ring 0 only
    LA57 = 1 << 12  # five-level paging
    VMXE = 1 << 13  # Intel virtualization
    SMXE = 1 << 14  # safer mode extensions
    FSGSBASE = 1 << 16  # RDFSBASE and its sisters in every ring
    PCIDE = 1 << 17  # process-context identifiers: TLB entries carry a tag
    OSXSAVE = 1 << 18  # the system uses XSAVE; XCR0 exists
    KL = 1 << 19  # key locker
    SMEP = 1 << 20  # ring 0 does not execute user pages
    SMAP = 1 << 21  # ring 0 does not touch user pages unless RFLAGS.AC
    PKE = 1 << 22  # protection keys for user pages
    CET = 1 << 23  # control-flow enforcement
    PKS = 1 << 24  # protection keys for supervisor pages
    UINTR = 1 << 25  # user interrupts
    LASS = 1 << 27  # linear address space separation
    LAM_SUP = 1 << 28  # linear address masking of supervisor pointers
    FRED = 1 << 32  # flexible return and event delivery


class Efer(Flag, boundary=KEEP):
    """IA32_EFER (MSR 0xc0000080): long mode, SYSCALL, no-execute; bits 12 and up are AMD's.

      21      20   18    17      15   14     13    12   11  10   9   8  7   1  0
    +--------+----+-----+-------+---+-----+-----+----+---+---+---+---+-----+---+
    |AUTOIBRS|UAIE|INTWB|MCOMMIT|TCE|FFXSR|LMSLE|SVME|NXE|LMA| 0 |LME|  0  |SCE|
    +--------+----+-----+-------+---+-----+-----+----+---+---+---+---+-----+---+
    """

    SCE = 1 << 0  # SYSCALL and SYSRET exist
    LME = 1 << 8  # long mode enable: what the system asks for
    LMA = 1 << 10  # long mode active: what the CPU answers, LME and CR0.PG
    NXE = 1 << 11  # bit 63 of a page-table entry forbids execution
    SVME = 1 << 12  # AMD virtualization
    LMSLE = 1 << 13  # long mode segment limit enable
    FFXSR = 1 << 14  # fast FXSAVE and FXRSTOR
    TCE = 1 << 15  # translation cache extension
    MCOMMIT = 1 << 17  # the MCOMMIT instruction exists
    INTWB = 1 << 18  # WBINVD can be interrupted
    UAIE = 1 << 20  # upper address ignore
    AUTOIBRS = 1 << 21  # automatic indirect branch restricted speculation


class Rflags(Flag, boundary=KEEP):
    """RFLAGS: the results of arithmetic, and a few controls.

    21  20  19  18 17 16 15 14 13 12 11 10 9  8  7  6  5  4  3  2  1  0
    +--+---+---+--+--+--+--+--+-----+--+--+--+--+--+--+--+--+--+--+--+--+
    |ID|VIP|VIF|AC|VM|RF| 0|NT|IOPL |OF|DF|IF|TF|SF|ZF| 0|AF| 0|PF| 1|CF|
    +--+---+---+--+--+--+--+--+-----+--+--+--+--+--+--+--+--+--+--+--+--+
    """

    CF = 1 << 0  # carry
    PF = 1 << 2  # parity
    AF = 1 << 4  # auxiliary carry
    ZF = 1 << 6  # zero
    SF = 1 << 7  # sign
    TF = 1 << 8  # trap: #DB after each instruction
    IF = 1 << 9  # interrupts are taken
    DF = 1 << 10  # string instructions count down
    OF = 1 << 11  # overflow
    IOPL = 3 << 12  # two bits: the least privileged ring that may use I/O ports, CLI and STI
    NT = 1 << 14  # nested task
    RF = 1 << 16  # resume: no instruction breakpoint on the next instruction
    VM = 1 << 17  # virtual-8086 mode
    AC = 1 << 18  # alignment checks in ring 3; lifts SMAP in ring 0
    VIF = 1 << 19  # virtual interrupt flag
    VIP = 1 << 20  # virtual interrupt pending
    ID = 1 << 21  # can be changed: CPUID exists


class Dr6(Flag, boundary=KEEP):
    """DR6: which debug conditions were met. BLD and RTM are upside down: 0 says that it happened.

    31  17  16 15 14 13 12  11 10   4  3  2  1  0
    +-----+---+--+--+--+--+---+------+--+--+--+--+
    |  1  |RTM|BT|BS|BD| 0|BLD|  1   |B3|B2|B1|B0|
    +-----+---+--+--+--+--+---+------+--+--+--+--+
    """

    B0 = 1 << 0  # breakpoint 0 was hit
    B1 = 1 << 1
    B2 = 1 << 2
    B3 = 1 << 3
    BLD = 1 << 11  # clear: a bus lock was detected
    BD = 1 << 13  # a debug register was to be accessed while DR7.GD was set
    BS = 1 << 14  # single step
    BT = 1 << 15  # task switch
    RTM = 1 << 16  # clear: it happened inside a transaction


class Dr7(Flag, boundary=KEEP):
    """DR7: which breakpoints are on, and what they watch.

    31 30 29 28 27 26 25 24 23 22 21 20 19 18 17 16  13 12 11 10  9  8  7  6  5  4  3  2  1  0
    +----+-----+----+-----+----+-----+----+-----+--+--+--+---+--+--+--+--+--+--+--+--+--+--+--+
    |LEN3| RW3 |LEN2| RW2 |LEN1| RW1 |LEN0| RW0 | 0|GD| 0|RTM| 1|GE|LE|G3|L3|G2|L2|G1|L1|G0|L0|
    +----+-----+----+-----+----+-----+----+-----+--+--+--+---+--+--+--+--+--+--+--+--+--+--+--+

    RW: 0 execution, 1 writes, 2 I/O (with CR4.DE), 3 reads and writes. LEN: 0 one byte, 1 two, 2 eight, 3 four.
    """

    L0 = 1 << 0  # breakpoint 0 is on until the next task switch
    G0 = 1 << 1  # breakpoint 0 is on
    L1 = 1 << 2
    G1 = 1 << 3
    L2 = 1 << 4
    G2 = 1 << 5
    L3 = 1 << 6
    G3 = 1 << 7
    LE = 1 << 8  # exact data breakpoints; ignored since the P6
    GE = 1 << 9
    RTM = 1 << 11  # debugging of transactions
    GD = 1 << 13  # general detect: touching a debug register gives #DB
    RW0 = 3 << 16
    LEN0 = 3 << 18
    RW1 = 3 << 20
    LEN1 = 3 << 22
    RW2 = 3 << 24
    LEN2 = 3 << 26
    RW3 = 3 << 28
    LEN3 = 3 << 30


class ApicBase(Flag, boundary=KEEP):
    """IA32_APIC_BASE (MSR 0x1b): where the local APIC is, and whether.

    M-1           12 11 10    9  8  7      0
    +--------------+--+----+---+---+--------+
    | address      |EN|EXTD| 0 |BSP|   0    |
    +--------------+--+----+---+---+--------+
    """

    BSP = 1 << 8  # this is the processor that booted
    EXTD = 1 << 10  # x2APIC mode: the APIC is reached by MSRs
    EN = 1 << 11  # the APIC is on


# Bits that read as 1 on every CPU and so say nothing.
_ALWAYS_SET: dict[type[Flag], int] = {Rflags: 0x2, Dr6: 0xFFFE_07F0, Dr7: 0x400}
# Bits whose 0 is the message.
_ACTIVE_LOW: dict[type[Flag], int] = {Dr6: Dr6.RTM.value | Dr6.BLD.value}
# Registers that hold an address beside their flags.
_ADDRESS: dict[type[Flag], int] = {Cr3: 0x000F_FFFF_FFFF_F000, ApicBase: 0x000F_FFFF_FFFF_F000}


def describe(kind: type[Flag], value: int) -> str:
    """Return the set bits of ``value`` as ``"[PG WP PE]"``, highest first; ``"[-]"`` if there are none.

    ``kind`` is one of this module's types. A field of several bits appears as ``IOPL=3``; bits that have no name
    come last, together, as a hexadecimal number; bits that are always 1, and addresses, are left out.
    """
    bits = (value & ~_ALWAYS_SET.get(kind, 0) & ~_ADDRESS.get(kind, 0)) ^ _ACTIVE_LOW.get(kind, 0)
    words = []
    for name, member in sorted(kind.__members__.items(), key=lambda item: item[1].value, reverse=True):
        field = bits & member.value
        if field:
            words.append(name if member.value.bit_count() == 1 else f"{name}={field // (member.value & -member.value)}")
        bits ^= field
    if bits:
        words.append(f"{bits:#x}")
    return f"[{' '.join(words) or '-'}]"


# The general registers in the order of their encoding's first eight, then the eight that long mode added.
_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
_CONTROL: tuple[tuple[str, type[Flag] | None], ...] = (
    ("cr0", Cr0),
    ("cr2", None),
    ("cr3", Cr3),
    ("cr4", Cr4),
    ("cr8", None),
    ("efer", Efer),
    ("apic_base", ApicBase),
)
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")


def format_registers(regs: Regs, sregs: Sregs) -> str:
    """Return all registers as lines of aligned columns, flags by name, without a newline at the end."""
    rip = ["rip", f"{regs.rip:#x}", "rflags", f"{regs.rflags:#x}", describe(Rflags, regs.rflags)]
    general = [[text for name in row for text in (name, f"{getattr(regs, name):#x}")] for row in _GENERAL]
    control = [[name, *_control(kind, getattr(sregs, name))] for name, kind in _CONTROL]
    segments = [[name, *_segment(getattr(sregs, name))] for name in _SEGMENTS]
    tables = [["gdt", *_table(sregs.gdt)], ["idt", *_table(sregs.idt)]]
    return "\n".join([" ".join(rip), *_columns(general), *_columns(control), *_columns(segments + tables)])


def registers_html(regs: Regs, sregs: Sregs) -> Markup:
    """Return all registers as tables for a notebook, flags by name."""
    general = [(name, getattr(regs, name)) for row in _GENERAL for name in row]
    flags = [("rip", regs.rip, ""), ("rflags", regs.rflags, describe(Rflags, regs.rflags))]
    flags += [(name, getattr(sregs, name), _control(kind, getattr(sregs, name))[1]) for name, kind in _CONTROL]
    parts = [(name, getattr(sregs, name)) for name in _SEGMENTS]
    segments = [(name, part.selector, part.base, part.limit, _kind(part)) for name, part in parts]
    tables = [("gdt", "", sregs.gdt.base, sregs.gdt.limit, ""), ("idt", "", sregs.idt.base, sregs.idt.limit, "")]
    return stacked(
        grid(general, 4, "general registers"),
        table(["register", "value", "flags"], flags, "RIP, flags and control registers"),
        table(["register", "selector", "base", "limit", "kind"], [*segments, *tables], "segments"),
    )


def _control(kind: type[Flag] | None, value: int) -> list[str]:
    return [f"{value:#x}", "" if kind is None else describe(kind, value)]


def _segment(segment: Segment) -> list[str]:
    return [f"{segment.selector:#x}", f"base {segment.base:#x}", f"limit {segment.limit:#x}", _kind(segment)]


def _table(table: DescriptorTable) -> list[str]:
    return ["", f"base {table.base:#x}", f"limit {table.limit:#x}", ""]


def _kind(segment: Segment) -> str:
    """Return what the hidden part of a segment register says, in a few words."""
    if segment.unusable:
        return "unusable"
    if segment.s:
        width = "64" if segment.l else "32" if segment.db else "16"
        access = _CODE_ACCESS if segment.type & 8 else _DATA_ACCESS
        kind = f"{access[(segment.type >> 1) & 3]} {width}-bit"
    else:
        kind = _SYSTEM_TYPES.get(segment.type, f"system type {segment.type}")
    return f"{kind} DPL {segment.dpl}" + ("" if segment.present else " not present")


# By bits 2 and 1 of the type: conforming and readable, or expand-down and writable (SDM volume 3, section 3.4.5.1).
_CODE_ACCESS = ("code --x", "code r-x", "conforming code --x", "conforming code r-x")
_DATA_ACCESS = ("data r--", "data rw-", "expand-down data r--", "expand-down data rw-")
# SDM volume 3, section 3.5.
_SYSTEM_TYPES = {1: "TSS16 free", 2: "LDT", 3: "TSS16 busy", 9: "TSS free", 11: "TSS busy"}


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [" ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
