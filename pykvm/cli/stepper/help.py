"""``HelpScreen``: the keys and the signs, over everything else, until a key is pressed.

Leaves out what the keys are: see ``keys``.
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from pykvm.cli.stepper.keys import help_text

__all__ = ["HelpScreen"]


class HelpScreen(ModalScreen[None]):
    """The help; Esc, Enter, ? and q close it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,question_mark,q", "app.pop_screen", "close", show=False)
    ]
    DEFAULT_CSS = """
    HelpScreen VerticalScroll { background: $surface; }
    """

    def compose(self) -> ComposeResult:
        """Return the text, which scrolls if it is longer than the screen."""
        with VerticalScroll():
            yield Static(help_text(), markup=False)
