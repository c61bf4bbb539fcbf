"""The strategy of programs: straight-line integer code for real, protected and long mode.

x86 runs a program with     RBX in the middle of ``SCRATCH_SIZE`` bytes of writable memory
                            RSP with 256 bytes of room on either side
                            flat segments; in real mode, bases of 0
"""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.testing.strategies.arithmetic import ARITHMETIC
from pykvm.testing.strategies.moves import MOVES
from pykvm.testing.strategies.operands import SCRATCH_SIZE, Operands
from pykvm.testing.strategies.program import Program, Step, assemble, width_of
from pykvm.x86 import Mode, to_mode

__all__ = ["SCRATCH", "forms", "instructions"]

SCRATCH = 0x9000  # free of pykvm.memory.layout's tables, and within reach of real mode

RECIPES = MOVES | ARITHMETIC
NOT_IN_LONG_MODE = {"daa", "das", "aaa", "aas", "aam", "aad", "pusha"}
ONLY_IN_LONG_MODE = {"movsxd"}

LOCKABLE = ["add", "or", "adc", "sbb", "and", "sub", "xor", "inc", "dec", "not", "neg", "bts", "btr", "btc"]
LOCKABLE += ["xchg", "xadd", "cmpxchg", "cmpxchg8b"]
VARIANTS = {"cmpxchg r32", *(f"lock {form}" for form in LOCKABLE)}  # what a recipe calls some of what it makes

MOST_STEPS = 24  # pushes of so many steps stay within the room that RSP has


def forms(mode: Mode | str) -> tuple[str, ...]:
    """Return the names of the kinds of instructions that ``mode`` has, the simplest first."""
    missing = NOT_IN_LONG_MODE if to_mode(mode) is Mode.LONG else ONLY_IN_LONG_MODE
    return tuple(form for form in RECIPES if form not in missing)


def instructions(
    mode: Mode | str,
    *,
    min_size: int = 0,
    max_size: int = 12,
    scratch: int = SCRATCH,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
) -> st.SearchStrategy[Program]:
    """Return programs of ``min_size`` to ``max_size`` steps (24 at most), of one to four instructions each.

    ``scratch`` is the linear address of the memory that RBX points into; in real mode it is in the first 64 KiB. Of
    ``forms(mode)``, the kinds in ``only`` are used (default: all), less those in ``without``; that may also name
    "lock add" and its like, and "cmpxchg r32", which writes a register of 32 bits in long mode. A step that would look
    at an undefined flag is left out, so that there may be fewer. A program shrinks to fewer and simpler instructions.

    Raises: ConfigurationError for a mode, a kind, a size or an address that there is not.
    """
    mode = to_mode(mode)
    known = forms(mode)
    unknown = sorted({*(only or ()), *without} - RECIPES.keys() - VARIANTS)
    if unknown:
        raise ConfigurationError(f"there are no instructions called {', '.join(unknown)}: see forms({mode.value!r})")
    chosen = [form for form in known if (only is None or form in only) and form not in without]
    if not chosen:
        raise ConfigurationError(f"no instructions are left for {mode.value} mode: see forms({mode.value!r})")
    if not 0 <= min_size <= max_size <= MOST_STEPS:
        raise ConfigurationError(f"a program has 0 to {MOST_STEPS} steps, not {min_size} to {max_size}")
    if not 0 <= scratch <= (1 << (16 if mode is Mode.REAL else 32)) - SCRATCH_SIZE:
        raise ConfigurationError(f"{mode.value} mode code cannot have its scratch memory at {scratch:#x}")
    steps = st.lists(
        _steps(width_of(mode), tuple(chosen), scratch, frozenset(without)), min_size=min_size, max_size=max_size
    )
    return steps.map(lambda chosen: assemble(mode, chosen))


@st.composite
def _steps(draw: st.DrawFn, width: int, chosen: tuple[str, ...], scratch: int, without: frozenset[str]) -> Step:
    form = draw(st.sampled_from(chosen))
    step = RECIPES[form](Operands(draw, width, scratch), form)
    return () if step[-1].form in without else step
