"""machine.on_hypercall(): user space answers what KVM hands over, and a host where it never returns hangs nobody."""

from __future__ import annotations

import pytest

from pykvm import Machine, assemble
from pykvm.errors import ClosedError, ConfigurationError
from pykvm.kvm import Cap, Hypercall
from pykvm.machine import Crashed, DebugExitWritten, Halted, RunResult, TimedOut
from pykvm.probes import all_probes, probe
from pykvm.testing import Guests

MAP_GPA_RANGE = 12
GPA, PAGES, ENCRYPTED = 0x20_0000, 3, 1 << 4
ENOSYS = 1000  # KVM_ENOSYS: no such hypercall

CALL = f"""
        mov     ${MAP_GPA_RANGE}, %eax
        mov     ${GPA:#x}, %ebx
        mov     ${PAGES}, %ecx
        mov     ${ENCRYPTED:#x}, %edx
        vmcall
        hlt
"""


def require_hypercalls() -> None:
    if not probe("hypercall-exit").works:
        pytest.skip(f"hypercall-exit: {probe('hypercall-exit').detail}")


def require_offer(machine: Machine) -> None:
    if not machine.vm.check_extension(Cap.EXIT_HYPERCALL) >> MAP_GPA_RANGE & 1:
        pytest.skip("this host's KVM hands no KVM_HC_MAP_GPA_RANGE over")


def run(machine: Machine, timeout: float = 20) -> RunResult:
    machine.load(assemble(CALL, mode="long"), mode="long")
    return machine.run(timeout)


def test_the_probe_is_among_those_of_doctor_and_ends_whatever_the_host_does() -> None:
    asked = next(item for item in all_probes() if item.name == "hypercall-exit")
    assert "KVM_EXIT_HYPERCALL" in asked.proves
    outcome = asked.ask()
    assert outcome.detail
    assert outcome.works or not outcome.hangs or "still running after" in outcome.detail


def test_a_hypercall_that_never_returns_is_ended_by_the_time_limit(guest: Guests) -> None:
    machine = guest.machine("4M")
    require_offer(machine)
    machine.on_hypercall(MAP_GPA_RANGE, lambda call: 0)
    result = run(machine, timeout=0.3)
    assert isinstance(result.stop, Halted | TimedOut | Crashed)
    if isinstance(result.stop, TimedOut):
        assert "vmcall" in result.report
    machine.load(assemble("mov $1, %al; out %al, $0xf4", mode="long"), mode="long")
    assert machine.run(timeout=20).stop == DebugExitWritten(1), "the machine is as good as before"


def test_a_handler_gets_the_arguments_and_gives_the_guest_its_rax(guest: Guests) -> None:
    require_hypercalls()
    calls: list[Hypercall] = []

    def answer(call: Hypercall) -> int:
        calls.append(call)
        return 0x1122_3344_5566

    machine = guest.machine("4M")
    machine.on_hypercall(MAP_GPA_RANGE, answer)
    result = run(machine)
    assert result.stop == Halted()
    assert result.registers.rax == 0x1122_3344_5566
    assert [(call.nr, *call.args[:3]) for call in calls] == [(MAP_GPA_RANGE, GPA, PAGES, ENCRYPTED)]


def test_a_handler_may_answer_with_an_error(guest: Guests) -> None:
    require_hypercalls()
    machine = guest.machine("4M")
    machine.on_hypercall(MAP_GPA_RANGE, lambda call: -22)
    assert run(machine).registers.rax == (1 << 64) - 22


def test_without_a_handler_kvm_answers_that_there_is_no_such_hypercall(guest: Guests) -> None:
    require_hypercalls()
    machine = guest.machine("4M")
    assert run(machine).registers.rax == (1 << 64) - ENOSYS


def test_a_handler_that_raises_ends_the_run_with_the_guests_state(guest: Guests) -> None:
    require_hypercalls()
    machine = guest.machine("4M")
    machine.on_hypercall(MAP_GPA_RANGE, lambda call: 1 // 0)
    with pytest.raises(ZeroDivisionError) as raised:
        run(machine)
    assert "the guest, on CPU 0" in raised.value.__notes__[0]


@pytest.mark.parametrize("nr", [99, 63, -1, 0])
def test_a_hypercall_that_kvm_does_not_hand_over_is_refused_and_those_it_does_are_named(guest: Guests, nr: int) -> None:
    machine = guest.machine("1M")
    offered = machine.vm.check_extension(Cap.EXIT_HYPERCALL)
    named = str(MAP_GPA_RANGE) if offered >> MAP_GPA_RANGE & 1 else ""
    with pytest.raises(ConfigurationError, match=f"KVM does not hand hypercall {nr} over; it does: .*{named}"):
        machine.on_hypercall(nr, lambda call: 0)


def test_a_closed_machine_takes_no_handler() -> None:
    machine = Machine("1M")
    machine.close()
    with pytest.raises(ClosedError):
        machine.on_hypercall(MAP_GPA_RANGE, lambda call: 0)
