"""The disassembly as rows: ``=>`` in front of the next instruction, ``B`` at a breakpoint, ``>`` at the cursor.

x86 code can only be read forwards. What is above an instruction is found by reading from the symbol before it on, or
the beginning of the image, or else by trying several places to begin at, of which the one counts that leaves the fewest
bytes over. Leaves out where data lies between code.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass

from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.rows import Kind, Piece, Row, fit, row
from pykvm.x86 import LONGEST_INSTRUCTION, Instruction, disassemble

__all__ = ["Listing", "gutter", "instructions_before"]

LOOK_BACK = 96  # bytes, in search of the instructions before one
FAR = 1 << 12  # bytes between a symbol and an instruction that is read from there on
NO_INSTRUCTION = ".byte"


@dataclass
class Listing:
    """A window on the code that follows the guest; ``cursor`` is the linear address that keys are about."""

    cursor: int = 0
    _top: int = 0

    def follow(self, look: Look) -> None:
        """Put the cursor where the guest is."""
        self.cursor = look.rip

    def move(self, look: Look, by: int) -> None:
        """Move the cursor ``by`` instructions, up if that is negative; it stays where there is no more code."""
        if by >= 0:
            ahead = _read(look, self.cursor, by + 1)
            self.cursor = ahead[min(by, len(ahead) - 1)].address if ahead else self.cursor
        else:
            above = instructions_before(look, self.cursor)[by:]
            self.cursor = above[0].address if above else self.cursor

    def rows(self, look: Look, breakpoints: Collection[int], height: int, width: int) -> list[Row]:
        """Return ``height`` rows of ``width`` columns at most around the cursor, moved no more than is needed."""
        lines = self._lines(look, breakpoints, height)
        for above in (height // 3, 0):  # with many labels the third that is above takes all the room
            if any(address == self.cursor for address, _ in lines):
                break
            before = instructions_before(look, self.cursor)[-above:] if above else []
            self._top = before[0].address if before else self.cursor
            lines = self._lines(look, breakpoints, height)
        rows = [fit(pieces, width) for _, pieces in lines]
        return rows or [row(f"no code can be read at {self.cursor:#x}", Kind.BAD)]

    def _lines(self, look: Look, breakpoints: Collection[int], height: int) -> list[tuple[int | None, Row]]:
        """Return the rows from the top on, each with the address of its instruction."""
        lines: list[tuple[int | None, Row]] = []
        for instruction in _read(look, self._top, height):
            name = look.symbol_at(instruction.address)
            if name is not None and "+" not in name:
                lines.append((None, row(f"{name}:", Kind.LABEL)))
            lines.append((instruction.address, self._line(look, breakpoints, instruction)))
        return lines[:height]

    def _line(self, look: Look, breakpoints: Collection[int], instruction: Instruction) -> Row:
        address = instruction.address
        digits = 8 if address < 1 << 32 else 16
        code = f" {address:0{digits}x}  {instruction.mnemonic} {instruction.operands}".rstrip()
        return (*gutter(address == look.rip, address == self.cursor, address in breakpoints), (code, Kind.TEXT))


def gutter(is_current: bool, is_cursor: bool, has_breakpoint: bool) -> Row:
    """Return the three columns in front of a line of code that say what is with it."""
    stop: Piece = ("B", Kind.BREAKPOINT) if has_breakpoint else (" ", Kind.TEXT)
    if is_current:
        return (stop, ("=>", Kind.CURRENT))
    return (stop, (" >" if is_cursor else "  ", Kind.CURRENT))


def instructions_before(look: Look, address: int) -> list[Instruction]:
    """Return instructions that end where ``address`` is, as far as they can be told, the nearest one last."""
    start = _beginning_before(look, address)
    if start is not None:
        found = _decode(look, start, address)
        if all(instruction.mnemonic != NO_INSTRUCTION for instruction in found[-1:]):
            return found
    starts = [address - back for back in range(LOOK_BACK, LOOK_BACK - LONGEST_INSTRUCTION, -1) if back <= address]
    tries = [_decode(look, start, address) for start in starts]
    return min(tries, key=_left_over, default=[])


def _beginning_before(look: Look, address: int) -> int | None:
    """Return where the symbol that ``address`` is in begins, or else the image's segment, if that is before and near.

    A segment has guest-physical addresses; where linear ones are different it is one of many guesses.
    """
    if look.image is None:
        return None
    symbols = look.image.symbols
    position = bisect_left(symbols, address, key=lambda symbol: symbol.address)
    segments = [segment.gpa for segment in look.image.segments if segment.gpa < address < segment.end]
    start = max([*segments, *(symbol.address for symbol in symbols[position - 1 : position])], default=0)
    return start if 0 < address - start <= FAR else None


def _left_over(instructions: list[Instruction]) -> int:
    return sum(instruction.mnemonic == NO_INSTRUCTION for instruction in instructions)


def _decode(look: Look, start: int, end: int) -> list[Instruction]:
    code = look.code(start, end - start)
    return disassemble(code, start, look.mode.width) if len(code) == end - start else []


def _read(look: Look, address: int, count: int) -> list[Instruction]:
    """Return up to ``count`` instructions from ``address`` on."""
    code = look.code(address, count * LONGEST_INSTRUCTION)
    return disassemble(code, address, look.mode.width)[:count]
