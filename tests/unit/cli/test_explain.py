"""``pykvm explain`` needs no KVM, prints on stdout, and refuses what it does not know with status 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pykvm.cli.main import main


def test_a_topic_is_explained_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "exit", "8"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("exit 8: KVM_EXIT_SHUTDOWN\n\n  what  The CPU shut down")
    assert output.err == ""


def test_a_single_word_is_enough_where_one_kind_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "KVM_EXIT_MMIO"]) == 0
    assert capsys.readouterr().out.startswith("exit 6: KVM_EXIT_MMIO\n")


def test_a_negative_number_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "fail-entry", "-1"]) == 0
    assert "AMD-V" in capsys.readouterr().out


def test_without_a_topic_the_kinds_are_listed_with_examples_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = [line.split("  ")[0] for line in lines if line.startswith("pykvm explain ")]
    assert "pykvm explain exit 8" in examples
    for example in examples:
        assert main(example.split()[1:]) == 0, example


def test_what_is_unknown_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "exit", "KVM_EXIT_MIMO"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "pykvm: there is no exit 'KVM_EXIT_MIMO': did you mean KVM_EXIT_MMIO or KVM_EXIT_IO?\n"


def test_what_may_be_several_things_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "0x3f8"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pykvm: 0x3f8 may be several things; say which:"
    assert lines[1].startswith("  pykvm explain port 0x3f8 ")


def test_an_empty_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", ""]) == 2
    assert "give what to explain" in capsys.readouterr().err


def test_the_width_of_the_terminal_is_used(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["explain", "exit", "8"]) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 60
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["explain", "exit", "8"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < len(narrow.splitlines())


def test_explaining_an_exit_loads_neither_machine_nor_libraries() -> None:
    program = "import sys; from pykvm.cli.main import main; main(['explain', 'exit', '8']); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.splitlines()[-1].split())
    assert not loaded & {"rich", "capstone", "elftools", "pykvm.machine.machine", "pykvm.observe.explaining.ports"}
