"""``Panel``: all the panes, which of the lower ones is to be seen, and which has the whole screen.

Leaves out keys: see ``app``.
"""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import ContentSwitcher

from pykvm.cli.stepper.guest import Standing
from pykvm.cli.stepper.keys import TABS
from pykvm.cli.stepper.pages import walk_rows
from pykvm.cli.stepper.panes import CodePane, MemoryPane, Pane, RowsPane, ScreenPane
from pykvm.cli.stepper.registers import register_rows
from pykvm.cli.stepper.rows import Kind, Row, row
from pykvm.cli.stepper.texts import output_rows, report_rows

__all__ = ["Panel"]

WIDE, NARROW = 44, 31  # columns of the registers, in 64-bit code and in other code


class Panel(Vertical):
    """The code and the registers, and below them one of six panes."""

    DEFAULT_CSS = """
    Panel #upper { height: 2fr; }
    Panel #lower { height: 1fr; border-top: solid $primary; }
    Panel #lower:focus-within { border-top: double $accent; }
    Panel Pane { text-wrap: nowrap; text-overflow: clip; height: 100%; }
    Panel #upper Pane { border-top: solid $primary; }
    Panel #upper Pane:focus { border-top: double $accent; }
    Panel #code { width: 1fr; padding-right: 1; }
    Panel #registers { width: 31; max-width: 60%; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._standing: Standing | None = None
        self._walked: int | None = None  # the linear address that is walked, None for RIP
        self._is_zoomed = False

    def compose(self) -> ComposeResult:
        """Return the panes."""
        with Horizontal(id="upper"):
            yield CodePane("code")
            yield RowsPane("registers", lambda standing, width: register_rows(standing.look))
        with ContentSwitcher(id="lower", initial=TABS[0]):
            yield MemoryPane("memory")
            yield RowsPane("pages", self._walk_rows)
            yield RowsPane("serial", _serial_rows, at_end=True)
            yield ScreenPane("screen")
            yield RowsPane("exits", lambda standing, width: [row(text) for text in standing.exits], at_end=True)
            yield RowsPane("report", _report_rows)

    def on_mount(self) -> None:
        """Say which pane is to be seen."""
        self._draw_tabs()

    @property
    def code(self) -> CodePane:
        """Return the pane with the code."""
        return self.query_one("#code", CodePane)

    def stand(self, standing: Standing) -> None:
        """Show ``standing``. A new report comes to the front."""
        earlier, self._standing = self._standing, standing
        self.query_one("#registers").styles.width = WIDE if standing.look.mode.width == 64 else NARROW
        for pane in self.query(Pane):
            pane.stand(standing)
        if earlier is None:
            self.query_one(MemoryPane).scroll_back()
        if standing.report and (earlier is None or earlier.report != standing.report):
            self.show_tab("report")

    def show_memory(self, address: int) -> None:
        """Show memory from linear ``address`` on."""
        pane = self.query_one(MemoryPane)
        pane.view.address = address
        pane.refresh()
        self.show_tab("memory")

    def walk(self, address: int | None) -> None:
        """Walk the page tables for linear ``address``, or from now on for RIP."""
        self._walked = address
        self.query_one("#pages").refresh()
        self.show_tab("pages")

    def show_tab(self, name: str) -> None:
        """Show one of the lower panes; the focus goes there if another of them had it."""
        focused = self.screen.focused
        self.query_one("#lower", ContentSwitcher).current = name
        if focused is not None and focused.id in TABS:
            self.query_one(f"#{name}").focus()
        self._draw_tabs()

    def toggle_zoom(self) -> None:
        """Give the pane that has the focus the whole screen, or take it back."""
        pane = self.screen.focused
        self._is_zoomed = not self._is_zoomed and isinstance(pane, Pane)
        is_above = pane is not None and pane.id not in TABS
        upper, lower = self.query_one("#upper"), self.query_one("#lower")
        upper.display = not self._is_zoomed or is_above
        lower.display = not self._is_zoomed or not is_above
        for other in upper.children:
            other.display = not self._is_zoomed or other is pane

    # ---- inside ----

    def _draw_tabs(self) -> None:
        lower = self.query_one("#lower", ContentSwitcher)
        names = enumerate(TABS, 1)
        texts = (f"[{number} {name}]" if name == lower.current else f" {number} {name} " for number, name in names)
        lower.border_title = Text("".join(texts))  # not str, in which brackets are markup

    def _walk_rows(self, standing: Standing, width: int) -> list[Row]:
        return walk_rows(standing.look, standing.look.rip if self._walked is None else self._walked)


def _serial_rows(standing: Standing, width: int) -> list[Row]:
    return output_rows(standing.serial.data, standing.serial.dropped, width)


def _report_rows(standing: Standing, width: int) -> list[Row]:
    return report_rows(standing.report, width) if standing.report else [row("no crash so far", Kind.FAINT)]
