"""ROMs: one of our own, and firmware that others wrote, from Debian's packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.boot import BootOptions, open_image
from pykvm.boot.rom import rom_image
from pykvm.cli.main import main
from pykvm.errors import ImageError
from pykvm.units import KiB

Debian = Callable[[str, str], Path]


def rom(code: str, size: int = 64 * KiB) -> bytes:
    """Return a ROM whose first instruction jumps to ``code``, which is at the beginning of its last 64 KiB."""
    (segment,) = assemble(code, mode="real", load=0).segments
    last = bytearray(b"\xff" * (64 * KiB))
    last[: len(segment.data)] = segment.data
    last[-16:-11] = b"\xea\x00\x00\x00\xf0"  # ljmp $0xf000, $0
    return bytes(size - len(last)) + bytes(last)


PRINTS = "mov $0xe9, %dx; mov $'R', %al; out %al, (%dx); hlt"


@pytest.mark.parametrize("size", [64 * KiB, 1024 * KiB])
def test_a_rom_starts_at_the_reset_vector_and_runs_below_1_mib(size: int) -> None:
    data = rom(PRINTS, size)
    with Machine("2M", rom=data) as machine:
        machine.load(rom_image(data, name="rom"))
        result = machine.run()
    assert result.debugcon.text == "R"
    assert result.registers.rip == 7
    assert result.cpus[0].sregs.cs.base == 0xF0000


def test_a_rom_cannot_be_written_and_its_shadow_can() -> None:
    code = """
        mov $0xf000, %ax; mov %ax, %ds
        movb $7, 0x1000                                         # below 1 MiB
        lgdtl %cs:gdt
        mov %cr0, %eax; or $1, %al; mov %eax, %cr0
        mov $8, %bx; mov %bx, %ds; mov $0xffff1000, %esi
        movb $7, (%esi); movb (%esi), %al
        hlt
        .balign 8
gdt0:   .quad 0, 0x00cf93000000ffff
gdt:    .word 15; .long 0xf0000 + gdt0
    """
    data = rom(code)
    with Machine("2M", rom=data) as machine:
        machine.load(rom_image(data, name="rom"))
        result = machine.run()
        assert machine.memory.read_u8(0xF1000) == 7
        assert machine.memory.read_u8(0xFFFF1000) == 0xFF
    assert result.registers.rax & 0xFF == 0xFF


def test_a_snapshot_has_the_rom_in_it() -> None:
    data = rom(PRINTS)
    with Machine("2M", rom=data) as machine:
        machine.load(rom_image(data, name="rom"))
        with machine.fork() as child:
            assert child.run().debugcon.text == "R"


def test_a_rom_that_is_not_in_the_machine_is_said_to_be_missing() -> None:
    for made in (b"", rom("hlt")):
        with Machine("2M", rom=made) as machine, pytest.raises(ImageError, match=r"Machine\(rom="):
            machine.load(rom_image(rom(PRINTS), name="rom"))


@pytest.mark.parametrize("size", [0, 1, 64 * KiB + 1, 16 * 1024 * KiB + 64 * KiB])
def test_what_has_no_roms_size_is_refused(size: int) -> None:
    with pytest.raises(ImageError, match="whole blocks of 64 KiB"):
        rom_image(bytes(size), name="rom")


def test_a_rom_takes_no_command_line() -> None:
    with pytest.raises(ImageError, match="to which nobody could give a command line"):
        rom_image(rom("hlt"), name="rom", options=BootOptions("x"))


# ---- the command line ----


def test_the_command_line_runs_a_rom(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "rom.bin"
    path.write_bytes(rom("mov $0xe9, %dx; mov $'R', %al; out %al, (%dx); mov $3, %al; out %al, $0xf4"))
    assert main(["run", "--bios", str(path)]) == 7
    assert main(["run", str(path), "--format", "rom", "--irqchip", "none"]) == 7
    assert capfdbinary.readouterr().out == b"RR"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--bios", "nowhere.rom"], "nowhere.rom: there is no such file"),
        (["--bios", "x", "09-hello"], "--bios x takes the place of 09-hello"),
        ([], "required: TARGET"),
        (["--bios", "/etc/hostname"], "whole blocks of 64 KiB"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *arguments]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--mode", "real"], ["--load", "0x1000"], ["--entry", "0x1000"]])
def test_a_rom_says_itself_where_it_starts(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rom.bin"
    path.write_bytes(rom("hlt"))
    assert main(["run", "--bios", str(path), *option]) == 2
    assert "leave" in capsys.readouterr().err


# ---- firmware of others ----


def boot(path: Path, until: bytes) -> bytes:
    """Return what the ROM ``path`` prints up to ``until``, which it is to print within a minute."""
    image = open_image(path, format="rom")
    assert image.protocol is not None
    printed = bytearray()

    def take(data: bytes) -> None:
        printed.extend(data)
        if until in printed[-200:]:
            machine.stop()

    with Machine("64M", irqchip="kernel", rom=image.protocol.rom, serial_output=take, debugcon_output=take) as machine:
        machine.load(image)
        machine.run(timeout=60)
    return bytes(printed)


@pytest.mark.kvm(timeout=90)
@pytest.mark.parametrize("name", ["bios.bin", "bios-256k.bin", "bios-microvm.bin"])
def test_seabios_posts_until_it_finds_nothing_to_boot(debian: Debian, name: str) -> None:
    said = boot(debian("seabios", f"/usr/share/seabios/{name}"), b"No bootable device").decode("ascii", "replace")
    assert said.startswith("SeaBIOS (version")
    assert "3: 0000000000100000 - 0000000004000000 = 1 RAM" in said
    assert "Booting from Hard Disk..." in said
    assert "No bootable device" in said


@pytest.mark.kvm(timeout=90)
def test_u_boot_shows_its_banner_and_the_autoboot_prompt(debian: Debian) -> None:
    said = boot(debian("u-boot-qemu", "/usr/lib/u-boot/qemu-x86/u-boot.rom"), b"Hit any key to stop autoboot").decode()
    assert "U-Boot 20" in said
    assert "DRAM:  64 MiB" in said
    assert "Hit any key to stop autoboot" in said


def test_the_command_line_shows_what_firmware_prints(debian: Debian) -> None:
    bios = debian("seabios", "/usr/share/seabios/bios-256k.bin")
    command = [sys.executable, "-m", "pykvm.cli.main", "run", "--bios", str(bios), "--timeout", "3"]
    ran = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert b"SeaBIOS (version" in ran.stdout
    assert ran.returncode == 124
