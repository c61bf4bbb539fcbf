"""From an ioctl's number and argument to names: which ioctl, which structure, which fields, which flags.

An ioctl's number says a good deal about itself (<asm-generic/ioctl.h>); 0xae is KVM's type:

     31 30 29            16 15       8 7        0
    +-----+----------------+----------+----------+      direction   1: the kernel reads the argument
    | dir |     size       |   0xae   |  number  |                  2: it writes it
    +-----+----------------+----------+----------+                  3: both; 0: the argument is a number, or nothing

Which structure it is the number does not say, and neither do the values say which flags they are: there is a table of
each. All names come from <linux/kvm.h>, through the compiled shim. Leaves out how all that is written: see
``pykvm.observe.ioctls``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pykvm._shim import ffi, lib

if TYPE_CHECKING:
    from pykvm._shim import FFI, CData

__all__ = [
    "STRUCTURES",
    "Direction",
    "Named",
    "Structure",
    "Value",
    "decode_number",
    "decode_pointer",
    "direction_of",
    "flag_names",
    "ioctl_name",
    "ioctl_names",
    "is_zero",
    "room_of",
]


@dataclass(frozen=True, slots=True)
class Named:
    """A number, and what <linux/kvm.h> calls it, or the flags in it: ``KVM_MEM_READONLY|0x8``."""

    value: int
    name: str


@dataclass(frozen=True, slots=True)
class Structure:
    """A C structure: its fields by name, in order, without padding."""

    name: str
    fields: tuple[tuple[str, Value], ...]


Value = int | bytes | Named | Structure | tuple["Value", ...]


class Direction(enum.Flag):
    """Who looks at an ioctl's argument."""

    READ = 1  # the kernel reads it
    WRITTEN = 2  # the kernel writes it


# What the pointer of an ioctl points to. An ioctl that is not here takes a number.
STRUCTURES = {
    "KVM_CREATE_PIT2": "struct kvm_pit_config",
    "KVM_ENABLE_CAP": "struct kvm_enable_cap",
    "KVM_GET_CLOCK": "struct kvm_clock_data",
    "KVM_GET_CPUID2": "struct kvm_cpuid2",
    "KVM_GET_DEBUGREGS": "struct kvm_debugregs",
    "KVM_GET_DIRTY_LOG": "struct kvm_dirty_log",
    "KVM_GET_FPU": "struct kvm_fpu",
    "KVM_GET_IRQCHIP": "struct kvm_irqchip",
    "KVM_GET_LAPIC": "struct kvm_lapic_state",
    "KVM_GET_MP_STATE": "struct kvm_mp_state",
    "KVM_GET_MSRS": "struct kvm_msrs",
    "KVM_GET_MSR_INDEX_LIST": "struct kvm_msr_list",
    "KVM_GET_PIT2": "struct kvm_pit_state2",
    "KVM_GET_REGS": "struct kvm_regs",
    "KVM_GET_SREGS": "struct kvm_sregs",
    "KVM_GET_SUPPORTED_CPUID": "struct kvm_cpuid2",
    "KVM_GET_VCPU_EVENTS": "struct kvm_vcpu_events",
    "KVM_GET_XCRS": "struct kvm_xcrs",
    "KVM_GET_XSAVE": "struct kvm_xsave",
    "KVM_INTERRUPT": "struct kvm_interrupt",
    "KVM_IOEVENTFD": "struct kvm_ioeventfd",
    "KVM_IRQFD": "struct kvm_irqfd",
    "KVM_IRQ_LINE": "struct kvm_irq_level",
    "KVM_REGISTER_COALESCED_MMIO": "struct kvm_coalesced_mmio_zone",
    "KVM_SET_CLOCK": "struct kvm_clock_data",
    "KVM_SET_CPUID2": "struct kvm_cpuid2",
    "KVM_SET_DEBUGREGS": "struct kvm_debugregs",
    "KVM_SET_FPU": "struct kvm_fpu",
    "KVM_SET_GSI_ROUTING": "struct kvm_irq_routing",
    "KVM_SET_GUEST_DEBUG": "struct kvm_guest_debug",
    "KVM_SET_IDENTITY_MAP_ADDR": "uint64_t",
    "KVM_SET_IRQCHIP": "struct kvm_irqchip",
    "KVM_SET_LAPIC": "struct kvm_lapic_state",
    "KVM_SET_MP_STATE": "struct kvm_mp_state",
    "KVM_SET_MSRS": "struct kvm_msrs",
    "KVM_SET_PIT2": "struct kvm_pit_state2",
    "KVM_SET_REGS": "struct kvm_regs",
    "KVM_SET_SREGS": "struct kvm_sregs",
    "KVM_SET_VCPU_EVENTS": "struct kvm_vcpu_events",
    "KVM_SET_XCRS": "struct kvm_xcrs",
    "KVM_SET_XSAVE": "struct kvm_xsave",
    "KVM_SIGNAL_MSI": "struct kvm_msi",
    "KVM_TRANSLATE": "struct kvm_translation",
    "KVM_UNREGISTER_COALESCED_MMIO": "struct kvm_coalesced_mmio_zone",
    "KVM_X86_SET_MSR_FILTER": "struct kvm_msr_filter",
}

# How the names of a field's values begin: of the one that it is, and of the flags that are in it.
_ONE_OF = {
    ("struct kvm_enable_cap", "cap"): ("KVM_CAP_",),
    ("struct kvm_irq_routing_entry", "type"): ("KVM_IRQ_ROUTING_",),
    ("struct kvm_irq_routing_irqchip", "irqchip"): ("KVM_IRQCHIP_",),
    ("struct kvm_irqchip", "chip_id"): ("KVM_IRQCHIP_",),
    ("struct kvm_mp_state", "mp_state"): ("KVM_MP_STATE_",),
    ("struct kvm_msr_filter", "flags"): ("KVM_MSR_FILTER_DEFAULT_",),
}
_FLAGS_OF = {
    ("struct kvm_clock_data", "flags"): ("KVM_CLOCK_",),
    ("struct kvm_cpuid_entry2", "flags"): ("KVM_CPUID_FLAG_",),
    ("struct kvm_guest_debug", "control"): ("KVM_GUESTDBG_",),
    ("struct kvm_ioeventfd", "flags"): ("KVM_IOEVENTFD_FLAG_",),
    ("struct kvm_irqfd", "flags"): ("KVM_IRQFD_FLAG_",),
    ("struct kvm_msr_filter_range", "flags"): ("KVM_MSR_FILTER_READ", "KVM_MSR_FILTER_WRITE"),
    ("struct kvm_pit_config", "flags"): ("KVM_PIT_",),
}
_NUMBER_IS = {"KVM_CHECK_EXTENSION": ("KVM_CAP_",)}

_PADDING = ("pad", "padding", "reserved")


# ---- which ioctl ----


def ioctl_name(request: int) -> str:
    """Return the name of the ioctl ``request``, or its number in hexadecimal if <linux/kvm.h> gives it none here."""
    return ioctl_names().get(request, f"{request:#x}")


@cache
def ioctl_names() -> dict[int, str]:
    """Return the names of KVM's ioctls by number, as far as pykvm issues them."""
    return {
        value: name
        for name, value in _constants().items()
        if _type_of(value) == _type_of(lib.KVM_GET_API_VERSION) and name.startswith("KVM_")
    }


def direction_of(request: int) -> Direction:
    """Return who looks at the argument of the ioctl ``request``."""
    direction = Direction(request >> 30 & 3)
    # The header has KVM_SET_IRQCHIP the wrong way round, and cannot mend it: the direction is part of the number.
    return Direction.READ if ioctl_name(request).startswith("KVM_SET_") else direction


def _type_of(request: int) -> int:
    return request >> 8 & 0xFF


# ---- which values ----


def decode_number(name: str, argument: int) -> Value:
    """Return the argument of the ioctl ``name``, which takes a number."""
    return _one_of(argument, _NUMBER_IS[name]) if name in _NUMBER_IS else argument


def decode_pointer(name: str, pointer: CData, room: int) -> Value:
    """Return what ``pointer`` points to, the argument of the ioctl ``name``.

    ``room`` is how many items there are in an array at the end, as ``room_of`` told before the call.
    """
    kind = STRUCTURES.get(name)
    if kind is None:
        return int(ffi.cast("uintptr_t", pointer))
    # SAFETY: whoever issues the ioctl gives the kernel the same pointer, and keeps what is there.
    c = ffi.cast(f"{kind} *", pointer)
    if not kind.startswith("struct"):
        return int(c[0])
    # Afterwards there may be less than there is room for, or more than that: then the kernel wrote none of it.
    return _structure(ffi.typeof(kind), c[0], min(room, room_of(name, c)))


def room_of(name: str, pointer: CData) -> int:
    """Return the number of items in the array at the end of what ``pointer`` points to; 0 if there is none.

    To be asked before the call: afterwards the same field may say how many there should have been.
    """
    kind = STRUCTURES.get(name, "")
    if not kind.startswith("struct"):
        return 0
    fields = ffi.typeof(kind).fields
    last = fields[-1][1].type
    if last.kind != "array" or last.length is not None:
        return 0
    return int(getattr(ffi.cast(f"{kind} *", pointer), fields[0][0]))


def flag_names(value: int, *prefixes: str) -> Named:
    """Return ``value`` as the flags of <linux/kvm.h> whose names begin with one of ``prefixes``."""
    names, rest = [], value
    for flag, name in sorted(_names(prefixes).items()):
        if flag and value & flag == flag:
            names.append(name)
            rest &= ~flag
    if rest or not names:
        names.append(f"{rest:#x}" if rest else "0")
    return Named(value, "|".join(names))


def is_zero(value: Value) -> bool:
    """Return whether there is nothing but zeros in ``value``."""
    match value:
        case Structure(fields=fields):
            return all(is_zero(item) for _, item in fields)
        case tuple():
            return all(map(is_zero, value))
        case bytes():
            return not any(value)
        case Named(value=number):
            return number == 0
    return value == 0


def _one_of(value: int, prefixes: tuple[str, ...]) -> Value:
    name = _names(prefixes).get(value)
    return value if name is None else Named(value, name)


@cache
def _names(prefixes: tuple[str, ...]) -> dict[int, str]:
    return {value: name for name, value in _constants().items() if name.startswith(prefixes)}


@cache
def _constants() -> dict[str, int]:
    values = ((name, getattr(lib, name)) for name in dir(lib) if name.startswith("KVM_"))
    return {name: value for name, value in values if isinstance(value, int)}


# ---- which fields ----


def _structure(ctype: FFI.CType, c: CData, room: int) -> Structure:
    return Structure(ctype.cname.removeprefix("struct "), tuple(_fields(ctype, c, room)))


def _fields(ctype: FFI.CType, c: CData, room: int) -> Iterator[tuple[str, Value]]:
    for name, field in ctype.fields:
        key = ctype.cname, name
        value = getattr(c, name)
        if name in _PADDING:
            continue
        if key in _FLAGS_OF:
            yield name, flag_names(int(value), *_FLAGS_OF[key])
        elif key in _ONE_OF:
            yield name, _one_of(int(value), _ONE_OF[key])
        elif field.type.kind == "union":
            member, item = _member(c, field.type, value)
            yield f"{name}.{member}", item
        else:
            yield name, _value(field.type, value, room)


def _member(c: CData, union: FFI.CType, value: CData) -> tuple[str, Value]:
    """Return the member of ``c``'s union that counts: the first, unless ``c`` is a route that sends a message."""
    position = 1 if union.fields[0][0] == "irqchip" and c.type == lib.KVM_IRQ_ROUTING_MSI else 0
    name, field = union.fields[position]
    return name, _value(field.type, getattr(value, name), 0)


def _value(ctype: FFI.CType, value: CData, room: int) -> Value:
    match ctype.kind:
        case "primitive":
            return int(value)
        case "pointer":
            return int(ffi.cast("uintptr_t", value))
        case "array":
            return _array(ctype, value, room if ctype.length is None else ctype.length)
    return _structure(ctype, value, room)


def _array(ctype: FFI.CType, value: CData, length: int) -> Value:
    if ctype.item.kind == "primitive" and ffi.sizeof(ctype.item) == 1:
        return bytes(ffi.buffer(value))
    items = [_value(ctype.item, value[position], 0) for position in range(length)]
    if ctype.length is not None:
        while items and isinstance(items[-1], Structure) and is_zero(items[-1]):  # room that is not used
            del items[-1]
    return tuple(items)
