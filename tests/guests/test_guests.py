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
from pykvm.kvm import Exit, Shutdown
from pykvm.machine import Crashed, DebugExitWritten, Halted, RunResult, TimedOut
from pykvm.probes import probe

ROOT = Path(__file__).parent.parent.parent
GUESTS = bundled_guests()


class AllExits:
    """An observer that keeps the class name of every exit."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def exit(self, vcpu: int, exit: Exit) -> None:
        self.names.add(type(exit).__name__)

    def tick(self) -> None:
        pass


def skip_without(guest: BundledGuest) -> None:
    for need in guest.needs:
        outcome = probe(need)
        if not outcome.works:
            pytest.skip(f"probe {need}: {outcome.detail}")


def stop_name(result: RunResult) -> str:
    match result.stop:
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
    return str(result.stop)


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_a_guest_does_what_it_is_expected_to(guest: BundledGuest) -> None:
    skip_without(guest)
    keys = bytearray(guest.input.encode())

    def serial_input(limit: int) -> bytes:
        taken = bytes(keys[:limit])
        del keys[:limit]
        return taken

    seen = AllExits()
    with Machine(
        guest.memory,
        irqchip=guest.irqchip,
        cpus=guest.cpus,
        devices=guest.devices,
        serial_input=serial_input,
        observers=[seen],
    ) as machine:
        for index, value in guest.msrs:
            machine.msr.store(index, value)
        machine.board.keyboard.enqueue(parse_keys(guest.keys))
        machine.load(open_image(guest.image), mode=guest.mode, ring=guest.ring)
        result = machine.run(guest.timeout)
    assert result.serial.text == guest.expect.serial
    assert stop_name(result) == guest.expect.stop
    assert result.status == guest.expect.status
    assert result.exit_code == guest.expect.exit_code
    assert set(guest.expect.exits) <= seen.names


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_pykvm_run_ends_with_the_status_a_guest_earned(guest: BundledGuest) -> None:
    skip_without(guest)
    ran = subprocess.run(
        [sys.executable, "-m", "pykvm.cli.main", "run", guest.name, "--timeout", str(guest.timeout)],
        input=guest.input.encode(),
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert ran.stdout.decode() == guest.expect.serial
    assert ran.returncode == guest.expect.status


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_a_bundled_guest_is_as_new_as_its_source(guest: BundledGuest) -> None:
    source = ROOT / "guests" / guest.name
    for path in source.iterdir():
        built = guest.folder / path.name
        assert built.read_bytes() == path.read_bytes(), "run csrc/build_shim.py, or pip install, again"


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_a_guest_has_a_readme_and_a_chapter(guest: BundledGuest) -> None:
    assert (ROOT / "guests" / guest.name / "README.md").read_text().startswith("# ")
    assert (ROOT / "docs" / "book" / f"{guest.name}.md").read_text().startswith("# ")
