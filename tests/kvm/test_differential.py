"""The same programs on KVM and on Unicorn: random integer code ends in the same registers, flags and memory.

Every program runs from four states, in each of five set-ups. These hosts interpret ring 0 in KVM's emulator and run
ring 3 of long mode on the CPU itself, so that both are compared. Hypothesis shrinks what differs to an instruction or
two. What is known to differ is in DIVERGENCES, and is not generated.

    pytest tests/kvm/test_differential.py --examples-factor 50

runs fifty times as many programs, and others at every run, where CI runs the same ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unicorn import unicorn_const, x86_const
from unicorn.unicorn_py3.unicorn import Uc

from pykvm import Machine, assemble
from pykvm.kvm import Exit, Hlt, MmioWrite, Regs
from pykvm.testing.strategies import SCRATCH, SCRATCH_SIZE, instructions, register_states
from pykvm.units import Gpa, MiB
from pykvm.x86 import Mode, Rflags, describe, set_up

CODE = 0x8000
STACK = 0x7000  # the page that RSP is in, and the one before CODE
STACK_SIZE = 0x1000
ARITHMETIC_FLAGS = Rflags.CF | Rflags.PF | Rflags.AF | Rflags.ZF | Rflags.SF | Rflags.OF
RSP, RBX = 0x7C00, SCRATCH + SCRATCH_SIZE // 2
RAM = 1 * MiB
HOLE = 0xA0_0000  # above RAM

PATTERN = bytes(value * value >> 3 & 0xFF for value in range(SCRATCH_SIZE))
PROGRAMS = 400  # in each set-up, from STATES states each
STATES = 4

SETUPS = [(Mode.REAL, 0), (Mode.PROTECTED, 0), (Mode.PROTECTED, 3), (Mode.LONG, 0), (Mode.LONG, 3)]
NOT_LONG = [(mode, ring) for mode, ring in SETUPS if mode is not Mode.LONG]
ONLY_LONG = [(mode, ring) for mode, ring in SETUPS if mode is Mode.LONG]


@dataclass(frozen=True)
class Divergence:
    """Kinds of instructions that end differently in some set-ups, by whose fault, and with what they were seen."""

    forms: tuple[str, ...]
    setups: Sequence[tuple[Mode, int]]
    wrong: str
    reason: str
    seen: str


DIVERGENCES = [
    Divergence(
        ("lock neg",), SETUPS, "Unicorn",
        "SF and PF are those of the operand before it is negated",
        "Unicorn 2.1.4",
    ),
    Divergence(
        ("cmpxchg8b",), SETUPS, "Unicorn",
        "it changes CF, PF, AF, SF and OF if they come from an arithmetic instruction before it; only ZF may change",
        "Unicorn 2.1.4",
    ),
    Divergence(
        ("loope", "loopne"), SETUPS, "Unicorn",
        "when RCX becomes 0, CF and OF of a shift before it change; LOOPcc changes no flag",
        "Unicorn 2.1.4",
    ),
    Divergence(
        ("cmpxchg r32",), ONLY_LONG, "nobody",
        "when the operands differ, CPUs leave the upper half of the destination alone, and the SDM does not say so; "
        "Unicorn, and KVM's emulator, clear it",
        "AMD EPYC, Unicorn 2.1.4, Linux 6.18",
    ),
    Divergence(
        ("daa", "aaa", "aas"), NOT_LONG, "KVM's emulator",
        "it does not know them: KVM_EXIT_INTERNAL_ERROR, in ring 3 #UD",
        "Linux 6.18",
    ),
    Divergence(
        ("aam", "aad"), NOT_LONG, "KVM's emulator",
        "SF and ZF are those of AX; they should be those of AL",
        "Linux 6.18",
    ),
    Divergence(
        ("pushf",), [(Mode.LONG, 3)], "KVM on hosts that are guests themselves",
        "it pushes IF = 1, the host's, where the guest's is 0",
        "Linux 6.18",
    ),
]  # fmt: skip


def excluded(mode: Mode, ring: int) -> set[str]:
    return {form for known in DIVERGENCES if (mode, ring) in known.setups for form in known.forms}


# ---- the two processors ----


class OnKvm:
    """A machine in ``mode`` and ``ring``, which goes back to where a program starts before each run of it."""

    def __init__(self, mode: Mode, ring: int) -> None:
        self._machine = Machine(RAM)
        self._machine.set_state(set_up(mode, self._machine.vcpu.get_sregs(), self._machine.memory, CODE, ring=ring))
        for address, size in MEMORY.values():
            self._machine.memory.write(Gpa(address), PATTERN[:size])
        self._empty = self._start = self._machine.snapshot()
        # How a program ends: ring 3 may not HLT, but writes to where there is no RAM.
        width = {Mode.REAL: 2, Mode.PROTECTED: 4, Mode.LONG: 8}[mode]
        store = b"\x88\x05" if width == 4 else b"\x88\x04\x25"  # mov %al, HOLE
        self.ending = b"\xf4" if ring == 0 else store + HOLE.to_bytes(4, "little")

    def load(self, code: bytes) -> None:
        self._machine.restore(self._empty)
        self._machine.memory.write(Gpa(CODE), code)
        self._start = self._machine.snapshot()

    def read(self, address: int, size: int) -> bytes:
        return self._machine.memory.read(Gpa(address), size)

    def run(self, regs: Regs) -> tuple[Exit, Regs]:
        vcpu = self._machine.vcpu
        self._machine.restore(self._start)
        vcpu.set_regs(regs)
        exit = vcpu.run()
        vcpu.complete_pending()
        return exit, vcpu.get_regs()

    def close(self) -> None:
        self._machine.close()


class OnUnicorn:
    """QEMU's translator, by way of Unicorn: ring 0 of ``mode``, with flat segments and RAM from 0."""

    def __init__(self, mode: Mode) -> None:
        modes = {
            Mode.REAL: unicorn_const.UC_MODE_16,
            Mode.PROTECTED: unicorn_const.UC_MODE_32,
            Mode.LONG: unicorn_const.UC_MODE_64,
        }
        self._uc = Uc(unicorn_const.UC_ARCH_X86, modes[mode])
        self._uc.mem_map(0, RAM)
        letter = "R" if mode is Mode.LONG else "E"
        unicorns = {name: name.upper().replace("R", letter, 1) for name in LEGACY} | {"rflags": "EFLAGS"}
        unicorns |= {name: name.upper() for name in ADDED if mode is Mode.LONG}
        self._ids = {name: getattr(x86_const, f"UC_X86_REG_{known}") for name, known in unicorns.items()}

    def load(self, code: bytes) -> None:
        self._uc.mem_write(CODE, code)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._uc.mem_read(address, size))

    def run(self, regs: Regs, end: int) -> Regs:
        self._uc.ctl_flush_tb()  # what it has translated of the program before
        for address, size in MEMORY.values():
            self._uc.mem_write(address, PATTERN[:size])
        self._uc.reg_write_batch([(id, getattr(regs, name)) for name, id in self._ids.items()])
        self._uc.emu_start(regs.rip, end)
        values = self._uc.reg_read_batch(tuple(self._ids.values()))
        return Regs(**dict(zip(self._ids, values, strict=True)))


LEGACY = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip")
ADDED = tuple(f"r{number}" for number in range(8, 16))
MEMORY = {"scratch memory": (SCRATCH, SCRATCH_SIZE), "the stack": (STACK, STACK_SIZE)}


class Pair:
    """Both processors."""

    def __init__(self, mode: Mode, ring: int) -> None:
        self.guest = OnKvm(mode, ring)
        self.oracle = OnUnicorn(mode)

    def load(self, code: bytes) -> None:
        for processor in (self.guest, self.oracle):
            processor.load(code + self.guest.ending)

    def differences(self, regs: Regs, end: int, undefined: Rflags) -> list[str]:
        """Run what is loaded on both, from ``regs``, and return in lines where they differ."""
        exit, got = self.guest.run(regs)
        if not isinstance(exit, Hlt | MmioWrite):
            return [f"KVM: {exit}"]
        expected = replace(self.oracle.run(regs, end), rip=got.rip)
        lines = list(differing_registers(regs, got, expected, undefined))
        for name, place in MEMORY.items():
            if self.guest.read(*place) != self.oracle.read(*place):
                lines.append(f"{name} differs")
        return lines


def differing_registers(before: Regs, got: Regs, expected: Regs, undefined: Rflags) -> Iterator[str]:
    for field in fields(Regs):
        values = [getattr(regs, field.name) for regs in (before, got, expected)]
        if field.name == "rflags":
            values = [value & ~undefined.value for value in values]
        if values[1] != values[2]:
            text = [
                f"{value:#x} {describe(Rflags, value)}" if field.name == "rflags" else f"{value:#x}" for value in values
            ]
            yield f"{field.name}: before {text[0]}, KVM {text[1]}, Unicorn {text[2]}"


def states(regs: Regs, mode: Mode) -> Iterator[Regs]:
    """Yield ``regs``, and states that follow from it: its values in other registers, and turned over."""
    names = [name for name in (*LEGACY[:7], *(ADDED if mode is Mode.LONG else ())) if name != "rbx"]
    ones = (1 << (64 if mode is Mode.LONG else 32)) - 1
    values = [getattr(regs, name) for name in names]
    for turn in range(STATES):
        yield replace(regs, **dict(zip(names, values[turn:] + values[:turn], strict=True)))
        values = [value ^ ones for value in values]


# ---- the tests ----


@pytest.fixture(params=SETUPS, ids=lambda setup: f"{setup[0].value}-ring{setup[1]}")
def setup(request: pytest.FixtureRequest) -> tuple[Mode, int]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def pair(setup: tuple[Mode, int]) -> Iterator[Pair]:
    pair = Pair(*setup)
    yield pair
    pair.guest.close()


@settings(max_examples=PROGRAMS, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_integer_code_does_the_same_on_kvm_and_on_unicorn(
    setup: tuple[Mode, int], pair: Pair, data: st.DataObject
) -> None:
    mode, ring = setup
    program = data.draw(instructions(mode, min_size=1, without=excluded(mode, ring)), label="program")
    regs = data.draw(register_states(mode, rip=CODE, rsp=RSP, rbx=RBX), label="registers")
    pair.load(program.code)
    for start in states(regs, mode):
        lines = pair.differences(start, CODE + len(program.code), program.undefined)
        assert not lines, "\n".join(["", program.text, *lines, f"from {start}"])


# What Unicorn gets wrong, and the SDM has for it.
@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("movb $0x87, (%ebx); lock negb (%ebx)", Rflags.CF | Rflags.AF),  # 0x79: positive, five ones
        ("mov $0xffffffff, %eax; add $2, %eax; cmpxchg8b (%ebx)", Rflags.CF | Rflags.AF),  # of the sum, 1
        ("mov $0x80000000, %eax; mov $1, %ecx; shr $1, %eax; loope 1f; nop; 1:", Rflags.OF | Rflags.PF),
        ("mov $0xc0000000, %eax; mov $1, %ecx; shl $1, %eax; loopne 1f; nop; 1:", Rflags.CF | Rflags.SF | Rflags.PF),
    ],
)
def test_what_unicorn_cannot_tell_is_on_kvm_as_the_manual_has_it(source: str, flags: Rflags) -> None:
    (segment,) = assemble(f"{source}; hlt", mode=Mode.PROTECTED, load=CODE).segments
    with contextlib.closing(OnKvm(Mode.PROTECTED, 0)) as guest:
        guest.load(segment.data)
        exit, regs = guest.run(Regs(rip=CODE, rsp=RSP, rbx=RBX))
    undefined = Rflags.AF if "sh" in source else Rflags(0)
    assert (exit, Rflags(regs.rflags) & (ARITHMETIC_FLAGS & ~undefined)) == (Hlt(), flags & ~undefined)
