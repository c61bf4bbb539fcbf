"""The CPU's exceptions: vectors 0 to 31, what each means, and what its error code says.

See: Intel SDM volume 3, chapter 6: table 6-1 (vectors), section 6.13 (error code), table 6-5 (double faults), section
6.15 (each exception), section 4.7 (the page fault's error code); vectors 28 to 30 are AMD's (AMD64 manual, volume 2,
section 8.2). Leaves out how an exception is delivered through the IDT.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from enum import KEEP, Flag

__all__ = [
    "EXCEPTIONS",
    "CpuException",
    "ExceptionClass",
    "PageFaultCode",
    "Severity",
    "describe_error_code",
    "leads_to_double_fault",
    "vector_name",
]

_PAGE_FAULT = 14
_SELECTOR_VECTORS = (10, 11, 12, 13)  # #TS #NP #SS #GP: the error code names a selector
_CONTROL_PROTECTION = 21


class ExceptionClass(enum.Enum):
    """Where the saved RIP points, and whether the program can go on (SDM volume 3, section 6.5)."""

    FAULT = "fault"  # at the instruction, which can be tried again
    TRAP = "trap"  # behind the instruction
    FAULT_OR_TRAP = "fault or trap"  # the debug exception: it depends on the cause
    ABORT = "abort"  # anywhere: the program is lost
    INTERRUPT = "interrupt"  # not caused by an instruction
    RESERVED = "reserved"


class Severity(enum.Enum):
    """What a second exception does while this one is being delivered (SDM volume 3, table 6-5)."""

    BENIGN = "benign"
    CONTRIBUTORY = "contributory"
    PAGE_FAULT = "page fault"
    DOUBLE_FAULT = "double fault"


@dataclass(frozen=True, slots=True)
class CpuException:
    """An exception: ``mnemonic`` as in the manuals, such as ``"#PF"``, empty where there is none."""

    vector: int
    mnemonic: str
    name: str
    kind: ExceptionClass
    has_error_code: bool = False
    severity: Severity = Severity.BENIGN

    def __str__(self) -> str:
        return f"{self.mnemonic} ({self.name})" if self.mnemonic else self.name


class PageFaultCode(Flag, boundary=KEEP):
    """The error code of a page fault; the address is in CR2.

    31     15 14    7  6   5   4    3   2   1   0
    +--+---+--+-----+--+---+---+---+----+---+---+-+
    | 0|SGX|   0    |SS| PK|I/D|RSVD| U/S|W/R| P |
    +--+---+--+-----+--+---+---+---+----+---+---+-+
    """

    P = 1 << 0  # the page is present, but forbidden; clear: not present
    W = 1 << 1  # a write; clear: a read
    U = 1 << 2  # by ring 3; clear: by ring 0, 1 or 2
    RSVD = 1 << 3  # a reserved bit is set in a page-table entry
    I = 1 << 4  # noqa: E741 - the manual's letter: an instruction fetch
    PK = 1 << 5  # a protection key forbids it
    SS = 1 << 6  # a shadow-stack access
    SGX = 1 << 15  # the enclave page cache map forbids it


def _exceptions() -> tuple[CpuException, ...]:
    fault, trap, abort = ExceptionClass.FAULT, ExceptionClass.TRAP, ExceptionClass.ABORT
    contributory = Severity.CONTRIBUTORY
    known = (
        CpuException(0, "#DE", "divide error", fault, severity=contributory),
        CpuException(1, "#DB", "debug", ExceptionClass.FAULT_OR_TRAP),
        CpuException(2, "", "non-maskable interrupt", ExceptionClass.INTERRUPT),
        CpuException(3, "#BP", "breakpoint", trap),
        CpuException(4, "#OF", "overflow", trap),
        CpuException(5, "#BR", "BOUND range exceeded", fault),
        CpuException(6, "#UD", "invalid opcode", fault),
        CpuException(7, "#NM", "device not available", fault),
        CpuException(8, "#DF", "double fault", abort, True, Severity.DOUBLE_FAULT),
        CpuException(9, "", "coprocessor segment overrun", fault),
        CpuException(10, "#TS", "invalid TSS", fault, True, contributory),
        CpuException(11, "#NP", "segment not present", fault, True, contributory),
        CpuException(12, "#SS", "stack-segment fault", fault, True, contributory),
        CpuException(13, "#GP", "general protection", fault, True, contributory),
        CpuException(14, "#PF", "page fault", fault, True, Severity.PAGE_FAULT),
        CpuException(16, "#MF", "x87 floating-point error", fault),
        CpuException(17, "#AC", "alignment check", fault, True),
        CpuException(18, "#MC", "machine check", abort),
        CpuException(19, "#XM", "SIMD floating-point exception", fault),
        CpuException(20, "#VE", "virtualization exception", fault, severity=Severity.PAGE_FAULT),
        CpuException(21, "#CP", "control protection", fault, True, contributory),
        CpuException(28, "#HV", "hypervisor injection", ExceptionClass.INTERRUPT),
        CpuException(29, "#VC", "VMM communication", fault, True, contributory),
        CpuException(30, "#SX", "security exception", fault, True, contributory),
    )
    by_vector = {exception.vector: exception for exception in known}
    reserved = (CpuException(vector, "", "reserved exception", ExceptionClass.RESERVED) for vector in range(32))
    return tuple(by_vector.get(exception.vector, exception) for exception in reserved)


EXCEPTIONS = _exceptions()  # by vector, 0 to 31


def vector_name(vector: int) -> str:
    """Return ``"#PF (page fault)"`` for an exception's vector, ``"interrupt 0x20"`` for any other."""
    return str(EXCEPTIONS[vector]) if vector in range(len(EXCEPTIONS)) else f"interrupt {vector:#x}"


def leads_to_double_fault(first: int, second: int) -> bool:
    """Return whether exception ``second``, met while delivering ``first``, becomes a double fault (vectors).

    If not, ``second`` is handled and ``first`` is tried again. After a double fault, a contributory exception or a
    page fault shuts the CPU down: the triple fault. For that case this returns False.
    """
    serious = (Severity.CONTRIBUTORY, Severity.PAGE_FAULT)
    match _severity(first):
        case Severity.CONTRIBUTORY:
            return _severity(second) is Severity.CONTRIBUTORY
        case Severity.PAGE_FAULT:
            return _severity(second) in serious
    return False


def describe_error_code(vector: int, code: int) -> str:
    """Return in words what the ``code`` pushed by exception ``vector`` says; empty if it has none."""
    if vector not in range(len(EXCEPTIONS)) or not EXCEPTIONS[vector].has_error_code:
        return ""
    if vector == _PAGE_FAULT:
        return _page_fault(code)
    if vector in _SELECTOR_VECTORS:
        return _selector(code)
    if vector == _CONTROL_PROTECTION:
        return _CONTROL_PROTECTION_CAUSES.get(code & 0x7FFF, f"cause {code:#x}")
    return f"{code:#x}"


# SDM volume 3, section 6.15, exception 21.
_CONTROL_PROTECTION_CAUSES = {
    1: "a near return to an address that the shadow stack does not have",
    2: "a far return to an address that the shadow stack does not have",
    3: "an indirect branch to an instruction that is no ENDBRANCH",
    4: "RSTORSSP found no restore token",
    5: "SETSSBSY found no supervisor token",
}


def _severity(vector: int) -> Severity:
    return EXCEPTIONS[vector].severity if vector in range(len(EXCEPTIONS)) else Severity.BENIGN


def _page_fault(code: int) -> str:
    def has(bit: PageFaultCode) -> bool:
        return bool(code & bit.value)

    who = "ring 3" if has(PageFaultCode.U) else "ring 0"
    access = "an instruction fetch" if has(PageFaultCode.I) else "a write" if has(PageFaultCode.W) else "a read"
    return f"{access} by {who}: {_page_fault_cause(code)}"


def _page_fault_cause(code: int) -> str:
    for bit, words in _PAGE_FAULT_CAUSES:
        if code & bit.value:
            return words
    return "the page forbids it" if code & PageFaultCode.P.value else "the page is not present"


_PAGE_FAULT_CAUSES = (
    (PageFaultCode.RSVD, "a reserved bit is set in a page-table entry"),
    (PageFaultCode.SGX, "the enclave page cache map forbids it"),
    (PageFaultCode.PK, "the page's protection key forbids it"),
    (PageFaultCode.SS, "the page forbids the shadow-stack access"),
)


def _selector(code: int) -> str:
    # 15          3  2   1   0
    # +------------+--+---+---+
    # |   index    |TI|IDT|EXT|
    # +------------+--+---+---+
    if code == 0:
        return "no selector is to blame"
    cause = " while delivering an event from outside the program" if code & 1 else ""
    index = (code & 0xFFFF) >> 3
    if code & 2:
        return f"IDT vector {index} ({vector_name(index)}){cause}"
    return f"{'LDT' if code & 4 else 'GDT'} selector {code & 0xFFF8:#x}{cause}"
