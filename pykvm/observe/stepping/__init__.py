"""Stepping a guest an instruction at a time, and back: each guest instruction is seen exactly once.

    with Stepper(machine) as stepper:
        step = stepper.step()            # one instruction of CPU 0: what it was, and what it changed
        stepper.continue_(breakpoints=[0x100040])
        stepper.back()                   # undo the last of all that was done: a step, or a stretch at full speed

``Stepper`` is the whole interface; the rest are the values it returns. The machine stands still between its calls, and
may be looked at: ``machine.vcpus[n].get_regs()``, ``machine.memory``. Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.observe.stepping.step import (
        Access,
        Arrival,
        Event,
        EventKind,
        MemoryChange,
        Reason,
        Step,
        Stretch,
        Watchpoint,
    )
    from pykvm.observe.stepping.stepper import Stepper

__all__ = [
    "Access",
    "Arrival",
    "Event",
    "EventKind",
    "MemoryChange",
    "Reason",
    "Step",
    "Stepper",
    "Stretch",
    "Watchpoint",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pykvm.observe.stepping' has no attribute {name!r}")
    home = "stepper" if name == "Stepper" else "step"
    return getattr(importlib.import_module(f"pykvm.observe.stepping.{home}"), name)
