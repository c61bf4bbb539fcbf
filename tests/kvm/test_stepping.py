"""A guest an instruction at a time: each is seen exactly once, whatever KVM makes of it on this host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pykvm import Image, Machine, assemble
from pykvm.errors import ClosedError, ConfigurationError, InUseError
from pykvm.kvm import Hlt, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Shutdown, Wrmsr
from pykvm.machine import Crashed, DebugExitWritten, Halted, Stopped
from pykvm.observe import Recorder
from pykvm.observe.stepping import Event, EventKind, Step, Stepper
from pykvm.testing import Guests
from pykvm.x86 import Rflags

Begin = Callable[..., Stepper]

HOLE = 0x4000_0000  # no memory is there

# A table of gates at IDT, all of which lead to ``handler``, but for one to ``other``.
IDT = 0x9000
GATES = """
        .macro  gate vector, to
        lea     \\to(%rip), %rax
        mov     %ax, 0x9000 + 16 * \\vector
        movw    $8, 0x9002 + 16 * \\vector
        movw    $0x8e00, 0x9004 + 16 * \\vector
        shr     $16, %rax
        mov     %ax, 0x9006 + 16 * \\vector
        movq    $0, 0x9008 + 16 * \\vector
        .endm
        .macro  load_idt
        movw    $0xfff, 0x8ff0
        movq    $0x9000, 0x8ff2
        lidt    0x8ff0
        .endm
"""


@pytest.fixture
def begin(guest: Guests) -> Iterator[Begin]:
    """Returns a function that makes a machine of a snippet, and steps it."""
    with ExitStack() as stack:

        def make(source: str, mode: str = "long", *, memory: str = "2M", ring: int = 0, **options: object) -> Stepper:
            machine = guest.machine(memory, **options)  # type: ignore[arg-type]
            machine.load(assemble(source, mode=mode), mode=mode, ring=ring)
            return stack.enter_context(Stepper(machine))

        yield make


def machine_of(stepper: Stepper) -> Machine:
    return stepper._machine


def image_of(stepper: Stepper) -> Image:
    image = machine_of(stepper)._image
    assert image is not None
    return image


def address(stepper: Stepper, name: str) -> int:
    return next(symbol.address for symbol in image_of(stepper).symbols if symbol.name == name)


def steps(stepper: Stepper, count: int = 200) -> list[Step]:
    """Step until the guest stops, or ``count`` times."""
    done: list[Step] = []
    while len(done) < count and not (done and done[-1].stop):
        done.append(stepper.step())
    return done


def texts(done: list[Step]) -> list[str]:
    return [step.instruction.mnemonic if step.instruction else "?" for step in done]


def to(stepper: Stepper, name: str) -> None:
    """Step to the symbol ``name``."""
    place = address(stepper, name)
    for _ in range(500):
        if stepper.address() == place:
            return
        stepper.step()
    raise AssertionError(f"{name} was not reached")


# ---- what a step says ----


def test_a_step_says_what_it_was_and_what_it_changed(begin: Begin) -> None:
    stepper = begin("mov $5, %eax\npush %rax\nhlt")
    first, second, last = steps(stepper)
    assert (first.number, first.cpu, str(first.instruction).split("  ")[-1]) == (1, 0, "movl $5, %eax")
    assert (first.before[0].rax, first.after[0].rax) == (0, 5)
    assert first.address == image_of(stepper).entry
    (change,) = [change for change in second.changes if change.gpa == second.after[0].rsp]
    assert (change.old, change.new) == (b"\0", b"\5")
    assert (last.stop, last.exits) == (Halted(), (Hlt(),))
    assert stepper.position == 3


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_an_instruction_that_exits_is_one_step(begin: Begin, mode: str) -> None:
    done = steps(begin("nop\nout %al, $0xe0\nnop\nin $0xe0, %al\nnop\nhlt", mode))
    assert texts(done) == ["nop", "outb", "nop", "inb", "nop", "hlt"]
    assert [tuple(map(type, step.exits)) for step in done] == [(), (IoOut,), (), (IoIn,), (), (Hlt,)]
    assert done[3].after[0].rax & 0xFF == 0xFF, "nobody is there to answer"


def test_memory_that_is_not_there_is_read_and_written_in_one_step_each(begin: Begin) -> None:
    done = steps(begin(f"movl $7, {HOLE}\nmov {HOLE}, %ebx\nincl {HOLE}\nhlt", "protected"))
    assert [tuple(map(type, step.exits)) for step in done] == [
        (MmioWrite,),
        (MmioRead,),
        (MmioRead, MmioWrite),
        (Hlt,),
    ]


@pytest.mark.parametrize("count", [0, 1, 5, 3000])
@pytest.mark.parametrize("instruction", ["rep outsb", "rep insb", "rep movsb", "rep stosb"])
def test_rep_is_one_step(begin: Begin, instruction: str, count: int) -> None:
    stepper = begin(
        f"mov $0x80, %dx\nmov $0x1000, %si\nmov $0x2000, %di\nmov ${count}, %cx\n{instruction}\nhlt", "real"
    )
    done = steps(stepper)
    assert len(done) == 6
    assert (done[4].after[0].rcx, done[5].stop) == (0, Halted())
    if instruction == "rep outsb":
        assert sum(exit.count for exit in done[4].exits if isinstance(exit, IoOut)) == count


def test_a_rep_without_end_takes_several_steps(begin: Begin) -> None:
    stepper = begin("mov $-1, %rcx\ncld\nxor %edi, %edi\nrep lodsb\nhlt")
    steps(stepper, 3)
    first, second = stepper.step(), stepper.step()
    assert first.address == second.address
    assert first.after[0].rcx > second.after[0].rcx


def test_a_jump_to_itself_is_a_step_each_time(begin: Begin) -> None:
    stepper = begin("here: jmp here")
    assert [step.address for step in steps(stepper, 3)] == [address(stepper, "here")] * 3


def test_stack_switches_and_sti_are_steps_of_their_own(begin: Begin) -> None:
    done = steps(
        begin("xor %ax, %ax\nmov %ax, %ss\nmov $0x7000, %sp\npush %ax\npop %ss\nnop\nsti\nnop\ncli\nhlt", "real")
    )
    assert texts(done) == ["xorw", "movw", "movw", "pushw", "popw", "nop", "sti", "nop", "cli", "hlt"]


def test_an_msr_that_python_answers_is_one_step(begin: Begin) -> None:
    stepper = begin("mov $0x1234, %ecx\nrdmsr\ninc %eax\nwrmsr\nhlt")
    machine_of(stepper).msr.store(0x1234, 41)
    done = steps(stepper)
    assert [tuple(map(type, step.exits)) for step in done] == [(), (Rdmsr,), (), (Wrmsr,), (Hlt,)]
    assert done[1].after[0].rax == 41
    stepper.back_to(0)
    assert machine_of(stepper).msr.stored == {0x1234: 41}


def test_the_debug_exit_ends_it_and_the_guest_may_go_on(begin: Begin) -> None:
    stepper = begin("mov $5, %al\nout %al, $0xf4\ninc %ebx\nhlt")
    assert [step.stop for step in steps(stepper)] == [None, DebugExitWritten(5)]
    assert [step.stop for step in steps(stepper)] == [None, Halted()]


def test_a_crash_is_a_step_with_a_stop(begin: Begin) -> None:
    stepper = begin("nop\nud2")
    done = steps(stepper)
    assert isinstance(done[1].stop, Crashed)
    assert isinstance(done[1].stop.exit, Shutdown)
    stepper.back()
    assert stepper.address() == done[1].address
    again = stepper.step()
    assert again.stop == done[1].stop


def test_what_is_no_code_is_not_read(begin: Begin) -> None:
    stepper = begin(f"mov ${HOLE}, %eax\njmp *%eax", "protected")
    done = steps(stepper, 3)
    assert done[2].instruction is None
    assert isinstance(done[2].stop, Crashed)


# ---- HLT ----


@pytest.mark.parametrize("irqchip", ["none", "user", "kernel", "split"])
def test_hlt_that_nothing_can_end_is_the_last_step(begin: Begin, irqchip: str) -> None:
    done = steps(begin("nop\nhlt\nnop", irqchip=irqchip))
    assert texts(done) == ["nop", "hlt"]
    assert done[1].stop == Halted()


TICKS = (
    GATES
    + """
        .macro  to_port value, port
        mov     $\\value, %al
        out     %al, $\\port
        .endm
        gate    0x20, tick
        load_idt
        to_port 0x11, 0x20
        to_port 0x20, 0x21
        to_port 4, 0x21
        to_port 1, 0x21
        to_port 0xfe, 0x21
        mov     $2, %ecx
again:  to_port 0x30, 0x43
        to_port 0, 0x40
        to_port 0x20, 0x40
wait:   sti
        hlt
        cli
        loop    again
        hlt
tick:   push    %rax
        to_port 0x20, 0x20
        pop     %rax
        iretq
"""
)


@pytest.mark.parametrize("irqchip", ["user", "kernel"])
def test_hlt_waits_for_an_interrupt_which_is_a_step_of_its_own(begin: Begin, irqchip: str) -> None:
    stepper = begin(TICKS, irqchip=irqchip)
    done = steps(stepper)
    after_hlt = address(stepper, "wait") + 2
    taken = [(step.address, step.events) for step in done if step.events]
    assert taken == [(after_hlt, (Event(EventKind.INTERRUPT, 0x20),))] * 2
    handler = [texts(done[n + 1 : n + 6]) for n, step in enumerate(done) if step.events]
    assert handler == [["pushq", "movb", "outb", "popq", "iretq"]] * 2
    assert done[-1].stop == Halted()
    stepper.back_to(0)
    again = steps(stepper)
    assert [step.address for step in again] == [step.address for step in done]


def test_a_halted_cpu_is_waited_for_until_somebody_has_enough(begin: Begin) -> None:
    stepper = begin("sti\nhlt", irqchip="user")
    steps(stepper, 2)
    answers = iter((False, False, True, True))
    step = stepper.step(should_stop=lambda: next(answers))
    assert (step.stop, step.before[0]) == (Stopped(), step.after[0])


# ---- exceptions, and what else is not in order ----


def test_an_exception_is_a_step_and_its_handler_begins_with_the_next(begin: Begin) -> None:
    stepper = begin(
        GATES + "gate 6, handler\ngate 14, other\nload_idt\ncode: ud2\nhlt\nhandler: inc %ebx\nmov 0x80000000000, %al\n"
        "hlt\nother: mov %cr2, %rcx\nhlt"
    )
    to(stepper, "code")
    done = steps(stepper)
    assert [step.events for step in done if step.events] == [
        (Event(EventKind.EXCEPTION, 6),),
        (Event(EventKind.EXCEPTION, 14),),
    ]
    assert [step.address for step in done if step.events] == [address(stepper, "code"), address(stepper, "handler") + 2]
    assert texts(done) == ["ud2", "incl", "movabsb", "movq", "hlt"]
    assert done[-1].before[0].rcx == 0x80000000000


def test_vectors_that_share_a_handler_are_told_apart(begin: Begin) -> None:
    gates = "".join(f"gate {vector}, handler\n" for vector in (0, 3, 6, 13, 14))
    stepper = begin(GATES + gates + "load_idt\ncode: ud2\nhandler: xor %ecx, %ecx\ndiv %ecx\nhlt", irqchip="none")
    to(stepper, "code")
    done = steps(stepper, 6)
    assert [step.events[0].vector for step in done if step.events] == [6, 0, 0]


def test_int_in_real_mode_is_executed_and_taken(begin: Begin) -> None:
    stepper = begin("movw $handler, 0x80\nmovw $0, 0x82\nint $0x20\nhlt\nhandler: inc %bx\niret", "real")
    done = steps(stepper)
    assert texts(done) == ["movw", "movw", "int", "incw", "iretw", "hlt"]
    assert done[2].events == (Event(EventKind.EXCEPTION, 0x20),)


def test_an_nmi_is_a_step(begin: Begin) -> None:
    stepper = begin(GATES + "gate 2, handler\nload_idt\ncode: nop\nnop\nhlt\nhandler: inc %ebx\niretq")
    to(stepper, "code")
    machine_of(stepper).nmi()
    done = steps(stepper)
    assert texts(done) == ["nop", "incl", "iretq", "nop", "nop", "hlt"]
    assert done[0].events == (Event(EventKind.INTERRUPT, 2),)


RING_3 = (
    GATES
    + """
        mov     %cr3, %rax                # the page that all this is in becomes ring 3's, too
        orl     $4, (%rax)
        mov     (%rax), %ebx
        and     $0xfffff000, %ebx
        orl     $4, (%rbx)
        mov     (%rbx), %ebx
        and     $0xfffff000, %ebx
        orl     $4, (%rbx)
        mov     %rax, %cr3
        gate    13, handler
        load_idt
        mov     %rsp, 0x3004
        push    $0x23
        push    $0x6000
        push    $2
        push    $0x2b
        push    $user
down:   iretq
user:   mov     $7, %ecx
again:  push    %rcx
        loop    again
        mov     $3, %ecx
        mov     $0x6100, %edi
        rep     stosb
        cli                               # forbidden there
handler: inc    %ebx
        hlt
"""
)


def test_ring_3_is_stepped_like_ring_0(begin: Begin) -> None:
    stepper = begin(RING_3)
    to(stepper, "down")
    done = steps(stepper)
    assert texts(done) == ["iretq", "movl", *["pushq", "loop"] * 7, "movl", "movl", "rep stosb", "cli", "incl", "hlt"]
    assert done[-3].events == (Event(EventKind.EXCEPTION, 13),)
    assert [step.before[1].ss.dpl for step in done[:3]] == [0, 3, 3]
    assert done[1].before[1].ds.unusable, "a segment of ring 0 is not ring 3's"
    stepper.back_to(stepper.position - len(done))
    assert [(step.address, step.after) for step in steps(stepper)] == [(step.address, step.after) for step in done]


def test_a_guest_that_sets_tf_is_stepped_all_the_same(begin: Begin) -> None:
    done = steps(begin("mov $0x7000, %sp\npushf\npop %ax\nor $0x100, %ax\npush %ax\npopf\nnop\nnop\nhlt", "real"))
    assert texts(done) == ["movw", "pushfw", "popw", "orw", "pushw", "popfw", "nop", "nop", "hlt"]
    assert not any(step.after[0].rflags & Rflags.TF.value for step in done), "KVM's own does not show"


def test_a_guests_own_watchpoint_hits_while_it_is_stepped(begin: Begin) -> None:
    stepper = begin(
        GATES + "gate 1, handler\nload_idt\nmov $0xa000, %eax\nmov %rax, %dr0\nmov $0x30001, %eax\nmov %rax, %dr7\n"
        "code: movb $1, 0xa004\nmovb $1, 0xa000\nnop\nhlt\nhandler: mov %dr6, %rbx\niretq"
    )
    to(stepper, "code")
    done = steps(stepper)
    assert texts(done) == ["movb", "movb", "nop", "movq", "iretq", "nop", "hlt"]
    assert done[2].events == (Event(EventKind.EXCEPTION, 1),)
    assert done[3].after[0].rbx & 1


def test_a_guest_that_writes_dr7_does_not_take_breakpoints_away(begin: Begin) -> None:
    stepper = begin("xor %eax, %eax\nmov %rax, %dr7\nnop\nhere: nop\nhlt")
    arrival = stepper.continue_([address(stepper, "here")])
    assert arrival.address == address(stepper, "here")


# ---- the machine around it ----


def test_devices_see_time_go_by_instructions(begin: Begin) -> None:
    stepper = begin("1: jmp 1b")
    before = machine_of(stepper).events.now()
    steps(stepper, 5)
    assert machine_of(stepper).events.now() - before == 5000, "a microsecond each"


def test_observers_hear_of_exits_and_not_of_steps(begin: Begin) -> None:
    heard: list[object] = []

    class Listener:
        def exit(self, vcpu: int, exit: object) -> None:
            heard.append(exit)

        def tick(self) -> None:
            pass

    stepper = begin("nop\nout %al, $0x80\nhlt", observers=(Listener(),))
    steps(stepper)
    assert heard == [IoOut(0x80, 1, 1, b"\0"), Hlt()]


def test_what_a_device_raises_comes_through_and_the_guest_stands_still(begin: Begin) -> None:
    stepper = begin("nop\nmov $0x300, %edx\nout %al, %dx\nhlt", strict_io=True)
    steps(stepper, 2)
    with pytest.raises(Exception, match="0x300"):
        stepper.step()
    assert not machine_of(stepper).is_running


def test_a_closed_stepper_leaves_the_machine_where_it_is(begin: Begin) -> None:
    stepper = begin("inc %ebx\ninc %ebx\nhlt")
    stepper.step()
    stepper.close()
    stepper.close()
    result = machine_of(stepper).run(timeout=20)
    assert (result.stop, result.registers.rbx) == (Halted(), 2)


@pytest.mark.parametrize("cpu", [-1, 1])
def test_a_cpu_that_there_is_not_is_refused(begin: Begin, cpu: int) -> None:
    stepper = begin("hlt")
    with pytest.raises(ConfigurationError, match=f"there is no CPU {cpu}: this machine has 0 to 0"):
        stepper.step(cpu)


def test_a_machine_that_runs_cannot_be_stepped(guest: Guests) -> None:
    machine = guest.machine("2M")
    machine.load(assemble("out %al, $0x80\nhlt", mode="long"), mode="long")
    refused: list[str] = []

    class Meddler:
        def exit(self, vcpu: int, exit: object) -> None:
            try:
                Stepper(machine)
            except InUseError as error:
                refused.append(str(error))

        def tick(self) -> None:
            pass

    machine.add_observer(Meddler())
    machine.run(timeout=20)
    assert refused == ["this machine runs and cannot be stepped: pause() or stop() it first"] * 2


def test_a_machine_that_is_recorded_cannot_be_stepped(guest: Guests, tmp_path: Path) -> None:
    with Recorder(tmp_path / "recording") as recorder:
        machine = guest.machine("2M", observers=(recorder,))
        with pytest.raises(ConfigurationError, match="is being recorded cannot go back"):
            Stepper(machine)


def test_a_closed_machine_cannot_be_stepped(guest: Guests) -> None:
    machine = guest.machine("2M")
    machine.close()
    with pytest.raises(ClosedError):
        Stepper(machine)


def test_going_back_takes_page_tables_with_it(begin: Begin) -> None:
    remap = """
        movq    $0x200087, 0x12010        # 0x400000 is 0x200000 now, and ring 3's
        movl    $0x11111111, 0x200000
        movl    $0x22222222, 0
"""
    use = "user: mov 0x400000, %ecx\nmovq $0x87, 0x12010\nmov 0x400000, %edx\nmov 0x400000, %esi\n"
    source = RING_3.replace("        mov     %rax, %cr3\n", remap + "mov %rax, %cr3\n").replace("user:", use, 1)
    stepper = begin(source, memory="6M")
    to(stepper, "user")
    first = steps(stepper, 4)
    assert [step.after[0].rcx for step in first] == [0x11111111] * 4
    assert first[-1].after[0].rsi == 0x22222222
    stepper.back_to(stepper.position - 4)
    assert [step.after for step in steps(stepper, 4)] == [step.after for step in first]
