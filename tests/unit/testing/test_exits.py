"""Patterns of exits, what they match, and how a difference is put into words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Shutdown
from pykvm.testing import ANY, AllExits, like
from pykvm.testing.exits import ExitPattern, assert_exits, compare, explain, select
from pykvm.units import Gpa

H, LITTLE_I, DOT = IoOut(port=0x3F8, data=b"H"), IoOut(port=0x3F8, data=b"i"), IoOut(port=0xE9, data=b".")
READ = MmioRead(Gpa(0xFED0_0000), 4)


def message(got: list[Exit], expected: list[ExitPattern]) -> str:
    with pytest.raises(AssertionError) as caught:
        assert_exits(got, expected)
    return str(caught.value)


# ---- patterns ----


def test_an_output_of_one_byte_needs_only_port_and_data() -> None:
    assert IoOut(port=0x3F8, data=b"H") == IoOut(0x3F8, 1, 1, b"H")


def test_any_takes_the_place_of_one_exit() -> None:
    assert_exits([H, LITTLE_I, Hlt()], [H, ANY, Hlt()])
    assert compare([H, Hlt()], [H, ANY, Hlt()])


def test_any_takes_the_place_of_a_field() -> None:
    assert_exits([IoOut(0x3F8, 1, 5, b"Hello")], [IoOut(port=0x3F8, size=ANY, count=ANY, data=b"Hello")])


def test_like_leaves_the_other_fields_open() -> None:
    assert_exits([IoOut(0x3F8, 1, 5, b"Hello"), IoIn(0x3FD)], [like(IoOut, data=b"Hello"), like(IoIn)])
    assert like(IoOut, port=0x3F8) != IoIn(0x3F8)


def test_a_range_stands_for_every_number_in_it() -> None:
    assert like(IoOut, port=range(0x3F8, 0x400)) == H
    assert like(IoOut, port=range(0x3F8, 0x400)) != DOT


def test_patterns_match_on_either_side_of_an_equals_sign() -> None:
    assert [H, Hlt()] == [like(IoOut, port=0x3F8), ANY]
    assert [like(IoOut, port=0x3F8), ANY] == [H, Hlt()]


@pytest.mark.parametrize(
    "expected",
    [[...], [..., H, ...], [H, ..., Hlt()], [..., Hlt()], [H, LITTLE_I, ..., DOT, Hlt(), ...], [..., ..., DOT, Hlt()]],
    ids=str,
)
def test_three_dots_stand_for_any_exits_or_none(expected: list[ExitPattern]) -> None:
    assert_exits([H, LITTLE_I, DOT, Hlt()], expected)


@pytest.mark.parametrize("expected", [[H, ...], [..., H], [..., DOT, ...], [..., LITTLE_I, H, H, ...]], ids=str)
def test_what_is_between_three_dots_must_be_there(expected: list[ExitPattern]) -> None:
    assert compare([LITTLE_I, H, Hlt()], expected)


LETTERS = st.lists(st.sampled_from([H, LITTLE_I, DOT]), max_size=6)


@given(LETTERS, LETTERS, LETTERS, LETTERS)
def test_three_dots_match_whatever_is_cut_out(a: list[Exit], b: list[Exit], c: list[Exit], d: list[Exit]) -> None:
    assert_exits(a + b + c + d, [*a, ..., *c, ..., *d])


@given(LETTERS, LETTERS)
def test_without_patterns_lists_match_if_they_are_equal(got: list[Exit], expected: list[Exit]) -> None:
    assert (compare(got, expected) == []) == (got == expected)


def test_like_refuses_what_is_no_exit_or_no_field() -> None:
    with pytest.raises(ConfigurationError, match="no kind of exit"):
        like(int)
    with pytest.raises(ConfigurationError, match="IoOut has no field 'address': there is port, size, count, data"):
        like(IoOut, address=1)


# ---- selecting ----


def test_exits_are_selected_by_kind_and_field() -> None:
    exits: list[Exit] = [H, READ, IoIn(0x3F8), DOT, Hlt()]
    assert select(exits, IoOut) == [H, DOT]
    assert select(exits, IoOut, port=0x3F8) == [H]
    assert select(exits, port=0x3F8) == [H, IoIn(0x3F8)]
    assert select(exits, address=range(0xFED0_0000, 0xFED0_1000)) == [READ]
    assert select(exits) == exits


def test_selecting_by_a_field_that_no_exit_has_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no kind of exit has the fields prot"):
        select([H], prot=0x3F8)


# ---- in words ----


def test_the_first_difference_is_told_by_field() -> None:
    assert message([H, LITTLE_I, Hlt()], [H, H, Hlt()]).splitlines() == [
        "the exits are not what was expected",
        "the first difference is exit 1 (of 3): io out 0x3f8 'i', where io out 0x3f8 'H' is expected",
        "  data is b'i' instead of b'H'",
        "      0  io out 0x3f8 'H'",
        "  >   1  io out 0x3f8 'i'",
        "      2  hlt",
    ]


def test_numbers_that_are_addresses_are_told_in_hexadecimal() -> None:
    assert "port is 0xe9 instead of 0x3f8" in message([DOT], [like(IoOut, port=0x3F8)])
    assert "size is 4 instead of 8" in message([READ], [MmioRead(READ.address, 8)])


def test_too_few_and_too_many_exits_are_told() -> None:
    assert "exit 1 (of 1): nothing more, where hlt is expected" in message([H], [H, Hlt()])
    assert "exit 1 (of 2): hlt, where nothing more is expected" in message([H, Hlt()], [H])


def test_a_pattern_is_told_in_words() -> None:
    text = message([Shutdown()], [like(IoOut, port=0x3F8)])
    assert "shutdown (triple fault), where IoOut with port=0x3f8 is expected" in text
    assert "where any IoIn is expected" in message([H], [like(IoIn)])
    assert "nothing more, where ANY (any exit) is expected" in message([], [ANY])


def test_after_three_dots_the_last_place_looked_at_is_told() -> None:
    assert "exit 3 (of 3): nothing more, where hlt is expected" in message([H, LITTLE_I, DOT], [H, ..., Hlt()])


def test_an_expected_exit_that_cannot_be_is_told() -> None:
    text = message([IoOut(0x3F8, 1, 2, b"Hi")], [IoOut(port=0x3F8, data=b"Hi")])
    assert "size * count is 1, and data has 2 bytes; like(IoOut, port=..., data=...) leaves them out" in text


def test_equality_is_explained_for_exits_and_lists_of_them_only() -> None:
    assert explain([H], [LITTLE_I]) is not None
    assert explain(H, LITTLE_I) is not None
    assert explain([H], like(IoOut)) is None
    assert explain([1], [2]) is None
    assert explain([], []) is None
    assert explain([H], [1]) is None
    assert explain("H", H) is None
    assert explain([H], [...]) == ["the exits differ", "'...' stands for any exits in assert_exits() only"]


# ---- keeping exits ----


def test_all_exits_are_kept_by_vcpu_and_in_order() -> None:
    log = AllExits()
    for vcpu, exit in ((0, H), (1, DOT), (0, Hlt())):
        log.exit(vcpu, exit)
    assert log.exits() == [H, DOT, Hlt()]
    assert log.exits(0) == [H, Hlt()]
    assert log.exits(1) == [DOT]


def test_no_more_exits_are_kept_than_the_limit() -> None:
    log = AllExits(limit=2)
    for _ in range(5):
        log.exit(0, MmioWrite(Gpa(0), b"x"))
    assert (len(log.exits()), log.dropped) == (2, 3)


def test_a_copy_of_the_log_stays_as_it_is() -> None:
    log = AllExits()
    log.exit(0, H)
    before = log.copy()
    log.exit(0, LITTLE_I)
    assert before.exits() == [H]
