"""``pykvm cpuid`` shows every leaf, numbers or words, and what masking changes."""

from __future__ import annotations

import pytest

from pykvm.cli.main import main
from pykvm.errors import KvmUnavailableError
from pykvm.kvm import Kvm
from pykvm.kvm.structs import CpuidEntry
from pykvm.x86.cpuid import SIGNIFICANT_INDEX, Cpuid

OFFERED = Cpuid(
    [
        CpuidEntry(0x0, eax=0x7, ebx=0x6874_7541, edx=0x6974_6E65, ecx=0x444D_4163),
        CpuidEntry(0x7, 0, SIGNIFICANT_INDEX, eax=1, ebx=0x81),
        CpuidEntry(0x7, 1, SIGNIFICANT_INDEX),
        CpuidEntry(0x1, eax=0x00A0_0F11, ebx=0x0102_0800, ecx=0x0020_0000),
        CpuidEntry(0x2),
    ]
)


@pytest.fixture(autouse=True)
def _without_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.cli.cpuid._ask_kvm", lambda: OFFERED)


def output_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["cpuid", *arguments]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out.splitlines()


def complaint_about(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        status = main(["cpuid", *arguments])
    except SystemExit as error:
        assert isinstance(error.code, int)
        status = error.code
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    return output.err


def test_the_table_has_a_line_a_leaf_in_words_and_leaves_zeros_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of(capsys=capsys) == [
        "leaf  sub  eax       ebx       ecx       edx       meaning",
        "0x0        00000007  68747541  444d4163  69746e65  AuthenticAMD, leaves up to 0x7",
        "0x1        00a00f11  01020800  00200000  00000000  family 25 model 1 stepping 1, APIC id 1, 2 CPUs, "
        "CLFLUSH 64 bytes; x2apic",
        "0x7   0    00000001  00000081  00000000  00000000  fsgsbase smep",
        "2 more are all zeros: --raw shows them",
    ]


@pytest.mark.parametrize("number", ["7", "0x7"])
def test_one_leaf_is_shown_with_all_its_subleaves(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of("--leaf", number, capsys=capsys) == [
        "leaf  sub  eax       ebx       ecx       edx       meaning",
        "0x7   0    00000001  00000081  00000000  00000000  fsgsbase smep",
        "0x7   1    00000000  00000000  00000000  00000000",
    ]


def test_raw_is_numbers_of_the_same_width_one_line_a_subleaf(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of("--raw", capsys=capsys) == [
        "0x00000000 0x00: eax=0x00000007 ebx=0x68747541 ecx=0x444d4163 edx=0x69746e65",
        "0x00000001 0x00: eax=0x00a00f11 ebx=0x01020800 ecx=0x00200000 edx=0x00000000",
        "0x00000002 0x00: eax=0x00000000 ebx=0x00000000 ecx=0x00000000 edx=0x00000000",
        "0x00000007 0x00: eax=0x00000001 ebx=0x00000081 ecx=0x00000000 edx=0x00000000",
        "0x00000007 0x01: eax=0x00000000 ebx=0x00000000 ecx=0x00000000 edx=0x00000000",
    ]


def test_masking_and_adding_show_what_changes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output_of("--mask", "x2apic", "--mask", "smep", "--add", "SSE4.2", "--leaf", "1", capsys=capsys)
    assert lines[1].endswith("sse4_2")
    assert lines[2:] == [
        "",
        "changes",
        "  0x1 ecx 0x00200000 -> 0x00100000: -x2apic +sse4_2",
        "  0x7.0 ebx 0x00000081 -> 0x00000001: -smep",
    ]


def test_masking_what_is_not_there_is_said_to_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of("--mask", "rdrand", capsys=capsys)[-1] == "changes: none, KVM offers it that way already"


def test_raw_shows_the_numbers_after_masking_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert output_of("--raw", "--leaf", "7", "--mask", "smep", capsys=capsys) == [
        "0x00000007 0x00: eax=0x00000001 ebx=0x00000001 ecx=0x00000000 edx=0x00000000",
        "0x00000007 0x01: eax=0x00000000 ebx=0x00000000 ecx=0x00000000 edx=0x00000000",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mask", "x2apc"), "--mask: CPUID has no feature 'x2apc': did you mean x2apic"),
        (("--add", ""), "--add: CPUID has no feature ''"),
        (("--mask", "smep", "--add", "SMEP"), "smep cannot be masked and added at once"),
        (("--leaf", "seven"), "--leaf: 'seven' is not a leaf: write 7 or 0x80000001"),
        (("--leaf", "0x100000000"), "they have 32 bits"),
        (("--leaf=-1",), "they have 32 bits"),
        (("--leaf", "0x99"), "KVM offers no leaf 0x99 here"),
        (("7",), "unrecognized arguments: 7"),
    ],
)
def test_wrong_use_ends_with_status_2_and_one_message(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = complaint_about(*arguments, capsys=capsys)
    assert message.startswith("pykvm: ")
    assert words in message
    assert "Traceback" not in message


def test_without_kvm_the_status_is_69(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Kvm:
        raise KvmUnavailableError("there is no /dev/kvm", "load the module")

    monkeypatch.undo()
    monkeypatch.setattr(Kvm, "open", refuse)
    assert main(["cpuid"]) == 69
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == ["pykvm: KVM cannot be used here: there is no /dev/kvm", "  load the module"]
