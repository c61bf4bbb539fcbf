"""Whether memory may be accessed: by the segment, by the page tables; and the exception if not.

See: Intel SDM volume 3, section 5.3 and 5.5 (limits, types), 3.3.7.1 in volume 1 (canonical addresses), 4.6 (access
rights), 4.7 (error code). Leaves out protection keys, shadow stacks and CR4.LASS.
"""

from __future__ import annotations

from pykvm.kvm.structs import Segment
from pykvm.units import PAGE_SIZE, Gpa
from pykvm.x86.faults.moment import GP, PF, SS, Fault, Moment
from pykvm.x86.operands import Access, MemoryAccess
from pykvm.x86.paging import PagingMode, Pte
from pykvm.x86.registers import Cr0, Cr4, Rflags
from pykvm.x86.walk import Walk, walk

__all__ = ["access_fault", "is_canonical", "page_fault", "read_linear", "segment_fault", "translate"]


def access_fault(moment: Moment, access: MemoryAccess) -> Fault | None:
    """Return the exception that the instruction's ``access`` raises: its segment's, or else its page's."""
    fault = segment_fault(moment, access.segment, access.offset, access.size, access.access, is_stack=access.is_stack)
    return fault or page_fault(moment, access.address, access.size, access.access, is_user=moment.cpl == 3)


def segment_fault(
    moment: Moment, name: str, offset: int, size: int, access: Access, *, is_stack: bool = False
) -> Fault | None:
    """Return the exception for ``size`` bytes at ``offset`` in the segment register ``name``; None if it allows it."""
    segment: Segment = getattr(moment.sregs, name)
    vector = SS if name == "ss" else GP
    if moment.width == 64:
        linear = offset + (segment.base if name in ("fs", "gs") else 0)
        if is_canonical(moment, linear & (1 << 64) - 1):
            return None
        what = f"{'the stack pointer' if is_stack else 'the address'} {linear & (1 << 64) - 1:#x} is not canonical"
        return Fault(vector, 0, f"{what}: bits 63 to {moment.paging.mode.address_bits - 1} must be equal")
    reason = _segment_reason(moment, segment, offset, size, access)
    return Fault(vector, 0, f"{name.upper()} {reason}") if reason else None


def _segment_reason(moment: Moment, segment: Segment, offset: int, size: int, access: Access) -> str:
    if segment.unusable and not moment.is_real:
        return "holds no segment (a null selector)"
    is_data = not segment.type & 8
    if not moment.is_real and not moment.is_virtual_8086:
        if access & Access.WRITE and not (is_data and segment.type & 2):
            return "is not writable"
        if access & Access.READ and not is_data and not segment.type & 2:
            return "is code that may only be executed"
    last = offset + size - 1
    if is_data and segment.type & 4:  # expand-down: the limit is the highest offset that is not part of it
        top = 0xFFFF_FFFF if segment.db else 0xFFFF
        return "" if segment.limit < offset and last <= top else f"begins above {segment.limit:#x} (it expands down)"
    return "" if last <= segment.limit else f"ends at {segment.limit:#x}, before offset {last:#x}"


def page_fault(moment: Moment, address: int, size: int, access: Access, *, is_user: bool) -> Fault | None:
    """Return the page fault that ``size`` bytes at linear ``address`` raise; None if the tables allow it."""
    for place in dict.fromkeys((address, _last(moment, address, size))):
        fault = _page_fault_at(moment, place, access, is_user)
        if fault is not None:
            return fault
    return None


def _last(moment: Moment, address: int, size: int) -> int:
    """Return the first byte of the last page that is touched, or ``address`` if it is in that page."""
    end = address + max(size, 1) - 1
    return address if end // PAGE_SIZE == address // PAGE_SIZE else end // PAGE_SIZE * PAGE_SIZE & moment.linear_mask


def _page_fault_at(moment: Moment, address: int, access: Access, is_user: bool) -> Fault | None:
    paging = moment.paging
    if paging.mode is PagingMode.NONE or not paging.mode.is_canonical(address):
        return None
    found = walk(moment.memory, paging, address)
    code = _code(moment, access, is_user)
    if found.gpa is None:
        is_reserved = bool(found.levels and found.levels[-1].entry & Pte.P.value and "reserved" in found.reason)
        return Fault(PF, code | (0b1001 if is_reserved else 0), _sentence(address, found.reason), address)
    reason = _forbidden(moment, found, access, is_user)
    return Fault(PF, code | 1, _sentence(address, reason), address) if reason else None


def _sentence(address: int, reason: str) -> str:
    return f"{address:#x} cannot be reached: {reason}"


def _code(moment: Moment, access: Access, is_user: bool) -> int:
    has_fetch = (moment.paging.nxe and moment.paging.mode is not PagingMode.BITS32) or _has(moment, Cr4.SMEP)
    return (
        (2 if access & Access.WRITE else 0)
        | (4 if is_user else 0)
        | (16 if access & Access.EXECUTE and has_fetch else 0)
    )


def _forbidden(moment: Moment, found: Walk, access: Access, is_user: bool) -> str:
    """Return why a page that is there may not be used this way, or an empty string."""
    if is_user and not found.user:
        return f"{_lacking(found, Pte.U)} has U = 0, so ring 3 may not use it"
    if access & Access.WRITE and not found.writable and (is_user or moment.sregs.cr0 & Cr0.WP.value):
        obeys = "" if is_user else ", which CR0.WP = 1 makes ring 0 obey"
        return f"{_lacking(found, Pte.W)} has W = 0, so the page is read-only{obeys}"
    if access & Access.EXECUTE:
        if not found.executable:
            return f"{_holding(found, Pte.NX)} has NX = 1, and EFER.NXE makes that count"
        if not is_user and found.user and _has(moment, Cr4.SMEP):
            return "it is a page of ring 3 (U = 1), and with CR4.SMEP ring 0 may not execute it"
    elif not is_user and found.user and _has(moment, Cr4.SMAP) and not moment.regs.rflags & Rflags.AC.value:
        return "it is a page of ring 3 (U = 1), and with CR4.SMAP ring 0 may not touch it while RFLAGS.AC is 0"
    return ""


def _lacking(found: Walk, bit: Pte) -> str:
    return next((f"{one.name}[{one.index}]" for one in found.levels if not one.entry & bit.value), "an entry")


def _holding(found: Walk, bit: Pte) -> str:
    return next((f"{one.name}[{one.index}]" for one in found.levels if one.entry & bit.value), "an entry")


def _has(moment: Moment, bit: Cr4) -> bool:
    return bool(moment.sregs.cr4 & bit.value)


def is_canonical(moment: Moment, address: int) -> bool:
    """Return whether 64-bit code can have ``address``."""
    mode = moment.paging.mode
    return mode.is_canonical(address) if mode in (PagingMode.LONG4, PagingMode.LONG5) else True


def read_linear(moment: Moment, address: int, size: int, what: str) -> bytes | Fault | None:
    """Return ``size`` bytes that the CPU itself reads, as ring 0, at linear ``address``; ``what`` they are.

    A Fault if the page tables do not allow it, None if there is no memory.
    """
    address &= moment.linear_mask
    if moment.is_long and not is_canonical(moment, address):
        return Fault(GP, 0, f"{what} would be at {address:#x}, which is not canonical")
    fault = page_fault(moment, address, size, Access.READ, is_user=False)
    if fault is not None:
        return Fault(fault.vector, fault.error_code, f"{what} cannot be read: {fault.reason}", fault.address)
    data = b""
    while len(data) < size:
        here = address + len(data) & moment.linear_mask
        gpa = translate(moment, here)
        part = None if gpa is None else moment.read(gpa, min(size - len(data), PAGE_SIZE - here % PAGE_SIZE))
        if part is None:
            return None
        data += part
    return data


def translate(moment: Moment, address: int) -> Gpa | None:
    """Return the guest-physical address of linear ``address``, None if it is not mapped."""
    return walk(moment.memory, moment.paging, address).gpa
