"""Wrong use ends with status 2 and a host without KVM with 69, each with one clear message on stderr."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path

import pytest

from pykvm.cli.main import main
from pykvm.errors import KvmError, KvmUnavailableError
from pykvm.kvm import Kvm
from pykvm.kvm.system import why_unavailable

HLT = b"\xf4"
ELF_HEADER = 64  # bytes, in ELF64
E_MACHINE = 18  # offset
AARCH64 = 183


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a guest in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halt.bin").write_bytes(HLT)
    return tmp_path


def refuse(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that is wrong use; return the one message on stderr, without its first word."""
    try:
        status = main(arguments)
    except SystemExit as error:
        assert isinstance(error.code, int)
        status = error.code
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert output.err.startswith("pykvm: ")
    assert "Traceback" not in output.err
    return output.err.removeprefix("pykvm: ")


@pytest.mark.parametrize("command", ["run", "disasm"])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nosuch.bin", "nosuch.bin: there is no such file, and no bundled guest of that name"),
        ("helo", "did you mean 09-hello?"),
        ("./nosuch.bin", "./nosuch.bin: there is no such file"),
        ("", "TARGET is empty"),
        ("x" * 3000, "there is no such file"),
        ("a\x1b[31m\n", r"a\x1b[31m\n: there is no such file"),
        ("/dev/zero", "/dev/zero: is a device"),
    ],
)
def test_a_target_that_is_no_guest_is_named(
    command: str, target: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refuse(command, target, capsys=capsys)
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "disasm"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "is empty"),
        ("3 GiB", "has more than 256 MiB"),
        ("directory", "is a directory"),
        ("FIFO", "is a FIFO"),
        ("socket", "is a socket"),
        ("C", "is C: compile and link it first"),
        ("another machine", "is an ELF64 file for AArch64"),
        ("cut off", "is truncated"),
    ],
)
def test_a_file_that_is_no_guest_is_explained(
    command: str, kind: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = make_file(kind)
    message = refuse(command, name, capsys=capsys)
    assert message.startswith(f"{name}: {words}")
    assert message.count("\n") == 1


def make_file(kind: str) -> str:
    """Make what ``kind`` says in the current directory, and return its name."""
    path = Path("it.c" if kind == "C" else "it.bin")
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + (2).to_bytes(2, "little") + (62).to_bytes(2, "little")
    match kind:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "3 GiB":
            path.touch()
            os.truncate(path, 3 << 30)
        case "C":
            path.write_text("int main(void) { return 0; }\n")
        case "another machine":
            foreign = bytearray(header.ljust(ELF_HEADER, b"\0"))
            foreign[E_MACHINE : E_MACHINE + 2] = AARCH64.to_bytes(2, "little")
            path.write_bytes(foreign)
        case "cut off":
            path.write_bytes(header)
        case _:
            path.touch()
    return str(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--load", "nonsense"], "--load: 'nonsense' is not an address"),
        (["--load", "-1"], "--load: '-1' is below 0"),
        (["--load", "0x10000000000000000"], "outside the 52-bit physical address space"),
        (["--entry", "0xzz"], "--entry: '0xzz' is not an address"),
        (["--entry", "nosuch"], "there is no symbol 'nosuch'"),
        (["--entry", "0x9000"], "the entry 0x9000 is in none of its segments"),
        (["--memory", "nonsense"], "--memory: 'nonsense' is not a size"),
        (["--memory", ""], "--memory: '' is not a size"),
        (["--memory", "-5"], "--memory: '-5' is not a size"),
        (["--memory", "0"], "holds nothing"),
        (["--memory", "4097"], "not a multiple of the page size"),
        (["--memory", "999999999G"], "ram"),
        (["--timeout", "0"], "--timeout: '0' is not a time limit"),
        (["--timeout", "-1"], "--timeout: '-1' is not a time limit"),
        (["--timeout", "nan"], "--timeout: 'nan' is not a time limit"),
        (["--timeout", "inf"], "--timeout: 'inf' is not a time limit"),
        (["--timeout", "soon"], "--timeout: 'soon' is not a time limit"),
        (["--mode", "quantum"], "--mode: invalid choice: 'quantum'"),
        (["--ring", "1"], "--ring: invalid choice: 1"),
        (["--frob"], "unrecognized arguments: --frob"),
        (["another.bin"], "unrecognized arguments: another.bin"),
    ],
)
def test_a_wrong_option_of_run_is_explained(
    options: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refuse("run", "halt.bin", *options, capsys=capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frob"], "'frob'"),
        (["run"], "the following arguments are required: TARGET"),
        (["disasm", "hello", "--count", "0"], "--count: '0' is not a count"),
        (["disasm", "hello", "--count", "-1"], "--count: '-1' is not a count"),
        (["disasm", "hello", "--bits", "8"], "--bits: invalid choice: 8"),
        (["run", "hello", "--load", "0x200000"], "09-hello: is linked for its address"),
        (
            ["run", "hello", "--entry", "strat"],
            "09-hello: there is no symbol 'strat' to start at; did you mean _start?",
        ),
        (["doctor", "--device", ""], "--device: '' is no device's path"),
        (["doctor", "--device", "\udcff"], "is no device's path"),
        (["doctor", "--device", "/dev/null", "--probe"], "leave --device out"),
        (["guests", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refuse(*arguments, capsys=capsys)


def test_a_wrong_option_points_to_the_help_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert refuse("disasm", "hello", "--bits", "8", capsys=capsys).endswith("see pykvm disasm --help\n")


def test_an_assemblers_error_is_shown_in_its_words_with_file_and_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sub").mkdir()
    Path("sub/bad.S").write_text(".code16\nmov $1, %al\nfrobnicate %eax\n")
    message = refuse("run", "sub/bad.S", capsys=capsys)
    assert re.match(r"sub/bad\.S:3: Error: .*frobnicate", message)


def test_an_assemblers_warning_is_shown_and_the_guest_is_taken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("odd.S").write_text(".code64\nmovb $300, %al\nhlt\n")
    assert main(["disasm", "odd.S"]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("pykvm: odd.S:2: Warning: ")
    assert "hlt" in output.out


def test_a_bundled_guest_goes_before_a_file_of_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hello").write_bytes(HLT)
    assert main(["disasm", "hello", "--count", "1"]) == 0
    output = capsys.readouterr()
    assert "_start" in output.out
    assert "./hello is the file" in output.err


def test_every_bundled_guest_has_three_names(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for name in ("09-hello", "hello", "09"):
        assert main(["disasm", name]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]


# ---- a host without KVM ----


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (errno.EACCES, "/dev/kvm may not be opened: permission denied for", "sudo "),
        (errno.ENOENT, "/dev/kvm does not exist", "sudo modprobe"),
        (errno.ENODEV, "/dev/kvm exists, but no KVM is behind it", "sudo modprobe"),
    ],
)
def test_a_host_without_kvm_is_explained_and_mended(
    error: int,
    reason: str,
    remedy: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse_to_open(path: str = "/dev/kvm", log: object = None) -> Kvm:
        raise why_unavailable(path, error)

    monkeypatch.setattr(Kvm, "open", refuse_to_open)
    assert main(["run", "halt.bin"]) == 69
    output = capsys.readouterr()
    assert output.out == ""
    first, second = output.err.splitlines()
    assert first.startswith(f"pykvm: KVM cannot be used here: {reason}")
    assert second.strip().startswith(("load KVM", "sudo"))
    assert remedy in second


def test_a_kvm_that_refuses_is_quoted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_to_open(path: str = "/dev/kvm", log: object = None) -> Kvm:
        raise KvmError("KVM_CREATE_VM", errno.EBUSY, "type=0")

    monkeypatch.setattr(Kvm, "open", refuse_to_open)
    assert main(["run", "halt.bin"]) == 69
    assert capsys.readouterr().err.startswith("pykvm: KVM refused: KVM_CREATE_VM(type=0): EBUSY: ")


@pytest.mark.parametrize("device", ["nosuch", "/dev/null", "/"])
def test_the_doctor_says_why_a_device_cannot_be_used(
    device: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--device", device]) == 69
    output = capsys.readouterr()
    assert output.out.startswith(device)
    assert output.out.endswith("not ready.\n")
    assert output.err == ""


def test_the_doctor_gives_the_command_that_mends_a_permission(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_to_open(path: str) -> Kvm:
        raise KvmUnavailableError(f"{path} may not be opened", "sudo chmod a+rw /dev/kvm")

    monkeypatch.setattr(Kvm, "open", refuse_to_open)
    assert main(["doctor"]) == 69
    assert capsys.readouterr().out.splitlines() == [
        "/dev/kvm may not be opened",
        "  sudo chmod a+rw /dev/kvm",
        "not ready.",
    ]


# ---- help ----


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"pykvm \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "command", [[], ["run"], ["replay"], ["guests"], ["doctor"], ["cpuid"], ["disasm"]], ids=" ".join
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(" ".join(["usage: pykvm", *command]))


def test_the_help_states_every_status_of_the_design(capsys: pytest.CaptureFixture[str]) -> None:
    design = (Path(__file__).parent.parent.parent.parent / "docs" / "design.md").read_text()
    contract = design.partition("## Contract of the command line")[2]
    promised = set(re.findall(r"^\| (\d+) \|", contract, re.MULTILINE))
    with pytest.raises(SystemExit):
        main(["--help"])
    stated = set(re.findall(r"^  (\d+) ", capsys.readouterr().out, re.MULTILINE))
    assert stated == promised
    assert {"0", "2", "69", "124", "125", "130"} <= promised
