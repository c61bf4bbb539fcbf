"""What a step did, in words: which registers changed and how, memory, exits, and what the CPU took instead.

    rax 0x0 -> 0x5    rflags 0x2 -> 0x46 [ZF PF]    [0x7bfe] 00 00 -> 34 12    io out 0x3f8 'H'    interrupt 0x20

RIP is left out, for the next step shows it. Leaves out columns and symbols: see ``pykvm.cli.step``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from pykvm.kvm import Regs, Segment, Sregs
from pykvm.kvm.structs import DescriptorTable
from pykvm.machine import describe_exit
from pykvm.machine.diary import MemoryChange
from pykvm.observe.stepping.step import Step
from pykvm.x86 import Cr0, Cr4, Efer, Rflags, describe, vector_name

__all__ = ["effects"]

FLAGS = {"rflags": Rflags, "cr0": Cr0, "cr4": Cr4, "efer": Efer}
NOT_SHOWN = ("rip", "interrupt_bitmap")
MOST_BYTES = 16  # of one change
MOST_CHANGES = 8
MOST_EXITS = 4


def effects(step: Step) -> list[str]:
    """Return what ``step`` did, one thing each; what is endless is cut short."""
    (regs, sregs), (new_regs, new_sregs) = step.before, step.after
    return [
        *_events(step),
        *_registers(regs, new_regs),
        *_registers(sregs, new_sregs),
        *_some([_change(change) for change in step.changes], MOST_CHANGES, "changes of memory"),
        *_some([describe_exit(exit) for exit in step.exits], MOST_EXITS, "exits"),
    ]


def _events(step: Step) -> Iterator[str]:
    for event in step.events:
        name = "" if event.vector is None or event.vector >= 32 else f" {vector_name(event.vector)}"
        yield f"{event}{name}"


def _registers(old: Regs | Sregs, new: Regs | Sregs) -> Iterator[str]:
    if old is new:
        return
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and field.name not in NOT_SHOWN:
            yield _register(field.name, before, after)


def _register(name: str, before: object, after: object) -> str:
    match before, after:
        case Segment(), Segment():
            return f"{name} {before.selector:#x} -> {after.selector:#x} base {after.base:#x} limit {after.limit:#x}"
        case DescriptorTable(), DescriptorTable():
            return f"{name} base {after.base:#x} limit {after.limit:#x}"
        case int(), int():
            flags = f" {describe(FLAGS[name], after)}" if name in FLAGS else ""
            return f"{name} {before:#x} -> {after:#x}{flags}"
    return f"{name} {after}"


def _change(change: MemoryChange) -> str:
    old, new = change.old[:MOST_BYTES], change.new[:MOST_BYTES]
    more = f" ... {len(change.new)} bytes" if len(change.new) > MOST_BYTES else ""
    return f"[{change.gpa:#x}] {old.hex(' ')} -> {new.hex(' ')}{more}"


def _some(texts: list[str], most: int, what: str) -> list[str]:
    return texts if len(texts) <= most else [*texts[:most], f"and {len(texts) - most} more {what}"]
