"""What the guest printed, and the report on its end, as rows: wrapped, and with nothing that a terminal would obey.

Leaves out colours that the guest asks for by escape sequences: they are shown as ``^[`` and what follows.
"""

from __future__ import annotations

import textwrap

from pykvm.cli.stepper.rows import Kind, Row, row

__all__ = ["output_rows", "report_rows"]

MOST = 1 << 14  # bytes of output that are looked at: the last ones
TAB = 8
REPORT_LABELS = 17  # columns: see pykvm.machine.report


def output_rows(data: bytes, dropped: int, width: int) -> list[Row]:
    """Return the end of ``data``, before which the guest printed ``dropped`` bytes more, in ``width`` columns."""
    left_out = dropped + max(0, len(data) - MOST)
    text = data[-MOST:].decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n")
    first = [row(f"... {left_out} bytes before", Kind.FAINT)] if left_out else []
    return [*first, *_wrapped(text, width)] if data else [row("nothing yet", Kind.FAINT)]


def _wrapped(text: str, width: int) -> list[Row]:
    rows = []
    for line in text.split("\n"):
        shown = "".join(map(_visible, line.expandtabs(TAB)))
        rows += [row(shown[start : start + width]) for start in range(0, max(len(shown), 1), max(width, 1))]
    return rows


def report_rows(report: str, width: int) -> list[Row]:
    """Return a crash report in ``width`` columns: what is longer goes on under the text, right of the labels."""
    rows = []
    for line in report.split("\n"):
        indent = " " * min(REPORT_LABELS, width // 2) if line.startswith("  ") else ""
        rows += textwrap.wrap(line, max(width, 2), subsequent_indent=indent, drop_whitespace=True) or [""]
    return [row("".join(map(_visible, line))) for line in rows]


def _visible(character: str) -> str:
    """Return ``character`` as a terminal can show it: control characters in caret notation."""
    if character.isprintable():
        return character
    return f"^{chr(ord(character) ^ 0x40)}" if ord(character) < 0x80 else "�"
