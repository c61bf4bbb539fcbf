"""An explanation on the page: one idea a line, and no line longer than the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.observe.explaining import Bits, Explanation, explain, format_explanation
from pykvm.observe.explaining.explanation import Located


def test_what_there_is_to_say_has_a_label_each() -> None:
    explanation = Explanation(
        "a thing",
        "What it is.",
        "When it happens.",
        ("Do this.", "Then that."),
        ("a manual",),
        (Bits("ON", 0x100, "it is on"), Bits("-", 2, "reserved")),
        ("it cannot be.",),
        ("EINVAL: no.",),
        (Located(0x3F8, "THR", "sends"),),
    )
    assert format_explanation(explanation).splitlines() == [
        "a thing",
        "",
        "  what  What it is.",
        "  when  When it happens.",
        "  wrong it cannot be.",
        "  do    Do this.",
        "        Then that.",
        "  fails EINVAL: no.",
        "  bits  0x100  ON  it is on",
        "          0x2  -   reserved",
        "  there 0x3f8  THR  sends",
        "  see   a manual",
    ]


def test_what_is_not_said_has_no_label() -> None:
    assert format_explanation(Explanation("a thing", "What it is.", advice=("",))) == "a thing\n\n  what  What it is."


@pytest.mark.parametrize("words", ["exit 8", "ioctl KVM_SET_SREGS", "port 0x3f8", "cr4 0x20", "errno EINVAL"])
@given(width=st.integers(0, 300))
def test_lines_fit_the_terminal(words: str, width: int) -> None:
    lines = format_explanation(explain(words.split()), width).splitlines()
    assert all(len(line) <= max(60, min(width, 100)) for line in lines)
    assert all(line == line.rstrip() for line in lines)


@given(text=st.text(min_size=1))
def test_any_text_can_be_shown(text: str) -> None:
    assert format_explanation(Explanation("t", text, bits=(Bits("b", 1, text),)))
