"""From words to an explanation: kinds, bare names, and what to say if there is none."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.observe.explaining import KINDS, explain, format_explanation


@pytest.mark.parametrize(
    ("bare", "whole"),
    [
        ("KVM_EXIT_MMIO", "exit 6"),
        ("kvm_exit_mmio", "exit 6"),
        ("shutdown", "exit 8"),
        ("KVM_SET_SREGS", "ioctl KVM_SET_SREGS"),
        ("set_sregs", "ioctl KVM_SET_SREGS"),
        ("KVM_INTERNAL_ERROR_EMULATION", "internal-error 1"),
        ("KVM_CAP_IRQFD", "cap KVM_CAP_IRQFD"),
        ("EINVAL", "errno 22"),
        ("KVM_SET_SREGS EINVAL", "errno EINVAL KVM_SET_SREGS"),
        ("EINVAL KVM_SET_SREGS", "errno EINVAL KVM_SET_SREGS"),
        ("#PF", "exception 14"),
        ("GP", "exception 13"),
        ("#PF 0x2", "error-code pf 0x2"),
        ("IA32_LSTAR", "msr 0xc0000082"),
        ("IA32_EFER 0x500", "msr 0xc0000080 0x500"),
        ("sse4_2", "cpuid sse4_2"),
        ("efer 0x500", "EFER 0x500"),
        ("eflags 0x202", "rflags 0x202"),
        ("internal_error 1", "internal-error 1"),
        ("errno -22", "errno EINVAL"),
    ],
)
def test_a_name_of_one_kind_needs_no_kind(bare: str, whole: str) -> None:
    assert explain(bare.split()) == explain(whole.split())


def test_an_errno_of_an_ioctl_says_what_that_ioctl_minds() -> None:
    assert "EFER.LMA" in explain(["errno", "EINVAL", "KVM_SET_SREGS"]).what
    assert "overlaps another slot" in explain(["errno", "EEXIST", "KVM_SET_USER_MEMORY_REGION"]).what
    assert "no special meaning" in explain(["errno", "ENOTTY", "KVM_RUN"]).what


def test_an_errno_alone_names_the_ioctls_that_give_it() -> None:
    assert "KVM_INTERRUPT" in explain(["errno", "ENXIO"]).when


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ("0x3f8", ["pykvm explain port 0x3f8", "pykvm explain address 0x3f8", "cr4"]),
        ("8", ["pykvm explain exit 8", "pykvm explain exception 8"]),
        ("NMI", ["pykvm explain exit NMI", "pykvm explain ioctl NMI", "pykvm explain exception NMI"]),
    ],
)
def test_what_may_be_several_things_is_asked_back(words: str, choices: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        explain(words.split())
    for choice in choices:
        assert choice in str(caught.value)


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("exti 8", "exit"),
        ("exit KVM_EXIT_MIMO", "KVM_EXIT_MMIO"),
        ("exit mmoi", "KVM_EXIT_MMIO"),
        ("KVM_EXIT_SHUTDWON", "KVM_EXIT_SHUTDOWN"),
        ("ioctl KVM_SET_SREG", "KVM_SET_SREGS"),
        ("KVM_SET_SREG", "KVM_SET_SREGS"),
        ("errno EINVALL", "EINVAL"),
        ("errno EINVAL KVM_RNU", "KVM_RUN"),
        ("cap IRQCHP", "KVM_CAP_IRQCHIP"),
        ("msr IA32_EFFR", "IA32_EFER"),
        ("cpuid x2apci", "x2apic"),
        ("cr4 OSFXRS", "OSFXSR"),
        ("internal-error emulatoin", "KVM_INTERNAL_ERROR_EMULATION"),
        ("rflag", "rflags"),
    ],
)
def test_what_is_mistyped_gets_the_nearest(words: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError, match="did you mean") as caught:
        explain(words.split())
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give what to explain"),
        ("exit 8 9", "give one exit"),
        ("exit 0x1_", "not an exit's number"),
        ("exit 99999999999", "32 bits"),
        ("port 0x10000", "16 bits"),
        ("port", "give one I/O port"),
        ("cr4 0x10000000000000000", "64 bits"),
        ("cr4 0x20 0x40", "give one value"),
        ("pte", "give an entry"),
        ("pte 0x1 0x2 0x3 0x4", "give an entry"),
        ("pte 0x1 pdpt 32-bit", "has no pdpt"),
        ("pte 0x100000001 pd 32-bit", "32 bits"),
        ("pte 0x1 pmd", "level or mode"),
        ("descriptor 1 2 3", "give a descriptor"),
        ("descriptor x", "not a descriptor"),
        ("fail-entry", "hardware_entry_failure_reason"),
        ("error-code", "pf 0x2"),
        ("error-code pf", "pf 0x2"),
        ("error-code ud 1", "has no error code"),
        ("error-code 3 1", "those that have one"),
        ("exception 256", "0 to 255"),
        ("status 256", "0 to 255"),
        ("status", "give one exit status"),
        ("msr IA32_PAT 0x7", "not known here"),
        ("msr 0x100000000", "32 bits"),
        ("cpuid 0x100000000", "32 bits"),
        ("errno 9999", "errno of KVM"),
        ("0x20 cr4", "before its kind"),
        ("gibberish", "no topic"),
    ],
)
def test_bad_words_get_one_clear_error(words: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        explain(words.split())
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.names], ids=lambda kind: kind.name)
def test_a_kind_with_names_lists_them(kind: object) -> None:
    names = kind.known_names()  # type: ignore[attr-defined]
    assert names
    assert all(name in explain([kind.name]).what for name in names)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.names], ids=lambda kind: kind.name)
def test_every_listed_name_is_explained(kind: object) -> None:
    for name in kind.known_names():  # type: ignore[attr-defined]
        assert explain([kind.name, name]).known, name  # type: ignore[attr-defined]


@given(words=st.lists(st.text(max_size=30), max_size=4))
@example(words=["\0"])
@example(words=["9" * 5000])
@example(words=["exit", "0x" + "f" * 5000])
@example(words=["A" * 10_000])
def test_any_text_is_explained_or_refused(words: list[str]) -> None:
    try:
        assert format_explanation(explain(words))
    except ConfigurationError as error:
        assert 0 < len(str(error)) < 5000


@given(kind=st.sampled_from(KINDS), words=st.lists(st.text(max_size=20), max_size=3))
def test_any_text_after_a_kind_is_explained_or_refused(kind: object, words: list[str]) -> None:
    try:
        assert format_explanation(explain([kind.name, *words]))  # type: ignore[attr-defined]
    except ConfigurationError as error:
        assert str(error)
