"""Assembling and compiling: modes, addresses, includes, and the tools' own words about mistakes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pykvm.boot.assembler import AssemblerWarning, build_directory, build_source, build_text, mode_of
from pykvm.boot.bundle import build_all, bundled_guests
from pykvm.boot.detection import assemble
from pykvm.boot.elf import elf_image
from pykvm.errors import AssemblerError, ConfigurationError, ImageError
from pykvm.x86 import Mode

ROOT = Path(__file__).parents[3]


def code(source: str | Path, *, mode: str | None = None, load: int | None = None) -> bytes:
    return assemble(source, mode=mode, load=load).segments[0].data


# ---- modes and addresses ----


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("nop", "long"),
        (".code16\nnop", "real"),
        ("nop; .code16gcc", "real"),
        ("start: .code32\n.code64", "protected"),
        ("\t.code64 # after .code16", "long"),
        ("# .code16\n/* \n.code16 */ .code32\n.code64", "long"),
        ('.ascii "\\";.code16"\n .code32', "protected"),
        ("mov $x.code16, %eax", "long"),
        ("", "long"),
    ],
)
def test_the_first_code_directive_names_the_mode(text: str, mode: str) -> None:
    assert mode_of(text) == mode


@pytest.mark.parametrize(
    ("mode", "bytes_of_mov"),
    [
        (Mode.REAL, "b80100"),
        (Mode.PROTECTED, "66b80100"),
        (Mode.PAGED, "66b80100"),
        (Mode.PAE, "66b80100"),
        (Mode.LONG, "66b80100"),
    ],
)
def test_a_given_mode_sets_the_code_width_where_the_source_does_not(mode: Mode, bytes_of_mov: str) -> None:
    image = assemble("mov $1, %ax", mode=mode)
    assert (image.mode, image.segments[0].data.hex()) == (mode, bytes_of_mov)


def test_the_sources_own_width_wins_over_the_modes() -> None:
    assert code(".code32\nmov $1, %ax", mode="real").hex() == "66b80100"


def test_real_mode_code_goes_to_0x8000_and_other_code_to_one_megabyte() -> None:
    assert assemble(".code16\nhlt").entry == 0x8000
    assert assemble(".code32\nhlt").entry == 0x10_0000
    assert assemble("hlt").entry == 0x10_0000


def test_code_is_linked_for_its_load_address() -> None:
    assert code(".code16\nx: .word x", load=0x7C00) == b"\x00\x7c"


def test_sections_follow_each_other_without_gaps() -> None:
    image = assemble(".code16\nnop\n.data\nx: .byte 1\n.bss\n.skip 9\n.section .rodata\n.byte 2")
    assert [(segment.gpa, segment.data, segment.memory_size) for segment in image.segments] == [
        (0x8000, b"\x90\x02", 2),
        (0x8002, b"\x01", 10),
    ]


def test_a_boot_sector_is_512_bytes_and_nothing_more() -> None:
    image = assemble(".code16\nhlt\n.org 510\n.word 0xaa55", load=0x7C00)
    assert [(segment.gpa, len(segment.data)) for segment in image.segments] == [(0x7C00, 512)]


def test_the_entry_is_start_even_if_it_is_a_local_label() -> None:
    assert assemble("data: .quad 0\n_start: hlt").entry == 0x10_0008
    assert assemble("data: .quad 0\n.globl _start\n_start: hlt").entry == 0x10_0008
    assert assemble("data: .quad 0\nother: hlt").entry == 0x10_0000
    assert assemble("data: .quad 0\n_start: hlt\nother: hlt", entry="other").entry == 0x10_0009


def test_a_real_mode_source_may_climb_to_64_bits() -> None:
    image = assemble(".code16\nnop\n.code64\nmovabs $x, %rax\nmov x, %al\nx: hlt")
    assert (image.mode, image.format) == (Mode.REAL, "ELF64")


def test_symbols_come_along() -> None:
    image = assemble("_start: nop\nloop: jmp loop")
    assert image.symbol_at(0x10_0002) == "loop+0x1"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'longish'"):
        assemble("hlt", mode="longish")


# ---- files ----


def test_a_source_finds_its_includes_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guest").mkdir()
    (tmp_path / "port.inc").write_text('.error "the wrong one"\n')
    (tmp_path / "guest" / "port.inc").write_text(".set PORT, 0xf4\n")
    (tmp_path / "guest" / "blob.bin").write_bytes(b"blob")
    (tmp_path / "guest" / "-odd name.S").write_text('.include "port.inc"\nout %al, $PORT\n.incbin "blob.bin"\n')
    monkeypatch.chdir(tmp_path)
    assert code(Path("guest/-odd name.S")) == b"\xe6\xf4blob"


def test_other_folders_are_searched_after_it(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "port.inc").write_text(".set PORT, 0xe9\n")
    source = tmp_path / "guest.S"
    source.write_text('.include "port.inc"\nout %al, $PORT\n')
    assert assemble(source, include=[tmp_path / "lib"]).segments[0].data == b"\xe6\xe9"
    with pytest.raises(AssemblerError, match=r"guest\.S:1: .*port\.inc"):
        assemble(source)


def test_every_guest_and_probe_of_the_repository_can_be_assembled(tmp_path: Path) -> None:
    build_all(ROOT / "guests", tmp_path / "out")
    guests = bundled_guests(tmp_path / "out")
    images = [elf_image(guest.image.read_bytes()) for guest in guests]
    assert [image.entry for image, guest in zip(images, guests, strict=True) if guest.mode == "real"] == [0x8000] * 6
    assert list((tmp_path / "out" / "probes").glob("*.elf"))


def test_a_built_guest_does_not_name_the_folder_it_was_built_in(tmp_path: Path) -> None:
    folder = tmp_path / "14-kernel"
    folder.mkdir()
    (folder / "start.S").write_text(".globl _start\n_start: call kernel\nhlt\n")
    (folder / "kernel.c").write_text("int kernel(void);\nint kernel(void) { return 42; }\n")
    build_directory(folder, tmp_path / "guest.elf", mode="long")
    data = (tmp_path / "guest.elf").read_bytes()
    assert str(tmp_path).encode() not in data
    assert {"_start", "kernel"} <= {symbol.name for symbol in elf_image(data).symbols}


def test_a_folders_linker_script_decides_where_things_go(tmp_path: Path) -> None:
    (tmp_path / "start.S").write_text("hlt\n")
    (tmp_path / "guest.ld").write_text("SECTIONS { . = 0x200000; .text : { *(.text) } }\n")
    build_directory(tmp_path, tmp_path / "guest.elf", mode="protected")
    assert elf_image((tmp_path / "guest.elf").read_bytes()).entry == 0x20_0000
    with pytest.raises(AssemblerError, match=r"guest\.ld says where"):
        build_directory(tmp_path, tmp_path / "guest.elf", mode="protected", load=0x1000)
    (tmp_path / "other.ld").touch()
    with pytest.raises(AssemblerError, match="2 linker scripts"):
        build_directory(tmp_path, tmp_path / "guest.elf", mode="protected")


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssemblerError, match=r"has no sources \(\*\.S"):
        build_directory(tmp_path, tmp_path / "guest.elf", mode="long")


# ---- mistakes ----


def test_a_mistake_is_shown_in_the_assemblers_words_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "bad.S").write_text("nop\nhllt\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssemblerError) as caught:
        assemble(Path("sub/bad.S"))
    assert str(caught.value) == "sub/bad.S:2: Error: no such instruction: `hllt'"


def test_a_mistake_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "some.inc").write_text("nop\n.foo\n")
    (tmp_path / "guest.S").write_text('.include "some.inc"\n')
    with pytest.raises(AssemblerError, match=r"some\.inc:2: Error: unknown pseudo-op: `\.foo'"):
        assemble(tmp_path / "guest.S")


def test_text_is_called_text() -> None:
    with pytest.raises(AssemblerError) as caught:
        assemble("nop\nhllt")
    assert str(caught.value) == "<text>:2: Error: no such instruction: `hllt'"


def test_the_linkers_words_are_shown_with_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guest.S").write_text("nop\ncall nowhere\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssemblerError) as caught:
        assemble(Path("guest.S"))
    assert str(caught.value) == "guest.S:2: undefined reference to `nowhere'"


def test_a_mistake_in_c_is_shown_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "kernel.c").write_text("int\nbroken\n")
    with pytest.raises(AssemblerError, match=r"kernel\.c:2"):
        build_directory(tmp_path, tmp_path / "guest.elf", mode="long")


def test_hundreds_of_mistakes_are_cut_short() -> None:
    with pytest.raises(AssemblerError) as caught:
        assemble("hllt\n" * 500)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (21, "... and 480 more lines")


def test_a_source_cannot_control_the_terminal() -> None:
    with pytest.raises(AssemblerError) as caught:
        assemble('.error "\x1b[2J"')
    assert "\x1b" not in str(caught.value)


def test_a_warning_of_the_assembler_points_at_the_source(tmp_path: Path) -> None:
    source = tmp_path / "guest.S"
    source.write_text("nop\nmov $0x12345, %ax\n")
    with pytest.warns(AssemblerWarning, match="0x12345 shortened to 0x2345") as record:
        assemble(source)
    assert [(item.filename, item.lineno) for item in record] == [(str(source), 2)]


def test_a_warning_is_an_error_in_a_bundled_guest(tmp_path: Path) -> None:
    (tmp_path / "guest.S").write_text("mov $0x12345, %ax\n")
    with pytest.raises(AssemblerError, match=r"guest\.S:1: .*shortened"):
        build_directory(tmp_path, tmp_path / "guest.elf", mode="long")


def test_a_source_without_a_last_newline_is_no_reason_to_warn(tmp_path: Path) -> None:
    (tmp_path / "guest.S").write_text("hlt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert code(tmp_path / "guest.S") == b"\xf4"


def test_a_source_that_would_fill_the_disk_is_stopped() -> None:
    with pytest.raises(AssemblerError, match="its output has more than 256 MiB"):
        assemble(".org 0x7ffffff0\nnop")


def test_a_source_without_code_is_refused() -> None:
    with pytest.raises(ImageError, match="nothing in it to load"):
        assemble("")


def test_a_files_name_is_not_assembly_text() -> None:
    with pytest.raises(AssemblerError, match=r"'guest\.S' is taken for assembly text: for the file, give Path"):
        assemble("guest.S")


@pytest.mark.parametrize("load", [-1, 1 << 52])
def test_an_impossible_load_address_is_refused(load: int) -> None:
    with pytest.raises(AssemblerError, match="no address to link long-mode code for"):
        assemble("hlt", load=load)


def test_a_load_address_that_real_mode_cannot_reach_is_the_linkers_complaint() -> None:
    with pytest.raises(AssemblerError, match="relocation truncated"):
        assemble(".code16\nx: mov $x, %ax", load=0x20000)


# ---- tools that are not there ----


@pytest.mark.parametrize(("missing", "package"), [("as", "binutils"), ("ld", "binutils"), ("gcc", "gcc")])
def test_a_missing_tool_is_named_with_its_package(
    missing: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in {"as", "ld", "gcc"} - {missing}:
        (tools / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not installed"))
    (tmp_path / "kernel.c").write_text("int x;\n")
    (tmp_path / "start.S").write_text("hlt\n")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(
        AssemblerError, match=f"GNU {missing} is not installed; on Debian or Ubuntu: sudo apt-get install {package}$"
    ):
        build_directory(tmp_path, tmp_path / "guest.elf", mode="long")


def test_only_c_needs_gcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("as", "ld"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not installed"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code("hlt") == b"\xf4"


def test_a_tool_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pykvm.boot.assembler

    (tmp_path / "as").write_text("#!/bin/sh\nexec sleep 10\n")
    (tmp_path / "as").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(pykvm.boot.assembler, "TIME_LIMIT", 0.1)
    with pytest.raises(AssemblerError, match="GNU as was stopped"):
        assemble("hlt")


# ---- the build of the package ----


def test_building_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """The build hook runs where neither the shim nor a dependency is installed: -S leaves out site-packages."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules["pykvm._shim"] = None
from pathlib import Path
from pykvm.boot.bundle import build_all
build_all(Path({str(ROOT / "guests")!r}), Path({str(tmp_path / "out")!r}))
loaded = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)
print(sorted(loaded), sorted(name for name in sys.modules if name.startswith("pykvm.")))
"""
    result = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("['__main__', 'pykvm']")
    assert "pykvm.kvm'" not in result.stdout
    assert "pykvm.x86'" not in result.stdout


def test_a_source_and_a_text_can_be_built_into_files(tmp_path: Path) -> None:
    (tmp_path / "guest.S").write_text(".code32\nhlt\n")
    assert build_source(tmp_path / "guest.S", tmp_path / "one.elf") == "protected"
    assert build_text(".code32\nhlt\n", tmp_path / "two.elf") == "protected"
    one, two = ((tmp_path / name).read_bytes() for name in ("one.elf", "two.elf"))
    assert elf_image(one).segments == elf_image(two).segments
