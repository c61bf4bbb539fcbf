"""The tables of guests and probes name every one that there is, and say of a probe what its source says."""

from __future__ import annotations

import re
from pathlib import Path

from pykvm.boot import bundled_guests, probe_settings

ROOT = Path(__file__).parent.parent.parent
GUESTS = ROOT / "guests"


def test_the_table_of_guests_names_them_in_the_order_of_the_book() -> None:
    named = re.findall(r"^\| \[([\w-]+)\]\(\1\) \| ", (GUESTS / "README.md").read_text(), re.MULTILINE)
    assert named == [guest.name for guest in bundled_guests()]


def test_the_index_of_the_book_has_every_chapter_twice_for_people_and_for_sphinx() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    chapters = [*(guest.name for guest in bundled_guests()), "mistakes"]
    assert re.findall(r"\]\(book/([\w-]+)\.md\)", index) == chapters
    assert re.findall(r"^book/([\w-]+)$", index, re.MULTILINE) == chapters


def test_the_table_of_probes_says_what_each_of_them_proves() -> None:
    table = (GUESTS / "probes" / "README.md").read_text().partition("| probe | proves |")[2]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", table, re.MULTILINE))
    assert rows == {path.stem: probe_settings(path)["proves"] for path in (GUESTS / "probes").glob("*.S")}
