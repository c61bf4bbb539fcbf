"""``LoggedCalls`` before a shim that is a list of answers: what is told of, and by which names."""

from __future__ import annotations

import errno
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import pykvm.kvm
from pykvm._shim import ffi, lib
from pykvm.errors import KvmError
from pykvm.kvm import IoctlCall, IoIn, IoOut, OtherCall
from pykvm.kvm.batch import Batch, Step
from pykvm.kvm.calls import Calls
from pykvm.kvm.decoding import Named, Structure
from pykvm.kvm.logged import LoggedCalls

if TYPE_CHECKING:
    from pykvm._shim import CData

PAGE = 4096


class Heard(list[IoctlCall | OtherCall]):
    """A log as a list."""

    def call(self, call: IoctlCall | OtherCall) -> None:
        self.append(call)


class Answers:
    """A shim whose functions do what they are told to here, and else return 0."""

    def __init__(self, **functions: Callable[..., int]) -> None:
        self._functions = functions

    def __getattr__(self, name: str) -> Callable[..., int]:
        return self._functions.get(name, lambda *arguments: 0)


def logged(**functions: Callable[..., int]) -> tuple[LoggedCalls, Heard]:
    heard = Heard()
    return LoggedCalls(heard, cast("Calls", Answers(**functions))), heard


# ---- who makes calls ----


def calls_of_the_shim() -> set[str]:
    return {name for name, _ in inspect.getmembers(Calls, inspect.isfunction) if name.startswith("pykvm_")}


def test_no_module_makes_a_system_call_past_the_log() -> None:
    folder = Path(pykvm.kvm.__file__).parents[1]
    pattern = re.compile(rf"\blib\.({'|'.join(sorted(calls_of_the_shim()))})\b")
    found = {str(path): pattern.findall(path.read_text()) for path in folder.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_function_of_the_shim_is_logged_or_known_to_call_no_descriptor() -> None:
    header = (Path(__file__).resolve().parents[3] / "csrc" / "shim.h").read_text()
    functions = set(re.findall(r"^int(?:64_t)? (pykvm_\w+)\(", header, re.MULTILINE))
    no_calls = {"pykvm_put_back", "pykvm_kick", "pykvm_start_ticks", "pykvm_stop_ticks"}
    assert functions == calls_of_the_shim() | no_calls
    assert calls_of_the_shim() == {name for name in vars(LoggedCalls) if name.startswith("pykvm_")}


# ---- what is told ----


def test_descriptors_go_by_what_they_are() -> None:
    fds = iter((3, 4, 5))
    calls, heard = logged(pykvm_open=lambda _: next(fds), pykvm_create_vm=lambda *_: next(fds))
    kvm = calls.pykvm_open(b"/dev/kvm")
    calls.pykvm_create_vm(kvm, 0)
    second = calls.pykvm_create_vm(kvm, 0)
    calls.pykvm_close(second)
    calls.pykvm_close(second)
    assert heard == [
        OtherCall("open", ("/dev/kvm",), 3, "kvm"),
        IoctlCall("kvm", "KVM_CREATE_VM", 0, 4, created="vm"),
        IoctlCall("kvm", "KVM_CREATE_VM", 0, 5, created="vm 2"),
        OtherCall("close", ("vm 2",), 0),
        OtherCall("close", ("fd 5",), 0),
    ]


def test_what_fails_creates_nothing() -> None:
    calls, heard = logged(
        pykvm_open=lambda _: -errno.ENOENT, pykvm_create_vm=lambda *_: -errno.EINVAL, pykvm_map=lambda *_: -errno.ENOMEM
    )
    calls.pykvm_open(b"/nosuch\xff")
    calls.pykvm_create_vm(9, 7)
    calls.pykvm_map(9, PAGE, PAGE, ffi.new("void **"))
    assert heard == [
        OtherCall("open", ("/nosuch�",), -errno.ENOENT),
        IoctlCall("fd 9", "KVM_CREATE_VM", 7, -errno.EINVAL),
        OtherCall("mmap", (PAGE, "fd 9", PAGE), -errno.ENOMEM),
    ]


def test_creating_a_vcpu_is_an_ioctl_and_a_mapping() -> None:
    page = ffi.new("char[]", PAGE)

    def create(vm: int, id: int, size: int, vcpu: CData) -> int:
        vcpu.fd, vcpu.run, vcpu.run_size = 8, ffi.cast("struct kvm_run *", page), size
        return 8

    calls, heard = logged(pykvm_create_vcpu=create)
    vcpu = ffi.new("struct pykvm_vcpu *")
    assert calls.pykvm_create_vcpu(4, 1, PAGE, vcpu) == 8
    calls.pykvm_close_vcpu(vcpu)
    start = int(ffi.cast("uintptr_t", page))
    assert heard == [
        IoctlCall("fd 4", "KVM_CREATE_VCPU", 1, 8, created="vcpu 1 of fd 4"),
        OtherCall("mmap", (PAGE, "vcpu 1 of fd 4", 0), start),
        OtherCall("munmap", (start, PAGE), 0),
        OtherCall("close", ("vcpu 1 of fd 4",), 0),
    ]


@pytest.mark.parametrize(
    ("fd", "told"),
    [
        (None, []),  # the kick's signal is taken: no system call was made of KVM's
        (-1, [IoctlCall("fd 4", "KVM_CREATE_VCPU", 1, -errno.EEXIST)]),
        (
            8,
            [
                IoctlCall("fd 4", "KVM_CREATE_VCPU", 1, 8, created="vcpu 1 of fd 4"),
                OtherCall("mmap", (PAGE, "vcpu 1 of fd 4", 0), -errno.EEXIST),
                OtherCall("close", ("vcpu 1 of fd 4",), 0),
            ],
        ),
    ],
)
def test_how_far_a_vcpu_that_could_not_be_created_got_is_told(fd: int | None, told: list[object]) -> None:
    def create(vm: int, id: int, size: int, vcpu: CData) -> int:
        if fd is not None:
            vcpu.fd = fd
        return -errno.EEXIST

    calls, heard = logged(pykvm_create_vcpu=create)
    assert calls.pykvm_create_vcpu(4, 1, PAGE, ffi.new("struct pykvm_vcpu *")) == -errno.EEXIST
    assert heard == told


def test_an_argument_is_told_as_it_was_before_and_after() -> None:
    def answer(fd: int, request: int, argument: CData) -> int:
        argument.valid, argument.physical_address = 1, 0x5000
        return 0

    calls, heard = logged(pykvm_ioctl_pointer=answer)
    c = ffi.new("struct kvm_translation *", {"linear_address": 0x1000})
    calls.pykvm_ioctl_pointer(5, lib.KVM_TRANSLATE, c)
    [call] = heard
    assert isinstance(call, IoctlCall)
    assert isinstance(call.before, Structure)
    assert isinstance(call.after, Structure)
    assert dict(call.before.fields)["physical_address"] == 0
    assert dict(call.after.fields)["physical_address"] == 0x5000


def test_what_the_kernel_did_not_write_is_not_told() -> None:
    calls, heard = logged(pykvm_ioctl_pointer=lambda *_: -errno.ENXIO)
    calls.pykvm_ioctl_pointer(5, lib.KVM_GET_PIT2, ffi.new("struct kvm_pit_state2 *"))
    assert heard == [IoctlCall("fd 5", "KVM_GET_PIT2", None, -errno.ENXIO)]


def test_a_batch_is_told_step_by_step_up_to_the_one_that_failed() -> None:
    results = iter((0, -errno.EINVAL))
    calls, heard = logged(pykvm_ioctl_pointer=lambda *_: next(results))
    regs = ffi.new("struct kvm_regs *", {"rip": 0x8000})
    steps = [Step(5, name, regs) for name in ("KVM_SET_REGS", "KVM_SET_SREGS", "KVM_SET_REGS")]
    steps[1] = Step(5, "KVM_SET_MP_STATE", ffi.new("struct kvm_mp_state *"))
    with pytest.raises(KvmError, match=r"KVM_SET_MP_STATE.*EINVAL"):
        Batch(steps, calls).issue()
    assert [(call.name, call.result) for call in heard] == [("KVM_SET_REGS", 0), ("KVM_SET_MP_STATE", -errno.EINVAL)]


def test_a_whole_batch_is_as_good_as_one_that_nobody_logs() -> None:
    calls, heard = logged()
    Batch([Step(5, "KVM_SET_REGS", ffi.new("struct kvm_regs *"))] * 3, calls).issue()
    assert len(heard) == 3


def test_a_memory_slot_is_told_by_its_fields() -> None:
    calls, heard = logged()
    memory = ffi.new("char[]", PAGE)
    calls.pykvm_set_user_memory_region(4, 1, lib.KVM_MEM_READONLY, 0x10_0000, PAGE, memory)
    [call] = heard
    assert isinstance(call, IoctlCall)
    assert isinstance(call.before, Structure)
    fields = dict(call.before.fields)
    assert fields["flags"] == Named(lib.KVM_MEM_READONLY, "KVM_MEM_READONLY")
    assert (fields["slot"], fields["guest_phys_addr"], fields["memory_size"]) == (1, 0x10_0000, PAGE)


# ---- KVM_RUN ----


class Page:
    """A vCPU whose page the test fills in."""

    def __init__(self) -> None:
        self._memory = ffi.new("char[]", 2 * PAGE)
        self.run = ffi.cast("struct kvm_run *", self._memory)
        self.vcpu = ffi.new("struct pykvm_vcpu *", {"fd": 6, "run": self.run, "run_size": 2 * PAGE})

    def io(self, direction: int, data: bytes) -> None:
        self.run.exit_reason = lib.KVM_EXIT_IO
        io = self.run.io
        io.direction, io.size, io.port, io.count, io.data_offset = direction, 1, 0x60, len(data), PAGE
        ffi.buffer(self._memory)[PAGE : PAGE + len(data)] = data


def test_a_run_is_told_with_its_exit_and_the_next_with_the_answer() -> None:
    page = Page()
    calls, heard = logged(pykvm_complete=lambda _: -errno.EINTR)
    page.io(1 - lib.KVM_EXIT_IO_OUT, b"\0")
    calls.pykvm_run(page.vcpu)
    page.io(1 - lib.KVM_EXIT_IO_OUT, b"\x1c")
    page.run.request_interrupt_window = 1
    calls.pykvm_complete(page.vcpu)
    page.run.request_interrupt_window = 0
    page.io(lib.KVM_EXIT_IO_OUT, b"x")
    calls.pykvm_run(page.vcpu)
    carried_in = Structure("kvm_run", (("io data", b"\x1c"), ("request_interrupt_window", 1), ("immediate_exit", 1)))
    assert heard == [
        IoctlCall("fd 6", "KVM_RUN", None, 0, exit=IoIn(0x60)),
        IoctlCall("fd 6", "KVM_RUN", carried_in, -errno.EINTR),
        IoctlCall("fd 6", "KVM_RUN", None, 0, exit=IoOut(0x60, data=b"x")),
    ]


def test_an_exit_that_makes_no_sense_is_told_without_it() -> None:
    page = Page()
    calls, heard = logged()
    page.io(lib.KVM_EXIT_IO_OUT, b"x")
    page.run.io.data_offset = 1 << 40
    assert calls.pykvm_run(page.vcpu) == 0
    assert heard == [IoctlCall("fd 6", "KVM_RUN", None, 0)]
