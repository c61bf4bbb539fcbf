"""The formats of guests, each known by its content, and tried in this order: the first that recognises a file has it.

    assembly    known by its name, for it has no mark
    multiboot   a header with a magic number and a checksum in the first 8 KiB
    linux       a bzImage: HdrS in its first sector; linux32 starts it at its 32-bit entry
    vmlinux     an ELF64 file with Linux's banner in it
    pvh         an ELF file with a note that says where it starts by PVH
    elf         other ELF32 and ELF64 executables
    rom         firmware; it has no mark, and somebody must say so
    flat        everything else

A mode that the user asks for takes the place of what a boot protocol wants, which is then not looked for.

Leaves out how each is read: every format has a module of its own, loaded when it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pykvm.boot.elf import ELF_MAGIC, elf_image
from pykvm.boot.image import Image
from pykvm.boot.protocol import BootOptions
from pykvm.errors import ImageError
from pykvm.names import did_you_mean
from pykvm.x86 import Mode

__all__ = ["FORMATS", "Format", "Source", "find_format"]

ASSEMBLY_SUFFIXES = (".S", ".s")

# Without these a file is none of those, and their modules need not be loaded to find that out.
MULTIBOOT_MARK, MULTIBOOT_SEARCHED = (0x1BADB002).to_bytes(4, "little"), 8192
LINUX_MARK = b"Linux version "
PVH_MARK = b"Xen\0"


@dataclass(frozen=True, slots=True)
class Source:
    """A file on its way to becoming an image, and what the user says about it: see ``open_image``."""

    path: Path
    name: str
    data: bytes = field(repr=False)
    mode: Mode | None = None
    load: int | None = None
    entry: int | str | None = None
    options: BootOptions = field(default_factory=BootOptions)


@dataclass(frozen=True, slots=True)
class Format:
    """A format, called ``name`` as by ``--format``: whether a file is of it, and the image that is made of one."""

    name: str
    summary: str
    recognises: Callable[[Source], bool]
    open: Callable[[Source], Image]


def find_format(source: Source, name: str | None = None) -> Format:
    """Return the format called ``name``, or the first that recognises ``source``. Raises: ImageError."""
    if name is None:
        return next(format for format in FORMATS if format.recognises(source))
    for format in FORMATS:
        if format.name == name:
            return format
    names = [format.name for format in FORMATS]
    close = did_you_mean(name, names)
    raise ImageError(f"{source.name}: there is no format {name!r}: {close or 'there are ' + ', '.join(names)}")


# ---- assembly ----


def _is_assembly(source: Source) -> bool:
    return source.path.suffix in ASSEMBLY_SUFFIXES and not _is_elf(source)


def _open_assembly(source: Source) -> Image:
    from pykvm.boot.detection import assemble

    source.options.check((), source.name, "assembly source")
    return assemble(source.path, mode=source.mode, load=source.load, entry=source.entry)


# ---- multiboot ----


def _is_multiboot(source: Source) -> bool:
    if source.mode is not None or source.load is not None or MULTIBOOT_MARK not in source.data[:MULTIBOOT_SEARCHED]:
        return False
    from pykvm.boot.multiboot import find_header

    return find_header(source.data) is not None


def _open_multiboot(source: Source) -> Image:
    from pykvm.boot.multiboot import multiboot_image

    _refuse_places(source, "a multiboot kernel")
    return multiboot_image(source.data, name=source.name, entry=source.entry, options=source.options)


# ---- Linux, and PVH ----


def _is_bzimage(source: Source) -> bool:
    return source.mode is None and source.load is None and source.data[0x202:0x206] == b"HdrS"


def _open_bzimage(source: Source) -> Image:
    return _open_linux(source, None)


def _open_bzimage32(source: Source) -> Image:
    return _open_linux(source, False)


def _open_linux(source: Source, is_64: bool | None) -> Image:
    from pykvm.boot.linux import bzimage_image

    _refuse_places(source, "a Linux kernel")
    return bzimage_image(source.data, name=source.name, is_64=is_64, entry=source.entry, options=source.options)


def _is_vmlinux(source: Source) -> bool:
    is_elf64 = _is_elf(source) and source.data[4:5] == b"\2"
    if source.mode is not None or not is_elf64 or LINUX_MARK not in source.data:
        return False
    from pykvm.boot.linux import linux_version

    return linux_version(source.data) is not None


def _open_vmlinux(source: Source) -> Image:
    from pykvm.boot.linux import vmlinux_image

    _refuse_places(source, "a Linux kernel")
    return vmlinux_image(source.data, name=source.name, entry=source.entry, options=source.options)


def _is_pvh(source: Source) -> bool:
    if source.mode is not None or not _is_elf(source) or PVH_MARK not in source.data:
        return False
    from pykvm.boot.pvh import pvh_entry

    return pvh_entry(source.data) is not None


def _open_pvh(source: Source) -> Image:
    from pykvm.boot.pvh import pvh_image

    _refuse_places(source, "a PVH kernel")
    return pvh_image(source.data, name=source.name, entry=source.entry, options=source.options)


def _open_rom(source: Source) -> Image:
    from pykvm.boot.rom import rom_image

    _refuse_places(source, "a ROM")
    if source.entry is not None:
        raise ImageError(f"{source.name}: a ROM starts at the reset vector: leave the entry out")
    return rom_image(source.data, name=source.name, options=source.options)


def _never(source: Source) -> bool:
    return False


def _refuse_places(source: Source, what: str) -> None:
    if source.mode is not None or source.load is not None:
        raise ImageError(f"{source.name}: {what} says itself where it goes and starts: leave mode and load address out")


# ---- ELF ----


def _is_elf(source: Source) -> bool:
    return source.data.startswith(ELF_MAGIC)


def _open_elf(source: Source) -> Image:
    source.options.check((), source.name, "plain ELF file")
    if source.load is not None:
        raise ImageError(
            f"{source.name}: an ELF file says itself where it goes: leave the load address out, or link it again"
        )
    return elf_image(source.data, name=source.name, mode=source.mode, entry=source.entry)


# ---- flat binaries ----


def _is_anything(source: Source) -> bool:
    return True


def _open_flat(source: Source) -> Image:
    from pykvm.boot.flat import flat_image

    if source.path.suffix == ".c":
        raise ImageError(f"{source.name}: is C: compile and link it first, as the bundled guest 14-c-kernel is")
    source.options.check((), source.name, "flat binary")
    return flat_image(source.data, name=source.name, mode=source.mode, load=source.load, entry=source.entry)


FORMATS = (
    Format("assembly", "a source for GNU as (.S, .s)", _is_assembly, _open_assembly),
    Format("multiboot", "a kernel with a multiboot 1 header", _is_multiboot, _open_multiboot),
    Format("linux", "a Linux bzImage, by its 64-bit entry if it has one", _is_bzimage, _open_bzimage),
    Format("linux32", "a Linux bzImage, by its 32-bit entry", _never, _open_bzimage32),
    Format("vmlinux", "an uncompressed Linux kernel, by the 64-bit boot protocol", _is_vmlinux, _open_vmlinux),
    Format("pvh", "an ELF kernel with a PVH entry", _is_pvh, _open_pvh),
    Format("elf", "an ELF executable, 32-bit or 64-bit", _is_elf, _open_elf),
    Format("rom", "firmware, started at the reset vector", _never, _open_rom),
    Format("flat", "a flat binary", _is_anything, _open_flat),
)
