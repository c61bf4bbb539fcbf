"""What a failing test's report says of a machine: exits, registers, code, what is on the line and on the screen.

Each is a section, a title and some lines, as pytest shows captured output. Leaves out what the test itself compared.
"""

from __future__ import annotations

from pykvm.boot import source_line
from pykvm.errors import PykvmError
from pykvm.machine import RunResult, Stopped
from pykvm.memory import GuestMemory
from pykvm.testing.exits import describe
from pykvm.testing.guest import WatchedMachine
from pykvm.units import align_down
from pykvm.x86 import Instruction, Paging, cpu_mode, disassemble, format_registers, linear_rip, read_linear, walk

__all__ = ["sections"]

LAST_EXITS = 16
BEFORE, AFTER = 32, 32  # bytes of code around RIP
MOST_LINES = 12  # of code after RIP
MOST_TEXT = 4000  # characters of output, the last ones


def sections(machine: WatchedMachine, name: str = "machine") -> list[tuple[str, str]]:
    """Return the sections of a report on ``machine``, which is called ``name`` there; none if it is closed."""
    try:
        ended = machine.last_result is not None
        result = machine.last_result or machine.result(Stopped())
        found = [
            ("how it ended", _how_it_ended(machine, result) if ended else ""),
            ("last exits", _last_exits(machine)),
            ("registers", "" if result.report else _registers(result)),  # a report has them
            ("code around RIP", _code(machine, result)),
            ("serial port", _end(result.serial.text)),
            ("debug console", _end(result.debugcon.text)),
            ("screen", machine.screen.text()),
        ]
    except PykvmError:  # closed meanwhile, or running on another thread
        return []
    return [(f"{name}: {title}", text) for title, text in found if text.strip()]


def _how_it_ended(machine: WatchedMachine, result: RunResult) -> str:
    text = result.report or str(result.stop)
    return machine.place.translate(text) if machine.place else text


def _last_exits(machine: WatchedMachine) -> str:
    exits = machine.watched.exits()
    shown = exits[-LAST_EXITS:]
    lines = [f"{number:4}  {describe(exit)}" for number, exit in enumerate(shown, start=len(exits) - len(shown))]
    if machine.watched.dropped:
        lines.append(f"and {machine.watched.dropped} more exits, which were not kept")
    return "\n".join(lines)


def _registers(result: RunResult) -> str:
    if len(result.cpus) == 1:
        return format_registers(result.registers, result.sregs)
    return "\n".join(f"{cpu}\n{format_registers(cpu.registers, cpu.sregs)}" for cpu in result.cpus)


def _code(machine: WatchedMachine, result: RunResult) -> str:
    """Return the instructions around RIP, of which the next one is marked, with their lines in the test's snippet."""
    rip = linear_rip(result.registers, result.sregs)
    paging = Paging.of(result.sregs)
    if walk(machine.memory, paging, rip).gpa is None:
        return f"{rip:#x} is not mapped"
    width = cpu_mode(result.sregs, result.registers).width
    code = read_linear(machine.memory, paging, rip, AFTER)
    # Where memory has never been written, one instruction of zeros says it all.
    after = disassemble(code.rstrip(b"\0") or code[:2], rip, width)[:MOST_LINES]
    before = _before(machine.memory, paging, rip, width)
    lines = [_line(machine, one, is_next=one.address == rip) for one in (*before, *after)]
    return "\n".join(lines) or f"{rip:#x}: there is no memory"


def _line(machine: WatchedMachine, instruction: Instruction, *, is_next: bool) -> str:
    return f"{'>' if is_next else ' '} {instruction!s:50}{_source(machine, instruction)}".rstrip()


def _before(memory: GuestMemory, paging: Paging, rip: int, width: int) -> list[Instruction]:
    """Return some instructions before RIP. Code cannot be read backwards: try from where it comes out at RIP."""
    for first in range(max(rip - BEFORE, align_down(rip)), rip):
        code = read_linear(memory, paging, first, rip - first)
        found = disassemble(code, first, width)
        if code and not any(one.mnemonic == ".byte" for one in found) and any(code):
            return found[-4:]
    return []


def _source(machine: WatchedMachine, instruction: Instruction) -> str:
    image = machine.image
    line = source_line(image, instruction.address) if image is not None else None
    if line is None:
        return ""
    return f"  {machine.place.translate(line) if machine.place else line}"


def _end(text: str) -> str:
    return text if len(text) <= MOST_TEXT else "..." + text[-MOST_TEXT:]
