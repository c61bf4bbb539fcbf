"""CPUID leaves: what each is about, and its feature bits by name.

See: Intel SDM volume 2, CPUID; the AMD64 manual, volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst. Leaves out
what a host answers: see ``pykvm cpuid``.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.observe.explaining.explanation import Explanation
from pykvm.observe.explaining.lookup import looks_like_number, one, parse_number
from pykvm.x86.cpuid_features import FEATURES, features, find_feature

__all__ = ["LEAVES", "explain", "names"]

INTEL, AMD = "Intel SDM volume 2, CPUID", "AMD64 manual volume 3, appendix E"
KVM = "Documentation/virt/kvm/x86/cpuid.rst"

LEAVES: dict[int, str] = {
    0x0: "The highest basic leaf in EAX, and who made the CPU, twelve letters in EBX, EDX, ECX.",
    0x1: "Family, model and stepping in EAX; APIC id, CPUs and the CLFLUSH line in EBX; features in ECX and EDX.",
    0x2: "Caches and TLBs by code bytes (Intel).",
    0x3: "The serial number of the Pentium III.",
    0x4: "Caches, one a subleaf: level, ways, lines, sets, and how many CPUs share it (Intel).",
    0x5: "MONITOR and MWAIT: smallest and largest line, C-states.",
    0x6: "Power and temperature features.",
    0x7: "More features; EAX is the highest subleaf.",
    0xA: "Performance monitoring: how many counters, how wide.",
    0xB: "Topology, one level a subleaf: threads, cores; EDX is the x2APIC id.",
    0xD: "Extended state (XSAVE): subleaf 0 the bits of XCR0 and sizes, 1 features, then one component each.",
    0xF: "Monitoring of resources (RDT-M).",
    0x10: "Allocation of resources (RDT-A).",
    0x12: "SGX.",
    0x14: "Processor trace.",
    0x15: "The time-stamp counter: crystal frequency and ratio.",
    0x16: "Frequencies: base, maximum, bus.",
    0x18: "Translation lookaside buffers, one a subleaf.",
    0x1F: "Topology with more levels than leaf 0xb.",
    0x4000_0000: 'The hypervisor: the highest leaf of its own, and its signature, "KVMKVMKVM" for KVM.',
    0x4000_0001: "KVM's own features in EAX, hints in EDX.",
    0x4000_0010: "Frequencies for guests: TSC and APIC timer in kHz (VMware's invention).",
    0x8000_0000: "The highest extended leaf.",
    0x8000_0001: "Extended features: long mode, no-execute, SYSCALL; AMD's own.",
    0x8000_0002: "The CPU's name, first 16 letters.",
    0x8000_0003: "The CPU's name, next 16 letters.",
    0x8000_0004: "The CPU's name, last 16 letters.",
    0x8000_0005: "L1 caches and TLBs (AMD).",
    0x8000_0006: "L2 and L3 caches.",
    0x8000_0007: "Power management; EDX bit 8: the time-stamp counter runs at a constant rate.",
    0x8000_0008: "Widths of physical (MAXPHYADDR) and linear addresses in EAX; more features.",
    0x8000_000A: "AMD virtualization (SVM): revision, ASIDs, features.",
    0x8000_001D: "Caches, as leaf 4 (AMD).",
    0x8000_001E: "Topology: APIC id, core, node (AMD).",
    0x8000_001F: "Memory encryption (SEV).",
    0x8000_0021: "Further features (AMD).",
}


def explain(words: Sequence[str]) -> Explanation:
    """Return what the CPUID leaf or the feature in ``words`` is about: "7", "0x80000001" or "sse4_2".

    Raises: ConfigurationError.
    """
    word = one(words, "one CPUID leaf or feature, as 7 or x2apic")
    if looks_like_number(word) and word.lower() not in features():  # 3dnow
        return _leaf(parse_number(word, 32, "a CPUID leaf"))
    feature = find_feature(word)
    place = f"leaf {feature.function:#x}" + (f", subleaf {feature.index}" if feature.index else "")
    return Explanation(
        f"cpuid {feature.name}: {place}, {feature.register.upper()} bit {feature.bit}",
        f"A feature of the CPU, by the name that /proc/cpuinfo has for it. {LEAVES.get(feature.function, '')}".strip(),
        advice=(f"pykvm cpuid --leaf {feature.function:#x} shows whether this host offers it to guests.",),
        see=_see(feature.function),
    )


def _leaf(leaf: int) -> Explanation:
    registers = [(index, register) for function, index, register in FEATURES if function == leaf]
    features_here = [
        f"{register.upper()}{f' of subleaf {index}' if index else ''}: {' '.join(_names(leaf, index, register))}."
        for index, register in registers
    ]
    what = LEAVES.get(leaf)
    if what is None and not features_here:
        what = (
            "A leaf that pykvm knows nothing about; one beyond the highest reads as zeros, or as the highest basic one."
        )
    return Explanation(
        f"cpuid leaf {leaf:#x}",
        what or "Features.",
        advice=(*features_here, f"pykvm cpuid --leaf {leaf:#x} shows what this host's KVM offers to guests."),
        see=_see(leaf),
        known=what is None or leaf in LEAVES,
    )


def names() -> list[str]:
    """Return the names of features that ``explain`` knows."""
    return list(features())


def _names(leaf: int, index: int, register: str) -> list[str]:
    places = (leaf, index, register)
    return [
        name for name, feature in features().items() if (feature.function, feature.index, feature.register) == places
    ]


def _see(leaf: int) -> tuple[str, ...]:
    if leaf >> 16 == 0x4000:
        return (KVM,)
    return (AMD, INTEL) if leaf >> 16 == 0x8000 else (INTEL,)
