"""``Prompt``: a line that asks for something in the place of the keys, and gives the focus back.

Leaves out what is done with the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Footer, Input, Static

__all__ = ["Prompt"]


class Prompt(Horizontal):
    """A question and an answer, hidden while nothing is asked. Enter answers, Esc does not."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", show=False),
        Binding("tab,shift+tab", "stay", show=False),
    ]
    DEFAULT_CSS = """
    Prompt { height: 1; display: none; }
    Prompt Static { width: auto; padding: 0 1; }
    Prompt Input { width: 1fr; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._answer: Callable[[str], None] = lambda text: None
        self._focused: Widget | None = None

    def compose(self) -> ComposeResult:
        """Return the question and the answer."""
        yield Static(id="question", markup=False)
        yield Input(id="answer", compact=True, select_on_focus=False)

    def ask(self, question: str, answer: Callable[[str], None]) -> None:
        """Ask; ``answer`` gets what is typed, without blanks around it."""
        self._answer, self._focused = answer, self.screen.focused
        self.query_one("#question", Static).update(question)
        self.query_one(Input).value = ""
        self._show(True)
        self.screen.set_focus(self.query_one(Input))  # at once, for keys that were typed ahead

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Hand the answer over."""
        event.stop()
        self.action_cancel()
        self._answer(event.value.strip())

    def on_input_blurred(self, event: Input.Blurred) -> None:
        """Ask no more if the focus went elsewhere, by a click."""
        if not event.input.has_focus:
            self._show(False)

    def action_stay(self) -> None:
        """Do nothing: Tab would leave the question open."""

    def action_cancel(self) -> None:
        """Ask no more."""
        self._show(False)
        self.screen.set_focus(self._focused)

    def _show(self, is_asking: bool) -> None:
        self.display = is_asking
        self.screen.query_one(Footer).display = not is_asking
