"""From a file's path, or from assembly text, to an ``Image``: what it is, and whether it can be read at all.

A file is known by its content: see ``formats``. What cannot be a guest is refused before a byte of it is read: opening
a FIFO would wait for ever, /dev/zero has no end. Leaves out how each format is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pykvm.boot.elf import elf_image
from pykvm.boot.formats import ASSEMBLY_SUFFIXES, Source, find_format
from pykvm.boot.image import Image, printable
from pykvm.boot.protocol import BootOptions
from pykvm.errors import AssemblerError, ImageError
from pykvm.units import MiB, format_size
from pykvm.x86 import Mode, to_mode

__all__ = ["MAX_FILE", "assemble", "image_of", "open_image", "read_file"]

MAX_FILE = 256 * MiB
LIBRARY = "lib"
START = "_start"

FILE_KINDS = {
    stat.S_IFDIR: "is a directory",
    stat.S_IFIFO: "is a FIFO",
    stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device",
    stat.S_IFBLK: "is a device",
}


def open_image(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    mode: Mode | None = None,
    load: int | None = None,
    entry: int | str | None = None,
    format: str | None = None,
    options: BootOptions | None = None,
) -> Image:
    """Return the guest in the file ``path``, whose format is found by its content: see ``pykvm.boot.formats``.

    ``name`` is what messages call it, by default the path; ``mode`` what the CPU starts in, by default what the format
    or the source says; ``load`` the guest-physical address for a flat binary, or the one to link a source for;
    ``entry`` a linear address or a symbol's name; ``format`` a format's name, whatever the content looks like;
    ``options`` what goes with a kernel.

    Raises: ImageError if it cannot be read or is malformed; AssemblerError.
    """
    name = name or printable(os.fspath(path)) or "''"
    path = Path(path)
    source = Source(path, name, read_file(path, name), mode, load, entry, options or BootOptions())
    return replace(find_format(source, format).open(source), folder=path.parent.absolute())


def assemble(
    source: str | Path,
    *,
    mode: Mode | str | None = None,
    load: int | None = None,
    entry: int | str | None = None,
    include: Sequence[Path] = (),
) -> Image:
    """Return the guest that GNU as and ld make of ``source``: assembly text if it is a str, a file if it is a Path.

    ``mode`` is by default what the first ``.code16``, ``.code32`` or ``.code64`` says, else long mode; ``load`` the
    address to link for; ``entry`` a linear address or a symbol, by default ``_start`` or else the first instruction.
    ``include`` are folders for ``.include``, after the source's own and before the bundled guests' ``lib``.

    Raises: AssemblerError, with the assembler's words; ImageError if the file cannot be read; ConfigurationError.
    """
    # Loaded only now: with subprocess and tempfile they take as long as the rest of this layer.
    import tempfile

    from pykvm.boot.assembler import TEXT_NAME, build_source, build_text
    from pykvm.boot.bundle import BUNDLE

    wanted = None if mode is None else to_mode(mode).value
    folders = [*include, BUNDLE / LIBRARY]
    with tempfile.TemporaryDirectory(prefix="pykvm-") as scratch:
        output = Path(scratch) / "guest.elf"
        if isinstance(source, Path):
            name, text, folder = printable(str(source)), "", source.parent.absolute()
            read_file(source, name)
            built = build_source(source, output, mode=wanted, load=load, include=folders)
        else:
            name, text, folder = TEXT_NAME, source, None
            _check_text(source)
            built = build_text(source, output, mode=wanted, load=load, include=folders)
        data = read_file(output, name)
    image = image_of(data, name=name, mode=Mode(built), entry=entry)
    return replace(image, folder=folder, source=text)


def image_of(elf: bytes, *, name: str, mode: Mode, entry: int | str | None = None) -> Image:
    """Return the guest in ``elf``, a file that ``assemble`` has made. Raises: ImageError."""
    # ld knows _start only if it is .globl, and otherwise takes the first instruction: an image knows local symbols too.
    image = elf_image(elf, name=name, mode=mode, entry=entry)
    start = next((symbol.address for symbol in image.symbols if symbol.name == START), image.entry)
    return replace(image, entry=start) if entry is None else image


def _check_text(text: str) -> None:
    """Refuse a file's name, which is easily given where text is wanted."""
    if text.endswith(ASSEMBLY_SUFFIXES) and not any(character.isspace() for character in text):
        raise AssemblerError(f"{printable(text)!r} is taken for assembly text: for the file, give Path({text!r})")


def read_file(path: Path, name: str) -> bytes:
    """Return what is in the regular file ``path``, MAX_FILE at most. Raises: ImageError, which calls it ``name``."""
    try:
        _check_stat(path.stat(), name)
        # O_NONBLOCK and the second look: the file may have become a FIFO since the first.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            _check_stat(os.fstat(file.fileno()), name)
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        raise ImageError(f"{name}: there is no such file") from None
    except PermissionError:
        raise ImageError(f"{name}: you may not read it: see its permissions, and its folder's, with ls -l") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise ImageError(f"{name}: is empty: there is no guest in it")
    if len(data) > MAX_FILE:
        raise ImageError(_too_large(name))
    return data


def _check_stat(status: os.stat_result, name: str) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise ImageError(f"{name}: {FILE_KINDS.get(kind, 'is no ordinary file')}: a guest is an ordinary file")
    if status.st_size > MAX_FILE:
        raise ImageError(_too_large(name))


def _too_large(name: str) -> str:
    return f"{name}: has more than {format_size(MAX_FILE)}, which is the most pykvm reads of a guest"
