"""pykvm.testing.scripted: a user's device, tested with a list of exits and without KVM."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pykvm.devices import DebugExit, Rtc, Serial, cmos_memory, serial
from pykvm.errors import BusError, ConfigurationError, UnclaimedAccessError
from pykvm.kvm import Exit, Hlt, Hypercall, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Shutdown, Wrmsr
from pykvm.machine import Crashed, DebugExitWritten, ExitHandlers, Halted, Stopped
from pykvm.machine.journal import NO_MACHINE
from pykvm.testing import DeviceBench, run_script
from pykvm.units import Gpa


class Adder:
    """The device of these tests: what is written at 0 is added up, and the sum is read at 1."""

    name = "adder"

    def __init__(self) -> None:
        self.sum = 0

    def read(self, offset: int, size: int) -> bytes:
        return (self.sum & 0xFF).to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        self.sum += int.from_bytes(data, "little")


class Liar(Adder):
    """Answers with a byte too many."""

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size + 1)


def write(value: int) -> IoOut:
    return IoOut(0x300, 1, 1, bytes([value]))


READ = IoIn(0x301, 1, 1)


def test_a_device_answers_a_list_of_exits() -> None:
    result = run_script([write(2), READ, write(3), READ, Hlt()], pio={0x300: (Adder(), 2)})
    assert result.replies == (b"\x02", b"\x05")
    assert result.reply == b"\x05"
    assert result.stop == Halted()
    assert result.exits == 5


def test_a_script_needs_no_hlt_at_its_end() -> None:
    result = run_script([READ], pio={0x300: (Adder(), 2)})
    assert (result.stop, result.exits) == (Halted(), 1)
    assert run_script([]).reply == b""


def test_memory_addresses_reach_their_device_too() -> None:
    result = run_script(
        [MmioWrite(Gpa(0x1000), b"\x07\x00\x00\x00"), MmioRead(Gpa(0x1000), 8)], mmio={0x1000: (Adder(), 16)}
    )
    assert result.reply == b"\x07" + bytes(7)


def test_a_string_instruction_asks_the_device_for_every_item() -> None:
    result = run_script([IoOut(0x300, 1, 3, b"\x01\x02\x03"), IoIn(0x301, 1, 2)], pio={0x300: (Adder(), 2)})
    assert result.reply == b"\x06\x06"


def test_what_no_device_claims_reads_as_all_ones_or_is_an_error_if_strict() -> None:
    assert run_script([IoIn(0x500, 4, 1)]).reply == b"\xff" * 4
    with pytest.raises(UnclaimedAccessError, match="0x500"):
        run_script([IoIn(0x500, 4, 1)], strict=True)


def test_an_answer_of_the_wrong_length_is_an_error_that_names_device_and_exit() -> None:
    with pytest.raises(BusError, match="adder at 0x300-0x301 answered a read of 1 bytes at 0x301 with 2") as caught:
        run_script([write(1), READ], pio={0x300: (Liar(), 2)})
    assert caught.value.__notes__ == [f"at exit 2 of the script: {READ}"]


def test_an_error_of_the_device_comes_through_and_the_bench_goes_on() -> None:
    class Fragile(Adder):
        def write(self, offset: int, data: bytes) -> None:
            raise ZeroDivisionError

    bench = DeviceBench(pio={0x300: (Fragile(), 2)})
    with pytest.raises(ZeroDivisionError):
        bench.run([write(1)])
    assert bench.run([READ]).reply == b"\x00"


def test_an_exit_that_kvm_would_never_make_is_refused_before_any_device_sees_one() -> None:
    adder = Adder()
    with pytest.raises(ConfigurationError, match=r"exit 1: .*not 3"):
        run_script([write(1), IoIn(0x301, 3, 1)], pio={0x300: (adder, 2)})
    assert adder.sum == 0


def test_two_devices_cannot_have_the_same_address() -> None:
    with pytest.raises(BusError, match="overlaps"):
        DeviceBench(pio={0x300: (Adder(), 2), 0x301: (Adder(), 2)})


def test_a_device_keeps_its_state_from_run_to_run() -> None:
    bench = DeviceBench(pio={0x300: (Adder(), 2)})
    assert bench.run([write(1), READ]).reply == b"\x01"
    assert bench.run([write(1), READ]).reply == b"\x02"


def test_a_device_can_end_the_run() -> None:
    bench = DeviceBench()
    bench.pio.register(DebugExit(lambda value: bench.stop(DebugExitWritten(value))), 0xF4, 4)
    result = bench.run([IoOut(0xF4, 1, 1, b"\x2a"), READ])
    assert (result.stop, result.exits) == (DebugExitWritten(42), 1)
    bench.stop()
    assert bench.run([READ]).stop == Stopped()


def test_a_crash_ends_the_run_as_it_does_with_kvm() -> None:
    assert run_script([Shutdown(), READ]).stop == Crashed(Shutdown())


def test_msrs_and_hypercalls_have_handlers() -> None:
    written: list[tuple[int, int]] = []
    handlers = ExitHandlers(
        rdmsr=lambda index: index + 1, wrmsr=lambda *args: written.append(args), hypercall=lambda call: call.nr
    )
    exits: list[Exit] = [Rdmsr(0x10, 2), Wrmsr(0x11, 5, 2), Hypercall(12, (0,) * 6, 1)]
    assert run_script(exits, handlers=handlers).replies == (b"\x11" + bytes(7), b"\x0c" + bytes(7))
    assert written == [(0x11, 5)]
    assert run_script(exits[:2]).replies == (None, None)  # refused: #GP


def test_a_device_gets_its_interrupt_line_and_its_clock_from_the_bench() -> None:
    bench = DeviceBench()
    line = bench.line()
    bench.pio.register(Rtc(bench.clock, line, NO_MACHINE.start, cmos_memory(1, 1)), 0x70, 2)
    bench.run([IoOut(0x70, data=b"\x0b"), IoOut(0x71, data=b"\x12")])  # register B: an interrupt after each update
    bench.clock.advance(1_000_000_000)
    assert (line.level, line.rose) == (True, 1)
    bench.run([IoOut(0x70, data=b"\x0c"), IoIn(0x71)])
    assert not line.level


def test_the_standard_devices_can_be_tested_too() -> None:
    sent: list[bytes] = []
    bench = DeviceBench(pio={serial.COM1: (Serial(sent.append), serial.REGISTERS)})
    assert bench.run([IoOut(0x3F8, data=b"H"), IoIn(0x3FD)]).replies == (b"\x60",)
    assert sent == [b"H"]


PROGRAM = """
import sys
def refuse(event, arguments):
    if event == "open" and "kvm" in str(arguments[0]) and str(arguments[0]).startswith("/dev"):
        raise SystemExit(3)
sys.addaudithook(refuse)
from pykvm._shim import lib
import pykvm.kvm.system
pykvm.kvm.system.Kvm.open = None
from pykvm.kvm import IoIn
from pykvm.testing import run_script
assert run_script([IoIn(0x300)]).reply == b"\\xff"
assert not {"pytest", "hypothesis", "unicorn"} & set(sys.modules)
"""


def test_neither_kvm_nor_pytest_is_needed() -> None:
    subprocess.run([sys.executable, "-I", "-c", PROGRAM], check=True)
