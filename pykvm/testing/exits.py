"""Exits as data: patterns that match them, comparing them in words, and an observer that keeps them all.

An exit is a frozen dataclass, so that ``==`` and ``match`` work on it as they are. What is added here:

    IoOut(port=0x3F8, data=b"H")           that very exit
    like(IoOut, port=range(0x3F8, 0x400))  an exit of that kind whose other fields do not matter
    ANY                                    any one exit; as a field's value, any value
    ...                                    any exits, or none

See: ``pykvm.kvm.exits``. Leaves out where exits come from: a guest, a script and a recording look the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, Final, TypeVar, get_args, overload

from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, IoOut
from pykvm.machine import describe_exit

__all__ = [
    "ANY",
    "AllExits",
    "Anything",
    "ExitPattern",
    "Like",
    "assert_exits",
    "compare",
    "describe",
    "explain",
    "like",
    "select",
]

EXIT_KINDS: tuple[type[Exit], ...] = get_args(Exit)
CONTEXT = 4  # exits shown before and after the first that differs
NOTHING = "nothing more"

E = TypeVar("E", bound=Exit)


class Anything:
    """What equals everything: see ``ANY``."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY"


# Of every type, for it takes the place of a field of any: IoOut(port=ANY, data=b"H").
ANY: Final[Any] = Anything()


@dataclass(frozen=True, eq=False)
class Like:
    """An exit of ``kind`` whose ``fields`` have these values, and the others whatever they have: see ``like``."""

    kind: type
    fields: Mapping[str, object] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, self.kind) and not self.differences(other)

    def differences(self, exit: object) -> list[str]:
        """Return in words which fields of ``exit``, one of this kind, are not as they should be."""
        return [
            _field_difference(name, getattr(exit, name), wanted)
            for name, wanted in self.fields.items()
            if not _fits(getattr(exit, name), wanted)
        ]

    def __str__(self) -> str:
        fields = ", ".join(f"{name}={_show(name, value)}" for name, value in self.fields.items())
        return f"{self.kind.__name__} with {fields}" if fields else f"any {self.kind.__name__}"


ExitPattern = Exit | Like | Anything | EllipsisType


def like(kind: type, **fields: object) -> Like:
    """Return a pattern for exits of ``kind``: ``like(IoOut, port=0x3F8)``. A range stands for each number in it.

    Raises: ConfigurationError if ``kind`` is no exit or has no such field.
    """
    if kind not in EXIT_KINDS:
        raise ConfigurationError(f"{kind!r} is no kind of exit: pykvm.kvm.exits has them, such as IoOut")
    for name in fields:
        if not _has(kind, name):
            there = ", ".join(known.name for known in dataclasses.fields(kind)) or "none"
            raise ConfigurationError(f"{kind.__name__} has no field {name!r}: there is {there}")
    return Like(kind, fields)


@overload
def select(exits: Sequence[Exit], kind: type[E], **fields: object) -> list[E]: ...
@overload
def select(exits: Sequence[Exit], kind: None = None, **fields: object) -> list[Exit]: ...
def select(exits: Sequence[Exit], kind: type[E] | None = None, **fields: object) -> Sequence[Exit]:
    """Return those of ``exits`` that are of ``kind`` (None: all that have the fields) and whose ``fields`` fit.

    Raises: ConfigurationError as ``like`` does, or if no kind of exit has these fields.
    """
    kinds = [kind] if kind is not None else [known for known in EXIT_KINDS if all(_has(known, n) for n in fields)]
    if not kinds:
        raise ConfigurationError(f"no kind of exit has the fields {', '.join(fields)}")
    patterns = {known: like(known, **fields) for known in kinds}
    return [exit for exit in exits if type(exit) in patterns and patterns[type(exit)] == exit]


# ---- in words ----


def describe(exit: object) -> str:
    """Return an exit, or a pattern, in a few words."""
    if exit is ...:
        return "... (any exits)"
    if isinstance(exit, Anything):
        return "ANY (any exit)"
    if isinstance(exit, EXIT_KINDS):
        return repr(exit) if _has_any(exit) else describe_exit(exit)
    return str(exit)


def compare(got: Sequence[object], expected: Sequence[object]) -> list[str]:
    """Return in lines where ``got``, a list of exits, first differs from ``expected``; no lines if it fits."""
    place = _first_difference(got, expected)
    if place is None:
        return []
    at, wanted_at = place
    actual = describe(got[at]) if at < len(got) else NOTHING
    wanted = describe(expected[wanted_at]) if wanted_at < len(expected) else NOTHING
    lines = [f"the first difference is exit {at} (of {len(got)}): {actual}, where {wanted} is expected"]
    if at < len(got) and wanted_at < len(expected):
        lines += [f"  {difference}" for difference in _differences(got[at], expected[wanted_at])]
    return lines + _around(got, at)


def assert_exits(got: Sequence[Exit], expected: Sequence[ExitPattern]) -> None:
    """Raise AssertionError, with ``compare``'s lines, unless the exits ``got`` are as ``expected``, in order."""
    __tracebackhide__ = True
    lines = compare(got, expected)
    if lines:
        raise AssertionError("\n".join(["the exits are not what was expected", *lines]))


def explain(left: object, right: object) -> list[str] | None:
    """Return why ``left == right`` does not hold, if they are exits or lists of exits; else None."""
    one = [left], [right]
    pair = one if _are_exits(*one) else (left, right)
    if not all(isinstance(side, list | tuple) for side in pair) or not _are_exits(*pair):  # type: ignore[arg-type]
        return None
    lines = compare(*pair)  # type: ignore[arg-type]
    return ["the exits differ", *(lines or ["'...' stands for any exits in assert_exits() only"])]


def _are_exits(left: Sequence[object], right: Sequence[object]) -> bool:
    """Return whether all elements are exits or patterns, and one at least is more than a wildcard."""
    values = [*left, *right]
    known = (*EXIT_KINDS, Like)
    return any(isinstance(value, known) for value in values) and all(
        value is ... or isinstance(value, (*known, Anything)) for value in values
    )


def _first_difference(got: Sequence[object], expected: Sequence[object]) -> tuple[int, int] | None:
    """Return which exit, and which pattern, do not go together. A ``...`` takes as few exits as it can."""
    at, retry = 0, None
    furthest = (0, 0)
    wanted = 0
    while at < len(got) or wanted < len(expected):
        if wanted < len(expected) and expected[wanted] is ...:
            retry = (at, wanted + 1)
            wanted += 1
        elif at < len(got) and wanted < len(expected) and _is(got[at], expected[wanted]):
            at, wanted = at + 1, wanted + 1
        else:
            furthest = max(furthest, (at, wanted), key=lambda place: (place[1], place[0]))
            if retry is None or retry[0] >= len(got):
                return furthest
            retry = (retry[0] + 1, retry[1])  # let the last ... take one more
            at, wanted = retry
    return None


def _is(got: object, expected: object) -> bool:
    return bool(expected == got)


def _differences(got: object, expected: object) -> list[str]:
    if isinstance(expected, Like) and isinstance(got, expected.kind):
        return expected.differences(got)
    if type(got) is not type(expected) or not isinstance(expected, EXIT_KINDS):
        return []
    pairs = [(f.name, getattr(got, f.name), getattr(expected, f.name)) for f in dataclasses.fields(expected)]
    lines = [_field_difference(name, value, wanted) for name, value, wanted in pairs if value != wanted]
    return [*lines, *_impossible(expected)]


def _impossible(expected: object) -> list[str]:
    if not isinstance(expected, IoOut) or _has_any(expected):
        return []
    size = expected.size * expected.count
    if size == len(expected.data):
        return []
    return [
        f"no guest makes the expected exit: size * count is {size}, and data has {len(expected.data)} bytes; "
        "like(IoOut, port=..., data=...) leaves them out"
    ]


def _field_difference(name: str, got: object, wanted: object) -> str:
    return f"{name} is {_show(name, got)} instead of {_show(name, wanted)}"


def _show(name: str, value: object) -> str:
    plain = name in ("size", "count") or isinstance(value, bool) or not isinstance(value, int)
    return repr(value) if plain else f"{value:#x}"


def _around(got: Sequence[object], at: int) -> list[str]:
    first = max(0, at - CONTEXT)
    shown = [
        f"  {'>' if number == at else ' '} {number:3}  {describe(got[number])}"
        for number in range(first, min(len(got), at + CONTEXT + 1))
    ]
    return [*shown, f"  > {at:3}  {NOTHING}"] if at >= len(got) else shown


def _has_any(exit: Exit) -> bool:
    return any(isinstance(getattr(exit, known.name), Anything) for known in dataclasses.fields(exit))


def _has(kind: type, name: str) -> bool:
    return any(known.name == name for known in dataclasses.fields(kind))


def _fits(value: object, wanted: object) -> bool:
    return value in wanted if isinstance(wanted, range) else bool(value == wanted)


# ---- the observer ----


class AllExits:
    """Keeps the first ``limit`` exits of a machine, of all its vCPUs in order; counts those it ``dropped``."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._exits: list[tuple[int, Exit]] = []
        self.dropped = 0

    def exit(self, vcpu: int, exit: Exit) -> None:
        """Keep ``exit``."""
        if len(self._exits) < self._limit:
            self._exits.append((vcpu, exit))
        else:
            self.dropped += 1

    def tick(self) -> None:
        """Do nothing."""

    def exits(self, vcpu: int | None = None) -> list[Exit]:
        """Return the exits kept, oldest first: of ``vcpu``, or of all."""
        return [exit for id, exit in self._exits if vcpu is None or id == vcpu]

    def copy(self) -> AllExits:
        """Return what is kept now, apart from what comes later."""
        kept = AllExits(self._limit)
        kept._exits, kept.dropped = self._exits.copy(), self.dropped
        return kept
