"""pykvm.cli.stepper.places: what somebody types for an address, right and wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.cli.stepper.places import parse_place, parse_watch
from pykvm.errors import ConfigurationError
from pykvm.memory import GuestMemory
from pykvm.observe.stepping import Access, Watchpoint
from tests.unit.cli.stepper.conftest import image_of, look_at, stepped


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0x8000", 0x8000),
        ("32768", 0x8000),
        ("8000h", 0x8000),
        (" 0x8000 + 0x10 ", 0x8010),
        ("-1", (1 << 64) - 1),
        ("main", 0x8004),
        ("main+0x12", 0x8016),
        ("main-4", 0x8000),
        ("rsp", 0x1_0000_7C00),
        ("%rsp-8", 0x1_0000_7BF8),
        ("esp", 0x7C00),
        ("sp+2", 0x7C02),
        ("RSI", 0x12345),
        ("si", 0x2345),
        ("ds:si", 0x10000 + 0x2345),
        ("0x7c0:0x10", 0x7C10),
        ("ds:0", 0x10000),
    ],
)
def test_an_address_can_be_said_in_many_ways(text: str, address: int, memory: GuestMemory) -> None:
    look = stepped(look_at(memory, image=image_of([("main", 0x8004)])), rsp=0x1_0000_7C00, rsi=0x12345)
    look.sregs.ds.base = 0x10000
    assert parse_place(text, look) == address


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no address"),
        ("+", "is no address"),
        ("0x8000 0x10", "is no address"),
        ("mian", "'mian' is no number, register or symbol; did you mean main"),
        ("xs:0", "'xs' is no segment"),
        ("0x10000:0", "'0x10000' is no segment"),
        ("0x", "'0x' is no number"),
        ("\x1b[2J", r"'\\\\x1b\[2J' is no number"),
    ],
)
def test_what_is_no_address_is_named(text: str, why: str, memory: GuestMemory) -> None:
    with pytest.raises(ConfigurationError, match=why):
        parse_place(text, look_at(memory, image=image_of([("main", 0x8004)])))


@pytest.mark.parametrize(
    ("text", "address", "length", "access"),
    [
        ("0x9000", 0x9000, 1, Access.WRITE),
        ("0x9000 4", 0x9000, 4, Access.WRITE),
        ("0x9000 rw", 0x9000, 1, Access.ANY),
        ("main + 4 8 RW", 0x8008, 8, Access.ANY),
        ("main + 4", 0x8008, 1, Access.WRITE),
        ("0x9000 2 r", 0x9000, 2, Access.READ),
        ("0x9000 w", 0x9000, 1, Access.WRITE),
    ],
)
def test_a_watch_says_where_how_long_and_for_what(
    text: str, address: int, length: int, access: Access, memory: GuestMemory
) -> None:
    look = look_at(memory, image=image_of([("main", 0x8004)]))
    assert parse_watch(text, look) == Watchpoint(address, length, access)


@given(text=st.text(max_size=30))
def test_whatever_is_typed_is_an_address_or_refused_in_words(text: str) -> None:
    with GuestMemory("64K") as memory:
        for parse in (parse_place, parse_watch):
            try:
                parse(text, look_at(memory))
            except ConfigurationError as error:
                assert str(error).isprintable()
