"""Which registers gdb is shown, in which order, and as what: one layout an architecture, and its target description.

    i8086    real mode: disassembled as 16-bit code        eight general registers of 32 bits, eight XMM registers
    i386     protected mode                                the same
    x86-64   long mode                                     sixteen of 64 bits, sixteen XMM registers

gdb takes an architecture once, when it attaches, and the order of the registers in the description is that of their
values in a 'g' packet. The features called org.gnu.gdb.* have the registers that gdb insists on; the others are shown
as they are described. See: the manual of gdb, "Target Descriptions" and "i386 Features". Leaves out AVX.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pykvm.kvm import Regs, Sregs
from pykvm.x86 import Cr0, Cr4, Efer, Rflags, cpu_mode

__all__ = ["SEGMENTS", "TABLES", "Architecture", "Register", "layout_of", "target_xml"]

SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
TABLES = ("gdt", "idt")

CORE, SSE, SEGMENT_BASES = "org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse", "org.gnu.gdb.i386.segments"
SYSTEM = "org.pykvm.x86.system"  # our own: gdb knows nothing of control registers

_GENERAL_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_GENERAL_64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_X87 = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_FLAGS = {"eflags": Rflags, "cr0": Cr0, "cr4": Cr4, "efer": Efer}  # registers whose bits have names


class Architecture(enum.Enum):
    """What gdb calls it."""

    I8086 = "i8086"
    I386 = "i386"
    X86_64 = "i386:x86-64"

    @classmethod
    def of(cls, regs: Regs, sregs: Sregs) -> Architecture:
        """Return what suits the mode that a CPU is in."""
        match cpu_mode(sregs, regs).width:
            case 64:
                return cls.X86_64
            case 32:
                return cls.I386
            case _:
                return cls.I8086

    @property
    def is_64_bit(self) -> bool:
        """Return whether general registers have 64 bits."""
        return self is Architecture.X86_64


@dataclass(frozen=True, slots=True)
class Register:
    """One register as gdb sees it: its ``kind`` is a type of gdb's, or of the description's own."""

    name: str
    bits: int
    feature: str
    kind: str = "int"
    group: str = ""

    @property
    def size(self) -> int:
        """Return how many bytes a 'g' packet has for it."""
        return self.bits // 8


def layout_of(architecture: Architecture) -> tuple[Register, ...]:
    """Return the registers of ``architecture`` by their numbers in gdb."""
    return (*_core(architecture), *_sse(architecture), *_system(architecture))


def target_xml(architecture: Architecture) -> str:
    """Return the target description that tells gdb of ``layout_of(architecture)``."""
    layout = layout_of(architecture)
    features = list(dict.fromkeys(register.feature for register in layout))
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        "<target>",
        f"<architecture>{architecture.value}</architecture>",
        "<osabi>none</osabi>",
    ]
    for feature in features:
        lines += [f'<feature name="{feature}">', *_types(feature, layout), *_elements(feature, layout), "</feature>"]
    return "\n".join([*lines, "</target>", ""])


# ---- the registers ----


def _core(architecture: Architecture) -> Iterator[Register]:
    wide = architecture.is_64_bit
    for name in _GENERAL_64 if wide else _GENERAL_32:
        is_pointer = name[1:] in ("sp", "bp")
        yield Register(name, 64 if wide else 32, CORE, "data_ptr" if is_pointer else "int64" if wide else "int32")
    yield Register("rip" if wide else "eip", 64 if wide else 32, CORE, "code_ptr")
    yield Register("eflags", 32, CORE, "eflags_flags")
    yield from (Register(name, 32, CORE, "int32") for name in SEGMENTS)
    yield from (Register(f"st{number}", 80, CORE, "i387_ext") for number in range(8))
    yield from (Register(name, 32, CORE, "int", "float") for name in _X87)


def _sse(architecture: Architecture) -> Iterator[Register]:
    yield from (Register(f"xmm{number}", 128, SSE, "vec128") for number in range(16 if architecture.is_64_bit else 8))
    yield Register("mxcsr", 32, SSE, "i386_mxcsr", "vector")


def _system(architecture: Architecture) -> Iterator[Register]:
    width = 64 if architecture.is_64_bit else 32
    number = f"uint{width}"
    if architecture.is_64_bit:  # where gdb knows what they are for
        yield from (Register(f"{name}_base", 64, SEGMENT_BASES, "uint64") for name in ("fs", "gs"))
    rest = SEGMENTS[:4] if architecture.is_64_bit else SEGMENTS
    yield from (Register(f"{name}_base", width, SYSTEM, number, "system") for name in rest)
    for table in TABLES:
        yield Register(f"{table}_base", width, SYSTEM, number, "system")
        yield Register(f"{table}_limit", 32, SYSTEM, "uint32", "system")
    yield from (Register(name, 32, SYSTEM, "uint32", "system") for name in ("ldt", "tr"))
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8"):
        yield Register(name, width, SYSTEM, f"{name}_flags" if name in _FLAGS else number, "system")
    yield Register("efer", width, SYSTEM, "efer_flags", "system")


# ---- the description ----


def _types(feature: str, layout: Sequence[Register]) -> Iterator[str]:
    """Yield what describes the types that registers of ``feature`` have and gdb does not."""
    if feature == SSE:
        yield from _SSE_TYPES
    for register in layout:
        if register.feature == feature and register.name in _FLAGS:
            yield f'<flags id="{register.kind}" size="{register.size}">'
            for name, member in _FLAGS[register.name].__members__.items():
                low, high = (member.value & -member.value).bit_length() - 1, member.value.bit_length() - 1
                if high < register.bits:
                    kind = "" if low == high else ' type="uint32"'
                    yield f'<field name="{name}" start="{low}" end="{high}"{kind}/>'
            yield "</flags>"


def _elements(feature: str, layout: Sequence[Register]) -> Iterator[str]:
    for register in layout:
        if register.feature == feature:
            group = f' group="{register.group}"' if register.group else ""
            yield f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.kind}"{group}/>'


_VECTORS = {
    "v4f": ("ieee_single", 4),
    "v2d": ("ieee_double", 2),
    "v16i8": ("int8", 16),
    "v8i16": ("int16", 8),
    "v4i32": ("int32", 4),
    "v2i64": ("int64", 2),
}
_VIEWS = {
    "v4_float": "v4f",
    "v2_double": "v2d",
    "v16_int8": "v16i8",
    "v8_int16": "v8i16",
    "v4_int32": "v4i32",
    "v2_int64": "v2i64",
    "uint128": "uint128",
}
# From bit 0 on: SDM volume 1, section 10.2.3.
_MXCSR = ("IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM")
_MXCSR_FZ = 15

_SSE_TYPES = (
    *(f'<vector id="{name}" type="{of}" count="{count}"/>' for name, (of, count) in _VECTORS.items()),
    '<union id="vec128">',
    *(f'<field name="{name}" type="{kind}"/>' for name, kind in _VIEWS.items()),
    "</union>",
    '<flags id="i386_mxcsr" size="4">',
    *(f'<field name="{name}" start="{bit}" end="{bit}"/>' for bit, name in enumerate(_MXCSR)),
    f'<field name="FZ" start="{_MXCSR_FZ}" end="{_MXCSR_FZ}"/>',
    "</flags>",
)
