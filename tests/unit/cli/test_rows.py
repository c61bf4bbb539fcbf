"""Rows are one line each for a pipe, and fit a terminal without losing text."""

from __future__ import annotations

import io
import sys

import pytest

from pykvm.cli.rows import print_rows

SENTENCE = "a sentence that is a good deal longer than what is left of the line on a terminal of eighty columns"
ROWS = [("short", "yes", SENTENCE), ("a longer name", "no", "[bold] is no markup here :smile:")]


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def print_on_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_rows(ROWS)
    monkeypatch.undo()
    return terminal.getvalue().splitlines()


def words_of(lines: list[str]) -> list[str]:
    return sorted(" ".join(lines).split())


def test_a_pipe_gets_one_line_a_row_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS)
    assert capsys.readouterr().out.splitlines() == [
        f"short          yes  {SENTENCE}",
        "a longer name  no   [bold] is no markup here :smile:",
    ]


def test_a_pipe_is_not_wrapped_at_the_terminals_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_rows(ROWS)
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("columns", [20, 60, 80, 100])
def test_a_terminal_of_any_width_gets_every_word(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = print_on_terminal(columns, monkeypatch)
    assert words_of(lines) == words_of([cell for row in ROWS for cell in row])
    assert [line.rstrip() for line in lines] == lines


def test_a_terminal_wraps_the_last_column_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *rest = print_on_terminal(80, monkeypatch)
    assert len(first) <= 80
    assert first.startswith("short          yes  a sentence")
    assert second.startswith(" " * 20)
    assert rest[-1].startswith("a longer name  no   [bold]")
