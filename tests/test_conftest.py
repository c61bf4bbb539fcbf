"""What becomes of the tests that need /dev/kvm where there is none, and of a test that hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"

NO_KVM = """
from pykvm.errors import KvmUnavailableError
from pykvm.kvm import Kvm

def unavailable(path="/dev/kvm", log=None):
    raise KvmUnavailableError("/dev/kvm is on holiday", "wait for it")

Kvm.open = unavailable
"""


def run_pytest(
    folder: Path, plugin: str = "", setting: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the tests below ``folder`` with this project's conftest.py."""
    (folder / "conftest.py").write_text(CONFTEST.read_text() + plugin)
    (folder / "pytest.ini").write_text(f"[pytest]\n{setting}\n")
    search = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    clean = {name: value for name, value in os.environ.items() if name != "PYKVM_REQUIRE_KVM"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "--strict-markers", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=clean | {"PYTHONPATH": search} | environment,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One test below each of tests/unit, tests/kvm and tests/guests."""
    for folder in ("unit", "kvm", "guests"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"test_{folder}.py").write_text("def test_it(): pass\n")
    return tmp_path


def test_without_kvm_the_tests_that_need_it_skip_with_the_reason(tree: Path) -> None:
    result = run_pytest(tree, NO_KVM)
    assert result.returncode == 0, result.stdout
    assert "1 passed, 2 skipped" in result.stdout
    assert "/dev/kvm is on holiday" in result.stdout


def test_without_kvm_they_fail_where_kvm_is_required(tree: Path) -> None:
    result = run_pytest(tree, NO_KVM, PYKVM_REQUIRE_KVM="1")
    assert result.returncode == 1
    assert "1 passed, 2 errors" in result.stdout
    assert "PYKVM_REQUIRE_KVM=1, but KVM cannot be used: /dev/kvm is on holiday" in result.stdout


def test_a_test_that_hangs_fails_and_the_next_one_runs(tree: Path) -> None:
    (tree / "unit" / "test_unit.py").write_text(
        "import threading\ndef test_hangs(): threading.Event().wait()\ndef test_runs(): pass\n"
    )
    result = run_pytest(tree / "unit", setting="pykvm_timeout = 0.2")
    assert "1 failed, 1 passed" in result.stdout
    assert "test_hangs took longer than 0.2 seconds" in result.stdout


COUNTED = """
import pathlib
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

@settings(max_examples=7, database=None)
@given(st.integers())
def test_a_property(number):
    count("property")

class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        count("machine")

    @rule()
    def do_nothing(self): pass

TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=5, stateful_step_count=2, database=None)

def count(name):
    with pathlib.Path(name).open("a") as file:
        file.write(".")
"""


@pytest.mark.parametrize(("setting", "factor"), [("", 1), ("addopts = --examples-factor 3", 3)])
def test_property_tests_run_on_so_many_times_as_many_examples(tmp_path: Path, setting: str, factor: int) -> None:
    (tmp_path / "test_counted.py").write_text(COUNTED)
    result = run_pytest(tmp_path, setting=setting)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len((tmp_path / "property").read_text()) == 7 * factor
    assert len((tmp_path / "machine").read_text()) >= 5 * factor
