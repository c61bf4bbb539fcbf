"""machine.msr on KVM: handlers that answer, refuse, raise, and change while the guest runs."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.errors import ConfigurationError, MsrRefusedError
from pykvm.machine import DebugExitWritten, Halted, RunResult
from pykvm.testing import Guests

NOWHERE = 0x1234  # an MSR that neither KVM nor a processor has
GP = 13

# DS = 0, as a machine in real mode starts; port 0xf4 gets 13 if an access is refused.
CATCH_GP = f"""
        movw    $refused, 4 * {GP}              # the interrupt vector table: #GP's handler
        movw    $0, 4 * {GP} + 2
"""
REFUSED = f"""
refused:
        mov     ${GP}, %al
        out     %al, $0xf4
"""


@pytest.fixture
def machine(guest: Guests) -> Machine:
    ignore = Path("/sys/module/kvm/parameters/ignore_msrs")
    if ignore.exists() and ignore.read_text().strip() in "1Y":
        pytest.skip("kvm.ignore_msrs is set: KVM answers unknown MSRs itself")
    return guest.machine("1M")


def run(machine: Machine, code: str) -> RunResult:
    machine.load(assemble(f"{CATCH_GP}\n{code}\nhlt\n{REFUSED}", mode="real"), mode="real")
    return machine.run(timeout=20)


def rdmsr(msr: int) -> str:
    return f"mov ${msr:#x}, %ecx\nrdmsr"


def wrmsr(msr: int, value: int) -> str:
    return f"mov ${msr:#x}, %ecx\nmov ${value & 0xFFFF_FFFF:#x}, %eax\nmov ${value >> 32:#x}, %edx\nwrmsr"


def value_read(result: RunResult) -> int:
    assert result.stop == Halted()
    return (result.registers.rdx & 0xFFFF_FFFF) << 32 | result.registers.rax & 0xFFFF_FFFF


def test_a_handler_says_what_is_read(machine: Machine) -> None:
    machine.msr.on_read(NOWHERE, lambda: 0x1122_3344_5566_7788)
    assert value_read(run(machine, rdmsr(NOWHERE))) == 0x1122_3344_5566_7788


def test_a_handler_gets_what_is_written(machine: Machine) -> None:
    written: list[int] = []
    machine.msr.on_write(NOWHERE, written.append)
    assert run(machine, wrmsr(NOWHERE, 0xFEDC_BA98_7654_3210)).stop == Halted()
    assert written == [0xFEDC_BA98_7654_3210]


def test_a_stored_msr_is_a_register(machine: Machine) -> None:
    machine.msr.store(NOWHERE, 0x2A)
    assert value_read(run(machine, rdmsr(NOWHERE))) == 0x2A
    assert value_read(run(machine, wrmsr(NOWHERE, 1 << 63) + "\nxor %eax, %eax\n" + rdmsr(NOWHERE))) == 1 << 63


@pytest.mark.parametrize(("name", "number"), [("IA32_TSC", 0x10), ("IA32_PAT", 0x277), ("IA32_LSTAR", 0xC000_0082)])
def test_an_msr_of_kvms_own_is_answered_by_a_handler(name: str, number: int, machine: Machine) -> None:
    machine.msr.store(name, 0xAB_0000_00CD)
    assert value_read(run(machine, rdmsr(number))) == 0xAB_0000_00CD
    assert value_read(run(machine, wrmsr(number, 5) + "\n" + rdmsr(number))) == 5


def test_who_reads_an_msr_alone_leaves_writing_to_kvm(machine: Machine) -> None:
    machine.msr.on_read("IA32_SYSENTER_CS", lambda: 77)
    assert value_read(run(machine, wrmsr(0x174, 8) + "\n" + rdmsr(0x174))) == 77
    assert [entry.data for entry in machine.vcpu.get_msrs([0x174])] == [8]


@pytest.mark.parametrize("code", [rdmsr(NOWHERE), wrmsr(NOWHERE, 1)], ids=["read", "write"])
def test_an_unknown_msr_without_a_handler_is_a_protection_fault(code: str, machine: Machine) -> None:
    assert run(machine, code).stop == DebugExitWritten(GP)
    machine.msr.store(NOWHERE + 1, 0)
    assert run(machine, code).stop == DebugExitWritten(GP), "with handlers for others, too"


def test_an_msr_that_can_only_be_read_refuses_to_be_written(machine: Machine) -> None:
    machine.msr.on_read(NOWHERE, lambda: 1)
    assert value_read(run(machine, rdmsr(NOWHERE))) == 1
    assert run(machine, wrmsr(NOWHERE, 1)).stop == DebugExitWritten(GP)


def test_a_handler_may_refuse(machine: Machine) -> None:
    def refuse_read() -> int:
        raise MsrRefusedError(NOWHERE)

    def refuse_odd(value: int) -> None:
        if value % 2:
            raise MsrRefusedError(NOWHERE)

    machine.msr.on_read(NOWHERE, refuse_read)
    machine.msr.on_write(NOWHERE, refuse_odd)
    assert run(machine, rdmsr(NOWHERE)).stop == DebugExitWritten(GP)
    assert run(machine, wrmsr(NOWHERE, 3)).stop == DebugExitWritten(GP)
    assert run(machine, wrmsr(NOWHERE, 4)).stop == Halted()


def test_a_refusal_leaves_the_registers_as_they_were(machine: Machine) -> None:
    result = run(machine, "mov $0x5a5a, %eax\nmov $0xa5a5, %edx\n" + rdmsr(NOWHERE))
    assert (result.registers.rax >> 8, result.registers.rdx) == (0x5A, 0xA5A5)  # AL went to port 0xf4


# ---- handlers that raise ----


def test_a_handler_that_raises_ends_the_run_with_its_traceback_and_the_guests_state(machine: Machine) -> None:
    def broken_handler() -> int:
        raise ZeroDivisionError("in the handler")

    machine.msr.on_read(NOWHERE, broken_handler)
    with pytest.raises(ZeroDivisionError, match="in the handler") as raised:
        run(machine, "mov $0x1dea, %ebx\n" + rdmsr(NOWHERE))
    assert "broken_handler" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    notes = "\n".join(raised.value.__notes__)
    for words in ("the guest, on CPU 0", "rip 0x80", "rbx 0x1dea", "cr0"):
        assert words in notes


def test_a_handler_of_writes_that_raises_does_the_same(machine: Machine) -> None:
    def broken_handler(value: int) -> None:
        raise KeyError(value)

    machine.msr.on_write("IA32_PAT", broken_handler)
    with pytest.raises(KeyError) as raised:
        run(machine, wrmsr(0x277, 9))
    assert "broken_handler" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert "the guest, on CPU 0" in raised.value.__notes__[0]


def test_a_machine_whose_handler_raised_can_be_loaded_and_run_again(machine: Machine) -> None:
    machine.msr.on_read(NOWHERE, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run(machine, rdmsr(NOWHERE))
    machine.msr.on_read(NOWHERE, lambda: 6)
    assert value_read(run(machine, rdmsr(NOWHERE))) == 6


def test_a_handler_on_another_cpu_ends_the_run_too(guest: Guests) -> None:
    start_cpu_1 = """
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .code64
        .globl _start
_start: start_other_cpus trampoline
1:      pause
        jmp     1b
other:  mov     $0x1234, %ecx
        rdmsr
        hlt
        define_trampoline trampoline, other
    """
    machine = guest.machine(irqchip="kernel", cpus=2)
    machine.msr.on_read(NOWHERE, lambda: 1 // 0)
    machine.load(assemble(start_cpu_1, mode="long"), mode="long")
    with pytest.raises(ZeroDivisionError) as raised:
        machine.run(timeout=30)
    assert "the guest, on CPU 1" in raised.value.__notes__[0]


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_value_of_more_than_64_bits_ends_the_run_and_names_the_msr(value: int, machine: Machine) -> None:
    machine.msr.on_read("IA32_PAT", lambda: value)
    with pytest.raises(ConfigurationError, match=f"handler of MSR IA32_PAT returned {value}: .*64 bits"):
        run(machine, rdmsr(0x277))


# ---- handlers that change while the guest runs ----


def test_a_handler_may_set_another_while_the_guest_runs(machine: Machine) -> None:
    def first() -> int:
        machine.msr.on_read("IA32_PAT", lambda: 2)
        machine.msr.on_read(NOWHERE, lambda: 3)
        return 1

    machine.msr.on_read(NOWHERE, first)
    code = f"{rdmsr(NOWHERE)}\nmov %eax, %ebx\n{rdmsr(0x277)}\nmov %eax, %esi\n{rdmsr(NOWHERE)}"
    registers = run(machine, code).registers
    assert (registers.rbx, registers.rsi, registers.rax) == (1, 2, 3)


def test_many_msrs_far_apart_have_handlers_at_once(machine: Machine) -> None:
    numbers = [0x10, 0x277, 0x1234, 0xC000_0080 + 0x40, 0xC001_0200, 0x4B56_4DFF]
    for position, number in enumerate(numbers):
        machine.msr.store(number, position + 1)
    assert [value_read(run(machine, rdmsr(number))) for number in numbers] == [1, 2, 3, 4, 5, 6]


def test_too_many_ranges_are_refused_and_what_was_set_stays(machine: Machine) -> None:
    for number in range(1, 9):
        machine.msr.store(number << 24, number)
    with pytest.raises(ConfigurationError, match=r"lie in 17 ranges .*room for 16"):
        machine.msr.on_read(9 << 24, lambda: 9)
    assert value_read(run(machine, rdmsr(8 << 24))) == 8


def test_an_x2apic_msr_is_refused_at_once(machine: Machine) -> None:
    with pytest.raises(ConfigurationError, match="MSR 0x830 is the x2APIC's"):
        machine.msr.on_write("IA32_X2APIC_ICR", print)
