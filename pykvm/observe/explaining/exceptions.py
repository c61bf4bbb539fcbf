"""The CPU's exceptions: why each comes, and what its error code says.

See: Intel SDM volume 3, section 6.15 ("Exception and Interrupt Reference"), section 6.13 ("Error Code"), section 4.7
("Page-Fault Exceptions"). Leaves out how exceptions are delivered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pykvm.errors import ConfigurationError
from pykvm.observe.explaining.explanation import Bits, Explanation
from pykvm.observe.explaining.lookup import find_name, looks_like_number, one, one_or_two, parse_number
from pykvm.observe.explaining.registers import named_bits
from pykvm.x86.exceptions import (
    EXCEPTIONS,
    CpuException,
    ExceptionClass,
    PageFaultCode,
    describe_error_code,
    vector_name,
)

__all__ = ["CAUSES", "explain_error_code", "explain_exception", "names"]

PAGE_FAULT = 14
SELECTOR_VECTORS = (10, 11, 12, 13)
SDM = "Intel SDM volume 3, "

# By vector: what causes it, and what to look at.
CAUSES: dict[int, tuple[str, str]] = {
    0: (
        "DIV or IDIV by zero, or with a quotient that does not fit; AAM 0.",
        "Clear or sign-extend the upper half first: xor %edx, %edx before DIV, CDQ or CQO before IDIV.",
    ),
    1: (
        "A breakpoint or watchpoint of the debug registers, a single step (RFLAGS.TF), a debug register touched while "
        "DR7.GD is set, INT1.",
        "Read DR6 for the cause, and clear it: pykvm explain dr6 0x1.",
    ),
    2: ("The NMI pin or message: KVM_NMI, Machine.nmi().", "Another one waits until IRET."),
    3: ("INT3, the one-byte breakpoint 0xcc.", "RIP is behind it; a debugger's breakpoint is at RIP - 1."),
    4: ("INTO while RFLAGS.OF is set.", "There is no INTO in 64-bit code: there it is #UD."),
    5: ("BOUND with an index outside its bounds.", "There is no BOUND in 64-bit code: there it is #UD."),
    6: (
        "An instruction that does not exist, or not in this mode or on this CPU; SSE without CR4.OSFXSR, AVX without "
        "CR4.OSXSAVE; LOCK where it is not allowed; UD2; or RIP went astray into data.",
        "Disassemble the bytes at RIP for the CPU's mode; see what CPUID offers.",
    ),
    7: (
        "An x87 instruction while CR0.EM or CR0.TS is set; SSE while CR0.TS is set; WAIT while MP and TS are.",
        "Clear EM and TS (CLTS), set MP; a kernel with lazy FPU switching restores the state here.",
    ),
    8: (
        "A second exception while one was being delivered, of kinds that cannot be handled in turn. A third one shuts "
        "the CPU down: KVM_EXIT_SHUTDOWN.",
        "Look for the first exception: is its gate present, does its handler's selector exist, is the stack mapped? "
        "Give #DF a stack of its own (IST) in long mode. Its error code is always 0.",
    ),
    9: ("Only on a 386 with a 387.", "Treat it as one that cannot happen."),
    10: (
        "A task switch, or an entry into an inner ring, found a TSS that is too small or has wrong selectors.",
        "Look at TR, the TSS's limit (at least 0x67) and the stack selectors in it.",
    ),
    11: (
        "A segment register was loaded with a descriptor, or an event went through a gate, whose P bit is clear.",
        "The error code is the selector: look at its descriptor ('pykvm explain descriptor').",
    ),
    12: (
        "The stack: a limit was exceeded, or an address through SS, RSP or RBP is not canonical; SS was loaded with a "
        "segment that is not present.",
        "Look at RSP and SS.",
    ),
    13: (
        "The general one: a privileged instruction in ring 3; a selector beyond its table's limit or of the wrong "
        "kind; an IDT entry beyond the limit or of no gate's type; a reserved bit in CR0, CR4, EFER or another MSR, an "
        "MSR that does not exist; an address that is not canonical; a misaligned SSE operand; past a segment's limit.",
        "With an error code other than 0, that says which selector or vector: 'pykvm explain error-code gp 0x...'. "
        "With 0, look at the instruction at RIP and its operands.",
    ),
    14: (
        "A page is not present, or its rights forbid the access, or a page-table entry has a reserved bit set. CR2 "
        "holds the linear address.",
        "Decode the error code ('pykvm explain error-code pf 0x2'), and walk the page tables for CR2 (pykvm.x86.walk).",
    ),
    16: ("An unmasked x87 error, reported by the next x87 instruction, with CR0.NE.", "Read the x87 status word."),
    17: ("A misaligned access in ring 3 with CR0.AM and RFLAGS.AC.", "Align the data, or clear AC."),
    18: ("The hardware found an error in itself.", "The IA32_MCi_STATUS registers tell more; in a guest, see KVM."),
    19: ("An unmasked SSE floating-point error, with CR4.OSXMMEXCPT.", "Read MXCSR."),
    20: ("An EPT violation that the hypervisor turns into an exception.", "Only for guests that KVM never makes."),
    21: (
        "Control-flow enforcement: a return to another place than the shadow stack has, or an indirect branch to no "
        "ENDBRANCH.",
        "The error code says which: 'pykvm explain error-code cp 1'.",
    ),
    28: ("The hypervisor tells an SEV-SNP guest of an event.", "Only in SEV-SNP guests."),
    29: ("An SEV-ES guest did what its hypervisor must help with.", "Only in SEV-ES guests."),
    30: ("An INIT that was redirected (AMD, VM_CR).", "Rare: look at VM_CR."),
}


# ---- exception ----


def explain_exception(words: Sequence[str]) -> Explanation:
    """Return what the exception is that ``words`` name: "13", "#GP" or "gp". Raises: ConfigurationError."""
    word = one(words, "one exception: its vector or its mnemonic, as 13 or #GP")
    vector = parse_number(word, 64, "a vector") if looks_like_number(word) else _vector(word)
    if vector > 255:
        raise ConfigurationError(f"{vector:#x} is no vector: they are 0 to 255, exceptions 0 to 31")
    if vector not in range(len(EXCEPTIONS)):
        return Explanation(
            f"vector {vector} ({vector:#x}): an interrupt",
            "Vectors 32 to 255 are for interrupts: of devices, of the local APIC, of other CPUs, and INT n.",
            advice=("Who sends it is set up in the PIC (ICW2), the I/O APIC's entries or the local APIC's LVT.",),
            see=(SDM + '"Exception and Interrupt Vectors" (6.2)',),
        )
    return _exception(EXCEPTIONS[vector])


def names() -> list[str]:
    """Return the mnemonics that ``explain_exception`` knows, and NMI."""
    return [*(exception.mnemonic for exception in EXCEPTIONS if exception.mnemonic), "NMI"]


def _vector(word: str) -> int:
    vectors = {exception.mnemonic: exception.vector for exception in EXCEPTIONS if exception.mnemonic} | {"NMI": 2}
    return vectors[find_name(word, vectors, "exception", ("#",))]


def _exception(exception: CpuException) -> Explanation:
    title = f"exception {exception.vector}: {exception}"
    if exception.kind is ExceptionClass.RESERVED:
        return Explanation(title, "Reserved for exceptions to come.", see=_see(exception), known=False)
    causes, advice = CAUSES[exception.vector]
    code = "It pushes an error code." if exception.has_error_code else "It has no error code."
    return Explanation(
        title, f"{_KINDS[exception.kind]} {code}", causes, (advice, _gate(exception.vector)), _see(exception)
    )


_KINDS = {
    ExceptionClass.FAULT: "A fault: the saved RIP is that of the instruction, which can be tried again.",
    ExceptionClass.TRAP: "A trap: the saved RIP is behind the instruction.",
    ExceptionClass.FAULT_OR_TRAP: "A fault or a trap, by its cause: execution breakpoints are faults, others traps.",
    ExceptionClass.ABORT: "An abort: the program cannot go on, and the saved RIP may be anywhere.",
    ExceptionClass.INTERRUPT: "Not caused by an instruction: an event from outside.",
}


def _gate(vector: int) -> str:
    first32, first64 = vector * 8, vector * 16
    return (
        f"Its IDT entry is bytes {first64:#x} to {first64 + 15:#x} in long mode, {first32:#x} to {first32 + 7:#x} in "
        "protected mode; IDTR's limit must reach that far."
    )


def _see(exception: CpuException) -> tuple[str, ...]:
    if exception.vector in (28, 29, 30):
        return ('AMD64 manual volume 2, "Vectors" (8.2)',)
    return (SDM + '"Exception and Interrupt Reference" (6.15)',)


# ---- error-code ----


def explain_error_code(words: Sequence[str]) -> Explanation:
    """Return what an exception's error code says: "pf 0x2", "#GP 0x10" or "13 0x10". Raises: ConfigurationError."""
    words = one_or_two(words, "an exception and its error code, as pf 0x2")
    if len(words) == 1:
        raise ConfigurationError(f"give an exception and its error code, as pf 0x2: {words[0]!r} is only one of them")
    vector = parse_number(words[0], 64, "a vector") if looks_like_number(words[0]) else _vector(words[0])
    code = parse_number(words[1], 64, "an error code")
    exception = EXCEPTIONS[vector] if vector in range(len(EXCEPTIONS)) else None
    if exception is None or not exception.has_error_code:
        with_code = ", ".join(other.mnemonic for other in EXCEPTIONS if other.has_error_code)
        raise ConfigurationError(f"{vector_name(vector)} has no error code: those that have one are {with_code}")
    return Explanation(
        f"{exception.mnemonic} error code {code:#x}: {describe_error_code(vector, code)}",
        "The error code lies on the handler's stack, below RIP.",
        advice=(_next_step(vector, code),),
        see=(SDM + ('"Page-Fault Exceptions" (4.7)' if vector == PAGE_FAULT else '"Error Code" (6.13)'),),
        bits=tuple(_code_bits(vector, code)),
    )


def _next_step(vector: int, code: int) -> str:
    if vector == PAGE_FAULT and code & PageFaultCode.RSVD.value:
        return "Walk the page tables for CR2 and decode the entries: 'pykvm explain pte' names reserved bits."
    if vector == PAGE_FAULT:
        return "CR2 holds the address: walk the page tables for it."
    if vector in SELECTOR_VECTORS and code & 2:
        return "Look at that entry of the IDT: limit, type and P bit."
    if vector in SELECTOR_VECTORS and code:
        return "Look at that descriptor: pykvm explain descriptor 0x..."
    return CAUSES[vector][1]


def _code_bits(vector: int, code: int) -> Iterator[Bits]:
    rest = code
    for found in _known_bits(vector, code):
        rest &= ~found.raw
        yield found
    if rest:
        yield Bits("-", rest, "reserved" if vector in (PAGE_FAULT, *SELECTOR_VECTORS) else "the code")


def _known_bits(vector: int, code: int) -> Iterator[Bits]:
    if vector == PAGE_FAULT:
        yield from named_bits(PageFaultCode, code)
        clear = (
            (PageFaultCode.P, "P", "clear: the page is not present"),
            (PageFaultCode.W, "W", "clear: a read or a fetch"),
            (PageFaultCode.U, "U", "clear: by ring 0, 1 or 2"),
        )
        for bit, name, meaning in clear:
            if not code & bit.value:
                yield Bits(f"no {name}", 0, meaning)
    elif vector in SELECTOR_VECTORS:
        yield Bits("EXT", code & 1, "1: while an event from outside the program was delivered")
        yield Bits("IDT", code & 2, "1: the index is one of the IDT")
        yield Bits("TI", code & 4, "1: of the LDT, 0: of the GDT; without IDT")
        yield Bits("index", code & 0xFFF8, f"entry {(code & 0xFFF8) >> 3}")
