"""The registers as rows: a ``*`` in front of what changed since the guest last stood still, flags by name.

16-bit and 32-bit code see eight registers of 32 bits; in 64-bit code there are sixteen of 64. Leaves out x87, SSE and
model-specific registers.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag
from operator import attrgetter

from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.rows import Kind, Piece, Row, row
from pykvm.kvm import Regs, Sregs
from pykvm.x86 import Cr0, Cr4, Efer, Rflags, describe

__all__ = ["register_rows"]

NARROW = (("rax", "rbx"), ("rcx", "rdx"), ("rsi", "rdi"), ("rbp", "rsp"))
WIDE = (*NARROW, ("r8", "r9"), ("r10", "r11"), ("r12", "r13"), ("r14", "r15"))
SEGMENTS = (("cs", "ds", "es"), ("ss", "fs", "gs"))
CONTROL: tuple[tuple[str, type[Flag] | None], ...] = (
    ("cr0", Cr0),
    ("cr2", None),
    ("cr3", None),
    ("cr4", Cr4),
    ("efer", Efer),
)
TABLES = ("gdt", "idt")


def register_rows(look: Look) -> list[Row]:
    """Return all registers of ``look``, those that change most on top."""
    return [
        *(_general(look, names) for names in (WIDE if look.mode.width == 64 else NARROW)),
        _general(look, ("rip",)),
        *_flags(look),
        *(_segments(look, names) for names in SEGMENTS),
        *(_control(look, name, kind) for name, kind in CONTROL),
        *(_table(look, name) for name in TABLES),
        row(f" {look.mode}", Kind.FAINT),
    ]


def _general(look: Look, names: tuple[str, ...]) -> Row:
    return tuple(_register(look, name) for name in names)


def _register(look: Look, name: str) -> Piece:
    value: int = getattr(look.regs, name)
    # What 32-bit code cannot see is not shown, unless something is there.
    if look.mode.width == 64 or value >> 32:
        text = f"{name:<4}{value:016x}"
    else:
        text = f"{name.replace('r', 'e', 1):<4}{value:08x}"
    return _marked(look, f"{text} ", lambda regs, sregs: getattr(regs, name))


def _flags(look: Look) -> list[Row]:
    value = look.regs.rflags
    earlier = value if look.earlier is None else look.earlier[0].rflags
    turned = [f"{'+' if value & flag.value else '-'}{flag.name}" for flag in Rflags if (value ^ earlier) & flag.value]
    return [
        (_marked(look, f"flags {value:x} {describe(Rflags, value)}", lambda regs, sregs: regs.rflags),),
        row(f"  turned {' '.join(turned)}", Kind.CHANGED) if turned else row(""),  # what is below stays in its place
    ]


def _segments(look: Look, names: tuple[str, ...]) -> Row:
    """Return selectors, and the bases of those that are not what the selector says in real mode, or 0 elsewhere."""
    return tuple(
        _marked(look, f"{name} {getattr(look.sregs, name).selector:04x}{_base(look, name)} ", _segment_getter(name))
        for name in names
    )


def _base(look: Look, name: str) -> str:
    segment = getattr(look.sregs, name)
    usual = segment.selector << 4 if look.mode.name == "real mode" else 0
    return "" if segment.base == usual else f"@{segment.base:x}"


def _segment_getter(name: str) -> Callable[[Regs, Sregs], object]:
    get = attrgetter(f"{name}.selector", f"{name}.base")
    return lambda regs, sregs: get(sregs)


def _control(look: Look, name: str, kind: type[Flag] | None) -> Row:
    value: int = getattr(look.sregs, name)
    flags = "" if kind is None else f" {describe(kind, value)}"
    return (_marked(look, f"{name:<4} {value:x}{flags}", lambda regs, sregs: getattr(sregs, name)),)


def _table(look: Look, name: str) -> Row:
    table = getattr(look.sregs, name)
    return (_marked(look, f"{name:<4} {table.base:x} limit {table.limit:x}", lambda regs, sregs: getattr(sregs, name)),)


def _marked(look: Look, text: str, get: Callable[[Regs, Sregs], object]) -> Piece:
    has_changed = look.earlier is not None and get(*look.earlier) != get(look.regs, look.sregs)
    return (f"*{text}", Kind.CHANGED) if has_changed else (f" {text}", Kind.TEXT)
