"""Machines of several CPUs: how they start, who they are, how a run ends for all of them, and devices they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from pykvm import Machine, assemble
from pykvm.boot import Image, find_guest, open_image
from pykvm.errors import ConfigurationError
from pykvm.kvm import Shutdown
from pykvm.machine import Crashed, DebugExitWritten, Halted, PoweredOff, ResetRequested, TimedOut, runloop
from pykvm.testing import Guests
from pykvm.units import Gpa

WITH_APIC = ["kernel", "split"]
LONG = 30.0  # seconds: a limit that no test reaches
DATA = Gpa(0x180000)  # where guests leave what the tests look at
PORT = 0x300  # of the test's own device

# CPU n, by APIC id, goes to cpu<n>.
SEVERAL = """
        .include "layout.inc"
        .include "apic.inc"
        .include "idt64.inc"
        .include "smp.inc"
        .globl  _start
        .set    data, 0x180000
_start:
        start_other_cpus trampoline
other_cpu:
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)
        mov     LAPIC_ID(%rbx), %edi
        shr     $24, %edi                       # EDI: which CPU this is
        mov     %edi, %eax
        shl     $12, %eax
        lea     0x191000(%rax), %esp
        mov     table(, %rdi, 8), %rax
        jmp     *%rax
        define_trampoline trampoline, other_cpu
        .balign 8
table:  .quad   cpu0, cpu1, cpu2, cpu3
"""
SPIN = "jmp ."
HALT = "1: cli; hlt; jmp 1b"


def several(*works: str) -> Image:
    """A guest whose CPU n does ``works[n]``; CPUs beyond do what the last of these does."""
    labels = [f"cpu{number}:\n" for number in range(4)]
    bodies = [label + work + "\n" for label, work in zip(labels, works, strict=False)]
    return assemble(SEVERAL + "".join([*bodies[:-1], *labels[len(works) :], bodies[-1]]), mode="long")


class Device:
    """A device whose write calls what it was made with."""

    name = "device"

    def __init__(self, on_write: Callable[[int, bytes], object]) -> None:
        self.on_write = on_write

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.on_write(offset, data)


def fail(*arguments: object) -> int:
    raise ZeroDivisionError("the device is broken")


def fail_to_write(value: int) -> None:
    fail(value)


# ---- the guest of the book ----


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_four_cpus_count_to_100000_under_a_spinlock(guest: Guests, irqchip: str) -> None:
    bundled = find_guest("20-spinlock")
    assert bundled is not None
    result = guest(open_image(bundled.image), timeout=60, memory=bundled.memory, irqchip=irqchip, cpus=4)
    assert result.stop == Halted()
    assert result.serial.text == "100000\n"
    assert [cpu.activity for cpu in result.run.cpus] == ["halted"] * 4


# ---- who is who ----


@pytest.mark.parametrize("irqchip", WITH_APIC)
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_cpuid_tells_each_cpu_its_apic_id(guest: Guests, irqchip: str, cpus: int) -> None:
    ask = (
        """
        mov     %edi, %r8d
        shl     $4, %r8d
        mov     $1, %eax
        cpuid
        shr     $24, %ebx
        mov     %ebx, data(%r8)                 # leaf 1: the initial APIC id
        mov     $0xb, %eax
        xor     %ecx, %ecx
        cpuid
        mov     %edx, data + 4(%r8)             # leaf 0xb: the x2APIC id
        movl    $1, data + 8(%r8)
    """
        + HALT
    )
    machine = guest.machine("2M", irqchip=irqchip, cpus=cpus)
    machine.load(several(ask))
    assert machine.run(LONG).stop == Halted()
    told = [[machine.memory.read_u32(Gpa(DATA + 16 * cpu + at)) for at in (0, 4, 8)] for cpu in range(5)]
    has_leaf_b = machine.cpuid.leaf(0).eax >= 0xB
    expected = [[cpu, cpu if has_leaf_b else 0, 1] for cpu in range(cpus)]
    if not has_leaf_b:
        told = [[first, 0, last] for first, _, last in told]
    assert told == expected + [[0, 0, 0]] * (5 - cpus)


@pytest.mark.parametrize("cpus", [1, 2, 4, 16])
def test_the_madt_lists_every_cpu(guest: Guests, cpus: int) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=cpus)
    machine.load(assemble("hlt", mode="long"))
    bios = machine.memory.read(Gpa(0xE0000), 0x20000)
    start = bios.index(b"APIC", bios.index(b"RSD PTR ") + 8)
    table = bios[start : start + int.from_bytes(bios[start + 4 : start + 8], "little")]
    assert sum(table) % 256 == 0
    ids, at = [], 44
    while at < len(table):
        kind, length = table[at : at + 2]
        if kind == 0:  # a local APIC: ACPI processor id, APIC id, flags
            assert table[at + 4] & 1, "enabled"
            ids.append(table[at + 3])
        at += length
    assert ids == list(range(cpus))


def test_all_cpus_start_again_when_a_guest_is_loaded_again(guest: Guests) -> None:
    say = f"movb $1, data(%rdi); {HALT}"
    machine = guest.machine("2M", irqchip="kernel", cpus=4)
    for _ in range(3):
        machine.memory.write(DATA, bytes(4))
        machine.load(several(say))
        assert machine.run(LONG).stop == Halted()
        assert machine.memory.read(DATA, 4) == b"\x01" * 4


# ---- how a run ends ----


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_the_result_says_what_each_cpu_was_about(guest: Guests, irqchip: str) -> None:
    exit_code = "mov $1, %ecx; 1: cmpb $1, data; jne 1b; cmpb $1, data + 1; jne 1b; mov $5, %al; out %al, $0xf4; jmp ."
    cpu0 = "movb $1, data; jmp ."
    cpu2 = f"movb $1, data + 1; {HALT}"
    result = guest(several(cpu0, exit_code, cpu2, HALT), timeout=LONG, memory="2M", irqchip=irqchip, cpus=4)
    assert (result.stop, result.run.cpu, result.exit_code) == (DebugExitWritten(5), 1, 11)
    assert [cpu.id for cpu in result.run.cpus] == [0, 1, 2, 3]
    assert [cpu.stop for cpu in result.run.cpus] == [None, DebugExitWritten(5), None, None]
    assert [cpu.activity for cpu in result.run.cpus][:2] == ["running", "running"]
    assert result.registers == result.run.cpus[1].registers
    assert result.sregs == result.run.cpus[1].sregs


def test_cpus_that_nobody_started_say_what_they_wait_for(guest: Guests) -> None:
    init = """
        .include "apic.inc"
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)
        movl    $2 << 24, LAPIC_ICR_HIGH(%rbx)
        movl    $ICR_ASSERT | ICR_INIT, LAPIC_ICR_LOW(%rbx)
        cli
        hlt
    """
    machine = guest.machine("2M", irqchip="kernel", cpus=3)
    machine.load(assemble(init, mode="long"))
    result = machine.run(LONG)
    assert result.stop == Halted(), "those that wait do not keep it alive"
    assert [cpu.activity for cpu in result.cpus] == ["halted", "waits for INIT", "waits for SIPI"]
    assert "CPU 2: waits for SIPI" in machine.result(TimedOut(1.0)).report


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_a_machine_whose_cpus_all_halt_with_interrupts_off_is_over(guest: Guests, irqchip: str) -> None:
    result = guest(several(HALT), timeout=LONG, memory="2M", irqchip=irqchip, cpus=4)
    assert result.stop == Halted()
    assert [cpu.stop for cpu in result.run.cpus] == [Halted(), None, None, None]


@pytest.mark.parametrize("spinning", [0, 1, 3])
def test_one_cpu_that_spins_keeps_the_run_going(guest: Guests, spinning: int) -> None:
    works = [SPIN if cpu == spinning else HALT for cpu in range(4)]
    result = guest(several(*works), timeout=0.4, memory="2M", irqchip="kernel", cpus=4)
    assert result.stop == TimedOut(0.4)
    assert result.run.cpus[spinning].activity == "running"


@pytest.mark.parametrize("irqchip", WITH_APIC)
@pytest.mark.parametrize("culprit", [0, 1, 3])
def test_a_crash_of_one_cpu_stops_all_and_is_reported_with_all(guest: Guests, irqchip: str, culprit: int) -> None:
    works = ["lidt empty; ud2; empty: .word 0; .quad 0" if cpu == culprit else SPIN for cpu in range(4)]
    result = guest(several(*works), timeout=LONG, memory="2M", irqchip=irqchip, cpus=4)
    assert isinstance(result.stop, Crashed)
    assert result.stop.exit == Shutdown()
    assert result.run.cpu == culprit
    assert result.run.status == 125
    for words in ("triple fault", f"{culprit} of 0 to 3", *(f"CPU {cpu}: " for cpu in range(4) if cpu != culprit)):
        assert words in result.report


@pytest.mark.parametrize(
    ("work", "stop"),
    [
        ("mov $9, %al; out %al, $0xf4; jmp .", DebugExitWritten(9)),
        ("mov $0x604, %dx; mov $0x2000, %ax; out %ax, (%dx); jmp .", PoweredOff()),
        ("mov $0xfe, %al; out %al, $0x64; jmp .", ResetRequested("the keyboard controller, port 0x64")),
    ],
    ids=["debug exit", "S5", "reset"],
)
def test_all_cpus_asking_for_the_end_at_once_end_the_run_once(guest: Guests, work: str, stop: object) -> None:
    result = guest(several(work), timeout=LONG, memory="2M", irqchip="kernel", cpus=4)
    assert result.stop == stop
    assert [cpu.stop for cpu in result.run.cpus].count(None) == 3
    assert result.run.cpus[result.run.cpu].stop == stop


# ---- errors on other CPUs' threads ----


@pytest.mark.parametrize("irqchip", WITH_APIC)
@pytest.mark.parametrize("cpu", [0, 1])
def test_what_a_device_raises_comes_out_once_and_says_on_which_cpu(guest: Guests, irqchip: str, cpu: int) -> None:
    works = [f"mov $0x300, %dx; out %al, (%dx); {SPIN}" if number == cpu else SPIN for number in range(2)]
    machine = guest.machine("2M", irqchip=irqchip, cpus=2)
    machine.pio.register(Device(fail), PORT, 1)
    machine.load(several(*works))
    with pytest.raises(ZeroDivisionError, match="broken") as caught:
        machine.run(LONG)
    notes = "\n".join(caught.value.__notes__)
    assert f"on CPU {cpu}" in notes
    assert "rip" in notes
    assert machine.run(0.1).stop == TimedOut(0.1), "the guest goes on behind its OUT"


def test_what_an_msr_handler_raises_comes_out_once_and_says_on_which_cpu(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.msr.on_read(0x1234, fail)
    machine.msr.on_write(0x1234, fail_to_write)
    machine.load(several(SPIN, f"mov $0x1234, %ecx; wrmsr; {SPIN}"))
    with pytest.raises(ZeroDivisionError, match="broken") as caught:
        machine.run(LONG)
    assert len([note for note in caught.value.__notes__ if "on CPU 1" in note]) == 1
    assert machine.run(0.1).stop == TimedOut(0.1)


def test_errors_on_all_cpus_at_once_come_out_as_one(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=4)
    machine.pio.register(Device(fail), PORT, 1)
    image = several(f"mov $0x300, %dx; 1: out %al, (%dx); {SPIN}")
    for _ in range(20):
        machine.load(image)
        with pytest.raises(ZeroDivisionError):
            machine.run(LONG)
    machine.load(several(SPIN))
    assert machine.run(0.1).stop == TimedOut(0.1)


# ---- shared devices ----

TIMES = 400


def times(body: str, count: int = TIMES) -> str:
    """Code that does ``body`` ``count`` times; ECX is the counter."""
    return f"mov ${count}, %ecx; 1: {body}; dec %ecx; jnz 1b; {HALT}"


def test_a_counter_that_four_cpus_hammer_is_exact(guest: Guests) -> None:
    seen: Counter[int] = Counter()
    total = [0]

    def count(offset: int, data: bytes) -> None:
        value = total[0]  # read, add, write: three steps that another thread must not come between
        seen[data[0]] += 1
        total[0] = value + 1

    machine = guest.machine("2M", irqchip="kernel", cpus=4)
    machine.pio.register(Device(count), PORT, 1)
    machine.load(several("mov %edi, %eax; mov $0x300, %dx; " + times("out %al, (%dx)")))
    assert machine.run(LONG).stop == Halted()
    assert total == [4 * TIMES]
    assert seen == dict.fromkeys(range(4), TIMES)


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_bytes_that_four_cpus_print_all_arrive(guest: Guests, irqchip: str) -> None:
    result = guest(
        several("lea 'a'(%rdi), %eax; mov $0x3f8, %dx; " + times("out %al, (%dx)")),
        timeout=LONG,
        memory="2M",
        irqchip=irqchip,
        cpus=4,
    )
    assert result.stop == Halted()
    assert Counter(result.serial.text) == dict.fromkeys("abcd", TIMES)


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_a_cmos_byte_that_four_cpus_count_in_under_a_lock_is_right(guest: Guests, irqchip: str) -> None:
    step = """
2:      lock btsl $0, data
        jc      2b
        mov     $0x50, %al
        out     %al, $0x70
        in      $0x71, %al
        inc     %eax
        out     %al, $0x71
        movl    $0, data"""
    machine = guest.machine("2M", irqchip=irqchip, cpus=4)
    machine.load(several(times(step, 50)))
    assert machine.run(LONG).stop == Halted()
    with machine.lock:
        machine.pio.write(0x70, b"\x50")
        assert machine.pio.read(0x71, 1) == bytes([200])


def test_devices_of_all_kinds_bear_four_cpus_at_once(guest: Guests) -> None:
    ports = [0x21, 0xA1, 0x40, 0x43, 0x60, 0x64, 0x70, 0x71, 0x3D4, 0x3D5, 0x3F9, 0x3FA, 0x510, 0x511, 0x600, 0xCF8]
    accesses = "; ".join(f"mov ${port}, %dx; mov %ecx, %eax; out %al, (%dx); in (%dx), %al" for port in ports)
    machine = guest.machine("2M", irqchip="split", cpus=4)
    machine.load(several(times(accesses, 30)))
    assert isinstance(machine.run(LONG).stop, Halted | ResetRequested)


# ---- interrupts between CPUs ----

NMI_PING_PONG = """
        set_gate idt, 2, taken
        lidt    pointer
        movl    $0, %esi
        cmp     $0, %edi
        jne     wait
        movb    $1, data                        # CPU 0 has made the IDT
look:
        cmpb    $1, data + 1
        jne     look
        call    send
wait:
        lidt    pointer
        movb    $1, data + 1
idle:
        hlt                                     # RFLAGS.IF = 0: an NMI alone ends this
        jmp     idle
taken:
        incl    data + 8
        cmpl    $3000, data + 8
        jae     over
        call    send
        iretq
over:
        mov     $7, %al
        out     %al, $0xf4
        iretq
send:
        mov     %edi, %eax
        xor     $1, %eax
        shl     $24, %eax
        mov     %eax, LAPIC_ICR_HIGH(%rbx)
        movl    $ICR_NMI | ICR_ASSERT, LAPIC_ICR_LOW(%rbx)
        ret
pointer:
        .word   16 * 3 - 1
        .quad   idt
        .bss
        .balign 16
idt:    .skip   16 * 3
"""


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_cpus_that_wake_each_other_by_nmi_are_never_taken_for_idle(
    guest: Guests, irqchip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are halted with interrupts off most of the time, and an NMI is on its way from one to the other."""
    monkeypatch.setattr(runloop, "TICK", 0.001)  # look a hundred times as often
    assert guest(several(NMI_PING_PONG), timeout=LONG, memory="2M", irqchip=irqchip, cpus=2).stop == DebugExitWritten(7)


@pytest.mark.parametrize("irqchip", WITH_APIC)
@pytest.mark.parametrize("cpu", [0, 1])
def test_an_nmi_from_outside_reaches_the_cpu_it_is_for(guest: Guests, irqchip: str, cpu: int) -> None:
    work = """
        set_gate idt, 2, taken
        lidt    pointer
        lock incl data
        movw    $1, %ax
        mov     $0x300, %dx
        out     %ax, (%dx)
1:      hlt
        jmp     1b
taken:
        mov     %edi, %eax
        out     %al, $0xf4
        jmp     .
pointer:
        .word   16 * 3 - 1
        .quad   idt
        .bss
        .balign 16
idt:    .skip   16 * 3
    """
    machine = guest.machine("2M", irqchip=irqchip, cpus=2)
    ready: list[bytes] = []

    def on_ready(offset: int, data: bytes) -> None:
        ready.append(data)
        if len(ready) == 2:
            machine.nmi(cpu)

    machine.pio.register(Device(on_ready), PORT, 2)
    image = several(work)
    for _ in range(50):
        ready.clear()
        machine.load(image)
        result = machine.run(LONG)
        assert (result.stop, result.cpu) == (DebugExitWritten(cpu), cpu), "it is on its way: this is not idleness"


# ---- bad input ----


@pytest.mark.parametrize("irqchip", ["none", "user", "kernel", "split"])
@pytest.mark.parametrize("cpus", [0, -1, 256, 10**6])
def test_a_number_of_cpus_that_cannot_be_is_refused(irqchip: str, cpus: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"1 to \d+ CPUs on this host, not {cpus}"):
        Machine("1M", irqchip=irqchip, cpus=cpus)


@pytest.mark.parametrize("irqchip", ["none", "user"])
def test_several_cpus_need_local_apics(irqchip: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s)2 CPUs need local APICs.*kernel or split.*not {irqchip}"):
        Machine("1M", irqchip=irqchip, cpus=2)


def test_a_device_or_an_irqchip_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"toaster.*testdev"):
        Machine("1M", devices=["toaster"])
    with pytest.raises(ConfigurationError, match="none, user, kernel, split"):
        Machine("1M", irqchip="ioapic")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_ends_the_run_of_all_cpus(guest: Guests, timeout: float) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.load(several(SPIN))
    with pytest.raises(ConfigurationError, match="time limit"):
        machine.run(timeout)
    assert machine.run(0.05).stop == TimedOut(0.05)


def test_an_nmi_for_a_cpu_that_there_is_not_is_refused(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    for cpu in (-1, 2):
        with pytest.raises(ConfigurationError, match="0 to 1"):
            machine.nmi(cpu)
