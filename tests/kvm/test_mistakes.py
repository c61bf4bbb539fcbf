"""Deliberate mistakes, each a guest of guests/mistakes: the report names the true cause."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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


def options_of(path: Path) -> list[str]:
    """Return the options that the source's header names."""
    for line in path.read_text().partition("*/")[0].splitlines():
        label, _, value = line.strip(" *").partition(":")
        if label == "Options":
            return shlex.split(value)
    return []


def run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pykvm.cli.main", "run", str(path), "--timeout", "10", *options_of(path), *options]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60)


def words_of(report: str) -> str:
    """Return a report without the line breaks inside its texts."""
    return " ".join(report.split())


@pytest.mark.parametrize("name", MISTAKES)
def test_the_report_names_the_true_cause(name: str) -> None:
    status, first, causes = MISTAKES[name]
    ran = run(FOLDER / f"{name}.S")
    assert ran.returncode == status, ran.stderr
    report = words_of(ran.stderr)
    assert f"what happened {first}" in report if first else "what happened" not in report
    for cause in causes:
        assert cause in report


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_missing_eoi_is_seen_in_every_arrangement_of_controllers(irqchip: str) -> None:
    ran = run(FOLDER / "no-eoi.S", "--irqchip", irqchip)
    assert "still in service in the master 8259A (vector 0x20)" in words_of(ran.stderr)


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_hlt_without_sti_is_remarked_on_in_every_arrangement(irqchip: str) -> None:
    ran = run(FOLDER / "hlt-without-sti.S", "--irqchip", irqchip)
    assert ran.returncode == 0
    assert "sti must come before" in words_of(ran.stderr)


def test_every_mistake_has_a_test_and_a_section_in_the_book() -> None:
    assert {path.stem for path in FOLDER.glob("*.S")} == set(MISTAKES)
    text = PAGE.read_text()
    assert all(f"guests/mistakes/{name}.S" in text for name in MISTAKES)
