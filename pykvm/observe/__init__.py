"""Who looks on while a guest runs: observers of the run loop, and what is made of what they saw.

Names are imported when first used, so that nobody pays for an observer that is not wanted.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.observe.divergence import Divergence
    from pykvm.observe.ioctls import CallText, format_call
    from pykvm.observe.minimizing import Minimized, minimize
    from pykvm.observe.recorder import Recorder
    from pykvm.observe.recording import Recording, without_times, write_recording
    from pykvm.observe.recordingreader import read_recording
    from pykvm.observe.replaying import ReplayResult, replay
    from pykvm.observe.statistics import ExitStatistics, Statistics, StatisticsResult
    from pykvm.observe.tracing import TraceFilter, TraceLine, Tracer
    from pykvm.observe.workbench import Workbench

__all__ = [
    "CallText",
    "Divergence",
    "ExitStatistics",
    "Minimized",
    "Recorder",
    "Recording",
    "ReplayResult",
    "Statistics",
    "StatisticsResult",
    "TraceFilter",
    "TraceLine",
    "Tracer",
    "Workbench",
    "format_call",
    "minimize",
    "read_recording",
    "replay",
    "without_times",
    "write_recording",
]

_HOMES = {
    "pykvm.observe.minimizing": ("Minimized", "minimize"),
    "pykvm.observe.recorder": ("Recorder",),
    "pykvm.observe.recording": ("Recording", "without_times", "write_recording"),
    "pykvm.observe.recordingreader": ("read_recording",),
    "pykvm.observe.divergence": ("Divergence",),
    "pykvm.observe.ioctls": ("CallText", "format_call"),
    "pykvm.observe.replaying": ("ReplayResult", "replay"),
    "pykvm.observe.statistics": ("ExitStatistics", "Statistics", "StatisticsResult"),
    "pykvm.observe.tracing": ("TraceFilter", "TraceLine", "Tracer"),
    "pykvm.observe.workbench": ("Workbench",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'pykvm.observe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
