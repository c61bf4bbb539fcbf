"""``pykvm disasm``: show a guest's code without running it. Leaves out telling code from data in an image."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pykvm.boot import Image
from pykvm.cli.arguments import add_image_options, find_target
from pykvm.errors import ImageError
from pykvm.x86 import Instruction, Mode, disassemble

__all__ = ["add_parser"]

WIDTHS = {Mode.REAL: 16, Mode.PROTECTED: 32, Mode.PAGED: 32, Mode.PAE: 32, Mode.LONG: 64}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "disasm",
        help="disassemble a guest",
        description="Disassemble a guest from its entry on. Code that switches modes needs --bits for its later parts.",
    )
    add_image_options(parser)
    parser.add_argument("--bits", type=int, choices=(16, 32, 64), help="code width (default: what the mode has)")
    parser.add_argument("--count", type=int, metavar="N", help="stop after N instructions")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    image = find_target(options).image
    width = options.bits or WIDTHS[image.mode]
    symbols = {symbol.address: symbol.name for symbol in image.symbols}
    for number, instruction in enumerate(_instructions(image, width)):
        if options.count is not None and number >= options.count:
            break
        if instruction.address in symbols:
            print(f"{symbols[instruction.address]}:")
        code = instruction.bytes.hex(" ")
        print(f"  {instruction.address:>8x}  {code:<30}  {instruction.mnemonic} {instruction.operands}".rstrip())
    return 0


def _instructions(image: Image, width: int) -> Iterator[Instruction]:
    for segment in image.segments:
        start = image.entry - segment.gpa
        if 0 <= start < len(segment.data):
            yield from disassemble(segment.data[start:], image.entry, width)
            return
    raise ImageError(f"{image.name}: the entry {image.entry:#x} is in none of its segments")
