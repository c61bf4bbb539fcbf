from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.observe.gdbstub.packets import Damaged, Packet, PacketReader, Received, Sign, decode_hex, encode, escape


def read(data: bytes, limit: int = 64) -> list[Received]:
    return PacketReader(limit).feed(data)


def test_a_packet_is_its_data_between_a_dollar_and_a_checksum() -> None:
    assert encode(b"OK") == b"$OK#9a"
    assert read(b"$OK#9a") == [Packet(b"OK")]
    assert read(b"$#00") == [Packet(b"")]


@given(st.binary(max_size=60))
def test_what_is_encoded_is_read_back(data: bytes) -> None:
    assert read(encode(data), 200) == [Packet(data)]


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(1, 7))
def test_it_does_not_matter_in_which_pieces_bytes_come(packets: list[bytes], size: int) -> None:
    stream = b"+".join(map(encode, packets))
    reader = PacketReader(64)
    received = [item for start in range(0, len(stream), size) for item in reader.feed(stream[start : start + size])]
    assert [item for item in received if item is not Sign.ACK] == [Packet(data) for data in packets]


@given(st.binary(max_size=200))
def test_a_reader_takes_whatever_comes_and_keeps_no_more_than_its_limit(data: bytes) -> None:
    for received in read(data, 16):
        assert isinstance(received, Packet | Damaged | Sign)
        assert not isinstance(received, Packet) or len(received.data) <= 16


@given(st.binary(max_size=60))
def test_escaped_data_has_no_byte_that_means_something(data: bytes) -> None:
    assert not set(b"$#*") & set(escape(data))


def test_what_means_something_is_escaped() -> None:
    assert escape(b"a$#*}b") == b"a}\x04}\x03}\x0a}]b"


def test_signs_stand_between_packets() -> None:
    assert read(b"+-\x03$a#61\x03") == [Sign.ACK, Sign.NACK, Sign.INTERRUPT, Packet(b"a"), Sign.INTERRUPT]


def test_ctrl_c_inside_a_packet_is_data() -> None:
    assert read(encode(b"X0,1:\x03")) == [Packet(b"X0,1:\x03")]


def test_other_bytes_between_packets_mean_nothing() -> None:
    assert read(b"GET / HTTP/1.1\r\n\r\n") == []


@pytest.mark.parametrize("checksum", [b"00", b"9b", b"zz", b"+9", b"9 "])
def test_a_wrong_checksum_asks_for_the_packet_again(checksum: bytes) -> None:
    assert read(b"$OK#" + checksum) == [Damaged("the checksum is wrong", may_repeat=True)]


def test_a_packet_that_is_too_long_is_dropped_and_the_next_one_is_read() -> None:
    reader = PacketReader(8)
    received = reader.feed(b"$" + b"a" * 1000 + b"#00" + encode(b"next"))
    assert received == [Damaged("a packet has at most 8 bytes, not 1000", may_repeat=False), Packet(b"next")]


def test_a_packet_that_is_cut_off_by_the_next_one_is_forgotten() -> None:
    assert read(b"$half" + encode(b"whole")) == [Packet(b"whole")]


@pytest.mark.parametrize("digits", [b"1", b"0g", b"0 1", b" 01", b"+1", b"0x01"])
def test_only_pairs_of_digits_are_hexadecimal(digits: bytes) -> None:
    with pytest.raises(ValueError, match=r"hexadecimal|non-hex"):
        decode_hex(digits)


def test_a_dollar_among_the_checksum_begins_a_packet() -> None:
    assert read(b"$half#" + encode(b"whole")) == [Packet(b"whole")]
