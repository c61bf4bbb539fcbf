"""``pykvm disasm``: show a guest's code without running it. Leaves out telling code from data in an image."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice

from pykvm.boot import Image
from pykvm.cli.arguments import add_image_options, count, find_target
from pykvm.errors import ImageError
from pykvm.x86 import LONGEST_INSTRUCTION, Instruction, Mode, disassemble

__all__ = ["add_parser", "instructions"]

WIDTHS = {Mode.REAL: 16, Mode.PROTECTED: 32, Mode.PAGED: 32, Mode.PAE: 32, Mode.LONG: 64}
CHUNK = 4096  # bytes disassembled at a time: a big file is not all held as text


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "disasm",
        help="disassemble a guest",
        description="Disassemble a guest from its entry on. Code that switches modes needs --entry and --bits for its "
        "later parts.",
    )
    add_image_options(parser)
    parser.add_argument("--bits", type=int, choices=(16, 32, 64), help="code width (default: what the mode has)")
    parser.add_argument("--count", type=count, metavar="N", help="stop after N instructions")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    image = find_target(options).image
    symbols = {symbol.address: symbol.name for symbol in image.symbols}
    code = _code(image)
    for instruction in islice(instructions(code, image.entry, options.bits or WIDTHS[image.mode]), options.count):
        if instruction.address in symbols:
            print(f"{symbols[instruction.address]}:")
        shown = instruction.bytes.hex(" ")
        print(f"  {instruction.address:>8x}  {shown:<30}  {instruction.mnemonic} {instruction.operands}".rstrip())
    return 0


def instructions(code: bytes, address: int, width: int) -> Iterator[Instruction]:
    """Yield all of ``code``, whose first byte is at linear ``address``, as instructions of ``width`` bits."""
    start = 0
    while start < len(code):
        chunk = code[start : start + CHUNK]
        # An instruction that begins close to the end may be cut off there: the next chunk has it whole.
        is_last = start + CHUNK >= len(code)
        safe = len(chunk) if is_last else CHUNK - LONGEST_INSTRUCTION
        done = 0
        for instruction in disassemble(chunk, address + start, width):
            if done >= safe:
                break
            yield instruction
            done += len(instruction.bytes)
        start += done


def _code(image: Image) -> bytes:
    for segment in image.segments:
        offset = image.entry - segment.gpa
        if 0 <= offset < len(segment.data):
            return segment.data[offset:]
    raise ImageError(f"{image.name}: there is no code at the entry {image.entry:#x}: give another entry")
