"""What every KVM descriptor does when it is closed, forgotten, or no KVM descriptor at all. Needs no /dev/kvm."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pykvm._shim import ffi
from pykvm.errors import ClosedError, ConfigurationError, KvmError, PykvmError
from pykvm.kvm.descriptor import Descriptor, check_error, fill_state


@pytest.fixture
def fd() -> Iterator[int]:
    """A descriptor that belongs to nobody else and knows no ioctl of KVM."""
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    yield fd
    try:
        os.close(fd)
    except OSError as error:
        assert error.errno == errno.EBADF


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_descriptor_is_closed_at_the_end_of_its_with_block(fd: int) -> None:
    with Descriptor(fd, "it") as descriptor:
        assert not descriptor.closed
        assert descriptor.fileno() == fd
    assert descriptor.closed
    assert not is_open(fd)


def test_closing_twice_closes_nobody_elses_descriptor(fd: int) -> None:
    descriptor = Descriptor(fd, "it")
    descriptor.close()
    reused = os.open("/dev/null", os.O_RDONLY)
    assert reused == fd, "the kernel gives the lowest free number"
    descriptor.close()
    assert is_open(reused)


def test_a_closed_descriptor_has_no_number_and_no_with_block(fd: int) -> None:
    descriptor = Descriptor(fd, "the thing")
    descriptor.close()
    with pytest.raises(ClosedError, match="the thing is closed"):
        descriptor.fileno()
    with pytest.raises(ClosedError), descriptor:
        pass


def test_repr_says_what_it_is_and_whether_it_is_open(fd: int) -> None:
    descriptor = Descriptor(fd, "the thing")
    assert repr(descriptor) == f"<the thing, fd {fd}>"
    descriptor.close()
    assert repr(descriptor) == "<the thing, closed>"


def test_a_forgotten_descriptor_warns_and_is_closed(fd: int) -> None:
    descriptor = Descriptor(fd, "the thing")
    with pytest.warns(ResourceWarning, match="the thing was never closed"):
        del descriptor
        gc.collect()
    assert not is_open(fd)


FORGOTTEN = """
import gc, os
from pykvm.kvm.descriptor import Descriptor

fd = os.open("/dev/null", os.O_RDONLY)
descriptor = Descriptor(fd, "the thing")
del descriptor
gc.collect()
try:
    os.fstat(fd)
except OSError:
    print("closed")
"""


def test_a_forgotten_descriptor_is_closed_even_where_warnings_are_errors() -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", FORGOTTEN], capture_output=True, text=True, check=True)
    assert ran.stdout == "closed\n"
    assert "the thing was never closed" in ran.stderr


def test_an_error_of_the_kernel_names_the_ioctl_the_arguments_and_the_errno() -> None:
    with pytest.raises(KvmError) as caught:
        check_error(-errno.EEXIST, "KVM_CREATE_VCPU", "id=3", "there is one already")
    assert str(caught.value) == "KVM_CREATE_VCPU(id=3): EEXIST: there is one already"
    assert (caught.value.ioctl, caught.value.errno, caught.value.arguments) == ("KVM_CREATE_VCPU", errno.EEXIST, "id=3")
    assert isinstance(caught.value, PykvmError) and isinstance(caught.value, OSError)


def test_an_error_without_explanation_has_the_systems_own_words() -> None:
    with pytest.raises(KvmError, match=r"KVM_NMI\(\): EINVAL: Invalid argument"):
        check_error(-errno.EINVAL, "KVM_NMI")


def test_a_result_that_is_no_error_is_returned() -> None:
    assert check_error(12, "KVM_GET_API_VERSION") == 12


def test_enable_cap_takes_four_arguments_at_most(fd: int) -> None:
    with Descriptor(fd, "it") as descriptor, pytest.raises(ConfigurationError, match="at most 4 arguments, not 5"):
        descriptor.enable_cap(1, [0] * 5)


@pytest.mark.parametrize(("cap", "argument"), [(-1, 0), (1 << 32, 0), (1, -1), (1, 1 << 64)])
def test_a_value_that_the_kernels_structure_cannot_hold_is_refused(fd: int, cap: int, argument: int) -> None:
    with Descriptor(fd, "it") as descriptor, pytest.raises(ConfigurationError, match=r"KVM_ENABLE_CAP: .*fit"):
        descriptor.enable_cap(cap, [argument])


def test_an_explanation_may_depend_on_the_errno() -> None:
    known = {errno.EEXIST: "there is one already"}
    with pytest.raises(KvmError, match=r"KVM_X\(a=1\): EEXIST: there is one already"):
        check_error(-errno.EEXIST, "KVM_X", "a=1", known)
    with pytest.raises(KvmError, match=r"KVM_X\(a=1\): EBADF: Bad file descriptor"):
        check_error(-errno.EBADF, "KVM_X", "a=1", known)


def test_a_state_of_the_wrong_length_is_refused() -> None:
    c = ffi.new("struct kvm_mp_state *")
    fill_state(c, b"\1\0\0\0", "it")
    assert c.mp_state == 1
    with pytest.raises(ConfigurationError, match="it has 4 bytes, not 5"):
        fill_state(c, bytes(5), "it")
