"""pykvm.machine.observer: what observers are told, and that who does not ask for more pays for no more."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pykvm.kvm import Exit, Hypercall, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, ReadExit, Wrmsr
from pykvm.machine import ExitHandlers, LastExits, Observer, RunLoop, ScriptedVcpu
from pykvm.testing import DeviceBench
from pykvm.units import Gpa


class Close(LastExits):
    """An observer of everything, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[object] = []

    def exit(self, vcpu: int, exit: Exit) -> None:
        self.heard.append(exit)

    def answer(self, vcpu: int, exit: ReadExit | Wrmsr, data: bytes | None) -> None:
        self.heard.append((exit, data))

    def interrupt(self, vcpu: int, vector: int) -> None:
        self.heard.append(vector)

    def coalesced(self, vcpu: int, write: IoOut | MmioWrite) -> None:
        self.heard.append(("kept back", write))


class Controller:
    """An interrupt controller that has one interrupt."""

    def __init__(self) -> None:
        self.output = True

    def acknowledge(self) -> int:
        self.output = False
        return 0x20


def loop(vcpu: ScriptedVcpu, *observers: Observer, handlers: ExitHandlers | None = None) -> RunLoop:
    interrupts = Controller() if vcpu.interruptible else None
    bench = DeviceBench()
    return RunLoop(vcpu, bench.pio, bench.mmio, observers, interrupts=interrupts, handlers=handlers)


@pytest.mark.parametrize(
    ("exit", "data"),
    [
        (IoIn(0x60, 2, 2), b"\xff" * 4),
        (MmioRead(Gpa(0x1000), 4), b"\xff" * 4),
        (Rdmsr(0x10, 2), None),
        (Wrmsr(0x10, 1, 2), None),
    ],
    ids=str,
)
def test_a_close_observer_hears_of_each_answer_after_its_exit(exit: ReadExit | Wrmsr, data: bytes | None) -> None:
    close = Close()
    loop(ScriptedVcpu([exit]), close).run(None)
    assert close.heard[:2] == [exit, (exit, data)]


def test_answers_of_handlers_are_answers() -> None:
    close = Close()
    handlers = ExitHandlers(rdmsr=lambda index: 1, wrmsr=lambda index, value: None, hypercall=lambda call: 2)
    exits: list[Exit] = [Rdmsr(0x10, 2), Wrmsr(0x10, 1, 2), Hypercall(12, (0,) * 6, 1)]
    loop(ScriptedVcpu(exits), close, handlers=handlers).run(None)
    answers = [heard[1] for heard in close.heard if isinstance(heard, tuple)]
    assert answers == [b"\x01" + bytes(7), b"\x02" + bytes(7)]


def test_a_close_observer_hears_of_an_interrupt_that_the_cpu_takes() -> None:
    close = Close()
    out = IoOut(0x80, 1, 1, b"\x00")
    loop(ScriptedVcpu([out, out], interruptible=True), close).run(None)
    assert close.heard[:3] == [out, 0x20, out]


def test_a_close_observer_hears_of_writes_that_were_no_exit() -> None:
    close, kept_back = Close(), [IoOut(0x80, 1, 1, b"\x01")]

    def drain() -> Iterable[IoOut]:
        taken = list(kept_back)
        kept_back.clear()
        return taken

    loop(ScriptedVcpu(), close, handlers=ExitHandlers(drain=lambda: list(drain()))).run(None)
    assert close.heard[0] == ("kept back", IoOut(0x80, 1, 1, b"\x01"))


def test_without_a_close_observer_an_answer_goes_straight_to_the_vcpu() -> None:
    vcpu = ScriptedVcpu()
    assert loop(vcpu, LastExits())._answer == vcpu.complete
    assert loop(vcpu, LastExits(), Close())._answer != vcpu.complete
