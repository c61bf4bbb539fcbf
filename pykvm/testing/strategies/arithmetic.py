"""Recipes for instructions that compute: arithmetic, logic, shifts, multiplication and division, single bits.

See: Intel SDM volume 2, each instruction's "Flags Affected"; ``pykvm.testing.strategies.moves`` for the others.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.testing.strategies.encoding import HIGH, RBP, RCX, RDI, RDX, RSI, encode
from pykvm.testing.strategies.operands import LOCK, Operands, set_register
from pykvm.testing.strategies.program import ALL_FLAGS, NO_FLAGS, Instruction, Step
from pykvm.x86 import Rflags

__all__ = ["ARITHMETIC", "Recipe", "step"]

Recipe = Callable[[Operands, str], Step]

CF, PF, AF, ZF, SF, OF = Rflags.CF, Rflags.PF, Rflags.AF, Rflags.ZF, Rflags.SF, Rflags.OF

RESULT = SF | ZF | PF


def step(
    operands: Operands,
    form: str,
    code: bytes,
    *,
    reads: Rflags = NO_FLAGS,
    defines: Rflags = NO_FLAGS,
    undefines: Rflags = NO_FLAGS,
) -> Step:
    """Return the step of what ``operands`` need and the instruction ``code``."""
    form = f"lock {form}" if code.startswith(LOCK) else form
    return (*operands.setup, Instruction(form, code, reads, defines, undefines))


# ---- arithmetic and logic ----


def _binary(number: int, *, reads: Rflags = NO_FLAGS, undefines: Rflags = NO_FLAGS) -> Recipe:
    """Return the recipe for one of the eight that share their encodings; CMP, the last, writes no operand."""

    def recipe(o: Operands, form: str) -> Step:
        size = o.size()
        place = o.place(size)
        base = number << 3 | (size > 1)
        match o.pick("immediate", "byte", "store", "load"):
            case "immediate":
                opcode = b"\x80" if size == 1 else b"\x81"
                code = encode(o.width, opcode, size, rm=place, imm=o.immediate(size), extension=number)
            case "byte":
                code = encode(
                    o.width, b"\x83" if size > 1 else b"\x80", size, rm=place, imm=o.immediate(1), extension=number
                )
            case "store":
                code = encode(o.width, bytes([base]), size, o.source(size), place)
            case _:
                code = encode(o.width, bytes([base | 2]), size, o.register(size), place)
                return step(o, form, code, reads=reads, defines=ALL_FLAGS & ~undefines, undefines=undefines)
        lock = b"" if form == "cmp" else o.lock(place)
        return step(o, form, lock + code, reads=reads, defines=ALL_FLAGS & ~undefines, undefines=undefines)

    return recipe


def _test(o: Operands, form: str) -> Step:
    size = o.size()
    place = o.origin(size)
    if o.pick(False, True):
        code = encode(o.width, b"\x84" if size == 1 else b"\x85", size, o.source(size), place)
    else:
        opcode = b"\xf6" if size == 1 else b"\xf7"
        code = encode(o.width, opcode, size, rm=place, imm=o.immediate(size), extension=0)
    return step(o, form, code, defines=ALL_FLAGS & ~AF, undefines=AF)


def _unary(opcode: int, extension: int, defines: Rflags) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size()
        place = o.place(size)
        code = encode(o.width, bytes([opcode | (size > 1)]), size, rm=place, extension=extension)
        return step(o, form, o.lock(place) + code, defines=defines)

    return recipe


# ---- shifts and rotations ----


def _count(o: Operands, size: int) -> int:
    bits = 8 * size
    return o.pick(1, 0, 2, bits - 1, bits, bits + 1, 31, 32, 63, 64, o.number(0, 0xFF))


def _masked(count: int, size: int) -> int:
    return count & (63 if size == 8 else 31)


def _shift(extension: int, *, rotates: bool = False, reads: Rflags = NO_FLAGS) -> Recipe:
    is_arithmetic = extension == 7

    def recipe(o: Operands, form: str) -> Step:
        size = o.size()
        place, wide = o.place(size), size > 1
        if o.pick(False, True):
            code = encode(o.width, bytes([0xD2 | wide]), size, rm=place, extension=extension)
            undefines = OF if rotates else OF | AF | (NO_FLAGS if is_arithmetic or size > 2 else CF)
            return step(o, form, code, reads=reads, undefines=undefines)  # CL may be 0, which defines nothing
        count = _count(o, size)
        code = encode(o.width, bytes([0xC0 | wide]), size, rm=place, imm=bytes([count]), extension=extension)
        if count == 1 and o.pick(False, True):
            code = encode(o.width, bytes([0xD0 | wide]), size, rm=place, extension=extension)
        defines, undefines = _shift_flags(_masked(count, size), size, rotates, is_arithmetic)
        return step(o, form, code, reads=reads, defines=defines, undefines=undefines)

    return recipe


def _shift_flags(count: int, size: int, rotates: bool, is_arithmetic: bool) -> tuple[Rflags, Rflags]:
    """Return what a shift by the constant ``count`` defines and undefines."""
    if count == 0:
        return NO_FLAGS, NO_FLAGS
    undefines = NO_FLAGS if count == 1 else OF
    if rotates:
        return (CF | OF) & ~undefines, undefines
    undefines |= AF
    if count >= 8 * size and not is_arithmetic:
        undefines |= CF
    return ALL_FLAGS & ~undefines, undefines


def _double_shift(opcode: int) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size(at_least=2)
        place, source = o.place(size), o.source(size)
        if size > 2 and o.pick(False, True):  # CL above 16 makes a word undefined
            code = encode(o.width, bytes([0x0F, opcode + 1]), size, source, place)
            return step(o, form, code, undefines=OF | AF)
        count = o.number(0, 15) if size == 2 else _count(o, size)
        code = encode(o.width, bytes([0x0F, opcode]), size, source, place, bytes([count]))
        defines, undefines = _shift_flags(_masked(count, size), size, False, False)
        return step(o, form, code, defines=defines, undefines=undefines)

    return recipe


# ---- multiplication and division ----


def _multiply(extension: int) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size()
        code = encode(o.width, bytes([0xF6 | (size > 1)]), size, rm=o.origin(size), extension=extension)
        return step(o, form, code, defines=CF | OF, undefines=RESULT | AF)

    return recipe


def _imul(o: Operands, form: str) -> Step:
    size = o.size(at_least=2)
    register, origin = o.register(size), o.origin(size)
    match o.pick("two", "byte", "immediate"):
        case "two":
            code = encode(o.width, b"\x0f\xaf", size, register, origin)
        case "byte":
            code = encode(o.width, b"\x6b", size, register, origin, o.immediate(1))
        case _:
            code = encode(o.width, b"\x69", size, register, origin, o.immediate(size))
    return step(o, form, code, defines=CF | OF, undefines=RESULT | AF)


def _div(o: Operands, form: str) -> Step:
    size = o.size()
    divisor = max(1, o.value(size))
    high = o.value(size) % divisor  # below the divisor, so that the quotient fits
    return _divide(o, form, size, divisor, high, extension=6)


def _idiv(o: Operands, form: str) -> Step:
    size = o.size()
    divisor = max(2, o.value(size) >> 1)
    half = divisor // 2
    high = o.value(size) % (2 * half - 1) - half + 1  # above -half and below half: the quotient fits, whatever its sign
    return _divide(o, form, size, o.pick(divisor, -divisor), high, extension=7)


def _divide(o: Operands, form: str, size: int, divisor: int, high: int, *, extension: int) -> Step:
    register = o.pick(RCX, RSI, RDI, RBP) if size > 1 else o.pick(RCX, RDX)
    upper = HIGH + 4 if size == 1 else RDX  # AH:AL or RDX:RAX
    setup = [set_register(o.width, size, register, divisor), set_register(o.width, size, upper, high)]
    code = encode(o.width, bytes([0xF6 | (size > 1)]), size, rm=register, extension=extension)
    return (*setup, Instruction(form, code, undefines=ALL_FLAGS))


# ---- single bits ----


def _bit_test(opcode: int, extension: int) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size(at_least=2)
        match o.pick("immediate", "register", "string"):
            case "immediate":
                place = o.place(size)
                code = encode(o.width, b"\x0f\xba", size, rm=place, imm=o.immediate(1), extension=extension)
                code = (o.lock(place) if form != "bt" else b"") + code
            case "register":
                code = encode(o.width, bytes([0x0F, opcode]), size, o.source(size), o.register(size))
            case _:  # of bits in memory: the offset goes beyond the operand
                register = o.register(size)
                o.setup.append(set_register(o.width, size, register, o.number(-1024, 1023)))
                code = encode(o.width, bytes([0x0F, opcode]), size, register, o.memory(indexed=False))
        return step(o, form, code, defines=CF, undefines=OF | SF | AF | PF)

    return recipe


def _bit_scan(opcode: int) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size(at_least=2)
        register, source = o.register(size), o.register(size)
        # Of zero there is no first bit: the result is undefined then.
        nonzero = encode(o.width, b"\x83", size, rm=source, imm=bytes([o.pick(1, 0x40, 0x80)]), extension=1)
        o.setup.append(Instruction("or", nonzero, defines=ALL_FLAGS & ~AF, undefines=AF))
        code = encode(o.width, bytes([0x0F, opcode]), size, register, source)
        return step(o, form, code, defines=ZF, undefines=ALL_FLAGS & ~ZF)

    return recipe


# ---- decimal arithmetic, which long mode has not ----


def _decimal(code: bytes, *, reads: Rflags, undefines: Rflags, takes_base: bool = False) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        base = bytes([o.pick(10, 1, 2, 16, 255)]) if takes_base else b""
        return step(o, form, code + base, reads=reads, defines=ALL_FLAGS & ~undefines, undefines=undefines)

    return recipe


ARITHMETIC: dict[str, Recipe] = {
    "add": _binary(0),
    "or": _binary(1, undefines=AF),
    "adc": _binary(2, reads=CF),
    "sbb": _binary(3, reads=CF),
    "and": _binary(4, undefines=AF),
    "sub": _binary(5),
    "xor": _binary(6, undefines=AF),
    "cmp": _binary(7),
    "test": _test,
    "inc": _unary(0xFE, 0, ALL_FLAGS & ~CF),
    "dec": _unary(0xFE, 1, ALL_FLAGS & ~CF),
    "not": _unary(0xF6, 2, NO_FLAGS),
    "neg": _unary(0xF6, 3, ALL_FLAGS),
    "rol": _shift(0, rotates=True),
    "ror": _shift(1, rotates=True),
    "rcl": _shift(2, rotates=True, reads=CF),
    "rcr": _shift(3, rotates=True, reads=CF),
    "shl": _shift(4),
    "shr": _shift(5),
    "sar": _shift(7),
    "shld": _double_shift(0xA4),
    "shrd": _double_shift(0xAC),
    "mul": _multiply(4),
    "imul1": _multiply(5),
    "imul": _imul,
    "div": _div,
    "idiv": _idiv,
    "bt": _bit_test(0xA3, 4),
    "bts": _bit_test(0xAB, 5),
    "btr": _bit_test(0xB3, 6),
    "btc": _bit_test(0xBB, 7),
    "bsf": _bit_scan(0xBC),
    "bsr": _bit_scan(0xBD),
    "daa": _decimal(b"\x27", reads=AF | CF, undefines=OF),
    "das": _decimal(b"\x2f", reads=AF | CF, undefines=OF),
    "aaa": _decimal(b"\x37", reads=AF, undefines=OF | RESULT),
    "aas": _decimal(b"\x3f", reads=AF, undefines=OF | RESULT),
    "aam": _decimal(b"\xd4", reads=NO_FLAGS, undefines=OF | AF | CF, takes_base=True),
    "aad": _decimal(b"\xd5", reads=NO_FLAGS, undefines=OF | AF | CF, takes_base=True),
}
