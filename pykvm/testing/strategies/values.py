"""Numbers that tend to matter: zero, one, all ones, the sign bit and its neighbours, single bits; and any others."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

__all__ = ["any_number", "edges", "little_endian", "numbers"]


@cache
def edges(size: int) -> tuple[int, ...]:
    """Return the numbers of ``size`` bytes that matter most, lowest first."""
    bits = 8 * size
    powers = {1 << bit for bit in range(bits)}
    around = {0, (1 << bits) - 1, (1 << bits) - 2, (1 << bits - 1) + 1, (1 << bits - 1) - 1, 0x7F, 0xAA, 0x55}
    return tuple(sorted(powers | around))


@cache
def any_number(size: int) -> st.SearchStrategy[int]:
    """Return unsigned numbers of ``size`` bytes."""
    return st.integers(0, (1 << 8 * size) - 1)


@cache
def numbers(size: int) -> st.SearchStrategy[int]:
    """Return unsigned numbers of ``size`` bytes, likely ``edges``; they shrink to 0."""
    return st.sampled_from(edges(size)) | any_number(size)


@cache
def little_endian(size: int) -> st.SearchStrategy[bytes]:
    """Return what a guest writes: ``numbers(size)``, or a number for each of the byte-wide registers side by side."""
    whole = numbers(size).map(lambda number: number.to_bytes(size, "little"))
    return whole | st.tuples(*[numbers(1)] * size).map(bytes) if size > 1 else whole
