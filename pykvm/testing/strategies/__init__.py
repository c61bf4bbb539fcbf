"""Strategies for Hypothesis: exits, accesses to devices, programs, register states and page tables.

    @given(mmio_accesses(0, 8))
    def test_my_device_survives(accesses): ...

All of them shrink: what a failing test reports is small. Hypothesis comes with pykvm's extra "test".
"""

from pykvm.testing.strategies.accesses import mmio_accesses, port_accesses
from pykvm.testing.strategies.exits import exits
from pykvm.testing.strategies.instructions import SCRATCH, forms, instructions
from pykvm.testing.strategies.operands import SCRATCH_SIZE
from pykvm.testing.strategies.paging import PageMap, page_tables
from pykvm.testing.strategies.program import Instruction, Program
from pykvm.testing.strategies.states import register_states

__all__ = [
    "SCRATCH",
    "SCRATCH_SIZE",
    "Instruction",
    "PageMap",
    "Program",
    "exits",
    "forms",
    "instructions",
    "mmio_accesses",
    "page_tables",
    "port_accesses",
    "register_states",
]
