from __future__ import annotations

import errno
import pickle

import pytest

from pykvm import errors
from pykvm.errors import GuestMemoryError, KvmError, KvmUnavailableError, PagingError, PykvmError, UnclaimedAccessError


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_in_the_one_tree(name: str) -> None:
    assert issubclass(getattr(errors, name), PykvmError)


def test_all_exception_classes_are_exported() -> None:
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, PykvmError)
    }
    assert defined == set(errors.__all__)


def test_a_kvm_error_names_the_ioctl_its_arguments_and_the_errno() -> None:
    error = KvmError("KVM_SET_USER_MEMORY_REGION", errno.EEXIST, "slot=1, gpa=0x1000", "overlaps slot 0")
    assert str(error) == "KVM_SET_USER_MEMORY_REGION(slot=1, gpa=0x1000): EEXIST: overlaps slot 0"
    assert (error.errno, error.ioctl, error.arguments) == (
        errno.EEXIST,
        "KVM_SET_USER_MEMORY_REGION",
        "slot=1, gpa=0x1000",
    )


def test_a_kvm_error_without_explanation_uses_the_systems_words() -> None:
    assert str(KvmError("KVM_RUN", errno.EINTR)) == "KVM_RUN(): EINTR: Interrupted system call"


def test_a_kvm_error_takes_an_errno_without_a_name() -> None:
    assert str(KvmError("KVM_RUN", 9999)).startswith("KVM_RUN(): 9999: ")


def test_a_kvm_error_can_be_caught_as_an_os_error() -> None:
    with pytest.raises(OSError, match="EBADF"):
        raise KvmError("KVM_RUN", errno.EBADF)


def test_unavailable_kvm_has_a_reason_and_a_remedy() -> None:
    error = KvmUnavailableError("/dev/kvm is missing", "load the module kvm_intel or kvm_amd")
    assert str(error) == "/dev/kvm is missing\nload the module kvm_intel or kvm_amd"
    assert str(KvmUnavailableError("/dev/kvm is missing")) == "/dev/kvm is missing"


def test_errors_carry_the_address_they_are_about() -> None:
    memory = GuestMemoryError("0x5000 is in no region", 0x5000, None)
    assert (memory.address, memory.region, str(memory)) == (0x5000, None, "0x5000 is in no region")
    assert PagingError("not mapped", 0x1000).address == 0x1000
    assert UnclaimedAccessError("port 0x10 is unclaimed", 0x10).address == 0x10


@pytest.mark.parametrize(
    "error",
    [
        KvmError("KVM_RUN", errno.EBADF, "vcpu=0", "no such descriptor"),
        KvmUnavailableError("/dev/kvm is missing", "load the module"),
        GuestMemoryError("0x5000 is in no region", 0x5000),
        PagingError("not mapped", 0x1000),
        UnclaimedAccessError("port 0x10 is unclaimed", 0x10),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way_to_another_process(error: PykvmError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
