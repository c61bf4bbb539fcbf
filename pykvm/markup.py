"""HTML for notebooks: plain tables, and every text in them escaped.

A notebook asks the value of a cell for its ``_repr_html_``, and shows what that returns as a part of the page. So no
text may bring HTML of its own, for a guest chose much of it, and nothing may be long, for a guest can print for ever.
There are no colours but the page's own: light and dark ones look well. See: IPython's documentation, "Rich display".
Leaves out what is worth showing: each class knows that of itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import islice
from typing import TypeVar

__all__ = [
    "LONGEST_TEXT",
    "MOST_ROWS",
    "Markup",
    "Record",
    "facts",
    "folded",
    "grid",
    "preformatted",
    "record",
    "stacked",
    "table",
]

T = TypeVar("T")

LONGEST_TEXT = 4000  # characters
MOST_ROWS = 200

# Notebooks align the cells of a table to the right, and code is read from the left.
_LEFT = 'style="text-align: left; vertical-align: top"'


class Markup(str):
    """HTML that was made here; whatever is not of this type is text, and is escaped."""

    __slots__ = ()


class Record:
    """A dataclass that notebooks show as a table of its fields."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return record(self, type(self).__name__)


def record(value: object, caption: str = "") -> Markup:
    """Return the fields of the dataclass instance ``value`` as a table, each with its name."""
    if not is_dataclass(value):
        raise TypeError(f"{value!r} is no dataclass, and has no fields to show")
    return facts(((field.name, getattr(value, field.name)) for field in fields(value)), caption)


def facts(pairs: Iterable[tuple[str, object]], caption: str = "") -> Markup:
    """Return a table of two columns: names and values."""
    return grid(list(islice(pairs, MOST_ROWS + 1)), 1, caption)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Markup:
    """Return a table whose columns are called ``head``; of ``rows`` it has MOST_ROWS at most."""
    names = "".join(f"<th scope=col {_LEFT}>{_escape(name)}</th>" for name in head)
    cells = [f"<tr>{''.join(map(_cell, row))}</tr>" for row in _some(rows)]
    return _table(caption, f"<thead><tr>{names}</tr></thead>", cells)


def grid(pairs: Sequence[tuple[str, object]], columns: int, caption: str = "") -> Markup:
    """Return a table of short ``pairs`` of name and value, ``columns`` of them side by side."""
    cells = [f"<th scope=row {_LEFT}>{_escape(name)}</th>{_cell(value)}" for name, value in _some(pairs)]
    rows = [f"<tr>{''.join(cells[first : first + columns])}</tr>" for first in range(0, len(cells), columns)]
    return _table(caption, "", rows)


def stacked(*parts: Markup) -> Markup:
    """Return ``parts`` one below the other."""
    return Markup(f"<div>{''.join(parts)}</div>")


def preformatted(text: str) -> Markup:
    """Return ``text`` with its spaces and line breaks; of a long one, the end."""
    left_out = len(text) - LONGEST_TEXT
    before = f"... {left_out} characters before\n" if left_out > 0 else ""
    return Markup(f"<pre>{_escape(before + text[-LONGEST_TEXT:], len(before) + LONGEST_TEXT)}</pre>")


def folded(summary: str, body: Markup) -> Markup:
    """Return ``body`` hidden behind ``summary``, until somebody clicks on that."""
    return Markup(f"<details><summary>{_escape(summary)}</summary>{body}</details>")


def _some(rows: Iterable[T]) -> Iterator[T | tuple[str, str]]:
    for number, row in enumerate(rows):
        if number == MOST_ROWS:
            yield "...", "and more"
            return
        yield row


def _table(caption: str, head: str, rows: Sequence[str]) -> Markup:
    title = f"<caption {_LEFT}>{_escape(caption)}</caption>" if caption else ""
    return Markup(f"<table>{title}{head}<tbody>{''.join(rows)}</tbody></table>")


def _cell(value: object) -> str:
    return f"<td {_LEFT}>{_shown(value)}</td>"


def _shown(value: object) -> str:
    if isinstance(value, Markup):
        return value
    if isinstance(value, bytes | Enum | int) and not isinstance(value, bool):
        return f"<code>{_escape(_text(value))}</code>"
    show = None if isinstance(value, type) else getattr(value, "_repr_html_", None)
    return _escape(_text(value)) if show is None else str(show())


def _text(value: object) -> str:
    """Return a value as text, numbers as the manuals print them."""
    match value:
        case bool():
            return str(value)
        case Enum():
            return value.name
        case int():
            return f"{value:#x}" if value > 9 else str(value)
        case bytes():
            return value[: LONGEST_TEXT + 1].hex(" ")
        case tuple() | list():
            return ", ".join(map(_text, value[:MOST_ROWS])) + (", ..." if len(value) > MOST_ROWS else "")
    return str(value)


def _escape(text: str, limit: int = LONGEST_TEXT) -> str:
    """Return ``text`` as HTML that stands for nothing but its characters; those that do not print are named."""
    import html  # for notebooks: nobody else waits for it

    kept = text if len(text) <= limit else f"{text[:limit]}... and {len(text) - limit} characters more"
    return html.escape("".join(map(_printable, kept)))


def _printable(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode("ascii")
