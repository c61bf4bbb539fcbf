"""The strategy of register states: general registers and arithmetic flags that a mode can have.

Leaves out special registers: ``pykvm.x86.set_up`` makes those of a mode.
"""

from __future__ import annotations

from dataclasses import fields, replace

from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import Regs
from pykvm.testing.strategies.program import ALL_FLAGS, width_of
from pykvm.testing.strategies.values import numbers
from pykvm.x86 import Mode, Rflags, to_mode

__all__ = ["register_states"]

LEGACY = ("rax", "rcx", "rdx", "rbx", "rsi", "rdi", "rbp")
ADDED = tuple(f"r{number}" for number in range(8, 16))
FLAGS = list(ALL_FLAGS | Rflags.DF)


def register_states(mode: Mode | str, **fixed: int) -> st.SearchStrategy[Regs]:
    """Return register states for ``mode``: any values that fit, of 32 bits outside long mode; they shrink to 0.

    RSP and RIP are 0; the flags are any of CF, PF, AF, ZF, SF, OF and DF. ``fixed`` registers, such as ``rsp=0x7c00``,
    have that value always; RFLAGS cannot be one of them, its value is or'ed to the others.

    Raises: ConfigurationError for a mode or a register that there is not.
    """
    is_long = width_of(to_mode(mode)) == 64
    unknown = fixed.keys() - {field.name for field in fields(Regs)}
    if unknown:
        raise ConfigurationError(f"there is no register called {', '.join(sorted(unknown))}")
    always = fixed.pop("rflags", 0) | Regs().rflags
    drawn = [name for name in (*LEGACY, *(ADDED if is_long else ())) if name not in fixed]
    values = st.tuples(*(numbers(8 if is_long else 4) for _ in drawn))
    flags = st.sets(st.sampled_from(FLAGS))

    def build(values: tuple[int, ...], flags: set[Rflags]) -> Regs:
        rflags = always | sum(flag.value for flag in flags)
        return replace(Regs(**dict(zip(drawn, values, strict=True))), **fixed, rflags=rflags)

    return st.builds(build, values, flags)
