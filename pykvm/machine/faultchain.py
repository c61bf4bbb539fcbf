"""The story of a triple fault: the exception it began with, why no handler ran, and so on to the shutdown.

KVM tells nothing but that the CPU shut down. The rest is found in what the guest left: its registers, the instruction
at RIP, its tables. On most hosts the registers are those of the exception that came first; KVM on AMD-V hosts resets
them, after which nothing is left to be found. Leaves out the rules: see ``pykvm.x86.faults``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from pykvm.kvm import Regs, Sregs, VcpuEvents
from pykvm.machine.scene import Scene
from pykvm.memory import layout
from pykvm.x86 import EXCEPTIONS, Cr0, PageFaultCode, Paging, Rflags, describe_error_code, vector_name, walk
from pykvm.x86.faults import (
    Delivered,
    Fault,
    Link,
    Moment,
    TripleFault,
    Unclear,
    Undelivered,
    chain,
    deliver,
    first_fault,
    handler_fault,
)

__all__ = ["Story", "cause_of_shutdown", "find_story", "is_reset", "tell"]

UD, DF, PF = 6, 8, 14
STACK_REACH = 512  # bytes around RSP in which an address is the stack's


@dataclass(frozen=True, slots=True)
class Story:
    """How a triple fault came about: the first exception, what became of it, and how sure that is.

    ``basis`` says what the first exception was concluded from, if not from the instruction at RIP.
    """

    links: tuple[Link, ...]
    is_certain: bool
    basis: str = ""

    @property
    def first(self) -> Fault:
        """Return the exception that it began with."""
        return self.links[0].fault


def find_story(scene: Scene) -> Story | None:
    """Return what most likely came before the shutdown; None if there is no trace of it."""
    if is_reset(scene.regs, scene.sregs):
        return None
    moment = scene.moment
    noted = None if scene.events is None else _noted(scene.events)
    fault = first_fault(moment)
    if fault is not None and (fault.is_certain or noted is None or noted.vector == fault.vector):
        return Story(chain(moment, fault), fault.is_certain or noted is not None)
    for basis, found in (
        ("KVM noted it last, though maybe long before", noted),
        ("the instruction at RIP raises nothing, but CR2 holds an address that is not mapped", _left_in_cr2(moment)),
        ("the instruction at RIP raises nothing, but interrupts are on", _interrupt(moment)),
    ):
        if found is not None:
            return Story(chain(moment, found), False, basis)
    return None


def is_reset(regs: Regs, sregs: Sregs) -> bool:
    """Return whether the registers are those of a CPU that has just been reset, at the reset vector."""
    at_vector = sregs.cs.base + regs.rip == layout.RESET_VECTOR and sregs.cs.selector == 0xF000
    return at_vector and not sregs.cr0 & Cr0.PE.value


def _noted(events: VcpuEvents) -> Fault | None:
    """Return what KVM's record of exceptions still holds; of a divide error, vector 0, it cannot be told from none."""
    event = events.exception
    if not event.nr or event.nr >= len(EXCEPTIONS):
        return None
    code = event.error_code if event.has_error_code else None
    return Fault(event.nr, code, "" if code is None else describe_error_code(event.nr, code), is_certain=False)


def _left_in_cr2(moment: Moment) -> Fault | None:
    address = moment.sregs.cr2
    if not address or not moment.sregs.cr0 & Cr0.PG.value:
        return None
    found = walk(moment.memory, Paging.of(moment.sregs), address)
    reason = f"{address:#x} cannot be reached: {found.reason}"
    return Fault(PF, 0, reason, address, is_certain=False) if found.gpa is None else None


def _interrupt(moment: Moment) -> Fault | None:
    """Return an interrupt that the guest's IDT could not deliver, if it allowed interrupts."""
    if not moment.regs.rflags & Rflags.IF.value:
        return None
    for vector in (0x20, 0x30, 0x08):  # of a PC's timer: as most systems have it, an APIC's, and as the BIOS has it
        if isinstance(deliver(moment, vector), Undelivered):
            return Fault(vector, None, "an interrupt, such as a timer's", is_certain=False)
    return None


# ---- the cause ----


def cause_of_shutdown(scene: Scene) -> str | None:
    """Return the likely cause of the triple fault in a sentence, None if there is no trace of it."""
    story = find_story(scene)
    if story is None:
        if is_reset(scene.regs, scene.sregs):
            return "unknown; 'pykvm step --batch TARGET' shows the last instructions before the shutdown"
        return _no_idt(scene)
    if _is_stack(scene, story.first):
        return f"the stack is not usable: RSP is {scene.regs.rsp:#x}, and {story.first.reason}; handlers need one too"
    words = (_cause_of_first(scene, story), _cause_of_next(scene, story.links[0]))
    return "; and ".join(filter(None, words)) or None


def _is_stack(scene: Scene, fault: Fault) -> bool:
    return fault.address is not None and abs(fault.address - scene.regs.rsp) <= STACK_REACH


def _no_idt(scene: Scene) -> str | None:
    if scene.sregs.idt.limit == 0 and scene.sregs.cr0 & Cr0.PE.value:
        return "no IDT was loaded (its limit is 0), so no exception can be handled: lidt before anything can fault"
    return None


def _cause_of_first(scene: Scene, story: Story) -> str:
    """Return what is wrong where it began; empty for an instruction that is there to raise an exception."""
    fault = story.first
    if fault.vector == UD and not isinstance(story.links[0].outcome, Delivered):
        return ""
    if fault.vector != PF:
        return fault.reason
    is_forbidden = fault.error_code is not None and bool(fault.error_code & PageFaultCode.P.value)
    reason = fault.reason.partition(": ")[2] or fault.reason
    if fault.address == scene.rip:
        what = "that may not be executed" if is_forbidden else "that the page tables do not map"
        return f"RIP points to an address {what}: {reason}"
    where = f" at {fault.address:#x}" if fault.address is not None else ""
    holds = ", which CR2 holds" if fault.address == scene.sregs.cr2 else ""
    return f"a page fault (#PF){where}{holds}: {reason}"


def _cause_of_next(scene: Scene, link: Link) -> str:
    """Return what is wrong with the handler."""
    match link.outcome:
        case Undelivered(fault) | TripleFault(fault):
            return _no_idt(scene) or fault.reason
        case Delivered():
            unreachable = handler_fault(scene.moment, link.outcome)
            return "" if unreachable is None else f"its handler cannot be fetched: {unreachable.reason}"
    return ""


# ---- in words ----


def tell(scene: Scene, story: Story | None) -> str:
    """Return the story, a sentence a line."""
    if story is None:
        return _untold(scene)
    head = "triple fault:" if story.is_certain else "triple fault; what came first is not certain, and was likely"
    lines = [f"{head} {_name(story.first)} at {scene.rip:#x}{_what(scene)}", story.first.reason]
    if story.basis:
        lines.append(f"({story.basis})")
    for before, link in zip((None, *story.links), story.links, strict=False):
        lines += _sentences(scene, link, before)
    return "\n".join(filter(None, lines))


def _untold(scene: Scene) -> str:
    sentence = "triple fault: an exception could not be delivered, nor the double fault after it, so the CPU shut down"
    if is_reset(scene.regs, scene.sregs):
        return (
            f"{sentence}\nthe registers are those of a CPU after a reset: KVM on some hosts resets it before it tells "
            "of the shutdown, and so nothing is left to say which exception it was"
        )
    return f"{sentence}\nnothing in the registers or at RIP says which exception it was"


def _name(fault: Fault) -> str:
    code = "" if not fault.error_code else f" with error code {fault.error_code:#x}"
    return f"{vector_name(fault.vector)}{code}"


def _what(scene: Scene) -> str:
    instruction = scene.instruction()
    return f": {instruction.mnemonic} {instruction.operands}".rstrip() if instruction is not None else ""


def _sentences(scene: Scene, link: Link, before: Link | None) -> list[str]:
    """Return what became of an exception; ``before`` is the one that led to it."""
    whose, lines = "its" if before is None else f"{link.fault.name}'s", []
    if before is not None and link.fault.vector == DF and isinstance(before.outcome, Undelivered):
        whose = "its"
        lines = [f"{before.fault.name} and then {before.outcome.fault.name} are a double fault (#DF)"]
    match link.outcome:
        case Undelivered(fault):
            return [*lines, f"{whose} handler could not run ({fault.name}): {fault.reason}"]
        case TripleFault(fault):
            last = f"{whose} handler could not run ({fault.name}): {fault.reason}"
            return [*lines, last, "and so the CPU shut down"]
        case Delivered():
            return [*lines, *_delivered(scene.moment, link.fault, link.outcome)]
        case Unclear(reason):
            return [*lines, f"whether {whose} handler could run is not known: {reason}"]
        case _:
            assert_never(link.outcome)


def _delivered(moment: Moment, fault: Fault, handler: Delivered) -> list[str]:
    place = f"{fault.name}'s handler, {handler.selector:#x}:{handler.offset:#x},"
    unreachable = handler_fault(moment, handler)
    if unreachable is not None:
        return [
            f"{place} cannot be fetched: {unreachable.reason}",
            "that is a new exception, and each pushes another frame, until the stack is at its end",
        ]
    lines = [f"{place} can run by the manual's rules, and the CPU shut down all the same"]
    last = deliver(moment, DF, 0)
    if fault.vector != DF and isinstance(last, Undelivered):
        lines.append(f"some hosts' KVM goes on to #DF at once, and #DF -> {last.fault.name}: {last.fault.reason}")
    return lines
