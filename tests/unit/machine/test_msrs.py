"""pykvm.machine.msrs: who answers for which MSR, and the filter that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError, MsrRefusedError
from pykvm.kvm import Cap, MsrFilterRange
from pykvm.machine.msrs import MOST_RANGES, SPAN, X2APIC, MsrHandlers

TSC = 0x10
PAT = 0x277
VENDORS = 0x1234  # which no architectural MSR is


class FakeVm:
    """Takes note of the filter, and lacks the capabilities it is told to lack."""

    def __init__(self, *lacks: Cap) -> None:
        self.lacks = lacks
        self.ranges: list[MsrFilterRange] = []
        self.filters = 0

    def check_extension(self, cap: Cap) -> int:
        return int(cap not in self.lacks)

    def enable_cap(self, cap: Cap, arguments: Sequence[int]) -> None:
        assert cap is Cap.X86_USER_SPACE_MSR

    def x86_set_msr_filter(self, ranges: Sequence[MsrFilterRange]) -> None:
        self.ranges = list(ranges)
        self.filters += 1

    def denies(self, index: int, *, write: bool) -> bool:
        """Return whether KVM would hand an access over: the first range that holds ``index`` decides."""
        for r in self.ranges:
            position = index - r.base
            if (r.write if write else r.read) and 0 <= position < r.nmsrs:
                return not r.bitmap[position // 8] >> position % 8 & 1
        return False


def made(*lacks: Cap) -> tuple[MsrHandlers, FakeVm]:
    vm = FakeVm(*lacks)
    return MsrHandlers(vm), vm  # type: ignore[arg-type]


def test_a_name_and_a_number_are_the_same_msr() -> None:
    handlers, vm = made()
    handlers.on_read("IA32_PAT", lambda: 1)
    handlers.on_read(PAT, lambda: 2)
    assert handlers.read(PAT) == 2
    assert len(vm.ranges) == 1


def test_reading_and_writing_are_asked_for_apart() -> None:
    handlers, vm = made()
    written: list[int] = []
    handlers.on_read(TSC, lambda: 7)
    handlers.on_write(PAT, written.append)
    assert (vm.denies(TSC, write=False), vm.denies(TSC, write=True)) == (True, False)
    assert (vm.denies(PAT, write=False), vm.denies(PAT, write=True)) == (False, True)
    handlers.write(PAT, 5)
    assert (handlers.read(TSC), written) == (7, [5])


@pytest.mark.parametrize("access", [lambda h: h.read(VENDORS), lambda h: h.write(VENDORS, 1)], ids=["read", "write"])
def test_an_msr_that_nobody_asked_for_is_refused(access: Callable[[MsrHandlers], object]) -> None:
    with pytest.raises(MsrRefusedError) as refused:
        access(made()[0])
    assert hex(VENDORS) in str(refused.value)


def test_a_stored_value_stays_until_another_is_written() -> None:
    handlers, _ = made()
    handlers.store(VENDORS, (1 << 64) - 1)
    assert handlers.read(VENDORS) == handlers.read(VENDORS) == (1 << 64) - 1
    handlers.write(VENDORS, 3)
    assert handlers.read(VENDORS) == 3


@pytest.mark.parametrize("value", [-1, 1 << 64, None, 1.5], ids=str)
def test_a_value_that_no_msr_can_hold_is_refused(value: int) -> None:
    handlers, vm = made()
    with pytest.raises(ConfigurationError, match=f"MSR IA32_TSC cannot hold {value}: .* 64 bits"):
        handlers.store("IA32_TSC", value)
    assert vm.filters == 0
    handlers.on_read(TSC, lambda: value)
    with pytest.raises(ConfigurationError, match=f"the handler of MSR IA32_TIME_STAMP_COUNTER returned {value}: "):
        handlers.read(TSC)


@pytest.mark.parametrize(
    ("msr", "why"),
    [
        (-1, "an MSR's number has 32 bits: -0x1 does not fit"),
        (1 << 32, "an MSR's number has 32 bits: 0x100000000 does not fit"),
        (X2APIC.start, "MSR 0x800 is the x2APIC's"),
        (X2APIC.stop - 1, "MSR 0x8ff is the x2APIC's"),
        ("IA32_X2APIC_EOI", "MSR 0x80b is the x2APIC's"),
        ("IA32_TCS", "IA32_TSC"),
        ("", "MSR"),
    ],
)
def test_an_msr_that_cannot_be_handed_over_is_refused(msr: int | str, why: str) -> None:
    handlers, vm = made()
    with pytest.raises(ConfigurationError, match=why):
        handlers.on_read(msr, lambda: 0)
    with pytest.raises(ConfigurationError, match=why):
        handlers.on_write(msr, print)
    assert vm.filters == 0


@pytest.mark.parametrize("cap", [Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER])
def test_a_host_without_msr_exits_is_told_of_by_name(cap: Cap) -> None:
    with pytest.raises(ConfigurationError, match=f"no MSR exits .*KVM_CAP_{cap.name}"):
        made(cap)[0].store(TSC, 1)


def test_what_kvms_filter_has_no_room_for_is_refused_and_changes_nothing() -> None:
    handlers, vm = made()
    for number in range(MOST_RANGES):
        handlers.on_read((number + 1) * SPAN, lambda: 0)
    before = list(vm.ranges)
    with pytest.raises(ConfigurationError, match=f"lie in {MOST_RANGES + 1} ranges .*room for {MOST_RANGES}"):
        handlers.on_write(TSC, print)
    assert vm.ranges == before
    with pytest.raises(MsrRefusedError):
        handlers.write(TSC, 1)
    handlers.on_read(SPAN + 1, lambda: 9)
    assert handlers.read(SPAN + 1) == 9


@given(
    st.lists(
        st.tuples(st.integers(0, 0x20).map(lambda n: n * 0x180), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_exactly_the_msrs_with_handlers_are_denied_to_kvm(wanted: list[tuple[int, int, bool]]) -> None:
    handlers, vm = made()
    asked = set()
    for base, low, write in wanted:
        if base + low in X2APIC:
            continue
        asked.add((base + low, write))
        if write:
            handlers.on_write(base + low, print)
        else:
            handlers.on_read(base + low, lambda: 0)
    near = {index + distance for index, _ in asked for distance in (-1, 0, 1)}
    assert {(index, write) for index in near for write in (False, True) if vm.denies(index, write=write)} == asked
    assert all(len(r.bitmap) == (r.nmsrs + 7) // 8 and 1 <= r.nmsrs <= SPAN for r in vm.ranges)
