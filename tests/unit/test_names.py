"""pykvm.names."""

from __future__ import annotations

from pykvm.names import did_you_mean


def test_a_name_close_to_known_ones_is_asked_about() -> None:
    known = ["hello", "hollow", "nmi"]
    assert did_you_mean("hllo", known) == "did you mean hello or hollow?"
    assert did_you_mean("hllo", known, most=1) == "did you mean hello?"


def test_a_name_like_no_other_is_not() -> None:
    assert did_you_mean("zzzz", ["hello", "nmi"]) == ""
