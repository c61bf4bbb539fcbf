"""Why an exception is raised, and why its handler does not run: the rules, applied to a guest that stands still.

``first_fault`` looks at the instruction at RIP, ``chain`` follows an exception to its handler or to the shutdown. The
guest may have put anything into registers, tables and memory: nothing here raises for it, and all work is bounded.
"""

from __future__ import annotations

from pykvm.x86.faults.decoded import code_at_rip, read_code
from pykvm.x86.faults.delivery import (
    Delivered,
    Link,
    Outcome,
    TripleFault,
    Unclear,
    Undelivered,
    chain,
    deliver,
    handler_fault,
)
from pykvm.x86.faults.instruction import first_fault
from pykvm.x86.faults.moment import Fault, Moment

__all__ = [
    "Delivered",
    "Fault",
    "Link",
    "Moment",
    "Outcome",
    "TripleFault",
    "Unclear",
    "Undelivered",
    "chain",
    "code_at_rip",
    "deliver",
    "first_fault",
    "handler_fault",
    "read_code",
]
