"""What probably went wrong: a guest's last state, put into words.

The evidence is what a debugger would look at first: the exit, the instruction at RIP, the descriptor tables, the page
walk. Each rule is a function that returns a sentence, or None if it has nothing to say; the first sentence is the
likely cause. See: Intel SDM volume 3, chapter 6 (exceptions). Leaves out the chain of faults behind a triple fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pykvm.boot import Image
from pykvm.errors import PykvmError
from pykvm.kvm import (
    Exit,
    FailEntry,
    InternalError,
    InternalErrorSuberror,
    Regs,
    Shutdown,
    Sregs,
)
from pykvm.machine.result import CpuResult
from pykvm.machine.stop import Crashed, Interrupted, Stop, TimedOut
from pykvm.memory import GuestMemory
from pykvm.units import Gpa
from pykvm.x86 import (
    Cr0,
    Cr4,
    Efer,
    Instruction,
    Paging,
    PagingMode,
    Walk,
    check,
    cpu_mode,
    instruction_at,
    linear_rip,
    walk,
)

__all__ = ["Scene", "likely_cause", "what_happened"]

LONGEST_INSTRUCTION = 15  # bytes (SDM volume 2, section 2.3.11)


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything there is to see after a run: what a report is made of. Registers and exits are those of ``cpu``."""

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

    @property
    def rip(self) -> int:
        """Return the linear address of the next instruction: CS.base + RIP."""
        return linear_rip(self.regs, self.sregs)

    def page_walk(self) -> Walk | None:
        """Return the walk of RIP through the guest's page tables, or None while paging is off."""
        return walk(self.memory, Paging.of(self.sregs), self.rip) if self.sregs.cr0 & Cr0.PG.value else None

    def code_address(self) -> Gpa | None:
        """Return the guest-physical address of RIP, or None if it is not mapped."""
        found = self.page_walk()
        return Gpa(self.rip) if found is None else found.gpa

    def code(self) -> bytes:
        """Return up to 15 bytes at RIP, as many as there are."""
        gpa = self.code_address()
        if gpa is None:
            return b""
        for size in range(LONGEST_INSTRUCTION, 0, -1):
            try:
                return self.memory.read(gpa, size)
            except PykvmError:
                continue
        return b""

    def instruction(self) -> Instruction | None:
        """Return the instruction at RIP, decoded for the CPU's mode, or None if no code is there."""
        return instruction_at(self.code(), self.rip, cpu_mode(self.sregs, self.regs).width)


def what_happened(scene: Scene) -> str:
    """Return the stop in the words of the manuals."""
    match scene.stop:
        case Crashed(exit=Shutdown()):
            return (
                "triple fault: an exception could not be delivered, nor the double fault after it, so the CPU shut down"
            )
        case Crashed(exit=InternalError(suberror=InternalErrorSuberror.EMULATION)):
            return "KVM had to emulate an instruction that its emulator does not know"
        case Crashed(exit=InternalError(suberror=suberror)):
            return f"KVM gave up with internal error {suberror} ({_suberror_name(suberror)})"
        case Crashed(exit=FailEntry(hardware_entry_failure_reason=reason)):
            return f"the processor refused to enter the guest (hardware reason {reason:#x})"
        case Crashed(exit=exit):
            return f"KVM returned {exit}, with which the run cannot go on"
        case TimedOut(limit=limit):
            return f"the guest was still running when its time limit of {limit:g} s was over"
        case Interrupted():
            return "the guest was running when Ctrl-C was pressed"
    return str(scene.stop)


def likely_cause(scene: Scene) -> str:
    """Return the likely cause in a sentence, or an empty string if there is no good guess."""
    for rule in _RULES:
        sentence = rule(scene)
        if sentence is not None:
            return sentence
    return ""


def _refused_state(scene: Scene) -> str | None:
    if not isinstance(scene.stop, Crashed) or not isinstance(scene.stop.exit, FailEntry):
        return None
    problems = check(scene.regs, scene.sregs)
    return "; ".join(map(str, problems)) or None


def _unknown_instruction(scene: Scene) -> str | None:
    match scene.stop:
        case Crashed(exit=InternalError(suberror=InternalErrorSuberror.EMULATION)):
            if scene.code_address() is None or scene.memory.find(scene.code_address() or Gpa(0)) is None:
                return _where_rip_went(scene)
            return (
                "KVM emulates instructions that touch device memory, and on some hosts all of ring 0, "
                "and its emulator lacks this one; 'pykvm doctor --probe' lists what this host lacks"
            )
    return None


def _where_rip_went(scene: Scene) -> str | None:
    found = scene.page_walk()
    if found is not None and found.gpa is None:
        return f"RIP points to an address that the page tables do not map: {found.reason}"
    gpa = scene.code_address()
    if gpa is not None and scene.memory.find(gpa) is None:
        regions = ", ".join(map(str, scene.memory.regions))
        return f"RIP points to guest-physical {gpa:#x}, where there is no memory (there is: {regions})"
    return None


def _paging_switched_on(scene: Scene) -> str | None:
    # The CPU has not got past MOV to CR0: it could not fetch the next instruction through the new page tables.
    instruction = scene.instruction()
    if not _is_shutdown(scene) or instruction is None or not instruction.operands.endswith(", %cr0"):
        return None
    register = instruction.operands[1:4].replace("e", "r", 1)
    if not getattr(scene.regs, register, 0) & Cr0.PG.value:
        return None
    advice = "map the code that switches, at the address where it runs"
    if not scene.sregs.efer & Efer.LME.value:
        advice += "; or this host's KVM cannot run 32-bit paging, of which 'pykvm doctor --probe' tells"
    return f"the guest was switching paging on, and the next instruction could not be fetched: {advice}"


def _page_fault(scene: Scene) -> str | None:
    paging = Paging.of(scene.sregs)
    if not _is_shutdown(scene) or scene.sregs.cr2 == 0 or paging.mode is PagingMode.NONE:
        return None
    fault = walk(scene.memory, paging, scene.sregs.cr2)
    if fault.gpa is not None:
        return None
    handler = "no IDT was loaded" if scene.sregs.idt.limit == 0 else "its handler could not run"
    return f"a page fault (#PF) at {scene.sregs.cr2:#x}, which CR2 holds: {fault.reason}; and {handler}"


def _no_idt(scene: Scene) -> str | None:
    if _is_shutdown(scene) and scene.sregs.idt.limit == 0 and scene.sregs.cr0 & Cr0.PE.value:
        return "no IDT was loaded (its limit is 0), so no exception can be handled: lidt before anything can fault"
    return None


def _legacy_paging(scene: Scene) -> str | None:
    paged = scene.sregs.cr0 & Cr0.PG.value and not scene.sregs.efer & Efer.LMA.value
    if _is_shutdown(scene) and paged:
        kind = "PAE" if scene.sregs.cr4 & Cr4.PAE.value else "32-bit"
        return f"{kind} paging is on, which some hosts' KVM cannot run; 'pykvm doctor --probe' says if this one can"
    return None


def _short_idt(scene: Scene) -> str | None:
    gate = 16 if scene.sregs.efer & Efer.LMA.value else 8
    needed = 9 * gate - 1  # vector 8, the double fault, is the last chance
    if _is_shutdown(scene) and scene.sregs.cr0 & Cr0.PE.value and scene.sregs.idt.limit < needed:
        return (
            f"the IDT's limit {scene.sregs.idt.limit:#x} ends before the double fault's gate, which needs {needed:#x}"
        )
    return None


def _endless_loop(scene: Scene) -> str | None:
    instruction = scene.instruction()
    if not isinstance(scene.stop, TimedOut | Interrupted) or instruction is None:
        return None
    if instruction.mnemonic.startswith("jmp") and instruction.operands == f"{scene.rip:#x}":
        return "the instruction at RIP jumps to itself: an endless loop"
    return None


def _running_through_zeros(scene: Scene) -> str | None:
    code = scene.code()
    if len(code) >= 8 and not any(code):
        return "RIP is in memory that is all zeros: the guest ran or jumped out of its code"
    return None


def _waiting_for_port(scene: Scene) -> str | None:
    if not isinstance(scene.stop, TimedOut | Interrupted) or len(scene.last_exits) < 8:
        return None
    if len(set(scene.last_exits)) <= 2:
        return "the last exits repeat: the guest polls a device that has nothing for it"
    return None


def _is_shutdown(scene: Scene) -> bool:
    return isinstance(scene.stop, Crashed) and isinstance(scene.stop.exit, Shutdown)


def _suberror_name(suberror: int) -> str:
    try:
        return f"KVM_INTERNAL_ERROR_{InternalErrorSuberror(suberror).name}"
    except ValueError:
        return "not one this version knows"


_RULES: tuple[Callable[[Scene], str | None], ...] = (
    _refused_state,
    _unknown_instruction,
    _where_rip_went,
    _page_fault,
    _paging_switched_on,
    _no_idt,
    _legacy_paging,
    _short_idt,
    _running_through_zeros,
    _endless_loop,
    _waiting_for_port,
)
