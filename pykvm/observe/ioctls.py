"""``CallText``: system calls as lines of text, as strace(1) writes them, but with KVM's own words for what is in them.

    ioctl(vm, KVM_CREATE_VCPU, 0) = 5 (vcpu 0)
    ioctl(vcpu 0, KVM_GET_MP_STATE, {mp_state=KVM_MP_STATE_RUNNABLE}) = 0
    ioctl(vcpu 0, KVM_RUN, 0) = 0  -> io out 0x3f8 'H'
    ioctl(vcpu 0, KVM_RUN, 0) = 0  <- io data 'x'  -> hlt

A descriptor goes by what it is instead of by its number, which stands where it was created. What the kernel only reads
is shown as it was before the call, what it only writes as it was after; what it reads and changes as ``before =>
after``. Of a structure with many fields those that are 0 are left out, and of a long array the rest is counted. Behind
KVM_RUN stands what ``struct kvm_run`` carried in (``<-``) and out (``->``). Leaves out how calls are heard of: see
``pykvm.kvm.logged``.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from pykvm.kvm import IoctlCall, OtherCall
from pykvm.kvm.decoding import Named, Structure, Value, is_zero
from pykvm.machine import describe_exit
from pykvm.units import format_size
from pykvm.x86 import msr_name

__all__ = ["CallText", "format_call", "format_value"]

SHOWN_ITEMS = 4  # of an array
SHOWN_BYTES = 16
MANY_FIELDS = 8  # of which those that are 0 are left out

# Fields and arguments that count something, in decimal. All others are addresses, registers and bits.
_COUNTS = frozenset(
    {"slot", "fd", "resamplefd", "nent", "nmsrs", "nr", "nr_xcrs", "gsi", "irq", "pin", "level", "len", "size"}
    | {"clock", "realtime", "KVM_CREATE_VCPU", "KVM_SET_BOOT_CPU_ID", "KVM_SET_TSC_KHZ", "KVM_CHECK_EXTENSION"}
)
_MSRS = ("index", "indices")  # in the structures of _MSR_STRUCTURES
_MSR_STRUCTURES = ("kvm_msr_entry", "kvm_msr_list")


class CallText:
    """Writes a line for each call by ``write``, which is called from any thread, but never twice at a time."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._lock = threading.Lock()

    def call(self, call: IoctlCall | OtherCall) -> None:
        """Write ``call`` down."""
        line = format_call(call)
        with self._lock:
            self._write(line)


def format_call(call: IoctlCall | OtherCall) -> str:
    """Return ``call`` as one line of text."""
    match call:
        case IoctlCall():
            return f"ioctl({call.descriptor}, {call.name}, {_argument(call)}) = {_result(call)}{_kvm_run(call)}"
        case OtherCall(name="open", arguments=(path,)):
            return f'open("{path}", O_RDWR|O_CLOEXEC) = {_result(call)}'
        case OtherCall(name="mmap", arguments=(int(size), label, int(offset))):
            where = f"NULL, {size:#x}, PROT_READ|PROT_WRITE, MAP_SHARED, {label}, {offset:#x}"
            return f"mmap({where}) = {_result(call) if call.result < 0 else f'{call.result:#x}'}"
    arguments = ", ".join(f"{item:#x}" if isinstance(item, int) else item for item in call.arguments)
    return f"{call.name}({arguments}) = {_result(call)}"


def format_value(value: Value, name: str = "", structure: str = "") -> str:
    """Return ``value`` as text; ``name`` is that of the field that it is in, of ``structure``."""
    match value:
        case Named():
            return value.name
        case Structure():
            return _structure(value)
        case bytes():
            return _bytes(value)
        case tuple():
            return _array(value, name, structure)
    return _number(value, name, structure)


# ---- inside ----


def _argument(call: IoctlCall) -> str:
    if call.name == "KVM_RUN":
        return "0"
    before, after = (None if value is None else format_value(value, call.name) for value in (call.before, call.after))
    if before is None:
        return after or "..."  # the kernel was to write it, and did not
    return before if after is None or after == before else f"{before} => {after}"


def _result(call: IoctlCall | OtherCall) -> str:
    if call.result < 0:
        return f"-1 {errno.errorcode.get(-call.result, str(-call.result))} ({os.strerror(-call.result)})"
    return f"{call.result} ({call.created})" if call.created else str(call.result)


def _kvm_run(call: IoctlCall) -> str:
    """Return what ``struct kvm_run`` carried, in and out."""
    text = ""
    if call.name == "KVM_RUN" and isinstance(call.before, Structure):
        text = "  <- " + ", ".join(_carried(name, value) for name, value in call.before.fields)
    return text if call.exit is None else f"{text}  -> {describe_exit(call.exit)}"


def _carried(name: str, value: Value) -> str:
    if isinstance(value, bytes) and len(value) <= 8:
        return f"{name} {int.from_bytes(value, 'little'):#x}"
    return f"{name} {format_value(value)}"


def _structure(value: Structure) -> str:
    fields = value.fields
    if len(fields) > MANY_FIELDS:
        fields = tuple((name, item) for name, item in fields if not is_zero(item))
    return "{" + ", ".join(f"{name}={format_value(item, name, value.name)}" for name, item in fields) + "}"


def _bytes(value: bytes) -> str:
    if len(value) <= SHOWN_BYTES:
        return f"[{value.hex(' ')}]"
    if not any(value):
        return f"[{len(value)} bytes of 0]"
    return f"[{value[:SHOWN_BYTES].hex(' ')} ... {len(value) - SHOWN_BYTES} more bytes]"


def _array(items: tuple[Value, ...], name: str, structure: str) -> str:
    if len(items) > SHOWN_ITEMS and all(map(is_zero, items)):
        return f"[{len(items)} times 0]"
    shown = ", ".join(format_value(item, name, structure) for item in items[:SHOWN_ITEMS])
    rest = f", ... {len(items) - SHOWN_ITEMS} more" if len(items) > SHOWN_ITEMS else ""
    return f"[{shown}{rest}]"


def _number(value: int, name: str, structure: str) -> str:
    if name in _COUNTS or -9 <= value <= 9:
        return str(value)
    text = f"{value:#x}"
    if name == "memory_size":
        return f"{text} ({format_size(value)})"
    if structure in _MSR_STRUCTURES and name in _MSRS and msr_name(value) != text:
        return f"{text} ({msr_name(value)})"
    return text
