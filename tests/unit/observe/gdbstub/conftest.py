"""A guest that is none, for conversations with gdb: registers, 64 KiB of memory, and a list of what was asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pykvm.errors import ConfigurationError, GuestMemoryError
from pykvm.kvm import Regs, Segment, Sregs
from pykvm.observe.gdbstub import HostFile, Outcome, Session, Standing, Why
from pykvm.observe.gdbstub.registers import CpuRegisters
from pykvm.observe.stepping import Watchpoint

MEMORY_SIZE = 0x1_0000
XSAVE = bytes(24) + b"\x80\x1f" + bytes(4096 - 26)


@dataclass
class FakeGuest:
    """A ``Debuggee``: ``outcomes`` are what going on comes to, one after the other."""

    cpus: int = 2
    outcomes: list[Outcome] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    memory: bytearray = field(default_factory=lambda: bytearray(MEMORY_SIZE))
    breakpoints: frozenset[int] = frozenset()
    watchpoints: frozenset[Watchpoint] = frozenset()
    files: dict[int, CpuRegisters] = field(default_factory=dict)
    interrupts: int = 0

    def registers(self, cpu: int) -> CpuRegisters:
        return self.files.get(cpu) or real_mode(rax=cpu)

    def set_registers(self, cpu: int, registers: CpuRegisters) -> None:
        if registers.sregs.cr0 == 0xBAD:
            raise ConfigurationError("KVM refuses CR0")
        self.files[cpu] = registers

    def activity(self, cpu: int) -> str:
        return "halted" if cpu else "running"

    def read(self, cpu: int, address: int, size: int) -> bytes:
        data = bytes(self.memory[address : address + size])
        if not data:
            raise GuestMemoryError("nothing there", address)
        return data

    def write(self, cpu: int, address: int, data: bytes) -> None:
        if address + len(data) > MEMORY_SIZE:
            raise GuestMemoryError("nothing there", address)
        self.memory[address : address + len(data)] = data

    def set_breakpoints(self, breakpoints: frozenset[int], watchpoints: frozenset[Watchpoint]) -> None:
        self.breakpoints, self.watchpoints = breakpoints, watchpoints

    def step(self, cpu: int) -> Outcome:
        return self._do(f"step {cpu}", cpu)

    def go(self) -> Outcome:
        return self._do("go")

    def step_back(self) -> Outcome:
        return self._do("step back")

    def go_back(self) -> Outcome:
        return self._do("go back")

    def interrupt(self) -> None:
        self.interrupts += 1

    def forget_interrupt(self) -> None:
        self.interrupts = 0

    def _do(self, what: str, cpu: int = 0) -> Outcome:
        self.asked.append(what)
        return self.outcomes.pop(0) if self.outcomes else Standing(Why.STEP, cpu)


def real_mode(base: int = 0, **registers: int) -> CpuRegisters:
    code = Segment(base=base, selector=base >> 4, limit=0xFFFF)
    return CpuRegisters(Regs(**registers), Sregs(cs=code, cr0=0x10), XSAVE)


def protected_mode(base: int = 0, **registers: int) -> CpuRegisters:
    code = Segment(base=base, selector=8, limit=0xFFFF_FFFF, db=1)
    return CpuRegisters(Regs(**registers), Sregs(cs=code, cr0=0x11), XSAVE)


def long_mode(**registers: int) -> CpuRegisters:
    code = Segment(selector=8, l=1)
    return CpuRegisters(Regs(**registers), Sregs(cs=code, cr0=0x8000_0011, efer=0x500), XSAVE)


def answer_monitor(cpu: int, command: str) -> str:
    if command == "fail":
        raise ConfigurationError("that cannot be")
    return "" if command == "quiet" else f"{cpu}: {command}"


@pytest.fixture
def fake() -> FakeGuest:
    return FakeGuest()


@pytest.fixture
def session(fake: FakeGuest) -> Session:
    return Session(fake, answer_monitor, HostFile("guest", b"\x7fELF" + bytes(range(256))))
