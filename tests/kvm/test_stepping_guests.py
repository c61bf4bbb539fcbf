"""The bundled guests, stepped to their end, and all the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pykvm import Machine
from pykvm.boot import BundledGuest, bundled_guests, open_image
from pykvm.devices import parse_keys
from pykvm.observe.stepping import Reason, Stepper
from pykvm.observe.stepping.stepper import HISTORY
from pykvm.probes import probe
from pykvm.x86 import Mode

GUESTS = {guest.name: guest for guest in bundled_guests()}
ENOUGH = 10_000
# What a guest does in as many steps, and how it is: those whose timers are KVM's go by the host's clock.
WHOLE = ["02-hello-real", "04-string-io", "05-mmio", "10-ring3", "11-page-fault", "12-triple-fault", "15-timer"]
WHOLE += ["21-msr", "24-watchpoint"]
SOME = {
    "14-c-kernel": 1500,
    "28-scheduler": 1500,
    "25-dirty-pages": 1000,
    "26-vga-colours": 800,
    "22-cpuid": 1000,
    "16-lapic-timer": 500,
}


@contextmanager
def stepped(guest: BundledGuest) -> Iterator[tuple[Machine, Stepper]]:
    for need in guest.needs:
        if not probe(need).works:
            pytest.skip(f"{need}: {probe(need).detail}")
    with Machine(guest.memory, irqchip=guest.irqchip, cpus=guest.cpus, devices=guest.devices) as machine:
        machine.load(open_image(guest.image, name=guest.name, mode=Mode(guest.mode)), ring=guest.ring)
        machine.board.keyboard.enqueue(parse_keys(guest.keys))
        for index, value in guest.msrs:
            machine.msr.store(index, value)
        with Stepper(machine) as stepper:
            yield machine, stepper


def state(machine: Machine) -> tuple[object, ...]:
    """All that a machine is, but what the host's clock makes of it: the TSC, timers in the kernel."""
    snapshot = machine.snapshot()
    pieces = [
        {name: data for name, data in vcpu.pieces.items() if name not in ("msrs", "lapic")} for vcpu in snapshot.vcpus
    ]
    return pieces, snapshot.memory, snapshot.devices, snapshot.situation


@pytest.mark.parametrize("name", WHOLE)
def test_a_guest_that_is_stepped_does_what_it_does_when_it_runs(name: str) -> None:
    guest = GUESTS[name]
    with stepped(guest) as (machine, stepper):
        before = state(machine)
        arrival = stepper.continue_(limit=3000, stepping=True)
        assert arrival.reason is Reason.STOP
        assert arrival.stop is not None
        assert machine.result(arrival.stop, cpu=arrival.cpu).serial.text.strip() == guest.expect.serial.strip()
        stepper.back_to(0)
        assert state(machine) == before


@pytest.mark.parametrize("name", list(SOME))
def test_some_steps_and_as_many_back_are_nothing(name: str) -> None:
    with stepped(GUESTS[name]) as (machine, stepper):
        before = state(machine)
        stepper.continue_(limit=SOME[name], stepping=True)
        assert stepper.oldest == 0
        stepper.back_to(0)
        assert state(machine) == before


@pytest.mark.parametrize("name", ["14-c-kernel", "28-scheduler", "26-vga-colours", "20-spinlock"])
def test_the_history_has_room_for_ten_thousand_steps(name: str) -> None:
    with stepped(GUESTS[name]) as (_, stepper):
        stepper.continue_(limit=1000, stepping=True)
        assert stepper._motion.history.size / stepper.position * ENOUGH < HISTORY


def test_ten_thousand_steps_are_undone() -> None:
    with stepped(GUESTS["28-scheduler"]) as (machine, stepper):
        before = state(machine)
        stepper.continue_(limit=ENOUGH, stepping=True)
        assert (stepper.position, stepper.oldest) == (ENOUGH, 0)
        stepper.back_to(0)
        assert state(machine) == before
