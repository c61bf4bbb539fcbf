"""Recordings of real guests: the devices of today answer as they did, whatever came from outside meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm.boot import assemble, bundled_guests, open_image
from pykvm.boot.bundle import BundledGuest
from pykvm.devices import parse_keys
from pykvm.errors import BusError
from pykvm.machine import DebugExitWritten, Halted, Machine, Stop, TimedOut
from pykvm.observe import Recorder, ReplayResult, Workbench, read_recording, replay, without_times
from pykvm.observe.recording import BrokenOff, EventLine, ExitLine, Interrupt
from pykvm.units import Gpa
from pykvm.x86 import Mode

TIMEOUT = 30  # seconds


def run_bundled(bundled: BundledGuest, path: Path) -> Stop:
    """Record ``bundled`` as ``pykvm run`` would run it, and return how it stopped."""
    typed = [b"4\n", b"hello\nq"]
    with (
        Recorder(path, guest=bundled.name) as recorder,
        Machine(
            bundled.memory,
            irqchip=bundled.irqchip,
            cpus=bundled.cpus,
            devices=bundled.devices,
            serial_input=lambda limit: typed.pop(0)[:limit] if typed else b"",
            observers=[recorder],
        ) as machine,
    ):
        for index, value in bundled.msrs:
            machine.msr.store(index, value)
        machine.board.keyboard.enqueue(parse_keys(bundled.keys))
        machine.load(open_image(bundled.image, name=bundled.name, mode=Mode(bundled.mode)), ring=bundled.ring)
        return machine.run(2).stop


def check(path: Path, stop: Stop, **options: Callable[[Workbench], object]) -> ReplayResult:
    """Replay ``path`` and check that it runs through to ``stop``."""
    result = replay(path, **options)  # type: ignore[arg-type]
    assert result.divergence is None, str(result.divergence)
    assert result.stop == stop
    return result


@pytest.mark.parametrize("bundled", bundled_guests(), ids=lambda bundled: str(bundled.name))
def test_every_bundled_guest_is_replayed_as_it_was_recorded(bundled: BundledGuest, tmp_path: Path) -> None:
    stop = run_bundled(bundled, tmp_path / "run")
    check(tmp_path / "run", stop)


def record(path: Path, code: str, *, mode: str = "real", **options: object) -> Stop:
    with Recorder(path) as recorder, Machine("1M", observers=[recorder], **options) as machine:  # type: ignore[arg-type]
        machine.load(assemble(code, mode=Mode(mode)))
        return machine.run(TIMEOUT).stop


HELLO = """
    mov $0x3f8, %dx
    mov $'H', %al
    out %al, (%dx)
    mov $0x3fd, %dx
    in (%dx), %al
    mov $0x300, %dx
    in (%dx), %ax
    mov $0x3ff, %dx
    mov $0x55, %al
    out %al, (%dx)
    in (%dx), %al
    hlt
"""


def test_the_same_guest_makes_the_same_recording_but_for_the_times(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        record(tmp_path / name, HELLO)
        texts.append((tmp_path / name).read_text().splitlines())
    assert texts[0] != texts[1]
    assert without_times(texts[0]) == without_times(texts[1])


CLOCKS = """
    mov $50, %cx
1:  mov $0x608, %dx         # the ACPI timer
    in (%dx), %eax
    mov $0, %al             # the seconds, and register A with UIP
    out %al, $0x70
    in $0x71, %al
    mov $10, %al
    out %al, $0x70
    in $0x71, %al
    mov $0, %al             # latch counter 0 of the 8254
    out %al, $0x43
    in $0x40, %al
    in $0x40, %al
    in $0x61, %al           # the refresh toggle
    loop 1b
    hlt
"""


def test_clocks_read_the_same_to_the_last_bit(tmp_path: Path) -> None:
    stop = record(tmp_path / "run", CLOCKS, irqchip="user")
    result = check(tmp_path / "run", stop)
    assert result.exits == 50 * 9 + 1


def test_interrupts_are_recorded_where_the_cpu_took_them(tmp_path: Path) -> None:
    bundled = next(bundled for bundled in bundled_guests() if bundled.name == "15-timer")
    run_bundled(bundled, tmp_path / "run")
    lines = read_recording(tmp_path / "run").lines
    assert sum(isinstance(line, EventLine) and isinstance(line.event, Interrupt) for line in lines) > 3


def test_a_device_of_ones_own_is_recorded_and_replayed(tmp_path: Path) -> None:
    class Counter:
        name = "counter"

        def __init__(self, step: int) -> None:
            self.value, self.step = 0, step

        def read(self, offset: int, size: int) -> bytes:
            self.value += self.step
            return self.value.to_bytes(size, "little")

        def write(self, offset: int, data: bytes) -> None: ...

    path = tmp_path / "run"
    with Recorder(path) as recorder, Machine("1M", observers=[recorder]) as machine:
        machine.pio.register(Counter(1), 0x300, 2)
        machine.load(assemble(HELLO, mode=Mode.REAL))
        machine.run(TIMEOUT)
    check(path, Halted(), devices=lambda bench: bench.pio.register(Counter(1), 0x300, 2))
    divergence = replay(path, lambda bench: bench.pio.register(Counter(3), 0x300, 2)).divergence
    assert divergence is not None
    assert (divergence.recorded, divergence.now, divergence.who) == ("01 00", "03 00", "counter at 0x300-0x301")


def test_kept_back_writes_are_recorded_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = "mov $0x55, %al; mov $0x3ff, %dx; out %al, (%dx); in (%dx), %al; hlt"
    with Recorder(path) as recorder, Machine("1M", observers=[recorder]) as machine:
        machine.coalesce(0x3FF, 1, pio=True)
        machine.load(assemble(code, mode=Mode.REAL))
        machine.run(TIMEOUT)
    first = read_recording(path).lines[0]
    assert isinstance(first, ExitLine) and first.coalesced
    check(path, Halted())


def test_a_string_write_that_ends_the_run_is_recorded_to_its_end(tmp_path: Path) -> None:
    code = "mov $0xf4, %dx; mov $2000, %cx; xor %si, %si; rep outsb; hlt"
    stop = record(tmp_path / "run", code)
    assert isinstance(stop, DebugExitWritten)
    check(tmp_path / "run", stop)


WAIT_FOR_KEY = """
1:  in $0x64, %al
    test $1, %al
    jz 1b
    in $0x60, %al
    out %al, $0xf4
"""


def test_a_key_that_is_pressed_meanwhile_is_recorded_where_it_came(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Recorder(path) as recorder, Machine("1M", observers=[recorder]) as machine:
        machine.load(assemble(WAIT_FOR_KEY, mode=Mode.REAL))

        def type_when_it_runs() -> None:
            while recorder._now() == 0:
                time.sleep(0.001)
            with machine.lock:
                machine.board.keyboard.press("a")

        thread = threading.Thread(target=type_when_it_runs)
        thread.start()
        stop = machine.run(TIMEOUT).stop
        thread.join()
    assert stop == DebugExitWritten(0x1E)
    check(path, stop)


def test_two_runs_of_a_machine_are_one_recording(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Recorder(path) as recorder, Machine("1M", observers=[recorder]) as machine:
        machine.load(assemble("1: in $0x64, %al; jmp 1b", mode=Mode.REAL))
        assert machine.run(0.05).stop == TimedOut(0.05)
        assert machine.run(0.05).stop == TimedOut(0.05)
    check(path, TimedOut(0.05))


def test_an_error_of_a_device_is_recorded_and_found_again(tmp_path: Path) -> None:
    class Liar:
        name = "liar"

        def read(self, offset: int, size: int) -> bytes:
            return b""

        def write(self, offset: int, data: bytes) -> None: ...

    def plug_in(bench: Workbench | Machine) -> None:
        bench.pio.register(Liar(), 0x300, 2)

    path = tmp_path / "run"
    with (
        pytest.raises(BusError, match="liar"),
        Recorder(path) as recorder,
        Machine("1M", observers=[recorder]) as machine,
    ):
        plug_in(machine)
        machine.load(assemble(HELLO, mode=Mode.REAL))
        machine.run(TIMEOUT)
    assert isinstance(replay(path, plug_in).stop, BrokenOff)
    assert replay(path).divergence is not None


def test_msrs_are_replayed_as_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = "mov $0x1234, %ecx; rdmsr; wrmsr; rdmsr; hlt"
    with Recorder(path) as recorder, Machine("1M", observers=[recorder]) as machine:
        machine.msr.store(0x1234, 0x1_0000_0002)
        machine.load(assemble(code, mode=Mode.REAL))
        machine.run(TIMEOUT)
    answers = [line.answer for line in read_recording(path).lines if isinstance(line, ExitLine)]
    assert answers[0] == b"\x02\x00\x00\x00\x01\x00\x00\x00"
    check(path, Halted())


def test_a_run_without_a_recorder_has_nobody_to_tell(tmp_path: Path) -> None:
    with Machine("1M") as machine:
        assert machine._loops[0]._answer == machine.vcpu.complete
        assert machine._clock is machine.events
        assert machine.memory.read(Gpa(0), 1) == b"\0"
