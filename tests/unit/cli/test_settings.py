"""What ``pykvm run``'s options mean, before there is a machine: Settings and the values they take."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.boot import BundledGuest, Image, Platform, bundled_guests, flat_image
from pykvm.cli.arguments import Target
from pykvm.cli.main import main, make_parser
from pykvm.cli.settings import Settings, msr_value, seconds
from pykvm.errors import ConfigurationError
from pykvm.x86 import CpuState

HLT = b"\xf4"


def options(*arguments: str) -> argparse.Namespace:
    return make_parser().parse_args(["run", "guest.bin", *arguments])


def bundled(**settings: object) -> BundledGuest:
    """Return a bundled guest that asks for ``settings``."""
    return replace(bundled_guests()[0], **({"memory": "2M", "ring": 0} | settings))  # type: ignore[arg-type]


def target(guest: BundledGuest) -> Target:
    return Target(flat_image(HLT), guest)


TARGET = Target(flat_image(HLT))


# ---- Settings ----


def test_a_file_gets_the_defaults() -> None:
    assert Settings.choose(options(), TARGET) == Settings()
    assert Settings() == Settings("16M", 0, "none", 1, (), "", ())


def test_a_bundled_guest_gets_what_it_asks_for() -> None:
    guest = bundled(memory="4M", ring=3, irqchip="kernel", cpus=2, devices=("testdev",), keys="a", msrs=((0x10, 1),))
    assert Settings.choose(options(), target(guest)) == Settings("4M", 3, "kernel", 2, ("testdev",), "a", ((0x10, 1),))


class Protocol:
    name, irqchip, memory, rom = "a protocol", "kernel", "64M", b""

    def start(self, image: Image, platform: Platform) -> CpuState:
        raise AssertionError("nobody starts it")


def test_a_kernel_gets_what_its_boot_protocol_wants() -> None:
    kernel = Target(replace(flat_image(HLT), protocol=Protocol()))
    assert Settings.choose(options(), kernel) == Settings("64M", irqchip="kernel")
    assert Settings.choose(options("--memory", "1M", "--irqchip", "none"), kernel) == Settings(1 << 20)


def test_an_option_wins_over_what_the_guest_asks_for() -> None:
    guest = bundled(memory="4M", ring=3, irqchip="kernel", cpus=2, devices=("testdev",), keys="a", msrs=((0x10, 1),))
    given = ["--memory", "8M", "--ring", "0", "--irqchip", "none", "--cpus", "1"]
    given += ["--device", "doorbell", "--keys", "", "--msr", "0x20=2"]
    chosen = Settings.choose(options(*given), target(guest))
    assert chosen == Settings(8 << 20, 0, "none", 1, ["doorbell"], "", [(0x20, 2)])  # type: ignore[arg-type]


def test_options_that_are_not_given_leave_the_guests_own_alone() -> None:
    chosen = Settings.choose(options("--cpus", "3"), target(bundled(irqchip="split", cpus=2)))
    assert (chosen.cpus, chosen.irqchip, chosen.memory) == (3, "split", "2M")


def test_devices_and_msrs_can_be_given_again_and_again() -> None:
    given = options("--device", "testdev", "--device", "doorbell", "--msr", "0x1=1", "--msr", "0x2=2")
    chosen = Settings.choose(given, TARGET)
    assert list(chosen.devices) == ["testdev", "doorbell"]
    assert list(chosen.msrs) == [(1, 1), (2, 2)]


# ---- MSR=VALUE ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x1234=42", (0x1234, 42)),
        ("4660=0x2a", (0x1234, 42)),
        ("IA32_PAT=0", (0x277, 0)),
        ("ia32_pat=1", (0x277, 1)),
        ("IA32_TSC=0xffffffffffffffff", (0x10, (1 << 64) - 1)),
        ("1=0b101", (1, 5)),
    ],
)
def test_an_msr_and_its_value_are_numbers_or_a_name(text: str, expected: tuple[int, int]) -> None:
    assert msr_value(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "MSR"),
        ("=", "MSR"),
        ("0x1234", "write MSR=VALUE, such as 0x1234=42"),
        ("0x1234=", "write MSR=VALUE"),
        ("0x1234=many", "write MSR=VALUE"),
        ("0x1234=1=2", "write MSR=VALUE"),
        ("IA32_TCS=1", "did you mean .*IA32_TSC"),
        ("0x1=-1", "a value has 64 bits"),
        ("0x1=0x10000000000000000", "a value has 64 bits"),
    ],
)
def test_what_sets_no_msr_is_explained(text: str, why: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=why) as refused:
        msr_value(text)
    assert str(refused.value).startswith(f"{text!r} sets no MSR: ")


@given(st.text(max_size=12))
def test_any_text_is_an_msr_or_explained(text: str) -> None:
    try:
        index, value = msr_value(text)
    except argparse.ArgumentTypeError:
        return
    assert 0 <= index < 1 << 32
    assert 0 <= value < 1 << 64


# ---- time limits ----


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e999"])
def test_what_is_no_time_limit_is_explained(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a time limit: write seconds above 0"):
        seconds(text)


# ---- wrong use that is found before there is a machine ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--irqchip", "apic"], "--irqchip: invalid choice: 'apic' (choose from"),
        (["--cpus", "two"], "--cpus: 'two' is not a count: write a number above 0"),
        (["--cpus", "0"], "--cpus: '0' is not a count"),
        (["--msr", "0x10"], "--msr: '0x10' sets no MSR"),
        (["--screenshot", "missing/screen.png"], "there is no folder missing"),
        (["--screenshot", "."], "it is a folder"),
        (["--screenshot", ""], "it is a folder"),
        (["--screenshot", "x" * 300 + ".png"], "name too long"),
    ],
)
def test_a_wrong_value_is_refused_in_one_message(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("PIL", reason="a screenshot needs Pillow")
    monkeypatch.chdir(tmp_path)
    Path("guest.bin").write_bytes(HLT)
    try:
        status = main(["run", "guest.bin", *arguments])
    except SystemExit as end:
        status = int(str(end.code))
    output = capsys.readouterr()
    assert (status, output.out) == (2, "")
    assert words.lower() in output.err.lower()
    assert "Traceback" not in output.err


def test_the_help_says_what_each_option_is_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "(default: none, or what a bundled guest asks for)",
        "how many CPUs (default: 1)",
        "testdev or doorbell",
    ):
        assert words in text


def test_the_errors_of_a_wrong_setting_are_those_of_the_library() -> None:
    with pytest.raises(ConfigurationError):
        Settings(keys="no-such-key").apply(None)  # type: ignore[arg-type]
