"""What a guest can tell the time by: TSC, kvmclock, PM timer, HPET, RTC, the timers; and what a pause does to it."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pykvm import Machine, assemble
from pykvm.devices import acpipm, hpet, rtc
from pykvm.kvm import Cap
from pykvm.machine import DebugExitWritten, Stopped
from pykvm.memory import platform
from pykvm.testing import Guests

IRQCHIPS = ("none", "user", "kernel", "split")
LIMIT = 30  # seconds: a bound on what takes far less
DONE = 0x2A
STORED = 0x9000  # where guests leave what they have read
PVCLOCK = 0x9100

TSC_LEAF, KVM_FEATURES, FREQUENCY_LEAF = 0x15, 0x4000_0001, 0x4000_0010
SLACK = 5_000_000  # ns: the host may convert its own time in another way than it tells the guest to
CLOCKSOURCE2 = 1 << 3  # of leaf 0x40000001 EAX: MSR_KVM_SYSTEM_TIME_NEW is there

HEAD = """
        .set    STORED, 0x9000
        .set    PVCLOCK, 0x9100
        .set    PM_TIMER, 0x608
        .set    HPET, 0xfed00000
        .set    HPET_CONFIG, 0x010
        .set    HPET_COUNTER, 0x0f0
        .set    CMOS_INDEX, 0x70
        .set    CMOS_DATA, 0x71
        .set    SYSTEM_TIME, 0x4b564d01         # MSR_KVM_SYSTEM_TIME_NEW
        .macro  finish
        mov     $0x2a, %al
        out     %al, $0xf4
        .endm
        .macro  cmos register
        mov     $\\register, %al
        out     %al, $CMOS_INDEX
        in      $CMOS_DATA, %al
        .endm
"""


def stored(machine: Machine, layout: str, where: int = STORED) -> tuple[int, ...]:
    return struct.unpack(layout, machine.memory.read(where, struct.calcsize(layout)))


def run(machine: Machine, code: str) -> None:
    machine.load(assemble(HEAD + code))
    result = machine.run(LIMIT)
    assert result.stop == DebugExitWritten(DONE), result.report


# ---- the TSC's frequency ----

CPUID = """
        mov     ${leaf}, %eax
        xor     %ecx, %ecx
        cpuid
        mov     %eax, STORED
        mov     %ebx, STORED + 4
        mov     %ecx, STORED + 8
        mov     %edx, STORED + 12
        finish
"""


def read_cpuid(machine: Machine, leaf: int) -> tuple[int, ...]:
    run(machine, CPUID.replace("{leaf}", hex(leaf)))
    return stored(machine, "<4I")


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_guest_finds_the_tscs_frequency_in_the_hypervisors_leaf(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    if not machine.vm.check_extension(Cap.GET_TSC_KHZ):
        pytest.skip("this host's KVM does not tell the TSC's frequency (KVM_CAP_GET_TSC_KHZ)")
    assert read_cpuid(machine, 0x4000_0000)[0] >= FREQUENCY_LEAF
    eax, ebx, _, _ = read_cpuid(machine, FREQUENCY_LEAF)
    assert eax == machine.vcpu.get_tsc_khz()
    assert ebx == 1_000_000, "kHz that the local APIC's timer counts"


def test_the_guest_finds_the_tscs_frequency_in_leaf_15_where_the_host_honours_it(guest: Guests) -> None:
    machine = guest.machine("2M")
    denominator, numerator, crystal, _ = read_cpuid(machine, TSC_LEAF)
    highest = read_cpuid(machine, 0)[0]
    if highest < TSC_LEAF or not denominator:
        pytest.skip(f"this host's KVM shows guests CPUID leaf 0x15 as {denominator}, and {highest:#x} as the last")
    khz = machine.vcpu.get_tsc_khz()
    assert abs(crystal * numerator // denominator // 1000 - khz) <= khz // 1000


# ---- kvmclock ----

KVMCLOCK = """
        mov     $SYSTEM_TIME, %ecx
        mov     $PVCLOCK | 1, %eax              # bit 0: enable
        xor     %edx, %edx
        wrmsr
        rdtsc
        mov     %eax, STORED
        mov     %edx, STORED + 4
        finish
"""


def read_kvmclock(machine: Machine) -> tuple[int, int]:
    """Have a guest switch kvmclock on; return the nanoseconds that the page told it, and those at its RDTSC."""
    if not read_cpuid(machine, KVM_FEATURES)[0] & CLOCKSOURCE2:
        pytest.skip("this host's KVM offers guests no kvmclock: CPUID 0x40000001 EAX bit 3 is 0")
    run(machine, KVMCLOCK)
    version, _, tsc_then, system_time, multiplier, shift, _ = stored(machine, "<IIQQIbB", PVCLOCK)
    (tsc,) = stored(machine, "<Q")
    assert version
    assert version % 2 == 0, "an odd version: the page is being written"
    assert multiplier
    ticks = tsc - tsc_then
    ticks = ticks << shift if shift >= 0 else ticks >> -shift
    return system_time, system_time + (ticks * multiplier >> 32)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_kvmclock_tells_a_time_that_grows_and_is_the_hosts(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    before = machine.vm.get_clock().clock
    first, first_by_tsc = read_kvmclock(machine)
    second, second_by_tsc = read_kvmclock(machine)
    after = machine.vm.get_clock().clock
    # The page need not change for a long time: the guest adds what the TSC says to it.
    assert first <= second
    assert before - SLACK <= first_by_tsc < second_by_tsc <= after + SLACK


# ---- clocks of the mainboard ----

PM_TIMER = """
        mov     $PM_TIMER, %dx
        in      (%dx), %eax
        mov     %eax, %ebx
1:      in      (%dx), %eax
        cmp     %eax, %ebx
        je      1b
        finish
"""
HPET = """
        mov     $HPET, %ebx
        movl    $1, HPET_CONFIG(%rbx)
1:      mov     HPET_COUNTER(%rbx), %rax
        cmp     $100000, %rax                   # 1 ms
        jb      1b
        finish
"""
RTC_SECONDS = """
        cmos    0x00
        mov     %al, %bl
1:      cmos    0x00
        cmp     %al, %bl
        je      1b
        finish
"""
RTC_PERIODS = """
        cmos    0x0c
        mov     $5, %ecx
1:      cmos    0x0c
        test    $0x40, %al                      # PF
        jz      1b
        loop    1b
        finish
"""


@pytest.mark.parametrize("irqchip", ["none", "kernel"])
@pytest.mark.parametrize(
    "code", [PM_TIMER, HPET, RTC_SECONDS, RTC_PERIODS], ids=["PM timer", "HPET", "RTC seconds", "RTC periods"]
)
def test_a_clock_goes_on_while_the_guest_runs(guest: Guests, code: str, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    run(machine, code)


# Both read the HPET before and after the other clock, at the beginning and at the end of 10 ms: so that the other clock
# has limits, however long the host takes for it.
BRACKETED = """
        .include "apic.inc"
        .code64
        .macro  hpet where
        mov     HPET_COUNTER(%rdi), %rax
        mov     %rax, STORED + \\where
        .endm
        mov     $LAPIC, %ebx
        mov     $PM_TIMER, %dx
        mov     $HPET, %edi
        movl    $1, HPET_CONFIG(%rdi)
        hpet    0
        {begin}
        hpet    8
1:      mov     HPET_COUNTER(%rdi), %rax
        cmp     $1000000, %rax
        jb      1b
        hpet    16
        {end}
        hpet    24
        mov     %esi, STORED + 32
        finish
"""


def check_rate(machine: Machine, begin: str, end: str, nanoseconds_a_tick: float) -> None:
    """Check a clock that ``begin`` starts or reads, and of which ``end`` leaves in ESI how far it has come."""
    run(machine, BRACKETED.format(begin=begin, end=end))
    first, after_begin, before_end, last, ticks = stored(machine, "<4QI")
    shortest, longest = (distance * hpet.PERIOD // 10**6 for distance in (before_end - after_begin, last - first))
    assert 0.99 * shortest <= ticks * nanoseconds_a_tick <= 1.01 * longest


def test_the_pm_timer_goes_as_fast_as_the_hpet(guest: Guests) -> None:
    end = "in (%dx), %eax; mov %eax, %esi; sub %ecx, %esi; and $0xffffff, %esi"
    machine = guest.machine("2M")
    check_rate(machine, "in (%dx), %eax; mov %eax, %ecx", end, 1e9 / acpipm.FREQUENCY)


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_the_local_apics_timer_counts_at_the_rate_that_cpuid_tells(guest: Guests, irqchip: str) -> None:
    begin = """
        movl    $DIVIDE_BY_1, LAPIC_TIMER_DIVIDE(%rbx)
        movl    $LVT_MASKED, LAPIC_LVT_TIMER(%rbx)
        movl    $0xffffffff, LAPIC_TIMER_INITIAL(%rbx)
"""
    machine = guest.machine("2M", irqchip=irqchip)
    check_rate(machine, begin, "mov LAPIC_TIMER_CURRENT(%rbx), %esi; not %esi", nanoseconds_a_tick=1)


READING = """
        mov     $HPET, %ebx
        movl    $1, HPET_CONFIG(%rbx)
        mov     $PM_TIMER, %dx
1:      in      (%dx), %eax
        mov     %eax, STORED
        incl    STORED + 4
        jmp     1b
"""


class Clocks:
    """The clocks of a machine as its guest would read them, read from outside."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self) -> tuple[bytes, bytes]:
        machine = self._machine
        with machine.lock:
            return machine.pio.read(platform.PM_TIMER, 4), machine.mmio.read(hpet.BASE + hpet.Offset.MAIN_CNT, 8)

    def periods(self) -> int:
        """Register C of the RTC, which reading clears."""
        with self._machine.lock:
            self._machine.pio.write(rtc.PORT, b"\x0c")
            return self._machine.pio.read(rtc.PORT + 1, 1)[0]


@contextmanager
def running(machine: Machine, code: str) -> Iterator[None]:
    machine.load(assemble(HEAD + code))
    ended: list[object] = []
    thread = threading.Thread(target=lambda: ended.append(machine.run(LIMIT).stop))
    thread.start()
    try:
        yield
    finally:
        machine.stop()
        thread.join()
    assert ended == [Stopped()]


def wait_until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.001)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_boards_clocks_stand_still_while_the_machine_is_paused(guest: Guests, irqchip: str) -> None:
    def rounds() -> int:
        return stored(machine, "<II")[1]

    machine = guest.machine("2M", irqchip=irqchip)
    with running(machine, READING):
        clocks = Clocks(machine)
        wait_until(lambda: rounds() > 0)
        machine.pause()
        clocks.periods()
        then, before = clocks.read(), rounds()
        time.sleep(0.02)
        assert clocks.read() == then
        assert clocks.periods() == 0
        assert rounds() == before
        machine.resume()
        wait_until(lambda: rounds() > before and clocks.read() != then)
        wait_until(lambda: clocks.periods() != 0)


def test_the_boards_clocks_stand_still_between_two_runs(guest: Guests) -> None:
    machine = guest.machine("2M")
    clocks = Clocks(machine)
    run(machine, PM_TIMER)
    clocks.periods()
    then = clocks.read()
    time.sleep(0.02)
    assert clocks.read() == then
    assert clocks.periods() == 0


PIT_TICKS = """
        .include "layout.inc"
        .include "idt64.inc"
        .include "pic.inc"
        .code64
        set_gate idt, (PIC_VECTOR+IRQ_TIMER), timer
        lidt    idt_pointer
        pic_init ~(1<<IRQ_TIMER)&0xff, PIC_MASK_ALL
        mov     $0x34, %al                      # channel 0, mode 2
        out     %al, $0x43
        mov     $0x08, %al                      # 0x0808 / 1.19 MHz: 1.7 ms
        out     %al, $0x40
        out     %al, $0x40
1:      sti
        hlt
        jmp     1b
timer:
        push    %rax
        incl    STORED
        pic_eoi
        pop     %rax
        iretq
idt_pointer:
        .word   16 * 256 - 1
        .quad   idt
        .bss
        .balign 16
idt:
        .skip   16 * 256
"""


@pytest.mark.parametrize("irqchip", ["user", "split"])
def test_the_timer_of_user_space_saves_up_no_ticks_during_a_pause(guest: Guests, irqchip: str) -> None:
    def ticks() -> int:
        return stored(machine, "<I")[0]

    machine = guest.machine("2M", irqchip=irqchip)
    with running(machine, PIT_TICKS):
        wait_until(lambda: ticks() > 2)
        machine.pause()
        before, then = ticks(), machine.events.now()
        time.sleep(0.1)  # would be 58 ticks
        assert ticks() == before
        assert machine.events.now() == then
        machine.resume()
        wait_until(lambda: ticks() > before + 2)
        assert (ticks() - before) * 1_700_000 < machine.events.now() - then + 3 * 1_800_000
