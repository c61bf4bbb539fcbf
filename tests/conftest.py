"""What all tests share: the mark ``kvm``, a time limit, and a guest in real mode.

Tests below tests/kvm and tests/guests need /dev/kvm. Where it cannot be used they skip with the reason, or fail with
it if PYKVM_REQUIRE_KVM=1, so that a machine that is supposed to have KVM cannot pass by skipping.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from pykvm.errors import KvmUnavailableError
from pykvm.memory import layout
from pykvm.units import Gpa, KiB

if TYPE_CHECKING:
    from pykvm.kvm import Exit, Kvm, ReadExit, Regs, Vcpu, Vm

HERE = Path(__file__).resolve().parent
NEED_KVM = (HERE / "kvm", HERE / "guests")
TIME_LIMIT = 60  # seconds a test may take; a broken guest loops for ever more often than it crashes

# No test may depend on how fast the machine is; and what CI says must not depend on luck.
settings.register_profile("pykvm", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("pykvm")

_why_no_kvm = pytest.StashKey[str]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in NEED_KVM):
            item.add_marker(pytest.mark.kvm)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    if item.get_closest_marker("kvm") is not None:
        _require_kvm(item.config)
    with time_limit(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    with time_limit(item):
        return (yield)


def _require_kvm(config: pytest.Config) -> None:
    if _why_no_kvm not in config.stash:
        config.stash[_why_no_kvm] = _ask_for_kvm()
    reason = config.stash[_why_no_kvm]
    if not reason:
        return
    if os.environ.get("PYKVM_REQUIRE_KVM") == "1":
        pytest.fail(f"PYKVM_REQUIRE_KVM=1, but KVM cannot be used: {reason}", pytrace=False)
    pytest.skip(reason)


def _ask_for_kvm() -> str:
    """Return why KVM cannot be used here, or an empty string."""
    from pykvm.kvm import Kvm

    try:
        Kvm.open().close()
    except KvmUnavailableError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def time_limit(item: pytest.Item) -> Iterator[None]:
    """Fail ``item`` when it takes too long, wherever it hangs: a signal also gets a vCPU out of its guest."""

    def give_up(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{item.nodeid} took longer than {TIME_LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    # The second and later alarms are for a guest that is entered between the signal and KVM_RUN.
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- a guest in real mode ----

CODE = Gpa(layout.REAL_LOAD)  # where a guest's code is put, entered as 0000:8000
DATA = Gpa(0x10000)  # where DS and ES point: a 64 KiB segment of its own
HOLE = Gpa(0x20000)  # where FS points: the end of RAM, so that every access is an MMIO exit


@dataclass
class RealModeGuest:
    """One vCPU in 16-bit real mode with 128 KiB of RAM; DS and ES hold its data segment, FS the hole above RAM."""

    vm: Vm
    ram: mmap.mmap
    vcpu: Vcpu

    def load(self, *code: bytes, **registers: int) -> None:
        """Put ``code`` at CODE and point RIP there; every register that is not given is 0."""
        from pykvm.kvm import Regs

        self.write(CODE, b"".join(code))
        self.vcpu.set_regs(Regs(**({"rip": CODE, "rsp": layout.STACK_TOP} | registers)))

    def write(self, gpa: int, data: bytes) -> None:
        self.ram[gpa : gpa + len(data)] = data

    def read(self, gpa: int, size: int) -> bytes:
        return self.ram[gpa : gpa + size]

    def set_vector(self, vector: int, handler: int) -> None:
        """Point ``vector`` of the interrupt vector table at 0000:``handler``."""
        self.write(4 * vector, handler.to_bytes(4, "little"))

    @property
    def regs(self) -> Regs:
        return self.vcpu.get_regs()

    def run(self, answer: Callable[[ReadExit], bytes] | None = None) -> list[Exit]:
        """Run until HLT, answering reads with ``answer``; return the exits before it."""
        from pykvm.kvm import Hlt, Hypercall, Intr, IoIn, MmioRead, Rdmsr

        exits: list[Exit] = []
        while True:
            match self.vcpu.run():
                case Hlt():
                    return exits
                case Intr():
                    continue
                case (IoIn() | MmioRead() | Rdmsr() | Hypercall()) as exit:
                    assert answer is not None, f"the guest waits for an answer to {exit}"
                    exits.append(exit)
                    self.vcpu.complete(exit, answer(exit))
                case exit:
                    exits.append(exit)
                    assert len(exits) < 100_000, f"the guest never halts: {exits[-5:]}"


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    from pykvm.kvm import Kvm

    with Kvm.open() as kvm:
        yield kvm


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    """A VM without memory, which VT-x hosts can run in real mode all the same."""
    with kvm.create_vm() as vm:
        vm.set_identity_map_addr(Gpa(layout.IDENTITY_MAP))
        vm.set_tss_addr(Gpa(layout.TSS_REGION))
        yield vm


@pytest.fixture
def guest(vm: Vm) -> Iterator[RealModeGuest]:
    """A guest in real mode, whose code is one HLT."""
    ram = mmap.mmap(-1, 128 * KiB)
    vm.set_user_memory_region(0, Gpa(0), ram)
    with vm.create_vcpu() as vcpu:
        guest = RealModeGuest(vm, ram, vcpu)
        sregs = vcpu.get_sregs()
        for segment, base in ((sregs.cs, 0), (sregs.ds, DATA), (sregs.es, DATA), (sregs.fs, HOLE)):
            segment.base = base
            segment.selector = base >> 4
        vcpu.set_sregs(sregs)
        guest.load(b"\xf4")  # hlt
        yield guest
    vm.close()  # lets go of the memory
    ram.close()


@pytest.fixture
def vcpu(guest: RealModeGuest) -> Vcpu:
    """The vCPU of a guest in real mode."""
    return guest.vcpu
