"""pykvm.cli.display: what is shown of a screen and when, with a machine that is only a screen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pykvm.cli import screen as drawing
from pykvm.cli.display import MOST_HELD_BACK, Display
from pykvm.devices.screen import Screen
from pykvm.devices.vga import Vga
from pykvm.errors import ConfigurationError

SIZE = 80 * 25 * 2


class ScreenOnly:
    """As much of a machine as a Display looks at."""

    def __init__(self, text: bytes = b"") -> None:
        self.memory = bytearray(b" \x07" * (SIZE // 2))
        self.show(text)
        self.screen = Vga(lambda offset, size: bytes(self.memory[offset : offset + size]).ljust(size, b"\0"))

    def show(self, text: bytes) -> None:
        self.memory[: 2 * len(text) : 2] = text


class FakeLive:
    """Takes note of what it is shown, in place of a LiveScreen."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.is_over = False

    def __enter__(self) -> FakeLive:
        return self

    def __exit__(self, *error: object) -> None:
        self.is_over = True

    def update(self, screen: Screen) -> None:
        self.shown.append("".join(cell.character for cell in screen.rows[0]).rstrip())


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> FakeLive:
    """A live screen, for stdout is a terminal."""
    fake = FakeLive()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(drawing, "LiveScreen", lambda: fake)
    return fake


def test_without_a_terminal_the_last_screen_comes_at_the_end() -> None:
    display, machine = Display(True, None), ScreenOnly(b"first")
    assert not display.is_live
    with display.showing(machine):  # type: ignore[arg-type]
        display.tick()
        machine.show(b"last!")
    assert display.rest() == b"last!\n"


def test_a_screen_that_nobody_wants_is_not_printed() -> None:
    display = Display(False, None)
    with display.showing(ScreenOnly(b"text")):  # type: ignore[arg-type]
        pass
    assert display.rest() == b""


def test_a_run_that_ends_with_an_error_has_a_last_screen_as_well() -> None:
    display = Display(True, None)
    with pytest.raises(KeyboardInterrupt), display.showing(ScreenOnly(b"text")):  # type: ignore[arg-type]
        raise KeyboardInterrupt
    assert display.rest() == b"text\n"


def test_before_a_run_there_is_nothing_to_print_or_to_save() -> None:
    display = Display(True, None)
    assert display.rest() == b""
    display.save()
    display.tick()
    display.give_back()


def test_a_live_screen_is_redrawn_at_ticks_and_at_the_end(live: FakeLive) -> None:
    display, machine = Display(True, None), ScreenOnly(b"one")
    assert display.is_live
    with display.showing(machine):  # type: ignore[arg-type]
        display.tick()
        machine.show(b"two")
        display.tick()
        machine.show(b"end")
    assert live.shown == ["one", "two", "end"]
    assert live.is_over
    display.tick()
    assert live.shown == ["one", "two", "end"], "and no more"


def test_a_live_screen_ends_with_the_error_that_ends_the_run(live: FakeLive) -> None:
    display = Display(True, None)
    with pytest.raises(ZeroDivisionError), display.showing(ScreenOnly(b"last")):  # type: ignore[arg-type]
        _ = 1 / 0
    assert live.is_over
    assert live.shown == ["last"]


def test_what_is_printed_during_a_live_screen_is_held_back(live: FakeLive) -> None:
    display = Display(True, None)
    with display.showing(ScreenOnly()):  # type: ignore[arg-type]
        display.hold_back(b"serial ")
        display.hold_back(b"output\n")
    assert display.rest() == b"serial output\n"


def test_a_guest_that_prints_for_ever_fills_no_memory(live: FakeLive) -> None:
    display = Display(True, None)
    display.hold_back(b"first")
    for _ in range(3):
        display.hold_back(b"x" * MOST_HELD_BACK)
    assert len(display.rest()) == MOST_HELD_BACK
    assert display.rest().startswith(b"firstx")


# ---- a picture ----


def test_a_picture_is_saved_of_the_last_screen_alone(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="a screenshot needs Pillow")
    path = tmp_path / "screen.png"
    display = Display(False, str(path))
    with display.showing(ScreenOnly(b"text")):  # type: ignore[arg-type]
        assert not path.exists()
    display.save()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert display.rest() == b""


def test_a_picture_that_cannot_be_saved_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="a screenshot needs Pillow")
    for path, why in [(tmp_path, "it is a folder"), (tmp_path / "a" / "b.png", "there is no folder")]:
        with pytest.raises(ConfigurationError, match=f"cannot write the screenshot: {why}"):
            Display(False, str(path))


def test_without_pillow_a_picture_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="needs Pillow, which is not installed: pip install"):
        Display(False, "screen.png")
