"""CPUID as a value: a change touches what it names and nothing else, and every leaf can be read by a person."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.kvm.structs import CpuidEntry
from pykvm.x86.cpuid import SIGNATURE, SIGNIFICANT_INDEX, Cpuid, CpuidDifference
from pykvm.x86.cpuid_features import ALIASES, FEATURES, KVM_FEATURES, feature_names, features, find_feature
from pykvm.x86.cpuid_words import letters

REGISTERS = ("eax", "ebx", "ecx", "edx")
MOST = (1 << 32) - 1
KVM_LETTERS = {"ebx": 0x4B4D_564B, "ecx": 0x564B_4D56, "edx": 0x4D}
INTEL = {"ebx": 0x756E_6547, "edx": 0x4965_6E69, "ecx": 0x6C65_746E}
AMD = {"ebx": 0x6874_7541, "edx": 0x6974_6E65, "ecx": 0x444D_4163}

# A small Intel CPU, and a small AMD one, as KVM would describe them.
SMALL_INTEL = Cpuid(
    [
        CpuidEntry(0x0, eax=0x16, **INTEL),
        CpuidEntry(0x1, eax=0x0005_06E3, ebx=0x0002_0800, ecx=0x8020_0001, edx=0x0000_0010),
        CpuidEntry(0x4, 0, SIGNIFICANT_INDEX, eax=0x1C00_4121, ebx=0x01C0_003F, ecx=0x3F),
        CpuidEntry(0x4, 1, SIGNIFICANT_INDEX, eax=0x1C03_C163, ebx=0x03C0_003F, ecx=0x1FFF, edx=0x6),
        CpuidEntry(0x4, 2, SIGNIFICANT_INDEX),
        CpuidEntry(0x7, 0, SIGNIFICANT_INDEX, ebx=1),
        CpuidEntry(0x4000_0000, eax=0x4000_0001, **KVM_LETTERS),
        CpuidEntry(0x4000_0001, eax=0b1001),
        CpuidEntry(0x8000_0000, eax=0x8000_0008),
        CpuidEntry(0x8000_0008, eax=0x3030),
    ]
)
SMALL_AMD = Cpuid(
    [
        CpuidEntry(0x0, eax=0x10, **AMD),
        CpuidEntry(0x1, eax=0x00A0_0F11, ebx=0x0102_0800),
        CpuidEntry(0xB, 0, SIGNIFICANT_INDEX),
        CpuidEntry(0x8000_0000, eax=0x8000_0022, **AMD),
        CpuidEntry(0x8000_0001, ecx=0x0040_0002),
        CpuidEntry(0x8000_0008, eax=0x3030, ecx=0x0001_7001),
        CpuidEntry(0x8000_001D, 0, SIGNIFICANT_INDEX, eax=0x4121, ebx=0x01C0_003F, ecx=0x3F),
        CpuidEntry(0x8000_001D, 1, SIGNIFICANT_INDEX, eax=0x4163, ebx=0x03C0_003F, ecx=0x7FFF),
        CpuidEntry(0x8000_001E, eax=9, ebx=0x109, ecx=0x101),
    ]
)
SMALL = pytest.mark.parametrize("cpuid", [SMALL_INTEL, SMALL_AMD], ids=["Intel", "AMD"])

words_of_32_bits = st.integers(0, MOST)
some_leaves = st.sampled_from(sorted({place[0] for place in FEATURES} | {0, 2, 0xB, 0x4000_0000, 0x8000_0000}))
names = st.sampled_from(sorted(features()))


@st.composite
def cpuids(draw: st.DrawFn) -> Cpuid:
    """Any numbers in any leaves, some of them with subleaves."""
    entries = []
    for function in draw(st.lists(some_leaves, unique=True, max_size=8)):
        has_subleaves = function in (0x7, 0xB, 0xD)
        for index in range(draw(st.integers(1, 3)) if has_subleaves else 1):
            numbers = draw(st.tuples(*[words_of_32_bits] * 4))
            entries.append(CpuidEntry(function, index, SIGNIFICANT_INDEX if has_subleaves else 0, *numbers))
    return Cpuid(entries)


# ---- the value ----


@given(cpuids())
def test_entries_come_out_as_they_went_in(cpuid: Cpuid) -> None:
    again = Cpuid(cpuid.entries)
    assert again.entries == cpuid.entries
    assert again == cpuid
    assert hash(again) == hash(cpuid)
    assert cpuid.difference(again) == []


def test_the_order_of_entries_makes_no_difference() -> None:
    assert Cpuid(reversed(SMALL_AMD.entries)) == SMALL_AMD
    assert SMALL_AMD != SMALL_INTEL
    assert SMALL_AMD != "AuthenticAMD"


def test_two_entries_for_one_place_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="leaf 0x7, subleaf 1, is given twice"):
        Cpuid([CpuidEntry(0x7, 1), CpuidEntry(0x7, 1, eax=1)])
    with pytest.raises(ConfigurationError, match="twice"):
        Cpuid([CpuidEntry(0x7), CpuidEntry(0x7)])


def test_what_has_no_entry_reads_as_zeros() -> None:
    assert SMALL_AMD.leaf(0x99) == CpuidEntry(0x99)
    assert SMALL_INTEL.leaf(0x4, 7) == CpuidEntry(0x4, 7)


def test_a_leaf_without_subleaves_does_not_look_at_the_subleaf() -> None:
    assert SMALL_INTEL.leaf(0x1, 5) == SMALL_INTEL.leaf(0x1)


@pytest.mark.parametrize(
    ("cpuid", "vendor", "version"),
    [(SMALL_INTEL, "GenuineIntel", (6, 94, 3)), (SMALL_AMD, "AuthenticAMD", (25, 1, 1))],
)
def test_vendor_family_model_and_stepping_are_decoded(cpuid: Cpuid, vendor: str, version: tuple[int, int, int]) -> None:
    assert cpuid.vendor == vendor
    assert (cpuid.family, cpuid.model, cpuid.stepping) == version
    assert vendor in repr(cpuid)


def test_an_old_family_has_no_extended_model() -> None:
    assert SMALL_INTEL.override(0x1, eax=0x000F_0543).model == 4
    assert SMALL_INTEL.override(0x1, eax=0x0FF0_0543).family == 5


def test_the_brand_is_three_leaves_of_letters() -> None:
    assert SMALL_AMD.brand == ""
    named = SMALL_AMD
    for part, text in enumerate((b"  pykvm CPU at a", b" leisurely pace ", b"of 1 MHz\0\0\0\0\0\0\0\0")):
        numbers = [int.from_bytes(text[at : at + 4], "little") for at in range(0, 16, 4)]
        named = named.override(0x8000_0002 + part, **dict(zip(REGISTERS, numbers, strict=True)))
    assert named.brand == "pykvm CPU at a leisurely pace of 1 MHz"


def test_letters_that_are_none_cannot_reach_a_terminal() -> None:
    assert letters(0x411B_4241, 0xFF) == "AB?A?"


# ---- features ----


@given(cpuids(), names)
def test_has_agrees_with_the_bit(cpuid: Cpuid, name: str) -> None:
    feature = find_feature(name)
    if feature.function == KVM_FEATURES:
        return  # wherever KVM's leaf is: see below
    register = getattr(cpuid.leaf(feature.function, feature.index), feature.register)
    assert cpuid.has(name) == bool(register >> feature.bit & 1)


@given(cpuids(), names)
def test_a_feature_taken_away_or_added_is_the_only_change(cpuid: Cpuid, name: str) -> None:
    less, more = cpuid.without(name), cpuid.with_(name)
    assert not less.has(name)
    assert more.has(name)
    [change] = less.difference(more)
    assert change.before | find_feature(name).mask == change.after
    assert change.register == find_feature(name).register


@given(cpuids(), st.lists(names))
def test_adding_back_what_was_taken_away_restores(cpuid: Cpuid, some: list[str]) -> None:
    had = [name for name in some if cpuid.has(name)]
    assert cpuid.without(*had).with_(*had) == cpuid
    lacked = [name for name in some if not cpuid.has(name)]
    assert cpuid.difference(cpuid.with_(*lacked).without(*lacked)) == []


@given(cpuids(), names)
def test_doing_it_twice_is_doing_it_once(cpuid: Cpuid, name: str) -> None:
    assert cpuid.without(name).without(name) == cpuid.without(name)
    assert cpuid.with_(name).with_(name) == cpuid.with_(name)


@pytest.mark.parametrize("name", ["sse4.2", "SSE4_2", "sse4-2", " sse4_2 "])
def test_a_feature_is_known_by_the_ways_people_write_it(name: str) -> None:
    assert find_feature(name) == features()["sse4_2"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tsc", (1, 0, "edx", 4)),
        ("hypervisor", (1, 0, "ecx", 31)),
        ("x2apic", (1, 0, "ecx", 21)),
        ("tsc_deadline_timer", (1, 0, "ecx", 24)),
        ("smep", (7, 0, "ebx", 7)),
        ("avx512vl", (7, 0, "ebx", 31)),
        ("la57", (7, 0, "ecx", 16)),
        ("serialize", (7, 0, "edx", 14)),
        ("spec_ctrl_ssbd", (7, 0, "edx", 31)),
        ("lam", (7, 1, "eax", 26)),
        ("xsaves", (0xD, 1, "eax", 3)),
        ("svm", (0x8000_0001, 0, "ecx", 2)),
        ("topoext", (0x8000_0001, 0, "ecx", 22)),
        ("pdpe1gb", (0x8000_0001, 0, "edx", 26)),
        ("lm", (0x8000_0001, 0, "edx", 29)),
        ("invtsc", (0x8000_0007, 0, "edx", 8)),
        ("wbnoinvd", (0x8000_0008, 0, "ebx", 9)),
        ("vnmi", (0x8000_000A, 0, "edx", 25)),
        ("kvm_clocksource2", (KVM_FEATURES, 0, "eax", 3)),
        ("kvm_clocksource_stable_bit", (KVM_FEATURES, 0, "eax", 24)),
        ("srso_no", (0x8000_0021, 0, "eax", 29)),
    ],
)
def test_a_feature_is_where_the_manual_says(name: str, place: tuple[int, int, str, int]) -> None:
    feature = find_feature(name)
    assert (feature.function, feature.index, feature.register, feature.bit) == place


def test_the_table_has_32_bits_a_register_and_each_name_once() -> None:
    listed = [name for text in FEATURES.values() for name in text.split() if name != "-"]
    assert {len(text.split()) for text in FEATURES.values()} == {32}
    assert len(listed) == len(set(listed)) == len(features())
    assert set(ALIASES.values()) <= set(listed)
    assert not set(ALIASES) & set(listed)


@pytest.mark.parametrize(("name", "words"), [("x2apc", "did you mean x2apic"), ("qqqqqq", "those of /proc/cpuinfo")])
def test_an_unknown_feature_is_refused_with_what_may_be_meant(name: str, words: str) -> None:
    for ask in (SMALL_AMD.has, SMALL_AMD.with_, SMALL_AMD.without):
        with pytest.raises(ConfigurationError, match=f"no feature '{name}': .*{words}"):
            ask(name)


# ---- override ----


@given(cpuids(), some_leaves, st.sampled_from(REGISTERS), words_of_32_bits)
def test_an_override_changes_that_register_only(cpuid: Cpuid, function: int, register: str, value: int) -> None:
    changed = cpuid.override(function, **{register: value})
    before = cpuid.leaf(function)
    assert getattr(changed.leaf(function), register) == value
    expected = [CpuidDifference(function, 0, register, getattr(before, register), value)]
    assert cpuid.difference(changed) == [change for change in expected if change.before != change.after]


def test_an_override_leaves_the_original_alone() -> None:
    SMALL_AMD.override(0x1, eax=0)
    assert SMALL_AMD.leaf(0x1).eax == 0x00A0_0F11


@pytest.mark.parametrize("index", [0, 1])
def test_a_new_subleaf_is_marked_as_one_for_kvm(index: int) -> None:
    changed = SMALL_AMD.override(0x7, index, ecx=5)
    assert changed.entries[-1] == CpuidEntry(0x7, index, SIGNIFICANT_INDEX, ecx=5)
    assert SMALL_AMD.override(0x16, eax=1).entries[-1].flags == 0


def test_a_leaf_without_subleaves_gets_none() -> None:
    with pytest.raises(ConfigurationError, match="leaf 0x1 has no subleaves: leave index=2 out"):
        SMALL_AMD.override(0x1, 2, eax=1)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_number_of_more_than_32_bits_is_refused(value: int) -> None:
    with pytest.raises(ConfigurationError, match="leaf 0x1: ecx has 32 bits"):
        SMALL_AMD.override(0x1, ecx=value)
    with pytest.raises(ConfigurationError, match="leaf has 32 bits"):
        SMALL_AMD.override(value, ecx=0)


# ---- the CPU's place ----


@SMALL
@given(st.integers(1, 255).flatmap(lambda cpus: st.tuples(st.integers(0, cpus - 1), st.just(cpus))))
def test_every_leaf_tells_the_same_apic_id_and_number_of_cpus(cpuid: Cpuid, place: tuple[int, int]) -> None:
    id, cpus = place
    placed = cpuid.with_apic_id(id, cpus)
    assert placed.leaf(0x1).ebx == id << 24 | cpus << 16 | 0x0800
    assert placed.has("ht") == (cpus > 1)
    thread, core, end = (placed.leaf(0xB, index) for index in range(3))
    assert thread.edx == core.edx == end.edx == id
    assert (thread.eax, thread.ebx, thread.ecx) == (0, 1, 0x100)
    assert (core.ebx, core.ecx) == (cpus, 0x201)
    assert 1 << core.eax >= cpus > (1 << core.eax) // 2
    assert (end.eax, end.ebx, end.ecx) == (0, 0, 2)


def test_the_last_level_cache_is_shared_by_all_and_the_others_by_nobody() -> None:
    intel, amd = SMALL_INTEL.with_apic_id(2, 6), SMALL_AMD.with_apic_id(2, 6)
    assert [intel.leaf(0x4, index).eax >> 14 & 0xFFF for index in range(2)] == [0, 5]
    assert [amd.leaf(0x8000_001D, index).eax >> 14 & 0xFFF for index in range(2)] == [0, 5]
    assert {intel.leaf(0x4, index).eax >> 26 for index in range(2)} == {7}  # ids of cores, less one: a power of 2
    assert intel.leaf(0x4, 0).eax & 0x3FFF == 0x121
    assert intel.leaf(0x4, 2) == SMALL_INTEL.leaf(0x4, 2)


def test_amds_own_leaves_agree() -> None:
    placed = SMALL_AMD.with_apic_id(2, 6)
    assert placed.leaf(0x8000_0008).ecx == 0x0001_3005  # ids of 3 bits, six CPUs; bits 17 and 16 as they were
    assert placed.has("cmp_legacy")
    assert not SMALL_AMD.with_apic_id(0, 1).has("cmp_legacy")
    last = placed.leaf(0x8000_001E)
    assert (last.eax, last.ebx, last.ecx) == (2, 2, 0)


def test_intel_gets_none_of_amds_leaves_and_nobody_a_leaf_beyond_the_limit() -> None:
    placed = SMALL_INTEL.with_apic_id(2, 6)
    assert placed.leaf(0x8000_0008) == SMALL_INTEL.leaf(0x8000_0008)
    assert not placed.leaf(0x8000_001E).eax
    assert not placed.leaf(0x1F).edx
    assert SMALL_INTEL.override(0, eax=0x1F).with_apic_id(2, 6).leaf(0x1F, 1).edx == 2
    assert SMALL_INTEL.override(0, eax=0x7).with_apic_id(2, 6).leaf(0xB, 1).ebx == 0
    short = SMALL_AMD.override(0x8000_0000, eax=0x8000_0008).with_apic_id(2, 6)
    assert short.leaf(0x8000_001E) == SMALL_AMD.leaf(0x8000_001E)


@SMALL
def test_placing_a_cpu_again_forgets_the_first_place(cpuid: Cpuid) -> None:
    assert cpuid.with_apic_id(7, 200).with_apic_id(1, 2) == cpuid.with_apic_id(1, 2)


@pytest.mark.parametrize(("id", "cpus"), [(-1, 4), (4, 4), (0, 0)])
def test_an_id_that_no_cpu_has_is_refused(id: int, cpus: int) -> None:
    with pytest.raises(ConfigurationError, match=f"no APIC id {id} among {cpus}"):
        SMALL_AMD.with_apic_id(id, cpus)


# ---- the hypervisor's leaves ----


def test_pykvms_signature_takes_the_first_place_and_kvms_leaves_move() -> None:
    signed = SMALL_INTEL.without("hypervisor").with_signature()
    assert signed.hypervisor == SIGNATURE
    assert signed.has("hypervisor")
    assert signed.leaf(0x4000_0000).eax == 0x4000_0000
    assert signed.leaf(0x4000_0001) == CpuidEntry(0x4000_0001)
    assert signed.leaf(0x4000_0100) == CpuidEntry(0x4000_0100, eax=0x4000_0101, **KVM_LETTERS)
    assert signed.leaf(0x4000_0101).eax == 0b1001


def test_kvms_features_are_found_where_its_leaves_went() -> None:
    signed = SMALL_INTEL.with_signature()
    assert signed.has("kvm_clocksource2")
    masked = signed.without("kvm_clocksource2")
    assert masked.leaf(0x4000_0101).eax == 1
    assert masked.leaf(0x4000_0001).eax == 0
    assert any(row[0] == "0x40000101" and "kvm_clocksource" in row[-1] for row in masked.rows())


def test_a_signature_can_be_changed_again() -> None:
    twice = SMALL_INTEL.with_signature("first").with_signature("second one!!")
    assert twice.hypervisor == "second one!!"
    assert twice.leaf(0x4000_0100) == SMALL_INTEL.with_signature().leaf(0x4000_0100)


def test_signing_where_kvm_has_no_leaves_moves_nothing() -> None:
    signed = SMALL_AMD.with_signature("me")
    assert signed.hypervisor == "me"
    assert signed.leaf(0x4000_0100) == CpuidEntry(0x4000_0100)


@pytest.mark.parametrize("signature", ["", "thirteen char", "pykvm\n", "Grüße"])
def test_a_signature_that_does_not_fit_is_refused(signature: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 12 ASCII letters"):
        SMALL_INTEL.with_signature(signature)


@given(st.integers(1_000, 10_000_000), st.sampled_from([25_000, 24_000, 66_667, 100_000, 1_000_000]))
def test_both_leaves_tell_the_tscs_frequency(tsc_khz: int, apic_khz: int) -> None:
    timed = SMALL_INTEL.with_tsc_frequency(tsc_khz, apic_khz)
    exact = timed.leaf(0x4000_0010)
    assert (exact.eax, exact.ebx) == (tsc_khz, apic_khz)
    leaf = timed.leaf(0x15)
    assert leaf.ecx == apic_khz * 1000
    told = leaf.ecx * leaf.ebx / leaf.eax
    assert abs(told - tsc_khz * 1000) <= tsc_khz * 1000 * apic_khz / (1 << 32)
    assert leaf.ecx // 1000 * leaf.ebx < 1 << 32  # as Linux multiplies


def test_a_ratio_of_small_numbers_is_exact() -> None:
    leaf = SMALL_INTEL.with_tsc_frequency(2_500_000, 1_000_000).leaf(0x15)
    assert (leaf.eax, leaf.ebx, leaf.ecx) == (2, 5, 1_000_000_000)


def test_the_limits_reach_the_frequencies_and_are_never_lowered() -> None:
    timed = SMALL_AMD.with_tsc_frequency(2_500_000, 1_000_000)
    assert timed.leaf(0).eax == 0x15
    assert timed.leaf(0x4000_0000).eax == 0x4000_0010
    assert [timed.leaf(function) for function in range(0x11, 0x15)] == [CpuidEntry(n) for n in range(0x11, 0x15)]
    assert SMALL_INTEL.with_tsc_frequency(2_500_000, 1_000_000).leaf(0).eax == 0x16


def test_signature_and_frequency_go_together_in_any_order() -> None:
    one = SMALL_INTEL.with_signature().with_tsc_frequency(2_500_000, 1_000_000)
    other = SMALL_INTEL.with_tsc_frequency(2_500_000, 1_000_000).with_signature()
    assert one == other
    assert one.leaf(0x4000_0000).eax == 0x4000_0010


@pytest.mark.parametrize(("tsc_khz", "apic_khz"), [(0, 1), (1, 0), (-5, 1), (1 << 32, 1), (1, 4_294_968)])
def test_an_impossible_frequency_is_refused(tsc_khz: int, apic_khz: int) -> None:
    with pytest.raises(ConfigurationError, match="frequency is 1 to"):
        SMALL_INTEL.with_tsc_frequency(tsc_khz, apic_khz)


# ---- for people ----


@given(cpuids())
def test_a_row_has_the_numbers_of_its_entry_and_every_feature_by_name(cpuid: Cpuid) -> None:
    rows = cpuid.rows()
    assert len(rows) == len(cpuid.entries)
    for entry, row in zip(sorted(cpuid.entries, key=lambda e: (e.function, e.index)), rows, strict=True):
        assert int(row[0], 16) == entry.function
        assert row[1] == (str(entry.index) if entry.flags else "")
        assert tuple(int(cell, 16) for cell in row[2:6]) == (entry.eax, entry.ebx, entry.ecx, entry.edx)
        assert set(feature_names(entry)) <= set(row[6].replace(";", "").split())
        assert "\n" not in row[6]


@SMALL
def test_the_rows_of_a_placed_and_timed_cpu_say_so_in_words(cpuid: Cpuid) -> None:
    full = cpuid.with_apic_id(1, 2).with_tsc_frequency(2_500_000, 1_000_000).with_signature()
    text = "\n".join(row[-1] for row in full.rows())
    for words in (
        f"{cpuid.vendor}, leaves up to 0x1",
        f"family {cpuid.family} model {cpuid.model} stepping {cpuid.stepping}, APIC id 1, 2 CPUs, CLFLUSH 64 bytes",
        "L1 data 32 KiB, 8-way, lines of 64 bytes, for 1 CPU",
        "KiB, 16-way, lines of 64 bytes, for 2 CPUs",
        "thread level, 1 CPU, ids shift by 0, x2APIC id 1",
        "core level, 2 CPUs, ids shift by 1, x2APIC id 1",
        "TSC = crystal * 5 / 2, crystal 1000000000 Hz: TSC 2500000000 Hz",
        "pykvmpykvm, leaves up to 0x40000010",
        "TSC 2500000 kHz, APIC timer 1000000 kHz",
        "physical addresses 48 bits, linear 48 bits",
    ):
        assert words in text


def test_state_components_are_named_with_their_place() -> None:
    leaf_d = Cpuid(
        [
            CpuidEntry(0xD, 0, SIGNIFICANT_INDEX, eax=7, ebx=832, ecx=832),
            CpuidEntry(0xD, 1, SIGNIFICANT_INDEX, eax=2, ebx=576),
            CpuidEntry(0xD, 2, SIGNIFICANT_INDEX, eax=256, ebx=576),
        ]
    )
    assert [row[-1] for row in leaf_d.rows()] == [
        "XCR0 may be 0x7, XSAVE area 832 bytes now, 832 at most",
        "compacted area 576 bytes, IA32_XSS may be 0x0; xsavec",
        "AVX: 256 bytes at 576",
    ]


def test_a_difference_reads_as_what_came_and_went() -> None:
    changes = SMALL_INTEL.difference(SMALL_INTEL.without("x2apic").with_("sse4.2").override(0x7, ebx=0))
    assert [str(change) for change in changes] == [
        "0x1 ecx 0x80200001 -> 0x80100001: -x2apic +sse4_2",
        "0x7.0 ebx 0x00000001 -> 0x00000000: -fsgsbase",
    ]
    [change] = SMALL_INTEL.difference(SMALL_INTEL.override(0x16, eax=2500))
    assert str(change) == "0x16 eax 0x00000000 -> 0x000009c4"
