from __future__ import annotations

from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast, get_type_hints

import pytest

from pykvm.kvm import structs
from pykvm.kvm.structs import CpuidEntry, Fpu, MsrEntry, Regs, Segment, Sregs, VcpuEvents, from_c, to_c

if TYPE_CHECKING:
    from pykvm._shim import CData

STRUCTS = [
    value for name in structs.__all__ if isinstance(value := getattr(structs, name), type) and is_dataclass(value)
]
LENGTHS = {"interrupt_bitmap": 4, "db": 4, "fpr": 8, "xmm": 16}  # the arrays of <asm/kvm.h>


def fake_c(kind: type, start: int = 0) -> CData:
    """Return an object with the members of the C structure that ``kind`` mirrors, as cffi shows it, and then some."""
    members: dict[str, object] = {"padding": 0, "reserved": [0, 0]}
    for number, (name, hint) in enumerate(get_type_hints(kind).items(), start + 1):
        if is_dataclass(hint):
            members[name] = fake_c(hint, start + 10 * number)  # type: ignore[arg-type]
        elif hint == tuple[int, ...]:
            members[name] = [number + position for position in range(LENGTHS[name])]
        elif hint == tuple[bytes, ...]:
            members[name] = [[number + position] * 16 for position in range(LENGTHS[name])]
        else:
            members[name] = number
    return cast("CData", SimpleNamespace(**members))


def blank_c(kind: type) -> CData:
    c = fake_c(kind)
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            setattr(c, name, blank_c(hint))  # type: ignore[arg-type]
        elif isinstance(getattr(c, name), list):
            setattr(c, name, [None] * LENGTHS[name])
        else:
            setattr(c, name, None)
    return c


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_a_structure_survives_the_way_to_python_and_back(kind: type) -> None:
    original, copy = fake_c(kind), blank_c(kind)
    to_c(from_c(kind, original), copy)
    assert copy == original


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_a_structure_has_all_its_fields_as_python_values(kind: type) -> None:
    value: object = from_c(kind, fake_c(kind))
    for item in fields(kind):
        assert isinstance(getattr(value, item.name), int | tuple) or is_dataclass(getattr(value, item.name))


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_a_misspelt_field_is_an_error(kind: type) -> None:
    with pytest.raises((AttributeError, TypeError)):
        setattr(from_c(kind, fake_c(kind)), "no_such_field", 1)  # noqa: B010 - a plain assignment fails in mypy already


def test_nested_structures_are_copied_not_shared() -> None:
    c = fake_c(Sregs)
    sregs = from_c(Sregs, c)
    c.cs.base = 0xDEAD
    assert sregs.cs.base != 0xDEAD


def test_arrays_of_bytes_become_bytes() -> None:
    fpu = from_c(Fpu, fake_c(Fpu))
    assert len(fpu.fpr) == 8 and len(fpu.xmm) == 16
    assert {len(register) for register in fpu.fpr + fpu.xmm} == {16}


def test_fields_that_are_not_ours_stay_as_they_are() -> None:
    c = fake_c(Segment)
    c.padding = 7
    to_c(Segment(base=5), c)
    assert (c.base, c.padding) == (5, 7)


def test_defaults_are_a_cleared_structure_but_for_rflags() -> None:
    assert Regs().rflags == 0x2
    assert all(getattr(Regs(), item.name) == 0 for item in fields(Regs) if item.name != "rflags")
    assert VcpuEvents().exception.injected == 0


def test_two_values_do_not_share_their_segments() -> None:
    first, second = Sregs(), Sregs()
    first.cs.base = 1
    assert second.cs.base == 0


@pytest.mark.parametrize("entry", [MsrEntry(0xC000_0080, 0x500), CpuidEntry(1, eax=2)])
def test_table_entries_are_values_that_hash(entry: object) -> None:
    assert len({entry, entry}) == 1
