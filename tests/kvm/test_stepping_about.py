"""Going about in a guest: to breakpoints, over calls, until something is touched, and backwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from pykvm import Image, Machine, assemble
from pykvm.errors import ConfigurationError
from pykvm.machine import Crashed, DebugExitWritten, Halted
from pykvm.observe.stepping import Access, Reason, Stepper, Stretch, Watchpoint
from pykvm.testing import Guests

Begin = Callable[..., Stepper]

LOOP = """
        mov     $3, %ecx
again:  inc     %ebx
        movl    %ebx, 0x9000
        mov     0x9004, %eax
        dec     %ecx
        jnz     again
after:  hlt
"""
CALLS = """
        mov     $0x7000, %esp
        mov     $2, %ecx
here:   call    function
next:   nop
        hlt
function:
        dec     %ecx
        jz      1f
        call    function
inner:  nop
1:      ret
"""
CPU_1_COUNTS = """
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .code64
        .globl _start
_start: start_other_cpus trampoline
1:      cmpl    $5, 0x9000
        jb      1b
ready:  hlt
other:  nop
again:  incl    0x9000
        jmp     again
        define_trampoline trampoline, other
"""


@pytest.fixture
def begin(guest: Guests) -> Iterator[Begin]:
    """Returns a function that makes a machine of a snippet, and steps it."""
    with ExitStack() as stack:

        def make(source: str, *, history: int = 1 << 28, **options: object) -> Stepper:
            machine = guest.machine("2M", **options)  # type: ignore[arg-type]
            machine.load(assemble(source, mode="long"), mode="long")
            return stack.enter_context(Stepper(machine, history=history))

        yield make


def machine_of(stepper: Stepper) -> Machine:
    return stepper._machine


def address(stepper: Stepper, name: str) -> int:
    image = machine_of(stepper)._image
    assert isinstance(image, Image)
    return next(symbol.address for symbol in image.symbols if symbol.name == name)


def rbx(stepper: Stepper) -> int:
    return stepper.registers()[0].rbx


# ---- forwards ----


@pytest.mark.parametrize("stepping", [False, True])
def test_a_breakpoint_stops_before_its_instruction_each_time_round(begin: Begin, stepping: bool) -> None:
    stepper = begin(LOOP)
    again = address(stepper, "again")
    seen = []
    while (arrival := stepper.continue_([again], stepping=stepping)).reason is Reason.BREAKPOINT:
        assert arrival.address == stepper.address() == again
        seen.append(rbx(stepper))
    assert seen == [0, 1, 2]
    assert (arrival.reason, arrival.stop) == (Reason.STOP, Halted())


def test_at_full_speed_a_stretch_is_one_entry(begin: Begin) -> None:
    stepper = begin(LOOP)
    stepper.continue_([address(stepper, "after")])
    (stretch,) = stepper.past(5)
    assert isinstance(stretch, Stretch)
    assert (stretch.after[0].rbx, stretch.before[0].rbx) == (3, 0)
    assert (0x9000, b"\0", b"\3") in [(change.gpa, change.old, change.new) for change in stretch.changes]
    assert stepper.back() == stretch
    assert machine_of(stepper).memory.read_u32(0x9000) == 0


def test_any_number_of_breakpoints(begin: Begin) -> None:
    stepper = begin("\n".join([f"l{n}: nop\nnop" for n in range(20)] + ["hlt"]))
    places = [address(stepper, f"l{n}") for n in range(20)]
    for place in places[1:]:
        assert stepper.continue_(places).address == place
    assert stepper.continue_(places).reason is Reason.STOP


@pytest.mark.parametrize(
    ("watchpoint", "offset"),
    [
        (Watchpoint(0x9000, 4), 9),
        (Watchpoint(0x9003), 9),
        (Watchpoint(0x9004, 4, Access.READ), 16),
        (Watchpoint(0x9002, 4, Access.ANY), 9),
        (Watchpoint(0x9006, 1, Access.ANY), 16),
    ],
)
def test_a_watchpoint_stops_after_the_access(begin: Begin, watchpoint: Watchpoint, offset: int) -> None:
    stepper = begin(LOOP)
    arrival = stepper.continue_(watchpoints=[watchpoint])
    assert (arrival.reason, arrival.watchpoint) == (Reason.WATCHPOINT, watchpoint)
    assert stepper.address() == address(stepper, "again") + offset


def test_a_watchpoint_that_nobody_touches_does_not_stop(begin: Begin) -> None:
    stepper = begin(LOOP)
    watched = [Watchpoint(0x9008, 4, Access.ANY), Watchpoint(0x9004, 4), Watchpoint(0x9000, 4, Access.READ)]
    assert stepper.continue_(watchpoints=watched).stop == Halted()


def test_a_condition_and_a_limit(begin: Begin) -> None:
    stepper = begin(LOOP)
    arrival = stepper.continue_(condition=lambda step: step.after[0].rbx == 2)
    assert (arrival.reason, rbx(stepper)) == (Reason.CONDITION, 2)
    arrival = stepper.continue_(limit=2)
    assert (arrival.reason, arrival.steps) == (Reason.LIMIT, 2)


def test_a_limit_of_time(begin: Begin) -> None:
    stepper = begin("1: jmp 1b")
    assert stepper.continue_(timeout=0.05).reason is Reason.TIMEOUT
    assert stepper.continue_(timeout=0.05, stepping=True).reason is Reason.TIMEOUT
    stepper = begin("sti\nhlt", irqchip="user")
    assert stepper.continue_(timeout=0.05, stepping=True).reason is Reason.TIMEOUT


@pytest.mark.parametrize("stepping", [False, True])
def test_somebody_has_enough(begin: Begin, stepping: bool) -> None:
    stepper = begin("1: inc %ebx\njmp 1b")
    asked = count()
    arrival = stepper.continue_(should_stop=lambda: next(asked) > 3, stepping=stepping)
    assert arrival.reason is Reason.INTERRUPTED
    assert rbx(stepper) > 0


def test_stop_from_another_thread_ends_it(begin: Begin) -> None:
    stepper = begin("1: jmp 1b")
    timer = threading.Timer(0.05, machine_of(stepper).stop)
    timer.start()
    assert stepper.continue_().reason is Reason.INTERRUPTED
    timer.join()


def test_step_over_goes_over_a_call_and_what_it_calls(begin: Begin) -> None:
    stepper = begin(CALLS)
    stepper.run_to(address(stepper, "here"))
    arrival = stepper.step_over()
    assert (arrival.reason, arrival.address) == (Reason.STEP, address(stepper, "next"))
    assert stepper.registers()[0].rcx == 0
    assert stepper.step_over().address == address(stepper, "next") + 1


def test_step_over_a_call_in_a_recursion_ends_in_its_own_frame(begin: Begin) -> None:
    stepper = begin(CALLS.replace("$2, %ecx", "$5, %ecx"))
    stepper.run_to(address(stepper, "here"))
    stepper.step()
    for _ in range(2):
        stepper.step_over()  # dec, jz
    before = stepper.registers()[0]
    arrival = stepper.step_over()
    assert (arrival.reason, arrival.address) == (Reason.STEP, address(stepper, "inner"))
    assert stepper.registers()[0].rsp == before.rsp


def test_a_breakpoint_inside_stops_step_over(begin: Begin) -> None:
    stepper = begin(CALLS)
    stepper.run_to(address(stepper, "here"))
    arrival = stepper.step_over(breakpoints=[address(stepper, "inner")])
    assert (arrival.reason, arrival.address) == (Reason.BREAKPOINT, address(stepper, "inner"))


def test_a_watchpoint_inside_stops_step_over(begin: Begin) -> None:
    stepper = begin("here: call f\nhlt\nf: movl $1, 0x9000\nret")
    arrival = stepper.step_over(watchpoints=[Watchpoint(0x9000, 4)])
    assert arrival.reason is Reason.WATCHPOINT


def test_run_to_a_place_and_what_may_come_between(begin: Begin) -> None:
    stepper = begin(LOOP)
    again, after = address(stepper, "again"), address(stepper, "after")
    assert stepper.run_to(after, breakpoints=[again]).reason is Reason.BREAKPOINT
    assert stepper.run_to(after).reason is Reason.STEP
    assert stepper.run_to(again).stop == Halted()


def test_the_end_of_the_guest_ends_everything(begin: Begin) -> None:
    assert begin("mov $3, %al\nout %al, $0xf4").continue_(stepping=True).stop == DebugExitWritten(3)
    assert begin("mov $3, %al\nout %al, $0xf4").continue_().stop == DebugExitWritten(3)
    assert isinstance(begin("ud2").continue_().stop, Crashed)
    assert isinstance(begin("call f\nhlt\nf: ud2").step_over().stop, Crashed)


# ---- backwards ----


def test_back_undoes_steps_and_stretches(begin: Begin) -> None:
    stepper = begin(LOOP)
    start = stepper.address()
    first = stepper.step()
    stepper.continue_([address(stepper, "after")])
    assert stepper.position == 2
    stepper.back()
    assert (stepper.position, stepper.address(), rbx(stepper)) == (1, address(stepper, "again"), 0)
    assert stepper.back() == first
    assert (stepper.address(), stepper.back(), stepper.position) == (start, None, 0)


def test_what_was_printed_is_taken_back(begin: Begin) -> None:
    stepper = begin("mov $0x3f8, %dx\nmov $'a', %al\nout %al, %dx\nmov $'b', %al\nout %al, %dx\nhlt")
    stepper.continue_(limit=3)
    position = stepper.position
    stepper.continue_(stepping=True)
    assert machine_of(stepper).result(Halted()).serial.text == "ab"
    stepper.back_to(position)
    assert machine_of(stepper).result(Halted()).serial.text == "a"


def test_reverse_continue_goes_back_to_a_breakpoint_and_to_the_beginning(begin: Begin) -> None:
    stepper = begin(LOOP)
    stepper.continue_(stepping=True)
    again = address(stepper, "again")
    seen = []
    while (arrival := stepper.reverse_continue([again])).reason is Reason.BREAKPOINT:
        seen.append(rbx(stepper))
    assert seen == [2, 1, 0]
    assert (arrival.reason, stepper.position) == (Reason.HISTORY, 0)


@pytest.mark.parametrize("access", [Access.WRITE, Access.ANY])
def test_reverse_continue_stops_before_the_write_it_has_undone(begin: Begin, access: Access) -> None:
    stepper = begin(LOOP)
    stepper.continue_(stepping=True)
    arrival = stepper.reverse_continue(watchpoints=[Watchpoint(0x9000, 4, access)])
    assert arrival.reason is Reason.WATCHPOINT
    assert machine_of(stepper).memory.read_u32(0x9000) == 2


def test_reverse_continue_can_be_stopped(begin: Begin) -> None:
    stepper = begin(LOOP)
    stepper.continue_(stepping=True)
    answers = iter((False, False, True))
    assert stepper.reverse_continue(should_stop=lambda: next(answers)).steps == 2


def test_after_going_back_another_way_may_be_taken(begin: Begin) -> None:
    stepper = begin(LOOP)
    stepper.continue_([address(stepper, "after")], stepping=True)
    stepper.back_to(3)
    machine = machine_of(stepper)
    regs = machine.vcpu.get_regs()
    regs.rbx = 100
    machine.vcpu.set_regs(regs)
    machine.memory.write_u32(0x9010, 7)
    stepper.touched()
    assert stepper.position == 4
    stepper.continue_(stepping=True)
    assert rbx(stepper) == 102
    stepper.back_to(3)
    assert (rbx(stepper), machine.memory.read_u32(0x9010)) == (1, 0)


def test_touched_with_nothing_touched_is_nothing(begin: Begin) -> None:
    stepper = begin(LOOP)
    stepper.step()
    stepper.touched()
    assert stepper.position == 1


def test_the_history_is_bounded_and_the_oldest_goes(begin: Begin) -> None:
    stepper = begin("1: inc %ebx\njmp 1b", history=50_000)
    stepper.continue_(limit=100)
    assert 0 < stepper.oldest < 100
    with pytest.raises(ConfigurationError, match="nobody can go back to position 0"):
        stepper.back_to(0)
    stepper.back_to(stepper.oldest)
    assert stepper.back() is None


def test_without_a_history_one_can_only_go_on(begin: Begin) -> None:
    stepper = begin("nop\nhlt", history=0)
    stepper.step()
    assert (stepper.position, stepper.oldest, stepper.back()) == (1, 1, None)


def test_a_snapshot_taken_between_is_a_snapshot_all_the_same(begin: Begin) -> None:
    stepper = begin(LOOP)
    stepper.continue_(limit=5)
    machine = machine_of(stepper)
    snapshot, registers = machine.snapshot(), stepper.registers()[0]
    stepper.continue_(stepping=True)
    stepper.back_to(0)
    stepper.close()
    machine.run(timeout=20)
    machine.restore(snapshot)
    assert (machine.registers, machine.memory.read_u32(0x9000)) == (registers, 1)


# ---- several CPUs ----


def test_one_cpu_is_stepped_while_the_other_stands_still(begin: Begin) -> None:
    stepper = begin(CPU_1_COUNTS, irqchip="kernel", cpus=2)
    assert stepper.step(1).stop == Halted(), "it waits for INIT"
    arrival = stepper.continue_([address(stepper, "again")])
    assert (arrival.reason, arrival.cpu) == (Reason.BREAKPOINT, 1)
    before = stepper.registers(0)
    addresses = [stepper.step(1).address for _ in range(4)]
    assert addresses == [address(stepper, "again"), addresses[1]] * 2
    assert stepper.registers(0) == before
    assert machine_of(stepper).memory.read_u32(0x9000) == 2
    for _ in range(4):
        stepper.back()
    assert machine_of(stepper).memory.read_u32(0x9000) == 0


def test_step_by_step_all_cpus_go_on(begin: Begin) -> None:
    stepper = begin(CPU_1_COUNTS, irqchip="kernel", cpus=2)
    stepper.continue_([address(stepper, "again")])
    arrival = stepper.continue_([address(stepper, "ready")], stepping=True)
    assert (arrival.reason, arrival.cpu) == (Reason.BREAKPOINT, 0)
    assert machine_of(stepper).memory.read_u32(0x9000) >= 5


# ---- wrong use ----


@pytest.mark.parametrize("place", [-1, 1 << 64])
def test_a_breakpoint_that_is_no_address_is_refused(begin: Begin, place: int) -> None:
    with pytest.raises(ConfigurationError, match="there is no breakpoint at"):
        begin("hlt").continue_([place])


@pytest.mark.parametrize(("start", "length"), [(0, 0), (-1, 1), ((1 << 64) - 1, 2), (0, -5)])
def test_a_watchpoint_that_is_nowhere_is_refused(start: int, length: int) -> None:
    with pytest.raises(ConfigurationError, match="nobody can watch"):
        Watchpoint(start, length)


def test_a_history_below_nothing_is_refused(begin: Begin) -> None:
    with pytest.raises(ConfigurationError, match="a history has 0 bytes or more, not -1"):
        begin("hlt", history=-1)
