"""Guests that mean harm: whatever they do, the run ends within its time limit and the host stays as it was."""

from __future__ import annotations

import pytest

from pykvm import assemble
from pykvm.machine import TimedOut
from pykvm.testing import Guests
from pykvm.units import MiB

LIMIT = 0.5  # seconds

HOSTILE = {
    "writes to the debug exit for ever": "mov $-1, %rcx; mov $0xf4, %dx; mov $0x200000, %esi; rep outsb",
    "reads a port for ever": "mov $-1, %rcx; mov $0x60, %dx; mov $0x200000, %edi; rep insb",
    "prints for ever": "mov $0x3f8, %dx; 1: out %al, (%dx); jmp 1b",
    "prints by rep outsb for ever": "1: mov $0x10000, %ecx; mov $0x3f8, %dx; mov $0x200000, %esi; rep outsb; jmp 1b",
    "reads every MMIO address": "mov $0xc0000000, %ebx; 1: mov (%rbx), %eax; add $8, %rbx; jmp 1b",
    "reads every port": "xor %edx, %edx; 1: in (%dx), %al; inc %dx; jmp 1b",
    "copies a device onto itself": "mov $0xd0000000, %esi; mov %esi, %edi; mov $-1, %rcx; rep movsb",
    "runs into a device": "mov $0xd0000000, %eax; jmp *%rax",
    "overflows its stack": "1: push %rax; jmp 1b",
    "loads garbage into CR3": "mov $0xdeadb000, %eax; mov %rax, %cr3; nop",
    "calls the hypervisor": "vmcall; hlt",
    "calls the hypervisor in AMD's way": "vmmcall; hlt",
    "locks a device": "mov $0xd0000000, %ebx; lock cmpxchg8b (%rbx); hlt",
    "straddles the end of RAM": "mov $0xfffffe, %ebx; mov (%rbx), %rax; mov %rax, (%rbx); hlt",
    "straddles both ends of a device": "mov $0xd0000006, %ebx; mov (%rbx), %rax; mov %rax, -7(%rbx); hlt",
    "straddles the end of the ports": "mov $0xffff, %dx; in (%dx), %eax; out %eax, (%dx); hlt",
    "moves its APIC": "mov $0x1b, %ecx; rdmsr; or $0xc00, %eax; wrmsr; hlt",
    "divides by zero": "xor %ecx, %ecx; div %ecx",
    "disables its FPU and everything": "xor %eax, %eax; mov %rax, %cr0; hlt",
    "halts with interrupts on": "sti; hlt; jmp .",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_run_ends_and_can_be_reported(guest: Guests, source: str) -> None:
    machine = guest.machine()
    machine.load(assemble(source), mode="long")
    result = machine.run(LIMIT)
    assert machine.result(TimedOut(LIMIT)).report
    assert result.status in {0, 1, 124, 125}
    assert len(result.serial.data) <= MiB


@pytest.mark.parametrize("code", [b"\xcc\xf4", b"\xea\xff\xff\xff\xff", b"\x0f\x0b", bytes(64)], ids=bytes.hex)
def test_a_wild_real_mode_guest_ends(guest: Guests, code: bytes) -> None:
    assert guest(code, timeout=LIMIT, memory="1M").run.status in {0, 124, 125}


def test_an_instruction_without_end_does_not_hold_up_a_stop(guest: Guests) -> None:
    result = guest("mov $-1, %rcx; mov $0xf4, %dx; mov $0x200000, %esi; rep outsb", mode="long", timeout=LIMIT)
    assert result.exit_code == 1
