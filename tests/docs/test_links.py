"""Every link from one page of the project to another leads somewhere: the file exists, and the heading in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path
    for folder, pattern in ((ROOT, "*.md"), (ROOT / "docs", "**/*.md"), (ROOT / "guests", "**/*.md"))
    for path in folder.glob(pattern)
    if "_build" not in path.parts
)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(?P<text>.+?) *$", re.MULTILINE)


def links() -> Iterator[object]:
    for page in PAGES:
        for match in LINK.finditer(CODE.sub("", page.read_text())):
            if not re.match(r"[a-z]+:", match["target"]):
                yield pytest.param(page, match["target"], id=f"{page.relative_to(ROOT)}->{match['target']}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    assert path.exists(), f"{page} links to {target}, which is not there"
    assert path.is_relative_to(ROOT), f"{page} links to {target}, which is outside the project"
    if anchor:
        assert anchor in anchors(path), f"{path} has no heading #{anchor}"


def anchors(path: Path) -> set[str]:
    """Return the names of the headings of ``path``, as they are shown by whoever renders Markdown on the web."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {anchor_of(match["text"]) for match in HEADING.finditer(text)}


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_a_heading_becomes_an_anchor() -> None:
    assert anchor_of("The crash: `KVM_RUN`, and after") == "the-crash-kvm_run-and-after"
