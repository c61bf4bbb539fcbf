"""Everything there is to see after a run: what a report is made of. Leaves out what it means: see ``diagnosis``."""

from __future__ import annotations

from dataclasses import dataclass

from pykvm.boot import Image
from pykvm.kvm import Exit, Regs, Shutdown, Sregs, VcpuEvents
from pykvm.machine.controllers import Controller
from pykvm.machine.result import CpuResult
from pykvm.machine.stop import Crashed, Stop
from pykvm.memory import GuestMemory
from pykvm.units import Gpa
from pykvm.x86 import Cr0, Instruction, Paging, Walk, cpu_mode, instruction_at, linear_rip, walk
from pykvm.x86.faults import Moment, code_at_rip

__all__ = ["Scene"]


@dataclass(frozen=True, slots=True)
class Scene:
    """A guest's last state. Registers, exits and ``events`` are those of ``cpu``; ``controllers`` are all there are."""

    stop: Stop
    regs: Regs
    sregs: Sregs
    memory: GuestMemory
    last_exits: tuple[Exit, ...]
    exits: int
    duration: float
    image: Image | None
    cpu: int = 0
    cpus: tuple[CpuResult, ...] = ()
    events: VcpuEvents | None = None
    controllers: tuple[Controller, ...] = ()

    @property
    def moment(self) -> Moment:
        """Return what the rules of the CPU are applied to."""
        return Moment(self.regs, self.sregs, self.memory)

    @property
    def rip(self) -> int:
        """Return the linear address of the next instruction: CS.base + RIP."""
        return linear_rip(self.regs, self.sregs)

    @property
    def width(self) -> int:
        """Return the width of the code, in bits."""
        return cpu_mode(self.sregs, self.regs).width

    @property
    def is_shutdown(self) -> bool:
        """Return whether it was a triple fault that ended the run."""
        return isinstance(self.stop, Crashed) and isinstance(self.stop.exit, Shutdown)

    def page_walk(self) -> Walk | None:
        """Return the walk of RIP through the guest's page tables, or None while paging is off."""
        return walk(self.memory, Paging.of(self.sregs), self.rip) if self.sregs.cr0 & Cr0.PG.value else None

    def code_address(self) -> Gpa | None:
        """Return the guest-physical address of RIP, or None if it is not mapped."""
        found = self.page_walk()
        return Gpa(self.rip) if found is None else found.gpa

    def code(self) -> bytes:
        """Return up to 15 bytes at RIP, as many as there are."""
        return code_at_rip(self.moment)

    def instruction(self) -> Instruction | None:
        """Return the instruction at RIP, decoded for the CPU's mode, or None if no code is there."""
        return instruction_at(self.code(), self.rip, self.width)
