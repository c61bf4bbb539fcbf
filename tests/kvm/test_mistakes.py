"""Deliberate mistakes, each a guest of guests/mistakes: the report names the true cause."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from pykvm import Machine, RunResult
from pykvm.boot import find_guest, open_image
from pykvm.machine import Crashed, Halted
from pykvm.testing import Guests

FOLDER = Path(__file__).parent.parent.parent / "guests" / "mistakes"
PAGE = FOLDER.parent.parent / "docs" / "book" / "mistakes.md"

# By guest: the status, what the report's first words are, and what it must say in them or in the likely cause.
MISTAKES: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "no-idt": (125, "triple fault: #DE (divide error)", ("a division by 0", "no IDT was loaded")),
    "short-idt": (
        125,
        "triple fault: #UD (invalid opcode)",
        ("IDTR's limit is 0x1f, and vector 6 needs bytes 0x60 to 0x6f",),
    ),
    "gate-not-present": (
        125,
        "triple fault: #UD (invalid opcode)",
        ("gate 6 of the IDT is not present (P = 0)", "gate 8 of the IDT is not present"),
    ),
    "wrong-selector": (
        125,
        "triple fault: #UD (invalid opcode)",
        ("gate 6 of the IDT has selector 0x40: GDT ends at byte 0x3f",),
    ),
    "no-stack": (125, "triple fault: #PF (page fault)", ("the stack is not usable: RSP is 0x8000000000",)),
    "page-not-present": (
        125,
        "triple fault: #PF (page fault) with error code 0x2",
        ("a page fault (#PF) at 0x8000000000", "PML4[1] is not present"),
    ),
    "reserved-bit": (
        125,
        "triple fault: #PF (page fault) with error code 0x9",
        ("PML4[1] has reserved bits set: 0x80",),
    ),
    "no-execute": (
        125,
        "triple fault: #PF (page fault) with error code 0x11",
        ("RIP points to an address that may not be executed: PML4[1] has NX = 1",),
    ),
    "read-only": (
        125,
        "triple fault: #PF (page fault) with error code 0x3",
        ("PML4[1] has W = 0, so the page is read-only, which CR0.WP = 1 makes ring 0 obey",),
    ),
    "not-canonical": (
        125,
        "triple fault: #GP (general protection)",
        ("the address 0x800000000000 is not canonical: bits 63 to 47 must be equal",),
    ),
    "no-long-mode": (
        125,
        "triple fault: #GP (general protection)",
        ("with EFER.LME = 0 this begins PAE paging, not long mode",),
    ),
    "jump-to-data": (
        125,
        "triple fault: #GP (general protection) with error code 0x10",
        ("selector 0x10 is data, not code",),
    ),
    "privileged": (125, "triple fault: #GP (general protection)", ("hlt is for ring 0 only, and this is ring 3",)),
    "jump-to-nowhere": (
        125,
        "KVM could not read an instruction at RIP",
        ("RIP points to guest-physical 0xe0000000, where there is no memory",),
    ),
    "no-eoi": (
        124,
        "the guest was still running",
        ("still in service in the master 8259A (vector 0x20)", "without an EOI"),
    ),
    "hlt-without-sti": (0, "", ("RFLAGS.IF is 0", "vector 0x20 (master 8259A)", "sti must come before")),
    "no-sipi": (124, "the guest was still running", ("CPU 1 never started (waits for SIPI)", "INIT, then SIPI")),
    "endless-loop": (
        124,
        "the guest was still running",
        ("a loop of 3 instructions, 0x100000 to 0x10000a", "je 0x100000"),
    ),
}


def options_of(path: Path) -> dict[str, Any]:
    """Return what the options that the source's header names are to a Machine, its ``load`` and its ``run``."""
    given = next((line for line in path.read_text().splitlines() if line.startswith(" * Options:")), "")
    words = shlex.split(given.partition(":")[2])
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def run(name: str, **options: str) -> RunResult:
    path = FOLDER / f"{name}.S"
    chosen = options_of(path) | options
    with Machine("16M", irqchip=chosen.get("irqchip", "none"), cpus=int(chosen.get("cpus", 1))) as machine:
        machine.load(open_image(path), ring=int(chosen.get("ring", 0)))
        return machine.run(float(chosen.get("timeout", 10)))


def words_of(report: str) -> str:
    """Return a report without the line breaks inside its texts."""
    return " ".join(report.split())


@pytest.mark.parametrize("name", MISTAKES)
def test_the_report_names_the_true_cause(name: str) -> None:
    status, first, causes = MISTAKES[name]
    result = run(name)
    report = words_of(result.report or result.note)
    assert result.status == status, report
    assert f"what happened {first}" in report if first else "what happened" not in report
    for cause in causes:
        assert cause in report


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_missing_eoi_is_seen_in_every_arrangement_of_controllers(irqchip: str) -> None:
    assert "still in service in the master 8259A (vector 0x20)" in words_of(run("no-eoi", irqchip=irqchip).report)


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_hlt_without_sti_is_remarked_on_in_every_arrangement(irqchip: str) -> None:
    result = run("hlt-without-sti", irqchip=irqchip)
    assert result.status == 0
    assert "sti must come before" in result.note


def test_a_guest_that_has_taken_its_interrupts_may_halt_for_good(guest: Guests) -> None:
    bundled = find_guest("28-scheduler")
    assert bundled is not None
    result = guest(open_image(bundled.image), mode="long", irqchip="user", memory=bundled.memory, timeout=10)
    assert isinstance(result.stop, Halted)
    assert result.run.note == ""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("movabs $0x8000000000, %rbx; jmp *%rbx", "that the page tables do not map: PML4[1] is not present"),
        ("movabs $0x800000000000, %rbx; jmp *%rbx", "the target of the jump is 0x800000000000"),
        ("mov $0x10, %eax; ltr %ax", "selector 0x10 is data, not a free TSS"),
        ("mov $0x100, %eax; mov %eax, %ds", "GDT ends at byte 0x3f, and selector 0x100 needs 0x100 to 0x107"),
        ("mov $0x80000000, %eax; mov %rax, %cr0", "CR0.PG = 1 with CR0.PE = 0"),
        ("mov %cr4, %rax; btr $5, %rax; mov %rax, %cr4", "CR4.PAE = 0 in long mode"),
        ("movabs $0x800000000100, %rsp; push %rax", "the stack pointer 0x8000000000f8 is not canonical"),
    ],
)
def test_other_ways_to_crash_are_explained_too(guest: Guests, code: str, words: str) -> None:
    result = guest(code, mode="long", timeout=10)
    assert isinstance(result.stop, Crashed)
    assert words in words_of(result.run.report)


def test_every_mistake_has_a_test_and_a_section_in_the_book() -> None:
    assert {path.stem for path in FOLDER.glob("*.S")} == set(MISTAKES)
    text = PAGE.read_text()
    assert all(f"guests/mistakes/{name}.S" in text for name in MISTAKES)
