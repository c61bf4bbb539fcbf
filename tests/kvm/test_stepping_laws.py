"""Laws of stepping, on random integer code: it is the disassembly, it changes nothing, and it can be undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm import Machine
from pykvm.kvm import Regs
from pykvm.machine import Snapshot
from pykvm.observe.stepping import Step, Stepper
from pykvm.testing.strategies import SCRATCH, SCRATCH_SIZE, instructions, register_states
from pykvm.units import Gpa, MiB
from pykvm.x86 import Mode, disassemble, set_up

CODE, RSP, RBX = 0x8000, 0x7C00, SCRATCH + SCRATCH_SIZE // 2
WIDTHS = {Mode.REAL: 16, Mode.PROTECTED: 32, Mode.LONG: 64}
SETUPS = [(Mode.REAL, 0), (Mode.PROTECTED, 0), (Mode.PROTECTED, 3), (Mode.LONG, 0), (Mode.LONG, 3)]
PROGRAMS = 25
# KVM's emulator does not know them (ring 0), and PUSHF says something of the host's flags in ring 3 of some.
WITHOUT = {"daa", "das", "aaa", "aas", "aam", "aad", "pushf"}
# Ring 3 may not HLT: UD2 without an IDT ends it as well.
ENDINGS = {(0, False): b"\xf4", (0, True): b"\xf4", (3, False): b"\x0f\x0b", (3, True): b"\x0f\x0b"}
JUMPS = ("j", "loop", "call", "rep")


@dataclass(frozen=True)
class Place:
    """A machine whose programs begin at CODE."""

    machine: Machine
    mode: Mode
    ring: int
    empty: Snapshot

    def put(self, code: bytes, regs: Regs) -> None:
        self.machine.restore(self.empty)
        self.machine.memory.write(Gpa(CODE), code)
        self.machine.vcpu.set_regs(regs)

    def state(self) -> tuple[object, ...]:
        snapshot = self.machine.snapshot()
        pieces = [{name: data for name, data in vcpu.pieces.items() if name != "msrs"} for vcpu in snapshot.vcpus]
        return pieces, snapshot.memory, snapshot.devices, snapshot.situation


@pytest.fixture(params=SETUPS, ids=lambda setup: f"{setup[0].value}-ring{setup[1]}")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    mode, ring = request.param
    with closing(Machine(1 * MiB)) as machine:
        machine.set_state(set_up(mode, machine.vcpu.get_sregs(), machine.memory, CODE, ring=ring))
        yield Place(machine, mode, ring, machine.snapshot())


def program_of(data: st.DataObject, place: Place) -> tuple[bytes, Regs]:
    program = data.draw(instructions(place.mode, min_size=1, without=WITHOUT), label="program")
    regs = data.draw(register_states(place.mode, rip=CODE, rsp=RSP, rbx=RBX), label="registers")
    return program.code, regs


def step_to(stepper: Stepper, end: int, most: int = 300) -> list[Step]:
    done: list[Step] = []
    while stepper.address() != end and len(done) < most:
        done.append(stepper.step())
    return done


def bare(step: Step) -> tuple[object, ...]:
    return step.number, step.address, step.instruction, step.after, step.changes, step.exits, step.events, step.stop


law = settings(max_examples=PROGRAMS, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@law
@given(data=st.data())
def test_the_addresses_of_straight_code_are_its_disassembly(place: Place, data: st.DataObject) -> None:
    code, regs = program_of(data, place)
    listing = disassemble(code, CODE, WIDTHS[place.mode])
    place.put(code + b"\x90" * 16, regs)
    with Stepper(place.machine) as stepper:
        done = step_to(stepper, CODE + len(code))
    if not any(instruction.mnemonic.startswith(JUMPS) for instruction in listing):
        assert [step.address for step in done] == [instruction.address for instruction in listing]
    known = {instruction.address: instruction for instruction in listing}
    assert all(step.instruction == known[step.address] for step in done)


@law
@given(data=st.data())
def test_steps_and_as_many_back_are_nothing(place: Place, data: st.DataObject) -> None:
    code, regs = program_of(data, place)
    place.put(code + b"\x90" * 16, regs)
    with Stepper(place.machine) as stepper:
        before = place.state()
        first = step_to(stepper, CODE + len(code))
        undone = [stepper.back() for _ in first]
        after = place.state()
        again = step_to(stepper, CODE + len(code))
    assert undone == first[::-1]
    assert after == before
    assert [bare(step) for step in again] == [bare(step) for step in first]


@law
@given(data=st.data())
def test_stepping_ends_where_running_does(place: Place, data: st.DataObject) -> None:
    code, regs = program_of(data, place)
    place.put(code + ENDINGS[place.ring, place.mode is Mode.LONG], regs)
    place.machine.run(timeout=20)
    expected = place.machine.registers, place.machine.memory.read(Gpa(0), 0x1_0000)
    place.put(code + ENDINGS[place.ring, place.mode is Mode.LONG], regs)
    with Stepper(place.machine) as stepper:
        stepper.continue_(limit=500)
        assert (stepper.registers()[0], place.machine.memory.read(Gpa(0), 0x1_0000)) == expected
