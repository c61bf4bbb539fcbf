"""What a line of a trace says, in words: ``out 0x3f8 1x1 'H'``.

An access is ``port or address``, then ``count x size`` in bytes, then the data: characters in quotes where the device
has said that they are some, else a number, little-endian. What a read was answered stands after ``->``. Leaves out
columns, and names of devices.
"""

from __future__ import annotations

from typing import get_args

from pykvm.kvm import (
    Debug,
    Exit,
    Hlt,
    Hypercall,
    InternalError,
    IoapicEoi,
    IoIn,
    IoOut,
    MemoryFault,
    MmioRead,
    MmioWrite,
    Rdmsr,
    Shutdown,
    SystemEvent,
    TprAccess,
    Unknown,
    Wrmsr,
)
from pykvm.machine import (
    Breakpoint,
    Crashed,
    DebugExitWritten,
    Halted,
    Interrupted,
    PoweredOff,
    ResetRequested,
    ShutdownRequested,
    Stop,
    Stopped,
    TimedOut,
)
from pykvm.machine.observer import describe_exit
from pykvm.observe.tracing.line import Coalesced, Event, InterruptTaken, TraceLine
from pykvm.x86.msr import msr_name

__all__ = ["reason_of", "show_data", "stop_words", "what_of"]

MOST_BYTES = 16  # of an access's data that are shown
REASONS: dict[type[Event], str] = {
    **{kind: kind.reason.name.lower() for kind in get_args(Exit)},
    InterruptTaken: "interrupt",
    Coalesced: "coalesced",
}
ESCAPES = {ord("\n"): r"\n", ord("\r"): r"\r", ord("\t"): r"\t", ord("\\"): r"\\", ord("'"): r"\'"}


def reason_of(event: Event) -> str:
    """Return the exit's reason as kvm.h has it, in lower case without KVM_EXIT; "interrupt"; "coalesced"."""
    return REASONS[type(event)]


def what_of(line: TraceLine) -> str:
    """Return what happened in a few words; empty if the reason says it all."""
    event = line.event
    match event.write if isinstance(event, Coalesced) else event:
        case IoOut() as out:
            return f"out {out.port:#x} {out.count}x{out.size} {show_data(out.data, out.size, line.is_text)}"
        case IoIn() as read:
            return f"in {read.port:#x} {read.count}x{read.size}{_answer(line, read.size)}"
        case MmioWrite() as write:
            return f"write {write.address:#x} 1x{write.size} {show_data(write.data, write.size, line.is_text)}"
        case MmioRead() as read:
            return f"read {read.address:#x} 1x{read.size}{_answer(line, read.size)}"
        case Rdmsr(index=index):
            return f"rdmsr {_msr(index)}{_answer(line, 8)}"
        case Wrmsr(index=index, data=value):
            return f"wrmsr {_msr(index)} {value:#x}{_answer(line, 8)}"
        case Hypercall(nr=nr, args=args):
            return f"call {nr}({', '.join(map(hex, args))}){_answer(line, 8)}"
        case InterruptTaken(vector=vector):
            return f"vector {vector:#x}"
    return _other(event)


def show_data(data: bytes, size: int, is_text: bool) -> str:
    """Return ``data``, items of ``size`` bytes: ``'H'`` if it is text, ``0x1f`` if it is one number, else bytes."""
    more = "..." if len(data) > MOST_BYTES else ""
    if is_text:
        return f"'{''.join(map(_character, data[:MOST_BYTES]))}'{more}"
    if len(data) == size:
        return f"{int.from_bytes(data, 'little'):#x}"
    return data[:MOST_BYTES].hex(" ") + more


def stop_words(stop: Stop) -> str:
    """Return why a run ended, shorter than ``str(stop)``."""
    match stop:
        case Halted():
            return "hlt"
        case DebugExitWritten(value=value):
            return f"debug exit {value:#x}"
        case Crashed(exit=exit):
            return f"crash: {describe_exit(exit)}"
        case TimedOut(limit=limit):
            return f"time limit of {limit:g} s"
        case ShutdownRequested() | PoweredOff():
            return "power off"
        case ResetRequested(by=by):
            return f"reset by {by}"
        case Breakpoint(exit=exit):
            return f"debugger at {exit.pc:#x}"
        case Interrupted():
            return "Ctrl-C"
        case Stopped():
            return "stop()"


def _other(event: Event) -> str:
    match event:
        case Hlt():
            return ""
        case Shutdown():
            return "triple fault"
        case InternalError(suberror=suberror, instruction=code):
            return f"suberror {suberror}" + (f", emulation of {code[:4].hex(' ')} ..." if code else "")
        case Debug(pc=pc, dr6=dr6):
            return f"at {pc:#x}, dr6 {dr6:#x}"
        case TprAccess(rip=rip, is_write=is_write):
            return f"{'write' if is_write else 'read'} at {rip:#x}"
        case IoapicEoi(vector=vector):
            return f"vector {vector:#x}"
        case SystemEvent(type=type):
            return f"type {type}"
        case Unknown(exit_reason=reason, hardware_exit_reason=hardware):
            return f"reason {reason}, hardware reason {hardware:#x}"
        case MemoryFault(gpa=gpa, size=size):
            return f"{gpa:#x} {size} bytes"
        case InterruptTaken() | Coalesced():
            return ""
    # What describe_exit says beside the reason.
    name = event.reason.name.lower().replace("_", " ")
    return describe_exit(event).removeprefix(name).strip()


def _answer(line: TraceLine, size: int) -> str:
    if line.refused:
        return " -> #GP"
    return "" if line.answer is None else f" -> {show_data(line.answer, size, line.is_text)}"


def _msr(index: int) -> str:
    name = msr_name(index)
    return name if name.startswith("0x") else f"{index:#x} {name}"


def _character(byte: int) -> str:
    if byte in ESCAPES:
        return ESCAPES[byte]
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
