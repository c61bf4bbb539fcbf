"""The page on the stepper's screen names every key there is, and says of it what the help says."""

from __future__ import annotations

import re
from pathlib import Path

from pykvm.cli.stepper.keys import KEYS, MOVING
from pykvm.cli.stepper.launch import INSTALL

PAGE = Path(__file__).parents[4] / "docs" / "howto" / "stepper-screen.md"


def test_the_table_of_keys_is_the_apps() -> None:
    rows = re.findall(r"^\| `(\S+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [(key, text.replace(r"\|", "|")) for key, text in rows] == [(key.name, key.help) for key in (*KEYS, *MOVING)]


def test_the_page_says_how_to_install_it() -> None:
    assert INSTALL in PAGE.read_text()
