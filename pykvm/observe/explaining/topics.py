"""What can be explained: every kind of topic with its example, and from words to an explanation.

    exit 8                     a kind, and what of it
    KVM_EXIT_MMIO              a name that only one kind has
    0x3f8                      a number: which kind is meant has to be asked

Each kind's tables are loaded when it is asked for. Leaves out what is explained: see the other modules here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pykvm.errors import ConfigurationError
from pykvm.names import closest
from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import looks_like_number, unknown

__all__ = ["KINDS", "Kind", "explain", "find_kind"]

PACKAGE = "pykvm.observe.explaining."
NAME_PREFIXES = ("KVM_EXIT_", "KVM_INTERNAL_ERROR_", "KVM_CAP_", "KVM_", "IA32_", "MSR_", "#")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of topic: ``home`` is the module that explains it, by its function ``explains``.

    ``names`` is the function there that returns the names it knows, "" if it knows numbers only. ``is_bits`` says that
    any number is one of these, and that its bits are explained; ``register`` is which register of that module.
    """

    name: str
    example: str
    about: str
    home: str
    explains: str = "explain"
    names: str = ""
    is_bits: bool = False
    register: str = ""

    def explain(self, words: Sequence[str]) -> Explanation:
        """Return the explanation of ``words``, without the kind's own name. Raises: ConfigurationError."""
        if not words and self.names:
            return self._all()
        function: Callable[..., Explanation] = getattr(importlib.import_module(PACKAGE + self.home), self.explains)
        return function(self.register, words) if self.register else function(words)

    def known_names(self) -> Sequence[str]:
        """Return the names of this kind, none if it has numbers only."""
        if not self.names:
            return ()
        function: Callable[[], Sequence[str]] = getattr(importlib.import_module(PACKAGE + self.home), self.names)
        return function()

    def _all(self) -> Explanation:
        names = ", ".join(self.known_names())
        return Explanation(
            f"{self.name}: {self.about}", f"These are known: {names}.", see=(f"pykvm explain {self.example}",)
        )


def _register(name: str, example: str, about: str) -> Kind:
    return Kind(name, example, about, "registers", "explain_register", is_bits=True, register=name)


KINDS: tuple[Kind, ...] = (
    Kind("exit", "exit 8", "why KVM_RUN returned, by number or name", "exits", names="names"),
    Kind(
        "fail-entry", "fail-entry 0x80000021", "why the processor refused the guest", "failures", "explain_fail_entry"
    ),
    Kind(
        "internal-error",
        "internal-error 1",
        "why KVM gave up: its suberror",
        "failures",
        "explain_internal_error",
        "suberror_names",
    ),
    Kind("ioctl", "ioctl KVM_SET_SREGS", "what an ioctl does, and its errors", "ioctls", names="names"),
    Kind("errno", "errno EINVAL KVM_SET_SREGS", "what an errno means, alone or of an ioctl", "errnos", names="names"),
    Kind("cap", "cap KVM_CAP_IRQCHIP", "what a capability is good for", "capabilities", names="names"),
    Kind(
        "exception",
        "exception 13",
        "an exception of the CPU, by vector or name",
        "exceptions",
        "explain_exception",
        "names",
    ),
    Kind("error-code", "error-code pf 0x2", "what an exception's error code says", "exceptions", "explain_error_code"),
    Kind("msr", "msr 0xc0000080", "a model-specific register, by number or name", "msrs", names="names"),
    Kind("cpuid", "cpuid 7", "a CPUID leaf, or a feature by name", "leaves", names="names"),
    Kind("port", "port 0x3f8", "what is at an I/O port", "ports"),
    Kind("address", "address 0xfee00000", "what is at a guest-physical address", "addresses"),
    _register("cr0", "cr0 0x80000011", "protection, paging, caching"),
    _register("cr3", "cr3 0x1000", "where the page tables are"),
    _register("cr4", "cr4 0x20", "what else is switched on"),
    _register("efer", "efer 0x500", "long mode, SYSCALL, no-execute"),
    _register("rflags", "rflags 0x202", "results and controls"),
    _register("dr6", "dr6 0xffff4ff0", "which breakpoint was met"),
    _register("dr7", "dr7 0x402", "which breakpoints are on"),
    _register("apic_base", "apic_base 0xfee00900", "where the local APIC is"),
    Kind("descriptor", "descriptor 0x00cf9a000000ffff", "a GDT, LDT or IDT entry", "segmentation", is_bits=True),
    Kind("pte", "pte 0x83 pd", "a page-table entry, of a level and a mode", "entries", is_bits=True),
    Kind("status", "status 125", "an exit status of pykvm", "statuses"),
)
# For a single name, and for a name and a value.
_BY_NAME = tuple(kind for kind in KINDS if kind.names or kind.name == "error-code")
# For a single number: kinds in which not every number means something.
_BY_NUMBER = tuple(kind for kind in KINDS if not kind.is_bits and kind.name != "error-code")
_ALIASES = {
    "eflags": "rflags",
    "gpa": "address",
    "capability": "cap",
    "suberror": "internal-error",
    "gdt": "descriptor",
}


def explain(words: Sequence[str]) -> Explanation:
    """Return the explanation of ``words``: a kind and what of it, or a name that only one kind has.

    Raises: ConfigurationError that says the nearest for what is unknown, and the choices for what may be several.
    """
    words = [word.strip() for word in words]
    if not any(words):
        raise ConfigurationError("give what to explain, as exit 8: 'pykvm explain' lists the kinds")
    kind = find_kind(words[0])
    if kind is not None:
        return kind.explain(words[1:])
    register, _, bit = words[0].partition(".")
    kind = find_kind(register)
    if kind is not None and kind.register and bit:  # CR4.PAE
        return kind.explain([bit, *words[1:]])
    if looks_like_number(words[0]):
        raise _ambiguous_number(words)
    return _by_name(words)


def find_kind(name: str) -> Kind | None:
    """Return the kind called ``name``, in any case and with "_" for "-" or the other way round, or None."""
    plain = name.lower().replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    return next((kind for kind in KINDS if kind.name.replace("_", "-") == plain), None)


def _by_name(words: Sequence[str]) -> Explanation:
    found = [(kind, explanation) for kind in _BY_NAME if (explanation := _try(kind, words))]
    if len(found) == 1:
        return found[0][1]
    if found:
        raise ConfigurationError(_choices(" ".join(words), found))
    raise _unknown_name(words)


def _try(kind: Kind, words: Sequence[str]) -> Explanation | None:
    for order in (words, words[::-1]) if len(words) == 2 else (words,):
        try:
            return kind.explain(order)
        except ConfigurationError:
            continue
    return None


def _unknown_name(words: Sequence[str]) -> ConfigurationError:
    if len(words) > 1:
        kinds = closest(words[0].lower(), [kind.name for kind in KINDS], most=1)
        if kinds:
            return ConfigurationError(f"there is no kind {words[0][:200]!r}: did you mean {kinds[0]}?")
    names = dict.fromkeys([*(kind.name for kind in KINDS), *(name for kind in KINDS for name in kind.known_names())])
    return unknown(words[0], names, "topic", NAME_PREFIXES)


def _ambiguous_number(words: Sequence[str]) -> ConfigurationError:
    number = words[0][:200]
    if len(words) > 1:
        return ConfigurationError(f"{number} comes before its kind is said: write pykvm explain KIND {number}")
    found = [(kind, explanation) for kind in _BY_NUMBER if (explanation := _try(kind, words)) and explanation.known]
    bits = ", ".join(kind.name for kind in KINDS if kind.is_bits)
    last = f"  or the bits of a register or a table's entry: {bits}"
    return ConfigurationError(f"{_choices(number, found)}\n{last}")


def _choices(shown: str, found: Sequence[tuple[Kind, Explanation]]) -> str:
    commands = [f"pykvm explain {kind.name} {shown}" for kind, _ in found]
    width = max(map(len, commands), default=0)
    lines = [f"  {command:<{width}}  {text.title}" for command, (_, text) in zip(commands, found, strict=True)]
    return "\n".join([f"{shown} may be several things; say which:", *lines])
