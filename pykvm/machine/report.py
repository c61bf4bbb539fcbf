"""The crash report: what happened, the likely cause, and the evidence, in that order.

One idea a line, aligned columns, the next step at the end. Leaves out colour, which is the command line's.
"""

from __future__ import annotations

import textwrap

from pykvm.boot import source_line
from pykvm.kvm import FailEntry, InternalError, Shutdown
from pykvm.machine.diagnosis import likely_cause, what_happened
from pykvm.machine.faultchain import find_story
from pykvm.machine.loops import find_loop
from pykvm.machine.observer import describe_exit
from pykvm.machine.scene import Scene
from pykvm.machine.stop import Crashed, Interrupted, TimedOut
from pykvm.x86 import EXCEPTIONS, Instruction, cpu_mode, format_registers, instruction_at

__all__ = ["Scene", "format_duration", "report"]

LABEL = 15  # columns: the widest label and a gap
WIDTH = 120 - LABEL - 2  # columns left for the text


def report(scene: Scene) -> str:
    """Return the report on ``scene``, several lines without a newline at the end."""
    lines = [_headline(scene), ""]
    for label, text in _sections(scene):
        if text:
            lines += _section(label, text)
    return "\n".join(lines)


def format_duration(seconds: float) -> str:
    """Return ``seconds`` with three digits and the unit that fits: ``"0.71 ms"``, ``"2 s"``."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _headline(scene: Scene) -> str:
    after = f"after {scene.exits} exit{'' if scene.exits == 1 else 's'}, {format_duration(scene.duration)}"
    match scene.stop:
        case Crashed(exit=exit):
            return f"the guest crashed: KVM_EXIT_{exit.reason.name} {after}"
        case TimedOut(limit=limit):
            return f"the time limit of {limit:g} s was reached {after}"
        case Interrupted():
            return "interrupted with Ctrl-C"
    return f"{scene.stop} {after}"


def _sections(scene: Scene) -> list[tuple[str, str]]:
    walk = scene.page_walk()
    return [
        ("CPU", _cpu(scene)),
        ("what happened", what_happened(scene)),
        ("likely cause", likely_cause(scene)),
        ("where", _where(scene)),
        ("loop", _loop(scene)),
        ("mode", str(cpu_mode(scene.sregs, scene.regs))),
        ("registers", format_registers(scene.regs, scene.sregs)),
        ("page walk", "" if walk is None else str(walk)),
        ("other CPUs", _other_cpus(scene)),
        ("interrupts", _interrupts(scene)),
        ("last exits", " | ".join(describe_exit(exit) for exit in scene.last_exits[-8:])),
        ("see", _see(scene)),
    ]


def _section(label: str, text: str) -> list[str]:
    first, *rest = [part for line in text.splitlines() for part in textwrap.wrap(line, WIDTH) or [""]]
    return [f"  {label:<{LABEL}}{first}", *(" " * (LABEL + 2) + line for line in rest)]


def _where(scene: Scene) -> str:
    instruction = scene.instruction()
    symbol = scene.image.symbol_at(scene.rip) if scene.image else None
    place = f"{scene.rip:#x}" + (f" <{symbol}>" if symbol else "")
    code = _code_text(instruction) if instruction else "no code can be read there"
    line = source_line(scene.image, scene.rip) if scene.image else None
    return "\n".join(["  ".join(filter(None, [place, code, line])), *_refused_bytes(scene)])


def _code_text(instruction: Instruction) -> str:
    return f"{instruction.bytes.hex(' ')}  {instruction.mnemonic} {instruction.operands}".rstrip()


def _refused_bytes(scene: Scene) -> list[str]:
    # KVM hands over the bytes it could not emulate; they are shown where they differ from what is at RIP now.
    match scene.stop:
        case Crashed(exit=InternalError(instruction=code)) if code and not scene.code().startswith(code):
            width = cpu_mode(scene.sregs, scene.regs).width
            refused = instruction_at(code, scene.rip, width)
            return [f"KVM's bytes: {_code_text(refused)}"] if refused else []
    return []


def _loop(scene: Scene) -> str:
    """Return the loop that a guest is in, if it is one that still runs and that has more than one instruction."""
    loop = find_loop(scene) if isinstance(scene.stop, TimedOut | Interrupted) else None
    if loop is None or len(loop.instructions) == 1:
        return ""
    texts = [f"{one.mnemonic} {one.operands}".rstrip() for one in loop.instructions]
    width = max(map(len, texts))
    lines = [
        f"{'>' if one.address == scene.rip else ' '} {one.address:#x}  {text:{width}}  "
        f"{(source_line(scene.image, one.address) if scene.image else None) or ''}"
        for one, text in zip(loop.instructions, texts, strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _interrupts(scene: Scene) -> str:
    """Return what the interrupt controllers hold, those that hold something."""
    lines = []
    for one in scene.controllers:
        parts = [("in service", one.in_service), ("waiting", one.waiting)]
        words = [f"{what} {' '.join(f'{vector:#x}' for vector in vectors)}" for what, vectors in parts if vectors]
        if words:
            lines.append(f"{one.name}: {', '.join(words)}")
    return "\n".join(lines)


def _cpu(scene: Scene) -> str:
    return f"{scene.cpu} of 0 to {len(scene.cpus) - 1}" if len(scene.cpus) > 1 else ""


def _other_cpus(scene: Scene) -> str:
    return "\n".join(str(cpu) for cpu in scene.cpus if cpu.id != scene.cpu)


def _see(scene: Scene) -> str:
    match scene.stop:
        case Crashed(exit=Shutdown()):
            return f"pykvm explain exit 8{_exception(scene)}, {_chapter(scene)}"
        case Crashed(exit=InternalError(suberror=suberror)):
            return f"pykvm explain internal-error {suberror}; pykvm doctor --probe (what this host's KVM cannot run)"
        case Crashed(exit=FailEntry(hardware_entry_failure_reason=reason)):
            return f"pykvm explain fail-entry {reason:#x}"
        case Crashed(exit=exit):
            return f"pykvm explain exit {exit.reason.value}"
        case TimedOut():
            return f"--timeout SECONDS gives it more time; {_chapter(scene)}"
    return ""


def _chapter(scene: Scene) -> str:
    """Return the guest's own chapter if it is a bundled one, else the one on mistakes."""
    from pykvm.boot import is_bundled  # which reads files, and is loaded when a guest has crashed

    name = scene.image.name if scene.image is not None else ""
    return f"docs/book/{name if is_bundled(name) else 'mistakes'}.md"


def _exception(scene: Scene) -> str:
    story = find_story(scene)
    is_exception = story is not None and story.first.vector < len(EXCEPTIONS)
    return f", pykvm explain exception {story.first.vector}" if story is not None and is_exception else ""
