"""An explanation as lines of text: a title, then a labelled paragraph for each thing there is to say.

Leaves out colours: the text is the same on a terminal and in a file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from pykvm.observe.explaining.explanation import Explanation

__all__ = ["format_explanation"]

MARGIN = 8  # columns in front of the text, where the labels are
NARROWEST, WIDEST = 40, 100  # columns: what a line has at least, and what can be read with ease at most


def format_explanation(explanation: Explanation, width: int = 80) -> str:
    """Return ``explanation`` in lines of ``width`` columns, without a newline at the end."""
    width = min(max(width, NARROWEST), WIDEST)
    parts: Sequence[tuple[str, Sequence[str]]] = (
        ("what", (explanation.what,)),
        ("when", (explanation.when,)),
        ("wrong", explanation.wrong),
        ("do", explanation.advice),
        ("fails", explanation.fails),
    )
    lines = [explanation.title, ""]
    for label, paragraphs in parts:
        lines += _labelled(label, paragraphs, width)
    lines += _table("bits", [(field.raw, field.name, field.meaning) for field in explanation.bits], width)
    lines += _table("there", [(at.where, at.name, at.meaning) for at in explanation.registers], width)
    lines += _labelled("see", explanation.see, width)
    return "\n".join(lines)


def _labelled(label: str, paragraphs: Sequence[str], width: int) -> Iterator[str]:
    for paragraph in filter(None, paragraphs):
        yield from _wrap(paragraph, f"  {label}".ljust(MARGIN), MARGIN, width)
        label = ""


def _table(label: str, rows: Sequence[tuple[int, str, str]], width: int) -> Iterator[str]:
    longest_name = max((len(name) for _, name, _ in rows), default=0)
    longest_number = max((len(f"{number:#x}") for number, _, _ in rows), default=0)
    margin = f"  {label}".ljust(MARGIN)
    for number, name, meaning in rows:
        head = f"{margin}{number:>#{longest_number}x}  {name:<{longest_name}}  "
        yield from _wrap(meaning, head, len(head), width)
        margin = " " * MARGIN


def _wrap(text: str, head: str, indent: int, width: int) -> Sequence[str]:
    # A very wide table on a very narrow terminal leaves no room: then its lines are longer than the terminal's.
    room = max(width, indent + MARGIN)
    wrapped = textwrap.wrap(
        text, room, initial_indent=head, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapped or [head.rstrip()]
