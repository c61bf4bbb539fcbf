"""Instructions that write control registers and MSRs: values that the CPU refuses.

See: Intel SDM volume 2, MOV to control registers, WRMSR; volume 3, sections 2.5 (reserved bits), 4.1 (paging), 4.4.1
(PDPTEs), 9.8.5 (long mode). Leaves out which MSRs there are: that is the processor's and KVM's affair.
"""

from __future__ import annotations

from pykvm.x86.faults.moment import GP, Fault, Moment
from pykvm.x86.msr import msr_name
from pykvm.x86.registers import Cr0, Cr4, Efer

__all__ = ["control_write_fault", "msr_fault"]

EFER_MSR = 0xC000_0080
PDPTE_RESERVED = 0xFFF0_0000_0000_01E6  # bits 63:52, 8:5 and 2:1 (SDM volume 3, table 4-8), for any MAXPHYADDR
CR3_RESERVED = 0xFFF0_0000_0000_0000


def control_write_fault(moment: Moment, name: str, value: int) -> Fault | None:
    """Return why ``value`` cannot be written to the control register ``name`` ("cr0", "cr3", "cr4")."""
    match name:
        case "cr0":
            reason = _cr0_reason(moment, value) or _pdpte_reason(moment, value)
        case "cr3":
            is_wrong = moment.is_long and value & CR3_RESERVED & ~(1 << 63) and not moment.sregs.cr4 & 1 << 28
            reason = f"bits {value & CR3_RESERVED:#x} of CR3 are reserved" if is_wrong else ""
        case "cr4":
            return _cr4_fault(moment, value)
        case _:
            reason = ""
    return Fault(GP, 0, reason) if reason else None


def _cr0_reason(moment: Moment, value: int) -> str:
    sregs = moment.sregs
    new = Cr0(value)
    is_new = Cr0.PG in new and not sregs.cr0 & Cr0.PG.value
    if value >> 32:
        return f"bits {value >> 32 << 32:#x} of CR0 are reserved"
    if Cr0.PG in new and Cr0.PE not in new:
        return "CR0.PG = 1 with CR0.PE = 0: paging exists in protected mode only"
    if Cr0.NW in new and Cr0.CD not in new:
        return "CR0.NW = 1 with CR0.CD = 0, a combination that does not exist"
    if is_new and sregs.efer & Efer.LME.value:
        if not sregs.cr4 & Cr4.PAE.value:
            return "CR0.PG = 1 with EFER.LME = 1 and CR4.PAE = 0: long mode wants PAE"
        if sregs.cs.l:
            return "CR0.PG = 1 with EFER.LME = 1 while CS has L = 1: long mode cannot begin in such a segment"
    if Cr0.PG not in new and moment.width == 64:
        return "CR0.PG = 0 in 64-bit code: paging can be switched off in compatibility mode only"
    return ""


def _pdpte_reason(moment: Moment, value: int) -> str:
    """Return why PAE paging cannot begin: the CPU reads all four entries of its top table at once."""
    sregs = moment.sregs
    is_new = value & Cr0.PG.value and not sregs.cr0 & Cr0.PG.value
    if not is_new or not sregs.cr4 & Cr4.PAE.value or sregs.efer & Efer.LME.value:
        return ""
    table = sregs.cr3 & 0xFFFF_FFE0
    for index in range(4):
        data = moment.read(table + index * 8, 8)
        entry = int.from_bytes(data, "little") if data else 0
        if entry & 1 and entry & PDPTE_RESERVED:
            return (
                f"with EFER.LME = 0 this begins PAE paging, not long mode, and CR3 points to a PDPT: entry {index}, "
                f"{entry:#x}, has reserved bits set ({entry & PDPTE_RESERVED:#x})"
            )
    return ""


def _cr4_fault(moment: Moment, value: int) -> Fault | None:
    named = sum(member.value for member in Cr4.__members__.values())
    if value & ~named:
        return Fault(GP, 0, f"bits {value & ~named:#x} of CR4 are reserved")
    if moment.is_long and not value & Cr4.PAE.value:
        return Fault(GP, 0, "CR4.PAE = 0 in long mode, which wants it")
    if moment.is_long and (value ^ moment.sregs.cr4) & Cr4.LA57.value:
        return Fault(GP, 0, "CR4.LA57 cannot change in long mode")
    if value & Cr4.PCIDE.value and not moment.is_long:
        return Fault(GP, 0, "CR4.PCIDE = 1 outside long mode")
    added = value & ~moment.sregs.cr4
    if added:
        names = " ".join(name for name, member in Cr4.__members__.items() if added & member.value)
        return Fault(GP, 0, f"CPUID may not offer what CR4's {names} stand for", is_certain=False)
    return None


def msr_fault(moment: Moment, index: int, value: int | None) -> Fault | None:
    """Return why RDMSR (``value`` None) or WRMSR may be refused; all but EFER's rules are a guess."""
    name = msr_name(index)
    if value is None:
        return Fault(GP, 0, f"MSR {name} may not exist here", is_certain=False)
    if index == EFER_MSR:
        changed = value ^ moment.sregs.efer
        if changed & Efer.LME.value and moment.sregs.cr0 & Cr0.PG.value:
            return Fault(GP, 0, "EFER.LME cannot change while CR0.PG = 1: switch paging off first")
    return Fault(GP, 0, f"MSR {name} may not exist here, or not take {value:#x}", is_certain=False)
