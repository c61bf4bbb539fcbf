"""``StepperApp``: the panes, the keys, and what the keys do.

    +--------------------------------------------+
    | where the guest stands, and why            |
    +-------------------------+------------------+
    | source or disassembly   | registers        |
    +-------------------------+------------------+
    | 1 memory 2 pages 3 serial 4 screen ...     |
    | one of them                                |
    +--------------------------------------------+
    | keys, or what they ask for                 |
    +--------------------------------------------+

All that the guest does happens on the engine's thread; its news come as messages. Leaves out what panes say.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Footer, Static

from pykvm.cli.stepper.engine import Engine, News
from pykvm.cli.stepper.guest import Command, Guest, Standing
from pykvm.cli.stepper.help import HelpScreen
from pykvm.cli.stepper.keys import KEYS, MOVING, Key
from pykvm.cli.stepper.panel import Panel
from pykvm.cli.stepper.panes import Pane
from pykvm.cli.stepper.places import parse_place, parse_watch
from pykvm.cli.stepper.prompt import Prompt
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StepperApp"]

ACTIONS = frozenset(key.action.partition("(")[0].removeprefix("app.") for key in (*KEYS, *MOVING))
TICK = 0.25  # seconds between two looks at the clock while the guest runs


def _binding(key: Key) -> Binding:
    # With priority the app itself obeys a key, before it looks at the next: a key typed ahead finds the question that
    # the one before it asked. Without, the pane that had the focus would get it.
    return Binding(key.key, key.action, key.label, show=bool(key.label), key_display=key.shown or None, priority=True)


class NewsMessage(Message):
    """``news`` from the engine's thread."""

    def __init__(self, news: News) -> None:
        super().__init__()
        self.news = news


class StepperApp(App[None]):
    """The screen of ``guest``, which is not stepped before the app runs. ``failure`` is what made it end, if a bug."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "interrupt_anyhow", show=False, priority=True),
        *(_binding(key) for key in (*KEYS, *MOVING)),
    ]
    CSS = """
    Screen { layout: vertical; }
    #where, #why { height: 1; text-wrap: nowrap; text-overflow: clip; }
    #where { text-style: reverse; }
    """

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        self.standing: Standing | None = None
        self.failure: BaseException | None = None
        self._guest = guest
        self._engine = Engine(guest, lambda news: self.post_message(NewsMessage(news)))
        self._since: float | None = None  # when the command under way was submitted
        self._note = ""

    # ---- the screen ----

    def compose(self) -> ComposeResult:
        """Return the widgets, from top to bottom."""
        yield Static(id="where", markup=False)
        yield Static(id="why", markup=False)
        yield Panel()
        yield Prompt()
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Start the engine, whose first news is where the guest stands."""
        self.panel.code.focus()
        self.set_interval(TICK, self._look_at_the_clock)
        self._engine.start()

    def on_unmount(self) -> None:
        """Stop the guest; the terminal is given back when it stands still."""
        self.close()

    def close(self) -> None:
        """Stop the guest and wait for that. Does nothing the second time."""
        self._engine.close()

    @property
    def panel(self) -> Panel:
        """Return the panes."""
        return self.query_one(Panel)

    @property
    def is_busy(self) -> bool:
        """Return whether the guest runs, or there is news that is not shown yet."""
        return self._since is not None or self.standing is None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key may do ``action``: not while something is asked, or the help is shown."""
        if action not in ACTIONS:
            return True
        return not (isinstance(self.screen, HelpScreen) or self.query_one(Prompt).display)

    # ---- news ----

    def on_news_message(self, message: NewsMessage) -> None:
        """Show where the guest stands now."""
        news = message.news
        if news.failure is not None:
            self.failure = news.failure
            self.exit()
            return
        if not self._engine.is_busy:
            self._since = None
        self._note = news.refusal
        if news.standing is not None:
            self._show(news.standing)

    def _show(self, standing: Standing) -> None:
        self.standing = standing
        self.panel.stand(standing)
        self._draw_where(standing)
        self._draw_why()

    def _draw_where(self, standing: Standing) -> None:
        look = standing.look
        symbol = look.symbol_at(look.rip)
        line = None if look.image is None else look.image.lines.find(look.rip)
        words = [f"{look.rip:#x}", f"<{symbol}>" if symbol else "", str(line or ""), f"step {look.step}"]
        cpu = "" if standing.cpu is None else f"CPU {standing.cpu}"
        parts = [*words, cpu, look.mode.name, self._guest.name]
        self.query_one("#where", Static).update(Text("  ".join(filter(None, parts)).join("  ")))

    def _draw_why(self) -> None:
        standing = self.standing
        if self._since is not None and time.monotonic() - self._since > TICK:
            words = f"running for {time.monotonic() - self._since:.0f} s: Esc interrupts"
        else:
            words = self._note or ("" if standing is None else standing.why)
        self.query_one("#why", Static).update(Text(f" {words}"))

    def _look_at_the_clock(self) -> None:
        if self._since is not None:
            self._draw_why()

    def _say(self, note: str) -> None:
        self._note = note
        self._draw_why()

    # ---- keys that step ----

    def action_step(self) -> None:
        """Execute one instruction."""
        self._do(lambda guest: guest.step())

    def action_step_over(self) -> None:
        """Execute one instruction and what belongs to it."""
        self._do(lambda guest: guest.step_over())

    def action_step_back(self) -> None:
        """Undo the last step, or all of the last continue."""
        self._do(lambda guest: guest.back())

    def action_back_on(self) -> None:
        """Go back to a breakpoint, before a watched write, or to the oldest step."""
        self._do(lambda guest: guest.back_on())

    def action_next_cpu(self) -> None:
        """Look at the next CPU."""
        self._do(lambda guest: guest.next_cpu())

    def action_go_on(self) -> None:
        """Continue."""
        self._do(lambda guest: guest.go_on())

    def action_run_to_cursor(self) -> None:
        """Run to the cursor."""
        self._at_cursor(lambda guest, address: guest.run_to(address))

    def action_toggle_breakpoint(self) -> None:
        """Set a breakpoint at the cursor, or take it away."""
        self._at_cursor(lambda guest, address: guest.toggle_breakpoint(address))

    def action_interrupt(self) -> None:
        """Interrupt the guest."""
        if self._engine.is_busy:
            self._engine.interrupt()
        else:
            self._say("the guest stands still: q quits")

    def action_interrupt_anyhow(self) -> None:
        """Interrupt the guest even while something is asked, or the help is shown."""
        self.action_interrupt()

    async def action_quit(self) -> None:
        """Leave."""
        self._engine.interrupt()
        self.exit()

    def _do(self, command: Command) -> None:
        self._since = self._since or time.monotonic()
        self._engine.submit(command)

    def _at_cursor(self, command: Callable[[Guest, int], None]) -> None:
        address = self.panel.code.cursor_address
        if address is None:
            self._say("there is no code in this line: put the cursor at one that has some")
        else:
            self._do(lambda guest: command(guest, address))

    # ---- keys that move ----

    def action_move(self, rows: int, pages: int) -> None:
        """Move the cursor, or scroll the pane that has the focus."""
        if isinstance(self.focused, Pane):
            self.focused.scroll_rows(rows, pages)

    def action_home(self) -> None:
        """Put the cursor where the guest is, or scroll the pane that has the focus back."""
        if isinstance(self.focused, Pane):
            self.focused.scroll_back()

    # ---- keys that ask ----

    def action_watch(self) -> None:
        """Ask what to watch."""
        self._ask("watch PLACE [LENGTH] [r|w|rw]:", self._watch)

    def action_find_code(self) -> None:
        """Ask where to put the cursor."""
        self._ask("code at:", lambda text, standing: self.panel.code.show_address(parse_place(text, standing.look)))

    def action_go_to_memory(self) -> None:
        """Ask which memory to show."""
        self._ask("memory at:", lambda text, standing: self.panel.show_memory(parse_place(text, standing.look)))

    def action_walk_pages(self) -> None:
        """Ask which address to walk."""
        self._ask("walk the page tables for:", self._walk)

    def _walk(self, text: str, standing: Standing) -> None:
        self.panel.walk(parse_place(text, standing.look) if text else None)

    def _watch(self, text: str, standing: Standing) -> None:
        if not text:
            self._do(lambda guest: guest.unwatch())
            return
        watchpoint = parse_watch(text, standing.look)
        self._do(lambda guest: guest.watch(watchpoint))

    def _ask(self, question: str, answer: Callable[[str, Standing], None]) -> None:
        def take(text: str) -> None:
            try:
                if self.standing is not None:
                    answer(text, self.standing)
            except ConfigurationError as error:
                self._say(str(error))

        self.query_one(Prompt).ask(question, take)

    # ---- keys that show ----

    def action_toggle_source(self) -> None:
        """Show the source or the disassembly."""
        if not self.panel.code.toggle_source():
            self._say("no source is known for this code")

    def action_show_tab(self, name: str) -> None:
        """Show one of the lower panes."""
        self.panel.show_tab(name)

    def action_zoom(self) -> None:
        """Give the pane that has the focus the whole screen, or take it back."""
        self.panel.toggle_zoom()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())
