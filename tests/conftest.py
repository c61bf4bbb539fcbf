"""What all tests share beside pykvm's own pytest plugin: which tests need /dev/kvm, and a guest without a Machine.

Tests below tests/kvm and tests/guests need /dev/kvm: they get the mark ``kvm``, of which the plugin takes care. Where
KVM cannot be used they skip with the reason, or fail with it if PYKVM_REQUIRE_KVM=1, so that a machine that is
supposed to have KVM cannot pass by skipping.

``--examples-factor N`` runs property tests on N times as many examples.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from pykvm.memory import layout
from pykvm.units import Gpa, KiB

if TYPE_CHECKING:
    from pykvm.kvm import Exit, Kvm, ReadExit, Regs, Vcpu, Vm

HERE = Path(__file__).resolve().parent
NEED_KVM = (HERE / "kvm", HERE / "guests")

# No test may depend on how fast the machine is; and what CI says must not depend on luck.
settings.register_profile("pykvm", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("pykvm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--examples-factor", type=int, default=1, help="run property tests on so many times as many examples"
    )


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    factor = config.getoption("--examples-factor")
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in NEED_KVM):
            item.add_marker(pytest.mark.kvm)
        if factor > 1:
            _run_longer(item, factor)


def _run_longer(item: pytest.Item, factor: int) -> None:
    """Give ``item``, if it is a property test, ``factor`` times as many examples, and time without limit."""
    holders = [
        (getattr(item, "function", None), "_hypothesis_internal_use_settings"),  # where @given keeps them
        (getattr(item, "cls", None), "settings"),  # a state machine's
    ]
    for holder, name in holders:
        before = getattr(holder, name, None)
        if not isinstance(before, settings):
            continue
        if not hasattr(holder, "runs_longer"):  # a parametrized test is several items
            setattr(holder, name, settings(before, max_examples=before.max_examples * factor))
            setattr(holder, "runs_longer", True)  # noqa: B010 - neither a function nor None has it
        if item.get_closest_marker("kvm") is not None:
            item.add_marker(pytest.mark.kvm(timeout=0), append=False)


@pytest.fixture
def debian() -> Callable[[str, str], Path]:
    """Return what finds a file of a Debian package: ``debian("seabios", "/usr/share/seabios/bios.bin")``."""

    def find(package: str, file: str) -> Path:
        if not Path(file).exists():
            reason = f"{file} is not there: apt-get install {package}"
            if "CI" in os.environ:
                pytest.fail(reason)
            pytest.skip(reason)
        return Path(file)

    return find


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
def bare_guest(vm: Vm) -> Iterator[RealModeGuest]:
    """A guest in real mode on the wrappers alone, whose code is one HLT."""
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
def vcpu(bare_guest: RealModeGuest) -> Vcpu:
    """The vCPU of a guest in real mode."""
    return bare_guest.vcpu
