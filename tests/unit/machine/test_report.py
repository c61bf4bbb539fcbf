"""pykvm.machine.report and .diagnosis: a guest's last state in words, without KVM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.boot import flat_image
from pykvm.kvm import (
    Exit,
    FailEntry,
    Hlt,
    InternalError,
    InternalErrorSuberror,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Shutdown,
    Sregs,
    Unknown,
)
from pykvm.machine import Crashed, DebugExitWritten, Halted, Interrupted, Stop, Stopped, TimedOut, describe_exit
from pykvm.machine.diagnosis import Scene, likely_cause, what_happened
from pykvm.machine.report import format_duration, report
from pykvm.memory import GuestMemory
from pykvm.units import Gpa
from pykvm.x86 import CpuState, Mode, set_up

UD2 = b"\x0f\x0b"


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as memory:
        yield memory


def make_scene(
    memory: GuestMemory,
    stop: Stop,
    *,
    code: bytes = UD2,
    mode: Mode = Mode.LONG,
    state: CpuState | None = None,
    last_exits: tuple[Exit, ...] = (),
) -> Scene:
    image = flat_image(code, mode=mode)
    image.load(memory)
    state = state or set_up(mode, Sregs(), memory, image.entry)
    return Scene(stop, state.regs, state.sregs, memory, last_exits, 3, 0.0007, image)


def test_a_triple_fault_without_an_idt_says_so(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(Shutdown()))
    assert "triple fault" in what_happened(scene)
    assert "no IDT was loaded" in likely_cause(scene)


def test_an_idt_that_is_too_short_says_so(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(Shutdown()))
    scene.sregs.idt.limit = 0x5F  # six gates
    assert "IDTR's limit is 0x5f, and vector 6 needs bytes 0x60 to 0x6f" in likely_cause(scene)


def test_a_shutdown_under_32_bit_paging_points_to_the_probe(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(Shutdown()), mode=Mode.PAGED, code=b"\x90")
    scene.sregs.idt.limit = 0x7FF
    assert "32-bit paging is on" in likely_cause(scene)
    assert "doctor --probe" in likely_cause(scene)


def test_a_page_fault_that_nobody_handled_is_named(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(Shutdown()), code=b"\x8b\x03")
    scene.sregs.cr2 = 0x1_8000_0000
    cause = likely_cause(scene)
    assert "page fault (#PF) at 0x180000000" in cause
    assert "PDPT[6] is not present" in cause
    assert "no IDT was loaded" in cause


def test_a_crash_while_paging_is_switched_on_is_recognised(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(Shutdown()), mode=Mode.PROTECTED, code=b"\x0f\x22\xc0")  # mov %eax, %cr0
    scene.regs.rax = 0x8000_0011
    assert "switching paging on" in likely_cause(scene)
    scene.regs.rax = 0x11
    assert "no IDT" in likely_cause(scene)


def test_long_sentences_are_wrapped_under_their_label(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(Shutdown()), mode=Mode.PROTECTED, code=b"\x0f\x22\xc0")
    scene.regs.rax = 0x8000_0011
    assert all(len(line) <= 120 for line in report(scene).splitlines())


def test_rip_outside_memory_says_where_memory_is(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(InternalError(InternalErrorSuberror.EMULATION)))
    scene.regs.rip = 0x9000_0000
    assert "0x90000000, where there is no memory" in likely_cause(scene)
    assert "ram 0x0-0x1fffff" in likely_cause(scene)
    assert "no code can be read there" in report(scene)


def test_rip_that_is_not_mapped_says_which_entry_is_missing(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(Shutdown()))
    scene.regs.rip = 0x40_0000_0000
    assert "do not map" in likely_cause(scene)
    assert "PDPT[256] is not present" in report(scene)


def test_an_instruction_kvm_cannot_emulate_is_disassembled(memory: GuestMemory) -> None:
    popcnt = b"\xf3\x0f\xb8\x03"
    exit = InternalError(InternalErrorSuberror.EMULATION, (1, 0, 0), 1, popcnt)
    scene = make_scene(memory, Crashed(exit), code=popcnt)
    assert "emulator lacks this one" in likely_cause(scene)
    assert "popcnt" in report(scene)


def test_bytes_that_differ_from_memory_are_shown_as_kvm_saw_them(memory: GuestMemory) -> None:
    exit = InternalError(InternalErrorSuberror.EMULATION, (1, 0, 0), 1, b"\x0f\x77")
    scene = make_scene(memory, Crashed(exit), code=b"\x90")
    assert "KVM's bytes: 0f 77  emms" in report(scene)


def test_another_internal_error_is_named(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(InternalError(InternalErrorSuberror.DELIVERY_EV)))
    assert "KVM_INTERNAL_ERROR_DELIVERY_EV" in what_happened(scene)
    assert "not one this version knows" in what_happened(make_scene(memory, Crashed(InternalError(77))))


def test_a_refused_entry_says_what_is_wrong_with_the_state(memory: GuestMemory) -> None:
    scene = make_scene(memory, Crashed(FailEntry(0x80000021, 0)))
    scene.sregs.cs.db = 1  # together with L
    assert "0x80000021" in what_happened(scene)
    assert "CS" in likely_cause(scene)


@pytest.mark.parametrize("stop", [TimedOut(2), Interrupted()])
def test_a_loop_is_recognised(memory: GuestMemory, stop: Stop) -> None:
    assert "jumps to itself" in likely_cause(make_scene(memory, stop, code=b"\xeb\xfe"))


def test_running_through_zeros_is_recognised(memory: GuestMemory) -> None:
    assert "all zeros" in likely_cause(make_scene(memory, TimedOut(2), code=bytes(32)))


def test_polling_is_recognised(memory: GuestMemory) -> None:
    scene = make_scene(memory, TimedOut(2), code=b"\x90" * 16, last_exits=(IoIn(0x3FD, 1),) * 8)
    assert "polls a device" in likely_cause(scene)


def test_without_a_good_guess_there_is_no_cause(memory: GuestMemory) -> None:
    scene = make_scene(memory, TimedOut(2), code=b"\x90" * 16)
    assert likely_cause(scene) == ""
    assert "likely cause" not in report(scene)


def test_a_report_has_its_sections_in_order(memory: GuestMemory) -> None:
    exits = (IoOut(0x3F8, 1, 1, b"g"), Shutdown())
    text = report(make_scene(memory, Crashed(Shutdown()), last_exits=exits))
    assert text.startswith("the guest crashed: KVM_EXIT_SHUTDOWN after 3 exits, 0.7 ms\n")
    labels = ["what happened", "likely cause", "where", "mode", "registers", "page walk", "last exits", "see"]
    positions = [text.index(f"\n  {label} ") for label in labels]
    assert positions == sorted(positions)
    assert "0x100000  0f 0b  ud2" in text
    assert "io out 0x3f8 'g' | shutdown (triple fault)" in text


@pytest.mark.parametrize(
    ("mode", "words"),
    [(Mode.REAL, "real mode, 16-bit"), (Mode.PROTECTED, "protected mode, 32-bit"), (Mode.LONG, "long mode, 64-bit")],
)
def test_a_report_disassembles_for_the_mode(memory: GuestMemory, mode: Mode, words: str) -> None:
    text = report(make_scene(memory, TimedOut(1), code=b"\xb8\x01\x02\x03\x04", mode=mode))
    assert words in text
    assert ("$0x201," if mode is Mode.REAL else "$0x4030201,") in text


@pytest.mark.parametrize("stop", [Halted(), Stopped(), DebugExitWritten(3)])
def test_every_stop_can_be_reported(memory: GuestMemory, stop: Stop) -> None:
    assert str(stop) in report(make_scene(memory, stop))


@pytest.mark.parametrize(
    ("exit", "words"),
    [
        (IoOut(0x3F8, 1, 1, b"H"), "io out 0x3f8 'H'"),
        (IoOut(0x10, 2, 2, b"\x01\x02\x03\x04"), "io out 0x10 2x2 0x4030201"),
        (IoOut(0xE9, 1, 20, b"x" * 20), "io out 0xe9 20x1 'xxxxxxxxxxxxxxxx'..."),
        (IoOut(0xE9, 1, 9, bytes(9)), "io out 0xe9 9x1 00 00 00 00 00 00 00 00 00"),
        (IoIn(0x60, 1), "io in 0x60"),
        (MmioRead(Gpa(0xD0000000), 8), "mmio read 0xd0000000 8 bytes"),
        (MmioWrite(Gpa(0xD0000000), b"\xff"), "mmio write 0xd0000000 0xff"),
        (Shutdown(), "shutdown (triple fault)"),
        (InternalError(1, (1, 0, 0), 1, b"\x0f\x77"), "internal error 1 (emulation of 0f 77 ...)"),
        (InternalError(3), "internal error 3"),
        (FailEntry(0x80000021, 0), "fail entry 0x80000021"),
        (Hlt(), "hlt"),
        (Unknown(99), "unknown"),
    ],
)
def test_an_exit_is_described_in_a_few_words(exit: Exit, words: str) -> None:
    assert describe_exit(exit) == words


@pytest.mark.parametrize(("seconds", "text"), [(0.00071, "0.71 ms"), (0.25, "250 ms"), (2, "2 s"), (12.34, "12.3 s")])
def test_durations_have_the_unit_that_fits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_guest_state_breaks_the_report(data: st.DataObject) -> None:
    number = st.integers(0, (1 << 64) - 1)
    with GuestMemory("1M") as memory:
        memory.write(0x8000, data.draw(st.binary(min_size=64, max_size=4096)))
        scene = make_scene(memory, Crashed(Shutdown()), mode=Mode.REAL)
        for name in ("rip", "rsp", "rflags", "rax"):
            setattr(scene.regs, name, data.draw(number))
        for name in ("cr0", "cr3", "cr4", "efer"):
            setattr(scene.sregs, name, data.draw(st.one_of(number, st.integers(0, 0xFFFFF))))
        scene.sregs.cs.base = data.draw(number)
        scene.sregs.cs.l, scene.sregs.cs.db = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))
        assert "registers" in report(scene)
