"""Closing: in every order, twice, while in use, and forgotten."""

from __future__ import annotations

import gc
import itertools
import mmap
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pykvm.errors import ClosedError
from pykvm.kvm import Hlt, Kvm, Regs, Vcpu, Vm
from pykvm.units import Gpa


def open_descriptors() -> set[str]:
    """Return what this process has open that belongs to KVM."""
    targets = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            targets.add(f"{fd.name} {fd.readlink()}")
        except FileNotFoundError:  # the one that iterdir itself had
            continue
    return {target for target in targets if "kvm" in target}


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    gc.collect()
    assert open_descriptors() == before


def run_python(script: str) -> str:
    """Run ``script`` in a Python of its own, because its failure would be a crash; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("order", [*itertools.permutations(["kvm", "vm", "vcpu"])], ids="-".join)
def test_closing_works_in_every_order_and_twice(order: Sequence[str]) -> None:
    kvm = Kvm.open()
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu()
    things: dict[str, Kvm | Vm | Vcpu] = {"kvm": kvm, "vm": vm, "vcpu": vcpu}
    for name in order:
        things[name].close()
        assert things[name].closed
        things[name].close()
    for thing in things.values():
        thing.close()


def test_a_closed_vm_has_closed_its_vcpus() -> None:
    with Kvm.open() as kvm, kvm.create_vm() as vm:
        vcpus = [vm.create_vcpu(id) for id in range(3)]
        vm.close()
        assert all(vcpu.closed for vcpu in vcpus)
        with pytest.raises(ClosedError, match="vCPU 1 is closed: create a new one"):
            vcpus[1].get_regs()


def test_a_vm_outlives_the_kvm_it_came_from() -> None:
    with Kvm.open() as kvm:
        vm = kvm.create_vm()
    with vm, vm.create_vcpu() as vcpu:
        vcpu.set_regs(Regs(rax=5))
        assert vcpu.get_regs().rax == 5


def test_a_vcpu_keeps_its_vm_and_its_memory_alive() -> None:
    ram = mmap.mmap(-1, 65536)
    ram[0x1000] = 0xF4  # hlt
    with Kvm.open() as kvm:
        vm = kvm.create_vm()
    vm.set_user_memory_region(0, Gpa(0), ram)
    vcpu = vm.create_vcpu()
    with vcpu:
        sregs = vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        vcpu.set_regs(Regs(rip=0x1000))
        del vm
        gc.collect()
        with pytest.raises(BufferError):
            ram.close()
        assert vcpu.run() == Hlt()
    with pytest.warns(ResourceWarning, match="the VM was never closed"):
        del vcpu
        gc.collect()
    ram.close()


def test_a_vcpu_may_be_closed_and_another_made() -> None:
    with Kvm.open() as kvm, kvm.create_vm() as vm:
        vm.create_vcpu(0).close()
        with vm.create_vcpu(1) as vcpu:
            assert vcpu.get_regs().rflags == 2


def test_a_with_block_closes_what_an_exception_leaves_behind() -> None:
    with pytest.raises(ZeroDivisionError), Kvm.open() as kvm, kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
        raise ZeroDivisionError
    assert (kvm.closed, vm.closed, vcpu.closed) == (True, True, True)


@pytest.mark.parametrize("forgotten", ["/dev/kvm", "the VM", "vCPU 0"])
def test_what_is_forgotten_warns_and_is_closed(forgotten: str) -> None:
    kvm = Kvm.open()
    if forgotten == "/dev/kvm":
        with pytest.warns(ResourceWarning, match="/dev/kvm was never closed"):
            del kvm
        return
    vm = kvm.create_vm()
    kvm.close()
    if forgotten == "the VM":
        with pytest.warns(ResourceWarning, match="the VM was never closed"):
            del vm
        return
    vcpu = vm.create_vcpu()
    with pytest.warns(ResourceWarning, match="vCPU 0 was never closed"):
        del vcpu
    vm.close()


def test_a_forgotten_vm_lets_its_memory_go() -> None:
    ram = mmap.mmap(-1, 4096)
    with Kvm.open() as kvm:
        vm = kvm.create_vm()
    vm.set_user_memory_region(0, Gpa(0), ram)
    with pytest.warns(ResourceWarning, match="the VM was never closed"):
        del vm
        gc.collect()
    ram.close()


def test_a_hundred_vms_leave_nothing_behind() -> None:
    with Kvm.open() as kvm:
        for _ in range(100):
            with kvm.create_vm() as vm, vm.create_vcpu():
                pass


def test_a_process_may_end_without_closing_anything() -> None:
    assert "ok" in run_python("""
import mmap, warnings
from pykvm.kvm import Kvm
from pykvm.units import Gpa
warnings.simplefilter("ignore")
kvm = Kvm.open()
vm = kvm.create_vm()
ram = mmap.mmap(-1, 65536)
vm.set_user_memory_region(0, Gpa(0), ram)
vcpu = vm.create_vcpu()
vcpu.start_ticks(0.001, 0.001)
print("ok")
""")


def test_closing_a_vcpu_that_other_threads_kick_gives_them_an_error_and_no_crash() -> None:
    assert "300 closed" in run_python("""
import sys, threading
from pykvm.errors import ClosedError
from pykvm.kvm import Kvm
sys.setswitchinterval(1e-6)

def kick_for_ever(vcpu):
    try:
        while True:
            vcpu.kick()
    except ClosedError:
        pass

with Kvm.open() as kvm:
    for _ in range(300):
        with kvm.create_vm() as vm:
            vcpu = vm.create_vcpu()
            threads = [threading.Thread(target=kick_for_ever, args=[vcpu]) for _ in range(2)]
            for thread in threads:
                thread.start()
            vcpu.close()
            for thread in threads:
                thread.join()
print("300 closed")
""")


def test_a_thread_that_had_ticks_survives_the_vcpu_that_another_thread_closed() -> None:
    assert "Intr() ticks again" in run_python("""
import gc, mmap, threading, time
from pykvm.kvm import Kvm, Regs
from pykvm.units import Gpa

ram = mmap.mmap(-1, 65536)
ram[0x1000:0x1002] = bytes.fromhex("eb fe")  # jmp .

def make(kvm):
    vm = kvm.create_vm()
    vm.set_user_memory_region(0, Gpa(0), ram)
    vcpu = vm.create_vcpu()
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(Regs(rip=0x1000))
    return vm, vcpu

ticked, closed = threading.Event(), threading.Event()
with Kvm.open() as kvm:
    first_vm, first = make(kvm)
    second_vm, second = make(kvm)
    first_ends = [first]

    def run_both():
        vcpu = first_ends.pop()
        vcpu.start_ticks(0.01, 0.01)
        vcpu.run()
        del vcpu
        ticked.set()
        closed.wait()
        exit = second.run()
        second.start_ticks(0.01, 0.01)
        print(exit, "ticks again" if second.run() == exit else "no ticks")

    thread = threading.Thread(target=run_both)
    thread.start()
    ticked.wait()
    first_vm.close()
    del first, first_vm
    gc.collect()
    closed.set()
    while thread.is_alive():
        second.kick()
        time.sleep(0.05)
    second_vm.close()
""")
