"""What the guest printed, and the report on its end, as rows: wrapped, and with nothing that a terminal would obey.

Leaves out colours that the guest asks for by escape sequences: they are shown as ``^[`` and what follows.
"""

from __future__ import annotations

from pykvm.cli.stepper.rows import Kind, Row, row

__all__ = ["output_rows", "paragraph_rows"]

MOST = 1 << 14  # bytes of output that are looked at: the last ones
TAB = 8


def output_rows(data: bytes, dropped: int, width: int) -> list[Row]:
    """Return the end of ``data``, before which the guest printed ``dropped`` bytes more, in ``width`` columns."""
    left_out = dropped + max(0, len(data) - MOST)
    text = data[-MOST:].decode("utf-8", "replace").replace("\r\n", "\n").removesuffix("\n")
    first = [row(f"... {left_out} bytes before", Kind.FAINT)] if left_out else []
    return [*first, *paragraph_rows(text, width)] if data else [row("nothing yet", Kind.FAINT)]


def paragraph_rows(text: str, width: int) -> list[Row]:
    """Return ``text`` in ``width`` columns."""
    rows = []
    for line in text.split("\n"):
        shown = "".join(map(_visible, line.expandtabs(TAB)))
        rows += [row(shown[start : start + width]) for start in range(0, max(len(shown), 1), max(width, 1))]
    return rows


def _visible(character: str) -> str:
    """Return ``character`` as a terminal can show it: control characters in caret notation."""
    if character.isprintable():
        return character
    return f"^{chr(ord(character) ^ 0x40)}" if ord(character) < 0x80 else "�"
