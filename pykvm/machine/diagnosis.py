"""What probably went wrong: a guest's last state, put into words.

The evidence is what a debugger would look at first: the exit, the instruction at RIP, the descriptor tables, the page
walk. Each rule is a function that returns a sentence, or None if it has nothing to say; the first sentence is the
likely cause. Leaves out the chain of exceptions behind a triple fault: see ``faultchain``.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.kvm import FailEntry, InternalError, InternalErrorSuberror, Shutdown
from pykvm.machine.faultchain import cause_of_shutdown, find_story, tell
from pykvm.machine.loops import find_loop
from pykvm.machine.scene import Scene
from pykvm.machine.stop import Crashed, Interrupted, TimedOut
from pykvm.units import Gpa
from pykvm.x86 import Cr0, Cr4, Efer, Rflags, check
from pykvm.x86.faults import first_fault

__all__ = ["Scene", "likely_cause", "remark", "what_happened"]


def what_happened(scene: Scene) -> str:
    """Return the stop in the words of the manuals."""
    match scene.stop:
        case Crashed(exit=Shutdown()):
            return tell(scene, find_story(scene))
        case Crashed(exit=InternalError(suberror=InternalErrorSuberror.EMULATION)) if not scene.code():
            return "KVM could not read an instruction at RIP, to emulate it"
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


def remark(scene: Scene) -> str:
    """Return a sentence on a guest that halted for ever though it had prepared for interrupts; else an empty string.

    It is for one that has never taken any: many a guest ends by HLT on purpose, when it has done what it is for.
    """
    if scene.regs.rflags & Rflags.IF.value:
        return ""
    awaited = [f"vector {min(one.open):#x} ({one.name})" for one in scene.controllers if one.open]
    if not awaited:
        return ""
    return (
        f"halted for good at {scene.rip:#x}: RFLAGS.IF is 0, so that {' and '.join(awaited)} cannot end the HLT; "
        "sti must come before it"
    )


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
                "and its emulator lacks this one: --assist finishes such instructions in user space; "
                "'pykvm doctor --probe' lists what this host lacks"
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
    if not scene.is_shutdown or instruction is None or not instruction.operands.endswith(", %cr0"):
        return None
    register = instruction.operands[1:4].replace("e", "r", 1)
    if not getattr(scene.regs, register, 0) & Cr0.PG.value or first_fault(scene.moment) is not None:
        return None
    advice = "map the code that switches, at the address where it runs"
    if not scene.sregs.efer & Efer.LME.value:
        advice += "; or this host's KVM cannot run 32-bit paging, of which 'pykvm doctor --probe' tells"
    return f"the guest was switching paging on, and the next instruction could not be fetched: {advice}"


def _triple_fault(scene: Scene) -> str | None:
    return cause_of_shutdown(scene) if scene.is_shutdown else None


def _legacy_paging(scene: Scene) -> str | None:
    paged = scene.sregs.cr0 & Cr0.PG.value and not scene.sregs.efer & Efer.LMA.value
    if scene.is_shutdown and paged:
        kind = "PAE" if scene.sregs.cr4 & Cr4.PAE.value else "32-bit"
        return f"{kind} paging is on, which some hosts' KVM cannot run; 'pykvm doctor --probe' says if this one can"
    return None


def _missing_eoi(scene: Scene) -> str | None:
    if not _goes_on(scene):
        return None
    for controller in scene.controllers:
        if controller.in_service and scene.regs.rflags & Rflags.IF.value:
            vectors = ", ".join(f"{vector:#x}" for vector in controller.in_service)
            return (
                f"an interrupt is still in service in the {controller.name} (vector {vectors}), though RFLAGS.IF is 1, "
                "so that its handler has likely returned: without an EOI none of the same or lower priority comes again"
            )
    return None


def _processors_not_started(scene: Scene) -> str | None:
    waiting = [cpu.id for cpu in scene.cpus if cpu.activity in ("waits for INIT", "waits for SIPI")]
    if not _goes_on(scene) or not waiting:
        return None
    what = {cpu.activity for cpu in scene.cpus if cpu.id in waiting}
    names = f"CPU {waiting[0]}" if len(waiting) == 1 else f"CPUs {', '.join(map(str, waiting))}"
    return (
        f"{names} never started ({', '.join(sorted(what))}): another CPU must send INIT, then SIPI, by its local APIC, "
        "which must be switched on for that"
    )


def _interrupts_off(scene: Scene) -> str | None:
    if not _goes_on(scene) or scene.regs.rflags & Rflags.IF.value:
        return None
    waiting = [f"{vector:#x}" for controller in scene.controllers for vector in controller.waiting]
    if not waiting:
        return None
    return f"interrupts wait (vector {', '.join(waiting)}), and RFLAGS.IF is 0: sti lets them in"


def _goes_on(scene: Scene) -> bool:
    return isinstance(scene.stop, TimedOut | Interrupted)


def _endless_loop(scene: Scene) -> str | None:
    loop = find_loop(scene) if _goes_on(scene) else None
    if loop is None:
        return None
    if len(loop.instructions) == 1:
        return "the instruction at RIP jumps to itself: an endless loop"
    first, last = loop.instructions[0].address, loop.instructions[-1].address
    ends = "which nothing ends" if loop.is_endless else "whose end did not come"
    return f"a loop of {len(loop.instructions)} instructions, {first:#x} to {last:#x}, {ends}"


def _running_through_zeros(scene: Scene) -> str | None:
    code = scene.code()
    if len(code) >= 8 and not any(code):
        return "RIP is in memory that is all zeros: the guest ran or jumped out of its code"
    return None


def _waiting_for_port(scene: Scene) -> str | None:
    if not _goes_on(scene) or len(scene.last_exits) < 8:
        return None
    if len(set(scene.last_exits)) <= 2:
        return "the last exits repeat: the guest polls a device that has nothing for it"
    return None


def _suberror_name(suberror: int) -> str:
    try:
        return f"KVM_INTERNAL_ERROR_{InternalErrorSuberror(suberror).name}"
    except ValueError:
        return "not one this version knows"


_RULES: tuple[Callable[[Scene], str | None], ...] = (
    _refused_state,
    _unknown_instruction,
    _paging_switched_on,
    _triple_fault,
    _legacy_paging,
    _where_rip_went,
    _missing_eoi,
    _processors_not_started,
    _running_through_zeros,
    _waiting_for_port,
    _interrupts_off,
    _endless_loop,
)
