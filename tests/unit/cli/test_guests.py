"""``pykvm guests`` lists every bundled guest in aligned columns."""

from __future__ import annotations

import pytest

from pykvm.boot import bundled_guests
from pykvm.cli.main import main


def test_every_guest_has_a_line_with_mode_needs_and_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guests"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["guest", "mode", "needs", "what", "it", "shows"]
    for line, guest in zip(lines, bundled_guests(), strict=True):
        name, mode, needs, summary = line.split(maxsplit=3)
        assert (name, mode, needs, summary) == (guest.name, guest.mode, " ".join(guest.needs) or "-", guest.summary)


def test_the_columns_are_aligned_and_nothing_trails(capsys: pytest.CaptureFixture[str]) -> None:
    main(["guests"])
    lines = capsys.readouterr().out.splitlines()
    summaries = ["what it shows", *(guest.summary for guest in bundled_guests())]
    assert len({line.index(summary) for line, summary in zip(lines, summaries, strict=True)}) == 1
    assert [line.rstrip() for line in lines] == lines
