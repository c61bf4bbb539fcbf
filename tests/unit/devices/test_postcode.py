"""pykvm.devices.postcode: how far a silent guest came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices import PostCode, postcode


def test_before_the_first_code_there_is_no_last_one_and_the_port_reads_0() -> None:
    post_code = PostCode()
    assert post_code.last is None
    assert post_code.codes == ()
    assert post_code.read(0, 1) == b"\x00"


def test_the_last_code_can_be_read_back() -> None:
    post_code = PostCode()
    post_code.write(0, b"\x11")
    post_code.write(0, b"\x12")
    assert post_code.read(0, 1) == b"\x12"
    assert post_code.last == 0x12


def test_code_0_is_a_code() -> None:
    post_code = PostCode()
    post_code.write(0, b"\x00")
    assert post_code.last == 0
    assert post_code.codes == (0,)


def test_each_code_is_told_as_it_comes() -> None:
    told: list[int] = []
    post_code = PostCode(told.append)
    for code in (1, 1, 2):
        post_code.write(0, bytes((code,)))
    assert told == [1, 1, 2]


@given(st.binary(max_size=3 * postcode.HISTORY))
def test_only_the_last_codes_are_kept(codes: bytes) -> None:
    post_code = PostCode()
    for code in codes:
        post_code.write(0, bytes((code,)))
    assert post_code.codes == tuple(codes[-postcode.HISTORY :])
