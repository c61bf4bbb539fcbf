"""The stepper's keys: one table for what they do, the line at the bottom, the help, and the page in the docs.

Leaves out keys of the questions and the help: Enter and Esc.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KEYS", "MOVING", "TABS", "Key", "help_text"]

TABS = ("memory", "pages", "serial", "screen", "exits", "report")


@dataclass(frozen=True, slots=True)
class Key:
    """A key as Textual calls it, the app's action, what it is good for; a ``label`` if it is in the bottom line.

    ``shown`` is what people call the key, if that is something else.
    """

    key: str
    action: str
    help: str
    label: str = ""
    shown: str = ""

    @property
    def name(self) -> str:
        """Return what the key is called for people."""
        return self.shown or self.key


KEYS = (
    Key("s", "step", "step: execute one instruction", "step"),
    Key("n", "step_over", "step over: a call, or a repeated instruction, as one", "over"),
    Key("b", "step_back", "back: undo the last step, or all of the last continue", "back"),
    Key("c", "go_on", "continue to a breakpoint, a watched access, or the end", "continue"),
    Key("r", "run_to_cursor", "run to the cursor", "to cursor"),
    Key("space", "toggle_breakpoint", "set a breakpoint at the cursor, or take it away", "break", "space"),
    Key("w", "watch", "watch memory: PLACE [LENGTH] [r|w|rw]; nothing typed watches nothing any more", "watch"),
    Key("B", "back_on", "go back to a breakpoint, before a watched write, or to the oldest step that is kept"),
    Key("u", "next_cpu", "look at the next CPU, and step that"),
    Key("escape", "interrupt", "interrupt a guest that runs; Ctrl-C does too", "", "Esc"),
    Key("d", "toggle_source", "source or disassembly"),
    Key("f", "find_code", "put the cursor at an address"),
    Key("g", "go_to_memory", "show memory at an address"),
    Key("p", "walk_pages", "walk the page tables for an address; nothing typed follows RIP"),
    *(Key(str(number), f"show_tab('{name}')", f"show {name}") for number, name in enumerate(TABS, 1)),
    Key("z", "zoom", "give the pane that has the focus the whole screen, or take it back"),
    Key("tab", "app.focus_next", "go to the next pane; Shift-Tab goes back", "", "Tab"),
    Key("question_mark", "help", "this help", "help", "?"),
    Key("q", "quit", "quit", "quit"),
)

MOVING = (
    Key("up", "move(-1, 0)", "move the cursor, or scroll the pane that has the focus", "", "↑"),
    Key("down", "move(1, 0)", "the same, down", "", "↓"),
    Key("pageup", "move(0, -1)", "the same by a page, up", "", "PgUp"),
    Key("pagedown", "move(0, 1)", "the same by a page, down", "", "PgDn"),
    Key("home", "home", "back to where the guest is, to the stack, or to where the pane begins", "", "Home"),
)

PLACES = """\
An address is a number (0x8000), a register (rsp, si), a symbol (main), or several of them (main+0x12, rsp-8), with a
segment in front if need be (ds:si, 0x7c0:0)."""

SIGNS = """\
=> is the next instruction, > the cursor, B a breakpoint, * in front of a register or byte that changed."""


def help_text() -> str:
    """Return the help: all keys, and what the signs mean."""
    keys = [(key.name, key.help) for key in (*KEYS, *MOVING) if not key.name.isdecimal()]
    tabs = (f"1 to {len(TABS)}", f"show {', '.join(TABS)}")
    rows = [f"{name:>6}  {text}" for name, text in (*keys, tabs)]
    return "\n".join(["Esc closes this help; arrows scroll it.", *rows, "", SIGNS, "", PLACES])
