"""How the data of a packet is written: numbers, lists and names, from a peer who may write anything.

Leaves out what the commands mean: see ``session``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALL_THREADS", "ANY_THREAD", "Action", "actions", "hex_text", "number", "numbers", "thread"]

MOST_DIGITS = 16  # of a number of 64 bits
MOST_ACTIONS = 256  # of a vCont packet

ALL_THREADS, ANY_THREAD = -1, 0

_DIGITS = frozenset(b"0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a vCont packet: "c" or "s", for ``thread``."""

    letter: str
    thread: int


def number(text: bytes) -> int:
    """Return the number that ``text``, hexadecimal, is. Raises: ValueError for more than 64 bits, or anything else."""
    if not 0 < len(text) <= MOST_DIGITS or not _DIGITS.issuperset(text):
        raise ValueError(f"{text[:20]!r} is not a hexadecimal number of 64 bits")
    return int(text, 16)


def numbers(text: bytes, count: int) -> list[int]:
    """Return the ``count`` numbers that ``text`` lists. Raises: ValueError."""
    parts = text.split(b",")
    if len(parts) != count:
        raise ValueError(f"{count} numbers are wanted, not {len(parts)}")
    return [number(part) for part in parts]


def thread(text: bytes) -> int:
    """Return the number of the thread ``text``: -1 for all, 0 for any. Raises: ValueError."""
    return ALL_THREADS if text == b"-1" else number(text)


def actions(text: bytes) -> list[Action]:
    """Return the actions that a vCont packet has after its first semicolon. Raises: ValueError."""
    parts = text.split(b";")
    if len(parts) > MOST_ACTIONS:
        raise ValueError(f"at most {MOST_ACTIONS} actions, not {len(parts)}")
    return [_action(part) for part in parts]


def hex_text(text: str) -> bytes:
    """Return ``text`` as gdb takes text to show: two digits a byte."""
    return text.encode("utf-8", "replace").hex().encode()


def _action(text: bytes) -> Action:
    what, colon, who = text.partition(b":")
    letter = what[:1].decode("latin-1").lower()  # C and S carry a signal, and guests have none
    if letter not in ("c", "s"):
        raise ValueError(f"there is no action {what[:20]!r}")
    return Action(letter, thread(who) if colon else ALL_THREADS)
