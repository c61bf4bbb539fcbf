"""Machine(dirty=...): which pages a guest wrote, by the log and by the ring; and what KVM counted meanwhile."""

from __future__ import annotations

import threading

import pytest

from pykvm import GuestMemory, Machine, assemble
from pykvm.errors import ClosedError, ConfigurationError, InUseError, KvmError
from pykvm.kvm import Cap, DirtyRingFull, Exit, Kvm
from pykvm.machine import Halted, RunResult, Stopped, hardware
from pykvm.testing import Guests
from pykvm.units import PAGE_SIZE

# Guests in real mode at 0x8000, which write by FS and by nothing else: no stack, no page tables.
FAR = 0x20000  # the page from which they write on
WRITE_TO_SI = "mov %al, %fs:(%si)"

# %ecx pages from 2 MiB on, in long mode. The OUT is for hosts that interpret: they look at the ring between exits.
MANY_AT = 0x20_0000
WRITE_MANY = f"""
        mov     ${MANY_AT:#x}, %edi
1:      movb    $1, (%rdi)
        add     ${PAGE_SIZE}, %edi
        out     %al, $0x80
        dec     %ecx
        jnz     1b
        hlt
"""
TWO_CPUS = f"""
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .set    PAGES, 300
        .code64
        .globl _start
_start: start_other_cpus trampoline
        mov     ${MANY_AT:#x}, %edi
        call    write
1:      cmpb    $1, done
        jne     1b
        cli
        hlt
other:  mov     $stack_top, %esp
        mov     ${MANY_AT:#x} + PAGES * {PAGE_SIZE}, %edi
        call    write
        movb    $1, done
        cli
2:      hlt
        jmp     2b
write:  mov     $PAGES, %ecx
1:      movb    $1, (%rdi)
        add     ${PAGE_SIZE}, %edi
        out     %al, $0x80
        dec     %ecx
        jnz     1b
        ret
        define_trampoline trampoline, other
        .bss
done:   .skip   1
        .balign 16
        .skip   256
stack_top:
"""


@pytest.fixture(params=["log", "ring"])
def tracking(request: pytest.FixtureRequest) -> str:
    if request.param == "ring":
        require_ring()
    return str(request.param)


def require_ring() -> None:
    with Kvm.open() as kvm:
        if not kvm.check_extension(Cap.DIRTY_LOG_RING):
            pytest.skip("this host's KVM has no dirty ring")


def run(machine: Machine, code: str, mode: str = "real") -> RunResult:
    machine.load(assemble(code, mode=mode), mode=mode)
    result = machine.run(timeout=30)
    assert result.stop == Halted(), result.report
    return result


def write(machine: Machine, *pages: int) -> None:
    """Have the guest write to ``pages``, counted from FAR on."""
    code = [
        f"mov ${(FAR + page * PAGE_SIZE) >> 4:#x}, %ax\nmov %ax, %fs\nxor %si, %si\n{WRITE_TO_SI}" for page in pages
    ]
    run(machine, "\n".join([*code, "hlt"]))


def numbers(machine: Machine, start: int = FAR) -> list[int]:
    return [(page - start) // PAGE_SIZE for page in machine.dirty_pages()]


# ---- which pages ----


def test_the_pages_that_a_guest_wrote_are_told_exactly(guest: Guests, tracking: str) -> None:
    machine = guest.machine("1M", dirty=tracking)
    write(machine, 5, 0, 63, 5)
    assert numbers(machine) == [0, 5, 63]


def test_each_call_tells_what_was_written_since_the_last(guest: Guests, tracking: str) -> None:
    machine = guest.machine("1M", dirty=tracking)
    assert numbers(machine) == []
    write(machine, 1, 2)
    write(machine, 9)
    assert numbers(machine) == [1, 2, 9]
    assert numbers(machine) == []
    write(machine, 2)
    assert numbers(machine) == [2]


def test_what_the_host_writes_is_not_the_guests(guest: Guests, tracking: str) -> None:
    machine = guest.machine("1M", dirty=tracking)
    machine.memory.write(FAR, b"host")
    write(machine, 4)
    assert numbers(machine) == [4]


def test_pages_are_those_of_the_call_not_of_the_iteration(guest: Guests, tracking: str) -> None:
    machine = guest.machine("1M", dirty=tracking)
    write(machine, 1)
    before = machine.dirty_pages()
    write(machine, 2)
    assert list(before) == [FAR + PAGE_SIZE]
    assert numbers(machine) == [2]


def test_the_screens_pages_count_even_where_memory_ends_below_it(tracking: str) -> None:
    for memory in ("64K", "1M"):
        with Machine(memory, dirty=tracking) as machine:
            run(machine, "mov $0xb800, %ax\nmov %ax, %fs\nxor %si, %si\nmov %al, %fs:(%si)\nhlt")
            assert list(machine.dirty_pages()) == [0xB8000]


def test_memory_of_several_regions_is_tracked_and_a_rom_never_is_dirty(tracking: str) -> None:
    with GuestMemory("4M") as memory:
        memory.add_rom(0xF000_0000, bytes(PAGE_SIZE), name="rom")
        memory.add_ram(0xE000_0000, 4 * PAGE_SIZE, name="more")
        with Machine(memory, dirty=tracking) as machine:
            list(machine.dirty_pages())
            run(machine, "mov $0xe0002000, %eax\nmovb $1, (%rax)\nmov $0xf0000000, %eax\nmovb $1, (%rax)\nhlt", "long")
            pages = set(machine.dirty_pages())
    assert 0xE000_2000 in pages
    assert not pages & {0xE000_0000, 0xE000_1000, 0xE000_3000, 0xF000_0000}


def test_both_ways_tell_the_same_of_the_same_guest() -> None:
    require_ring()
    told = []
    for tracking in ("log", "ring"):
        with Machine("8M", dirty=tracking) as machine:
            run(machine, f"mov $700, %ecx\n{WRITE_MANY}", "long")
            told.append({page for page in machine.dirty_pages() if page >= MANY_AT})
    assert told[0] == told[1] == {MANY_AT + number * PAGE_SIZE for number in range(700)}


# ---- the ring ----


class Count:
    """Counts the exits because of a full ring."""

    def __init__(self) -> None:
        self.full = 0

    def exit(self, vcpu: int, exit: Exit) -> None:
        self.full += isinstance(exit, DirtyRingFull)

    def tick(self) -> None:
        pass


def smallest_ring() -> int:
    """Return the size of the smallest ring that this host takes, in bytes."""
    require_ring()
    size = PAGE_SIZE
    while True:
        with Kvm.open() as kvm, kvm.create_vm() as vm:
            try:
                vm.enable_dirty_ring(size)
            except KvmError:
                size *= 2
            else:
                return size


def test_a_ring_that_gets_full_in_the_middle_loses_nothing(guest: Guests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "RING_SIZE", smallest_ring())
    count = Count()
    machine = guest.machine("16M", dirty="ring", observers=[count])
    run(machine, f"mov $3000, %ecx\n{WRITE_MANY}", "long")
    pages = {page for page in machine.dirty_pages() if page >= MANY_AT}
    assert list(machine.dirty_pages()) == []
    assert pages == {MANY_AT + number * PAGE_SIZE for number in range(3000)}
    assert count.full > 0


@pytest.mark.parametrize("small", [False, True], ids=["roomy", "full in the middle"])
def test_each_cpu_has_a_ring_and_the_pages_of_all_are_told(
    guest: Guests, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    smallest = smallest_ring()
    if small:
        monkeypatch.setattr(hardware, "RING_SIZE", smallest)
    machine = guest.machine("8M", dirty="ring", irqchip="kernel", cpus=2)
    run(machine, TWO_CPUS, "long")
    pages = {page for page in machine.dirty_pages() if page >= MANY_AT}
    assert pages == {MANY_AT + number * PAGE_SIZE for number in range(600)}


def test_two_cpus_are_tracked_by_the_log_as_well(guest: Guests) -> None:
    machine = guest.machine("8M", dirty="log", irqchip="kernel", cpus=2)
    run(machine, TWO_CPUS, "long")
    pages = {page for page in machine.dirty_pages() if page >= MANY_AT}
    assert pages == {MANY_AT + number * PAGE_SIZE for number in range(600)}


# ---- wrong use ----


def test_who_did_not_ask_for_tracking_is_told_how_at_the_call(guest: Guests) -> None:
    machine = guest.machine("1M")
    with pytest.raises(ConfigurationError, match=r'Machine\(dirty="log"\) or "ring"'):
        machine.dirty_pages()


@pytest.mark.parametrize("dirty", ["", "LOG", "bitmap"])
def test_a_tracking_that_does_not_exist_is_refused(dirty: str) -> None:
    with pytest.raises(ConfigurationError, match=f'by "log" or "ring", not by {dirty!r}'):
        Machine("1M", dirty=dirty)


def test_a_closed_machine_has_no_dirty_pages() -> None:
    machine = Machine("1M", dirty="log")
    machine.close()
    with pytest.raises(ClosedError):
        machine.dirty_pages()


def test_a_running_machine_refuses_and_a_paused_one_tells(guest: Guests, tracking: str) -> None:
    machine = guest.machine("1M", dirty=tracking)
    code = f"mov ${FAR >> 4:#x}, %ax\nmov %ax, %fs\nxor %si, %si\n1: {WRITE_TO_SI}\nout %al, $0x80\njmp 1b"
    machine.load(assemble(code, mode="real"), mode="real")
    stops: list[object] = []
    with machine.vcpu.get_stats_fd() as statistics:
        runner = threading.Thread(target=lambda: stops.append(machine.run(timeout=30).stop))
        runner.start()
        while statistics.read()["exits"].value < 100:
            pass
        with pytest.raises(InUseError, match=r"runs and cannot be asked for dirty pages: pause\(\) or stop\(\)"):
            machine.dirty_pages()
        machine.pause()
        assert numbers(machine) == [0]
        machine.resume()
        machine.stop()
        runner.join()
    assert stops == [Stopped()]


# ---- what KVM counted ----


def test_a_machines_vm_and_vcpus_tell_what_kvm_counted(guest: Guests) -> None:
    machine = guest.machine("1M")
    before = machine.vcpu.stats()
    run(machine, "out %al, $0x80\nout %al, $0x80\nout %al, $0x80\nhlt")
    after = machine.vcpu.stats()
    assert after["exits"].value > before["exits"].value
    assert after.keys() == before.keys()
    assert str(after["exits"]).startswith("exits: ")
    assert len(machine.vm.stats()) > 5


def test_each_vcpu_counts_for_itself(guest: Guests) -> None:
    machine = guest.machine("8M", irqchip="kernel", cpus=2)
    run(machine, TWO_CPUS, "long")
    exits = [vcpu.stats()["exits"].value for vcpu in machine.vcpus]
    assert all(value > 0 for value in exits)
