"""pykvm.observe.replaying: the devices of today get the recorded exits, and the first difference is told in words."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import I8042, A20Gate, Hpet, Keyboard, KeyEvent, Pit, Rtc, Serial, cmos_memory
from pykvm.errors import ConfigurationError, RecordingError
from pykvm.kvm import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Shutdown, Wrmsr
from pykvm.machine import Crashed, DebugExitWritten, Halted, Interrupted, ResetRequested, Stop, Stopped, TimedOut
from pykvm.machine.journal import (
    NO_MACHINE,
    Input,
    Keys,
    MemoryRead,
    PowerButton,
    Rings,
    Setup,
    TimePassed,
)
from pykvm.observe import Recorder, Recording, Workbench, replay
from pykvm.observe.recording import BrokenOff, EndLine, EventLine, ExitLine, Header, Interrupt, Line
from pykvm.testing import DeviceBench
from pykvm.units import Gpa

if TYPE_CHECKING:
    from tests.unit.observe.conftest import HasPorts, Lab

SETUP = Setup(1, ((0, 1 << 20, False),), "user", ("doorbell",), NO_MACHINE.start)


def recording(*lines: Line, setup: Setup = SETUP, stop: Stop | BrokenOff | None = None) -> Recording:
    """Return a recording of ``lines`` and, if there is a ``stop``, the end of the run."""
    end = () if stop is None else (EndLine(lines[-1].time if lines else 0, stop),)
    return Recording(Header("by hand", setup), (*lines, *end), "by hand")


def out(port: int, value: int, time: int = 0) -> ExitLine:
    return ExitLine(time, 0, IoOut(port, 1, 1, bytes([value])))


def inp(port: int, answer: int, time: int = 0, input: tuple[bytes, ...] = ()) -> ExitLine:
    return ExitLine(time, 0, IoIn(port, 1, 1), bytes([answer]), input=input)


HLT = ExitLine(0, 0, Hlt())


# ---- the same, and not the same ----


def test_the_same_device_answers_the_same(lab: Lab) -> None:
    path = lab.record([lab.write(1, 5), lab.read(1), lab.read(0)])
    result = lab.replay(path)
    assert (result.divergence, result.stop, result.exits) == (None, Halted(), 4)


def test_a_device_that_answers_otherwise_is_told_in_words(lab: Lab) -> None:
    path = lab.record([lab.write(1, 5), lab.read(1), lab.read(0)])
    divergence = lab.replay(path, mask=0x04).divergence
    assert divergence is not None
    assert (divergence.place.line, divergence.place.exits) == (3, 2)
    assert str(divergence) == (
        f"{path}: line 3, exit 2, after 0.000 ms: io in 0x301\n"
        "  the recording   05\n"
        "  now             01   cell at 0x300-0x303\n"
        "  bit 2 differs"
    )


def test_the_first_difference_ends_it(lab: Lab) -> None:
    path = lab.record([lab.write(1, 7), lab.read(1), lab.read(1), lab.read(1)])
    result = lab.replay(path, mask=0x02)
    assert result.exits == 2
    assert result.divergence is not None
    assert result.divergence.hint == "bit 1 differs"


def test_of_many_bytes_the_first_that_differs_is_named(lab: Lab) -> None:
    path = lab.record([lab.write(1, 7), IoIn(0x301, 1, 40)])
    divergence = lab.replay(path, mask=0x03).divergence
    assert divergence is not None
    assert divergence.hint == "byte 0 is the first that differs: 07, now 04"
    assert divergence.recorded.endswith("07 ... (40 bytes)")


def test_a_device_that_is_not_there_any_more_is_told_as_such(lab: Lab) -> None:
    divergence = replay(lab.record([lab.read(1)])).divergence
    assert divergence is not None
    assert divergence.who == "nothing is at port 0x301"


def test_a_device_that_raises_now_is_a_difference(lab: Lab) -> None:
    class Fragile:
        name = "fragile"

        def read(self, offset: int, size: int) -> bytes:
            raise ZeroDivisionError("now")

        def write(self, offset: int, data: bytes) -> None:
            raise ZeroDivisionError("now")

    def plug_in(bench: HasPorts) -> None:
        bench.pio.register(Fragile(), 0x300, 4)

    for exit, recorded in ((lab.read(1), "00"), (lab.write(1, 0), "went on")):
        divergence = replay(lab.record([exit]), plug_in, board=False).divergence
        assert divergence is not None
        assert (divergence.recorded, divergence.now) == (recorded, "raises ZeroDivisionError: now")
        assert isinstance(divergence.error, ZeroDivisionError)


def test_a_device_that_raised_then_must_raise_now() -> None:
    line = ExitLine(0, 0, IoIn(0x300, 1, 1))
    broken_off = recording(line, stop=BrokenOff("ZeroDivisionError: then"))

    class Fragile:
        name = "fragile"

        def __init__(self, error: str) -> None:
            self.error = error

        def read(self, offset: int, size: int) -> bytes:
            raise ZeroDivisionError(self.error)

        def write(self, offset: int, data: bytes) -> None: ...

    same = replay(broken_off, lambda bench: bench.pio.register(Fragile("then"), 0x300, 4))
    assert (same.divergence, same.stop) == (None, BrokenOff("ZeroDivisionError: then"))
    other = replay(broken_off, lambda bench: bench.pio.register(Fragile("now"), 0x300, 4)).divergence
    assert other is not None and other.now == "raises ZeroDivisionError: now"
    mended = replay(broken_off).divergence
    assert mended is not None
    assert (mended.recorded, mended.now) == ("none: broken off: ZeroDivisionError: then", "ff")


# ---- the end of a run ----


@pytest.mark.parametrize("stop", [TimedOut(1), Stopped(), Interrupted()], ids=str)
def test_an_end_from_outside_is_the_recordings(stop: Stop) -> None:
    result = replay(recording(out(0x80, 1), stop=stop))
    assert (result.divergence, result.stop) == (None, stop)


@pytest.mark.parametrize(
    ("line", "stop"),
    [
        (out(0xF4, 0x2A), DebugExitWritten(0x2A)),
        (out(0xCF9, 6), ResetRequested("port 0xcf9")),
        (ExitLine(0, 0, Shutdown()), Crashed(Shutdown())),
    ],
    ids=str,
)
def test_an_end_of_the_guests_own_doing_is_checked(line: ExitLine, stop: Stop) -> None:
    assert replay(recording(line, stop=stop)).divergence is None
    early = replay(recording(line, out(0x80, 1), stop=Halted())).divergence
    assert early is not None
    assert (early.recorded, early.now) == ("goes on", f"ends: {stop}")
    late = replay(recording(out(0x80, 1), stop=stop)).divergence
    assert late is not None
    assert (late.recorded, late.now) == (f"ended: {stop}", "goes on")
    other = replay(recording(line, stop=Stopped())).divergence
    assert other is not None
    assert (other.recorded, other.now) == ("ended: stopped from outside", f"ends: {stop}")


def test_the_rest_of_the_last_instruction_is_played_too() -> None:
    rest = (out(0xF4, 1), out(0x80, 2), inp(0x80, 2))
    result = replay(recording(*rest, stop=DebugExitWritten(1)))
    assert (result.divergence, result.exits) == (None, 3)
    wrong = (out(0xF4, 1), inp(0x80, 2))
    assert replay(recording(*wrong, stop=DebugExitWritten(1))).divergence is not None


def test_several_runs_are_replayed_one_after_the_other() -> None:
    result = replay(recording(HLT, EndLine(0, Halted()), out(0x80, 7), inp(0x80, 7), stop=TimedOut(2)))
    assert (result.divergence, result.stop, result.exits) == (None, TimedOut(2), 3)


def test_a_recording_without_an_end_is_refused() -> None:
    for lines in ((), (HLT,)):
        with pytest.raises(RecordingError, match="the last line is not the end of a run"):
            replay(recording(*lines))


# ---- what comes from outside ----


def test_input_comes_when_the_guest_asks_and_when_there_is_some() -> None:
    in_vain = inp(0x3FD, 0x60, input=(b"",))
    assert replay(recording(in_vain, stop=Stopped())).divergence is None
    lines = (inp(0x3FD, 0x61, input=(b"a",)), inp(0x3F8, 0x61))
    assert replay(recording(*lines, stop=Stopped())).divergence is None
    polled = (EventLine(0, Input(b"b")), inp(0x3FD, 0x61), inp(0x3F8, 0x62))
    assert replay(recording(*polled, stop=Stopped())).divergence is None


def test_keys_come_at_their_place() -> None:
    enqueued = EventLine(0, Keys((KeyEvent("a", True),), True))
    pressed = EventLine(0, Keys((KeyEvent("a", True), KeyEvent("a", False)), False))
    for event in (enqueued, pressed):
        assert replay(recording(event, inp(0x60, 0x1E), stop=Stopped())).divergence is None
        assert replay(recording(inp(0x60, 0x1E), event, stop=Stopped())).divergence is not None


def test_the_power_button_and_doorbells_come_at_their_place() -> None:
    button = (EventLine(0, PowerButton()), ExitLine(0, 0, IoIn(0x600, 2, 1), b"\x00\x01"))
    rings = (EventLine(0, Rings(0x5D0, 3)), ExitLine(0, 0, IoIn(0x5D4, 4, 1), b"\x03\x00\x00\x00"))
    for event, read in (button, rings):
        assert replay(recording(event, read, stop=Stopped())).divergence is None
        assert replay(recording(read, event, stop=Stopped())).divergence is not None


def test_guest_memory_that_a_device_reads_comes_out_of_the_recording() -> None:
    high = ExitLine(0, 0, IoOut(0x514, 4, 1, bytes(4)))
    select_and_read, size, target = 0x0000_000A, 4, 0x2000
    descriptor = MemoryRead(0x1000, struct.pack(">IIQ", select_and_read, size, target))
    low = ExitLine(0, 0, IoOut(0x518, 4, 1, (0x1000).to_bytes(4, "big")), memory=(descriptor,))
    read = ExitLine(0, 0, IoIn(0x511, 1, 4), bytes(4))
    assert replay(recording(high, low, read, stop=Stopped())).divergence is None
    without = replay(recording(high, replace(low, memory=()), read, stop=Stopped())).divergence
    assert without is not None
    assert without.now == b"QEMU".hex(" ")  # nothing was transferred


def test_the_clock_shows_the_recorded_time() -> None:
    ticks = 3_579_545  # of the ACPI timer, in a second
    second = ExitLine(10**9, 0, IoIn(0x608, 4, 1), ticks.to_bytes(4, "little"))
    assert replay(recording(second, stop=Stopped())).divergence is None


def test_the_real_time_clock_starts_when_the_recorded_one_did() -> None:
    lines = (out(0x70, 9), inp(0x71, 0x70))  # the year: 1970
    assert replay(recording(*lines, stop=Stopped())).divergence is None


# ---- interrupts ----

PIC = (out(0x20, 0x11), out(0x21, 0x20), out(0x21, 0x04), out(0x21, 0x01), out(0x21, 0x00))
PIT = (out(0x43, 0x34), out(0x40, 0x00), out(0x40, 0x00))  # 65536 ticks: 54.9 ms
HALT = ExitLine(10, 0, Hlt())
AWAKE = 60_000_000


def test_an_interrupt_comes_from_the_controllers_of_today() -> None:
    taken = EventLine(AWAKE, Interrupt(0, 0x20))
    lines = (*PIC, *PIT, HALT, EventLine(AWAKE, TimePassed()), taken, out(0x20, 0x20, AWAKE), ExitLine(AWAKE, 0, Hlt()))
    result = replay(recording(*lines, stop=Halted()))
    assert (result.divergence, result.exits) == (None, len(PIC) + len(PIT) + 3)


def test_an_interrupt_with_another_vector_is_a_difference() -> None:
    lines = (*PIC, *PIT, HALT, EventLine(AWAKE, TimePassed()), EventLine(AWAKE, Interrupt(0, 0x28)))
    divergence = replay(recording(*lines, stop=Stopped())).divergence
    assert divergence is not None
    assert (divergence.what, divergence.recorded, divergence.now) == ("CPU 0 takes an interrupt", "0x28", "0x20")


def test_an_interrupt_that_does_not_come_is_a_difference() -> None:
    lines = (*PIC, HALT, EventLine(AWAKE, Interrupt(0, 0x20)))
    divergence = replay(recording(*lines, stop=Stopped())).divergence
    assert divergence is not None
    assert (divergence.recorded, divergence.now) == ("0x20", "no interrupt waits")


def test_a_cpu_that_is_woken_by_something_else_goes_on() -> None:
    lines = (HALT, EventLine(20, TimePassed()), out(0x80, 1, 30))
    result = replay(recording(*lines, stop=Stopped()))
    assert (result.divergence, result.exits) == (None, 2)
    assert replay(recording(HALT, EventLine(20, TimePassed()), stop=TimedOut(1))).stop == TimedOut(1)


@pytest.mark.parametrize("irqchip", ["none", "user", "kernel", "split"])
def test_every_arrangement_of_interrupt_controllers_can_be_replayed(irqchip: str) -> None:
    setup = Setup(2, (), irqchip, (), NO_MACHINE.start)
    lines = (
        ExitLine(0, 1, MmioWrite(Gpa(0xFEC0_0000), b"\x10\x00\x00\x00")),
        ExitLine(0, 1, MmioRead(Gpa(0xFEC0_0000), 4), b"\x10\x00\x00\x00" if irqchip == "split" else b"\xff" * 4),
    )
    result = replay(recording(*lines, setup=setup, stop=Halted()))
    assert (result.divergence, result.stop) == (None, Halted())


# ---- what no device answers ----


def test_msrs_are_answered_and_refused_as_they_were() -> None:
    lines = (
        ExitLine(0, 0, Rdmsr(0x10, 2), bytes(8)),
        ExitLine(0, 0, Rdmsr(0x10, 2), refused=True),
        ExitLine(0, 0, Wrmsr(0x10, 1, 2), refused=True),
        ExitLine(0, 0, Wrmsr(0x10, 1, 2)),
    )
    assert replay(recording(*lines, stop=Stopped())).divergence is None


def test_the_guests_output_comes_again() -> None:
    printed: list[bytes] = []
    replay(recording(out(0x3F8, 0x48), out(0xE9, 0x69), stop=Stopped()), output=printed.append)
    assert printed == [b"H", b"i"]


def test_an_error_of_whoever_gets_the_output_is_no_difference() -> None:
    def refuse(data: bytes) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        replay(recording(out(0x3F8, 0x48), stop=Stopped()), output=refuse)


def test_an_error_while_devices_are_plugged_in_is_the_callers() -> None:
    def plug_in(bench: Workbench) -> None:
        raise ConfigurationError("mine")

    with pytest.raises(ConfigurationError, match="mine"):
        replay(recording(HLT, stop=Halted()), plug_in)


def test_a_device_of_ones_own_has_the_clock_and_a_line(lab: Lab) -> None:
    seen: list[int] = []

    def plug_in(bench: Workbench) -> None:
        bench.line(5, "mine").set_level(True)
        bench.clock.call_at(7, lambda: seen.append(bench.clock.now()))

    replay(recording(out(0x80, 1, 9), stop=Stopped()), plug_in)
    assert seen == [7]


# ---- the law ----

PORTS = [*range(0x40, 0x44), 0x61, 0x60, 0x64, 0x70, 0x71, *range(0x3F8, 0x400)]
WRITES = st.builds(lambda port, value: IoOut(port, 1, 1, bytes([value])), st.sampled_from(PORTS), st.integers(0, 255))
READS = st.builds(IoIn, st.sampled_from(PORTS), st.sampled_from([1, 2, 4]), st.integers(1, 3))
HPET = st.builds(MmioRead, st.sampled_from([Gpa(0xFED0_0000), Gpa(0xFED0_00F0)]), st.sampled_from([4, 8]))
STEPS = st.lists(st.tuples(st.integers(0, 2_000_000), st.lists(WRITES | READS | HPET, max_size=6)), max_size=6)


def plug_in_a_pc(bench: DeviceBench | Workbench) -> None:
    lines = [_Nowhere() for _ in range(4)]
    clock, keyboard = bench.clock, Keyboard()
    controller = I8042(keyboard, lines[0], lambda: None, A20Gate())
    bench.pio.register(controller.data, 0x60, 1)
    bench.pio.register(controller.status, 0x64, 1)
    bench.pio.register(Rtc(clock, lines[1], NO_MACHINE.start, cmos_memory(1, 1)), 0x70, 2)
    timer = Pit(clock, lines[2])
    bench.pio.register(timer, 0x40, 4)
    bench.pio.register(timer.port61, 0x61, 1)
    bench.pio.register(Serial(lambda data: None, irq=lines[3]), 0x3F8, 8)
    bench.mmio.register(Hpet(clock), 0xFED0_0000, 0x400)


class _Nowhere:
    def set_level(self, level: bool) -> None: ...


@given(STEPS)
def test_whatever_a_guest_does_the_same_devices_replay_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[Exit]]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "law.jsonl"
    with Recorder(path) as recorder:
        bench = DeviceBench(observers=[recorder])
        plug_in_a_pc(bench)
        for nanoseconds, exits in steps:
            bench.clock.advance(nanoseconds)
            bench.run(exits)
    result = replay(path, plug_in_a_pc, board=False)
    assert result.divergence is None
