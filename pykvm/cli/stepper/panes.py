"""Panes: widgets that draw rows of text into whatever room they have, and keep their place in it.

Leaves out what the rows say: each pane asks one of the views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text
from textual.widget import Widget

from pykvm.cli.screen import rich_screen, shown_rows
from pykvm.cli.stepper.guest import Standing
from pykvm.cli.stepper.listing import Listing
from pykvm.cli.stepper.memory import MemoryView
from pykvm.cli.stepper.places import parse_place
from pykvm.cli.stepper.rows import Kind, Row
from pykvm.cli.stepper.source import SourceView

__all__ = ["CodePane", "MemoryPane", "Pane", "RowsPane", "ScreenPane", "to_text"]

# Signs say it all; colours only help. None of them is needed, and a terminal without any shows the same.
STYLES = {
    Kind.TEXT: "",
    Kind.CHANGED: "bold yellow",
    Kind.CURRENT: "bold green",
    Kind.BREAKPOINT: "bold red",
    Kind.LABEL: "cyan",
    Kind.FAINT: "dim",
    Kind.BAD: "bold red",
}


def to_text(rows: Sequence[Row]) -> Text:
    """Return ``rows`` as rich draws them; nothing in them is taken for markup."""
    text = Text(no_wrap=True, overflow="crop", end="")
    for number, pieces in enumerate(rows):
        text.append("\n" if number else "")
        for words, kind in pieces:
            text.append(words, STYLES[kind])
    return text


class Pane(Widget, can_focus=True):
    """A pane with a title that can have the focus; arrows and page keys move it."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.standing: Standing | None = None

    def stand(self, standing: Standing) -> None:
        """Show ``standing``."""
        self.standing = standing
        self.refresh()

    def scroll_rows(self, rows: int = 0, pages: int = 0) -> None:
        """Move so many rows and pages down, up if that is negative."""
        if self.standing is not None:
            self.move(self.standing, rows + pages * max(1, self.content_size.height - 1))
            self.refresh()

    def scroll_back(self) -> None:
        """Go back to where it begins."""
        if self.standing is not None:
            self.home(self.standing)
            self.refresh()

    def render(self) -> Text:
        """Return what is to be seen."""
        width, height = self.content_size
        return Text("") if self.standing is None else self.draw(self.standing, width, height)

    # ---- what a pane is ----

    def draw(self, standing: Standing, width: int, height: int) -> Text:
        """Return what to show in this room."""
        raise NotImplementedError

    def move(self, standing: Standing, by: int) -> None:
        """Move by so many rows."""
        raise NotImplementedError

    def home(self, standing: Standing) -> None:
        """Go back to where it begins."""
        raise NotImplementedError


class RowsPane(Pane):
    """A pane of rows that a view makes, all of them; ``at_end`` shows the last ones unless somebody scrolls up."""

    def __init__(self, id: str, view: Callable[[Standing, int], Sequence[Row]], *, at_end: bool = False) -> None:
        super().__init__(id)
        self._view = view
        self._at_end = at_end
        self._scrolled = 0  # rows from the beginning, or from the end

    def draw(self, standing: Standing, width: int, height: int) -> Text:
        """Return the rows that are in sight."""
        rows = self._view(standing, width)
        hidden = max(0, len(rows) - height)
        self._scrolled = min(self._scrolled, hidden)
        first = hidden - self._scrolled if self._at_end else self._scrolled
        return to_text(rows[first : first + height])

    def move(self, standing: Standing, by: int) -> None:
        """Scroll."""
        self._scrolled = max(0, self._scrolled + (-by if self._at_end else by))

    def home(self, standing: Standing) -> None:
        """Scroll back to where it began."""
        self._scrolled = 0


class MemoryPane(Pane):
    """A window on memory."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.view = MemoryView()

    def draw(self, standing: Standing, width: int, height: int) -> Text:
        """Return the bytes in sight."""
        return to_text(self.view.rows(standing.look, height, width))

    def move(self, standing: Standing, by: int) -> None:
        """Scroll by rows."""
        self.view.scroll(by * self.view.bytes_in_row(self.content_size.width))

    def home(self, standing: Standing) -> None:
        """Go to the stack pointer."""
        self.view.address = parse_place("ss:rsp", standing.look)


class ScreenPane(Pane):
    """The guest's text screen: the last of its rows that are in use, or those above."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._up = 0

    def draw(self, standing: Standing, width: int, height: int) -> Text:
        """Return as many of the 25 rows as there is room for."""
        rows = rich_screen(standing.screen).split("\n", allow_blank=True)
        first = shown_rows(standing.screen, height).start
        self._up = min(self._up, first)
        return Text("\n").join(rows[first - self._up : first - self._up + height])

    def move(self, standing: Standing, by: int) -> None:
        """Scroll."""
        self._up = max(0, self._up - by)

    def home(self, standing: Standing) -> None:
        """Go back to the last rows in use."""
        self._up = 0


class CodePane(Pane):
    """The source where there is one and it is wanted, else the disassembly. The cursor is what keys are about."""

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self._listing = Listing()
        self._source = SourceView()
        self._wants_source = True
        self._shows_source = False

    def stand(self, standing: Standing) -> None:
        """Show ``standing``; the cursor goes where the guest is, if that is not where it was."""
        old, self.standing = self.standing, standing
        if old is None or (old.look.step, old.look.rip) != (standing.look.step, standing.look.rip):
            self.show_address(standing.look.rip)
        self.refresh()

    def show_address(self, address: int) -> None:
        """Put the cursor at linear ``address``."""
        if self.standing is None:
            return
        self._listing.cursor = address
        self._shows_source = self._wants_source and self._source.show(self.standing.look, address)
        self.border_title = "source" if self._shows_source else "disassembly"
        self.refresh()

    def toggle_source(self) -> bool:
        """Show the source instead of the disassembly, or the other way round; return whether that could be done."""
        if self.standing is None:
            return False
        address = self.cursor_address
        self._wants_source = not self._shows_source
        self.show_address(self._listing.cursor if address is None else address)
        return self._shows_source == self._wants_source

    @property
    def cursor_address(self) -> int | None:
        """Return the linear address of the code at the cursor, None if there is none: in a comment, for instance."""
        if self.standing is None:
            return None
        return self._source.address(self.standing.look) if self._shows_source else self._listing.cursor

    def draw(self, standing: Standing, width: int, height: int) -> Text:
        """Return the code around the cursor."""
        view = self._source if self._shows_source else self._listing
        return to_text(view.rows(standing.look, standing.breakpoints, height, width))

    def move(self, standing: Standing, by: int) -> None:
        """Move the cursor."""
        (self._source if self._shows_source else self._listing).move(standing.look, by)

    def home(self, standing: Standing) -> None:
        """Put the cursor where the guest is."""
        self.show_address(standing.look.rip)
