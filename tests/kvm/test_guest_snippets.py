"""Snippets as guests, on KVM and without pytest: pykvm.testing.Guests and run_guest."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.devices import ByteRegisters
from pykvm.errors import AssemblerError, ClosedError, ConfigurationError
from pykvm.kvm import Hlt, IoIn, IoOut, MmioWrite
from pykvm.machine import Crashed, DebugExitWritten, Halted, TimedOut
from pykvm.testing import ANY, Guests, like, run_guest
from pykvm.testing.guest import KEPT, SnippetOptions


@pytest.fixture
def run() -> Iterator[Guests]:
    with Guests() as guests:
        yield guests


class Adder(ByteRegisters):
    """Two registers: what is written to the first is added up in the second."""

    name = "adder"

    def __init__(self) -> None:
        self.sum = 0

    def read_register(self, offset: int) -> int:
        return self.sum

    def write_register(self, offset: int, value: int) -> None:
        self.sum = (self.sum + value) & 0xFF


ADD = """
    mov $0x500, %dx
    mov $3, %al
    out %al, %dx
    out %al, %dx
    inc %dx
    in %dx, %al
    hlt
"""


# ---- running ----


def test_run_guest_runs_a_guest_and_closes_its_machine() -> None:
    result = run_guest("mov $42, %al; out %al, $0xf4")
    assert (result.stop, result.exit_code) == (DebugExitWritten(42), 85)
    assert result.machine.closed
    with pytest.raises(ClosedError):
        result.memory.read(0, 1)


def test_the_machines_of_guests_are_open_until_guests_are_closed() -> None:
    with Guests() as guests:
        result = guests("movl $0x1234, 0x200000; hlt", mode="protected")
        assert result.memory.read_u32(0x20_0000) == 0x1234
    assert result.machine.closed


def test_of_many_guests_only_the_last_stay_open(run: Guests) -> None:
    results = [run("hlt", memory="2M") for _ in range(KEPT + 2)]
    assert [result.machine.closed for result in results] == [True, True] + [False] * KEPT


@pytest.mark.parametrize(
    ("mode", "width"),
    [("real", 16), ("protected", 32), ("long", 64)],
)
def test_a_snippet_runs_in_the_mode_asked_for(run: Guests, mode: str, width: int) -> None:
    result = run("xor %eax, %eax; not %eax; push %ax; sub $2, %al; hlt", mode=mode)
    assert result.registers.rax == 0xFFFF_FFFD
    code = result.sregs.cs
    assert (64 if code.l else 32 if code.db else 16) == width


def test_machine_code_and_images_run_too(run: Guests) -> None:
    assert run(b"\xb0\x07\xf4").registers.rax == 7
    assert run(b"\xb0\x07\xf4", load=0x9000).registers.rip == 0x9003
    assert run(assemble("mov $7, %al; hlt")).registers.rax == 7


def test_intel_syntax(run: Guests) -> None:
    assert run("mov eax, 5; hlt", syntax="intel").registers.rax == 5


def test_registers_are_set_before_the_first_instruction(run: Guests) -> None:
    result = run("add %rbx, %rax; hlt", registers={"rax": 40, "rbx": 2})
    assert result.registers.rax == 42


def test_an_unknown_register_is_refused_by_name(run: Guests) -> None:
    with pytest.raises(ConfigurationError, match="no register 'eax': there are rax, rbx"):
        run("hlt", registers={"eax": 1})


def test_input_waits_at_the_serial_port(run: Guests) -> None:
    echo = """
        mov $0x3f8, %dx
        in %dx, %al
        out %al, %dx
        in %dx, %al
        out %al, %dx
        hlt
    """
    assert run(echo, mode="real", input=b"ok").serial.text == "ok"


def test_devices_are_plugged_in(run: Guests) -> None:
    adder = Adder()
    assert run(ADD, mode="real", pio={0x500: (adder, 2)}).registers.rax & 0xFF == adder.sum == 6
    far = Adder()
    run("movb $9, 0xe0000000; hlt", mode="protected", mmio={0xE000_0000: (far, 2)})
    assert far.sum == 9


def test_setup_is_called_with_the_machine_before_the_run(run: Guests) -> None:
    def write(machine: Machine) -> None:
        machine.memory.write_u8(0x9000, 0x55)

    assert run("mov 0x9000, %al; hlt", mode="real", setup=write).registers.rax & 0xFF == 0x55


def test_a_guest_is_run_on(run: Guests) -> None:
    result = run("mov $1, %al; hlt; mov $2, %al; hlt")
    assert result.machine.run().registers.rax == 2
    assert result.registers.rax == 1
    assert result.exits() == [Hlt()]


def test_a_guest_that_never_ends_is_stopped(run: Guests) -> None:
    result = run("jmp .", timeout=0.1)
    assert result.stop == TimedOut(0.1)
    assert "jumps to itself" in result.report


def test_a_crash_is_a_result(run: Guests) -> None:
    result = run("ud2")
    assert isinstance(result.stop, Crashed)
    assert "no IDT was loaded" in result.report


def test_an_assembler_error_is_at_the_line_of_the_caller(run: Guests) -> None:
    with pytest.raises(AssemblerError) as caught:
        run("""
            nop
            bogus
        """)
    line = Path(__file__).read_text().splitlines().index("            bogus") + 1
    assert f"test_guest_snippets.py:{line}: Error: no such instruction: `bogus'" in str(caught.value)
    with pytest.raises(AssemblerError, match=r"test_guest_snippets.py:\d+: .*`other'"):
        run_guest("other")


def test_the_screen_is_kept_as_text(run: Guests) -> None:
    assert run("movb $'S', 0xb8000; hlt", mode="protected").screen == "S"


# ---- exits ----


def test_the_exits_are_those_of_the_whole_run(run: Guests) -> None:
    result = run("mov $100, %cx; 1: out %al, $0x80; loop 1b; hlt", mode="real")
    assert len(result.exits()) == 101
    assert len(result.run.last_exits) < 101
    result.assert_exits([like(IoOut, port=0x80), ..., like(IoOut, port=0x80), Hlt()])


def test_exits_are_filtered_by_kind_port_and_address(run: Guests) -> None:
    result = run(ADD + "movb $1, 0xe0000000; hlt", mode="protected", pio={0x500: (Adder(), 2)})
    assert result.exits(IoOut, port=0x500) == [IoOut(port=0x500, data=b"\3")] * 2
    assert result.exits(IoIn) == [IoIn(port=0x501)]
    assert result.exits(port=range(0x500, 0x502)) == [*result.exits(IoOut), IoIn(0x501)]
    result.machine.run()
    assert result.exits(MmioWrite) == []


def test_plain_match_works_on_exits(run: Guests) -> None:
    match run("mov $'a', %al; out %al, $0xe9; hlt").exits():
        case [IoOut(port=0xE9, data=data), Hlt()]:
            assert data == b"a"
        case exits:
            pytest.fail(f"{exits}")


def test_what_was_written_is_the_same_however_kvm_splits_it(run: Guests) -> None:
    result = run('mov $text, %si; mov $0xe9, %dx; mov $5, %cx; rep outsb; hlt; text: .ascii "Hello"', mode="real")
    assert result.written(port=0xE9) == b"Hello"
    assert result.debugcon.text == "Hello"
    result = run("movl $0x64636261, 0xe0000000; hlt", mode="protected")
    assert result.written(address=0xE000_0000) == b"abcd"
    with pytest.raises(ConfigurationError, match="a port or an address"):
        result.written()


def test_a_wrong_expectation_is_told_in_words(run: Guests) -> None:
    result = run("mov $'a', %al; out %al, $0x80; hlt")
    with pytest.raises(AssertionError, match=r"exit 1 \(of 2\): hlt, where io out 0x80 'a' is expected"):
        result.assert_exits([ANY, IoOut(port=0x80, data=b"a")])


# ---- the two interfaces are one ----


def test_every_option_of_a_machine_is_an_option_here() -> None:
    options = set(inspect.signature(Machine.__init__).parameters) - {"self"}
    assert set(SnippetOptions.__annotations__) == options


def test_closing_guests_twice_does_no_harm(run: Guests) -> None:
    assert run("hlt").stop == Halted()
    run.close()
    run.close()
    gc.collect()
