"""The MSR filter: which accesses come to user space, and which stay in the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm import Cap, Exit, MsrExitReason, MsrFilterRange, Rdmsr, Wrmsr
from pykvm.kvm.exits import ReadExit

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

SYSENTER_CS = 0x174  # an MSR that every x86-64 host has and that may hold anything
SYSENTER_ESP = 0x175
FILTER = MsrExitReason.FILTER.value
RDMSR = bytes.fromhex("0f 32")
WRMSR = bytes.fromhex("0f 30")
HLT = b"\xf4"


@pytest.fixture(autouse=True)
def denied_accesses_exit(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, [FILTER])


def access(guest: RealModeGuest, instruction: bytes, index: int, value: int = 0) -> list[Exit]:
    def answer(exit: ReadExit) -> bytes:
        return (0xABCD).to_bytes(8, "little")

    guest.load(instruction, HLT, rcx=index, rax=value)
    return guest.run(answer)


def read(guest: RealModeGuest, index: int) -> list[tuple[int, int]]:
    return [(exit.index, exit.msr_reason) for exit in access(guest, RDMSR, index) if isinstance(exit, Rdmsr)]


def written(guest: RealModeGuest, index: int, value: int) -> list[tuple[int, int]]:
    return [(exit.index, exit.data) for exit in access(guest, WRMSR, index, value) if isinstance(exit, Wrmsr)]


def test_a_denied_read_comes_to_user_space_and_takes_its_answer(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.x86_set_msr_filter([MsrFilterRange(SYSENTER_CS, b"\x00", 1)])
    assert read(bare_guest, SYSENTER_CS) == [(SYSENTER_CS, FILTER)]
    assert bare_guest.regs.rax == 0xABCD


def test_a_denied_write_comes_to_user_space(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.x86_set_msr_filter([MsrFilterRange(SYSENTER_CS, b"\x00", 1)])
    assert written(bare_guest, SYSENTER_CS, 0x1234) == [(SYSENTER_CS, 0x1234)]


def test_a_set_bit_leaves_the_access_in_the_kernel(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.x86_set_msr_filter([MsrFilterRange(SYSENTER_CS, b"\x01", 2)])
    assert read(bare_guest, SYSENTER_CS) == []
    assert read(bare_guest, SYSENTER_ESP) == [(SYSENTER_ESP, FILTER)]


def test_reads_and_writes_are_filtered_apart(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.x86_set_msr_filter([MsrFilterRange(SYSENTER_CS, b"\x00", 1, read=False)])
    assert read(bare_guest, SYSENTER_CS) == []
    assert len(written(bare_guest, SYSENTER_CS, 1)) == 1
    bare_guest.vm.x86_set_msr_filter([MsrFilterRange(SYSENTER_CS, b"\x00", 1, write=False)])
    assert len(read(bare_guest, SYSENTER_CS)) == 1
    assert written(bare_guest, SYSENTER_CS, 1) == []


def test_the_default_is_about_msrs_in_no_range(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.x86_set_msr_filter([MsrFilterRange(SYSENTER_CS, b"\x01", 1)], default_deny=True)
    assert read(bare_guest, SYSENTER_CS) == []
    assert len(read(bare_guest, SYSENTER_ESP)) == 1
    bare_guest.vm.x86_set_msr_filter([])
    assert read(bare_guest, SYSENTER_ESP) == [], "no range and no default_deny: no filter"


def test_a_range_may_end_inside_a_long(bare_guest: RealModeGuest) -> None:
    allowed = bytearray(b"\xff" * 9)
    allowed[8] = 0xFE
    bare_guest.vm.x86_set_msr_filter([MsrFilterRange(SYSENTER_CS - 64, bytes(allowed), 65)])
    assert len(read(bare_guest, SYSENTER_CS)) == 1


def test_too_many_ranges_are_refused(bare_guest: RealModeGuest) -> None:
    one = MsrFilterRange(SYSENTER_CS, b"\x00", 1)
    bare_guest.vm.x86_set_msr_filter([one] * 16)
    with pytest.raises(ConfigurationError, match="at most 16 ranges, not 17: merge some"):
        bare_guest.vm.x86_set_msr_filter([one] * 17)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (MsrFilterRange(0x174, b"", 0), "the MSR range from 0x174 has 1 to 12288 MSRs, not 0"),
        (MsrFilterRange(0x174, bytes(2000), 16000), "has 1 to 12288 MSRs, not 16000"),
        (MsrFilterRange(0x174, b"\0\0", 8), "has 8 MSRs: its bitmap has 1 bytes, not 2"),
        (MsrFilterRange(0x174, b"\0", 9), "has 9 MSRs: its bitmap has 2 bytes, not 1"),
        (MsrFilterRange(0x174, b"\0", 1, read=False, write=False), "about neither reads nor writes"),
        (MsrFilterRange(-1, b"\0", 1), "fit"),
        (MsrFilterRange(1 << 32, b"\0", 1), "fit"),
    ],
)
def test_a_range_that_cannot_be_is_refused(bare_guest: RealModeGuest, wanted: MsrFilterRange, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        bare_guest.vm.x86_set_msr_filter([wanted])


def test_denying_everything_is_explained(bare_guest: RealModeGuest) -> None:
    with pytest.raises(
        KvmError, match=r"KVM_X86_SET_MSR_FILTER\(0 ranges, default_deny=True\): EINVAL: .*give a range"
    ):
        bare_guest.vm.x86_set_msr_filter([], default_deny=True)
