"""What is imported when: nobody waits for a library that is not needed yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pykvm.boot.assembler import build_text

HEAVY = (
    "capstone",
    "rich",
    "elftools",
    "hypothesis",
    "textual",
    "unicorn",
    "tomllib",
    "subprocess",
    "importlib.metadata",
)


def loaded_by(statement: str) -> set[str]:
    """Return the names of the modules that a new Python has loaded after ``statement``."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize("statement", ["import pykvm", "from pykvm import Machine", "from pykvm import Kvm"])
def test_importing_pykvm_loads_no_library_that_is_needed_later(statement: str) -> None:
    assert not loaded_by(statement) & set(HEAVY)


LATER = {
    "pykvm.boot.dwarf",
    "pykvm.boot.linux",
    "pykvm.boot.multiboot",
    "pykvm.kvm.decoding",
    "pykvm.machine.assist",
    "pykvm.machine.report",
    "pykvm.machine.slowmotion",
    "pykvm.x86.faults",
    "pykvm.x86.operands",
}


def test_a_machine_loads_nothing_that_is_for_crashes_stepping_or_kernels(tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    build_text(".globl _start\n_start: hlt\n", guest)
    assert (
        not loaded_by(f"from pykvm import Machine; from pykvm.boot import open_image; open_image({str(guest)!r})")
        & LATER
    )


def test_importing_pykvm_alone_loads_none_of_its_layers() -> None:
    layers = {name for name in loaded_by("import pykvm") if name.startswith("pykvm")}
    assert layers == {"pykvm"}


def test_the_kvm_layer_knows_nothing_above_it() -> None:
    names = loaded_by("import pykvm.kvm")
    assert not any(name.startswith(("pykvm.x86", "pykvm.machine", "pykvm.boot")) for name in names)


def test_the_command_line_loads_no_library_before_it_knows_the_command() -> None:
    assert not loaded_by("import pykvm.cli.main") & {"capstone", "rich", "textual", "hypothesis", "importlib.metadata"}


def test_every_public_name_can_be_imported() -> None:
    import pykvm

    for name in pykvm.__all__:
        assert getattr(pykvm, name) is not None
    assert set(pykvm.__all__) <= set(dir(pykvm))
    with pytest.raises(AttributeError, match="nosuch"):
        _ = pykvm.nosuch
