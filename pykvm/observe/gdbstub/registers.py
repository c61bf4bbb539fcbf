"""One CPU's registers by gdb's names: from KVM's structures and back.

``$pc`` is linear, CS.base + RIP, in every mode: it is the address that ``x/i $pc``, breakpoints and symbols mean, and
in long mode, and wherever CS.base is 0, it is RIP itself. All other registers are what the CPU has, so that with SS =
0x1000 the stack of real mode is at ``$ss_base + $sp``.

The x87 and SSE registers are in the first 512 bytes of the XSAVE area:

    0   2   4 5 6   8         16        24        32                    160                     416
    +---+---+-+-+---+---------+---------+----+----+---------------------+-----------------------+---
    |FCW|FSW|F| |FOP|   FIP   |   FDP   |MXCSR    | ST0 to ST7, 16 each | XMM0 to XMM15         |
    +---+---+-+-+---+---------+---------+----+----+---------------------+-----------------------+---
            FTW, abridged

See: SDM volume 1, sections 10.5.1 (this layout), 8.1.7 (the tag word) and 13.4.2 (XSTATE_BV). Leaves out AVX, and
loading a segment register in protected mode, which takes a descriptor from the guest's tables.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TypeVar

from pykvm.errors import ConfigurationError
from pykvm.kvm import DescriptorTable, Regs, Segment, Sregs
from pykvm.observe.gdbstub.layout import SEGMENTS, TABLES, Register
from pykvm.x86 import cpu_mode, linear_rip

__all__ = ["CpuRegisters", "get_register", "put_register"]

T = TypeVar("T", Regs, Sregs, Segment, DescriptorTable)

ST, ST_SIZE, ST_BYTES, ST_COUNT = 32, 16, 10, 8
XMM, XMM_SIZE = 160, 16
FTW = 4
XSTATE_BV = 512  # which parts of the area hold anything: bit 0 x87, bit 1 SSE
X87_AND_SSE = 0b11

IP_LIMIT = 1 << 16

# Offset and size in the area. FIP and FDP are offset and selector, as 32-bit code has them.
_FIELDS = {
    "fctrl": (0, 2),
    "fstat": (2, 2),
    "fop": (6, 2),
    "fioff": (8, 4),
    "fiseg": (12, 2),
    "fooff": (16, 4),
    "foseg": (20, 2),
    "mxcsr": (24, 4),
}
_VALID, _ZERO, _SPECIAL, _EMPTY = range(4)  # what the tag word says of a register
INTEGER_BIT = 1 << 63
EXPONENT = 0x7FFF

_CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")


@dataclass(frozen=True, slots=True)
class CpuRegisters:
    """All that gdb sees of one CPU; ``xsave`` is its XSAVE area. A change makes a new one."""

    regs: Regs
    sregs: Sregs
    xsave: bytes


def get_register(cpu: CpuRegisters, register: Register) -> bytes:
    """Return ``register`` of ``cpu`` as gdb wants it: little-endian, cut to its size."""
    value = _get(cpu, register.name) & (1 << register.bits) - 1
    return value.to_bytes(register.size, "little")


def put_register(cpu: CpuRegisters, register: Register, data: bytes) -> CpuRegisters:
    """Return ``cpu`` with the little-endian ``data`` in ``register``; the upper part of a wider one becomes 0.

    A value that is there already changes nothing. Raises: ConfigurationError for what cannot be changed so.
    """
    if len(data) != register.size:
        raise ConfigurationError(f"{register.name} has {register.size} bytes, not {len(data)}")
    if get_register(cpu, register) == data:
        return cpu
    return _put(cpu, register.name, int.from_bytes(data, "little"))


# ---- reading ----


def _get(cpu: CpuRegisters, name: str) -> int:
    regs, sregs = cpu.regs, cpu.sregs
    if name in ("eip", "rip"):
        return linear_rip(regs, sregs)
    if name == "eflags":
        return regs.rflags
    if name in SEGMENTS or name in ("ldt", "tr"):
        return _segment(sregs, name).selector
    if name in _CONTROL:
        return int(getattr(sregs, name))
    owner, _, part = name.partition("_")
    if part == "base" and owner in SEGMENTS:
        return _segment(sregs, owner).base
    if owner in TABLES:
        return int(getattr(_table(sregs, owner), part))
    if _in_xsave(name):
        return _get_float(cpu.xsave, name)
    return int(getattr(regs, _wide(name)))


def _get_float(area: bytes, name: str) -> int:
    if name == "ftag":
        return _tag_word(area)
    return int.from_bytes(area[_place(name)], "little")


def _tag_word(area: bytes) -> int:
    """Return two bits a register, by the register's number and not by its place on the stack."""
    top = area[3] >> 3 & 7  # FSW.TOP
    word = 0
    for number in range(ST_COUNT):
        tag = _EMPTY
        if area[FTW] >> number & 1:
            tag = _tag_of(_get_float(area, f"st{(number - top) % ST_COUNT}"))
        word |= tag << 2 * number
    return word


def _tag_of(value: int) -> int:
    exponent = value >> 64 & EXPONENT
    if exponent == EXPONENT:
        return _SPECIAL
    if exponent == 0:
        return _SPECIAL if value & (INTEGER_BIT * 2 - 1) else _ZERO
    return _VALID if value & INTEGER_BIT else _SPECIAL


# ---- writing ----


def _put(cpu: CpuRegisters, name: str, value: int) -> CpuRegisters:
    regs, sregs = cpu.regs, cpu.sregs
    if name in ("eip", "rip"):
        return replace(cpu, regs=_with(regs, "rip", _offset(cpu, value)))
    if name == "eflags":
        return replace(cpu, regs=_with(regs, "rflags", value))
    if name in SEGMENTS:
        return replace(cpu, sregs=_with(sregs, name, _load_segment(cpu, name, value)))
    if name in ("ldt", "tr"):
        raise ConfigurationError(f"{name} is loaded with a descriptor from the guest's GDT: let the guest do it")
    if name in _CONTROL:
        return replace(cpu, sregs=_with(sregs, name, value))
    owner, _, part = name.partition("_")
    if part == "base" and owner in SEGMENTS:
        return replace(cpu, sregs=_with(sregs, owner, _with(_segment(sregs, owner), "base", value)))
    if owner in TABLES:
        return replace(cpu, sregs=_with(sregs, owner, _with(_table(sregs, owner), part, value)))
    if _in_xsave(name):
        return replace(cpu, xsave=_put_float(cpu.xsave, name, value))
    return replace(cpu, regs=_with(regs, _wide(name), value))


def _offset(cpu: CpuRegisters, linear: int) -> int:
    """Return what RIP must be for ``linear`` to come next."""
    mode, base = cpu_mode(cpu.sregs, cpu.regs), cpu.sregs.cs.base
    if mode.width == 64:
        return linear
    offset = (linear - base) % (1 << 32)
    if mode.width == 16 and offset >= IP_LIMIT:
        raise ConfigurationError(f"{linear:#x} is not in the 64 KiB from CS.base {base:#x} on: set $cs first")
    return offset


def _load_segment(cpu: CpuRegisters, name: str, selector: int) -> Segment:
    mode = cpu_mode(cpu.sregs, cpu.regs)
    if mode.name not in ("real mode", "virtual-8086 mode"):
        raise ConfigurationError(f"in {mode.name} {name} is loaded with a descriptor: let the guest do it")
    if selector >= IP_LIMIT:
        raise ConfigurationError(f"{name} has 16 bits, too few for {selector:#x}")
    return replace(_segment(cpu.sregs, name), selector=selector, base=selector << 4)


def _put_float(area: bytes, name: str, value: int) -> bytes:
    new = bytearray(area)
    if name == "ftag":
        new[FTW] = sum(1 << number for number in range(ST_COUNT) if value >> 2 * number & 3 != _EMPTY)
    else:
        place = _place(name)
        new[place] = (value & (1 << 8 * (place.stop - place.start)) - 1).to_bytes(place.stop - place.start, "little")
    new[XSTATE_BV] |= X87_AND_SSE  # else what the area holds would not count
    return bytes(new)


# ---- where things are ----


def _in_xsave(name: str) -> bool:
    return name in _FIELDS or name == "ftag" or name.startswith(("st", "xmm"))


def _place(name: str) -> slice:
    if name in _FIELDS:
        start, size = _FIELDS[name]
        return slice(start, start + size)
    if name.startswith("xmm"):
        start = XMM + XMM_SIZE * int(name[3:])
        return slice(start, start + XMM_SIZE)
    start = ST + ST_SIZE * int(name[2:])
    return slice(start, start + ST_BYTES)


def _with(structure: T, name: str, value: object) -> T:
    new = copy.copy(structure)
    setattr(new, name, value)
    return new


def _segment(sregs: Sregs, name: str) -> Segment:
    segment: Segment = getattr(sregs, name)
    return segment


def _table(sregs: Sregs, name: str) -> DescriptorTable:
    table: DescriptorTable = getattr(sregs, name)
    return table


def _wide(name: str) -> str:
    """Return the name that KVM has for a general register: ``rax`` for ``eax``."""
    return f"r{name[1:]}" if name.startswith("e") else name
