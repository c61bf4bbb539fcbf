"""Explanations: what an exit, an ioctl, an errno, a register's bits and more mean, in words for people who learn.

    explain(["exit", "8"]) -> Explanation(title="exit 8: KVM_EXIT_SHUTDOWN", ...)

The facts are tables in modules of their own, one a subject. Leaves out guesses about one guest's state: those are the
crash report's.
"""

from __future__ import annotations

from pykvm.observe.explaining.explanation import Bits, Explanation
from pykvm.observe.explaining.formatting import format_explanation
from pykvm.observe.explaining.topics import KINDS, Kind, explain

__all__ = ["KINDS", "Bits", "Explanation", "Kind", "explain", "format_explanation"]
