"""What somebody types for an address: ``0x8000``, ``main+0x12``, ``rsp-8``, ``ds:si``, ``0x7c0:0x10``.

    place := [segment ":"] term {("+" | "-") term}
    term  := number | register | symbol

A segment is a segment register, whose base counts, or a number, which is a real-mode paragraph. A name is a register
before it is a symbol, for a symbol can be had by its address as well. Leaves out expressions of C.
"""

from __future__ import annotations

import re
from dataclasses import fields

from pykvm.boot.image import printable
from pykvm.cli.stepper.look import ADDRESSES, Look
from pykvm.errors import ConfigurationError
from pykvm.kvm import Regs
from pykvm.names import did_you_mean
from pykvm.observe.stepping import Access, Watchpoint

__all__ = ["parse_place", "parse_watch"]

SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")
GENERAL = frozenset(field.name for field in fields(Regs))
# The low 32 and 16 bits of the eight old registers and RIP: what 32-bit and 16-bit code calls them.
PARTS = {
    prefix + name: ("r" + name, bits)
    for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip")
    for prefix, bits in (("e", 32), ("", 16))
}
TERM = re.compile(r"\s*([+-]?)\s*([^\s+-]+)\s*")
ACCESSES = {"r": Access.READ, "w": Access.WRITE, "rw": Access.ANY}


def parse_place(text: str, look: Look) -> int:
    """Return the linear address that ``text`` means. Raises: ConfigurationError that says which part is none."""
    segment, colon, rest = text.rpartition(":")
    base = _segment_base(segment.strip().lower(), look) if colon else 0
    total, position = 0, 0
    while position < len(rest) or position == 0:
        match = TERM.match(rest, position)
        if match is None or (position > 0 and not match[1]):
            raise ConfigurationError(f"{text!r} is no address: write 0x8000, main+0x12, rsp-8 or ds:si")
        value = _term(match[2], look)
        total += -value if match[1] == "-" else value
        position = match.end()
    return (base + total) % ADDRESSES


def parse_watch(text: str, look: Look) -> Watchpoint:
    """Return what ``PLACE [LENGTH] [r|w|rw]`` asks for: a byte and its writes, if nothing else is said.

    Raises: ConfigurationError.
    """
    words = text.split()
    access = ACCESSES[words.pop().lower()] if len(words) > 1 and words[-1].lower() in ACCESSES else Access.WRITE
    length = int(words.pop()) if len(words) > 1 and words[-1].isdecimal() and words[-2][-1] not in "+-:" else 1
    return Watchpoint(parse_place(" ".join(words), look), length, access)


def _segment_base(segment: str, look: Look) -> int:
    if segment in SEGMENTS:
        base: int = getattr(look.sregs, segment).base
        return base
    paragraph = _number(segment)
    if paragraph is None or paragraph > 0xFFFF:
        raise ConfigurationError(f"{segment!r} is no segment: write cs, ds, es, fs, gs, ss or a number of 16 bits")
    return paragraph << 4


def _term(word: str, look: Look) -> int:
    number, name = _number(word), word.lower().removeprefix("%")
    if number is not None:
        return number
    if name in PARTS:
        register, bits = PARTS[name]
        value: int = getattr(look.regs, register)
        return value % (1 << bits)
    if name in GENERAL:
        general: int = getattr(look.regs, name)
        return general
    return _symbol(word, look)


def _symbol(word: str, look: Look) -> int:
    symbols = () if look.image is None else look.image.symbols
    addresses = {symbol.name: symbol.address for symbol in symbols}
    if word in addresses:
        return addresses[word]
    hint = did_you_mean(word, [*addresses, *GENERAL], most=1)
    raise ConfigurationError(f"{printable(word)!r} is no number, register or symbol{hint and '; ' + hint}")


def _number(word: str) -> int | None:
    """Return the number ``word``: 0x... or decimal, and hexadecimal as well if a digit says so, as in 8000h."""
    text = word.lower()
    try:
        if text.endswith("h") and text[:1].isdigit():
            return int(text[:-1], 16)
        return int(text, 0)
    except ValueError:
        return None
