"""System calls as lines of text."""

from __future__ import annotations

import errno
import threading

import pytest

from pykvm.kvm import Hlt, IoctlCall, IoIn, OtherCall
from pykvm.kvm.decoding import Named, Structure, Value
from pykvm.observe import CallText, format_call
from pykvm.observe.ioctls import format_value


def entries(*indices: int) -> tuple[Value, ...]:
    return tuple(Structure("kvm_msr_entry", (("index", index), ("data", 0x10))) for index in indices)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (OtherCall("open", ("/dev/kvm",), 3, "kvm"), 'open("/dev/kvm", O_RDWR|O_CLOEXEC) = 3 (kvm)'),
        (
            OtherCall("open", ("/x",), -errno.ENOENT),
            'open("/x", O_RDWR|O_CLOEXEC) = -1 ENOENT (No such file or directory)',
        ),
        (OtherCall("close", ("vcpu 0",), 0), "close(vcpu 0) = 0"),
        (OtherCall("munmap", (0x7F00, 0x3000), 0), "munmap(0x7f00, 0x3000) = 0"),
        (
            OtherCall("mmap", (0x3000, "vcpu 0", 0x1000), 0x7F00_0000),
            "mmap(NULL, 0x3000, PROT_READ|PROT_WRITE, MAP_SHARED, vcpu 0, 0x1000) = 0x7f000000",
        ),
        (
            OtherCall("mmap", (0x3000, "vcpu 0", 0), -errno.ENOMEM),
            "mmap(NULL, 0x3000, PROT_READ|PROT_WRITE, MAP_SHARED, vcpu 0, 0x0) = -1 ENOMEM (Cannot allocate memory)",
        ),
        (IoctlCall("kvm", "KVM_CREATE_VM", 0, 4, created="vm"), "ioctl(kvm, KVM_CREATE_VM, 0) = 4 (vm)"),
        (IoctlCall("vm", "KVM_CREATE_VCPU", 12, 5, created="vcpu 12"), "ioctl(vm, KVM_CREATE_VCPU, 12) = 5 (vcpu 12)"),
        (IoctlCall("vm", "KVM_SET_TSS_ADDR", 0xFFFB_D000, 0), "ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) = 0"),
        (
            IoctlCall("kvm", "KVM_CHECK_EXTENSION", Named(0, "KVM_CAP_IRQCHIP"), 1),
            "ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP) = 1",
        ),
        (
            IoctlCall("vm", "KVM_GET_PIT2", None, -errno.ENXIO),
            "ioctl(vm, KVM_GET_PIT2, ...) = -1 ENXIO (No such device or address)",
        ),
        (IoctlCall("vcpu 0", "KVM_RUN", None, 0, exit=IoIn(0x60)), "ioctl(vcpu 0, KVM_RUN, 0) = 0  -> io in 0x60"),
        (
            IoctlCall("vcpu 0", "KVM_RUN", Structure("kvm_run", (("io data", b"\x1c"),)), 0, exit=Hlt()),
            "ioctl(vcpu 0, KVM_RUN, 0) = 0  <- io data 0x1c  -> hlt",
        ),
        (
            IoctlCall("vcpu 0", "KVM_RUN", Structure("kvm_run", (("immediate_exit", 1),)), -errno.EINTR),
            "ioctl(vcpu 0, KVM_RUN, 0) = -1 EINTR (Interrupted system call)  <- immediate_exit 1",
        ),
        (IoctlCall("vm", "KVM_NOSUCH", 0, -9999), "ioctl(vm, KVM_NOSUCH, 0) = -1 9999 (Unknown error 9999)"),
    ],
)
def test_a_call_is_a_line(call: IoctlCall | OtherCall, line: str) -> None:
    assert format_call(call) == line


def test_what_the_kernel_changed_is_shown_before_and_after() -> None:
    before, after = (Structure("kvm_msr_list", (("nmsrs", n),)) for n in (1, 2))
    line = format_call(IoctlCall("kvm", "KVM_GET_MSR_INDEX_LIST", before, 0, after))
    assert line == "ioctl(kvm, KVM_GET_MSR_INDEX_LIST, {nmsrs=1} => {nmsrs=2}) = 0"
    assert "=>" not in format_call(IoctlCall("kvm", "KVM_GET_MSR_INDEX_LIST", before, 0, before))
    assert format_call(IoctlCall("vcpu 0", "KVM_GET_REGS", None, 0, Structure("r", (("rip", 16),)))).endswith(
        "{rip=0x10}) = 0"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            Structure("s", (("slot", 12), ("flags", Named(1, "KVM_MEM_READONLY")), ("addr", 0x10))),
            "{slot=12, flags=KVM_MEM_READONLY, addr=0x10}",
        ),
        (Structure("s", (("memory_size", 16 << 20),)), "{memory_size=0x1000000 (16 MiB)}"),
        (Structure("s", (("fd", -1),)), "{fd=-1}"),
        (Structure("big", tuple((f"r{n}", int(n == 4)) for n in range(9))), "{r4=1}"),
        (Structure("small", tuple((f"r{n}", 0) for n in range(3))), "{r0=0, r1=0, r2=0}"),
        (b"\x01\x02", "[01 02]"),
        (bytes(1024), "[1024 bytes of 0]"),
        (b"\x01" + bytes(31), "[01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 ... 16 more bytes]"),
        ((1, 2), "[1, 2]"),
        ((0,) * 128, "[128 times 0]"),
        (tuple(range(10)), "[0, 1, 2, 3, ... 6 more]"),
        ((), "[]"),
        (entries(0x174), "[{index=0x174 (IA32_SYSENTER_CS), data=0x10}]"),
        (entries(0x99), "[{index=0x99, data=0x10}]"),
        (
            Structure("kvm_msr_list", (("nmsrs", 1), ("indices", (0x174,)))),
            "{nmsrs=1, indices=[0x174 (IA32_SYSENTER_CS)]}",
        ),
    ],
)
def test_a_value_is_text(value: Value, text: str) -> None:
    assert format_value(value) == text


def test_lines_of_several_threads_do_not_mix() -> None:
    inside, most = 0, 0

    def write(line: str) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        assert line == "close(vm) = 0"
        inside -= 1

    log, call = CallText(write), OtherCall("close", ("vm",), 0)

    def make_calls() -> None:
        for _ in range(200):
            log.call(call)

    threads = [threading.Thread(target=make_calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
