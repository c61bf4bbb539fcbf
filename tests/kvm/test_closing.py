"""Closing a machine, whatever it is at: no thread, descriptor or mapping stays behind, counted by the kernel."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.errors import ClosedError, InUseError
from pykvm.machine import Halted, Stop, Stopped, TimedOut

LONG = 30.0  # seconds: a limit that no test reaches
SPIN = b"\xeb\xfe"  # jmp .
CONFIGURATIONS = [("none", 1), ("user", 1), *((irqchip, cpus) for irqchip in ("kernel", "split") for cpus in (1, 2, 4))]

# All CPUs spin, or do what `work` is set to.
SEVERAL = """
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .globl  _start
_start:
        start_other_cpus trampoline
        jmp     work
        define_trampoline trampoline, work
work:
"""
HALTED = "movb $0xff, %al; out %al, $0x21; out %al, $0xa1; sti; 1: hlt; jmp 1b"


class Failing:
    """A device that cannot be written to."""

    name = "failing"

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        raise ZeroDivisionError


class Run:
    """A run on another thread, and how it ended."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.ended: list[Stop | Exception] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: machine.is_running or bool(self.ended))

    def _run(self) -> None:
        try:
            self.ended.append(self._machine.run(LONG).stop)
        except Exception as error:
            self.ended.append(error)

    def join(self) -> Stop | Exception:
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        return self.ended[0]


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(200_000):
        if condition():
            return
        time.sleep(0.0001)
    raise AssertionError("it never came true")


def left_behind() -> tuple[list[str], int, int, list[str]]:
    """Return this process's threads, how many the kernel counts, its descriptors, and its mappings of KVM's."""
    gc.collect()
    threads = [thread.name for thread in threading.enumerate()]
    maps = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "kvm" in line]
    tasks, fds = (len(list(Path(f"/proc/self/{what}").iterdir())) for what in ("task", "fd"))
    return threads, tasks, fds, sorted(name for name in maps if "/" not in name or name.startswith("anon_inode"))


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def active(machine: Machine) -> None:
    """Have alarms and watched descriptors, those that fire all the time too."""

    def again() -> None:
        machine.events.call_at(machine.events.now() + 1_000_000, again)

    reader, writer = os.pipe()
    machine._resources.callback(os.close, reader)
    machine._resources.callback(os.close, writer)
    os.write(writer, b"x")

    def ready() -> None:
        watch.arm()

    watch = machine.events.watch(reader, ready)
    watch.arm()
    machine.on_doorbell(0x500, 1, lambda times: None, pio=True)
    with machine.lock:
        again()


def cycle(irqchip: str, cpus: int, state: str) -> None:
    machine = Machine("2M", irqchip=irqchip, cpus=cpus, devices=["testdev", "doorbell"])
    machine.pio.register(Failing(), 0x66, 1)
    work = {"halted": HALTED, "failed": "out %al, $0x66; jmp ."}.get(state, "jmp .")
    machine.load(assemble(SEVERAL + work if cpus > 1 else work, mode="long"))
    active(machine)
    if state != "not run":
        run = Run(machine)
        time.sleep(0.005)
        if state == "paused":
            machine.pause()
        halted = state == "halted" and irqchip == "none"
        ended = run.join() if state == "failed" or halted else None  # by itself
        machine.close()
        assert isinstance(ended or run.join(), Halted if halted else ZeroDivisionError if ended else Stopped)
    machine.close()


@pytest.mark.parametrize(("irqchip", "cpus"), CONFIGURATIONS)
@pytest.mark.parametrize("state", ["spinning", "paused", "halted", "failed", "not run"])
def test_closing_leaves_no_thread_descriptor_or_mapping(irqchip: str, cpus: int, state: str) -> None:
    cycle(irqchip, cpus, state)
    before, maps = left_behind(), mappings()
    for _ in range(2):
        cycle(irqchip, cpus, state)
    wait_until(lambda: left_behind() == before)
    assert mappings() <= maps + 4  # the allocator may map arenas, and a thread's stack may stay cached


def test_many_machines_do_not_add_up() -> None:
    def cycle() -> None:
        with Machine("2M", irqchip="split", cpus=2) as machine:
            machine.load(assemble(SEVERAL + "jmp .", mode="long"))
            active(machine)
            assert machine.run(0.01).stop == TimedOut(0.01)

    for _ in range(5):
        cycle()
    before, maps = left_behind(), mappings()
    for _ in range(40):
        cycle()
    wait_until(lambda: left_behind() == before)
    assert mappings() <= maps + 8


@pytest.mark.parametrize("arguments", [{"cpus": 0}, {"cpus": 10**6}, {"devices": ["toaster"]}, {"cpus": 2}])
def test_a_machine_that_cannot_be_made_leaves_nothing_behind(arguments: dict[str, object]) -> None:
    def cycle() -> None:
        with pytest.raises(Exception, match=r"CPU|device"):
            Machine("2M", **arguments)  # type: ignore[arg-type]

    cycle()
    before = left_behind()
    for _ in range(5):
        cycle()
    wait_until(lambda: left_behind() == before)


def test_an_event_cannot_close_the_machine_it_happens_in() -> None:
    with Machine("2M", irqchip="kernel", cpus=2) as machine:
        machine.load(assemble("jmp .", mode="long"))
        machine.events.call_at(machine.events.now(), machine.close)
        with pytest.raises(InUseError, match="stop"):
            machine.run(LONG)


def call_for_ever(call: Callable[[], object], seen: list[object]) -> None:
    """Call until it raises, and note what."""
    try:
        while True:
            call()
    except Exception as error:
        seen.append(error)


def run_for_ever(machine: Machine, seen: list[object]) -> None:
    call_for_ever(lambda: seen.append(machine.run(LONG).stop), seen)


def test_closing_ends_runs_that_others_begin_meanwhile() -> None:
    for _ in range(30):
        machine = Machine("1M")
        machine.load(SPIN)
        seen: list[object] = []
        thread = threading.Thread(target=run_for_ever, args=(machine, seen))
        thread.start()
        while not machine.is_running and not seen:
            pass
        machine.close()
        thread.join(LONG)
        assert not thread.is_alive()
        assert {type(what) for what in seen} <= {Stopped, ClosedError, InUseError}


def test_a_machine_may_be_closed_by_several_threads_at_once() -> None:
    for _ in range(20):
        machine = Machine("2M", irqchip="kernel", cpus=2)
        machine.load(assemble("jmp .", mode="long"))
        run = Run(machine)
        closers = [threading.Thread(target=machine.close) for _ in range(4)]
        for closer in closers:
            closer.start()
        machine.close()
        for closer in closers:
            closer.join(LONG)
        assert run.join() == Stopped()


def test_stop_pause_and_resume_racing_with_close_say_that_it_is_closed() -> None:
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(20):
            machine = Machine("2M", irqchip="kernel", cpus=2)
            machine.load(assemble("jmp .", mode="long"))
            errors: list[object] = []
            run = Run(machine)
            threads = [
                threading.Thread(target=call_for_ever, args=(call, errors))
                for call in (machine.pause, machine.resume, machine.nmi)
            ]
            for thread in threads:
                thread.start()
            machine.close()
            for thread in threads:
                thread.join(LONG)
                assert not thread.is_alive()
            run.join()
            assert {type(error) for error in errors} == {ClosedError}
    finally:
        sys.setswitchinterval(switch)
