"""Interrupts as a guest sees them: the same chips in user space, in the kernel, and half and half."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pykvm import Machine, assemble
from pykvm.boot import find_guest, open_image
from pykvm.devices import parse_keys
from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm import IoapicEoi, MsiRoute
from pykvm.machine import DebugExitWritten, Halted, RunResult, Stopped
from pykvm.testing import Guests, WatchedMachine
from pykvm.testing.exits import select

IRQCHIPS = ("user", "kernel", "split")
WITH_APIC = ("kernel", "split")

PORT = 0x66  # of the test's own
ARRIVED = 0x80  # what guests tell that are not interrupts
DONE = 0x81
NMI = 2  # a vector
VECTOR = 0x50  # of interrupts that come by the I/O APIC or as messages
TO_CPU_0 = 0xFEE0_0000
LIMIT = 30  # seconds: a bound on what takes milliseconds

# Guests in long mode. Every handler tells its IRQ, or its vector, at PORT, and counts.
HEAD = """
        .include "ports.inc"
        .include "layout.inc"
        .include "idt64.inc"
        .include "pic.inc"
        .include "apic.inc"

        .set    PORT, 0x66
        .set    ARRIVED, 0x80
        .set    DONE, 0x81
        .set    VECTOR, 0x50
        .set    ELCR, 0x4d0
        .set    IOAPIC, 0xfec00000
        .set    IOAPIC_LEVEL, 1 << 15
        .set    IOAPIC_MASKED, 1 << 16
        .set    ONLY_TIMER_MASKED, 1

        .macro  tell value
        mov     $\\value, %al
        out     %al, $PORT
        .endm

        .macro  end_of_irq irq
        mov     $OCW2_EOI, %al
        .if     \\irq >= 8
        out     %al, $PIC2_COMMAND
        .endif
        out     %al, $PIC1_COMMAND
        .endm

        .macro  ioapic_write pin, value
        mov     $IOAPIC, %ecx
        movl    $0x10 + 2 * \\pin, (%rcx)
        movl    $\\value, 0x10(%rcx)
        .endm

        .macro  lapic_on
        set_gate idt, VECTOR, message
        set_gate idt, SPURIOUS_VECTOR, ignore
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%rbx)
        .endm

        .macro  moment                          # in which an interrupt could come
        mov     $500, %ecx
.Lmoment\\@:
        loop    .Lmoment\\@
        .endm

        .macro  finish
        out     %al, $DEBUG_EXIT
        .endm

        .code64
        .globl  _start
_start:
        .irp    irq, 0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        set_gate idt, (PIC_VECTOR+\\irq), irq\\irq
        .endr
        set_gate idt, 2, nmi
        lidt    idt_pointer
        pic_init ONLY_TIMER_MASKED, 0
"""
HANDLERS = """
        .irp    irq, 0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
irq\\irq:
        push    %rax
        incl    count
        tell    \\irq
        end_of_irq \\irq
        pop     %rax
        iretq
        .endr
nmi:
        push    %rax
        incl    count
        tell    2
        pop     %rax
        iretq
message:
        push    %rax
        incl    count
        tell    VECTOR
        lapic_eoi
        pop     %rax
ignore:
        iretq
"""
IRQ5 = """
irq5:
        push    %rax
        incl    count
        tell    5
        end_of_irq 5
        pop     %rax
        iretq
"""
TAIL = """
idt_pointer:
        .word   16 * 256 - 1
        .quad   idt
        .bss
        .balign 16
        .globl  count
idt:
        .skip   16 * 256
count:
        .skip   4
"""


WAIT = "sti; 1: cmpl ${count}, count; jb 1b; moment; tell ARRIVED; mov $DONE, %al; finish"


class Port:
    """A port where the guest tells the test what has happened; the test may act on it at once."""

    name = "the test's port"

    def __init__(self) -> None:
        self.told: list[int] = []
        self.act: Callable[[int], object] = lambda value: None

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.told.append(data[0])
        self.act(data[0])


class Bench:
    """A machine with a guest that tells what happens to it."""

    def __init__(self, machine: WatchedMachine, count: int) -> None:
        self.machine = machine
        self.port = Port()
        self._count = count
        machine.pio.register(self.port, PORT, 1)

    @property
    def told(self) -> list[int]:
        return self.port.told

    @property
    def count(self) -> int:
        """How many interrupts the guest has counted."""
        return self.machine.memory.read_u32(self._count)

    def drive(self, irq: int, level: bool) -> None:
        with self.machine.lock:
            self.machine.interrupts.drive(irq, level)

    def pulse(self, *irqs: int) -> None:
        """Make an edge on each line, in this order."""
        for irq in irqs:
            self.drive(irq, True)
            self.drive(irq, False)

    def run(self) -> RunResult:
        """Run the guest to its end."""
        result = self.machine.run(LIMIT)
        assert result.stop == DebugExitWritten(DONE), result.report
        return result


@contextmanager
def bench(irqchip: str, *code: str, irq5: str = IRQ5, **arguments: object) -> Iterator[Bench]:
    image = assemble("\n".join([HEAD, *code, HANDLERS, irq5, TAIL]))
    count = next(symbol.address for symbol in image.symbols if symbol.name == "count")
    with WatchedMachine("2M", irqchip=irqchip, **arguments) as machine:  # type: ignore[arg-type]
        machine.load(image)
        yield Bench(machine, count)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# ---- the bundled guests: one text, whatever the arrangement ----


PIC_GUESTS = ("15-timer", "17-keyboard", "18-serial-irq", "28-scheduler")
APIC_GUESTS = ("16-lapic-timer", "23-nmi")


@pytest.mark.parametrize(
    ("name", "irqchip"),
    [
        *((name, irqchip) for name in PIC_GUESTS for irqchip in IRQCHIPS),
        *((name, irqchip) for name in APIC_GUESTS for irqchip in WITH_APIC),
    ],
)
def test_a_guest_prints_the_same_under_every_arrangement(guest: Guests, name: str, irqchip: str) -> None:
    bundled = find_guest(name)
    assert bundled is not None
    result = guest(
        open_image(bundled.image),
        mode=bundled.mode,
        input=bundled.input.encode(),
        setup=lambda machine: machine.board.keyboard.enqueue(parse_keys(bundled.keys)),
        timeout=LIMIT,
        memory=bundled.memory,
        irqchip=irqchip,
    )
    assert result.serial.text == bundled.expect.serial
    assert result.run.status == bundled.expect.status


# ---- the 8259A pair ----


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_of_several_requests_the_highest_priority_comes_first(irqchip: str) -> None:
    with bench(irqchip, "tell ARRIVED; sti; 1: cmpl $6, count; jb 1b; mov $DONE, %al; finish") as guest:
        guest.port.act = lambda value: guest.pulse(7, 5, 12, 3, 10, 1) if value == ARRIVED else None
        guest.run()
    assert guest.told == [ARRIVED, 1, 10, 12, 3, 5, 7], "the slave's lines are where the master's line 2 is"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_an_interrupt_in_service_gives_way_to_higher_priorities_only(irqchip: str) -> None:
    handler = """
irq5:
        push    %rax
        tell    5                               # the test raises 6 and 3
        sti
1:      cmpl    $1, count                       # 3 comes in between ...
        jb      1b
        moment
        cli
        tell    ARRIVED                         # ... and 6 does not, before this:
        end_of_irq 5
        pop     %rax
        iretq
"""
    wait = "tell 0xff; sti; 1: cmpl $2, count; jb 1b; mov $DONE, %al; finish"
    with bench(irqchip, wait, irq5=handler) as guest:
        actions = {0xFF: (5,), 5: (6, 3)}
        guest.port.act = lambda value: guest.pulse(*actions.get(value, ()))
        guest.run()
    assert guest.told == [0xFF, 5, 3, ARRIVED, 6]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_masked_line_waits_until_it_is_unmasked(irqchip: str) -> None:
    code = """
        mov     $~(1 << 3) & 0xff, %al          # only IRQ 3 is let through
        out     %al, $PIC1_DATA
        tell    0xff                            # the test raises 5 and 3
        sti
1:      cmpl    $1, count
        jb      1b
        tell    ARRIVED
        mov     $ONLY_TIMER_MASKED, %al
        out     %al, $PIC1_DATA
1:      cmpl    $2, count
        jb      1b
        mov     $DONE, %al
        finish
"""
    with bench(irqchip, code) as guest:
        guest.port.act = lambda value: guest.pulse(5, 3) if value == 0xFF else None
        guest.run()
    assert guest.told == [0xFF, 3, ARRIVED, 5]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_interrupts_held_off_by_cli_arrive_after_sti(irqchip: str) -> None:
    with bench(irqchip, "tell 0xff; moment; tell 0xfe;" + WAIT.format(count=1)) as guest:
        guest.port.act = lambda value: guest.pulse(5) if value == 0xFF else None
        guest.run()
    assert guest.told == [0xFF, 0xFE, 5, ARRIVED]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize(("elcr", "times"), [(1 << 5, 3), (0, 1)], ids=["level", "edge"])
def test_a_level_that_stays_fires_again_after_its_eoi_and_an_edge_does_not(irqchip: str, elcr: int, times: int) -> None:
    code = f"""
        mov     $ELCR, %dx
        mov     ${elcr}, %al
        out     %al, (%dx)
        tell    0xff                            # the test raises the line, and lowers it when it is served
        sti
1:      cmpl    ${times}, count
        jb      1b
        moment
        tell    ARRIVED
        mov     $DONE, %al
        finish
"""
    with bench(irqchip, code) as guest:

        def act(value: int) -> None:
            if value == 0xFF:
                guest.drive(5, True)
            elif guest.told.count(5) == times and elcr:
                guest.drive(5, False)

        guest.port.act = act
        guest.run()
    assert guest.told == [0xFF, *times * [5], ARRIVED]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_level_that_goes_before_it_is_taken_leaves_nothing_behind(irqchip: str) -> None:
    code = """
        mov     $ELCR, %dx
        mov     $1 << 5, %al
        out     %al, (%dx)
        tell    0xff                            # the test raises the line ...
        tell    0xfe                            # ... and lowers it
        sti
        moment
        tell    0xfd                            # and here it makes a pulse on another
        moment
        mov     $DONE, %al
        finish
"""
    with bench(irqchip, code) as guest:
        actions: dict[int, Callable[[], None]] = {
            0xFF: lambda: guest.drive(5, True),
            0xFE: lambda: guest.drive(5, False),
            0xFD: lambda: guest.pulse(3),
        }
        guest.port.act = lambda value: actions.get(value, lambda: None)()
        guest.run()
    assert guest.told == [0xFF, 0xFE, 0xFD, 3]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_level_that_another_thread_takes_back_at_any_moment_is_spurious_at_worst(irqchip: str) -> None:
    code = """
        mov     $ELCR, %dx
        mov     $1 << 5, %al
        out     %al, (%dx)
        tell    ARRIVED
        sti
1:      jmp     1b
"""
    quiet = """
irq5:
        push    %rax
        incl    count
        end_of_irq 5
        pop     %rax
        iretq
"""
    with bench(irqchip, code, irq5=quiet) as guest:
        started = threading.Event()
        guest.port.act = lambda value: started.set() if value == ARRIVED else None

        def wobble() -> None:
            dice = random.Random(5)
            started.wait(LIMIT)
            for _ in range(300):
                guest.drive(5, True)
                time.sleep(dice.choice((0, 0, 0.0001, 0.0003)))
                guest.drive(5, False)
            guest.port.act = lambda value: guest.machine.stop() if value == 3 else None
            guest.pulse(3)  # still alive?

        thread = in_thread(wobble)
        assert guest.machine.run(LIMIT).stop == Stopped()
        thread.join()
        assert guest.count > 0
    assert set(guest.told) <= {ARRIVED, 3, 7}


RTC_PERIODIC = """
        .set    CMOS_INDEX, 0x70
        .set    CMOS_DATA, 0x71
        .macro  rtc_read register
        mov     $\\register, %al
        out     %al, $CMOS_INDEX
        in      $CMOS_DATA, %al
        .endm
        mov     $0x0b, %al                      # register B
        out     %al, $CMOS_INDEX
        mov     $0x42, %al                      # PIE: periodic, 1024 Hz as firmware leaves it; 24 hours
        out     %al, $CMOS_DATA
"""
RTC_HANDLER = """
        set_gate idt, (PIC_VECTOR+8), rtc
        sti
        jmp     go
rtc:
        push    %rax
        incl    count
        tell    8
        rtc_read 0x0c                           # lets the line go
        mov     $OCW2_EOI, %al
        {eoi}
        pop     %rax
        iretq
go:
"""
BOTH_EOIS = "out %al, $PIC2_COMMAND; out %al, $PIC1_COMMAND"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_clocks_periodic_interrupt_comes_through_the_slave(irqchip: str) -> None:
    wait = "1: hlt; cmpl $10, count; jb 1b; mov $DONE, %al; finish"
    with bench(irqchip, RTC_PERIODIC, RTC_HANDLER.format(eoi=BOTH_EOIS), wait) as guest:
        guest.run()
    assert guest.told[:10] == [8] * 10


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("eoi", ["out %al, $PIC2_COMMAND", "out %al, $PIC1_COMMAND"], ids=["slave", "master"])
def test_the_slaves_interrupt_needs_the_eoi_of_both(irqchip: str, eoi: str) -> None:
    wait = """
1:      cmpl    $1, count
        jb      1b
        mov     $4, %ecx
1:      rtc_read 0x0c                           # four more periods pass, each an edge of IRQ 8
        test    $0x40, %al                      # PF
        jz      1b
        loop    1b
        mov     $DONE, %al
        finish
"""
    with bench(irqchip, RTC_PERIODIC, RTC_HANDLER.format(eoi=eoi), wait) as guest:
        guest.run()
    assert guest.told == [8]


# ---- none is lost ----

SPIN = "tell ARRIVED; sti; 1: jmp 1b"
HALT = "tell ARRIVED; 1: sti; hlt; jmp 1b"
TOGGLE = "tell ARRIVED; 1: sti; .rept 20; nop; .endr; cli; jmp 1b"
EXITS = "tell ARRIVED; sti; 1: out %al, $0x80; jmp 1b"


def count_edges(guest: Bench, make_edge: Callable[[], object], told: int, edges: int = 200) -> None:
    """Make ``edges`` edges at random moments, each when the guest has told that it took the one before."""
    taken = threading.Semaphore(0)
    guest.port.act = lambda value: taken.release() if value in (ARRIVED, told) else None

    def make_edges() -> None:
        dice = random.Random(8259)
        for _ in range(edges):
            if not taken.acquire(timeout=LIMIT):
                break
            time.sleep(dice.choice((0, 0, 0.0001, 0.0005)))
            make_edge()
        taken.acquire(timeout=LIMIT)
        guest.machine.stop()

    thread = in_thread(make_edges)
    assert guest.machine.run(2 * LIMIT).stop == Stopped()
    thread.join()
    assert guest.count == edges
    assert guest.told == [ARRIVED, *edges * [told]]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize(
    ("code", "edges"),
    [(SPIN, 200), (HALT, 200), (TOGGLE, 200), (EXITS, 200)],
    ids=["spinning", "halted", "sti-cli", "exiting"],
)
def test_no_edge_from_another_thread_is_lost_or_doubled(code: str, edges: int, irqchip: str) -> None:
    with bench(irqchip, code) as guest:
        count_edges(guest, lambda: guest.pulse(5), told=5, edges=edges)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("code", [SPIN, HALT], ids=["spinning", "halted"])
def test_edges_made_during_a_pause_arrive_after_it(code: str, irqchip: str) -> None:
    with bench(irqchip, code) as guest:
        machine, started = guest.machine, threading.Event()
        guest.port.act = lambda value: started.set() if value == ARRIVED else None

        def pause_and_make_edges() -> None:
            started.wait(LIMIT)
            for irqs in ((5,), (12, 5, 3)):
                machine.pause()
                before = guest.count
                guest.pulse(*irqs)
                time.sleep(0.005)
                assert guest.count == before
                machine.resume()
                while guest.count < before + len(irqs):
                    time.sleep(0.001)
            machine.stop()

        thread = in_thread(pause_and_make_edges)
        assert machine.run(LIMIT).stop == Stopped()
        thread.join()
    assert guest.told == [ARRIVED, 5, 12, 3, 5]


@pytest.mark.parametrize("code", [SPIN, HALT], ids=["spinning", "halted"])
def test_no_edge_of_an_irqfd_is_lost_or_doubled(code: str) -> None:
    with bench("kernel", code) as guest:
        line = guest.machine.interrupts.irqfd(5, "test")
        count_edges(guest, lambda: os.eventfd_write(line.fd, 1), told=5)


@pytest.mark.parametrize("irqchip", WITH_APIC)
@pytest.mark.parametrize("code", [SPIN, HALT], ids=["spinning", "halted"])
def test_no_message_is_lost_or_doubled(code: str, irqchip: str) -> None:
    with bench(irqchip, "lapic_on", code) as guest:
        count_edges(guest, lambda: guest.machine.interrupts.signal_msi(TO_CPU_0, VECTOR), told=VECTOR)


# ---- the I/O APIC ----

IN_SERVICE = """
irq5:
        iretq
served:
        push    %rax
        incl    count
        mov     $LAPIC, %eax
        mov     0x120(%rax), %edi               # ISR of vectors 0x40 to 0x5f: bit 16 is VECTOR
        tell    VECTOR
        lapic_eoi
        pop     %rax
        iretq
"""


@pytest.fixture(scope="module")
def ends_early() -> bool:
    """Whether the host's local APIC ends an interrupt when it delivers it, and does not wait for the EOI.

    Some hosts do, which are guests themselves. A level that is taken back in the handler is then one interrupt late.
    """
    code = "lapic_on; set_gate idt, VECTOR, served; tell 0xff;" + WAIT.format(count=1)
    with bench("kernel", code, irq5=IN_SERVICE) as guest:
        send = guest.machine.interrupts.signal_msi
        guest.port.act = lambda value: send(TO_CPU_0, VECTOR) if value == 0xFF else None
        return not guest.run().registers.rdi >> 16 & 1


def check_level(told: list[int], times: int, ends_early: bool) -> None:
    """Check that a level fired ``times`` times until it was taken back."""
    assert told.count(VECTOR) in ((times, times + 1) if ends_early else (times,))


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_a_level_triggered_pin_that_stays_active_fires_again_after_its_eoi(irqchip: str, ends_early: bool) -> None:
    code = "lapic_on; ioapic_write 20, VECTOR|IOAPIC_LEVEL; tell 0xff;" + WAIT.format(count=3)
    with bench(irqchip, code) as guest:

        def act(value: int) -> None:
            if value == 0xFF:
                guest.drive(20, True)
            elif guest.told.count(VECTOR) == 3:
                guest.drive(20, False)

        guest.port.act = act
        guest.run()
    assert guest.told[:4] == [0xFF, VECTOR, VECTOR, VECTOR]
    check_level(guest.told, 3, ends_early)
    ends = select(guest.machine.watched.exits(), IoapicEoi)
    assert ends == (guest.told.count(VECTOR) * [IoapicEoi(VECTOR)] if irqchip == "split" else [])


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_an_edge_triggered_pin_fires_once_for_each_edge(irqchip: str) -> None:
    code = "lapic_on; ioapic_write 21, VECTOR; tell 0xff;" + WAIT.format(count=2)
    with bench(irqchip, code) as guest:

        def act(value: int) -> None:
            if value == 0xFF:
                guest.drive(21, True)
            elif guest.told.count(VECTOR) == 1:
                guest.drive(21, False)
                guest.drive(21, True)

        guest.port.act = act
        guest.run()
    assert guest.told == [0xFF, VECTOR, VECTOR, ARRIVED]
    assert select(guest.machine.watched.exits(), IoapicEoi) == []


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_a_level_on_a_masked_pin_waits_until_it_is_unmasked(irqchip: str, ends_early: bool) -> None:
    code = """
        lapic_on
        ioapic_write 22, VECTOR|IOAPIC_LEVEL|IOAPIC_MASKED
        tell    0xff                            # the test raises the pin
        sti
        moment
        tell    0xfe
        ioapic_write 22, VECTOR|IOAPIC_LEVEL
"""
    with bench(irqchip, code + WAIT.format(count=1)) as guest:
        levels = {0xFF: True, VECTOR: False}
        guest.port.act = lambda value: guest.drive(22, levels[value]) if value in levels else None
        guest.run()
    assert guest.told[:3] == [0xFF, 0xFE, VECTOR]
    check_level(guest.told, 1, ends_early)


def test_an_edge_on_a_masked_pin_is_lost_in_the_split_irqchip() -> None:
    code = """
        lapic_on
        ioapic_write 22, VECTOR|IOAPIC_MASKED
        tell    0xff                            # the test makes an edge, ...
        sti
        ioapic_write 22, VECTOR
        moment
        tell    0xfe                            # ... and another
"""
    with bench("split", code + WAIT.format(count=1)) as guest:
        guest.port.act = lambda value: guest.pulse(22) if value >= 0xFE else None
        guest.run()
    assert guest.told == [0xFF, 0xFE, VECTOR, ARRIVED]


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_remote_irr_shows_that_a_level_is_in_service(irqchip: str, ends_early: bool) -> None:
    if ends_early:
        pytest.skip("this host's local APIC ends an interrupt when it delivers it")
    handler = """
irq5:
        iretq
served:
        push    %rax
        incl    count
        tell    VECTOR                          # the test lowers the pin
        mov     $IOAPIC, %ecx
        movl    $0x10 + 2 * 20, (%rcx)
        mov     0x10(%rcx), %edi
        lapic_eoi
        mov     0x10(%rcx), %esi
        pop     %rax
        iretq
"""
    code = """
        lapic_on
        set_gate idt, VECTOR, served
        ioapic_write 20, VECTOR|IOAPIC_LEVEL
        tell    0xff
"""
    with bench(irqchip, code + WAIT.format(count=1), irq5=handler) as guest:
        levels = {0xFF: True, VECTOR: False}
        guest.port.act = lambda value: guest.drive(20, levels[value]) if value in levels else None
        registers = guest.run().registers
    assert (registers.rdi >> 14 & 1, registers.rsi >> 14 & 1) == (1, 0)


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_the_timer_is_wired_to_pin_2_of_the_io_apic(irqchip: str) -> None:
    code = """
        lapic_on
        mov     $PIC_MASK_ALL, %al              # not by way of the 8259A
        out     %al, $PIC1_DATA
        ioapic_write 2, VECTOR
        mov     $0x34, %al                      # the 8254: channel 0, mode 2
        out     %al, $0x43
        mov     $0x10, %al                      # 0x1010 / 1.19 MHz: 3.4 ms
        out     %al, $0x40
        out     %al, $0x40
        sti
1:      hlt
        cmpl    $3, count
        jb      1b
        mov     $DONE, %al
        finish
"""
    with bench(irqchip, code) as guest:
        guest.run()
    assert guest.told[:3] == [VECTOR] * 3


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_the_8259a_reaches_the_cpu_by_lint0_and_not_when_that_is_masked(irqchip: str) -> None:
    code = """
        lapic_on
        movl    $LVT_MASKED | LVT_EXTINT, LAPIC_LVT_LINT0(%rbx)
        tell    0xff                            # the test makes an edge of IRQ 5
        sti
        moment
        tell    0xfe
        movl    $LVT_EXTINT, LAPIC_LVT_LINT0(%rbx)
"""
    with bench(irqchip, code + WAIT.format(count=1)) as guest:
        guest.port.act = lambda value: guest.pulse(5) if value == 0xFF else None
        guest.run()
    assert guest.told == [0xFF, 0xFE, 5, ARRIVED]


# ---- messages, routes, irqfds ----


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_a_message_from_a_device_interrupts_the_cpu(irqchip: str) -> None:
    with bench(irqchip, "lapic_on; tell 0xff;" + WAIT.format(count=1)) as guest:
        send = guest.machine.interrupts.signal_msi
        guest.port.act = lambda value: send(TO_CPU_0, VECTOR) if value == 0xFF else None
        guest.run()
    assert guest.told == [0xFF, VECTOR, ARRIVED]


def test_a_message_for_a_cpu_that_is_not_there_goes_nowhere() -> None:
    with bench("kernel", "lapic_on; tell 0xff; sti; moment; mov $DONE, %al; finish") as guest:
        send = guest.machine.interrupts.signal_msi
        guest.port.act = lambda value: send(TO_CPU_0 | 9 << 12, VECTOR)
        guest.run()
    assert guest.told == [0xFF]


def test_a_line_goes_where_the_routing_table_says() -> None:
    with bench("kernel", "lapic_on; tell 0xff;" + WAIT.format(count=1)) as guest:
        line = guest.machine.interrupts.line(20, "test")
        guest.machine.vm.set_gsi_routing([MsiRoute(20, TO_CPU_0, VECTOR)])
        guest.port.act = lambda value: line.set_level(True) if value == 0xFF else None
        guest.run()
    assert guest.told == [0xFF, VECTOR, ARRIVED]


def test_an_irqfd_makes_an_edge_when_its_line_goes_high() -> None:
    with bench("kernel", "lapic_on; ioapic_write 20, VECTOR; tell 0xff;" + WAIT.format(count=2)) as guest:
        line = guest.machine.interrupts.irqfd(20, "test")

        def act(value: int) -> None:
            if value in (0xFF, VECTOR) and guest.told.count(VECTOR) < 2:
                for level in (True, True, False, False):
                    line.set_level(level)

        guest.port.act = act
        guest.run()
    assert guest.told == [0xFF, VECTOR, VECTOR, ARRIVED]


def test_an_irqfd_that_is_closed_interrupts_no_more() -> None:
    with bench("kernel", "tell 0xff; sti; moment; tell ARRIVED; mov $DONE, %al; finish") as guest:
        line = guest.machine.interrupts.irqfd(5, "test")
        copy = os.dup(line.fd)
        line.close()
        line.close()
        guest.port.act = lambda value: os.eventfd_write(copy, 1)
        guest.run()
        os.close(copy)
    assert guest.told == [0xFF, ARRIVED]


# ---- NMI ----


@pytest.mark.parametrize("irqchip", ("none", *IRQCHIPS))
def test_an_nmi_from_another_thread_reaches_a_guest_that_spins_with_interrupts_off(irqchip: str) -> None:
    with bench(irqchip, "cli; tell ARRIVED; 1: cmpl $0, count; je 1b; mov $DONE, %al; finish") as guest:
        guest.port.act = lambda value: in_thread(guest.machine.nmi) if value == ARRIVED else None
        guest.run()
    assert guest.told == [ARRIVED, NMI]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_an_nmi_from_another_thread_wakes_a_guest_that_waits_for_interrupts(irqchip: str) -> None:
    with bench(irqchip, "sti; tell ARRIVED; hlt; mov $DONE, %al; finish") as guest:

        def wait_and_send() -> None:
            time.sleep(0.02)
            guest.machine.nmi()

        guest.port.act = lambda value: in_thread(wait_and_send) if value == ARRIVED else None
        guest.run()
    assert guest.told == [ARRIVED, NMI]


@pytest.mark.parametrize("irqchip", ("none", *IRQCHIPS))
def test_an_nmi_wakes_a_guest_that_has_halted_with_interrupts_off(irqchip: str) -> None:
    with bench(irqchip, "cli; tell ARRIVED; hlt; mov $DONE, %al; finish") as guest:
        assert guest.machine.run(LIMIT).stop == Halted()
        assert guest.told == [ARRIVED]
        guest.machine.nmi()
        guest.run()
    assert guest.told == [ARRIVED, NMI]


@pytest.mark.parametrize("irqchip", ("none", *IRQCHIPS))
def test_an_nmi_that_races_with_hlt_is_taken_in_this_run_or_the_next(irqchip: str) -> None:
    with bench(irqchip, "cli; tell ARRIVED; 1: hlt; jmp 1b") as guest:
        guest.port.act = lambda value: in_thread(guest.machine.nmi) if value == ARRIVED else guest.machine.stop()
        while NMI not in guest.told:
            assert guest.machine.run(LIMIT).stop in (Halted(), Stopped())
    assert guest.told == [ARRIVED, NMI]


# ---- waiting costs nothing ----


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_guest_that_waits_in_hlt_costs_no_host_cpu(irqchip: str) -> None:
    def cpu_time(code: str) -> float:
        with bench(irqchip, code) as guest:
            timer = threading.Timer(0.5, guest.machine.stop)
            timer.start()
            before = time.process_time()
            assert guest.machine.run(LIMIT).stop == Stopped()
            return time.process_time() - before

    # One that does not wait but look again and again costs as much every time; a host that is busy does not.
    assert any(5 * cpu_time(HALT) < cpu_time(SPIN) for _ in range(5))


# ---- what cannot be ----


def test_an_arrangement_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no irqchip 'apic': choose one of none, user, kernel, split"):
        Machine("1M", irqchip="apic")


@pytest.mark.parametrize("irqchip", ("none", *IRQCHIPS))
@pytest.mark.parametrize(("line", "owner"), [(4, "serial"), (8, "RTC"), (9, "ACPI")])
def test_a_line_has_one_owner(guest: Guests, line: int, owner: str, irqchip: str) -> None:
    machine = guest.machine("1M", irqchip=irqchip)
    with pytest.raises(ConfigurationError, match=f"mine: interrupt line {line} belongs to {owner} already"):
        machine.interrupts.line(line, "mine")
    machine.interrupts.line(5, "mine")
    with pytest.raises(ConfigurationError, match=r"yours: interrupt line 5 belongs to mine already; free are .*3, 6"):
        machine.interrupts.line(5, "yours")


@pytest.mark.parametrize(
    ("irqchip", "line"),
    [
        *((irqchip, line) for irqchip in ("none", *IRQCHIPS) for line in (-1, 2, 24, 1 << 32)),
        *((irqchip, line) for irqchip in ("none", "user") for line in (16, 23)),
    ],
)
def test_a_line_that_does_not_exist_is_refused(guest: Guests, irqchip: str, line: int) -> None:
    machine = guest.machine("1M", irqchip=irqchip)
    with pytest.raises(ConfigurationError, match=f"there is no interrupt line {line}: with irqchip {irqchip}"):
        machine.interrupts.line(line, "mine")
    machine.interrupts.drive(line, True)  # a wire that ends nowhere
    assert line not in machine.interrupts.owners


@pytest.mark.parametrize("irqchip", ["none", "user", "split"])
def test_an_irqfd_needs_the_kernels_controllers(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("1M", irqchip=irqchip)
    with pytest.raises(ConfigurationError, match="irqfd: choose irqchip"):
        machine.interrupts.irqfd(5, "mine")


@pytest.mark.parametrize("irqchip", ["none", "user"])
def test_a_message_needs_a_local_apic(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("1M", irqchip=irqchip)
    with pytest.raises(ConfigurationError, match="message-signalled"):
        machine.interrupts.signal_msi(TO_CPU_0, VECTOR)


def test_an_irqfd_takes_a_line_that_is_free(guest: Guests) -> None:
    machine = guest.machine("1M", irqchip="kernel")
    with pytest.raises(ConfigurationError, match="line 4 belongs to serial already"):
        machine.interrupts.irqfd(4, "mine")
    with pytest.raises(ConfigurationError, match="no interrupt line 24"):
        machine.interrupts.irqfd(24, "mine")
    machine.interrupts.irqfd(5, "mine")
    with pytest.raises(ConfigurationError, match="line 5 belongs to mine already"):
        machine.interrupts.line(5, "yours")


@pytest.mark.parametrize("message", [(-1, VECTOR), (TO_CPU_0, 1 << 32), (1 << 64, VECTOR)])
def test_a_message_that_fits_nowhere_is_refused(guest: Guests, message: tuple[int, int]) -> None:
    machine = guest.machine("1M", irqchip="kernel")
    with pytest.raises((ConfigurationError, KvmError)):
        machine.interrupts.signal_msi(*message)


@pytest.mark.parametrize("cpu", [-1, 1, 255])
def test_an_nmi_for_a_cpu_that_does_not_exist_is_refused(guest: Guests, cpu: int) -> None:
    machine = guest.machine("1M", irqchip="kernel")
    with pytest.raises(ConfigurationError, match=f"no CPU {cpu}"):
        machine.nmi(cpu)
