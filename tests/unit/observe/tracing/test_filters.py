"""Which exits a trace is about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm import Exit, Hlt, IoIn, IoOut, MmioRead, MmioWrite, Rdmsr, Wrmsr
from pykvm.observe import TraceFilter
from pykvm.observe.tracing import Coalesced, InterruptTaken
from pykvm.observe.tracing.line import Event
from pykvm.testing.strategies import exits
from pykvm.units import Gpa

EVENTS: dict[str, Event] = {
    "out": IoOut(0x3F8),
    "in": IoIn(0x3FD),
    "post": IoOut(0x80),
    "write": MmioWrite(Gpa(0xD0000000), b"\1"),
    "read": MmioRead(Gpa(0xFED000F0), 4),
    "hlt": Hlt(),
    "rdmsr": Rdmsr(0x10, 0),
    "wrmsr": Wrmsr(0x10, 0, 0),
    "interrupt": InterruptTaken(0x20),
    "coalesced": Coalesced(IoOut(0x3F8)),
}


def wanted(only: TraceFilter, cpu: int = 0) -> set[str]:
    predicate = only.predicate()
    assert predicate is not None
    return {name for name, event in EVENTS.items() if predicate(cpu, event)}


def test_a_filter_without_wishes_is_none_at_all() -> None:
    assert TraceFilter().predicate() is None


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        (["io"], {"out", "in", "post"}),
        (["out"], {"out", "post"}),
        (["in", "hlt"], {"in", "hlt"}),
        (["mmio"], {"write", "read"}),
        (["msr"], {"rdmsr", "wrmsr"}),
        (["x86_rdmsr"], {"rdmsr"}),
        (["interrupt", "coalesced"], {"interrupt", "coalesced"}),
    ],
)
def test_kinds(kinds: list[str], names: set[str]) -> None:
    assert wanted(TraceFilter(kinds)) == names


def test_ports_alone_are_only_accesses_to_them() -> None:
    assert wanted(TraceFilter(ports=[range(0x3F8, 0x400)])) == {"out", "in", "coalesced"}
    assert wanted(TraceFilter(ports=[range(0x80, 0x81), range(0x3FD, 0x3FE)])) == {"post", "in"}


def test_addresses_alone_are_only_accesses_to_them() -> None:
    assert wanted(TraceFilter(addresses=[range(0xFED000F2, 0xFED000F3)])) == {"read"}  # the access reaches into it


def test_ports_and_addresses_are_both() -> None:
    assert wanted(TraceFilter(ports=[range(0x80, 0x81)], addresses=[range(0xD0000000, 0xD0000008)])) == {
        "post",
        "write",
    }


def test_a_range_restricts_only_its_kind_if_kinds_are_named() -> None:
    assert wanted(TraceFilter(["io", "hlt"], ports=[range(0x80, 0x81)])) == {"post", "hlt"}


def test_cpus() -> None:
    assert wanted(TraceFilter(["hlt"], cpus=[1]), cpu=1) == {"hlt"}
    assert wanted(TraceFilter(["hlt"], cpus=[1]), cpu=0) == set()


def test_an_unknown_kind_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no kind of exit called 'mmoi': did you mean mmio"):
        TraceFilter(["mmoi"]).predicate()
    with pytest.raises(ConfigurationError, match="such as io, in, out"):
        TraceFilter(["qqq"]).predicate()


@given(exits(), st.integers(0, 3))
def test_all_ports_addresses_and_kinds_are_everything(exit: Exit, cpu: int) -> None:
    kinds = ["io", "mmio", exit.reason.name.lower()]
    everything = TraceFilter(kinds, [range(1 << 16)], [range(1 << 65)], range(4)).predicate()
    assert everything is not None
    assert everything(cpu, exit)
