"""Resetting, powering off and sleeping, as a guest does them that finds its way by ACPI's tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from pykvm import GuestMemory, Machine, assemble
from pykvm.devices import hpet
from pykvm.devices.acpipm import Pm1Sts
from pykvm.kvm import Exit, IoOut
from pykvm.machine import DebugExitWritten, Halted, PoweredOff, ResetRequested, Stop, TimedOut
from pykvm.memory import platform
from pykvm.testing import Guests

IRQCHIPS = ("none", "user", "kernel", "split")
ENOUGH = 30.0  # seconds

# ---- what guests are made of ----

NUMBERS = f"""
        .set    PM1_STS,        {platform.PM1_EVENT}
        .set    PM1_EN,         {platform.PM1_EVENT + 2}
        .set    PM1_CNT,        {platform.PM1_CONTROL}
        .set    RTC_EN,         1 << 10
        .set    PWRBTN_EN,      1 << 8
        .set    GO_TO_S3,       {1 << 13 | platform.SLP_TYP_S3 << 10}
        .set    GO_TO_S5,       {1 << 13 | platform.SLP_TYP_S5 << 10}
        .set    FACS_SEGMENT,   {platform.FACS >> 4}
        .set    WAKING_VECTOR,  12

        .macro  out16 port, value
        mov     $\\port, %dx
        mov     $\\value, %ax
        out     %ax, (%dx)
        .endm

        .macro  cmos register, value
        mov     $\\register, %al
        out     %al, $0x70
        mov     $\\value, %al
        out     %al, $0x71
        .endm

        .macro  set_waking_vector address
        push    $FACS_SEGMENT
        pop     %ds
        movl    $\\address, WAKING_VECTOR
        push    $0
        pop     %ds
        .endm

        .macro  print16 register                # by the debug console, low byte first
        mov     \\register, %ax
        out     %al, $0xe9
        mov     %ah, %al
        out     %al, $0xe9
        .endm
"""

# The RTC's next update is half a second after its divider is let go; with these alarms any update is one.
ALARM_EVERY_SECOND = """
        cmos    0x0a, 0x66
        cmos    0x01, 0xff
        cmos    0x03, 0xff
        cmos    0x05, 0xff
        cmos    0x0b, 0x22
        cmos    0x0a, 0x26
"""

# What it prints at the vector: PM1 status, CS, IP, the segment that DS has, the flags, and whether memory was kept.
SLEEPER = """
        .code16
        .globl  _start
_start:
        movl    $0x5afe5afe, kept
        set_waking_vector woken
        mov     $0x1234, %cx
        {prepare}
        out16   PM1_CNT, GO_TO_S3
        mov     $1, %al                         # nobody comes here
        out     %al, $0xf4

        .balign 16
        nop
woken:                                          # an address that is no multiple of 16: IP is not 0
        call    here
here:   pop     %bx
        sub     $here - woken, %bx
        mov     %ds, %si
        mov     $PM1_STS, %dx
        in      (%dx), %ax
        print16 %ax
        print16 %cs
        print16 %bx
        print16 %si
        pushf
        pop     %cx
        print16 %cx
        xor     %ax, %ax
        mov     %ax, %ds
        print16 kept
        print16 kept + 2
        out16   PM1_CNT, GO_TO_S5
        hlt

        .data
kept:   .long   0
"""


def sleeper(prepare: str) -> str:
    return NUMBERS + SLEEPER.format(prepare=prepare)


@dataclass(frozen=True)
class Woken:
    """What the sleeper says."""

    status: Pm1Sts
    cs: int
    ip: int
    ds: int
    flags: int
    kept: int

    @classmethod
    def decode(cls, printed: bytes) -> Woken:
        assert len(printed) == 14, printed
        words = [int.from_bytes(printed[at : at + 2], "little") for at in range(0, 14, 2)]
        return cls(Pm1Sts(words[0]), words[1], words[2], words[3], words[4], words[5] | words[6] << 16)


class OnSleep:
    """An observer that calls ``then`` from another thread when a guest goes to S3.

    Observers are called with the lock held, so that who waits for the lock comes when the machine sleeps.
    """

    def __init__(self) -> None:
        self.then: Callable[[], None] = lambda: None
        self.threads: list[threading.Thread] = []

    def exit(self, vcpu: int, exit: Exit) -> None:
        if isinstance(exit, IoOut) and exit.port == platform.PM1_CONTROL:
            value = int.from_bytes(exit.data, "little")
            if value == 1 << 13 | platform.SLP_TYP_S3 << 10:
                self.threads.append(threading.Thread(target=self.then))
                self.threads[-1].start()

    def tick(self) -> None:
        pass

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


@contextmanager
def machine_with_a_finger(irqchip: str = "none", cpus: int = 1, memory: str = "2M") -> Iterator[Machine]:
    """A machine whose power button is pressed as soon as it sleeps."""
    on_sleep = OnSleep()
    with Machine(memory, irqchip=irqchip, cpus=cpus, observers=[on_sleep]) as machine:

        def press() -> None:
            with machine.lock:
                machine.board.press_power_button()

        on_sleep.then = press
        try:
            yield machine
        finally:
            on_sleep.join()


def run_real_mode(guest: Guests, code: str, irqchip: str = "none") -> Stop:
    result = guest(NUMBERS + ".code16\n" + code, mode="real", timeout=ENOUGH, memory="2M", irqchip=irqchip)
    assert result.run.status == 0
    return result.stop


# ---- reset ----


@pytest.mark.parametrize(
    ("code", "port"),
    [
        ("mov $0xfe, %al; out %al, $0x64", "port 0x64"),
        ("mov $0xd1, %al; out %al, $0x64; mov $0xfe & ~1, %al; out %al, $0x60", "port 0x64"),
        ("in $0x92, %al; or $1, %al; out %al, $0x92", "port 0x92"),
        ("mov $0xcf9, %dx; mov $0x02, %al; out %al, (%dx); mov $0x06, %al; out %al, (%dx)", "port 0xcf9"),
        ("mov $0xcf9, %dx; mov $0x06, %al; out %al, (%dx)", "port 0xcf9"),
        ("mov $0xcf9, %dx; mov $0x0e, %al; out %al, (%dx)", "port 0xcf9"),
    ],
)
@pytest.mark.parametrize("irqchip", ["none", "kernel"])
def test_each_port_that_resets_ends_the_run(guest: Guests, code: str, port: str, irqchip: str) -> None:
    stop = run_real_mode(guest, f"{code}\n mov $1, %al; out %al, $0xf4", irqchip=irqchip)
    assert isinstance(stop, ResetRequested)
    assert stop.by.endswith(port)
    assert port in str(stop)


def test_what_only_prepares_a_reset_does_not_reset(guest: Guests) -> None:
    code = """
        mov     $0xcf9, %dx
        mov     $0x02, %al                      # a hard reset, later
        out     %al, (%dx)
        mov     $0x02, %al                      # A20, without FAST_RESET
        out     %al, $0x92
        mov     $0xff, %al                      # pulse no line
        out     %al, $0x64
        mov     $0xcf8, %dx
        mov     $0x0600, %eax                   # four bytes, of which the second would reset: PCI's address register
        out     %eax, (%dx)
        hlt
    """
    assert run_real_mode(guest, code) == Halted()


# ---- tables, as a guest finds them ----

# Long mode. It trusts nothing but the ACPI specification: RSDP by its signature and checksum, then XSDT, FADT and DSDT.
BY_THE_TABLES = """
        .code64
        .globl  _start
_start:
        mov     $0xe0000, %esi
search: mov     signature, %rax
        cmp     %rax, (%rsi)
        jne     next
        mov     %esi, %edi                      # its first 20 bytes add up to 0
        mov     $20, %ecx
        call    add_up
        je      found
next:   add     $16, %esi
        cmp     $0x100000, %esi
        jb      search
        mov     $1, %al
        jmp     fail
found:
        mov     %esi, %edi                      # so do all 36
        mov     20(%rsi), %ecx
        call    add_up
        mov     $2, %al
        jne     fail
        mov     24(%rsi), %rbx                  # XSDT
        mov     %ebx, %edi
        mov     4(%rbx), %ecx
        call    add_up
        mov     $3, %al
        jne     fail
        mov     4(%rbx), %ecx                   # walk it: entries of 8 bytes behind a header of 36
        lea     (%rbx,%rcx), %r8
        add     $36, %rbx
walk:   cmp     %r8, %rbx
        mov     $4, %al
        jae     fail
        mov     (%rbx), %r9
        add     $8, %rbx
        cmpl    $0x50434146, (%r9)              # "FACP"
        jne     walk
        mov     %r9d, %edi
        mov     4(%r9), %ecx
        call    add_up
        mov     $5, %al
        jne     fail
        {then}
fail:   out     %al, $0xf4

add_up: xor     %eax, %eax                      # ECX bytes at RDI; ZF if they add up to 0
add_1:  add     (%rdi), %al
        inc     %rdi
        loop    add_1
        test    %al, %al
        ret

        .balign 8
signature: .ascii "RSD PTR "
"""

POWER_OFF = """
        mov     76(%r9), %edx                   # PM_TMR_BLK
        in      (%dx), %eax
        mov     %eax, %r10d
later:  in      (%dx), %eax                     # it counts
        sub     %r10d, %eax
        and     $0xffffff, %eax
        cmp     $100, %eax
        jb      later
        cmp     $0x800000, %eax
        mov     $6, %al
        ja      fail
        mov     40(%r9), %edi                   # DSDT
        mov     4(%rdi), %ecx
s5:     inc     %edi
        cmpl    $0x5f35535f, (%rdi)             # "_S5_"
        loopne  s5
        mov     $7, %al
        jne     fail
        add     $4, %edi                        # PackageOp, its length, how many there are
        cmpb    $0x12, (%rdi)
        mov     $8, %al
        jne     fail
        add     $3, %edi
        xor     %eax, %eax
        mov     (%rdi), %al                     # SLP_TYPa: ZeroOp, OneOp, or BytePrefix and the number
        cmp     $0x0a, %al
        jne     typed
        mov     1(%rdi), %al
typed:  shl     $10, %eax
        or      $1 << 13, %eax                  # SLP_EN
        mov     64(%r9), %edx                   # PM1a_CNT_BLK
        out     %ax, (%dx)
        mov     $9, %al
"""

RESET = """
        testl   $1 << 10, 112(%r9)              # RESET_REG_SUP
        mov     $10, %al
        je      fail
        cmpb    $1, 116(%r9)                    # RESET_REG: in port space
        mov     $11, %al
        jne     fail
        mov     120(%r9), %edx
        mov     128(%r9), %al                   # RESET_VALUE
        out     %al, (%dx)
        mov     $12, %al
"""

ACPI_ENABLE = """
        mov     64(%r9), %edx                   # PM1a_CNT_BLK: SCI_EN off at first
        in      (%dx), %ax
        mov     %eax, %ebx
        mov     48(%r9), %edx                   # SMI_CMD
        mov     52(%r9), %al                    # ACPI_ENABLE
        out     %al, (%dx)
        mov     64(%r9), %edx
        in      (%dx), %ax
        shl     $1, %eax
        or      %ebx, %eax
        and     $3, %eax
"""


def run_by_the_tables(guest: Guests, then: str, irqchip: str = "none") -> Stop:
    return guest(BY_THE_TABLES.format(then=then), mode="long", timeout=ENOUGH, memory="2M", irqchip=irqchip).stop


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_guest_that_knows_only_acpi_reads_the_pm_timer_and_powers_off(guest: Guests, irqchip: str) -> None:
    assert run_by_the_tables(guest, POWER_OFF, irqchip) == PoweredOff()


def test_the_reset_register_of_the_fadt_resets(guest: Guests) -> None:
    stop = run_by_the_tables(guest, RESET)
    assert isinstance(stop, ResetRequested)
    assert stop.by == "port 0xcf9"


def test_acpi_is_switched_on_as_the_fadt_says(guest: Guests) -> None:
    assert run_by_the_tables(guest, ACPI_ENABLE) == DebugExitWritten(0b10)


def test_a_power_off_has_status_0(guest: Guests) -> None:
    assert run_real_mode(guest, "out16 PM1_CNT, GO_TO_S5") == PoweredOff()


def test_a_sleep_state_that_the_dsdt_does_not_name_has_no_effect(guest: Guests) -> None:
    assert run_real_mode(guest, "out16 PM1_CNT, 1 << 13 | 7 << 10\n hlt") == Halted()


def find(memory: GuestMemory, signature: bytes, start: int, end: int) -> int | None:
    """Search as a kernel does: 16 bytes at a time."""
    return next((at for at in range(start, end, 16) if memory.read(at, len(signature)) == signature), None)


def tables_of(machine: Machine, *, wide: bool) -> dict[str, bytes]:
    """Return the tables that the RSDP leads to, by way of XSDT or RSDT, after looking at their checksums."""
    memory = machine.memory
    at = find(memory, b"RSD PTR ", 0xE0000, 0x100000)
    assert at is not None
    assert sum(memory.read(at, 20)) & 0xFF == 0
    root = read_table(memory, memory.read_u64(at + 24) if wide else memory.read_u32(at + 16))
    size = 8 if wide else 4
    pointers = [int.from_bytes(root[start : start + size], "little") for start in range(36, len(root), size)]
    tables = [read_table(memory, pointer) for pointer in pointers]
    return {table[:4].decode(): table for table in (root, *tables)}


def read_table(memory: GuestMemory, at: int) -> bytes:
    data = memory.read(at, memory.read_u32(at + 4))
    assert sum(data) & 0xFF == 0
    return data


@pytest.mark.parametrize("wide", [False, True], ids=["RSDT", "XSDT"])
def test_both_roots_lead_to_every_table(guest: Guests, wide: bool) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=3)
    machine.load(b"\xf4")
    tables = tables_of(machine, wide=wide)
    facs = int.from_bytes(tables["FACP"][36:40], "little")
    dsdt = int.from_bytes(tables["FACP"][40:44], "little")
    assert list(tables) == ["XSDT" if wide else "RSDT", "FACP", "APIC", "HPET"]
    assert machine.memory.read(facs, 4) == b"FACS"
    assert read_table(machine.memory, dsdt)[:4] == b"DSDT"
    local_apics = [tables["APIC"][at : at + 8] for at in (44, 52, 60)]
    assert [entry[:4] for entry in local_apics] == [bytes((0, 8, cpu, cpu)) for cpu in range(3)]


def test_the_hpets_table_says_what_its_register_says(guest: Guests) -> None:
    machine = guest.machine("2M")
    machine.load(b"\xf4")
    table = tables_of(machine, wide=True)["HPET"]
    assert table[36:40] == machine.mmio.read(hpet.BASE + hpet.Offset.GCAP_ID, 4)
    assert int.from_bytes(table[44:52], "little") == hpet.BASE


def test_an_mp_table_names_every_cpu(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.load(b"\xf4")
    at = find(machine.memory, b"_MP_", 0xF0000, 0x100000)
    assert at is not None
    configuration = machine.memory.read_u32(at + 4)
    size = machine.memory.read_u16(configuration + 4)
    table = machine.memory.read(configuration, size)
    assert table[:4] == b"PCMP"
    assert sum(table) & 0xFF == 0
    assert [table[44 + 20 * cpu + 1] for cpu in range(2)] == [0, 1]


@pytest.mark.parametrize("load", [0xE0000, 0xE0100, 0xF0000])
def test_tables_do_not_overwrite_an_image(guest: Guests, load: int) -> None:
    code = b"\xf4" + bytes(range(255))
    machine = guest.machine("2M")
    machine.load(code, mode="real", load=load, entry=load)
    assert machine.memory.read(load, len(code)) == code
    assert find(machine.memory, b"RSD PTR ", 0xE0000, 0x100000) is None
    assert machine.run().stop == Halted()


@pytest.mark.parametrize("size", ["512K", "928K", "960K"])
def test_a_machine_without_memory_for_tables_has_none_and_works(guest: Guests, size: str) -> None:
    machine = guest.machine(size)
    machine.load(b"\xf4")
    assert b"RSD PTR " not in machine.memory.read(0, machine.memory.regions[0].size)
    assert machine.run().stop == Halted()


def test_tables_do_not_go_into_a_rom() -> None:
    with GuestMemory() as memory:
        memory.add_ram(0, 0xA0000)
        memory.add_rom(0xE0000, bytes(0x20000), "bios")
        with Machine(memory) as machine:
            machine.load(b"\xf4")
            assert memory.read(0xE0000, 0x20000) == bytes(0x20000)


# ---- sleeping ----


def check_woken(machine: Machine, status: Pm1Sts) -> None:
    result = machine.run(ENOUGH)
    assert result.stop == PoweredOff()
    assert result.status == 0
    woken = Woken.decode(result.debugcon.data)
    assert woken.status == status
    assert woken.ip == 1
    assert woken.cs << 4 >= 0x8000
    assert woken.ds == 0
    assert woken.flags & 1 << 9 == 0
    assert woken.kept == 0x5AFE5AFE


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_alarm_of_the_rtc_wakes_the_machine_at_the_vector(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    machine.load(assemble(sleeper(f"{ALARM_EVERY_SECOND} \n out16 PM1_EN, RTC_EN"), mode="real"))
    check_woken(machine, Pm1Sts.WAK_STS | Pm1Sts.RTC_STS)


def test_an_alarm_at_a_time_of_its_own_wakes_the_machine(guest: Guests) -> None:
    set_time = """
        cmos    0x0b, 0x82                      # SET
        cmos    0x00, 0x59                      # 23:59:59, and the alarm at midnight
        cmos    0x02, 0x59
        cmos    0x04, 0x23
        cmos    0x01, 0x00
        cmos    0x03, 0x00
        cmos    0x05, 0x00
        cmos    0x0a, 0x66
        cmos    0x0b, 0x22
        cmos    0x0a, 0x26
        out16   PM1_EN, RTC_EN
    """
    machine = guest.machine("2M")
    machine.load(assemble(sleeper(set_time), mode="real"))
    check_woken(machine, Pm1Sts.WAK_STS | Pm1Sts.RTC_STS)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_power_button_wakes_the_machine_at_the_vector(irqchip: str) -> None:
    with machine_with_a_finger(irqchip) as machine:
        machine.load(assemble(sleeper(""), mode="real"))
        check_woken(machine, Pm1Sts.WAK_STS | Pm1Sts.PWRBTN_STS)


def test_a_button_pressed_while_the_guest_is_awake_does_not_say_that_it_slept(guest: Guests) -> None:
    machine = guest.machine("2M")
    machine.board.press_power_button()
    machine.load(assemble(NUMBERS + ".code16\n mov $PM1_STS, %dx; in (%dx), %ax; hlt", mode="real"))
    assert machine.run(ENOUGH).registers.rax & 0xFFFF == Pm1Sts.PWRBTN_STS.value


@pytest.mark.parametrize(
    ("prepare", "status"),
    [
        ("out16 PM1_EN, PWRBTN_EN", Pm1Sts.PWRBTN_STS),
        (
            f"""{ALARM_EVERY_SECOND}
            out16   PM1_EN, RTC_EN
            mov     $PM1_STS, %dx
    late:   in      (%dx), %ax
            test    $1 << 10, %ax
            jz      late""",
            Pm1Sts.PWRBTN_STS | Pm1Sts.RTC_STS,
        ),
    ],
    ids=["button", "alarm"],
)
def test_what_came_just_before_the_sleep_ends_it(guest: Guests, prepare: str, status: Pm1Sts) -> None:
    machine = guest.machine("2M")
    machine.board.press_power_button()
    machine.load(assemble(sleeper(prepare), mode="real"))
    check_woken(machine, Pm1Sts.WAK_STS | status)


def test_an_alarm_that_may_not_wake_does_not(guest: Guests) -> None:
    machine = guest.machine("2M")
    machine.load(assemble(sleeper(ALARM_EVERY_SECOND), mode="real"))
    result = machine.run(1.2)
    assert result.stop == TimedOut(1.2)
    assert result.debugcon.data == b""
    machine.board.press_power_button()  # between two runs, it is asleep still
    check_woken(machine, Pm1Sts.WAK_STS | Pm1Sts.PWRBTN_STS | Pm1Sts.RTC_STS)


def test_a_machine_that_sleeps_can_be_loaded_anew(guest: Guests) -> None:
    machine = guest.machine("2M")
    machine.load(assemble(sleeper(""), mode="real"))
    assert isinstance(machine.run(0.1).stop, TimedOut)
    machine.load(b"\xf4")
    assert machine.run(ENOUGH).stop == Halted()


def test_a_machine_that_sleeps_can_be_stopped_paused_and_closed(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.load(assemble(sleeper(""), mode="real"))
    runner = threading.Thread(target=machine.run, args=(ENOUGH,))
    runner.start()
    machine.pause()
    machine.resume()
    machine.pause()
    machine.resume()
    machine.stop()
    runner.join()


@pytest.mark.parametrize("vector", [0, 0x100000, 0x1234_5678, 0xFFFF_FFF0])
def test_a_waking_vector_that_real_mode_does_not_reach_is_a_reset(vector: int) -> None:
    code = NUMBERS + f".code16\n set_waking_vector {vector:#x}\n out16 PM1_CNT, GO_TO_S3\n mov $1, %al; out %al, $0xf4"
    with machine_with_a_finger() as machine:
        machine.load(assemble(code, mode="real"))
        result = machine.run(ENOUGH)
    assert isinstance(result.stop, ResetRequested)
    assert result.status == 0
    assert "waking vector" in result.stop.by
    assert not vector or f"{vector:#x}" in result.stop.by


def test_the_last_vector_that_real_mode_reaches_is_one() -> None:
    code = NUMBERS + ".code16\n set_waking_vector 0xfffff\n out16 PM1_CNT, GO_TO_S3\n hlt"
    with machine_with_a_finger() as machine:
        machine.load(assemble(code, mode="real"))
        machine.memory.write(0xFFFFF, b"\xf4")
        result = machine.run(ENOUGH)
    assert result.stop == Halted()
    assert (result.sregs.cs.selector, result.registers.rip) == (0xFFFF, 0x10)


def test_waking_without_memory_for_a_facs_is_a_reset() -> None:
    with machine_with_a_finger(memory="512K") as machine:
        machine.load(assemble(NUMBERS + ".code16\n out16 PM1_CNT, GO_TO_S3\n hlt", mode="real"))
        result = machine.run(ENOUGH)
    assert isinstance(result.stop, ResetRequested)
    assert "without a waking vector" in result.stop.by


# ---- sleeping with two CPUs, and from long mode ----

# CPU 0 starts CPU 1, sleeps when it runs, and when it wakes starts it again, this time somewhere else.
TWO_CPUS = """
        .include "apic.inc"
        .macro  start_cpu1 page
        mov     $LAPIC, %ebx
        movl    $SVR_ENABLE | SPURIOUS_VECTOR, LAPIC_SVR(%ebx)
        movl    $1 << 24, LAPIC_ICR_HIGH(%ebx)
        movl    $ICR_ASSERT | ICR_INIT, LAPIC_ICR_LOW(%ebx)
        movl    $ICR_ASSERT | ICR_STARTUP | \\page, LAPIC_ICR_LOW(%ebx)
        .endm

        .code64
        .globl  _start
_start:
        mov     $first, %esi                    # CPU 1's code, into pages that real mode reaches
        mov     $0x8000, %edi
        mov     $again - first, %ecx
        rep movsb
        mov     $again, %esi
        mov     $0x9000, %edi
        mov     $woken - again, %ecx
        rep movsb
        mov     $woken, %esi
        mov     $0xa000, %edi
        mov     $end - woken, %ecx
        rep movsb
        movl    $0xa000, FACS + WAKING_VECTOR
        start_cpu1 8
wait1:  cmpb    $1, 0x7000
        jb      wait1
        mov     $PM1_CNT, %edx
        mov     $GO_TO_S3, %eax
        out     %ax, (%dx)
        mov     $1, %al                         # nobody comes here
        out     %al, $0xf4

        .code16
first:  xor     %ax, %ax
        mov     %ax, %ds
loop1:  {busy}
        movb    $1, 0x7000
        jmp     loop1

again:  xor     %ax, %ax
        mov     %ax, %ds
        movb    $2, 0x7000
        cli
        hlt

woken:  movb    $0, 0x7000
        lgdtl   %cs:gdtr - woken                # the APIC is far above what real mode reaches, so: protected mode
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $8, $0xa000 + flat - woken
        .code32
flat:   mov     $16, %ax
        mov     %ax, %ds
        mov     $0x100000, %ecx                 # CPU 1 must not be running: it would write 1
quiet:  cmpb    $0, 0x7000
        jne     fail
        sub     $64, %ecx
        jnz     quiet
        start_cpu1 9
wait2:  cmpb    $2, 0x7000
        jne     wait2
        mov     $PM1_CNT, %edx
        mov     $GO_TO_S5, %eax
        out     %ax, (%dx)
fail:   mov     $2, %al
        out     %al, $0xf4
        .balign 8
gdt:    .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:   .word   23
        .long   0xa000 + gdt - woken
end:
"""

BUSY = {
    "in a loop": "nop",
    "reading a port": "in $0x80, %al",
    "writing a port": "out %al, $0x80",
    "in a string of ports": "mov $0x80, %dx; mov $0x6000, %di; mov $8, %cx; rep insb",
}


@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY.keys())
@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_the_second_cpu_waits_for_init_after_a_sleep_and_can_be_started_again(irqchip: str, busy: str) -> None:
    numbers = NUMBERS + f".set FACS, {platform.FACS}\n"
    image = assemble(numbers + TWO_CPUS.format(busy=busy), mode="long")
    with machine_with_a_finger(irqchip, cpus=2) as machine:
        machine.load(image)
        result = machine.run(ENOUGH)
    assert result.stop == PoweredOff()
    assert result.cpu == 0
    assert result.cpus[1].activity == "halted"


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_waking_resets_a_cpu_whose_apic_is_an_x2apic(irqchip: str) -> None:
    code = f"""
        .set    IA32_APIC_BASE, 0x1b
        .code64
        .globl  _start
_start: mov     $IA32_APIC_BASE, %ecx
        rdmsr
        or      $1 << 10, %eax                  # x2APIC
        wrmsr
        mov     $vector, %esi
        mov     $0x8000, %edi
        mov     $vector_end - vector, %ecx
        rep movsb
        movl    $0x8000, {platform.FACS} + WAKING_VECTOR
        mov     $PM1_CNT, %edx
        mov     $GO_TO_S3, %eax
        out     %ax, (%dx)
        .code16
vector: mov     $0x1b, %ecx
        rdmsr
        hlt
vector_end:
    """
    with machine_with_a_finger(irqchip) as machine:
        if not machine.cpuid.has("x2apic"):
            pytest.skip("this host's KVM offers guests no x2APIC: CPUID 1 ECX bit 21 is 0")
        machine.load(assemble(NUMBERS + code, mode="long"))
        result = machine.run(ENOUGH)
    assert result.stop == Halted()
    assert result.registers.rax & 0xFFFF_FFFF == 0xFEE0_0900
