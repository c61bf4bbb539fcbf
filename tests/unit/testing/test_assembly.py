"""Snippets: assembled once, in both syntaxes, with errors at the line of the test."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pykvm import Image
from pykvm.boot import AssemblerWarning, assembler
from pykvm.errors import AssemblerError, ConfigurationError
from pykvm.testing import assembly
from pykvm.testing.assembly import Assembler, Place, caller


def code_of(image: Image) -> bytes:
    return image.segments[0].data


class Count:
    """Counts how often GNU as is run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        run = assembler._run_tool

        def counted(tool: str, *arguments: object) -> object:
            self.runs += tool == "as"
            return run(tool, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(assembler, "_run_tool", counted)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


# ---- syntax and mode ----


def test_both_syntaxes_give_the_same_code() -> None:
    att = Assembler().assemble("mov $42, %al; out %al, $0xf4")
    intel = Assembler().assemble("mov al, 42; out 0xf4, al", syntax="intel")
    assert code_of(att) == code_of(intel) == b"\xb0\x2a\xe6\xf4"


def test_a_snippet_may_choose_its_syntax_itself() -> None:
    image = Assembler().assemble(".intel_syntax noprefix\nmov al, 42")
    assert code_of(image) == b"\xb0\x2a"


def test_the_mode_is_the_snippets_own_unless_it_is_given() -> None:
    assert Assembler().assemble(".code16\nhlt").mode.value == "real"
    assert Assembler().assemble(".code16\nhlt", syntax="intel").mode.value == "real"
    assert Assembler().assemble("hlt").mode.value == "long"
    assert Assembler().assemble("hlt", mode="protected").mode.value == "protected"


def test_an_unknown_syntax_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='"att" or "intel", not \'nasm\''):
        Assembler().assemble("hlt", syntax="nasm")


# ---- the cache ----


def test_a_snippet_is_assembled_once_in_a_process(count: Count) -> None:
    assembler = Assembler()
    assert assembler.assemble("nop; hlt") is assembler.assemble("nop; hlt")
    assert count.runs == 1


def test_a_snippet_is_assembled_once_for_all_processes(count: Count, tmp_path: Path) -> None:
    first = Assembler(tmp_path).assemble("x: nop\n_start: hlt", mode="real")
    second = Assembler(tmp_path).assemble("x: nop\n_start: hlt", mode="real")
    assert count.runs == 1
    assert (second, second.elf) == (first, first.elf)
    assert second.entry == 0x8001


@pytest.mark.parametrize(
    "other",
    [{"mode": "real"}, {"load": 0x20_0000}, {"syntax": "intel"}],
    ids=str,
)
def test_whatever_changes_the_code_makes_another_entry(count: Count, tmp_path: Path, other: dict[str, object]) -> None:
    assembler = Assembler(tmp_path)
    assembler.assemble("hlt")
    assembler.assemble("hlt", **other)  # type: ignore[arg-type]
    assert count.runs == 2


def test_another_assembler_makes_another_entry(count: Count, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, cache = tmp_path / "bin", tmp_path / "cache"
    tools.mkdir()
    cache.mkdir()
    Assembler(cache).assemble("hlt")
    real = shutil.which("as")
    (tools / "as").write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    (tools / "as").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    Assembler(cache).assemble("hlt")
    assert count.runs == len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 4000], ids=["empty", "short", "wrong"])
def test_a_damaged_file_is_made_anew(count: Count, tmp_path: Path, damage: bytes) -> None:
    image = Assembler(tmp_path).assemble("hlt")
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage)
    assert Assembler(tmp_path).assemble("hlt") == image
    assert path.read_bytes() == good
    assert count.runs == 2


def test_nothing_but_finished_files_is_left_behind(tmp_path: Path) -> None:
    Assembler(tmp_path).assemble("hlt")
    assert all(re.fullmatch("[0-9a-f]{64}", path.name) for path in tmp_path.iterdir())


def test_a_snippet_that_draws_in_other_files_is_not_kept_on_disk(tmp_path: Path) -> None:
    Assembler(tmp_path).assemble('.include "pic.inc"\nhlt', mode="real")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    assert code_of(Assembler(missing).assemble("hlt")) == b"\xf4"


def test_the_folder_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "KEPT_ON_DISK", 10)
    for number in range(11):
        path = tmp_path / str(number)
        path.touch()
        os.utime(path, (number, number))
    Assembler(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "6", "7", "8", "9"]


def test_processes_side_by_side_share_the_folder(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from pykvm.testing.assembly import Assembler
        for number in range(6):
            code = Assembler(Path(sys.argv[1])).assemble(f"mov ${number}, %al; hlt").segments[0].data
            assert code == bytes((0xb0, number, 0xf4)), code
    """)
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 6


# ---- errors at the test's own line ----


def here(offset: int) -> str:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"tests/unit/testing/test_assembly.py:{frame.f_back.f_lineno + offset}"


def error_of(source: str, place: Place, syntax: str = "att") -> str:
    with pytest.raises(AssemblerError) as caught:
        Assembler().assemble(source, place=place, syntax=syntax)
    return str(caught.value)


MODULE_LEVEL = """
    nop
    bogus
"""


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)


@pytest.mark.usefixtures("at_root")
def test_an_error_is_at_the_line_of_a_string_of_many_lines() -> None:
    source = """
        nop
        movv $1, %al
    """
    assert error_of(source, caller(source)).splitlines() == [
        f"{here(-3)}: Error: no such instruction: `movv $1,%al'",
        "    movv $1, %al",
    ]


@pytest.mark.usefixtures("at_root")
def test_an_error_is_at_the_line_of_a_string_that_begins_below() -> None:
    source = """\
        nop
        bogus
    """
    assert here(-2) in error_of(source, caller(source))


@pytest.mark.usefixtures("at_root")
def test_an_error_is_at_the_line_of_a_string_in_one_line() -> None:
    source = "nop\nbogus\n"
    assert here(-1) in error_of(source, caller(source))


@pytest.mark.usefixtures("at_root")
def test_an_error_is_at_the_line_of_a_string_in_parts() -> None:
    source = (
        "nop\n"
        "nop; "
        "nop\n"  #
        "bogus\n"
        "hlt"
    )
    assert here(-3) in error_of(source, caller(source))


@pytest.mark.usefixtures("at_root")
def test_an_error_is_at_the_line_of_a_constant_of_the_module() -> None:
    line = Path(__file__).read_text().splitlines().index("    bogus") + 1
    assert f"test_assembly.py:{line}: Error" in error_of(MODULE_LEVEL, caller(MODULE_LEVEL))


@pytest.mark.usefixtures("at_root")
def test_an_error_in_intel_syntax_is_at_the_same_line() -> None:
    source = """nop
        bogus
    """
    text = error_of(source, caller(source), "intel")
    assert here(-3) in text
    assert "    bogus" in text


@pytest.mark.usefixtures("at_root")
def test_an_error_in_a_dedented_string_is_at_its_line() -> None:
    source = textwrap.dedent("""
        nop
        bogus
    """)
    assert here(-2) in error_of(source, caller(source))


def test_an_error_in_a_snippet_made_at_run_time_quotes_the_line() -> None:
    source = "\n".join(["nop", f"bogus{1 + 1} %eax"])
    text = error_of(source, caller(source))
    assert text.startswith("line 2 of the snippet: Error: no such instruction: `bogus2 %eax'")
    assert text.endswith("\n    bogus2 %eax")


def test_a_warning_is_given_each_time_at_the_snippets_line(tmp_path: Path) -> None:
    source = '.warning "odd"\nhlt'
    for _ in range(2):
        with pytest.warns(AssemblerWarning, match=r"line 1 of the snippet: odd"):
            Assembler(tmp_path).assemble(source)
    assert list(tmp_path.iterdir()) == []
