"""What a failing test's report says of a machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pykvm.kvm import Hlt
from pykvm.testing import Guests
from pykvm.testing.failure import LAST_EXITS, MOST_TEXT, sections
from pykvm.testing.guest import WatchedMachine


@pytest.fixture
def run() -> Iterator[Guests]:
    with Guests() as guests:
        yield guests


def report(machine: WatchedMachine) -> dict[str, str]:
    return {title.removeprefix("machine: "): text for title, text in sections(machine)}


def test_the_last_exits_are_numbered_from_the_first_of_all(run: Guests) -> None:
    machine = run("mov $100, %cx; 1: out %al, $0x80; loop 1b; hlt", mode="real").machine
    lines = report(machine)["last exits"].splitlines()
    assert len(lines) == LAST_EXITS
    assert lines[-1] == " 100  hlt"


def test_exits_that_were_not_kept_are_counted(run: Guests) -> None:
    machine = run("hlt").machine
    machine.watched._limit = 1
    machine.watched.exit(0, Hlt())
    assert report(machine)["last exits"].endswith("and 1 more exits, which were not kept")


def test_a_machine_that_has_not_run_shows_its_registers(run: Guests) -> None:
    found = report(run.machine("1M"))
    assert "how it ended" not in found
    assert "last exits" not in found
    assert "rip 0xfff0" in found["registers"]


def test_a_run_that_a_device_ended_is_not_said_to_have_ended(run: Guests) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("mov $0x3f8, %dx; out %al, %dx; hlt", mode="real", serial_output=fail)
    ((_, machine),) = run.named_machines()
    found = report(machine)
    assert "how it ended" not in found
    assert found["last exits"].startswith("   0  io out 0x3f8")


def test_every_cpu_has_its_registers(run: Guests) -> None:
    machine = run.machine("1M", irqchip="kernel", cpus=2)
    text = report(machine)["registers"]
    assert "CPU 0: " in text
    assert "CPU 1: waits for INIT" in text


def test_code_that_is_nowhere_is_told(run: Guests) -> None:
    unmapped = run("movabs $0x4000000000, %rax; jmp *%rax").machine
    assert report(unmapped)["code around RIP"] == "0x4000000000 is not mapped"
    hole = run("mov $0xe0000000, %eax; jmp *%eax", mode="protected", timeout=1).machine
    assert report(hole)["code around RIP"] == "0xe0000000: there is no memory"


def test_the_end_of_long_output_is_shown(run: Guests) -> None:
    machine = run(
        "mov $5000, %cx; mov $0xe9, %dx; mov $'a', %al; 1: out %al, %dx; loop 1b; mov $'z', %al; out %al, %dx; hlt",
        mode="real",
    ).machine
    text = report(machine)["debug console"]
    assert len(text) == MOST_TEXT + len("...")
    assert text.startswith("...a")
    assert text.endswith("az")


def test_a_closed_machine_has_nothing_to_say(run: Guests) -> None:
    machine = run("hlt").machine
    machine.close()
    assert sections(machine) == []
