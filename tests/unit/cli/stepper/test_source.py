"""pykvm.cli.stepper.source: the source that follows a guest, with the signs of the listing."""

from __future__ import annotations

import pytest

from pykvm.boot import Image, assemble
from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.rows import plain
from pykvm.cli.stepper.source import SourceView
from pykvm.memory import GuestMemory
from pykvm.x86 import Mode
from tests.unit.cli.stepper.conftest import look_at

SOURCE = """\
# A comment
_start:
	xor	%ax, %ax
	call	function	# the first call
	hlt

function:
	ret
"""


@pytest.fixture
def image() -> Image:
    return assemble(SOURCE, mode=Mode.REAL)


@pytest.fixture
def look(memory: GuestMemory, image: Image) -> Look:
    image.load(memory)
    return look_at(memory, image.segments[0].data, image=image, rip=image.entry)


def shown(view: SourceView, look: Look, breakpoints: tuple[int, ...] = (), height: int = 8) -> list[str]:
    return plain(view.rows(look, breakpoints, height, 60)).splitlines()


def test_the_line_of_the_next_instruction_is_marked(look: Look) -> None:
    view = SourceView()
    assert view.show(look, look.rip)
    assert shown(view, look) == [
        "      1 # A comment",
        "      2 _start:",
        " =>   3         xor     %ax, %ax",
        "      4         call    function        # the first call",
        "      5         hlt",
        "      6",
        "      7 function:",
        "      8         ret",
    ]


def test_a_breakpoint_is_shown_at_its_line_and_the_cursor_at_its_own(look: Look) -> None:
    view = SourceView()
    view.show(look, look.rip)
    view.move(look, 2)
    rows = shown(view, look, breakpoints=(look.rip + 2,))
    assert rows[3].startswith("B     4")
    assert rows[4].startswith("  >   5")
    assert view.address(look) == look.rip + 5


def test_a_line_without_code_has_no_address(look: Look) -> None:
    view = SourceView()
    view.show(look, look.rip)
    view.move(look, -2)
    assert view.cursor == 1
    assert view.address(look) is None


def test_the_cursor_stays_inside_the_source_and_in_sight(look: Look) -> None:
    view = SourceView()
    view.show(look, look.rip)
    for by, line in ((-100, 1), (100, 8), (-2, 6)):
        view.move(look, by)
        assert view.cursor == line
        assert any(f" {line} " in f"{row[3:]} " for row in shown(view, look, height=3))


def test_code_that_has_no_source_has_none_to_show(memory: GuestMemory, look: Look) -> None:
    assert not SourceView().show(look, 0x10)
    assert not SourceView().show(look_at(memory), 0x8000), "there is not even an image"
    assert SourceView().rows(look_at(memory), (), 5, 60) == []
