"""A page walk as rows: from a linear address through each table's entry to the guest-physical one, or why not.

Leaves out the whole map: see ``pykvm.x86.dump``.
"""

from __future__ import annotations

from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.rows import Kind, Row, row
from pykvm.units import format_size
from pykvm.x86 import PagingMode, Walk, walk

__all__ = ["walk_rows"]


def walk_rows(look: Look, address: int) -> list[Row]:
    """Return the walk of linear ``address`` through the tables that CR3 points at."""
    symbol = look.symbol_at(address)
    found = walk(look.memory, look.paging, address)
    title = f"linear {address:#x}" + (f" <{symbol}>" if symbol else "")
    if look.paging.mode is PagingMode.NONE and found.gpa is not None:
        return [
            row(title, Kind.LABEL),
            row(f"paging is off: guest-physical {found.gpa:#x}, {_region(look, found.gpa)}"),
        ]
    levels = [row(f"  {level.entry_gpa:#012x}  {level}") for level in found.levels]
    return [row(f"{title}, {look.paging.mode.value}, CR3 {look.sregs.cr3:#x}", Kind.LABEL), *levels, _end(look, found)]


def _end(look: Look, found: Walk) -> Row:
    if found.gpa is None:
        return row(f"not mapped: {found.reason}", Kind.BAD)
    rights = f"R{'W' if found.writable else '-'}{'X' if found.executable else '-'}"
    who = "user" if found.user else "supervisor"
    page = format_size(found.page_size)
    return row(f"guest-physical {found.gpa:#x}, page of {page}, {rights} {who}, {_region(look, found.gpa)}")


def _region(look: Look, gpa: int) -> str:
    region = look.memory.find(gpa)
    return "no memory" if region is None else str(region)
