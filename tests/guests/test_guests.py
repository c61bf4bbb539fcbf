"""Every bundled guest, on KVM, does what its expected.toml says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pykvm import Machine
from pykvm.boot import BundledGuest, bundled_guests, open_image
from pykvm.devices import parse_keys
from pykvm.kvm import Shutdown
from pykvm.machine import Crashed, DebugExitWritten, Halted, Stop, TimedOut
from pykvm.probes import probe
from pykvm.testing import Guests

ROOT = Path(__file__).parent.parent.parent
GUESTS = bundled_guests()


def skip_without(bundled: BundledGuest) -> None:
    for need in bundled.needs:
        outcome = probe(need)
        if not outcome.works:
            pytest.skip(f"probe {need}: {outcome.detail}")


def stop_name(stop: Stop) -> str:
    match stop:
        case Halted():
            return "halted"
        case DebugExitWritten():
            return "debug-exit"
        case Crashed(exit=Shutdown()):
            return "shutdown"
        case Crashed():
            return "crash"
        case TimedOut():
            return "timeout"
    return str(stop)


@pytest.mark.parametrize("bundled", GUESTS, ids=lambda bundled: bundled.name)
def test_a_guest_does_what_it_is_expected_to(guest: Guests, bundled: BundledGuest) -> None:
    skip_without(bundled)

    def set_up(machine: Machine) -> None:
        for index, value in bundled.msrs:
            machine.msr.store(index, value)
        machine.board.keyboard.enqueue(parse_keys(bundled.keys))

    result = guest(
        open_image(bundled.image),
        mode=bundled.mode,
        ring=bundled.ring,
        input=bundled.input.encode(),
        setup=set_up,
        timeout=bundled.timeout,
        memory=bundled.memory,
        irqchip=bundled.irqchip,
        cpus=bundled.cpus,
        devices=bundled.devices,
    )
    assert result.serial.text == bundled.expect.serial
    assert stop_name(result.stop) == bundled.expect.stop
    assert result.run.status == bundled.expect.status
    assert result.exit_code == bundled.expect.exit_code
    assert set(bundled.expect.exits) <= {type(exit).__name__ for exit in result.exits()}


@pytest.mark.parametrize("bundled", GUESTS, ids=lambda bundled: bundled.name)
def test_pykvm_run_ends_with_the_status_a_guest_earned(bundled: BundledGuest) -> None:
    skip_without(bundled)
    ran = subprocess.run(
        [sys.executable, "-m", "pykvm.cli.main", "run", bundled.name, "--timeout", str(bundled.timeout)],
        input=bundled.input.encode(),
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert ran.stdout.decode() == bundled.expect.serial
    assert ran.returncode == bundled.expect.status


@pytest.mark.parametrize("bundled", GUESTS, ids=lambda bundled: bundled.name)
def test_a_bundled_guest_is_as_new_as_its_source(bundled: BundledGuest) -> None:
    source = ROOT / "guests" / bundled.name
    for path in source.iterdir():
        built = bundled.folder / path.name
        assert built.read_bytes() == path.read_bytes(), "run csrc/build_shim.py, or pip install, again"


@pytest.mark.parametrize("bundled", GUESTS, ids=lambda bundled: bundled.name)
def test_a_guest_has_a_readme_and_a_chapter(bundled: BundledGuest) -> None:
    assert (ROOT / "guests" / bundled.name / "README.md").read_text().startswith("# ")
    assert (ROOT / "docs" / "book" / f"{bundled.name}.md").read_text().startswith("# ")
