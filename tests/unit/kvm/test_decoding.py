"""Ioctls by name: numbers against the compiler's structures, and structures against what was put into them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._shim import ffi, lib
from pykvm.kvm import structs
from pykvm.kvm.decoding import (
    STRUCTURES,
    Direction,
    Named,
    Structure,
    Value,
    decode_number,
    decode_pointer,
    direction_of,
    flag_names,
    ioctl_name,
    ioctl_names,
    is_zero,
    room_of,
)


def size_in(request: int) -> int:
    return request >> 16 & 0x3FFF


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_structure_of_an_ioctl_has_the_size_that_is_in_its_number(name: str) -> None:
    assert ffi.sizeof(STRUCTURES[name]) == size_in(getattr(lib, name))


def test_every_ioctl_that_takes_a_pointer_has_a_structure() -> None:
    takes_pointer = {name for request, name in ioctl_names().items() if size_in(request)}
    made_in_c = {"KVM_SET_USER_MEMORY_REGION"}
    assert takes_pointer == set(STRUCTURES) | made_in_c


def test_ioctls_go_by_the_names_of_the_kernels_header() -> None:
    assert ioctl_name(lib.KVM_RUN) == "KVM_RUN"
    assert ioctl_name(0x1234) == "0x1234"
    assert len(ioctl_names()) > 50
    assert all(getattr(lib, name) == request for request, name in ioctl_names().items())


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("KVM_GET_REGS", Direction.WRITTEN),
        ("KVM_SET_REGS", Direction.READ),
        ("KVM_GET_MSRS", Direction.READ | Direction.WRITTEN),
        ("KVM_RUN", Direction(0)),
        ("KVM_SET_IRQCHIP", Direction.READ),  # whose number says the opposite
    ],
)
def test_who_looks_at_the_argument_is_known(name: str, direction: Direction) -> None:
    assert direction_of(getattr(lib, name)) == direction


def test_a_capability_goes_by_its_name() -> None:
    assert decode_number("KVM_CHECK_EXTENSION", lib.KVM_CAP_IRQCHIP) == Named(lib.KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP")
    assert decode_number("KVM_CHECK_EXTENSION", 99999) == 99999
    assert decode_number("KVM_CREATE_VCPU", 3) == 3


@given(st.builds(structs.Regs, **dict.fromkeys(("rax", "rip", "rflags", "r15"), st.integers(0, (1 << 64) - 1))))
def test_every_register_is_there_by_name(regs: structs.Regs) -> None:
    c = ffi.new("struct kvm_regs *")
    structs.to_c(regs, c)
    decoded = decode_pointer("KVM_SET_REGS", c, 0)
    assert isinstance(decoded, Structure)
    assert dict(decoded.fields) == {name: getattr(regs, name) for name in structs.Regs.__dataclass_fields__}


@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=6))
def test_an_array_at_the_end_is_as_long_as_the_structure_says(indices: list[int]) -> None:
    entries = [{"index": index, "data": index + 1} for index in indices]
    c = ffi.new("struct kvm_msrs *", {"nmsrs": len(indices), "entries": entries})
    room = room_of("KVM_SET_MSRS", c)
    decoded = decode_pointer("KVM_SET_MSRS", ffi.cast("void *", c), room)
    msrs = tuple(Structure("kvm_msr_entry", (("index", index), ("data", index + 1))) for index in indices)
    assert decoded == Structure("kvm_msrs", (("nmsrs", len(indices)), ("entries", msrs)))


def test_no_more_of_an_array_is_read_than_there_was_room_for() -> None:
    c = ffi.new("struct kvm_msr_list *", {"nmsrs": 0, "indices": 0})
    room = room_of("KVM_GET_MSR_INDEX_LIST", c)
    c.nmsrs = 1_000_000_000  # as the kernel does, with E2BIG
    assert decode_pointer("KVM_GET_MSR_INDEX_LIST", c, room) == Structure(
        "kvm_msr_list", (("nmsrs", 1_000_000_000), ("indices", ()))
    )


def fields_of(value: Value) -> dict[str, Value]:
    assert isinstance(value, Structure)
    return dict(value.fields)


def test_flags_go_by_their_names() -> None:
    debug = ffi.new("struct kvm_guest_debug *", {"control": lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP})
    control = fields_of(decode_pointer("KVM_SET_GUEST_DEBUG", debug, 0))["control"]
    assert control == Named(debug.control, "KVM_GUESTDBG_ENABLE|KVM_GUESTDBG_SINGLESTEP")


@given(st.integers(0, (1 << 32) - 1))
def test_names_of_flags_and_the_rest_add_up(value: int) -> None:
    named = flag_names(value, "KVM_MEM_")
    parts = [getattr(lib, part) if part.startswith("KVM") else int(part, 16) for part in named.name.split("|")]
    assert sum(parts) == value == named.value


def test_a_route_shows_the_member_of_its_union_that_counts() -> None:
    entries = [
        {"gsi": 1, "type": lib.KVM_IRQ_ROUTING_IRQCHIP, "u": {"irqchip": {"irqchip": 2, "pin": 7}}},
        {"gsi": 2, "type": lib.KVM_IRQ_ROUTING_MSI, "u": {"msi": {"address_lo": 0xFEE0_0000, "data": 0x20}}},
    ]
    table = ffi.new("struct kvm_irq_routing *", {"nr": 2, "entries": entries})
    routes = fields_of(decode_pointer("KVM_SET_GSI_ROUTING", table, 2))["entries"]
    assert isinstance(routes, tuple)
    chip, message = (fields_of(route) for route in routes)
    assert fields_of(chip["u.irqchip"])["irqchip"] == Named(2, "KVM_IRQCHIP_IOAPIC")
    assert fields_of(message["u.msi"])["data"] == 0x20


def test_room_in_a_structure_that_is_not_used_is_left_out() -> None:
    c = ffi.new("struct kvm_xcrs *", {"nr_xcrs": 1, "xcrs": [{"xcr": 0, "value": 7}]})
    assert fields_of(decode_pointer("KVM_SET_XCRS", c, 0))["xcrs"] == (
        Structure("kvm_xcr", (("xcr", 0), ("value", 7))),
    )


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_can_be_decoded(name: str) -> None:
    kind = STRUCTURES[name]
    variable = kind in ("struct kvm_msrs", "struct kvm_msr_list", "struct kvm_cpuid2", "struct kvm_irq_routing")
    first = ffi.typeof(kind).fields[0][0] if variable else ""
    c = ffi.new(f"{kind} *", {first: 1, ffi.typeof(kind).fields[-1][0]: 1} if variable else None)
    value = decode_pointer(name, c, room_of(name, c))
    assert is_zero(value) is not variable
    assert "pad" not in repr(value)


def test_what_is_unknown_is_an_address() -> None:
    c = ffi.new("uint64_t *")
    assert decode_pointer("KVM_NOSUCH", c, room_of("KVM_NOSUCH", c)) == int(ffi.cast("uintptr_t", c))
