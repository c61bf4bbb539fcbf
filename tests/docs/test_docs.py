"""Every example in the documentation is true: it runs, prints what it says, and quotes what is there.

    ```python   is executed, all blocks of a file in order and in one namespace
    ```python test_it.py
                is a file: those of a page are in one folder, and pytest runs those whose names begin with test_
    ```output   is what the python block before it prints
    ```console  is run line by line, where the files before it and the folder guests/ are: a "$ " begins a command, its
                output on stdout and stderr follows
    ```asm ```c in a chapter of the book quote lines of its guest's sources

In what is expected, a line of "..." stands for any lines, and "..." inside a line for any text.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pykvm.boot import find_guest
from pykvm.probes import probe

ROOT = Path(__file__).parent.parent.parent
BOOK = ROOT / "docs" / "book"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "guests").rglob("*.md")])
FENCE = re.compile(r"^```(?P<language>\S+)(?: (?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
USES_KVM = re.compile(r"\bMachine\(|\bKvm\.open\b|\bpykvm (run|trace|doctor|cpuid|step)\b")
FIXTURES_WITH_KVM = re.compile(r"^\s*def \w+\([^)]*\b(guest|machine|(real|protected|long)_mode)\b", re.MULTILINE)
HIDES_KVM = """
from pykvm.errors import KvmUnavailableError
from pykvm.kvm import Kvm

def hidden(path="/dev/kvm", log=None):
    raise KvmUnavailableError("/dev/kvm is hidden")

Kvm.open = hidden
"""
TIME_LIMIT = 60  # seconds for one command; some of them are whole runs of pytest


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is the number of its first line of text in ``path``, ``file`` the name it gives."""

    path: Path
    line: int
    language: str
    text: str
    file: str = ""

    @property
    def name(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    return [
        Block(path, text.count("\n", 0, match.start("text")) + 1, match["language"], match["text"], match["file"] or "")
        for match in FENCE.finditer(text)
    ]


BLOCKS = [block for path in PAGES if "_build" not in path.parts for block in blocks_of(path)]


def in_language(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages and not block.file]


def marked(value: object, name: str, *texts: str) -> object:
    """Return the parameter ``value``, marked ``kvm`` if one of ``texts`` needs it."""
    uses_kvm = any(USES_KVM.search(text) or FIXTURES_WITH_KVM.search(text) for text in texts)
    return pytest.param(value, id=name, marks=[pytest.mark.kvm] if uses_kvm else [])


def skip_what_this_host_lacks(*names: str) -> None:
    """Skip if one of the bundled guests among ``names`` needs what this host's KVM cannot do."""
    for guest in filter(None, map(find_guest, names)):
        for need in guest.needs:
            outcome = probe(need)
            if not outcome.works:
                pytest.skip(f"probe {need}: {outcome.detail}")


def files_named(block: Block) -> list[str]:
    """Return the text of the page's files that ``block`` names."""
    return [other.text for other in blocks_of(block.path) if other.file and other.file in block.text]


# ---- what is expected ----


def pattern_of(expected: str) -> str:
    """Return the regular expression for ``expected``, which matches text whose lines all end in a newline."""
    return "".join(_line_pattern(line) for line in expected.splitlines())


def _line_pattern(line: str) -> str:
    if line.strip() == "...":
        return r"(?:[^\n]*\n)*"
    return r"[^\n]*".join(map(re.escape, line.rstrip().split("..."))) + r"\n"


def check(what: str, expected: str, got: str) -> None:
    """Fail unless ``got`` is what ``expected`` says. Spaces at the end of a line do not count."""
    got = "".join(f"{line.rstrip()}\n" for line in got.splitlines())
    if not re.fullmatch(pattern_of(expected), got):
        pytest.fail(f"{what}\n---- is said to print\n{expected}---- and prints\n{got}----", pytrace=False)


@pytest.mark.parametrize(
    ("expected", "got", "is_match"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nd\n", True),
        ("...\n", "", True),
        ("took ... ms\n", "took 0.31 ms\n", True),
        ("took ... ms\n", "took\n1\n ms\n", False),
        ("go...\n", "go\n", True),
        ("1 + 1\n", "11 1\n", False),
    ],
)
def test_three_dots_stand_for_lines_or_for_a_part_of_one(expected: str, got: str, is_match: bool) -> None:
    assert (re.fullmatch(pattern_of(expected), got) is not None) is is_match


# ---- python ----


def python_pages() -> Iterator[object]:
    for path in dict.fromkeys(block.path for block in in_language("python")):
        texts = [block.text for block in in_language("python") if block.path == path]
        yield marked(path, str(path.relative_to(ROOT)), *texts)


@pytest.mark.parametrize("path", list(python_pages()))
def test_python_blocks_run_and_print_what_they_say(path: Path) -> None:
    skip_what_this_host_lacks(path.stem)
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed, printer = "", path.name
    for block in blocks_of(path):
        if block.language == "python" and not block.file:
            # Empty lines before it, so that a traceback names the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(path), "exec", dont_inherit=True)
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, namespace)
            printed, printer = output.getvalue(), block.name
        elif block.language == "output":
            check(printer, block.text, printed)


# ---- console ----


@pytest.mark.parametrize(
    "block", [marked(block, block.name, block.text, *files_named(block)) for block in in_language("console")]
)
def test_a_console_block_shows_what_is_printed(block: Block, tmp_path: Path) -> None:
    if re.search(r"^\$ gdb ", block.text, re.MULTILINE) and shutil.which("gdb") is None:
        pytest.skip("there is no gdb: apt-get install gdb")
    skip_what_this_host_lacks(*re.findall(r"pykvm run (\S+)", block.text))
    write_files(tmp_path, block.path, before=block.line)
    (tmp_path / "guests").symlink_to(ROOT / "guests")
    status = 0
    for command, expected in commands_of(block):
        ran = subprocess.run(
            f"(exit {status})\n{command}",  # so that "echo $?" tells the status of the command before
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=tmp_path,
            env=environment(),
            timeout=TIME_LIMIT,
        )
        check(f"{block.name}: $ {command}", expected, ran.stdout.decode())
        status = ran.returncode


def write_files(folder: Path, page: Path, before: int | None = None) -> list[Block]:
    """Write the files of ``page``, those before line ``before``, into ``folder``, and return their blocks."""
    files = [block for block in blocks_of(page) if block.file and (before is None or block.line < before)]
    for block in files:
        (folder / block.file).write_text(block.text)
    return files


def commands_of(block: Block) -> Iterator[tuple[str, str]]:
    """Yield each command of ``block`` and the output that follows it."""
    before, *parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not before.strip(), f"{block.name} has output before the first command"
    for part in parts:
        command, _, expected = part.partition("\n")
        yield command, expected


def environment() -> dict[str, str]:
    """Return the environment of somebody who sits at a terminal of 80 columns, in the virtual environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of this run
    return own | {"PATH": path, "COLUMNS": "80"}


# ---- files ----


TEST_FILES = [block for block in BLOCKS if block.file.startswith("test_")]


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in TEST_FILES])
def test_without_kvm_a_test_file_passes_or_skips(block: Block, tmp_path: Path) -> None:
    write_files(tmp_path, block.path)
    (tmp_path / "conftest.py").write_text(HIDES_KVM)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", block.file],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={name: value for name, value in environment().items() if name != "PYKVM_REQUIRE_KVM"},
        timeout=TIME_LIMIT,
    )
    assert ran.returncode == 0, ran.stdout
    needs_kvm = FIXTURES_WITH_KVM.search(block.text) or USES_KVM.search(block.text)
    assert needs_kvm or "skipped" not in ran.stdout


def test_every_test_file_is_run_by_a_command_of_its_page() -> None:
    for block in TEST_FILES:
        commands = [other.text for other in blocks_of(block.path) if other.language == "console"]
        assert any(block.file in command for command in commands), block.name


# ---- quotations ----


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in in_language("asm", "c", "ld")])
def test_a_chapter_quotes_what_its_guest_has(block: Block) -> None:
    assert block.path.parent == BOOK, "only a chapter has a guest to quote"
    sources = [path for path in (ROOT / "guests" / block.path.stem).iterdir() if path.suffix in (".S", ".c", ".ld")]
    assert sources
    quoted = normalised(block.text)
    assert any(quoted in normalised(path.read_text()) for path in sources), f"{block.name} is not in {sources}"


def normalised(code: str) -> str:
    """Return ``code`` with single spaces and without empty lines."""
    lines = (" ".join(line.split()) for line in code.splitlines())
    return "\n".join(["", *filter(None, lines), ""])
