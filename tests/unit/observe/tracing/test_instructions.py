"""Which instruction an exit is about, found in guest memory by a vCPU that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from pykvm import assemble
from pykvm.boot import Image
from pykvm.kvm import (
    Exit,
    Hlt,
    InternalError,
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Regs,
    Segment,
    Shutdown,
    Sregs,
    Whereabouts,
)
from pykvm.memory import GuestMemory, layout
from pykvm.observe.tracing.instructions import MOST_KEPT, InstructionFinder
from pykvm.units import Gpa, Gva
from pykvm.x86 import Cr0
from pykvm.x86.modes import long_mode

BASE = 0x8000
UART = Gpa(0xD0000000)


@dataclass
class StandingVcpu:
    """A vCPU with the registers that a test gives it; counts how often it was asked for all of them."""

    regs: Regs = field(default_factory=Regs)
    sregs: Sregs = field(default_factory=Sregs)
    searches: int = 0

    def whereabouts(self) -> Whereabouts:
        s = self.sregs
        return Whereabouts(self.regs.rip, s.cs.base, s.cs.l, s.cs.db, s.ss.dpl, s.cr0, s.cr3, s.cr4, s.efer)

    def get_regs(self) -> Regs:
        self.searches += 1
        return self.regs

    def get_sregs(self) -> Sregs:
        return self.sregs


@dataclass
class Scene:
    """Memory with code at BASE, and a vCPU somewhere in it."""

    memory: GuestMemory
    vcpu: StandingVcpu
    image: Image | None = None

    def __post_init__(self) -> None:
        self.finder = InstructionFinder([self.vcpu], self.memory)

    def load(self, source: str) -> list[int]:
        """Put code into memory and return where its numbered symbols are: a0, a1 ..."""
        self.image = assemble(source, mode="protected", load=BASE)
        self.image.load(self.memory)
        return [
            symbol.address for symbol in sorted(self.image.symbols, key=lambda s: s.address) if symbol.name[0] == "a"
        ]

    def find(self, exit: Exit, rip: int, **registers: int) -> str | None:
        """Return the instruction of ``exit`` with RIP at ``rip``: its address and text."""
        self.vcpu.regs = replace(self.vcpu.regs, rip=rip, **registers)
        place = self.finder.find(0, exit, self.image)
        return None if place is None else f"{place.address:#x} {place.text}"


@pytest.fixture
def scene() -> Iterator[Scene]:
    with GuestMemory("1M") as memory:
        flat = Segment(base=0, limit=0xFFFFFFFF, db=1, s=1, type=0b1011, present=1)
        sregs = Sregs(cs=flat, ds=flat, es=flat, ss=flat, cr0=Cr0.PE.value)
        yield Scene(memory, StandingVcpu(sregs=sregs))


def test_an_out_is_found_before_rip_and_at_it(scene: Scene) -> None:
    out, after = scene.load("a0: out %al, $0x80\n a1: nop; nop")
    assert scene.find(IoOut(0x80), after) == f"{out:#x} outb %al, $0x80"
    assert scene.find(IoOut(0x80), out) == f"{out:#x} outb %al, $0x80"


def test_nothing_is_guessed_where_nothing_fits(scene: Scene) -> None:
    _, after = scene.load("a0: out %al, $0x80\n a1: nop")
    assert scene.find(IoOut(0x81), after) is None
    assert scene.find(Hlt(), after) is None


def test_of_two_that_fit_the_habit_of_the_host_decides(scene: Scene) -> None:
    first, second, _, other = scene.load("a0: out %al, $0x80\n a1: out %al, $0x80\n a2: nop; out %al, $0x80\n a3: nop")
    assert scene.find(IoOut(0x80), second) is None  # nobody knows yet
    assert scene.find(IoOut(0x80), other) is not None  # past it
    assert scene.find(IoOut(0x80), second) == f"{first:#x} outb %al, $0x80"


def test_the_habit_may_be_the_other_one(scene: Scene) -> None:
    _, second, third = scene.load("a0: out %al, $0x80\n a1: out %al, $0x80\n nop\n a2: out %al, $0x80; nop")
    assert scene.find(IoOut(0x80), third) is not None  # on it
    assert scene.find(IoOut(0x80), second) == f"{second:#x} outb %al, $0x80"


def test_a_habit_is_one_of_a_ring(scene: Scene) -> None:
    _, second, third = scene.load("a0: out %al, $0x80\n a1: out %al, $0x80\n nop\n a2: out %al, $0x80; nop")
    assert scene.find(IoOut(0x80), third) is not None
    scene.vcpu.sregs.ss.dpl = 3
    assert scene.find(IoOut(0x80), second) is None


def test_a_repeated_string_instruction_is_never_past_and_teaches_nothing(scene: Scene) -> None:
    rep, first, second = scene.load("a0: rep outsb\n nop\n a1: out %al, $0x80\n a2: out %al, $0x80; nop")
    assert scene.find(IoOut(0x3F8), rep) == f"{rep:#x} rep outsb (%esi), %dx"
    assert scene.find(IoOut(0x80), second) is None
    assert first < second


def test_an_in_is_at_rip_though_another_stands_before(scene: Scene) -> None:
    _, second = scene.load("a0: in $0x60, %al\n a1: in $0x60, %al; nop")
    assert scene.find(IoIn(0x60), second) == f"{second:#x} inb $0x60, %al"


def test_the_end_of_an_out_is_not_taken_for_another(scene: Scene) -> None:
    (_, after) = scene.load("a0: out %al, $0xee\n a1: nop")  # e6 ee, and ee alone is OUT to DX
    assert scene.find(IoOut(0xEE), after) is None


def test_a_read_of_memory_is_at_rip(scene: Scene) -> None:
    (read,) = scene.load("a0: mov (%ebx), %al; nop")
    assert scene.find(MmioRead(UART, 1), read, rbx=UART) == f"{read:#x} movb (%ebx), %al"


@pytest.mark.parametrize(
    ("source", "registers", "data", "text"),
    [
        ("mov %al, (%ebx)", {"rbx": UART, "rax": 0x41}, b"A", "movb %al, (%ebx)"),
        ("mov %cx, 4(%ebx)", {"rbx": UART - 4, "rcx": 0x1234}, b"\x34\x12", "movw %cx, 4(%ebx)"),
        ("movl $0x12345678, (%ebx,%esi,4)", {"rbx": UART - 8, "rsi": 2}, b"\x78\x56\x34\x12", None),
        ("orb $1, (%ebx)", {"rbx": UART}, b"\xff", "orb $1, (%ebx)"),
        ("stosb", {"rdi": UART + 1, "rax": 0x41}, b"A", "stosb %al, %es:(%edi)"),
    ],
)
def test_a_write_is_found_before_rip_by_where_and_what(
    scene: Scene, source: str, registers: dict[str, int], data: bytes, text: str | None
) -> None:
    start, after = scene.load(f"a0: {source}\n a1: nop")
    found = scene.find(MmioWrite(UART, data), after, **registers)
    assert found is not None
    assert found.startswith(f"{start:#x} ")
    assert text is None or found.split(" ", 1)[1].replace("%es:", "") == text.replace("%es:", "")


def test_a_write_that_the_instruction_before_cannot_have_made_is_nobodys(scene: Scene) -> None:
    _, after = scene.load("a0: mov %al, (%ebx)\n a1: nop")
    assert scene.find(MmioWrite(UART, b"A"), after, rbx=UART + 8, rax=0x41) is None  # elsewhere
    assert scene.find(MmioWrite(UART, b"B"), after, rbx=UART, rax=0x41) is None  # something else
    assert scene.find(MmioWrite(UART, b"AB"), after, rbx=UART, rax=0x41) is None  # more


def test_a_repeated_store_is_at_rip(scene: Scene) -> None:
    (start,) = scene.load("a0: rep stosl; nop")
    found = scene.find(MmioWrite(UART, bytes(4)), start, rdi=UART)
    assert found is not None
    assert found.startswith(f"{start:#x} rep stosl")


def test_source_lines_stand_beside_the_instruction(scene: Scene) -> None:
    out, after = scene.load("a0: out %al, $0x80\n a1: nop")
    scene.find(IoOut(0x80), after)
    place = scene.finder.find(0, IoOut(0x80), scene.image)
    assert place is not None
    assert (place.address, place.source.rpartition(":")[2]) == (out, "1")


def test_an_exit_without_an_instruction_of_its_own_has_none(scene: Scene) -> None:
    (start,) = scene.load("a0: hlt")
    assert scene.find(Shutdown(), start) is None
    assert scene.find(InternalError(1), start) is None


def test_an_instruction_that_kvm_does_not_know_is_at_rip(scene: Scene) -> None:
    (start,) = scene.load("a0: emms; hlt")
    assert scene.find(InternalError(1, (), 1, b"\x0f\x77\xf4"), start) == f"{start:#x} emms"
    assert scene.find(InternalError(1, (), 1, b"\x0f\x78\xf4"), start) is None  # KVM saw something else


def test_it_is_found_again_without_reading_all_registers(scene: Scene) -> None:
    _, after = scene.load("a0: out %al, $0x80\n a1: nop")
    scene.find(IoOut(0x80), after)
    searches = scene.vcpu.searches
    assert scene.find(IoOut(0x80), after, rax=7) is not None
    assert scene.vcpu.searches == searches


def test_code_that_has_changed_is_read_anew(scene: Scene) -> None:
    out, after = scene.load("a0: out %al, $0x80\n a1: nop")
    assert scene.find(IoOut(0x80), after) is not None
    scene.memory.write(out, b"\x90\xee")  # nop; out %al, (%dx)
    assert scene.find(IoOut(0x80), after) == f"{out + 1:#x} outb %al, %dx"


def test_code_that_is_nowhere_gives_none(scene: Scene) -> None:
    assert scene.find(IoOut(0x80), 0x80000000) is None
    assert scene.find(MmioRead(UART, 1), 0xFFFFFFFF) is None
    assert scene.find(MmioWrite(UART, b"A"), 0) is None


def test_code_across_a_page_is_read_whole(scene: Scene) -> None:
    scene.memory.write(0x8FFF, b"\xe6\x80\x90")
    assert scene.find(IoOut(0x80), 0x9001) == "0x8fff outb %al, $0x80"
    assert scene.find(IoOut(0x80), 0x8FFF) == "0x8fff outb %al, $0x80"


def test_what_is_kept_is_bounded_whatever_the_guest_does(scene: Scene) -> None:
    for port in range(MOST_KEPT + 10):
        scene.find(IoOut(port), BASE)
    assert len(scene.finder._kept) <= MOST_KEPT


def test_page_tables_that_have_changed_are_walked_anew() -> None:
    code = b"\xe6\x80\xf4"
    with GuestMemory("8M") as memory:
        state = long_mode(Sregs(), memory, layout.LOAD, page_size=4096)
        vcpu = StandingVcpu(state.regs, state.sregs)
        finder = InstructionFinder([vcpu], memory)
        memory.write(layout.LOAD, code)
        vcpu.regs = replace(vcpu.regs, rip=layout.LOAD + 2)
        place = finder.find(0, IoOut(0x80), None)
        assert place is not None
        assert place.address == Gva(layout.LOAD)
        root = state.sregs.cr3 & ~0xFFF
        entry = memory.read(root, 8)
        memory.write(root, bytes(8))  # nothing is mapped any more
        assert finder.find(0, IoOut(0x80), None) is None
        memory.write(root, entry)
        assert finder.find(0, IoOut(0x80), None) is not None
