"""What the sub-commands' arguments have in common: numbers, sizes, modes, and what TARGET means.

Leaves out the options only one sub-command has.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

from pykvm.boot import BootModule, BootOptions, BundledGuest, Image, find_guest, open_image, suggest
from pykvm.boot.detection import read_file
from pykvm.boot.formats import FORMATS
from pykvm.boot.image import printable
from pykvm.cli.streams import say
from pykvm.errors import ConfigurationError, ImageError
from pykvm.units import parse_size
from pykvm.x86 import Mode

__all__ = [
    "Target",
    "add_image_options",
    "address",
    "address_or_symbol",
    "check_spares_guest",
    "count",
    "find_target",
    "size",
]


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be run: an image and, if it is a bundled guest, its settings."""

    image: Image
    guest: BundledGuest | None = None

    @property
    def rom(self) -> bytes:
        """Return the ROM that the machine must have, empty for none."""
        return b"" if self.image.protocol is None else self.image.protocol.rom


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add TARGET and the options that say how to read it."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="a bundled guest's name, an assembly source (.S), a flat binary, an ELF file or a Linux kernel",
    )
    parser.add_argument("--bios", metavar="FILE", help="a ROM in TARGET's place, started at the reset vector")
    parser.add_argument(
        "--format",
        choices=[format.name for format in FORMATS],
        help="what kind of file it is (default: found by its content)",
    )
    parser.add_argument(
        "--mode",
        choices=[mode.value for mode in Mode],
        help="the mode the CPU starts in (default: what the image asks for)",
    )
    parser.add_argument(
        "--load", type=address, metavar="ADDRESS", help="where to put a flat binary or an assembly source"
    )
    parser.add_argument(
        "--entry", type=address_or_symbol, metavar="ADDRESS", help="where to start: an address or a symbol"
    )
    parser.add_argument("--append", default="", metavar="TEXT", help="the command line of a kernel")
    parser.add_argument("--initrd", metavar="FILE", help="the initial RAM disk of a kernel")
    parser.add_argument(
        "--module",
        dest="modules",
        action="append",
        default=[],
        metavar="FILE[:ARGUMENTS]",
        help="a file that is loaded beside a multiboot kernel; repeatable",
    )


def find_target(options: argparse.Namespace) -> Target:
    """Return what the options of ``add_image_options`` name. A name without a slash is a bundled guest's first.

    Raises: ImageError.
    """
    if options.bios is not None:
        _take_bios(options)
    if options.target is None:
        raise ImageError("the following arguments are required: TARGET, a bundled guest's name or a file")
    name: str = options.target
    if not name:
        raise ImageError("TARGET is empty: name a bundled guest or a file")
    guest = None if "/" in name else find_guest(name)
    if guest is None:
        return Target(_open_file(name, options))
    if _exists(name):
        say(f"pykvm: {name} is a bundled guest and a file here; this is the guest, ./{name} is the file")
    if options.load is not None:
        raise ImageError(
            f"{guest.name}: is linked for its address: --load works with flat binaries and assembly sources"
        )
    mode = Mode(options.mode or guest.mode)
    image = open_image(
        guest.image, name=guest.name, mode=mode, entry=options.entry, format=options.format, options=_options(options)
    )
    return Target(image, guest)


def check_spares_guest(option: str, path: str, target: str) -> None:
    """Raise ConfigurationError if ``path``, which ``option`` is to write to, is the guest's own file."""
    try:
        is_same = Path(path).samefile(target)
    except (OSError, ValueError):  # one of them is no file, or no file yet
        return
    if is_same:
        raise ConfigurationError(f"{option} {path} would overwrite the guest: name another file")


def address(text: str) -> int:
    """Return the address that ``text`` names, in decimal or as 0x..."""
    try:
        value = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address: write 0x8000 or 32768") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0: addresses are not")
    return value


def address_or_symbol(text: str) -> int | str:
    """Return ``text`` as an address, or as it is if it looks like a symbol's name."""
    return address(text) if text[:1].isdigit() or text.startswith("-") else text


def size(text: str) -> int:
    """Return the number of bytes that ``text`` names, such as 16M."""
    try:
        return parse_size(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Return the number above 0 that ``text`` names."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count: write a number above 0")
    return int(text)


def _take_bios(options: argparse.Namespace) -> None:
    if options.target is not None:
        raise ImageError(f"--bios {options.bios} takes the place of {options.target}: leave one of them out")
    options.target, options.format = f"./{options.bios}" if "/" not in options.bios else options.bios, "rom"


def _open_file(name: str, options: argparse.Namespace) -> Image:
    if "/" not in name and not _exists(name):
        close = suggest(name)
        hint = f"did you mean {' or '.join(close)}?" if close else "'pykvm guests' lists the guests"
        raise ImageError(f"{printable(name)}: there is no such file, and no bundled guest of that name; {hint}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)  # AssemblerWarning is one
        image = open_image(
            name,
            mode=None if options.mode is None else Mode(options.mode),
            load=options.load,
            entry=options.entry,
            format=options.format,
            options=_options(options),
        )
    for warning in caught:
        say(f"pykvm: {warning.filename}:{warning.lineno}: Warning: {warning.message}")
    return image


def _options(options: argparse.Namespace) -> BootOptions:
    """Return what goes with a kernel. Raises: ImageError if a file of it cannot be read."""
    initrd = b"" if options.initrd is None else read_file(Path(options.initrd), printable(options.initrd))
    return BootOptions(options.append, initrd, tuple(map(_module, options.modules)))


def _module(text: str) -> BootModule:
    # A file whose name has a colon is itself, if it is there.
    file, _, arguments = (text, "", "") if _exists(text) else text.partition(":")
    return BootModule(file, read_file(Path(file), printable(file)), arguments)


def _exists(name: str) -> bool:
    try:
        Path(name).stat()
    except (OSError, ValueError):  # a name that is too long is no file's either
        return False
    return True
