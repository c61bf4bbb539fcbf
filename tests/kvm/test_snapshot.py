"""Snapshots on KVM: what runs on from one does so in the same way again, here, elsewhere, and from a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm import GuestMemory, Machine, assemble
from pykvm.devices import ByteRegisters
from pykvm.devices.fields import BYTE, Json
from pykvm.devices.state import Remembered, Stateful
from pykvm.errors import ConfigurationError, InUseError, SnapshotError
from pykvm.kvm import Exit
from pykvm.machine import DebugExitWritten, Halted, ResetRequested, TimedOut
from pykvm.machine.snapshot import Snapshot
from pykvm.memory import layout, platform
from pykvm.units import KiB, MiB

LONG = 30.0  # seconds: a limit that no test reaches
IRQCHIPS = ["none", "user", "kernel", "split"]
COUNT = "incq 0x9000; mov 0x9000, %rax; out %al, $0xf4; jmp _start"  # a guest that tells how often it was there


class AllExits:
    """Keeps every exit."""

    def __init__(self) -> None:
        self.exits: list[tuple[int, Exit]] = []

    def exit(self, vcpu: int, exit: Exit) -> None:
        self.exits.append((vcpu, exit))

    def tick(self) -> None:
        pass


class Latch(ByteRegisters, Stateful):
    """A register."""

    name = "latch"
    remembers: ClassVar[Remembered] = {"value": BYTE}

    def __init__(self) -> None:
        self.value = 0

    def read_register(self, offset: int) -> int:
        return self.value

    def write_register(self, offset: int, value: int) -> None:
        self.value = value


class Stack:
    """A device that saves itself in its own way, and keeps what it is restored from."""

    name = "stack"

    def __init__(self) -> None:
        self.values: list[Json] = []

    def read(self, offset: int, size: int) -> bytes:
        return bytes([len(self.values)]) * size

    def write(self, offset: int, data: bytes) -> None:
        self.values.append(data[0])

    def save(self) -> dict[str, Json]:
        return {"values": self.values}

    def restore(self, state: dict[str, Json]) -> None:
        values = state["values"]
        assert isinstance(values, list)
        self.values = values


class Forgetful:
    """A device that cannot be saved."""

    name = "forgetful"

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        pass


@pytest.fixture
def counter() -> Iterator[Machine]:
    with Machine("2M") as machine:
        machine.load(assemble(f".globl _start; _start: {COUNT}", mode="long"))
        yield machine


def state_of(machine: Machine, *, without: tuple[str, ...] = ()) -> dict[str, object]:
    """Return what can be compared: all but time, and what goes on with time."""
    snapshot = machine.snapshot()
    timed = {"pit", "rtc", "pm", "hpet", *without}
    pieces = [vcpu.pieces for vcpu in snapshot.vcpus]
    kernel = {name: data for name, data in snapshot.vm.pieces.items() if name not in ("clock", "pit2")}
    return {
        "memory": snapshot.memory,
        "vcpus": [{name: data for name, data in piece.items() if name not in ("msrs", "lapic")} for piece in pieces],
        "kernel": kernel,
        "devices": {name: state for name, state in snapshot.devices.items() if name not in timed},
        "halted": snapshot.situation.halted,
        "requests": snapshot.situation.requests,
        "levels": snapshot.situation.levels,
        "serial": snapshot.situation.serial,
    }


# ---- back and on again ----


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_guest_goes_on_from_a_snapshot_again_and_again(irqchip: str) -> None:
    with Machine("2M", irqchip=irqchip) as machine:
        machine.load(assemble(f".globl _start; _start: {COUNT}", mode="long"))
        assert machine.run(LONG).stop == DebugExitWritten(1)
        snapshot = machine.snapshot()
        for _ in range(3):
            assert [machine.run(LONG).stop for _ in range(2)] == [DebugExitWritten(2), DebugExitWritten(3)]
            machine.restore(snapshot)


def test_snapshots_can_be_restored_in_any_order(counter: Machine) -> None:
    snapshots = []
    for _ in range(4):
        counter.run(LONG)
        snapshots.append(counter.snapshot())
    for number in (3, 0, 2, 2, 1, 3, 0):
        counter.restore(snapshots[number])
        assert counter.run(LONG).stop == DebugExitWritten(number + 2)


def test_what_the_host_wrote_is_undone_too(counter: Machine) -> None:
    snapshot = counter.snapshot()
    counter.memory.write_u64(0x9000, 41)
    assert counter.run(LONG).stop == DebugExitWritten(42)
    counter.restore(snapshot)
    assert counter.run(LONG).stop == DebugExitWritten(1)
    counter.load(assemble("mov $9, %al; out %al, $0xf4", mode="real"))
    assert counter.run(LONG).stop == DebugExitWritten(9)
    counter.restore(snapshot)
    assert counter.run(LONG).stop == DebugExitWritten(1)


def test_what_is_written_through_a_view_is_undone_as_often_as_one_likes(counter: Machine) -> None:
    with counter.memory.view(0x9000, 8) as view:
        snapshot = counter.snapshot()
        for _ in range(3):
            view[0] = 41
            assert counter.run(LONG).stop == DebugExitWritten(42)
            counter.restore(snapshot)
            assert view[0] == 0
        view[0] = 10
        later = counter.snapshot()
        view[0] = 20
        counter.restore(later)
        assert view[0] == 10


def test_restoring_the_base_writes_only_what_was_written(counter: Machine) -> None:
    counter.run(LONG)
    snapshot = counter.snapshot()
    counter.run(LONG)
    # Behind everybody's back: who writes this page did not look at what was written.
    counter.memory.regions[0].buffer[0x8_0000] = 1
    counter.restore(snapshot)
    assert counter.memory.read_u8(0x8_0000) == 1
    assert counter.memory.read_u64(0x9000) == 1


def test_a_snapshot_shares_the_pages_of_the_one_before(counter: Machine) -> None:
    counter.run(LONG)  # which also sets the accessed bits of its page tables
    first = counter.snapshot()
    counter.run(LONG)
    second = counter.snapshot()
    assert [page for page in second.memory if second.memory[page] is not first.memory.get(page)] == [0x9000]


def test_a_snapshot_nobody_kept_is_no_base(counter: Machine) -> None:
    kept = counter.snapshot()
    counter.run(LONG)
    counter.snapshot()
    counter.run(LONG)
    counter.restore(kept)
    assert counter.run(LONG).stop == DebugExitWritten(1)


def test_registers_of_every_kind_come_back() -> None:
    code = """
        mov $0x174, %ecx; mov $0x1234, %eax; xor %edx, %edx; wrmsr      # IA32_SYSENTER_CS
        mov $0x77, %rax; mov %rax, %db0
        mov $3, %rax; mov %rax, %cr8
        sti; stc
        mov $42, %rbx; out %al, $0xf4
        mov $0x174, %ecx; xor %eax, %eax; wrmsr
        xor %eax, %eax; mov %rax, %db0; mov %rax, %cr8; cli; clc; mov %rax, %rbx; out %al, $0xf4
        mov $0x174, %ecx; rdmsr; mov %rax, %r8; mov %db0, %r9; mov %cr8, %r10; out %al, $0xf4
    """
    with Machine("2M") as machine:
        machine.load(assemble(code, mode="long"))
        machine.run(LONG)
        snapshot, before = machine.snapshot(), state_of(machine)
        after = [machine.run(LONG).registers, machine.run(LONG).registers]
        assert [after[1].r8, after[1].r9, after[1].r10] == [0, 0, 0]
        machine.restore(snapshot)
        assert state_of(machine) == before
        assert machine.registers.rbx == 42
        assert machine.vcpu.get_sregs().cr8 == 3
        assert machine.vcpu.get_debugregs().db[0] == 0x77
        assert machine.vcpu.get_msrs([0x174])[0].data == 0x1234
        assert [machine.run(LONG).registers, machine.run(LONG).registers] == after


def test_cr8_is_what_the_snapshot_says_after_the_next_entry_too() -> None:
    with Machine("2M") as machine:
        machine.load(
            assemble("mov $5, %rax; mov %rax, %cr8; out %al, $0xf4; mov %cr8, %rbx; out %al, $0xf4", mode="long")
        )
        machine.run(LONG)
        snapshot = machine.snapshot()
        machine.load(assemble("xor %eax, %eax; mov %rax, %cr8; out %al, $0xf4", mode="long"))
        machine.run(LONG)
        machine.restore(snapshot)
        assert machine.run(LONG).registers.rbx == 5


# ---- the law ----

STOP = b"\xe6\xf4"  # out %al, $0xf4
WORDS = st.integers(0, 0xFFFF).map(lambda value: value.to_bytes(2, "little"))
DATA = st.integers(0x1000, 0x7000).map(lambda address: address.to_bytes(2, "little"))
# Neither what tells the time, nor what ends the run in a way of its own or never.
PORTS = [0x20, 0x21, 0x60, 0x64, 0x80, 0xA0, 0xA1, 0xE9, 0x3C0, 0x3C4, 0x3C5, 0x3C8, 0x3C9, 0x3D4, 0x3D5]
PORTS += [*range(0x3F8, 0x400), 0x4D0, 0x510, 0x511, 0xCF8, 0xCFC, 0xED, 0x9999]
PORT = st.sampled_from(PORTS).map(lambda port: b"\xba" + port.to_bytes(2, "little"))  # mov $port, %dx
QUIET = b"\xfa"  # cli
INSTRUCTIONS = st.one_of(
    st.builds(lambda value: b"\xb8" + value, WORDS),  # mov $value, %ax
    st.builds(lambda value: b"\xbb" + value, WORDS),  # mov $value, %bx
    st.builds(lambda at: b"\xa3" + at, DATA),  # mov %ax, at
    st.builds(lambda at: b"\x01\x1e" + at, DATA),  # add %bx, at
    st.builds(lambda at: b"\xa1" + at, DATA),  # mov at, %ax
    st.sampled_from([b"\x50", b"\x5b", b"\x01\xd8", b"\xf7\xe3", b"\xf9", b"\x13\xc3", b"\xd3\xc0"]),
    st.builds(lambda port: port + b"\xee", PORT),  # out %al, (%dx)
    st.builds(lambda port: port + b"\xef", PORT),  # out %ax, (%dx)
    st.builds(lambda port, at: port + b"\xec\xa3" + at, PORT, DATA),  # in (%dx), %al; mov %ax, at
    st.builds(lambda index: b"\xb0" + index + b"\xe6\x70\xe4\x71", st.integers(0x10, 0x7F).map(lambda i: bytes([i]))),
    st.builds(lambda at: b"\x1e\xb9\x00\xd0\x8e\xd9\x88\x06" + at + b"\x1f", WORDS),  # beyond RAM: an MMIO write
)
CODE = st.lists(INSTRUCTIONS, max_size=12).map(b"".join)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(st.tuples(CODE, CODE, CODE))
def test_running_on_from_a_snapshot_is_the_same_again(irqchip: str, codes: tuple[bytes, bytes, bytes]) -> None:
    watch = AllExits()
    with Machine("2M", irqchip=irqchip, observers=[watch]) as machine, Machine("2M", irqchip=irqchip) as other:
        machine.load(QUIET + STOP.join(codes) + STOP + b"\xf4")
        machine.run(LONG)
        middle = machine.snapshot()

        def run_on() -> tuple[list[object], list[tuple[int, Exit]], dict[str, object]]:
            watch.exits.clear()
            stops: list[object] = [machine.run(LONG).stop for _ in range(2)]
            return stops, list(watch.exits), state_of(machine)

        first = run_on()
        machine.restore(middle)
        assert state_of(machine) == state_of_restored(other, middle)
        assert run_on() == first
        for _ in range(2):
            other.run(LONG)
        assert state_of(other) == first[2]


def state_of_restored(machine: Machine, snapshot: Snapshot) -> dict[str, object]:
    machine.restore(snapshot)
    return state_of(machine)


SEVERAL = """
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .globl  _start
_start:
        start_other_cpus trampoline
        jmp     work
        define_trampoline trampoline, other
work:   cmpl    $1, 0x9008              # the other CPU is there
        jne     work
        mov     $7, %al
        out     %al, $0xf4
        jmp     work
other:  movl    $1, 0x9008
        jmp     .
"""


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_two_cpus_go_on_where_they_were(irqchip: str) -> None:
    code = """
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .globl  _start
_start: start_other_cpus trampoline
1:      cmpl    $1, 0x9000              # the other CPU is there
        jne     1b
        mov     $1, %al
        out     %al, $0xf4
        movl    $2, 0x9000
2:      cmpl    $3, 0x9000
        jne     2b
        mov     0x9008, %al
        out     %al, $0xf4
        hlt
        define_trampoline trampoline, other
other:  movl    $1, 0x9000
3:      cmpl    $2, 0x9000
        jne     3b
        addl    $21, 0x9008
        movl    $3, 0x9000
        hlt
    """
    with Machine("2M", irqchip=irqchip, cpus=2) as machine:
        machine.load(assemble(code, mode="long"))
        assert machine.run(LONG).stop == DebugExitWritten(1)
        snapshot = machine.snapshot()
        for _ in range(3):
            assert machine.run(LONG).stop == DebugExitWritten(21)
            machine.restore(snapshot)
        with machine.fork() as child:
            assert child.run(LONG).stop == DebugExitWritten(21)
        assert machine.run(LONG).stop == DebugExitWritten(21)


def test_a_cpu_that_waits_for_sipi_waits_again() -> None:
    with Machine("2M", irqchip="kernel", cpus=2) as machine:
        machine.load(assemble(SEVERAL, mode="long"))
        snapshot = machine.snapshot()
        assert machine.run(LONG).stop == DebugExitWritten(7)
        assert machine.result(Halted()).cpus[1].activity == "running"
        machine.restore(snapshot)
        assert machine.result(Halted()).cpus[1].activity == "waits for INIT"
        assert machine.run(LONG).stop == DebugExitWritten(7)


# ---- interrupts and time ----


@pytest.mark.parametrize("irqchip", ["user", "kernel", "split"])
def test_an_interrupt_that_waits_comes_after_every_restore(irqchip: str) -> None:
    # IRQ 5, asked for by the test device while interrupts are off; what the 8259A says of it is read at the end.
    code = "cli; mov $0x11, %al; out %al, $0x20; mov $0x20, %al; out %al, $0x21; mov $4, %al; out %al, $0x21"
    code += "; mov $1, %al; out %al, $0x21; mov $0xdf, %al; out %al, $0x21"
    code += "; mov $1, %al; mov $0x2005, %dx; out %al, (%dx); out %al, $0xf4"
    code += "; mov $0x0a, %al; out %al, $0x20; in $0x20, %al; out %al, $0xf4"
    code += "; xor %eax, %eax; mov $0x2005, %dx; out %al, (%dx); in $0x20, %al; out %al, $0xf4"
    with Machine("2M", irqchip=irqchip, devices=["testdev"]) as machine:
        machine.load(assemble(code, mode="real"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        expected = [machine.run(LONG).stop for _ in range(2)]
        assert expected[0] == DebugExitWritten(0x20)
        for _ in range(2):
            machine.restore(snapshot)
            assert [machine.run(LONG).stop for _ in range(2)] == expected
        with machine.fork() as child:
            child.restore(snapshot)
            assert [child.run(LONG).stop for _ in range(2)] == expected


def test_a_halted_cpu_is_halted_again_and_the_timer_wakes_it() -> None:
    code = """
        .include "pic.inc"
        .globl _start
_start: cli
        movw    $tick, 8 * 4            # IRQ 0 as the 8259A has it at reset: vector 8, after ICW2
        movw    $0, 8 * 4 + 2
        mov     $0x13, %al
        out     %al, $0x20
        mov     $8, %al
        out     %al, $0x21
        mov     $1, %al
        out     %al, $0x21
        mov     $0xfe, %al
        out     %al, $0x21
        mov     $0x30, %al              # counter 0, mode 0: once
        out     %al, $0x43
        mov     $0xff, %al
        out     %al, $0x40
        out     %al, $0x40
        sti
1:      hlt
        jmp     1b
tick:   mov     $6, %al
        out     %al, $0xf4
    """
    with Machine("2M", irqchip="user") as machine:
        machine.load(assemble(code, mode="real"))
        assert isinstance(machine.run(0.01).stop, TimedOut)
        while not (snapshot := machine.snapshot()).situation.halted[0]:  # on a host that has much to do
            assert isinstance(machine.run(0.005).stop, TimedOut)
        for _ in range(3):
            assert machine.run(LONG).stop == DebugExitWritten(6)
            machine.restore(snapshot)
            assert machine.result(Halted()).cpus[0].activity == "halted"
            assert machine.events.now() == snapshot.situation.time
        with machine.fork() as child:
            assert child.run(LONG).stop == DebugExitWritten(6)


def test_time_goes_back(counter: Machine) -> None:
    snapshot = counter.snapshot()
    counter.load(b"\xeb\xfe")
    counter.run(0.05)
    assert counter.events.now() > 40_000_000
    counter.restore(snapshot)
    assert counter.events.now() == snapshot.situation.time < 40_000_000


def test_an_nmi_that_waits_is_part_of_the_snapshot() -> None:
    code = "movw $9f, 8; movw $0, 10; 1: inc %bx; jmp 1b; 9: mov $9, %al; out %al, $0xf4"
    with Machine("2M") as machine:
        machine.load(assemble(code, mode="real"))
        assert isinstance(machine.run(0.02).stop, TimedOut)
        machine.nmi()
        snapshot = machine.snapshot()
        for _ in range(2):
            assert machine.run(LONG).stop == DebugExitWritten(9)
            machine.restore(snapshot)


def test_a_machine_that_sleeps_sleeps_again_and_is_woken_as_often() -> None:
    go_to_s3 = 1 << 13 | platform.SLP_TYP_S3 << 10
    with Machine("2M") as machine:
        machine.load(
            assemble(f"mov ${go_to_s3}, %ax; mov ${platform.PM1_CONTROL}, %dx; out %ax, %dx; hlt", mode="real")
        )
        assert isinstance(machine.run(0.05).stop, TimedOut)
        snapshot = machine.snapshot()
        assert snapshot.situation.requests.asleep
        for _ in range(2):
            with machine.lock:
                machine.board.press_power_button()
            assert isinstance(machine.run(LONG).stop, ResetRequested)  # there is no waking vector
            machine.restore(snapshot)
            assert isinstance(machine.run(0.05).stop, TimedOut)


# ---- output, reports, and what belongs to the user ----


def test_what_was_printed_since_is_not_in_the_next_result() -> None:
    printed: list[bytes] = []
    code = "mov $0x3f8, %dx; mov $'a', %al; 1: out %al, (%dx); out %al, $0xe9; inc %al; out %al, $0xf4; jmp 1b"
    with Machine("2M", serial_output=printed.append) as machine:
        machine.load(assemble(code, mode="long"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        assert machine.run(LONG).serial.text == "ab"
        machine.restore(snapshot)
        result = machine.run(LONG)
        assert (result.serial.text, result.debugcon.text) == ("ab", "ab")
        assert b"".join(printed) == b"abb"


def test_the_screen_comes_back_even_where_memory_ends_below_it() -> None:
    code = f"mov ${layout.VGA_TEXT >> 4:#x}, %ax; mov %ax, %es; movb $'X', %es:0; out %al, $0xf4; movb $'Y', %es:0; hlt"
    with Machine("64K") as machine:
        machine.load(assemble(code, mode="real"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        for _ in range(2):
            machine.run(LONG)
            assert machine.screen.text().startswith("Y")
            machine.restore(snapshot)
            assert machine.screen.text().startswith("X")


def test_a_crash_after_a_restore_is_explained_with_the_image_of_the_snapshot() -> None:
    with Machine("2M") as machine, Machine("2M") as other:
        machine.load(assemble(".globl _start; _start: nop; crash: ud2", mode="long"))
        other.restore(machine.snapshot())
        assert "crash" in other.run(LONG).report


def test_stop_and_pause_stay_in_force(counter: Machine) -> None:
    snapshot = counter.snapshot()
    counter.stop()
    counter.restore(snapshot)
    assert str(counter.run(LONG).stop).startswith("stopped")
    assert counter.run(LONG).stop == DebugExitWritten(1)


def test_a_stop_that_the_guest_asked_for_belongs_to_the_snapshot() -> None:
    # Two bytes to the debug exit, by one instruction, of which the first ends the run.
    code = "mov $1f, %si; mov $2, %cx; cld; mov $0xf4, %dx; rep outsb; 2: out %al, $0x80; jmp 2b; 1: .byte 5, 6"
    with Machine("2M") as machine:
        machine.load(assemble(code, mode="real"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        stops = [machine.run(0.05).stop for _ in range(2)]
        machine.restore(snapshot)
        assert [machine.run(0.05).stop for _ in range(2)] == stops


def test_stored_msrs_come_back_and_forks_have_their_own() -> None:
    code = "mov $0x4b564d99, %ecx; 1: rdmsr; inc %eax; wrmsr; out %al, $0xf4; jmp 1b"
    with Machine("2M") as machine:
        machine.msr.store(0x4B564D99, 4)
        machine.load(assemble(code, mode="long"))
        assert machine.run(LONG).stop == DebugExitWritten(5)
        snapshot = machine.snapshot()
        assert machine.run(LONG).stop == DebugExitWritten(6)
        with machine.fork() as child:
            assert child.run(LONG).stop == DebugExitWritten(7)
        machine.restore(snapshot)
        assert machine.run(LONG).stop == DebugExitWritten(6)
        with Machine("2M") as other, pytest.raises(ConfigurationError, match="handled msrs: only the snapshot has"):
            other.restore(snapshot)


def test_rings_of_a_doorbell_that_nobody_heard_belong_to_the_time_that_is_gone() -> None:
    rings: list[int] = []
    with Machine("2M") as machine:
        machine.on_doorbell(0x500, 1, rings.append, pio=True)
        machine.load(assemble("mov $0x500, %dx; out %al, (%dx); out %al, $0xf4; out %al, (%dx); hlt", mode="real"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        assert rings == [1]
        machine.run(LONG)
        machine.restore(snapshot)
        machine.run(LONG)
        assert rings == [1, 1, 1]


def test_kept_back_writes_are_seen_before_and_dropped_after() -> None:
    with Machine("2M") as machine:
        machine.coalesce(0x80, 1, pio=True)
        machine.load(assemble("mov $1, %al; out %al, $0x80; out %al, $0xf4; inc %al; out %al, $0x80; hlt", mode="real"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        machine.run(LONG)
        assert machine.board.post_code.codes[-1] == 2
        machine.restore(snapshot)
        assert machine.board.post_code.codes[-1] == 1
        machine.run(LONG)
        assert machine.board.post_code.codes[-1] == 2


WAYS: dict[str, tuple[str, Callable[[Machine], object], str]] = {  # by which a device changes, and the device
    "a port": ("mov $5, %al; out %al, $0x70", lambda machine: None, "rtc"),
    "MMIO": ("mov $0xfed00010, %edi; movl $1, (%rdi)", lambda machine: None, "hpet"),
    "a line from another device": (
        "mov $0x3fc, %dx; mov $8, %al; out %al, %dx; mov $0x3f9, %dx; mov $1, %al; out %al, %dx",
        lambda machine: machine.serial.receive(b"x"),
        "pic",
    ),
    "a key": ("nop", lambda machine: machine.board.keyboard.press("a"), "keyboard"),
    "input": ("nop", lambda machine: machine.serial.receive(b"x"), "serial"),
    "a button": ("nop", lambda machine: machine.board.pm.press_power_button(), "pm"),
    "time": (
        "1: pause; jmp 1b",
        lambda machine: machine.events.call_at(0, machine.serial.receive_break),
        "serial",
    ),
    "an attribute": (
        "nop",
        lambda machine: setattr(machine.board.a20, "is_open", not machine.board.a20.is_open),
        "a20",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_device_comes_back_by_whichever_way_it_changed(way: str) -> None:
    code, change, device = WAYS[way]
    with Machine("2M", irqchip="user") as machine:
        machine.load(assemble(f"{code}; mov $0x7f, %al; out %al, $0xf4; hlt", mode="long"))
        machine.memory.write_u8(0x9000, 0)
        snapshot = machine.snapshot()
        for _ in range(2):
            change(machine)
            machine.run(0.05 if way == "time" else LONG)
            assert machine.snapshot().devices[device] != snapshot.devices[device]
            machine.restore(snapshot)
            assert machine.snapshot().devices == snapshot.devices


# ---- dirty pages ----


@pytest.mark.parametrize("dirty", ["log", "ring"])
def test_the_users_dirty_pages_are_those_of_the_guest_whatever_is_saved_and_restored(dirty: str) -> None:
    with Machine("2M", dirty=dirty) as machine:
        machine.load(assemble("incl 0x9000; out %al, $0xf4; incl 0x4000; out %al, $0xf4; hlt", mode="long"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        assert 0x9000 in set(machine.dirty_pages())
        assert set(machine.dirty_pages()) == set()
        machine.run(LONG)
        machine.snapshot()
        machine.restore(snapshot)
        pages = set(machine.dirty_pages())
        assert 0x4000 in pages
        assert 0x9000 not in pages
        machine.restore(snapshot)
        assert set(machine.dirty_pages()) == set()


@pytest.mark.parametrize("dirty", ["log", "ring"])
def test_asking_for_dirty_pages_hides_none_from_a_restore(dirty: str) -> None:
    with Machine("2M", dirty=dirty) as machine:
        machine.load(assemble(f".globl _start; _start: {COUNT}", mode="long"))
        snapshot = machine.snapshot()
        for _ in range(3):
            assert machine.run(LONG).stop == DebugExitWritten(1)
            assert 0x9000 in set(machine.dirty_pages())
            machine.restore(snapshot)


def test_many_pages_come_back_with_full_rings_too() -> None:
    code = "mov $0x100000, %rdi; 1: movb $1, (%rdi); add $4096, %rdi; cmp $0xf00000, %rdi; jb 1b; out %al, $0xf4"
    for dirty in ("log", "ring", None):
        with Machine("16M", dirty=dirty) as machine:
            machine.load(assemble(code, mode="long", load=0x8_0000))
            snapshot = machine.snapshot()
            machine.run(LONG)
            assert machine.memory.read_u8(0xEF_F000) == 1
            machine.restore(snapshot)
            assert not any(machine.memory.read(0x10_0000, 14 * MiB))


# ---- other machines ----


def test_a_snapshot_fits_another_machine_made_alike(counter: Machine) -> None:
    counter.run(LONG)
    snapshot = counter.snapshot()
    with Machine("2M") as other:
        for _ in range(2):
            other.restore(snapshot)
            assert other.run(LONG).stop == DebugExitWritten(2)
        other.memory.write_u8(0x5000, 1)
        other.restore(snapshot)
        assert other.snapshot().memory == snapshot.memory


def other_cpuid() -> Machine:
    return Machine("2M", cpuid=lambda cpuid: cpuid.with_signature("another"))


@pytest.mark.parametrize(
    ("make", "difference"),
    [
        (
            lambda: Machine("4M"),
            "memory: only the machine has ram 0x0-0x3fffff, only the snapshot has ram 0x0-0x1fffff",
        ),
        (lambda: Machine("2M", irqchip="kernel"), "irqchip: kernel here, none in the snapshot"),
        (lambda: Machine("2M", devices=["testdev"]), "devices: only the machine has port .*"),
        (other_cpuid, "cpuid: only the machine has leaf 0x40000"),
    ],
)
def test_a_machine_made_otherwise_is_refused_in_words(
    counter: Machine, make: Callable[[], Machine], difference: str
) -> None:
    snapshot = counter.snapshot()
    with make() as other:
        other.load(b"\xf4")
        before = other.memory.read(0x8000, 16)
        with pytest.raises(ConfigurationError, match=f"not like the one that the snapshot is of: .*{difference}"):
            other.restore(snapshot)
        assert other.memory.read(0x8000, 16) == before
        assert other.run(LONG).stop == Halted()


def test_another_number_of_cpus_is_refused() -> None:
    with Machine("2M", irqchip="kernel") as one, Machine("2M", irqchip="kernel", cpus=2) as two:
        snapshot = one.snapshot()
        with pytest.raises(ConfigurationError, match="cpus: 2 here, 1 in the snapshot"):
            two.restore(snapshot)


def test_memory_of_ones_own_with_rom_alias_and_hole_is_saved_whole() -> None:
    def make() -> GuestMemory:
        memory = GuestMemory("64K")
        memory.add_alias(0x2_0000, memory.regions[0], 0x9000, 4 * KiB, "mirror")
        memory.add_rom(0x3_0000, b"ROM")
        return memory

    code = "mov $0x2000, %ax; mov %ax, %es; incb %es:0; mov %es:0, %al; out %al, $0xf4"
    code += "; incb 0x9000; mov %es:0, %al; out %al, $0xf4"
    with make() as ram, make() as empty, Machine(ram) as machine, Machine(empty) as other:
        machine.load(assemble(code, mode="real"))
        snapshot = machine.snapshot()
        for run in (machine, other, machine):
            run.restore(snapshot)
            assert [run.run(LONG).stop for _ in range(2)] == [DebugExitWritten(1), DebugExitWritten(2)]
            assert run.memory.read(0x3_0000, 3) == b"ROM"


@pytest.mark.parametrize("dirty", [None, "log", "ring"])
def test_pages_come_back_whoever_wrote_them_and_by_whichever_address(dirty: str | None) -> None:
    memory = GuestMemory("64K")
    memory.add_alias(0x2_0000, memory.regions[0], 0x9000, 4 * KiB, "mirror")
    code = "mov $0x2000, %ax; mov %ax, %es; incb %es:0; incb 0xa000; out %al, $0xf4"
    with memory, Machine(memory, dirty=dirty) as machine:
        machine.load(assemble(code, mode="real"))
        machine.memory.write(0x9000, bytes(range(1, 4)))
        snapshot = machine.snapshot()
        before = machine.memory.read(0, 64 * KiB)
        for _ in range(3):
            machine.run(LONG)
            machine.memory.write(0x9001, b"host")
            machine.memory.write(0x2_0010, b"host")
            machine.memory.write(0xB000, b"host")
            assert machine.memory.read(0x9000, 5) == b"\2host"
            machine.restore(snapshot)
            assert machine.memory.read(0, 64 * KiB) == before


# ---- forks ----


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_fork_goes_its_own_way(irqchip: str) -> None:
    with Machine("2M", irqchip=irqchip) as machine:
        machine.load(assemble(f".globl _start; _start: {COUNT}", mode="long"))
        machine.run(LONG)
        with machine.fork() as child:
            assert [child.run(LONG).stop for _ in range(3)] == [DebugExitWritten(number) for number in (2, 3, 4)]
            child.memory.write(0x5000, b"child")
            with child.fork() as grandchild:
                assert grandchild.run(LONG).stop == DebugExitWritten(5)
        assert machine.run(LONG).stop == DebugExitWritten(2)
        assert machine.memory.read(0x5000, 5) == bytes(5)


def test_a_fork_prints_for_itself() -> None:
    printed: list[bytes] = []
    childs: list[bytes] = []
    code = "mov $0x3f8, %dx; mov $'a', %al; 1: out %al, (%dx); inc %al; out %al, $0xf4; jmp 1b"
    with Machine("2M", serial_output=printed.append) as machine:
        machine.load(assemble(code, mode="long"))
        machine.run(LONG)
        with machine.fork(serial_output=childs.append) as child:
            assert child.run(LONG).serial.text == "ab"
        assert machine.run(LONG).serial.text == "ab"
    assert (printed, childs) == ([b"a", b"b"], [b"b"])


def test_a_fork_of_memory_of_ones_own_has_a_copy() -> None:
    with GuestMemory("2M") as ram, Machine(ram) as machine:
        machine.load(assemble(f".globl _start; _start: {COUNT}", mode="long"))
        with machine.fork() as child:
            assert child.memory is not ram
            child.run(LONG)
            memory = child.memory
        assert memory.closed
        assert not ram.closed
        assert ram.read_u64(0x9000) == 0


# ---- devices of the user ----


def test_a_device_that_can_be_saved_is(counter: Machine) -> None:
    latch, stack = Latch(), Stack()
    counter.pio.register(latch, 0x66, 1)
    counter.mmio.register(stack, 0x1000_0000, 4)
    latch.value, stack.values = 5, [1, 2]
    snapshot = counter.snapshot()
    for _ in range(2):
        latch.value = 6
        stack.write(0, b"\3")
        counter.restore(snapshot)
        assert latch.value == 5
        assert stack.values == [1, 2]
        stack.values.append(3)  # which the snapshot must not see


def test_a_device_that_cannot_be_saved_is_refused_by_name(counter: Machine) -> None:
    counter.pio.register(Forgetful(), 0x66, 1)
    with pytest.raises(ConfigurationError, match=r"the device forgetful cannot be saved: give it save\(\) and restore"):
        counter.snapshot()


def test_a_machine_with_a_device_of_the_users_is_not_forked_but_restored(counter: Machine) -> None:
    counter.pio.register(Latch(), 0x66, 1)
    with pytest.raises(ConfigurationError, match="there is no second latch for another machine"):
        counter.fork()
    with Machine("2M") as other:
        with pytest.raises(ConfigurationError, match="devices: only the snapshot has port latch at 0x66-0x66"):
            other.restore(counter.snapshot())
        other.pio.register(Latch(), 0x66, 1)
        other.restore(counter.snapshot())


def test_a_slot_that_somebody_gave_the_vm_is_refused(counter: Machine) -> None:
    snapshot = counter.snapshot()
    with GuestMemory() as more:
        region = more.add_ram(0x1000_0000, 4096)
        counter.vm.set_user_memory_region(77, region.gpa, region.buffer)
        with pytest.raises(ConfigurationError, match="memory slots that this machine did not make"):
            counter.restore(snapshot)
        counter.vm.set_user_memory_region(77, region.gpa, None)
    counter.restore(snapshot)


# ---- when it is possible ----


@contextmanager
def running(machine: Machine) -> Iterator[list[object]]:
    """Run on another thread meanwhile; gives what ended it."""
    ended: list[object] = []
    thread = threading.Thread(target=lambda: ended.append(machine.run(LONG).stop))
    thread.start()
    try:
        deadline = time.monotonic() + LONG
        while not machine._control.is_running:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        yield ended
    finally:
        machine.stop()
        machine.resume()
        thread.join()


@pytest.mark.parametrize(("irqchip", "cpus"), [("none", 1), ("user", 1), ("kernel", 2), ("split", 2)])
def test_a_running_machine_is_refused_and_a_paused_one_is_not(irqchip: str, cpus: int) -> None:
    code = "1: incl 0x9000; out %al, $0x80; cmpl $0, 0x4000; je 1b; mov $3, %al; out %al, $0xf4"
    with Machine("2M", irqchip=irqchip, cpus=cpus) as machine:
        machine.load(assemble(code, mode="long"))
        with running(machine) as ended:
            for forbidden in (machine.snapshot, machine.fork):
                with pytest.raises(InUseError, match="this machine runs and cannot be saved: pause"):
                    forbidden()
            machine.pause()
            snapshot = machine.snapshot()
            count = machine.memory.read_u32(0x9000)
            with pytest.raises(InUseError, match="cannot be restored"):
                machine.resume()
                machine.restore(snapshot)
            machine.pause()
            machine.restore(snapshot)
            assert machine.memory.read_u32(0x9000) == count
            with machine.fork() as child:
                child.memory.write_u32(0x4000, 1)
                assert child.run(LONG).stop == DebugExitWritten(3)
            machine.resume()
            time.sleep(0.01)
            machine.pause()
            assert machine.memory.read_u32(0x9000) > count
            machine.memory.write_u32(0x4000, 1)
            machine.resume()
            deadline = time.monotonic() + LONG
            while not ended and time.monotonic() < deadline:
                time.sleep(0.001)
        assert ended == [DebugExitWritten(3)]


def test_a_device_cannot_take_a_snapshot_in_the_middle_of_an_exit(counter: Machine) -> None:
    class Rude(Latch):
        def write_register(self, offset: int, value: int) -> None:
            counter.snapshot()

    counter.pio.register(Rude(), 0x66, 1)
    counter.load(assemble("out %al, $0x66; hlt", mode="real"))
    with pytest.raises(InUseError, match="this machine runs"):
        counter.run(LONG)


def test_an_instruction_that_nobody_answered_is_in_the_way_and_a_restore_clears_it(counter: Machine) -> None:
    class Broken(Latch):
        def read_register(self, offset: int) -> int:
            raise ZeroDivisionError

    counter.pio.register(Broken(), 0x66, 1)
    snapshot = counter.snapshot()
    code = counter.memory.read(0, MiB // 4)
    counter.load(assemble("in $0x66, %al; hlt", mode="real"))
    with pytest.raises(ZeroDivisionError):
        counter.run(LONG)
    with pytest.raises(SnapshotError, match="CPU 0 is in the middle of an instruction"):
        counter.snapshot()
    counter.restore(snapshot)
    assert counter.memory.read(0, MiB // 4) == code
    assert counter.run(LONG).stop == DebugExitWritten(1)


def test_a_string_of_reads_is_finished_first() -> None:
    class Stopping(Latch):
        def read_register(self, offset: int) -> int:
            if self.value < 20:
                machine.stop()
                self.value += 1
            return self.value

    with Machine("2M") as machine:
        machine.pio.register(Stopping(), 0x66, 1)
        code = "mov $0x5000, %di; mov $20, %cx; cld; mov $0x66, %dx; rep insb; hlt"
        machine.load(assemble(code, mode="real"))
        while not machine.memory.read_u8(0x5000):
            machine.run(LONG)
        snapshot = machine.snapshot()
        for _ in range(2):
            while machine.run(LONG).stop != Halted():
                pass
            assert machine.memory.read(0x5000, 22) == bytes([*range(1, 21), 0, 0])
            machine.restore(snapshot)


# ---- files ----


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_snapshot_goes_through_a_file(irqchip: str, tmp_path: Path) -> None:
    path = tmp_path / "counter.snapshot"
    with Machine("2M", irqchip=irqchip) as machine:
        machine.load(assemble(f".globl _start; _start: {COUNT}", mode="long"))
        machine.run(LONG)
        snapshot = machine.snapshot()
        snapshot.save(path)
        loaded = Snapshot.load(path)
        for name in ("shape", "memory", "vcpus", "vm", "devices", "situation"):
            assert getattr(loaded, name) == getattr(snapshot, name), name
        machine.restore(loaded)
        assert machine.run(LONG).stop == DebugExitWritten(2)
    with Machine("2M", irqchip=irqchip) as other:
        other.restore(loaded)
        assert other.run(LONG).stop == DebugExitWritten(2)
    assert path.stat().st_size < MiB // 2


def test_every_request_goes_through_a_file(tmp_path: Path) -> None:
    with Machine("2M") as machine:
        machine.load(
            assemble(
                "mov $6, %al; mov $0xcf9, %dx; mov $1f, %si; mov $2, %cx; cld; rep outsb; hlt; 1: .byte 6, 6",
                mode="real",
            )
        )
        stop = machine.run(LONG).stop
        assert isinstance(stop, ResetRequested)
        machine.nmi()
        snapshot = machine.snapshot()
        snapshot.save(tmp_path / "x")
        assert Snapshot.load(tmp_path / "x").situation == snapshot.situation


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document["shape"].pop("cpus"),
        lambda document: document["shape"].update(cpus=2),
        lambda document: document["shape"].update(memory=[1]),
        lambda document: document["vcpus"][0].pop("regs"),
        lambda document: document["vcpus"][0].update(regs="00"),
        lambda document: document["vcpus"][0].update(regs="zz"),
        lambda document: document["vcpus"][0].update(more="00"),
        lambda document: document["vcpus"][0].update(msrs="ff" * 8),
        lambda document: document["vcpus"][0].update(msrs=""),
        lambda document: document["vcpus"][0].pop("shown"),
        lambda document: document["vcpus"].append(document["vcpus"][0]),
        lambda document: document["vm"].pop("clock"),
        lambda document: document.update(vm=[]),
        lambda document: document.update(devices=None),
        lambda document: document["situation"].update(time=-1),
        lambda document: document["situation"].update(time=1 << 64),
        lambda document: document["situation"].update(time=True),
        lambda document: document["situation"].update(halted=[0]),
        lambda document: document["situation"].update(halted=[]),
        lambda document: document["situation"].update(stops=[[1]]),
        lambda document: document["situation"]["requests"].update(stop=["explode", 1]),
        lambda document: document["situation"]["requests"].update(nmis="0"),
        lambda document: document["situation"]["serial"].update(data="abc"),
    ],
)
def test_a_document_that_makes_no_sense_is_refused(
    counter: Machine, tmp_path: Path, damage: Callable[[dict[str, Json]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pykvm.machine import snapshot as module

    good = module._document

    def bad(snapshot: Snapshot) -> dict[str, Json]:
        document = good(snapshot)
        damage(document)
        return document

    monkeypatch.setattr(module, "_document", bad)
    counter.snapshot().save(tmp_path / "x")
    with pytest.raises(SnapshotError, match="cannot be used"):
        Snapshot.load(tmp_path / "x")


@pytest.mark.parametrize("state", [None, {}, {"value": 256}, {"value": "x"}, {"value": 1, "more": 1}])
def test_a_devices_malformed_state_is_refused_before_anything_changes(counter: Machine, state: Json) -> None:
    counter.pio.register(Latch(), 0x66, 1)
    snapshot = counter.snapshot()
    broken = Snapshot(
        snapshot.shape,
        {},
        snapshot.vcpus,
        snapshot.vm,
        {**snapshot.devices, "latch (0)": state},  # type: ignore[dict-item]
        snapshot.situation,
    )
    with pytest.raises(ConfigurationError, match="latch"):
        counter.restore(broken)
    assert counter.run(LONG).stop == DebugExitWritten(1)
