"""Multiboot kernels on KVM: an assembled one reads what it was given, and prints it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.boot import BootModule, BootOptions, open_image
from pykvm.cli.main import main

PRINTS = """
        .code32
        .globl _start
        .balign 4
        .long 0x1badb002, 0, -0x1badb002
_start: cmp $0x2badb002, %eax
        jne 9f
        mov $0x3f8, %edx
        mov 16(%ebx), %esi              # the command line
        call print
        mov 20(%ebx), %ecx              # mods_count
        mov 24(%ebx), %edi              # mods_addr
1:      jecxz 9f
        mov (%edi), %esi
        mov 4(%edi), %ebp
2:      cmp %esi, %ebp
        je 3f
        outsb
        jmp 2b
3:      mov 8(%edi), %esi
        call print
        add $16, %edi
        dec %ecx
        jmp 1b
9:      hlt
print:  lodsb
        test %al, %al
        jz 1f
        out %al, %dx
        jmp print
1:      ret
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    # The stack that CALL wants is the kernel's own business.
    source = PRINTS.replace("_start: cmp", "_start: mov $0x80000, %esp\n cmp")
    path.write_bytes(assemble(source, mode="protected").elf)
    return path


def test_a_kernel_gets_its_command_line_and_its_modules(kernel: Path) -> None:
    modules = (BootModule("one", b"<first>", "a"), BootModule("two", b"<second>"))
    image = open_image(kernel, options=BootOptions(append="hello=1", modules=modules))
    assert image.format == "multiboot, ELF32"
    with Machine() as machine:
        machine.load(image)
        assert machine.run().serial.text == "kernel hello=1<first>one a<second>two"


def test_a_mode_that_is_asked_for_makes_it_a_plain_elf_file(kernel: Path) -> None:
    with Machine() as machine:
        machine.load(open_image(kernel, mode=replace(open_image(kernel)).mode))
        assert machine.run().serial.text == ""
        assert machine.registers.rax == 0


def test_the_command_line_takes_modules_with_arguments(
    kernel: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    module = tmp_path / "data.txt"
    module.write_text("<data>")
    status = main(["run", str(kernel), "--append", "x=y", "--module", f"{module}:some words"])
    assert status == 0
    assert capfdbinary.readouterr().out.decode() == f"kernel x=y<data>{module} some words"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--module", "nowhere"], "nowhere: there is no such file"),
        (["--module", "/dev/null"], "is a device"),
        (["--initrd", "nowhere"], "nowhere: there is no such file"),
        (["--format", "multiboot", "--mode", "long"], "says itself where it goes"),
        (["--format", "elf", "--append", "x"], "to which nobody could give a command line"),
        (["--ring", "3"], "starts as multiboot says"),
    ],
)
def test_what_does_not_go_with_a_kernel_is_said(
    kernel: Path, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(kernel), *arguments]) == 2
    assert why in capsys.readouterr().err
