"""pykvm.cli.stepper.launch: where there is no terminal to draw on, it says so and names the way without one."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from typing import cast

import pytest

from pykvm.boot import Image
from pykvm.cli.stepper.launch import INSTALL, check_terminal, run_stepper
from pykvm.errors import ConfigurationError
from pykvm.machine import Machine


class Stream:
    """A standard stream that is a terminal, or is none."""

    closed = False

    def __init__(self, is_terminal: bool = True) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Everything that is needed is there."""
    for name in ("__stdin__", "__stdout__", "__stderr__"):
        monkeypatch.setattr(sys, name, Stream())
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


def test_with_a_terminal_nothing_is_wrong(terminal: pytest.MonkeyPatch) -> None:
    check_terminal()


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_no_terminal_is_named(name: str, terminal: pytest.MonkeyPatch) -> None:
    terminal.setattr(sys, f"__{name}__", Stream(is_terminal=False))
    with pytest.raises(ConfigurationError, match=f"needs a terminal, and {name} is none: 'pykvm step --batch TARGET'"):
        check_terminal()


def test_streams_that_do_not_exist_are_no_terminal(terminal: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout"):
        terminal.setattr(sys, f"__{name}__", None)
    with pytest.raises(ConfigurationError, match="stdin and stdout are none"):
        check_terminal()


@pytest.mark.parametrize(
    ("term", "what"), [("dumb", "TERM is dumb"), ("", "TERM is not set"), (None, "TERM is not set")]
)
def test_a_terminal_that_cannot_be_drawn_on_is_named(term: str | None, what: str, terminal: pytest.MonkeyPatch) -> None:
    if term is None:
        terminal.delenv("TERM")
    else:
        terminal.setenv("TERM", term)
    with pytest.raises(ConfigurationError, match=f"{what}: 'pykvm step --batch TARGET' needs no screen"):
        check_terminal()


def test_without_textual_the_way_to_install_it_is_named(terminal: pytest.MonkeyPatch) -> None:
    terminal.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        check_terminal()
    assert INSTALL in str(caught.value)
    assert "--batch" in str(caught.value)


def test_nothing_is_done_to_the_machine_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stdin__", Stream(is_terminal=False))
    with pytest.raises(ConfigurationError, match="needs a terminal"):
        run_stepper(cast(Machine, None), cast(Image, None), Namespace())
