"""Packets of gdb's remote serial protocol: bytes from a wire into packets, and packets into bytes.

    $ data # checksum      a packet: data with '#', '$', '*' and '}' escaped, and the sum of its bytes in two hex digits
    +  -                   it arrived; it arrived damaged, send it again (until both sides agree to leave these out)
    0x03                   Ctrl-C: stop the guest

Whoever is at the other end may send anything: a reader keeps one packet at most, and never more than its limit. See:
the manual of gdb, "Overview" of appendix "gdb Remote Serial Protocol". Leaves out run-length encoding, which only
replies may use and none has to.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

__all__ = ["PACKET_SIZE", "Damaged", "Packet", "PacketReader", "Received", "Sign", "decode_hex", "encode", "escape"]

PACKET_SIZE = 0x4000  # bytes of data, escaped, in a packet of either side; gdb is told of it

START, END, ESCAPE, REPEAT = b"$", b"#", b"}", b"*"
ESCAPE_BIT = 0x20  # what an escaped byte is exclusive-ored with
CHECKSUM_DIGITS = 2
MODULUS = 256

_ESCAPED = re.compile(re.escape(ESCAPE) + b"(.)", re.DOTALL)
_SPECIAL = frozenset(START + END + ESCAPE + REPEAT)
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class Sign(enum.Enum):
    """What is one byte outside of packets."""

    ACK = ord("+")
    NACK = ord("-")
    INTERRUPT = 0x03


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that arrived whole: ``data`` with nothing escaped any more."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Damaged:
    """A packet that cannot be used: ``reason`` in words. ``may_repeat`` says whether to send it again would help."""

    reason: str
    may_repeat: bool


Received = Packet | Damaged | Sign


class PacketReader:
    """Takes bytes as they come, in pieces of any size."""

    def __init__(self, limit: int = PACKET_SIZE) -> None:
        self._limit = limit
        self._data: bytearray | None = None  # of the packet that has begun
        self._length = 0  # how long that is; more than the limit is not kept
        self._checksum: bytearray | None = None  # the digits that have come

    def feed(self, data: bytes) -> list[Received]:
        """Return what is complete now that ``data`` has come."""
        return [received for byte in data if (received := self._take(byte)) is not None]

    def _take(self, byte: int) -> Received | None:
        if byte == START[0]:  # never inside a packet, where it would be escaped: the one before was cut off
            self._data, self._length, self._checksum = bytearray(), 0, None
        elif self._data is None:
            return next((sign for sign in Sign if sign.value == byte), None)
        elif self._checksum is not None:
            self._checksum.append(byte)
            return self._finish() if len(self._checksum) == CHECKSUM_DIGITS else None
        elif byte == END[0]:
            self._checksum = bytearray()
        else:
            self._length += 1
            if self._length <= self._limit:
                self._data.append(byte)
        return None

    def _finish(self) -> Packet | Damaged:
        data, digits, length = bytes(self._data or b""), bytes(self._checksum or b""), self._length
        self._data = self._checksum = None
        if length > self._limit:
            return Damaged(f"a packet has at most {self._limit} bytes, not {length}", may_repeat=False)
        if not _HEX_DIGITS.issuperset(digits) or int(digits, 16) != sum(data) % MODULUS:
            return Damaged("the checksum is wrong", may_repeat=True)
        return Packet(_unescape(data))


def encode(data: bytes) -> bytes:
    """Return the packet that carries ``data``, which is escaped where need be."""
    text = escape(data)
    return START + text + END + f"{sum(text) % MODULUS:02x}".encode()


def escape(data: bytes) -> bytes:
    """Return ``data`` without the bytes that mean something to a packet."""
    if _SPECIAL.isdisjoint(data):
        return data
    return b"".join(ESCAPE + bytes([byte ^ ESCAPE_BIT]) if byte in _SPECIAL else bytes([byte]) for byte in data)


def decode_hex(digits: bytes) -> bytes:
    """Return the bytes that ``digits``, two for each, stand for. Raises: ValueError for anything else."""
    if not _HEX_DIGITS.issuperset(digits):  # bytes.fromhex would take spaces
        raise ValueError(f"{digits[:16]!r} is not hexadecimal")
    return bytes.fromhex(digits.decode("ascii"))


def _unescape(data: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: bytes([match[1][0] ^ ESCAPE_BIT]), data)
