"""A trace of real guests: every exit a line, with the instruction that made it, in every mode."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.boot import find_guest, open_image
from pykvm.kvm import Hlt, IoIn, IoOut, MmioRead, MmioWrite, Shutdown
from pykvm.machine import IrqchipKind
from pykvm.observe import TraceFilter, TraceLine, Tracer
from pykvm.observe.tracing import Coalesced, InterruptTaken
from pykvm.x86 import Mode

pytestmark = pytest.mark.kvm

SNIPPET = """
        .globl  _start
_start: mov     $0x3f8, %dx
        mov     $'A', %al
        out     %al, (%dx)              # line 5
        in      $0x80, %al              # line 6
        out     %al, $0x80              # line 7
        hlt                             # line 8
"""


def trace(
    source: str, mode: str = "real", *, set_up: Callable[[Machine], object] = lambda machine: None, **options: object
) -> list[TraceLine]:
    lines: list[TraceLine] = []
    with Machine(observers=[Tracer(on_line=lines.append)], **options) as machine:  # type: ignore[arg-type]
        set_up(machine)
        machine.load(assemble(source, mode=mode))
        machine.run(30)
    return lines


def places(lines: Sequence[TraceLine]) -> list[str | None]:
    return [None if line.place is None else line.place.text.split()[0] for line in lines]


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_the_instruction_of_every_exit_is_found_with_its_source_line(mode: str) -> None:
    lines = trace(SNIPPET, mode)
    assert [type(line.event) for line in lines] == [IoOut, IoIn, IoOut, Hlt]
    assert places(lines) == ["outb", "inb", "outb", "hlt"]
    numbers = [line.place.source.rpartition(":")[2] for line in lines if line.place is not None]
    assert numbers == ["5", "6", "7", "8"]


def test_string_instructions_are_found_however_many_exits_they_make() -> None:
    source = """
            mov     $5, %cx
            mov     $text, %si
            mov     $0x3f8, %dx
            rep outsb
            hlt
    text:   .ascii  "hello"
    """
    lines = [line for line in trace(source) if isinstance(line.event, IoOut)]
    assert b"".join(line.event.data for line in lines if isinstance(line.event, IoOut)) == b"hello"
    assert {line.place.text for line in lines if line.place is not None} == {"rep outsb (%si), %dx"}


def test_accesses_to_memory_that_is_none_are_found() -> None:
    source = """
            mov     $0xd0000000, %ebx
            movb    $0x5a, 7(%rbx)
            mov     4(%rbx), %eax
            mov     $'x', %r9b
            mov     %r9b, (%rbx)
            hlt
    """
    write, read, other, _ = trace(source, "long")
    assert isinstance(write.event, MmioWrite)
    assert isinstance(read.event, MmioRead)
    assert [line.place.text for line in (write, read, other) if line.place is not None] == [
        *("movb $0x5a, 7(%rbx)", "movl 4(%rbx), %eax", "movb %r9b, (%rbx)")
    ]
    assert read.answer is not None
    assert [line.register for line in (write, read, other)] == ["serial SCR", "serial MCR", "serial THR"]


def test_a_guest_that_rewrites_its_code_is_shown_as_it_is_then() -> None:
    source = """
            .globl  _start
    _start: mov     $2, %ecx
    1:      out     %al, $0x80
    2:      movb    $0x81, 1b + 1
            loop    1b
            hlt
    """
    texts = [line.place.text for line in trace(source, "protected")[:2] if line.place is not None]
    assert texts == ["outb %al, $0x80", "outb %al, $0x81"]


def test_a_triple_fault_is_a_line_without_an_instruction() -> None:
    *_, last = trace("ud2", "long")
    assert (last.event, last.place) == (Shutdown(), None)


def test_page_tables_that_lead_nowhere_are_no_matter_to_the_trace() -> None:
    # The code runs on from the TLB or not, as the host will: what counts is that the trace comes to an end.
    source = """
            mov     %cr3, %rdi
            movq    $0, (%rdi)
            out     %al, $0x80
            mov     %cr3, %rax
            mov     %rax, %cr3
            hlt
    """
    assert trace(source, "long")


def test_interrupts_and_their_numbers() -> None:
    guest = find_guest("15-timer")
    assert guest is not None
    lines: list[TraceLine] = []
    only = TraceFilter(["interrupt"])
    with Machine(irqchip=guest.irqchip, observers=[Tracer(on_line=lines.append, only=only)]) as machine:
        machine.load(open_image(guest.image, name=guest.name, mode=Mode(guest.mode)))
        machine.run(30)
    assert {line.event for line in lines} == {InterruptTaken(0x20)}
    assert {line.number for line in lines} == {None}


def test_writes_that_kvm_kept_back_are_lines_of_their_own() -> None:
    source = "mov $3, %cx; 1: out %al, $0x80; loop 1b; in $0x80, %al; hlt"
    lines = trace(source, set_up=lambda machine: machine.coalesce(0x80, 1, pio=True))
    kinds = [type(line.event) for line in lines]
    assert kinds == [Coalesced, Coalesced, Coalesced, IoIn, Hlt]
    assert [line.number for line in lines] == [None, None, None, 1, 2]
    assert lines[0].register == "POST code"


def test_msr_accesses_and_what_they_are_answered() -> None:
    source = "mov $0x1234, %ecx; rdmsr; wrmsr; hlt"
    lines = trace(source, "long", set_up=lambda machine: machine.msr.store(0x1234, 0x55))
    assert places(lines) == ["rdmsr", "wrmsr", "hlt"]
    assert lines[0].answer == bytes([0x55, *bytes(7)])


def test_two_cpus_have_their_own_lines() -> None:
    guest = find_guest("19-second-cpu")
    assert guest is not None
    lines: list[TraceLine] = []
    with Machine(irqchip=IrqchipKind.KERNEL, cpus=2, observers=[Tracer(on_line=lines.append)]) as machine:
        machine.load(open_image(guest.image, name=guest.name, mode=Mode(guest.mode)))
        machine.run(30)
    assert {line.cpu for line in lines} == {0, 1}
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert all(line.time >= line.resumed for line in lines)


def test_a_tracer_comes_and_goes_between_runs() -> None:
    lines: list[TraceLine] = []
    tracer = Tracer(on_line=lines.append)
    with Machine() as machine:
        counts = []
        for watch in (False, True, False):
            if watch:
                machine.add_observer(tracer)
            else:
                machine.remove_observer(tracer)
            machine.load(assemble(SNIPPET))
            machine.run(30)
            counts.append(len(lines))
    assert counts == [0, 4, 4]
    assert lines[0].place is not None


@pytest.mark.parametrize("format", ["text", "jsonl", "perfetto"])
def test_a_run_that_times_out_leaves_a_whole_trace(format: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Tracer(path, format=format) as tracer, Machine(observers=[tracer]) as machine:
        machine.load(assemble("1: out %al, $0x80; jmp 1b"))
        machine.run(0.05)
    text = path.read_text()
    if format == "perfetto":
        assert json.loads(text)[-1]["name"] == "stopped: time limit of 0.05 s"
    elif format == "jsonl":
        assert json.loads(text.splitlines()[-1])["stop"] == "time limit of 0.05 s"
    else:
        assert re.match(r"stopped: time limit of 0.05 s after \d+ exits, ", text.splitlines()[-1])


@pytest.mark.parametrize("name", ["02-hello-real", "04-string-io", "05-mmio", "08-long-mode", "10-ring3", "15-timer"])
def test_every_access_of_a_bundled_guest_has_its_instruction(name: str) -> None:
    guest = find_guest(name)
    assert guest is not None
    lines: list[TraceLine] = []
    with Machine(guest.memory, irqchip=guest.irqchip, observers=[Tracer(on_line=lines.append)]) as machine:
        machine.load(open_image(guest.image, name=guest.name, mode=Mode(guest.mode)), ring=guest.ring)
        machine.run(30)
    accesses = [line for line in lines if isinstance(line.event, IoIn | IoOut | MmioRead | MmioWrite | Hlt)]
    assert accesses
    assert [line for line in accesses if line.place is None] == []
    assert all(line.place is not None and ".S:" in line.place.source for line in accesses)
