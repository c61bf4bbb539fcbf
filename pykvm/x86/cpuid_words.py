"""What a CPUID leaf means, in words: numbers with their units, and features by name.

See: Intel SDM volume 2, CPUID; the AMD64 manual, volume 3, appendix E. Leaves out leaves that are rarely asked for:
they mean nothing here, and keep their numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.kvm.structs import CpuidEntry
from pykvm.x86.cpuid_features import feature_names

__all__ = ["family", "letters", "meaning", "model"]

CACHE_TYPES = {1: "data", 2: "instruction", 3: "unified"}
LEVEL_TYPES = {1: "thread", 2: "core", 3: "module", 4: "tile", 5: "die", 6: "die group"}
# State components of XCR0 and IA32_XSS (SDM volume 1, section 13.1).
COMPONENTS = {
    2: "AVX",
    3: "MPX bounds",
    4: "MPX control",
    5: "AVX-512 masks",
    6: "AVX-512 ZMM high halves",
    7: "AVX-512 ZMM16 to ZMM31",
    8: "processor trace",
    9: "protection keys",
    11: "CET user",
    12: "CET supervisor",
    17: "AMX configuration",
    18: "AMX tiles",
}


def letters(*registers: int) -> str:
    """Return the text in ``registers``, four letters each, without the zeros at its end; "?" for what is none."""
    data = b"".join(register.to_bytes(4, "little") for register in registers).rstrip(b"\0")
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in data)


def family(eax: int) -> int:
    """Return the CPU's family by leaf 1's ``eax``.

    31 28 27            20 19          16 15 14 13  12 11   8 7    4 3       0
    +-----+---------------+--------------+-----+------+------+------+---------+
    |  0  |extended family|extended model|  0  | type |family|model |stepping |
    +-----+---------------+--------------+-----+------+------+------+---------+
    """
    basic = eax >> 8 & 0xF
    return basic + (eax >> 20 & 0xFF) if basic == 0xF else basic


def model(eax: int) -> int:
    """Return the CPU's model by leaf 1's ``eax``; the extended one counts in families 6 and 15."""
    extended = eax >> 16 & 0xF if eax >> 8 & 0xF in (0x6, 0xF) else 0
    return extended << 4 | eax >> 4 & 0xF


def meaning(entry: CpuidEntry) -> str:
    """Return what ``entry`` means in one line, "" if nothing is known."""
    words = _WORDS.get(entry.function, _hypervisor if entry.function & 0xFFFF_00FF == 0x4000_0000 else None)
    parts = [words(entry) if words else "", " ".join(feature_names(entry))]
    return "; ".join(part for part in parts if part)


def _vendor(entry: CpuidEntry) -> str:
    name = letters(entry.ebx, entry.edx, entry.ecx)
    return f"{name}, leaves up to {entry.eax:#x}" if name else f"leaves up to {entry.eax:#x}"


def _version(entry: CpuidEntry) -> str:
    eax, ebx = entry.eax, entry.ebx
    place = f"APIC id {ebx >> 24}, {_cpus(ebx >> 16 & 0xFF)}, CLFLUSH {8 * (ebx >> 8 & 0xFF)} bytes"
    return f"family {family(eax)} model {model(eax)} stepping {eax & 0xF}, {place}"


def _cpus(count: int) -> str:
    return "1 CPU" if count == 1 else f"{count} CPUs"


def _cache(entry: CpuidEntry) -> str:
    kind, level = CACHE_TYPES.get(entry.eax & 0x1F), entry.eax >> 5 & 7
    if kind is None:
        return "no more caches"
    line, ways = (entry.ebx & 0xFFF) + 1, (entry.ebx >> 22) + 1
    size = line * ways * ((entry.ebx >> 12 & 0x3FF) + 1) * (entry.ecx + 1)
    shared = _cpus((entry.eax >> 14 & 0xFFF) + 1)
    return f"L{level} {kind} {size >> 10} KiB, {ways}-way, lines of {line} bytes, for {shared}"


def _topology(entry: CpuidEntry) -> str:
    level = LEVEL_TYPES.get(entry.ecx >> 8 & 0xFF)
    if level is None:
        return f"no more levels, x2APIC id {entry.edx}"
    return f"{level} level, {_cpus(entry.ebx & 0xFFFF)}, ids shift by {entry.eax & 0x1F}, x2APIC id {entry.edx}"


def _xsave(entry: CpuidEntry) -> str:
    if entry.index == 0:
        return f"XCR0 may be {entry.edx << 32 | entry.eax:#x}, XSAVE area {entry.ebx} bytes now, {entry.ecx} at most"
    if entry.index == 1:
        return f"compacted area {entry.ebx} bytes, IA32_XSS may be {entry.edx << 32 | entry.ecx:#x}"
    name = COMPONENTS.get(entry.index, f"component {entry.index}")
    return f"{name}: {entry.eax} bytes at {entry.ebx}"


def _tsc(entry: CpuidEntry) -> str:
    if not entry.eax or not entry.ebx:
        return ""
    ratio = f"TSC = crystal * {entry.ebx} / {entry.eax}"
    hertz = entry.ecx * entry.ebx // entry.eax
    return f"{ratio}, crystal {entry.ecx} Hz: TSC {hertz} Hz" if entry.ecx else ratio


def _frequencies(entry: CpuidEntry) -> str:
    if not entry.eax:
        return ""
    return f"base {entry.eax & 0xFFFF} MHz, maximum {entry.ebx & 0xFFFF} MHz, bus {entry.ecx & 0xFFFF} MHz"


def _hypervisor(entry: CpuidEntry) -> str:
    name = letters(entry.ebx, entry.ecx, entry.edx)
    return f"{name}, leaves up to {entry.eax:#x}" if name else ""


def _hypervisor_frequencies(entry: CpuidEntry) -> str:
    return f"TSC {entry.eax} kHz, APIC timer {entry.ebx} kHz"


def _brand(entry: CpuidEntry) -> str:
    text = letters(entry.eax, entry.ebx, entry.ecx, entry.edx)
    return f'brand "{text}"' if text else ""


def _amd_l1(entry: CpuidEntry) -> str:
    return f"L1 data {entry.ecx >> 24} KiB, L1 instruction {entry.edx >> 24} KiB" if entry.ecx | entry.edx else ""


def _amd_l2(entry: CpuidEntry) -> str:
    """AMD's L3 size is in units of 512 KiB; Intel leaves it 0."""
    parts = [f"L2 {entry.ecx >> 16} KiB"] if entry.ecx >> 16 else []
    parts += [f"L3 {(entry.edx >> 18) * 512} KiB"] if entry.edx >> 18 else []
    return ", ".join(parts)


def _addresses(entry: CpuidEntry) -> str:
    return f"physical addresses {entry.eax & 0xFF} bits, linear {entry.eax >> 8 & 0xFF} bits"


def _amd_ids(entry: CpuidEntry) -> str:
    return f"APIC id {entry.eax}, core {entry.ebx & 0xFF}, node {entry.ecx & 0xFF}"


_WORDS: dict[int, Callable[[CpuidEntry], str]] = {
    0x0: _vendor,
    0x1: _version,
    0x4: _cache,
    0xB: _topology,
    0xD: _xsave,
    0x15: _tsc,
    0x16: _frequencies,
    0x1F: _topology,
    0x4000_0010: _hypervisor_frequencies,
    0x8000_0000: _vendor,
    0x8000_0002: _brand,
    0x8000_0003: _brand,
    0x8000_0004: _brand,
    0x8000_0005: _amd_l1,
    0x8000_0006: _amd_l2,
    0x8000_0008: _addresses,
    0x8000_001D: _cache,
    0x8000_001E: _amd_ids,
}
