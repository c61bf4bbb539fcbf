"""A trace: a line for each exit while the guest runs, for people, for programs, and on a time line."""

from pykvm.observe.tracing.filters import TraceFilter
from pykvm.observe.tracing.line import Coalesced, InterruptTaken, Place, TraceEnd, TraceLine
from pykvm.observe.tracing.tracer import Tracer
from pykvm.observe.tracing.writer import FORMATS

__all__ = ["FORMATS", "Coalesced", "InterruptTaken", "Place", "TraceEnd", "TraceFilter", "TraceLine", "Tracer"]
