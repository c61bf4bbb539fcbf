"""Guests that mean harm to the devices: at random, from all CPUs at once, by storms of interrupts, or by sleeping.

Whatever they do, the run ends by what a guest may do or at its time limit, and the machine can be looked at afterwards.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import Machine, assemble
from pykvm.boot import Image
from pykvm.machine import (
    Crashed,
    DebugExitWritten,
    Halted,
    PoweredOff,
    ResetRequested,
    RunResult,
    TimedOut,
)
from pykvm.testing import Guests
from pykvm.units import Gpa, MiB

IRQCHIPS = ["none", "user", "kernel", "split"]
WITH_APIC = ["kernel", "split"]
LIMIT = 0.15  # seconds
A_GUESTS_DOING = (Crashed, DebugExitWritten, Halted, PoweredOff, ResetRequested, TimedOut)
PROGRAM = Gpa(0x200000)  # where a random program goes in long mode
REAL_PROGRAM = Gpa(0x8000)
REAL_HANDLER = 0x7000

# Where the devices are: (first port, how many).
PORTS = [
    *((0x20, 2), (0xA0, 2), (0x4D0, 2), (0x40, 4), (0x60, 5), (0x70, 2), (0x80, 1), (0x92, 1), (0xB2, 2), (0xE0, 8)),
    *((0xE9, 1), (0xF4, 4), (0x3C0, 32), (0x3F8, 8), (0x510, 12), (0x5E0, 8), (0x600, 12), (0xCF8, 8), (0x2000, 24)),
]
WINDOWS = [0xB8000, 0xD000_0000, 0xFEC0_0000, 0xFED0_0000, 0xFEE0_0000, 0xFF00_0000]

# Every CPU goes to PROGRAM with a stack of its own and an IDT whose handlers end interrupts and return.
SEVERAL = """
        .include "layout.inc"
        .include "apic.inc"
        .include "pic.inc"
        .include "smp.inc"
        .include "idt64.inc"
        .globl  _start
_start:
        mov     $256, %ecx
        mov     $idt, %ebx
fill:
        mov     $handler, %eax
        mov     %ax, (%rbx)
        movw    $KERNEL_CODE, 2(%rbx)
        movw    $GATE_INTERRUPT << 8, 4(%rbx)
        shr     $16, %eax
        mov     %eax, 6(%rbx)
        add     $16, %ebx
        loop    fill
        {start}
        xor     %edi, %edi
        jmp     work
other_cpu:
        mov     $1, %edi
        lock xadd %edi, arrived
work:
        mov     %edi, %eax
        shl     $10, %eax
        lea     stacks + 1024(%rax), %esp
        lidt    pointer
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)
        movl    $LVT_EXTINT, LAPIC_LVT_LINT0(%rbx)
        {work}
        mov     $0x200000, %eax
        jmp     *%rax
handler:
        push    %rax
        mov     $OCW2_EOI, %al
        out     %al, $PIC2_COMMAND
        out     %al, $PIC1_COMMAND
        mov     $0x0c, %al                      # the clock's register C: reading it lowers its line
        out     %al, $0x70
        in      $0x71, %al
        lapic_eoi
        pop     %rax
        iretq
        define_trampoline trampoline, other_cpu
arrived:
        .long   1
pointer:
        .word   16 * 256 - 1
        .quad   idt
        .bss
        .balign 16
idt:    .skip   16 * 256
stacks: .skip   5 * 1024
"""


@functools.cache
def image(work: str = "", cpus: int = 1) -> Image:
    start = "start_other_cpus trampoline" if cpus > 1 else ""
    return assemble(SEVERAL.replace("{start}", start).replace("{work}", work), mode="long")


# ---- random programs, as machine code: an operation is (prefix and opcode by width) on a port or an address ----


def little(value: int, size: int) -> bytes:
    return (value % (1 << 8 * size)).to_bytes(size, "little")


def port_access(bits: int, port: int, width: int, value: int, write: bool) -> bytes:
    """mov $port, %dx; mov $value, %eax; in or out"""
    native = 2 if bits == 16 else 4
    prefix = b"\x66" if width in {2, 4} and width != native else b""
    load = (b"\xba" + little(port, native)) + (b"\x66" if bits == 16 else b"") + b"\xb8" + little(value, 4)
    opcode = (0xEE if write else 0xEC) + (width > 1)
    return load + prefix + bytes([opcode])


def memory_access(address: int, width: int, value: int, write: bool) -> bytes:
    """mov $address, %ebx; mov $value, %rax; mov %rax, (%rbx) or the other way round"""
    prefix = {1: b"", 2: b"\x66", 4: b"", 8: b"\x48"}[width]
    opcode = (0x88 if write else 0x8A) + (width > 1)
    return b"\xbb" + little(address, 4) + b"\x48\xb8" + little(value, 8) + prefix + bytes([opcode, 0x03])


def screen_access(offset: int, width: int, value: int, write: bool) -> bytes:
    """mov $0xb800, %ax; mov %ax, %fs; mov $offset, %bx; mov $value, %ax; mov %ax, %fs:(%bx), or the other way round"""
    prefix = b"\x66" if width == 4 else b""
    opcode = (0x88 if write else 0x8A) + (width > 1)
    load = b"\xb8\x00\xb8\x8e\xe0\xbb" + little(offset, 2) + b"\x66\xb8" + little(value, 4)
    return load + b"\x64" + prefix + bytes([opcode, 0x07])


def string_access(bits: int, port: int, count: int, width: int, write: bool) -> bytes:
    """rep ins or outs, to or from address 0x6000"""
    native = 2 if bits == 16 else 4
    registers = b"".join(
        bytes([opcode]) + little(value, native) for opcode, value in ((0xBA, port), (0xB9, count), (0xBF, 0x6000))
    )
    registers += b"\xbe" + little(0x6000, native)
    prefix = b"\x66" if width in {2, 4} and width != native else b""
    return registers + b"\xf3" + prefix + bytes([(0x6E if write else 0x6C) + (width > 1)])


values = st.one_of(
    st.sampled_from([0, 1, 2, 0xFF, 0x11, 0x20, 0x34, 0x2000, 0x2400, 0x8000_0000, 0xFFFF_FFFF, 1 << 63]),
    st.integers(0, (1 << 64) - 1),
)
ports = st.one_of(
    st.sampled_from([port for first, count in PORTS for port in range(first, first + count)]),
    st.integers(0, 0xFFFF),
)
addresses = st.one_of(
    *(st.integers(base - 7, base + 0x400) for base in WINDOWS),
    st.integers(0xC000_0000, 0xFFFF_FFF0),
)
string_accesses = (ports, st.integers(0, 40), st.sampled_from([1, 2, 4]), st.booleans())
plain = st.sampled_from([b"\xfb", b"\xfa", b"\xfb\xf4", b"\x90", b"\xf3\x90"])  # sti; cli; sti and hlt; nop; pause


def port_accesses(bits: int) -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.builds(port_access, st.just(bits), ports, st.sampled_from([1, 2, 4]), values, st.booleans()),
        st.builds(string_access, st.just(bits), *string_accesses),
        plain,
    )


long_mode_operations = st.one_of(
    port_accesses(64),
    st.builds(memory_access, addresses, st.sampled_from([1, 2, 4, 8]), values, st.booleans()),
)
real_mode_operations = st.one_of(
    port_accesses(16),
    st.builds(screen_access, st.integers(0, 0xFFFF), st.sampled_from([1, 2, 4]), values, st.booleans()),
)
few = settings(max_examples=12)


def check(machine: Machine, result: RunResult) -> None:
    """The run ended by the guest's doing or in time, and everything about it can be asked for."""
    assert isinstance(result.stop, A_GUESTS_DOING)
    assert len(result.cpus) == len(machine.vcpus)
    assert len(result.serial.data) <= MiB
    assert machine.result(TimedOut(LIMIT)).report
    assert len(machine.screen.text().splitlines()) <= 50
    machine.screen.snapshot()
    assert isinstance(machine.run(0.02).stop, A_GUESTS_DOING), "and it can go on"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@few
@given(operations=st.lists(real_mode_operations, min_size=1, max_size=60))
def test_random_accesses_in_real_mode(irqchip: str, operations: list[bytes]) -> None:
    with Machine("1M", irqchip=irqchip, devices=["testdev", "doorbell"]) as machine:
        machine.load(b"".join(operations) + b"\xf4")
        machine.memory.write(Gpa(0), little(REAL_HANDLER, 4) * 256)
        machine.memory.write(Gpa(REAL_HANDLER), bytes.fromhex("50 b0 20 e6 20 e6 a0 58 cf"))  # EOI to both 8259A; iret
        check(machine, machine.run(LIMIT))


def load(machine: Machine, operations: list[bytes], work: str = "") -> None:
    machine.load(image(work, len(machine.vcpus)))
    machine.memory.write(PROGRAM, b"".join(operations) + b"\xf4")


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@few
@given(operations=st.lists(long_mode_operations, min_size=1, max_size=60))
def test_random_accesses_in_long_mode(irqchip: str, operations: list[bytes]) -> None:
    with Machine("4M", irqchip=irqchip, devices=["testdev", "doorbell"]) as machine:
        load(machine, operations)
        check(machine, machine.run(LIMIT))


@pytest.mark.parametrize("irqchip", WITH_APIC)
@settings(few, max_examples=6)
@given(operations=st.lists(long_mode_operations, min_size=1, max_size=60))
def test_random_accesses_by_all_cpus_at_once(irqchip: str, operations: list[bytes]) -> None:
    with Machine("4M", irqchip=irqchip, cpus=4, devices=["testdev", "doorbell"]) as machine:
        load(machine, operations)
        check(machine, machine.run(LIMIT))


# ---- storms ----

PIT = "mov ${mode}, %al; out %al, $0x43; mov ${count}, %al; out %al, $0x40; mov $0, %al; out %al, $0x40; "
INIT_PIC = "pic_init 0, 0; "
STORMS = {
    "the 8254 at its highest rate": INIT_PIC + PIT.format(mode=0x34, count=2),
    "the 8254 at a rate that it does not have": INIT_PIC + PIT.format(mode=0x34, count=1),
    "the 8254's square wave": INIT_PIC + PIT.format(mode=0x36, count=2),
    "the clock's 8192 Hz": INIT_PIC
    + "mov $0x0a, %al; out %al, $0x70; mov $0x23, %al; out %al, $0x71; "
    + "mov $0x0b, %al; out %al, $0x70; mov $0x42, %al; out %al, $0x71; ",
    "the serial port's empty transmitter": INIT_PIC
    + "mov $0x3fc, %dx; mov $0x0b, %al; out %al, (%dx); mov $0x3f9, %dx; mov $0x0f, %al; out %al, (%dx); "
    + "mov $0x4d0, %dx; mov $0x10, %al; out %al, (%dx); ",
}
LAPIC_STORM = (
    "movl $DIVIDE_BY_1, LAPIC_TIMER_DIVIDE(%rbx); movl $LVT_PERIODIC | 0x40, LAPIC_LVT_TIMER(%rbx); "
    "movl $1, LAPIC_TIMER_INITIAL(%rbx); "
)
SELF_STORM = "movl $ICR_ALL | 0x41, LAPIC_ICR_LOW(%rbx); "
WAITS = {"spinning": b"\xfb\xeb\xfe", "halted": b"\xfb\xf4\xeb\xfd", "reading the timer": b"\xfb\xe4\x40\xeb\xfc"}


@pytest.mark.parametrize("irqchip", ["user", "kernel", "split"])
@pytest.mark.parametrize("storm", STORMS.values(), ids=STORMS.keys())
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_a_storm_of_interrupts_does_not_hold_up_the_time_limit(
    guest: Guests, irqchip: str, storm: str, wait: bytes
) -> None:
    machine = guest.machine("4M", irqchip=irqchip)
    load(machine, [wait], storm)
    result = machine.run(LIMIT)
    assert result.stop == TimedOut(LIMIT)
    check(machine, result)


@pytest.mark.parametrize("irqchip", WITH_APIC)
@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("wait", [WAITS["spinning"], WAITS["halted"]], ids=["spinning", "halted"])
def test_a_storm_of_local_apic_timers_does_not_hold_up_the_time_limit(
    guest: Guests, irqchip: str, cpus: int, wait: bytes
) -> None:
    machine = guest.machine("4M", irqchip=irqchip, cpus=cpus)
    load(machine, [wait], LAPIC_STORM)
    assert machine.run(LIMIT).stop == TimedOut(LIMIT)


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_cpus_that_interrupt_each_other_for_ever_do_not_hold_up_the_time_limit(guest: Guests, irqchip: str) -> None:
    send = b"\xfb\xc7\x83\x00\x03\x00\x00\x41\x00\x0c\x00\xeb\xf4"  # sti; movl $ICR_ALL_OTHERS | 0x41, ICR(%rbx)
    machine = guest.machine("4M", irqchip=irqchip, cpus=4)
    load(machine, [send])
    assert machine.run(LIMIT).stop == TimedOut(LIMIT)


def hammer(*accesses: bytes) -> list[bytes]:
    """All these accesses, for ever."""
    body = b"".join(accesses)
    return [body, b"\xe9" + little(-len(body) - 5, 4)]


HAMMERS = {
    "I/O APIC entries": (*(memory_access(0xFEC0_0000 + at, 4, value, True) for at, value in ((0, 0x14), (16, 0x41))),),
    "the 8254": (port_access(64, 0x43, 1, 0x34, True), *(port_access(64, 0x40, 1, 2, True) for _ in range(2))),
    "the clock's alarm": (port_access(64, 0x70, 1, 0x0B, True), port_access(64, 0x71, 1, 0x72, True)),
    "test lines": tuple(port_access(64, 0x2004, 1, level, True) for level in (1, 0)),
    "firmware configuration": (port_access(64, 0x510, 2, 0x19, True), string_access(64, 0x511, 200, 1, False)),
    "nowhere": (port_access(64, 0x7777, 4, 0, False), memory_access(0xE123_4567, 8, 0, False)),
    "the serial port": (string_access(64, 0x3F8, 200, 1, True), port_access(64, 0x3F8, 1, 0, False)),
}


@pytest.mark.parametrize("irqchip", WITH_APIC)
@pytest.mark.parametrize("accesses", HAMMERS.values(), ids=HAMMERS.keys())
def test_four_cpus_at_one_device_do_not_hold_up_the_time_limit(
    guest: Guests, irqchip: str, accesses: tuple[bytes, ...]
) -> None:
    machine = guest.machine("4M", irqchip=irqchip, cpus=4, devices=["testdev"])
    load(machine, hammer(*accesses), INIT_PIC + PIT.format(mode=0x34, count=2))
    result = machine.run(LIMIT)
    assert result.stop == TimedOut(LIMIT)
    check(machine, result)


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_no_device_grows_without_bound(guest: Guests, irqchip: str) -> None:
    """Alarms set and cancelled, bytes printed, addresses nobody has, keyboard commands: all of it for a while."""
    accesses = [access for name in HAMMERS for access in HAMMERS[name]]
    accesses += [port_access(64, 0x64, 1, 0xD2, True), port_access(64, 0x60, 1, 0x55, True)]
    accesses += [port_access(64, 0x60, 1, 0xF2, True), port_access(64, 0x64, 1, 0xD4, True)]
    machine = guest.machine("4M", irqchip=irqchip, devices=["testdev", "doorbell"], on_unclaimed=lambda access: None)
    load(machine, hammer(*accesses))
    machine.run(0.3)
    before = resident()
    machine.run(0.7)
    assert resident() - before < 16 * MiB


# ---- sleep ----


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_a_cpu_that_sends_all_to_sleep_in_the_middle_of_things_ends_at_the_time_limit(
    guest: Guests, irqchip: str
) -> None:
    busy = port_access(64, 0x61, 1, 0, False) * 200
    sleep = port_access(64, 0x604, 2, 0x2400, True)
    machine = guest.machine("4M", irqchip=irqchip, cpus=4)
    load(machine, [*hammer(busy, sleep, busy)], INIT_PIC + PIT.format(mode=0x34, count=100))
    result = machine.run(LIMIT)
    assert result.stop == TimedOut(LIMIT)
    check(machine, result)
