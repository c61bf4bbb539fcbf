"""Why a guest stands where it does, in a line: what its last step did, or what stopped it.

Leaves out the report on a crash: see ``pykvm.machine.report``.
"""

from __future__ import annotations

from pykvm.machine.observer import describe_exit
from pykvm.observe.stepping import Arrival, Reason, Step, Stretch

__all__ = ["arrived", "stepped", "undone"]

MOST = 4  # changes of memory that are named; one instruction may write megabytes
MOST_BYTES = 8  # of one change


def stepped(step: Step) -> str:
    """Return what ``step`` did beside what the panes show of it."""
    if step.stop is not None:
        return str(step.stop)
    events = [f"{event} taken" for event in step.events]
    exits = [describe_exit(exit) for exit in step.exits[:MOST]]
    changes = [
        f"[{change.gpa:#x}] {change.old.hex(' ')} -> {change.new.hex(' ')}"
        if len(change.new) <= MOST_BYTES
        else f"[{change.gpa:#x}] {len(change.new)} bytes changed"
        for change in step.changes[:MOST]
    ]
    more = ["..."] if len(step.changes) > MOST or len(step.exits) > MOST else []
    return "   ".join([*events, *exits, *changes, *more])


def undone(done: Step | Stretch) -> str:
    """Return what it was that is undone now."""
    if isinstance(done, Stretch):
        return "undone: all that was run at full speed"
    instruction = done.instruction
    return "undone" if instruction is None else f"undone: {instruction.mnemonic} {instruction.operands}".rstrip()


def arrived(arrival: Arrival) -> str:
    """Return why the guest stopped where it did."""
    if arrival.stop is not None:
        return str(arrival.stop)
    match arrival:
        case Arrival(reason=Reason.BREAKPOINT):
            return f"breakpoint at {arrival.address:#x}"
        case Arrival(reason=Reason.WATCHPOINT, watchpoint=watchpoint) if watchpoint is not None:
            bytes_ = "byte" if watchpoint.length == 1 else "bytes"
            return f"watchpoint: {watchpoint.access.value} of {watchpoint.length} {bytes_} at {watchpoint.address:#x}"
        case Arrival(reason=Reason.HISTORY):
            return "as far back as the history goes"
        case Arrival(reason=Reason.TIMEOUT):
            return "the time limit was reached"
        case Arrival(reason=Reason.INTERRUPTED):
            return "interrupted"
    return ""
