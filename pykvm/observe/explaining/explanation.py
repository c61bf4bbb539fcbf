"""An explanation as a value: what something is, when it happens, what to do, where it is specified, and its bits.

Leaves out where explanations come from, and how they look on a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Bits", "Explanation", "Located"]


@dataclass(frozen=True, slots=True)
class Bits:
    """Some bits of a number: ``raw`` is those that are set, at their place, ``name`` the manual's, and what they mean.

    All ``raw`` of an explanation, put together with OR, are the number that was asked about.
    """

    name: str
    raw: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Located:
    """A register of a device: the port or address ``where`` it is, its ``name``, and what it is for."""

    where: int
    name: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """``title`` names the thing in one line, ``what`` says what it is; the others may be empty.

    ``when`` says when it happens or is used, ``advice`` what to do, a paragraph each; ``wrong`` what no CPU or kernel
    would accept; ``see`` where it is specified, a place a string; ``fails`` what its errors mean; ``registers`` are a
    device's. ``known`` is false if there is nothing to say but that.
    """

    title: str
    what: str
    when: str = ""
    advice: tuple[str, ...] = ()
    see: tuple[str, ...] = ()
    bits: tuple[Bits, ...] = ()
    wrong: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()
    registers: tuple[Located, ...] = ()
    known: bool = True
