"""KVM's own counters: they describe themselves, they grow, and their descriptors are closed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ClosedError, KvmError
from pykvm.kvm import Cap, Kvm, StatKind, StatsFd, StatUnit, Vm

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

OUT = bytes.fromhex("e6 80")  # out %al, $0x80
HLT = b"\xf4"


@pytest.fixture(autouse=True)
def host_has_statistics(kvm: Kvm) -> None:
    if not kvm.check_extension(Cap.BINARY_STATS_FD):
        pytest.skip("this host's KVM has no statistics by descriptor")


@pytest.fixture
def stats_fd(bare_guest: RealModeGuest) -> Iterator[StatsFd]:
    with bare_guest.vcpu.get_stats_fd() as stats:
        yield stats


def test_every_statistic_has_a_name_and_values(bare_guest: RealModeGuest) -> None:
    for stats in (bare_guest.vm.stats(), bare_guest.vcpu.stats()):
        assert len(stats) > 5
        for name, statistic in stats.items():
            assert name and name == statistic.name
            assert str(statistic).startswith(f"{name}: ")
            assert statistic.values
            if statistic.kind not in (StatKind.LINEAR_HIST, StatKind.LOG_HIST):
                assert statistic.value == statistic.values[0]


def test_exits_are_counted(bare_guest: RealModeGuest) -> None:
    before = bare_guest.vcpu.stats()
    bare_guest.load(OUT * 10, HLT)
    assert len(bare_guest.run()) == 10
    after = bare_guest.vcpu.stats()
    assert after["exits"].value >= before["exits"].value
    assert any(after[name].value > before[name].value for name in ("exits", "io_exits", "insn_emulation"))
    assert after["exits"].kind is StatKind.CUMULATIVE
    assert after["exits"].unit is StatUnit.NONE


def test_units_are_told(bare_guest: RealModeGuest) -> None:
    stats = bare_guest.vcpu.stats()
    waited = stats["halt_wait_ns"]
    assert (waited.unit, waited.base, waited.exponent) == (StatUnit.SECONDS, 10, -9)
    assert str(waited).endswith(" ns")
    histogram = stats["halt_wait_hist"]
    assert histogram.kind is StatKind.LOG_HIST
    assert len(histogram.values) > 1


def test_a_descriptor_that_is_kept_tells_of_each_moment(bare_guest: RealModeGuest, stats_fd: StatsFd) -> None:
    before = stats_fd.read()
    bare_guest.load(OUT * 10, HLT)
    bare_guest.run()
    after = stats_fd.read()
    assert before.keys() == after.keys()
    assert before != after


def test_statistics_leave_no_descriptor_behind(bare_guest: RealModeGuest) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(10):
        bare_guest.vm.stats()
        bare_guest.vcpu.stats()
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_closed_descriptor_says_whose_it_was(vm: Vm, stats_fd: StatsFd) -> None:
    stats_fd.close()
    stats_fd.close()
    with pytest.raises(ClosedError, match="the statistics of vCPU 0 is closed"):
        stats_fd.read()
    with vm.get_stats_fd() as of_vm:
        assert "the statistics of the VM" in repr(of_vm)


def test_a_descriptor_outlives_its_vcpu(bare_guest: RealModeGuest, stats_fd: StatsFd) -> None:
    bare_guest.vcpu.close()
    assert "exits" in stats_fd.read()


def test_what_is_no_statistics_file_is_explained() -> None:
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    why = r"pread\(the statistics of nobody, .*\): EIO: the kernel gave 0 bytes only"
    with StatsFd(null, "nobody") as empty, pytest.raises(KvmError, match=why):
        empty.read()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.close(writer)
    with StatsFd(reader, "nobody") as pipe, pytest.raises(KvmError) as caught:
        pipe.read()
    assert caught.value.errno == errno.ESPIPE
