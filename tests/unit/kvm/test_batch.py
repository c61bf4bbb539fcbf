"""Ioctls in a batch, without KVM: those of descriptors that any Linux has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from pykvm._shim import ffi
from pykvm.errors import KvmError
from pykvm.kvm.batch import Batch, Step


@pytest.fixture
def nothing() -> Iterator[int]:
    """Return a descriptor that takes no ioctl of KVM's."""
    read, write = os.pipe()
    yield read
    os.close(read)
    os.close(write)


def test_no_ioctls_all_go_well() -> None:
    Batch([]).issue()


def test_the_first_that_fails_is_named_and_the_rest_are_not_issued(nothing: int) -> None:
    tells: list[int] = []
    argument = ffi.new("struct kvm_regs *")
    batch = Batch(
        [
            Step(nothing, "KVM_GET_REGS", argument, wanted=-errno.ENOTTY),
            Step(nothing, "KVM_SET_REGS", argument),
            Step(nothing, "KVM_SET_REGS", argument, explain=tells.append),
        ]
    )
    with pytest.raises(KvmError, match="KVM_SET_REGS") as caught:
        batch.issue()
    assert caught.value.errno == errno.ENOTTY
    assert tells == []


def test_who_knows_more_about_a_failure_is_asked_first(nothing: int) -> None:
    def explain(result: int) -> None:
        raise LookupError(result)

    with pytest.raises(LookupError, match=f"-{errno.ENOTTY}"):
        Batch([Step(nothing, "KVM_SET_REGS", ffi.new("struct kvm_regs *"), explain=explain)]).issue()


def test_a_bad_descriptor_is_an_error_as_any_other() -> None:
    with pytest.raises(KvmError) as caught:
        Batch([Step(-1, "KVM_GET_REGS", ffi.new("struct kvm_regs *"))]).issue()
    assert caught.value.errno == errno.EBADF
