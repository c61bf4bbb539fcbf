"""CPUID as data: what a CPU says of itself, to be asked, changed and shown.

A ``Cpuid`` is made of the entries that KVM_GET_SUPPORTED_CPUID gives and KVM_SET_CPUID2 takes; every change makes a new
one. A leaf or subleaf without an entry reads as zeros, as in KVM. See: Intel SDM volume 2, CPUID; the AMD64 manual,
volume 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst. Leaves out whether features fit together, and the limits in
EAX of leaves 0 and 0x80000000 where it is not said that they follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain

from pykvm.errors import ConfigurationError
from pykvm.kvm.structs import CpuidEntry
from pykvm.markup import facts, folded, stacked, table
from pykvm.x86.cpuid_features import KVM_FEATURES, feature_names, find_feature
from pykvm.x86.cpuid_topology import topology_changes
from pykvm.x86.cpuid_words import family, letters, meaning, model

__all__ = ["SIGNATURE", "SIGNIFICANT_INDEX", "Cpuid", "CpuidDifference"]

SIGNATURE = "pykvmpykvm"  # what pykvm calls itself in leaf 0x40000000
KVM_SIGNATURE = "KVMKVMKVM"
SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the entry is for its subleaf only

MOST = (1 << 32) - 1  # in a register
REGISTERS = ("eax", "ebx", "ecx", "edx")
LEAF_TSC = 0x15
LEAF_HYPERVISOR = 0x4000_0000
LEAF_FREQUENCIES = 0x4000_0010  # VMware introduced it, others followed
HYPERVISORS = range(LEAF_HYPERVISOR, 0x4001_0000, 0x100)  # where a guest looks for further signatures
MOVED_KVM = 0x4000_0100  # where KVM's leaves go if 0x40000000 is somebody else's
# Leaves that have subleaves.
SUBLEAVES = (0x4, 0x7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1B, 0x1D, 0x1F, 0x8000_001D, 0x8000_0026)


@dataclass(frozen=True, slots=True)
class CpuidDifference:
    """A ``register``, "eax" to "edx", of leaf ``function``, subleaf ``index``, that is ``before`` and ``after``."""

    function: int
    index: int
    register: str
    before: int
    after: int

    def __str__(self) -> str:
        """Return it as ``"0x1 ecx 0x81202000 -> 0x81002000: -x2apic"``."""
        place = f"{self.function:#x}" + (f".{self.index}" if self.index or self.function in SUBLEAVES else "")
        names = [f"-{name}" for name in self._names(self.before & ~self.after)]
        names += [f"+{name}" for name in self._names(self.after & ~self.before)]
        text = f"{place} {self.register} {self.before:#010x} -> {self.after:#010x}"
        return f"{text}: {' '.join(names)}" if names else text

    def _names(self, bits: int) -> list[str]:
        return feature_names(replace(CpuidEntry(self.function, self.index), **{self.register: bits}))


class Cpuid:
    """What CPUID answers. Never changes: the methods that change something return another one.

    Raises: ConfigurationError if two of ``entries`` are for the same leaf and subleaf.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[CpuidEntry]) -> None:
        self._entries: Mapping[tuple[int, int], CpuidEntry] = _by_place(entries)

    def _repr_html_(self) -> str:
        words = ("vendor", "brand", "family", "model", "stepping", "hypervisor")
        features = " ".join(name for entry in self.entries for name in feature_names(entry))
        rows = [
            (entry.function, entry.index, *(f"{getattr(entry, register):#010x}" for register in REGISTERS))
            for entry in self.entries
        ]
        return stacked(
            facts([*((word, str(getattr(self, word))) for word in words), ("features", features)], "CPUID"),
            folded(f"{len(rows)} entries", table(["leaf", "subleaf", *REGISTERS], rows)),
        )

    # ---- asking ----

    @property
    def entries(self) -> list[CpuidEntry]:
        """The entries as KVM_SET_CPUID2 takes them."""
        return list(self._entries.values())

    def leaf(self, function: int, index: int = 0) -> CpuidEntry:
        """Return what CPUID answers to EAX = ``function``, ECX = ``index``; zeros if there is nothing."""
        whole = self._entries.get((function, 0))
        if whole is not None and not whole.flags & SIGNIFICANT_INDEX:
            return whole
        return self._entries.get((function, index), CpuidEntry(function, index))

    def has(self, name: str) -> bool:
        """Return whether the feature called ``name``, as "sse4.2" or "x2apic", is offered.

        Raises: ConfigurationError if there is no such feature.
        """
        feature = find_feature(name)
        entry = self.leaf(self._place(feature.function), feature.index)
        return bool(getattr(entry, feature.register) & feature.mask)

    @property
    def vendor(self) -> str:
        """Who made the CPU: "GenuineIntel", "AuthenticAMD", ..."""
        leaf = self.leaf(0)
        return letters(leaf.ebx, leaf.edx, leaf.ecx)

    @property
    def brand(self) -> str:
        """The CPU's name in full, which KVM does not give: "" unless somebody set it."""
        parts = (self.leaf(function) for function in range(0x8000_0002, 0x8000_0005))
        return letters(*chain.from_iterable((part.eax, part.ebx, part.ecx, part.edx) for part in parts)).strip()

    @property
    def family(self) -> int:
        """The CPU's family, with the extended family where that counts."""
        return family(self.leaf(1).eax)

    @property
    def model(self) -> int:
        """The CPU's model, with the extended model where that counts."""
        return model(self.leaf(1).eax)

    @property
    def stepping(self) -> int:
        """The CPU's stepping."""
        return self.leaf(1).eax & 0xF

    @property
    def hypervisor(self) -> str:
        """The signature in leaf 0x40000000: "KVMKVMKVM" unless somebody set another."""
        return self._signature(LEAF_HYPERVISOR)

    # ---- changing ----

    def with_(self, *names: str) -> Cpuid:
        """Return this with the features ``names`` offered. KVM cannot make the CPU have what it lacks.

        Raises: ConfigurationError if there is no such feature.
        """
        return self._with_features(names, True)

    def without(self, *names: str) -> Cpuid:
        """Return this without the features ``names``.

        Raises: ConfigurationError if there is no such feature.
        """
        return self._with_features(names, False)

    def override(
        self,
        function: int,
        index: int = 0,
        *,
        eax: int | None = None,
        ebx: int | None = None,
        ecx: int | None = None,
        edx: int | None = None,
    ) -> Cpuid:
        """Return this with other registers, of 32 bits, in leaf ``function``, subleaf ``index``; None leaves one as is.

        Raises: ConfigurationError if a number has more than 32 bits, or the leaf has no subleaves.
        """
        given = {"eax": eax, "ebx": ebx, "ecx": ecx, "edx": edx}
        registers = {name: value for name, value in given.items() if value is not None}
        for name, value in ({"leaf": function, "subleaf": index} | registers).items():
            if not 0 <= value <= MOST:
                raise ConfigurationError(f"CPUID leaf {function:#x}: {name} has 32 bits, {value:#x} does not fit")
        old = self.leaf(function, index)
        if old.index != index:
            raise ConfigurationError(f"CPUID leaf {function:#x} has no subleaves: leave index={index} out")
        if (function, index) not in self._entries and (index or function in SUBLEAVES):
            old = replace(old, flags=SIGNIFICANT_INDEX)
        return self._with_entries(replace(old, **registers))

    def with_apic_id(self, id: int, cpus: int) -> Cpuid:
        """Return this as the CPU with APIC ``id`` says it, one of ``cpus`` cores, 0 to ``cpus`` - 1, in one package.

        Leaf 1 and, where they are there, the leaves that tell of topology (4, 0xB, 0x1F; 0x80000008, 0x8000001D and
        0x8000001E on AMD) agree: each core has one thread and its own caches but for the last level's.

        Raises: ConfigurationError if there is no CPU ``id`` among so many.
        """
        if not 0 <= id < cpus:
            raise ConfigurationError(f"there is no APIC id {id} among {cpus} CPUs: they are 0 to {cpus - 1}")
        changed = self
        for (function, index), registers in topology_changes(self, id, cpus).items():
            changed = changed.override(function, index, **registers)
        return changed.with_("ht") if cpus > 1 else changed.without("ht")

    def with_signature(self, signature: str = SIGNATURE) -> Cpuid:
        """Return this with ``signature``, 1 to 12 ASCII letters, in leaf 0x40000000, and the hypervisor bit set.

        KVM's leaves move to 0x40000100, where guests find them all the same: they look at every 0x100th leaf.

        Raises: ConfigurationError if the signature does not fit.
        """
        text = signature.encode("ascii", "replace")
        if not 1 <= len(text) <= 12 or not signature.isascii() or not signature.isprintable():
            raise ConfigurationError(f"a hypervisor's signature is 1 to 12 ASCII letters, not {signature!r}")
        ebx, ecx, edx = (int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8))
        limit = LEAF_FREQUENCIES if (LEAF_FREQUENCIES, 0) in self._entries else LEAF_HYPERVISOR
        moved = self._with_kvm_moved().with_("hypervisor")
        return moved.override(LEAF_HYPERVISOR, eax=limit, ebx=ebx, ecx=ecx, edx=edx)

    def with_tsc_frequency(self, tsc_khz: int, apic_khz: int) -> Cpuid:
        """Return this with both frequencies, in kHz, in leaves 0x15 and 0x40000010; the leaves' limits follow.

        ``apic_khz`` is what the local APIC's timer counts at divisor 1, and plays the crystal in leaf 0x15. There the
        TSC's frequency is a fraction of it, at worst ``apic_khz`` / 2^33 of itself wrong (0.012 % at 1 GHz); leaf
        0x40000010 has it exactly.

        Raises: ConfigurationError if a frequency is not above 0, or too high for leaf 0x15.
        """
        _check_frequency("TSC", tsc_khz, MOST // 2)
        _check_frequency("APIC timer", apic_khz, MOST // 1000)
        # Kernels multiply crystal kHz and numerator in 32 bits, so the fraction must be of small numbers.
        ratio = Fraction(tsc_khz, apic_khz).limit_denominator(max(1, (MOST - apic_khz) // tsc_khz))
        # AMD's CPUs have no leaf 0x15, and end before it. What is newly in reach below it is zeros: the same as before.
        changed = self.override(LEAF_TSC, eax=ratio.denominator, ebx=ratio.numerator, ecx=apic_khz * 1000, edx=0)
        changed = changed.override(LEAF_FREQUENCIES, eax=tsc_khz, ebx=apic_khz, ecx=0, edx=0)
        return changed._reaching(0, LEAF_TSC)._reaching(LEAF_HYPERVISOR, LEAF_FREQUENCIES)

    # ---- showing ----

    def difference(self, other: Cpuid) -> list[CpuidDifference]:
        """Return the registers in which ``other`` differs, by leaf: ``before`` is this one's, ``after`` the other's."""
        places = sorted(self._entries.keys() | other._entries.keys())
        pairs = [(place, self._at(place), other._at(place)) for place in places]
        return [
            CpuidDifference(*place, register, getattr(ours, register), getattr(theirs, register))
            for place, ours, theirs in pairs
            for register in REGISTERS
            if getattr(ours, register) != getattr(theirs, register)
        ]

    def rows(self) -> list[tuple[str, str, str, str, str, str, str]]:
        """Return a row for every entry, by leaf: leaf, subleaf ("" if it has none), EAX to EDX, and what they mean."""
        return [self._row(self._entries[place]) for place in sorted(self._entries)]

    def __eq__(self, other: object) -> bool:
        return self._entries == other._entries if isinstance(other, Cpuid) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._entries.values()))

    def __repr__(self) -> str:
        return f"Cpuid({self.vendor}, family {self.family}, model {self.model}, {len(self._entries)} entries)"

    # ---- inside ----

    def _at(self, place: tuple[int, int]) -> CpuidEntry:
        return self._entries.get(place, CpuidEntry(*place))

    def _signature(self, function: int) -> str:
        leaf = self.leaf(function)
        return letters(leaf.ebx, leaf.ecx, leaf.edx)

    def _place(self, function: int) -> int:
        """Return where leaf ``function`` of the table of features is here: KVM's may have moved."""
        if function != KVM_FEATURES:
            return function
        # Entries, not all of HYPERVISORS: this is asked often.
        bases = (function for function, _ in self._entries if function in HYPERVISORS)
        return next((base for base in bases if self._signature(base) == KVM_SIGNATURE), LEAF_HYPERVISOR) + 1

    def _row(self, entry: CpuidEntry) -> tuple[str, str, str, str, str, str, str]:
        as_listed = entry
        if entry.function == self._place(KVM_FEATURES):
            as_listed = replace(entry, function=KVM_FEATURES)
        index = str(entry.index) if entry.flags & SIGNIFICANT_INDEX else ""
        eax, ebx, ecx, edx = (f"{getattr(entry, register):08x}" for register in REGISTERS)
        return f"{entry.function:#x}", index, eax, ebx, ecx, edx, meaning(as_listed)

    def _with_entries(self, *entries: CpuidEntry) -> Cpuid:
        changed = {(entry.function, entry.index): entry for entry in entries}
        return Cpuid({**self._entries, **changed}.values())

    def _with_features(self, names: Iterable[str], offered: bool) -> Cpuid:
        changed = self
        for feature in map(find_feature, names):
            function, register = changed._place(feature.function), feature.register
            old = getattr(changed.leaf(function, feature.index), register)
            new = old | feature.mask if offered else old & ~feature.mask
            if new != old:
                changed = changed.override(function, feature.index, **{register: new})
        return changed

    def _with_kvm_moved(self) -> Cpuid:
        if self._signature(LEAF_HYPERVISOR) != KVM_SIGNATURE:
            return self
        kept = [entry for entry in self.entries if entry.function not in (LEAF_HYPERVISOR, KVM_FEATURES)]
        base = replace(self.leaf(LEAF_HYPERVISOR), function=MOVED_KVM, eax=MOVED_KVM + 1)
        return Cpuid(kept)._with_entries(base, replace(self.leaf(KVM_FEATURES), function=MOVED_KVM + 1))

    def _reaching(self, base: int, function: int) -> Cpuid:
        """Return this with the limit in EAX of leaf ``base`` at ``function`` at least."""
        return self.override(base, eax=max(function, self.leaf(base).eax))


def _by_place(entries: Iterable[CpuidEntry]) -> dict[tuple[int, int], CpuidEntry]:
    places: dict[tuple[int, int], CpuidEntry] = {}
    for entry in entries:
        if places.setdefault((entry.function, entry.index), entry) is not entry:
            raise ConfigurationError(f"CPUID leaf {entry.function:#x}, subleaf {entry.index}, is given twice")
    return places


def _check_frequency(what: str, khz: int, most: int) -> None:
    if not 0 < khz <= most:
        raise ConfigurationError(f"the {what}'s frequency is 1 to {most} kHz, not {khz}")
