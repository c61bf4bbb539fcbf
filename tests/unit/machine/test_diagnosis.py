"""pykvm.machine's stories: triple faults, loops, interrupts that are held back, without KVM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.boot import flat_image
from pykvm.devices import PicPair
from pykvm.kvm import (
    DescriptorTable,
    FailEntry,
    InternalError,
    InternalErrorSuberror,
    Shutdown,
    Sregs,
    VcpuEvents,
)
from pykvm.machine import CpuResult, Crashed, Halted, Interrupted, Stop, TimedOut
from pykvm.machine.controllers import Controller, decode_lapic, decode_pic
from pykvm.machine.diagnosis import likely_cause, remark, what_happened
from pykvm.machine.faultchain import find_story, is_reset
from pykvm.machine.loops import find_loop
from pykvm.machine.report import report
from pykvm.machine.scene import Scene
from pykvm.memory import GuestMemory
from pykvm.units import Gpa
from pykvm.x86 import Gate, Idt, Mode, Rflags, reset_vector, set_up

UD2, NOP = "0f 0b", "90 90"
UNMAPPED = 0x80_0000_0000
SHUTDOWN = Crashed(Shutdown())


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as memory:
        yield memory


def make(
    memory: GuestMemory,
    code: str,
    stop: Stop = SHUTDOWN,
    *,
    mode: Mode = Mode.LONG,
    controllers: tuple[Controller, ...] = (),
    cpus: tuple[str, ...] = (),
    events: VcpuEvents | None = None,
    **registers: int,
) -> Scene:
    """Return a scene with an IDT of good gates in long mode; ``cpus`` are the activities of all of them."""
    image = flat_image(bytes.fromhex(code), mode=mode)
    image.load(memory)
    state = set_up(mode, Sregs(), memory, image.entry)
    if mode is Mode.LONG:
        idt = Idt()
        for vector in range(32):
            idt.set(vector, Gate(0x10_0800))
        state.sregs.idt = idt.write(memory, Gpa(0x2000), long=True)
        state.sregs.idt.limit = 32 * 16 - 1
    for name, value in registers.items():
        setattr(state.regs, name, value)
    results = tuple(CpuResult(id, None, what, state.regs, state.sregs) for id, what in enumerate(cpus))
    return Scene(
        stop, state.regs, state.sregs, memory, (), 1, 0.001, image, 0, results, events, controllers=controllers
    )


def noted(vector: int, error_code: int | None = None) -> VcpuEvents:
    events = VcpuEvents()
    events.exception.nr = vector
    if error_code is not None:
        events.exception.has_error_code, events.exception.error_code = 1, error_code
    return events


# ---- triple faults ----


def test_each_link_of_the_chain_has_a_sentence(memory: GuestMemory) -> None:
    scene = make(memory, UD2)
    scene.sregs.idt = DescriptorTable()
    lines = what_happened(scene).splitlines()
    assert lines[0] == "triple fault: #UD (invalid opcode) at 0x100000: ud2"
    assert "vector 6 needs bytes 0x60 to 0x6f" in lines[2]
    assert "#GP's handler could not run (#GP)" in lines[3]
    assert lines[4] == "#GP and then #GP are a double fault (#DF)"
    assert "vector 8 needs bytes 0x80 to 0x8f" in lines[5]
    assert lines[-1] == "and so the CPU shut down"


def test_a_handler_at_no_address_is_entered_until_the_stack_ends(memory: GuestMemory) -> None:
    scene = make(memory, UD2)
    idt = Idt()
    for vector in range(32):
        idt.set(vector, Gate(UNMAPPED))
    scene.sregs.idt = idt.write(memory, Gpa(0x2000), long=True)
    text = what_happened(scene)
    assert "#UD's handler, 0x8:0x8000000000, cannot be fetched" in text
    assert "each pushes another frame, until the stack is at its end" in text
    assert "its handler cannot be fetched" in likely_cause(scene)


def test_where_the_manual_would_have_run_a_handler_the_report_does_not_pretend(memory: GuestMemory) -> None:
    scene = make(memory, UD2)
    memory.write(Gpa(0x2000 + 16 * 8), bytes(16))  # #DF has no gate, but by the manual nobody needs it
    text = what_happened(scene)
    assert "can run by the manual's rules, and the CPU shut down all the same" in text
    assert "#DF -> #GP: gate 8 of the IDT is empty" in text


def test_a_task_gate_is_said_not_to_be_followed(memory: GuestMemory) -> None:
    scene = make(memory, UD2, mode=Mode.PROTECTED)
    scene.sregs.idt = DescriptorTable(0x2000, 0xFF)
    memory.write(Gpa(0x2000 + 6 * 8), bytes.fromhex("00 00 30 00 00 85 00 00"))
    assert "is not known: gate 6 of the IDT is a task gate" in what_happened(scene)


def test_what_is_no_known_instruction_is_not_certain(memory: GuestMemory) -> None:
    scene = make(memory, "ff ff ff ff")
    scene.sregs.idt = DescriptorTable()
    assert "what came first is not certain, and was likely #UD" in what_happened(scene)
    sure = make(memory, "ff ff ff ff", events=noted(6))
    story = find_story(sure)
    assert story is not None
    assert story.is_certain


def test_kvms_own_record_is_evidence_where_the_instruction_is_none(memory: GuestMemory) -> None:
    scene = make(memory, NOP, events=noted(13, 0x18))
    scene.sregs.idt = DescriptorTable()
    text = what_happened(scene)
    assert "was likely #GP (general protection) with error code 0x18" in text
    assert "KVM noted it last, though maybe long before" in text


def test_an_address_left_in_cr2_is_evidence_of_a_kind(memory: GuestMemory) -> None:
    scene = make(memory, NOP)
    scene.sregs.idt = DescriptorTable()
    scene.sregs.cr2 = UNMAPPED
    assert "CR2 holds an address that is not mapped" in what_happened(scene)
    assert "PML4[1] is not present" in likely_cause(scene)


def test_an_interrupt_without_a_gate_is_thought_of_last(memory: GuestMemory) -> None:
    scene = make(memory, NOP, rflags=Rflags.IF.value)
    text = what_happened(scene)
    assert "was likely interrupt 0x20" in text
    assert "interrupts are on" in text
    assert "pykvm explain exit 8, docs/book/mistakes.md" in report(scene)


def test_without_any_evidence_the_report_says_so(memory: GuestMemory) -> None:
    scene = make(memory, NOP)
    assert "nothing in the registers or at RIP says which exception it was" in what_happened(scene)
    assert likely_cause(scene) == ""


def test_registers_after_a_reset_are_no_evidence(memory: GuestMemory) -> None:
    scene = make(memory, UD2)
    state = reset_vector(scene.sregs)
    after = Scene(SHUTDOWN, state.regs, state.sregs, memory, (), 1, 0.001, scene.image)
    assert is_reset(state.regs, state.sregs)
    assert not is_reset(scene.regs, scene.sregs)
    assert "KVM on some hosts resets it" in what_happened(after)
    assert "pykvm step --batch" in likely_cause(after)


def test_a_fetch_that_fails_is_told_from_an_operand(memory: GuestMemory) -> None:
    scene = make(memory, NOP, rip=UNMAPPED)
    assert likely_cause(scene).startswith("RIP points to an address that the page tables do not map: PML4[1]")


# ---- what to read next ----


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (SHUTDOWN, "pykvm explain exit 8, pykvm explain exception 6, docs/book/mistakes.md"),
        (Crashed(InternalError(InternalErrorSuberror.EMULATION)), "pykvm explain internal-error 1"),
        (Crashed(FailEntry(0x80000021, 0)), "pykvm explain fail-entry 0x80000021"),
        (TimedOut(1), "--timeout SECONDS gives it more time"),
    ],
)
def test_a_report_says_what_to_read(memory: GuestMemory, stop: Stop, words: str) -> None:
    assert words in report(make(memory, UD2, stop))


# ---- loops ----


def test_a_loop_is_read_off_the_code_around_rip(memory: GuestMemory) -> None:
    scene = make(memory, "90 f3 90 ff c0 83 f8 05 75 f6 f4", TimedOut(1), rip=0x10_0003)  # from pause on
    loop = find_loop(scene)
    assert loop is not None
    assert [one.address for one in loop.instructions] == [0x10_0000, 0x10_0001, 0x10_0003, 0x10_0005, 0x10_0008]
    assert not loop.is_endless
    assert "a loop of 5 instructions, 0x100000 to 0x100008, whose end did not come" in likely_cause(scene)
    assert "> 0x100003  incl %eax" in report(scene)


def test_a_loop_without_a_condition_is_endless(memory: GuestMemory) -> None:
    scene = make(memory, "ff c0 eb fc", Interrupted())
    loop = find_loop(scene)
    assert loop is not None
    assert loop.is_endless
    assert "which nothing ends" in likely_cause(scene)


@pytest.mark.parametrize("code", ["90 c3", "90 f4", "eb 10", "90 0f 0b", "74 02 90 90 f4", "ff e0"])
def test_code_that_does_not_jump_back_is_no_loop(memory: GuestMemory, code: str) -> None:
    assert find_loop(make(memory, code, TimedOut(1))) is None


def test_a_jump_back_to_behind_rip_is_no_loop_around_it(memory: GuestMemory) -> None:
    assert find_loop(make(memory, "90 90 90 eb fc", TimedOut(1))) is None


def test_code_that_is_not_mapped_is_no_loop(memory: GuestMemory) -> None:
    assert find_loop(make(memory, NOP, TimedOut(1), rip=UNMAPPED)) is None
    assert find_loop(make(memory, NOP, TimedOut(1), rip=0x9000_0000)) is None


# ---- interrupts and processors ----


def test_an_interrupt_in_service_behind_its_handler_lacks_an_eoi(memory: GuestMemory) -> None:
    pic = Controller("master 8259A", in_service=(0x20,), waiting=(0x20,))
    scene = make(memory, NOP, TimedOut(1), controllers=(pic,), rflags=Rflags.IF.value)
    assert "in service in the master 8259A (vector 0x20)" in likely_cause(scene)
    assert "master 8259A: in service 0x20, waiting 0x20" in report(scene)
    inside = make(memory, NOP, TimedOut(1), controllers=(pic,))  # IF = 0: the handler may still run
    assert "EOI" not in likely_cause(inside)
    assert "interrupts wait (vector 0x20), and RFLAGS.IF is 0" in likely_cause(inside)


def test_processors_that_wait_are_named(memory: GuestMemory) -> None:
    cpus = ("running", "waits for INIT", "waits for SIPI", "halted")
    scene = make(memory, NOP, TimedOut(1), cpus=cpus)
    assert "CPUs 1, 2 never started (waits for INIT, waits for SIPI)" in likely_cause(scene)


def test_a_hlt_for_good_is_remarked_on_only_if_an_interrupt_may_come(memory: GuestMemory) -> None:
    awaited = (Controller("master 8259A", open=(0x20, 0x21)), Controller("local APIC of CPU 0"))
    assert "vector 0x20 (master 8259A) cannot end the HLT" in remark(make(memory, "f4", Halted(), controllers=awaited))
    assert remark(make(memory, "f4", Halted(), controllers=awaited[1:])) == ""
    assert remark(make(memory, "f4", Halted(), controllers=awaited, rflags=Rflags.IF.value)) == ""


def pic_state(*, irr: int = 0, imr: int = 0, isr: int = 0, base: int = 0x20) -> bytes:
    return bytes((0, irr, imr, isr, 0, base)).ljust(512, b"\0")


def test_a_pic_of_the_kernels_is_read_in_vectors() -> None:
    found = decode_pic("master 8259A", pic_state(irr=0b11, imr=0b1111_1010, isr=0b1))
    assert found == Controller("master 8259A", (0x20,), (0x20,), (0x20,))  # input 2 is the slave's
    assert decode_pic("slave 8259A", pic_state(imr=0xFB, base=0x28)).open == (0x2A,)


def test_a_pic_that_nobody_has_programmed_awaits_nothing() -> None:
    assert decode_pic("master 8259A", pic_state(irr=0xFF, base=0)) == Controller("master 8259A")


def lapic_state(**registers: int) -> bytes:
    """Return a local APIC's registers, "at_0x100=1"."""
    state = bytearray(1024)
    for name, value in registers.items():
        offset = int(name.removeprefix("at_"), 16)
        state[offset : offset + 4] = value.to_bytes(4, "little")
    return bytes(state)


def test_a_local_apics_bits_are_vectors() -> None:
    state = lapic_state(at_0x110=1 << 1, at_0x270=1 << 31)
    assert decode_lapic("local APIC of CPU 0", state) == Controller("local APIC of CPU 0", (33,), (255,))


def test_a_local_apics_timer_is_awaited_if_it_runs() -> None:
    runs = {"at_0xf0": 1 << 8, "at_0x320": 0x40, "at_0x380": 1000}
    assert decode_lapic("local APIC", lapic_state(**runs)).open == (0x40,)
    for change in ({"at_0xf0": 0}, {"at_0x320": 0x40 | 1 << 16}, {"at_0x380": 0}):
        assert decode_lapic("local APIC", lapic_state(**(runs | change))).open == ()


def test_a_pic_of_ours_starts_with_nothing() -> None:
    pics = PicPair(lambda level: None)
    assert (pics.master.isr, pics.master.vector(0)) == (0, 0)


# ---- any state at all ----

NUMBERS = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 0xFFFF), st.sampled_from((0x1000, 0x2000, 0x7C00)))
STOPS: st.SearchStrategy[Stop] = st.sampled_from(
    (SHUTDOWN, TimedOut(1), Interrupted(), Crashed(InternalError(1)), Halted())
)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_no_guest_breaks_its_report(data: st.DataObject) -> None:
    with GuestMemory("2M") as memory:
        mode = data.draw(st.sampled_from((Mode.REAL, Mode.PROTECTED, Mode.LONG)))
        code = data.draw(st.binary(min_size=1, max_size=40)).hex()
        scene = make(memory, code, data.draw(STOPS), mode=mode, events=noted(data.draw(st.integers(0, 255)), 0))
        for page in (0x1000, 0x2000, 0x3000, 0x1_0000):
            if data.draw(st.booleans()):
                memory.write(Gpa(page), data.draw(st.binary(min_size=64, max_size=512)))
        for name in ("rsp", "rip", "rflags", "rax"):
            if data.draw(st.booleans()):
                setattr(scene.regs, name, data.draw(NUMBERS))
        for name in data.draw(st.sets(st.sampled_from(("cr0", "cr2", "cr3", "cr4", "efer")), max_size=2)):
            setattr(scene.sregs, name, data.draw(NUMBERS))
        for table in (scene.sregs.gdt, scene.sregs.idt):
            if data.draw(st.booleans()):
                table.base, table.limit = data.draw(NUMBERS), data.draw(st.integers(0, 0xFFFF))
        text = report(scene)
        assert "what happened" in text
        assert len(text) < 20_000
        assert isinstance(remark(scene), str)
