"""What a step did, in words."""

from __future__ import annotations

from dataclasses import replace

from pykvm.kvm import DescriptorTable, IoOut, Regs, Sregs
from pykvm.machine.diary import MemoryChange
from pykvm.observe.stepping.step import Event, EventKind, Step
from pykvm.observe.stepping.words import effects
from pykvm.units import Gpa
from pykvm.x86 import code_segment

BEFORE = Regs(), Sregs()


def step(after: tuple[Regs, Sregs] = BEFORE, **more: object) -> Step:
    return Step(1, 0, 0, None, BEFORE, after, **more)  # type: ignore[arg-type]


def test_nothing_is_nothing() -> None:
    assert effects(step()) == []
    assert effects(step((replace(BEFORE[0], rip=5), BEFORE[1]))) == [], "the next step shows RIP"


def test_registers_are_shown_before_and_after_and_flags_by_name() -> None:
    regs = replace(BEFORE[0], rax=5, rflags=0x46)
    sregs = replace(BEFORE[1], cr0=0x8000_0001, efer=0x500)
    assert effects(step((regs, sregs))) == [
        "rax 0x0 -> 0x5",
        "rflags 0x2 -> 0x46 [ZF PF]",
        "cr0 0x0 -> 0x80000001 [PG PE]",
        "efer 0x0 -> 0x500 [LMA LME]",
    ]


def test_segments_and_tables() -> None:
    sregs = replace(BEFORE[1], cs=code_segment(64, selector=8), idt=DescriptorTable(base=0x1000, limit=0xFFF))
    assert effects(step((BEFORE[0], sregs))) == [
        "cs 0x0 -> 0x8 base 0x0 limit 0xffffffff",
        "idt base 0x1000 limit 0xfff",
    ]


def test_memory_exits_and_events() -> None:
    change = MemoryChange(Gpa(0x7000), b"\0\0", b"\x34\x12")
    events = Event(EventKind.EXCEPTION, 6), Event(EventKind.INTERRUPT, 0x20), Event(EventKind.EXCEPTION, None)
    found = effects(step(changes=(change,), exits=(IoOut(0x3F8, 1, 1, b"H"),), events=events))
    assert found == [
        "exception 0x6 #UD (invalid opcode)",
        "interrupt 0x20",
        "exception ?",
        "[0x7000] 00 00 -> 34 12",
        "io out 0x3f8 'H'",
    ]


def test_what_is_endless_is_cut_short() -> None:
    change = MemoryChange(Gpa(0), bytes(4096), b"\xff" * 4096)
    found = effects(step(changes=(change,) * 100, exits=(IoOut(0x80, 1, 1, b"\0"),) * 3000))
    assert len(found) < 20
    assert max(map(len, found)) < 150
    assert "and 92 more changes of memory" in found
