"""machine.debug(): breakpoints, watchpoints and single steps, and how the guest goes on from them."""

from __future__ import annotations

import threading

import pytest

from pykvm import Image, Machine, assemble
from pykvm.errors import ConfigurationError, InUseError
from pykvm.kvm import Debug, GuestDebugControl
from pykvm.machine import Breakpoint, Crashed, Halted, Stop, Stopped
from pykvm.probes import probe
from pykvm.testing import Guests
from pykvm.x86 import BreakpointKind, HardwareBreakpoint, disassemble
from pykvm.x86.debug import is_single_step

LOOP = """
        mov     $3, %ecx
again:  inc     %ebx
        nop
        dec     %ecx
        jnz     again
after:  hlt
"""
STRAIGHT = "xor %eax, %eax\nmov $7, %ebx\nadd %ebx, %eax\nlea 1(%eax), %ecx\nnop\ninc %edx\nhlt"
CPU_1_SPINS = """
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .code64
        .globl _start
_start: start_other_cpus trampoline
1:      pause
        jmp     1b
other:  nop
again:  inc     %ebx
        jmp     again
        define_trampoline trampoline, other
"""


@pytest.fixture
def machine(guest: Guests) -> Machine:
    return guest.machine("2M")


def load(machine: Machine, code: str, mode: str = "long") -> Image:
    image = assemble(code, mode=mode)
    machine.load(image, mode=mode)
    return image


def address(image: Image, name: str) -> int:
    return next(symbol.address for symbol in image.symbols if symbol.name == name)


def at(image: Image, name: str) -> HardwareBreakpoint:
    return HardwareBreakpoint(address(image, name))


def stop_of(machine: Machine) -> Stop:
    return machine.run(timeout=20).stop


def require(name: str) -> None:
    if not probe(name).works:
        pytest.skip(f"{name}: {probe(name).detail}")


def place(machine: Machine) -> int:
    """Run, and return where the debugger stopped the guest."""
    stop = stop_of(machine)
    assert isinstance(stop, Breakpoint), stop
    return stop.exit.pc


# ---- breakpoints ----


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_a_breakpoint_stops_before_its_instruction(mode: str, machine: Machine) -> None:
    image = load(machine, LOOP, mode)
    machine.debug(at(image, "again"))
    result = machine.run(timeout=20)
    assert isinstance(result.stop, Breakpoint)
    assert result.stop.exit.pc == address(image, "again")
    assert (result.registers.rip, result.registers.rbx, result.registers.rcx) == (address(image, "again"), 0, 3)
    assert (result.status, result.report) == (0, "")
    assert str(result.stop) == f"stopped by the debugger at {address(image, 'again'):#x}"


@pytest.mark.parametrize("mode", ["real", "long"])
def test_a_run_goes_on_from_a_breakpoint_and_stops_there_each_time_round(mode: str, machine: Machine) -> None:
    image = load(machine, LOOP, mode)
    machine.debug(at(image, "again"))
    seen = []
    while isinstance(stop_of(machine), Breakpoint):
        seen.append(machine.registers.rbx)
    assert seen == [0, 1, 2]
    assert machine.registers.rip == address(image, "after") + 1


def test_several_breakpoints_stop_each_in_its_turn(machine: Machine) -> None:
    image = load(machine, "a: nop\nb: nop\nnop\nc: nop\nd: nop\nhlt")
    machine.debug(*(at(image, name) for name in "dcba"))
    assert [place(machine) for _ in "abcd"] == [address(image, name) for name in "abcd"]
    assert stop_of(machine) == Halted()


def test_a_breakpoint_on_an_instruction_that_jumps_to_itself_stops_each_time(machine: Machine) -> None:
    image = load(machine, "here: jmp here")
    machine.debug(at(image, "here"))
    assert [place(machine) for _ in range(3)] == [address(image, "here")] * 3


def test_a_breakpoint_on_an_out_is_left_and_hit_again(machine: Machine) -> None:
    image = load(machine, "mov $2, %ecx\nagain: out %al, $0x80\nnext: nop\ndec %ecx\njnz again\nhlt")
    again, following = address(image, "again"), address(image, "next")
    machine.debug(at(image, "again"), at(image, "next"))
    assert [place(machine) for _ in range(4)] == [again, following] * 2
    assert stop_of(machine) == Halted()


def test_the_first_instruction_can_have_a_breakpoint_at_each_load(machine: Machine) -> None:
    image = load(machine, "here: nop\nhlt")
    machine.debug(at(image, "here"))
    for _ in range(3):
        assert place(machine) == address(image, "here")
        machine.load(image, mode="long")


def test_a_breakpoint_can_be_moved_at_a_stop(machine: Machine) -> None:
    image = load(machine, LOOP)
    machine.debug(at(image, "again"))
    place(machine)
    machine.debug(at(image, "after"))
    assert place(machine) == address(image, "after")
    assert machine.registers.rbx == 3


@pytest.mark.parametrize("name", ["again", "after"])
def test_with_no_arguments_nothing_stops_any_more(name: str, machine: Machine) -> None:
    image = load(machine, LOOP)
    machine.debug(at(image, name), step=True)
    place(machine)
    machine.debug()
    assert stop_of(machine) == Halted()
    assert machine.registers.rbx == 3


def test_a_breakpoint_stops_one_cpu_and_not_another(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    image = assemble(CPU_1_SPINS, mode="long")
    machine.load(image, mode="long")
    machine.debug(at(image, "again"), cpu=1)
    for count in range(3):
        result = machine.run(timeout=30)
        assert isinstance(result.stop, Breakpoint)
        assert result.cpu == 1
        assert result.registers.rbx & 0xFFFF_FFFF == count
        assert result.cpus[0].stop is None
    machine.debug(cpu=1)
    timer = threading.Timer(0.1, machine.stop)
    timer.start()
    assert machine.run(timeout=30).stop == Stopped()
    timer.join()


# ---- single steps ----


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_steps_through_straight_code_are_its_disassembly(mode: str, machine: Machine) -> None:
    require("single-step")
    image = load(machine, STRAIGHT, mode)
    width = {"real": 16, "protected": 32, "long": 64}[mode]
    code = bytes(image.segments[0].data)
    expected = [instruction.address for instruction in disassemble(code, image.entry, width)]
    machine.debug(step=True)
    assert [place(machine) for _ in expected[1:]] == expected[1:]
    assert machine.registers.rip == expected[-1]


def test_a_step_says_that_it_is_one(machine: Machine) -> None:
    load(machine, STRAIGHT)
    machine.debug(step=True)
    stop = stop_of(machine)
    assert isinstance(stop, Breakpoint)
    assert is_single_step(stop.exit.dr6)


def test_steps_and_breakpoints_go_together(machine: Machine) -> None:
    image = load(machine, "a: nop\nb: nop\nc: nop\nhlt")
    machine.debug(at(image, "a"))
    place(machine)
    machine.debug(at(image, "a"), at(image, "b"), step=True)
    places = [place(machine)]
    while places[-1] != address(image, "c"):
        places.append(place(machine))
    assert sorted(set(places)) == [address(image, name) for name in "bc"]


def test_stepping_changes_nothing_for_the_guest(machine: Machine) -> None:
    image = load(machine, LOOP)
    machine.debug(step=True)
    while place(machine) != address(image, "after"):
        pass
    machine.debug()
    assert stop_of(machine) == Halted()
    registers = machine.registers
    assert (registers.rbx, registers.rcx, registers.rip) == (3, 0, address(image, "after") + 1)
    assert not registers.rflags & 0x100, "TF"


# ---- watchpoints ----


WATCHED = 0x9000
TOUCH = f"nop\nmovl $7, {WATCHED:#x}\nafter_write: nop\nmov {WATCHED:#x}, %eax\nafter_read: nop\nhlt"


def test_a_watchpoint_stops_after_the_instruction_that_wrote(machine: Machine) -> None:
    require("watchpoint-host")
    image = load(machine, TOUCH)
    machine.debug(HardwareBreakpoint(WATCHED, BreakpointKind.WRITE, 4))
    assert place(machine) == address(image, "after_write")
    assert machine.memory.read_u32(WATCHED) == 7
    assert stop_of(machine) == Halted(), "reading is not writing"


def test_a_watchpoint_of_reads_and_writes_stops_at_both(machine: Machine) -> None:
    require("watchpoint-host")
    image = load(machine, TOUCH)
    machine.debug(HardwareBreakpoint(WATCHED, BreakpointKind.READ_WRITE, 4))
    assert [place(machine), place(machine)] == [address(image, "after_write"), address(image, "after_read")]


def test_a_watchpoint_that_nobody_touches_does_not_stop(machine: Machine) -> None:
    load(machine, TOUCH)
    machine.debug(HardwareBreakpoint(WATCHED + 8, BreakpointKind.READ_WRITE, 8))
    assert stop_of(machine) == Halted()


# ---- wrong use ----


def test_a_stop_that_nobody_asked_for_is_a_crash(machine: Machine) -> None:
    load(machine, STRAIGHT)
    machine.vcpu.set_guest_debug(GuestDebugControl.ENABLE | GuestDebugControl.SINGLESTEP)
    result = machine.run(timeout=20)
    assert isinstance(result.stop, Crashed)
    assert isinstance(result.stop.exit, Debug)
    assert result.status == 125


def test_the_cpu_has_four_breakpoints(machine: Machine) -> None:
    image = load(machine, STRAIGHT)
    with pytest.raises(ConfigurationError, match="has 4 hardware breakpoints, not 5"):
        machine.debug(*(HardwareBreakpoint(image.entry + n) for n in range(5)))
    assert stop_of(machine) == Halted(), "the refused ones are not set"


@pytest.mark.parametrize("length", [2, 4, 8])
def test_a_misaligned_watchpoint_is_refused_with_what_would_do(length: int) -> None:
    with pytest.raises(ConfigurationError, match=f"at 0x9001 .*not aligned to its length of {length}: use 0x9000"):
        HardwareBreakpoint(0x9001, BreakpointKind.WRITE, length)


@pytest.mark.parametrize("cpu", [-1, 1])
def test_a_cpu_that_does_not_exist_is_refused(cpu: int, machine: Machine) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no CPU {cpu}: this machine has 0 to 0"):
        machine.debug(step=True, cpu=cpu)


@pytest.mark.parametrize("code", ["1: jmp 1b", "1: out %al, $0x80\njmp 1b"], ids=["in the guest", "exit storm"])
def test_a_running_machine_refuses_and_a_paused_one_does_not(code: str, machine: Machine) -> None:
    image = load(machine, code)
    statistics = machine.vcpu.get_stats_fd()
    stops: list[Stop] = []
    runner = threading.Thread(target=lambda: stops.append(machine.run(timeout=30).stop))
    runner.start()
    while statistics.read()["exits"].value == 0:  # until it runs
        pass
    for _ in range(20):
        with pytest.raises(InUseError, match=r"runs and cannot be given breakpoints: pause\(\) or stop\(\) it first"):
            machine.debug(at_entry := HardwareBreakpoint(image.entry))
    machine.pause()
    machine.debug(at_entry)
    machine.resume()
    runner.join()
    statistics.close()
    assert isinstance(stops[0], Breakpoint)
