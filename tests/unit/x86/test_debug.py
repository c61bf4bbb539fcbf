"""Breakpoints become debug registers that say the same, and impossible ones are refused in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.x86.debug import (
    BreakpointKind,
    HardwareBreakpoint,
    encode_breakpoints,
    hit_breakpoints,
    is_single_step,
)
from pykvm.x86.registers import Dr6, Dr7, describe

EXECUTE, WRITE, IO, READ_WRITE = (
    BreakpointKind.EXECUTE,
    BreakpointKind.WRITE,
    BreakpointKind.IO,
    BreakpointKind.READ_WRITE,
)
LENGTHS = {0: 1, 1: 2, 2: 8, 3: 4}  # by DR7's LEN


@st.composite
def valid_breakpoints(draw: st.DrawFn) -> HardwareBreakpoint:
    kind = draw(st.sampled_from(BreakpointKind))
    lengths = {EXECUTE: [1], IO: [1, 2, 4]}.get(kind, [1, 2, 4, 8])
    length = draw(st.sampled_from(lengths))
    most = (0xFFFF if kind is IO else (1 << 64) - 1) // length
    return HardwareBreakpoint(draw(st.integers(0, most)) * length, kind, length)


def decode(registers: tuple[int, ...]) -> list[HardwareBreakpoint]:
    """Return what the CPU would watch for, by the manual's drawing of DR7."""
    dr7 = registers[7]
    fields = [(dr7 >> 16 + 4 * number) & 0xF for number in range(4)]
    return [
        HardwareBreakpoint(registers[number], BreakpointKind(field & 3), LENGTHS[field >> 2])
        for number, field in enumerate(fields)
        if dr7 >> 2 * number & 3
    ]


@given(st.lists(valid_breakpoints(), max_size=4))
def test_the_debug_registers_say_what_the_breakpoints_say(breakpoints: list[HardwareBreakpoint]) -> None:
    registers = encode_breakpoints(breakpoints)
    assert len(registers) == 8
    assert registers[4:7] == (0, 0, 0)
    assert all(0 <= register < 1 << 64 for register in registers)
    assert decode(registers) == breakpoints


def test_no_breakpoints_are_all_zeros() -> None:
    assert encode_breakpoints([]) == (0,) * 8


def test_a_breakpoint_is_for_an_instruction_unless_told() -> None:
    *addresses, dr7 = encode_breakpoints([HardwareBreakpoint(0x8000)])
    assert addresses == [0x8000, 0, 0, 0, 0, 0, 0]
    assert Dr7(dr7) == Dr7.G0


def test_each_breakpoint_has_its_own_fields() -> None:
    breakpoints = [
        HardwareBreakpoint(0x1000),
        HardwareBreakpoint(0x2002, WRITE, 2),
        HardwareBreakpoint(0x3F8, IO),
        HardwareBreakpoint(0x4008, READ_WRITE, 8),
    ]
    *addresses, dr7 = encode_breakpoints(breakpoints)
    assert addresses[:4] == [0x1000, 0x2002, 0x3F8, 0x4008]
    assert describe(Dr7, dr7) == "[LEN3=2 RW3=3 RW2=2 LEN1=1 RW1=1 G3 G2 G1 G0]"


@pytest.mark.parametrize(
    ("address", "kind", "length", "words"),
    [
        (0x1001, WRITE, 4, "0x1001 .WRITE.: is not aligned to its length of 4: use 0x1000, or length 1"),
        (0x1004, READ_WRITE, 8, "use 0x1000"),
        (0x1000, EXECUTE, 4, "has length 1, not 4"),
        (0x1000, WRITE, 3, "watches 1, 2, 4 or 8 bytes, not 3"),
        (0x1000, WRITE, 0, "not 0"),
        (0x60, IO, 8, "no port is wider"),
        (0x10000, IO, 1, "an address has 16 bits"),
        (1 << 64, WRITE, 1, "an address has 64 bits"),
        (-8, WRITE, 8, "an address has 64 bits"),
    ],
)
def test_what_the_cpu_cannot_watch_is_refused_with_the_reason(
    address: int, kind: BreakpointKind, length: int, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        HardwareBreakpoint(address, kind, length)


def test_a_fifth_breakpoint_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="has 4 hardware breakpoints, not 5"):
        encode_breakpoints([HardwareBreakpoint(address) for address in range(5)])


@pytest.mark.parametrize(
    ("dr6", "hit", "stepped"),
    [
        (0xFFFF_0FF0, [], False),
        (0xFFFF_0FF1, [0], False),
        (0xFFFF_0FFA, [1, 3], False),
        (0xFFFF_4FF0, [], True),
        ((Dr6.BS | Dr6.B2).value, [2], True),
    ],
)
def test_dr6_tells_what_happened(dr6: int, hit: list[int], stepped: bool) -> None:
    assert hit_breakpoints(dr6) == hit
    assert is_single_step(dr6) is stepped
