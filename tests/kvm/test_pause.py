"""Pause, resume, stop and close, from other threads and at bad moments: what was asked for happens, and once."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.boot import Image
from pykvm.errors import InUseError
from pykvm.machine import DebugExitWritten, Halted, RunResult, Stop, Stopped, TimedOut, control, runloop
from pykvm.testing import Guests
from pykvm.units import Gpa

IRQCHIPS = ["none", "user", "kernel", "split"]
WITH_APIC = ["kernel", "split"]
LONG = 30.0  # seconds: a limit that no test reaches
STEPS = 0x300  # the port where CPU n says its next number, 4 ports for each CPU
OVER, TOTAL, COUNTS = Gpa(0x180000), Gpa(0x180040), Gpa(0x180080)  # what the guest that counts has in memory
SPIN = b"\xeb\xfe"  # jmp .

# All CPUs run `work` with their number in EDI; the host ends it by writing `over`.
SEVERAL = """
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .globl  _start
        .set    over, 0x180000
        .set    total, 0x180040
        .set    counts, 0x180080
_start:
        start_other_cpus trampoline
        xor     %edi, %edi
        jmp     work
other_cpu:
        mov     $1, %edi
        lock xadd %edi, arrived
        jmp     work
        define_trampoline trampoline, other_cpu
arrived:
        .long   1
work:
"""
COUNT = """
        mov     %edi, %ebx
        shl     $6, %ebx
        lea     0x300(,%edi,4), %edx
        xor     %eax, %eax
1:      lock incl total
        incl    counts(%rbx)
        out     %eax, (%dx)                     # an unbroken sequence: 0, 1, 2, ...
        inc     %eax
        cmpl    $0, over
        je      1b
        cli
2:      hlt
        jmp     2b
"""
# A guest that sleeps (S3): ACPI's PM1 control register at port 0x604, SLP_EN and SLP_TYP 1.
SLEEP = "mov $0x604, %dx; mov $0x2400, %ax; out %ax, (%dx); jmp ."
HALT = "cli; hlt"
HALT_AWAKE = "sti; 1: hlt; jmp 1b"
HALTED_WITH_INTERRUPTS = "movb $0xff, %al; out %al, $0x21; out %al, $0xa1; sti; 1: hlt; jmp 1b"


class Steps:
    """Takes a number from each CPU, which is to be the one after its last."""

    name = "steps"

    def __init__(self) -> None:
        self.next = [0] * 8
        self.broken: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        cpu, number = offset // 4, int.from_bytes(data, "little")
        if number != self.next[cpu]:
            self.broken.append((cpu, self.next[cpu], number))
        self.next[cpu] = number + 1


class Caller:
    """A device that calls something when it is written to."""

    name = "caller"

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.call()


class Run:
    """A run on another thread: ``result`` or ``error`` is what came of it."""

    def __init__(self, machine: Machine, timeout: float | None = LONG) -> None:
        self.machine = machine
        self.results: list[RunResult] = []
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run, args=(timeout,))
        self.thread.start()

    def _run(self, timeout: float | None) -> None:
        try:
            self.results.append(self.machine.run(timeout))
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> Stop:
        self.thread.join(LONG)
        assert not self.thread.is_alive()
        assert not self.errors
        return self.results[0].stop


@contextmanager
def running(machine: Machine, timeout: float | None = LONG) -> Iterator[Run]:
    run = Run(machine, timeout)
    wait_until(lambda: machine.is_running or bool(run.results or run.errors))
    try:
        yield run
    finally:
        machine.resume()
        if run.thread.is_alive():
            machine.stop()
        run.thread.join(LONG)
        assert not run.thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(200_000):
        if condition():
            return
        time.sleep(0.0001)
    raise AssertionError("it never came true")


def wait_until_running(machine: Machine) -> None:
    wait_until(lambda: machine.is_running)


def several(work: str) -> Image:
    return assemble(SEVERAL + work, mode="long")


def counting(machine: Machine) -> tuple[Steps, Callable[[], list[int]]]:
    """Load the guest that counts; return the device it writes to, and who reads its counters: total, CPU 0, CPU 1..."""
    steps = Steps()
    machine.pio.register(steps, STEPS, 32)
    machine.load(several(COUNT))
    addresses = [TOTAL, *(COUNTS + 64 * cpu for cpu in range(len(machine.vcpus)))]
    return steps, lambda: [machine.memory.read_u32(address) for address in addresses]


def wait_until_above(before: list[int], counters: Callable[[], list[int]]) -> None:
    wait_until(lambda: all(now > then for now, then in zip(counters(), before, strict=True)))


def finish(machine: Machine) -> None:
    machine.memory.write(OVER, b"\x01")


# ---- pause and resume ----


@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_a_thousand_pauses_of_two_cpus_lose_nothing(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip, cpus=2)
    steps, counters = counting(machine)
    with running(machine) as run:
        wait_until(lambda: all(counters()))
        for _ in range(1000):
            machine.pause()
            for vcpu in machine.vcpus:
                vcpu.check_idle()
            before, now, at = counters(), machine.events.now(), list(steps.next)
            time.sleep(0)
            assert (counters(), machine.events.now(), steps.next) == (before, now, at)
            machine.resume()
            wait_until_above(before, counters)
        finish(machine)
        assert run.join() == Halted()
    assert len(run.results) == 1
    total, *each = counters()
    assert total == sum(each)
    assert steps.next[:2] == each
    assert steps.broken == []


def test_pauses_without_a_breath_in_between_lose_nothing(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    steps, counters = counting(machine)
    with running(machine) as run:
        wait_until(lambda: all(counters()))
        for _ in range(1000):
            machine.pause()
            machine.resume()
        before = counters()
        wait_until_above(before, counters)
        finish(machine)
        assert run.join() == Halted()
    assert steps.broken == []
    assert steps.next[:2] == counters()[1:]


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_a_paused_machine_costs_no_host_cpu(guest: Guests, cpus: int) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=cpus)
    _, counters = counting(machine)
    with running(machine):
        wait_until(lambda: all(counters()))
        machine.pause()
        cpu_time, start = time.process_time(), time.monotonic()
        time.sleep(0.3)
        assert time.process_time() - cpu_time < (time.monotonic() - start) / 5


@pytest.mark.parametrize("cpus", [1, 4])
def test_a_sleeping_machine_costs_no_host_cpu(guest: Guests, cpus: int) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=cpus)
    machine.load(assemble(SLEEP, mode="long"))
    with running(machine):
        time.sleep(0.2)
        cpu_time, start = time.process_time(), time.monotonic()
        time.sleep(0.3)
        assert time.process_time() - cpu_time < (time.monotonic() - start) / 5


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_pause_does_not_count_against_the_time_limit(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("1M", irqchip=irqchip)
    machine.load(SPIN)
    with running(machine, 0.2) as run:
        machine.pause()
        now = machine.events.now()
        time.sleep(0.4)
        assert machine.is_running
        assert machine.events.now() == now
        machine.resume()
        assert run.join() == TimedOut(0.2)


def test_a_run_that_begins_paused_waits_for_resume(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    steps, counters = counting(machine)
    machine.pause()
    with running(machine) as run:
        time.sleep(0.15)
        assert counters() == [0, 0, 0]
        machine.resume()
        wait_until(lambda: all(counters()))
        finish(machine)
        assert run.join() == Halted()
    assert steps.broken == []


def test_pause_may_be_asked_for_twice_and_resume_ends_both(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(SPIN)
    with running(machine, 0.1) as run:
        machine.pause()
        machine.pause()
        machine.resume()
        machine.resume()
        assert run.join() == TimedOut(0.1)


def test_pause_and_resume_on_many_threads_leave_the_clock_going(guest: Guests) -> None:
    """Whoever pauses stops the clock when all vCPUs are out; by then somebody may have let them in again."""
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    _, counters = counting(machine)
    over = threading.Event()

    def call_for_ever(call: Callable[[], None]) -> None:
        while not over.is_set():
            call()

    with running(machine):
        wait_until(lambda: all(counters()))
        threads = [
            threading.Thread(target=call_for_ever, args=(call,))
            for call in (machine.pause, machine.resume, machine.pause, machine.resume)
        ]
        for thread in threads:
            thread.start()
        for _ in range(20):
            time.sleep(0.01)
        over.set()
        while any(thread.is_alive() for thread in threads):
            machine.resume()
        machine.pause()
        machine.resume()
        now = machine.events.now()
        wait_until(lambda: machine.events.now() > now)


def test_a_pause_that_is_overtaken_by_a_resume_does_not_stop_the_clock(
    guest: Guests, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = guest.machine("1M")
    machine.load(SPIN)
    pause = machine._control.pause

    def pause_and_be_resumed() -> None:
        pause()
        resumer = threading.Thread(target=machine.resume)
        resumer.start()
        resumer.join(0.05)  # with the lock held all the while it waits for its turn, which is all right too

    monkeypatch.setattr(machine._control, "pause", pause_and_be_resumed)
    with running(machine, 0.2) as run:
        machine.pause()
        assert run.join() == TimedOut(0.2)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_device_cannot_pause_the_machine_it_runs_in(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("1M", irqchip=irqchip)
    machine.pio.register(Caller(machine.pause), 0x66, 1)
    machine.load(b"\xe6\x66\xf4")
    with pytest.raises(InUseError, match="another thread"):
        machine.run(LONG)


@pytest.mark.parametrize("what", ["run", "load", "close"])
def test_a_device_cannot_run_load_or_close_the_machine_it_runs_in(guest: Guests, what: str) -> None:
    machine = guest.machine("1M")
    calls: dict[str, Callable[[], object]] = {
        "run": machine.run,
        "load": lambda: machine.load(SPIN),
        "close": machine.close,
    }
    machine.pio.register(Caller(calls[what]), 0x66, 1)
    machine.load(b"\xe6\x66\xf4")
    with pytest.raises(InUseError, match="running"):
        machine.run(LONG)


def test_a_machine_that_runs_cannot_be_loaded(guest: Guests) -> None:
    machine = guest.machine("1M")
    machine.load(SPIN)
    with running(machine), pytest.raises(InUseError, match="stop"):
        machine.load(b"\xf4")
    assert machine.memory.read(0x8000, 2) == SPIN


def test_a_paused_machine_may_be_looked_at(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    _, counters = counting(machine)
    with running(machine):
        wait_until(lambda: all(counters()))
        machine.pause()
        result = machine.result(Stopped())
        assert [cpu.activity for cpu in result.cpus] == ["running", "running"]
        assert {cpu.registers.rdi for cpu in result.cpus} == {0, 1}


# ---- stop ----


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_stop_ends_a_run_of_any_number_of_cpus(guest: Guests, irqchip: str, cpus: int) -> None:
    machine = guest.machine("2M", irqchip=irqchip, cpus=cpus)
    _, counters = counting(machine)
    with running(machine) as run:
        wait_until(lambda: all(counters()))
        machine.stop()
        assert run.join() == Stopped()
    with running(machine, 0.1) as run:
        assert run.join() == TimedOut(0.1), "and not the next one too"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("source", [HALT_AWAKE, SLEEP, "jmp ."], ids=["halted", "S3", "spinning"])
@pytest.mark.parametrize("paused", [False, True], ids=["going", "paused"])
def test_stop_ends_a_run_whatever_the_guest_is_at(guest: Guests, irqchip: str, source: str, paused: bool) -> None:
    if irqchip == "none" and source == HALT_AWAKE:
        source = "jmp ."
    machine = guest.machine("2M", irqchip=irqchip)
    machine.load(assemble(HALTED_WITH_INTERRUPTS if source == HALT_AWAKE else source, mode="long"))
    with running(machine) as run:
        time.sleep(0.02)
        if paused:
            machine.pause()
        machine.stop()
        assert run.join() == Stopped()


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_stop_before_the_run_ends_it_and_no_other(guest: Guests, cpus: int) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=cpus)
    machine.load(assemble("jmp .", mode="long"))
    machine.stop()
    machine.stop()
    assert machine.run(LONG).stop == Stopped()
    assert machine.run(0.05).stop == TimedOut(0.05)


def test_stops_at_any_moment_each_end_one_run(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.load(assemble("jmp .", mode="long"))
    for number in range(200):
        stopper = threading.Timer(0.0002 * (number % 8), machine.stop)
        stopper.start()
        assert machine.run(LONG).stop == Stopped()
        stopper.join()
    assert machine.run(0.05).stop == TimedOut(0.05)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_sleeping_without_a_wake_event_ends_at_the_time_limit(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    machine.load(assemble(SLEEP, mode="long"))
    assert machine.run(0.2).stop == TimedOut(0.2)
    assert machine.run(0.1).stop == TimedOut(0.1), "it still sleeps"
    machine.load(assemble("mov $3, %al; out %al, $0xf4", mode="long"))
    assert machine.run(LONG).stop == DebugExitWritten(3), "what is loaded starts awake"


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_a_time_limit_ends_a_run_once(guest: Guests, cpus: int) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=cpus)
    _, counters = counting(machine)
    for _ in range(5):
        result = machine.run(0.1)
        assert result.stop == TimedOut(0.1)
        assert [cpu.stop for cpu in result.cpus] == [TimedOut(0.1)] + [None] * (cpus - 1)
    assert all(counters())


def test_a_halted_user_irqchip_guest_is_said_to_be_halted(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="user")
    machine.load(assemble(HALTED_WITH_INTERRUPTS, mode="long"))
    assert machine.run(0.1).cpus[0].activity == "halted"


# ---- what is wrong stays with its run ----


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_machine_whose_device_failed_to_answer_can_be_loaded_again(guest: Guests, irqchip: str) -> None:
    class Broken(Steps):
        def read(self, offset: int, size: int) -> bytes:
            raise ZeroDivisionError

    machine = guest.machine("2M", irqchip=irqchip)
    machine.pio.register(Broken(), STEPS, 4)
    for _ in range(2):
        machine.load(assemble("mov $0x300, %dx; in (%dx), %al; hlt", mode="long"))
        with pytest.raises(ZeroDivisionError):
            machine.run(LONG)
    machine.load(assemble("mov $3, %al; out %al, $0xf4", mode="long"))
    assert machine.run(LONG).stop == DebugExitWritten(3)


@pytest.mark.parametrize("irqchip", ["none", "kernel"])
@pytest.mark.parametrize(
    "source",
    [
        "mov $-1, %rcx; mov $0x60, %dx; mov $0x180000, %edi; rep insb",
        "mov $-1, %rcx; mov $0x80, %dx; mov $0x100000, %esi; rep outsb",
        "mov $-1, %rcx; mov $0xd0000000, %esi; mov $0x180000, %edi; rep movsb",
    ],
    ids=["rep insb", "rep outsb", "rep movsb"],
)
def test_what_is_loaded_over_an_instruction_without_end_starts_at_its_entry(
    guest: Guests, irqchip: str, source: str
) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    machine.load(assemble(source, mode="long"))
    machine.run(0.05)
    machine.load(assemble(".rept 64; nop; .endr; mov $3, %al; out %al, $0xf4", mode="long"))
    assert machine.registers.rip == 0x100000
    assert machine.run(LONG).stop == DebugExitWritten(3)


def test_an_error_in_an_event_comes_out_of_run_once(guest: Guests) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.load(assemble("jmp .", mode="long"))
    machine.events.call_at(machine.events.now(), fail)
    with pytest.raises(ZeroDivisionError):
        machine.run(LONG)
    assert machine.run(0.05).stop == TimedOut(0.05)
    alarms: list[int] = []
    machine.events.call_at(machine.events.now(), lambda: alarms.append(1))
    assert machine.run(0.05).stop == TimedOut(0.05)
    assert alarms == [1], "and the events go on"


def test_no_thread_to_be_had_ends_the_run(guest: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, list[threading.Thread]()

    def start_one(thread: threading.Thread) -> None:
        if thread.name.startswith("pykvm vCPU"):
            if started:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        start(thread)

    machine = guest.machine("2M", irqchip="kernel", cpus=3)
    machine.load(assemble("jmp .", mode="long"))
    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="can't start"):
        machine.run(LONG)
    assert not started[0].is_alive()
    monkeypatch.undo()
    assert machine.run(0.05).stop == TimedOut(0.05)


EXIT = "mov $3, %al; out %al, $0xf4"
IN_AN_NMI = """
        .include "layout.inc"
        .include "idt64.inc"
        .globl  _start
_start:
        set_gate idt, 2, handler
        lidt    pointer
        out     %al, $0x80                      # ready for an NMI
1:      jmp     1b
handler:
        mov     $3, %al
        out     %al, $0xf4
        jmp     .                               # no IRET: another NMI would not be taken
pointer:
        .word   16 * 3 - 1
        .quad   idt
        .bss
        .balign 16
idt:    .skip   16 * 3
"""


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("before", [HALT, HALTED_WITH_INTERRUPTS, "ud2"], ids=["halted", "waiting", "crashed"])
def test_what_is_loaded_runs_whatever_the_guest_before_came_to(guest: Guests, irqchip: str, before: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    machine.load(assemble(before, mode="long"))
    machine.run(0.1)
    machine.load(assemble(EXIT, mode="long"))
    assert machine.run(LONG).stop == DebugExitWritten(3)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_what_is_loaded_is_not_inside_the_nmi_of_the_guest_before(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    for round in range(1, 4):
        machine.load(assemble(IN_AN_NMI, mode="long"))
        while len(machine.board.post_code.codes) < round:  # the NMI is for a guest that has its IDT
            machine.run(0.02)
        machine.nmi()
        assert machine.run(LONG).stop == DebugExitWritten(3)


# ---- events ----


def test_an_event_may_stop_the_machine(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.load(assemble("jmp .", mode="long"))
    machine.events.call_at(machine.events.now(), machine.stop)
    assert machine.run(LONG).stop == Stopped()


def test_an_event_may_pause_the_machine(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.load(assemble("jmp .", mode="long"))
    paused = threading.Event()

    def pause() -> None:
        machine.pause()
        paused.set()

    machine.events.call_at(machine.events.now(), pause)
    with running(machine, 0.2) as run:
        assert paused.wait(LONG)
        for vcpu in machine.vcpus:
            vcpu.check_idle()
        machine.resume()
        assert run.join() == TimedOut(0.2)


@pytest.mark.parametrize("kind", ["pipe", "file"])
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_over_one_descriptor_does_not_lose_another(
    guest: Guests, kind: str, broken: int, tmp_path: Path
) -> None:
    heard: list[int] = []

    def hear(number: int) -> None:
        if number == broken:
            raise ZeroDivisionError
        heard.append(number)

    machine = guest.machine("1M")
    with contextlib.ExitStack() as descriptors:
        machine.load(SPIN)
        for number in range(2):
            if kind == "pipe":
                reader, writer = os.pipe()
                descriptors.callback(os.close, writer)
                os.write(writer, b"x")
            else:
                reader = os.open(tmp_path, os.O_RDONLY)
            descriptors.callback(os.close, reader)
            machine.events.watch(reader, functools.partial(hear, number)).arm()
        with pytest.raises(ZeroDivisionError):
            machine.run(LONG)
        assert machine.run(0.1).stop == TimedOut(0.1)
        assert heard == [1 - broken]


# ---- Ctrl-C ----


@contextmanager
def ctrl_c_works() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def vcpu_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pykvm")]


@pytest.mark.parametrize("paused", [False, True], ids=["going", "paused"])
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_ctrl_c_ends_a_run_and_leaves_no_thread(cpus: int, paused: bool) -> None:
    with ctrl_c_works(), Machine("2M", irqchip="kernel", cpus=cpus) as machine:
        _, counters = counting(machine)

        def interrupt() -> None:
            wait_until(lambda: all(counters()))
            if paused:
                machine.pause()
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            machine.run(LONG)
        thread.join()
        assert vcpu_threads() == []
        machine.resume()
        assert machine.run(0.05).stop == TimedOut(0.05)


def test_ctrl_c_while_the_threads_start_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_and_interrupt(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "pykvm vCPU 1":
            os.kill(os.getpid(), signal.SIGINT)

    with ctrl_c_works(), Machine("2M", irqchip="kernel", cpus=3) as machine:
        machine.load(assemble("jmp .", mode="long"))
        monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            machine.run(LONG)
        assert vcpu_threads() == []
        monkeypatch.undo()
        assert machine.run(0.05).stop == TimedOut(0.05)


def test_ctrl_c_at_any_moment_leaves_nothing_behind() -> None:
    chance = random.Random(3)
    with ctrl_c_works(), Machine("2M", irqchip="kernel", cpus=2) as machine:
        machine.load(assemble("jmp .", mode="long"))
        for _ in range(150):
            timer = threading.Timer(chance.random() * 0.004, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                machine.run(0.003)
                timer.join()
                time.sleep(0)  # where the interpreter looks for signals
            except KeyboardInterrupt:
                timer.join()
            assert vcpu_threads() == []
            assert not machine.is_running
        assert machine.run(0.05).stop == TimedOut(0.05)


# ---- requests that meet ----


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have vCPU 0 look a hundred times as often whether anything is left to run, for which it parks the others."""
    monkeypatch.setattr(runloop, "TICK", 0.001)
    monkeypatch.setattr(control, "TICK", 0.001)


ONE_SPINS = "cmp $1, %edi; je 1f; 2: cli; hlt; jmp 2b; 1: incl 0x180080; jmp 1b"


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("irqchip", WITH_APIC)
def test_pauses_while_the_others_are_parked_for_a_look_hold_all(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip, cpus=3)
    machine.load(several(ONE_SPINS))

    def count() -> int:
        return machine.memory.read_u32(COUNTS)

    with running(machine):
        wait_until(lambda: count() > 0)
        for _ in range(300):
            machine.pause()
            for vcpu in machine.vcpus:
                vcpu.check_idle()
            before = count()
            time.sleep(0)
            assert count() == before
            machine.resume()
            wait_until(lambda before=before: count() != before)  # type: ignore[misc]


@pytest.mark.usefixtures("restless")
def test_stops_while_the_others_are_parked_for_a_look_end_the_run(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=3)
    machine.load(several(ONE_SPINS))
    for number in range(100):
        stopper = threading.Timer(0.0003 * (number % 20), machine.stop)
        stopper.start()
        assert machine.run(LONG).stop == Stopped()
        stopper.join()


WAKING_VECTOR = Gpa(0xE0040 + 12)  # in the FACS
AWAKE = Gpa(0x9000)  # where a guest wakes up, in real mode: it counts at 0x9100, and sleeps again
# incl %cs:0x100; mov $0x604, %dx; mov $0x2400, %ax; out %ax, (%dx); jmp .
AWAKE_CODE = bytes.fromhex("2e 66 ff 06 00 01 ba 04 06 b8 00 24 ef eb fe")


@pytest.mark.parametrize("cpus", [1, 4])
def test_a_guest_sleeps_and_wakes_a_hundred_times_through_pauses(guest: Guests, cpus: int) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=cpus)
    work = "cmp $0, %edi; jne 1f; 2: cmpl $CPUS, arrived; jne 2b; " + SLEEP + "; 1: out %al, $0x80; jmp 1b"
    machine.load(several(work.replace("CPUS", str(cpus))) if cpus > 1 else assemble(SLEEP, mode="long"))
    machine.memory.write(AWAKE, AWAKE_CODE)
    machine.memory.write(WAKING_VECTOR, AWAKE.to_bytes(4, "little"))

    def wake_up() -> None:
        with machine.lock:
            machine.board.press_power_button()

    def woken() -> int:
        return machine.memory.read_u32(Gpa(AWAKE + 0x100))

    with running(machine) as run:
        for number in range(100):
            wait_until(lambda: machine._control._asleep)
            if number % 3 == 0:
                machine.pause()
            wake_up()
            machine.resume()
            wait_until(lambda number=number: woken() == number + 1)  # type: ignore[misc]
        wait_until(lambda: machine._control._asleep)
        machine.stop()
        assert run.join() == Stopped()
