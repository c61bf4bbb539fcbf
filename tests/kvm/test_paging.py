"""Paging on KVM: KVM_TRANSLATE walks as pykvm.x86.walk does, and every mode's state is taken and runs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm import Machine, Mode
from pykvm.probes import probe
from pykvm.testing import Guests
from pykvm.units import GiB, Gva, KiB, MiB
from pykvm.x86 import FrameAllocator, PageTables, Paging, PagingMode, walk

EXIT_WITH_7 = b"\xb0\x07\xe6\xf4\xf4"  # mov $7, %al; out %al, $0xf4; hlt
STATES = [
    (Mode.PAGED, 4 * KiB, "paging32-host"),
    (Mode.PAGED, 4 * MiB, "paging32-host"),
    (Mode.PAE, 4 * KiB, "pae"),
    (Mode.PAE, 2 * MiB, "pae"),
    (Mode.LONG, 4 * KiB, "long-mode-4k"),
    (Mode.LONG, 2 * MiB, "long-mode"),
    (Mode.LONG, GiB, "long-mode-1g"),
]
PAGING_MODES = {Mode.PAGED: PagingMode.BITS32, Mode.PAE: PagingMode.PAE, Mode.LONG: PagingMode.LONG4}


def skip_without(need: str) -> None:
    outcome = probe(need)
    if not outcome.works:
        pytest.skip(f"probe {need}: {outcome.detail}")


@pytest.mark.parametrize(("mode", "page_size", "needs"), STATES)
def test_kvm_takes_the_state_and_walks_as_we_do(guest: Guests, mode: Mode, page_size: int, needs: str) -> None:
    if page_size == GiB:
        skip_without(needs)
    machine = guest.machine("4M")
    machine.load(EXIT_WITH_7, mode=mode, page_size=page_size)
    paging = Paging.of(machine.vcpu.get_sregs())
    for address in (0, 0x1234, 0x100000, 4 * MiB - 1, 4 * MiB, 0xD0000000, 0xFFFFFFFF):
        ours = walk(machine.memory, paging, address)
        theirs = machine.vcpu.translate(Gva(address))
        assert bool(theirs.valid) == (ours.gpa is not None)
        if ours.gpa is not None:
            assert theirs.physical_address == ours.gpa


@pytest.mark.parametrize(("mode", "page_size", "needs"), STATES)
def test_code_runs_in_every_paged_mode(guest: Guests, mode: Mode, page_size: int, needs: str) -> None:
    skip_without(needs)
    machine = guest.machine("4M")
    machine.load(EXIT_WITH_7, mode=mode, page_size=page_size)
    assert machine.run(5).exit_code == 15


@pytest.mark.parametrize("mode", PAGING_MODES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_kvm_translates_random_tables_as_we_do(mode: Mode, data: st.DataObject) -> None:
    paging_mode = PAGING_MODES[mode]
    space = 1 << (47 if mode is Mode.LONG else 32)
    big = 4 * MiB if mode is Mode.PAGED else 2 * MiB
    page = st.integers(0, space // big - 1).map(lambda number: number * big)
    pages = data.draw(st.lists(page, min_size=1, max_size=6, unique=True))
    with Machine("4M") as machine:
        machine.load(EXIT_WITH_7, mode=mode)
        tables = PageTables(machine.memory, paging_mode, FrameAllocator(0x200000, 0x300000))
        for gva in pages:
            size = data.draw(st.sampled_from([4 * KiB, big]))
            gpa = data.draw(st.integers(0, (1 << 32) // size - 1)) * size
            tables.map(gva, gpa, size, size, writable=data.draw(st.booleans()), user=data.draw(st.booleans()))
        sregs = machine.vcpu.get_sregs()
        sregs.cr3 = tables.cr3
        machine.vcpu.set_sregs(sregs)
        paging = Paging.of(sregs)
        probes = [*pages, *(gva + data.draw(st.integers(0, 2 * big)) for gva in pages)]
        for address in (value for value in probes if value < space):
            ours = walk(machine.memory, paging, address)
            theirs = machine.vcpu.translate(Gva(address))
            assert bool(theirs.valid) == (ours.gpa is not None)
            if ours.gpa is not None:
                assert theirs.physical_address == ours.gpa
