"""Every system call that KVM gets is told of: against strace(1), which sees what the kernel sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.kvm import IoctlCall, IoOut, Kvm, OtherCall
from pykvm.kvm.decoding import Structure
from pykvm.machine import TimedOut
from pykvm.observe import CallText

PYKVM = "import sys; from pykvm.cli.main import entry; sys.exit(entry())"
IOCTL = re.compile(r"ioctl\((?P<who>.+?), (?P<name>KVM_\w+)[ ,].* = (?P<result>-1 E\w+|\d+)")
MAPPING = re.compile(r"mmap\(NULL, (?P<size>\w+), PROT_READ\|PROT_WRITE, MAP_SHARED, \D*\d.*\) = (?P<result>0x\w+)")

# What the shim repeats by itself, so that only strace sees the first attempt.
REPEATED = (("KVM_CREATE_VM", "-1 EINTR"), ("KVM_RUN", "-1 EAGAIN"))

# Each writes lines to the file "ioctls", and makes its ioctls on one thread, so that there is one order of them.
RUN = PYKVM
ECHO_ENDED = 3  # the status of the guest that echoes
BY_HAND = """
import mmap
from pykvm.kvm import Cap, Hlt, IrqchipId, Kvm
from pykvm.observe import CallText
from pykvm.units import Gpa

with open("ioctls", "w") as file, Kvm.open(log=CallText(lambda line: print(line, file=file))) as kvm:
    kvm.get_supported_cpuid()
    with kvm.create_vm() as vm:
        ram = mmap.mmap(-1, 0x10000)
        vm.create_irqchip()
        vm.create_pit2()
        vm.set_user_memory_region(0, Gpa(0), ram, log_dirty_pages=True)
        vm.register_coalesced_mmio(0x80, 1, pio=True)
        with vm.create_vcpu(0) as vcpu, vm.create_vcpu(1):
            kept, _ = vcpu.find_msrs(kvm.get_msr_index_list())
            vm.load_state(vm.save_state())
            vcpu.load_state(vcpu.save_state(kept))
            vcpu.translate(0)
            vm.irq_line(5, True)
            list(vm.dirty_pages())
            vm.get_dirty_log(0)
            vm.stats(), vcpu.stats()
        try:
            vm.create_vcpu(0)
        except OSError:
            pass
        vm.set_user_memory_region(0, Gpa(0), None)
"""
RESTORING = """
from pykvm import Machine, assemble
from pykvm.observe import CallText

with open("ioctls", "w") as file, Machine(dirty="log", ioctls=CallText(lambda line: print(line, file=file))) as machine:
    machine.load(assemble("movb $1, 0x200000; mov $7, %al; out %al, $0xf4", mode="long"))
    snapshot = machine.snapshot()
    for _ in range(3):
        machine.run()
        machine.restore(snapshot)
    list(machine.dirty_pages())
"""


@pytest.fixture
def strace(tmp_path: Path) -> Callable[..., str]:
    """Run Python code under strace and return what that writes."""
    program = shutil.which("strace")
    if program is None or subprocess.run([program, "-o", os.devnull, "true"], capture_output=True).returncode:
        if os.environ.get("PYKVM_REQUIRE_KVM") == "1":
            pytest.fail("strace cannot be used here: install it, and allow ptrace")
        pytest.skip("strace cannot be used here")

    def trace(code: str, *arguments: str) -> str:
        command = [program, "-f", "-qq", "-v", "-e", "trace=ioctl,mmap", "-o", "strace", sys.executable, "-c", code]
        ran = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, input=b"q\n", timeout=50)
        assert ran.returncode in (0, ECHO_ENDED), ran.stderr
        return (tmp_path / "strace").read_text()

    return trace


def calls_in(text: str) -> list[tuple[str, str]]:
    """Return ioctls of KVM by name and result, and mappings of its descriptors by size and address."""
    found = []
    for line in text.splitlines():
        if match := IOCTL.search(line):
            found.append((match["name"], match["result"]))
        elif match := MAPPING.search(line):
            found.append((f"mmap {int(match['size'], 0)}", match["result"]))
    return [call for call in found if call not in REPEATED]


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        pytest.param(RUN, ("run", "03-echo", "--ioctls-file", "ioctls"), id="run"),
        pytest.param(BY_HAND, (), id="by-hand"),
        pytest.param(RESTORING, (), id="restoring"),
    ],
)
def test_strace_sees_the_same_calls_with_the_same_results(
    strace: Callable[..., str], tmp_path: Path, code: str, arguments: tuple[str, ...]
) -> None:
    truth = calls_in(strace(code, *arguments))
    assert len(truth) > 20
    assert calls_in((tmp_path / "ioctls").read_text()) == truth


# ---- what a learner sees ----


class Heard(list[IoctlCall | OtherCall]):
    """A log as a list."""

    def call(self, call: IoctlCall | OtherCall) -> None:
        self.append(call)

    def ioctls(self, name: str) -> list[IoctlCall]:
        return [call for call in self if isinstance(call, IoctlCall) and call.name == name]


def test_a_machine_tells_of_everything_from_opening_to_closing() -> None:
    heard = Heard()
    with Machine(ioctls=heard) as machine:
        machine.load(assemble("mov $'H', %al; out %al, $0xe9; hlt", mode="long"))
        machine.run()
    assert [call.name for call in heard[:3]] == ["open", "KVM_GET_API_VERSION", "KVM_CREATE_VM"]
    assert [call.arguments[0] for call in heard[-3:] if isinstance(call, OtherCall)] == ["vcpu 0", "vm", "kvm"]
    assert IoOut(0xE9, data=b"H") in [call.exit for call in heard.ioctls("KVM_RUN")]


def test_registers_are_told_by_name() -> None:
    heard = Heard()
    with Machine(ioctls=heard) as machine:
        machine.load(assemble("hlt", mode="real"))
    [call] = heard.ioctls("KVM_SET_REGS")
    assert isinstance(call.before, Structure)
    assert dict(call.before.fields)["rip"] == 0x8000


def test_each_cpu_goes_by_its_number() -> None:
    lines: list[str] = []
    with Machine(cpus=2, irqchip="kernel", ioctls=CallText(lines.append)) as machine:
        machine.load(assemble("jmp .", mode="long"))
        assert isinstance(machine.run(0.1).stop, TimedOut)
    text = "\n".join(lines)
    for cpu in (0, 1):
        assert f"ioctl(vm, KVM_CREATE_VCPU, {cpu}) = " in text
        assert f"(vcpu {cpu})" in text
        assert f"ioctl(vcpu {cpu}, KVM_RUN, 0) = " in text


def test_vms_of_one_descriptor_are_told_apart() -> None:
    lines: list[str] = []
    with Kvm.open(log=CallText(lines.append)) as kvm, kvm.create_vm(), kvm.create_vm() as second, second.create_vcpu():
        pass
    assert any(line.endswith("(vcpu 0 of vm 2)") for line in lines)
    assert "close(vm 2) = 0" in lines


# ---- the command line ----


def pykvm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PYKVM, "run", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, input="", timeout=30, check=False)


def test_calls_go_to_stderr_and_leave_the_guests_output_alone(tmp_path: Path) -> None:
    ran = pykvm("02-hello-real", "--ioctls", cwd=tmp_path)
    quiet = pykvm("02-hello-real", cwd=tmp_path)
    assert (ran.stdout, ran.returncode) == (quiet.stdout, quiet.returncode)
    lines = ran.stderr.splitlines()
    assert lines[0] == 'open("/dev/kvm", O_RDWR|O_CLOEXEC) = 3 (kvm)'
    assert lines[-1] == "close(kvm) = 0"
    assert re.search(r"^ioctl\(vcpu 0, KVM_RUN, 0\) = 0  -> io out 0x3f8 '.'$", ran.stderr, re.MULTILINE)


def test_calls_go_to_a_file_instead(tmp_path: Path) -> None:
    ran = pykvm("01-hlt", "--ioctls-file", "calls.txt", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "KVM_CREATE_VM" in (tmp_path / "calls.txt").read_text()


@pytest.mark.parametrize(
    ("file", "why"), [("no/such", "No such file"), (".", "Is a directory"), ("/dev/full", "No space")]
)
def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path, file: str, why: str) -> None:
    ran = pykvm("01-hlt", "--ioctls-file", file, cwd=tmp_path)
    assert ran.returncode == 74
    assert re.fullmatch(rf"pykvm: {re.escape(file)}: cannot be written: {why}.*\n", ran.stderr)


def test_calls_do_not_overwrite_the_guest(tmp_path: Path) -> None:
    guest = tmp_path / "guest.bin"
    guest.write_bytes(b"\xf4")
    ran = pykvm("guest.bin", "--ioctls-file", "./guest.bin", cwd=tmp_path)
    assert ran.returncode == 2
    assert "--ioctls-file ./guest.bin would overwrite the guest" in ran.stderr
    assert guest.read_bytes() == b"\xf4"


def test_a_guest_that_never_ends_is_told_of_to_the_last(tmp_path: Path) -> None:
    (tmp_path / "spin.S").write_text("jmp .\n")
    ran = pykvm("spin.S", "--timeout", "0.2", "--ioctls-file", "calls.txt", cwd=tmp_path)
    assert ran.returncode == 124
    assert (tmp_path / "calls.txt").read_text().endswith("close(kvm) = 0\n")
