"""Words that people type after ``pykvm explain``: numbers of a given width, and names that are nearly right.

Leaves out what the words are about: that is each kind's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pykvm.errors import ConfigurationError
from pykvm.names import closest

__all__ = ["find_name", "looks_like_number", "one", "one_or_two", "parse_number", "unknown"]

LONGEST_WORD = 200  # characters of a word that are repeated in a message


def looks_like_number(word: str) -> bool:
    """Return whether ``word`` begins as a number does, and so is to be read as one."""
    return word.lstrip("+-")[:1].isdigit()


def parse_number(word: str, width: int, what: str) -> int:
    """Return the number ``word``, in decimal or as 0x..., 0b..., 0o...; a negative one as ``width`` bits have it.

    Raises: ConfigurationError, which names ``what``, if it is no number or has more than ``width`` bits.
    """
    try:
        number = int(word, 0)
    except ValueError:
        raise ConfigurationError(f"{_short(word)!r} is not {what}: write a number, as 14 or 0x80000021") from None
    if not -(1 << (width - 1)) <= number < 1 << width:
        raise ConfigurationError(f"{_short(word)} is not {what}: it has {width} bits at most")
    return number & ((1 << width) - 1)


def find_name(word: str, names: Iterable[str], what: str, prefixes: Sequence[str] = ()) -> str:
    """Return the one of ``names`` that ``word`` means: in any case, with "-" for "_", without one of ``prefixes``.

    Raises: ConfigurationError that says the nearest if there is none.
    """
    known = {name.upper(): name for name in names}
    wanted = word.strip().upper().replace("-", "_")
    for prefix in ("", *prefixes):
        if prefix + wanted in known:
            return known[prefix + wanted]
    raise unknown(word, known.values(), what, prefixes)


def unknown(word: str, names: Iterable[str], what: str, prefixes: Sequence[str] = ()) -> ConfigurationError:
    """Return the error for a ``word`` that is none of ``names``: it says which are the nearest."""
    # A prefix that all names share hides how little the rest has in common: what was typed is compared without it.
    stems = {_without(name.upper(), prefixes): name for name in names}
    wanted = _without(word.strip().upper().replace("-", "_"), prefixes)[:LONGEST_WORD]
    near = " or ".join(stems[stem] for stem in closest(wanted, stems))
    hint = f"did you mean {near}?" if near else "'pykvm explain' lists what can be explained"
    return ConfigurationError(f"there is no {what} {_short(word)!r}: {hint}")


def one(words: Sequence[str], what: str) -> str:
    """Return the only one of ``words``. Raises: ConfigurationError if there are none or more."""
    return one_or_two(words, what, most=1)[0]


def one_or_two(words: Sequence[str], what: str, most: int = 2) -> Sequence[str]:
    """Return ``words``, of which there are 1 to ``most``. Raises: ConfigurationError that says ``what`` they are."""
    if not 1 <= len(words) <= most:
        raise ConfigurationError(f"give {what}" + (f", not {len(words)} words" if words else ""))
    return words


def _without(name: str, prefixes: Sequence[str]) -> str:
    for prefix in prefixes:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _short(word: str) -> str:
    return word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}..."
