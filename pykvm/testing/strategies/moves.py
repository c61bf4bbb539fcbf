"""Recipes for instructions that move: data, the stack, strings, flags, and jumps forward.

See: Intel SDM volume 2; ``pykvm.testing.strategies.arithmetic`` for those that compute.
"""

from __future__ import annotations

from pykvm.testing.strategies.arithmetic import Recipe, step
from pykvm.testing.strategies.encoding import RCX, RDI, RSI, encode, immediate
from pykvm.testing.strategies.operands import SCRATCH_SIZE, Operands, set_register
from pykvm.testing.strategies.program import ALL_FLAGS, NO_FLAGS, Instruction, Jump, Step
from pykvm.x86 import Rflags

__all__ = ["MOVES"]

CF, PF, AF, ZF, SF, OF = Rflags.CF, Rflags.PF, Rflags.AF, Rflags.ZF, Rflags.SF, Rflags.OF
AH_FLAGS = SF | ZF | AF | PF | CF

LONGEST_STRING = 16  # items
STRING_MARGIN = 256  # bytes of the scratch area at either end where no string starts

# What each pair of conditions (a condition and its opposite) reads: O, B, E, BE, S, P, L, LE.
CONDITIONS = (OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF)


# ---- data ----


def _mov(o: Operands, form: str) -> Step:
    size = o.size()
    wide = size > 1
    match o.pick("constant", "store", "load", "immediate"):
        case "constant":
            return (set_register(o.width, size, o.register(size), o.value(size)),)
        case "store":
            code = encode(o.width, bytes([0x88 | wide]), size, o.source(size), o.place(size))
        case "load":
            code = encode(o.width, bytes([0x8A | wide]), size, o.register(size), o.origin(size))
        case _:
            code = encode(o.width, bytes([0xC6 | wide]), size, rm=o.place(size), imm=o.immediate(size), extension=0)
    return step(o, form, code)


def _extend(opcode: int) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size(at_least=2)
        if size > 2 and o.pick(False, True):
            code = encode(o.width, bytes([0x0F, opcode + 1]), size, o.register(size), o.origin(2))
        else:
            # AH, CH and DH cannot be named beside a register that needs REX: in long mode none is drawn.
            origin = o.memory() if o.pick(False, True) else o.pick(*range(3), *(range(5, 16) if o.width == 64 else ()))
            code = encode(o.width, bytes([0x0F, opcode]), size, o.register(size), origin, byte_source=True)
        return step(o, form, code)

    return recipe


def _movsxd(o: Operands, form: str) -> Step:
    return step(o, form, encode(o.width, b"\x63", 8, o.register(8), o.origin(4)))


def _convert(opcode: bytes) -> Recipe:
    return lambda o, form: step(o, form, encode(o.width, opcode, o.size(at_least=2)))


def _lea(o: Operands, form: str) -> Step:
    size = o.size(at_least=2)
    return step(o, form, encode(o.width, b"\x8d", size, o.register(size), o.memory()))


def _exchange(opcode: bytes) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size()
        place = o.place(size)
        code = encode(o.width, opcode[:-1] + bytes([opcode[-1] | (size > 1)]), size, o.register(size), place)
        if form == "cmpxchg" and o.width == 64 and size == 4 and isinstance(place, int):
            form = "cmpxchg r32"
        return step(o, form, o.lock(place) + code, defines=NO_FLAGS if form == "xchg" else ALL_FLAGS)

    return recipe


def _cmpxchg8b(o: Operands, form: str) -> Step:
    place = o.memory()
    code = encode(o.width, b"\x0f\xc7", min(o.width // 8, 4), rm=place, extension=1)
    return step(o, form, o.lock(place) + code, defines=ZF)


def _bswap(o: Operands, form: str) -> Step:
    size = o.size(at_least=4)
    return step(o, form, encode(o.width, b"\x0f\xc8", size, o.register(size)))


def _setcc(o: Operands, form: str) -> Step:
    condition = o.number(0, 15)
    code = encode(o.width, bytes([0x0F, 0x90 | condition]), 1, rm=o.place(1), extension=0)
    return step(o, form, code, reads=CONDITIONS[condition >> 1])


def _cmovcc(o: Operands, form: str) -> Step:
    condition, size = o.number(0, 15), o.size(at_least=2)
    code = encode(o.width, bytes([0x0F, 0x40 | condition]), size, o.register(size), o.origin(size))
    return step(o, form, code, reads=CONDITIONS[condition >> 1])


def _fixed(code: bytes, *, reads: Rflags = NO_FLAGS, defines: Rflags = NO_FLAGS) -> Recipe:
    return lambda o, form: step(o, form, code, reads=reads, defines=defines)


# ---- the stack ----


def _stack_size(o: Operands) -> int:
    return o.pick(o.width // 8, 4 if o.width == 16 else 2)


def _push(o: Operands, form: str) -> Step:
    size = _stack_size(o)
    match o.pick("register", "byte", "immediate", "memory"):
        case "register":
            code = encode(o.width, b"\x50", size, o.source(size), wide_by_default=True)
        case "byte":
            code = encode(o.width, b"\x6a", size, wide_by_default=True) + o.immediate(1)
        case "immediate":
            code = encode(o.width, b"\x68", size, wide_by_default=True) + o.immediate(size)
        case _:
            code = encode(o.width, b"\xff", size, rm=o.memory(), extension=6, wide_by_default=True)
    return step(o, form, code)


def _pop(o: Operands, form: str) -> Step:
    size = _stack_size(o)
    if o.pick(False, True):
        return step(o, form, encode(o.width, b"\x8f", size, rm=o.memory(), extension=0, wide_by_default=True))
    return step(o, form, encode(o.width, b"\x58", size, o.register(size), wide_by_default=True))


def _pushf(o: Operands, form: str) -> Step:
    return step(o, form, encode(o.width, b"\x9c", _stack_size(o), wide_by_default=True), reads=ALL_FLAGS)


def _popf(o: Operands, form: str) -> Step:
    # IOPL and IF stay 0: ring 3 could not change them.
    bits = o.pick(0, *(1 << bit for bit in (0, 2, 4, 6, 7, 10, 11)), o.number(0, 0xFFF))
    flags = bits & (ALL_FLAGS | Rflags.DF).value
    size = _stack_size(o)
    push = encode(o.width, b"\x68", size, wide_by_default=True) + immediate(flags, min(size, 4))
    o.setup.append(Instruction("push", push))
    return step(o, form, encode(o.width, b"\x9d", size, wide_by_default=True), defines=ALL_FLAGS)


def _enter(o: Operands, form: str) -> Step:
    o.setup.append(Instruction("enter", b"\xc8" + immediate(o.number(0, 32), 2) + b"\0"))
    return step(o, form, b"\xc9")


# ---- strings ----


def _string(opcode: int, *, compares: bool = False) -> Recipe:
    def recipe(o: Operands, form: str) -> Step:
        size = o.size()
        prefix = o.pick(b"", b"\xf3", *([b"\xf2"] if compares else []))
        count = o.number(0, LONGEST_STRING)
        pointer = 8 if o.scratch >> 32 else min(o.width // 8, 4)
        for register in (RSI, RDI):
            start = o.scratch + o.number(STRING_MARGIN, SCRATCH_SIZE - STRING_MARGIN)
            o.setup.append(set_register(o.width, pointer, register, start))
        o.setup.append(set_register(o.width, min(o.width // 8, 4), RCX, count))
        code = prefix + encode(o.width, bytes([opcode | (size > 1)]), size)
        return step(o, form, code, defines=ALL_FLAGS if compares and (count or not prefix) else NO_FLAGS)

    return recipe


# ---- jumps forward ----


def _jump(short: bytes, near: bytes, reads: Rflags = NO_FLAGS) -> Recipe:
    return lambda o, form: (Jump(form, short, near, o.number(0, 3), reads),)


def _jcc(o: Operands, form: str) -> Step:
    condition = o.number(0, 15)
    opcodes = bytes([0x70 | condition]), bytes([0x0F, 0x80 | condition])
    return (Jump(form, *opcodes, o.number(0, 3), CONDITIONS[condition >> 1]),)


MOVES: dict[str, Recipe] = {
    "mov": _mov,
    "movzx": _extend(0xB6),
    "movsx": _extend(0xBE),
    "movsxd": _movsxd,
    "cbw": _convert(b"\x98"),
    "cwd": _convert(b"\x99"),
    "lea": _lea,
    "xchg": _exchange(b"\x86"),
    "xadd": _exchange(b"\x0f\xc0"),
    "cmpxchg": _exchange(b"\x0f\xb0"),
    "cmpxchg8b": _cmpxchg8b,
    "bswap": _bswap,
    "setcc": _setcc,
    "cmovcc": _cmovcc,
    "xlat": _fixed(b"\xd7"),
    "clc": _fixed(b"\xf8", defines=CF),
    "stc": _fixed(b"\xf9", defines=CF),
    "cmc": _fixed(b"\xf5", reads=CF, defines=CF),
    "cld": _fixed(b"\xfc"),
    "std": _fixed(b"\xfd"),
    "lahf": _fixed(b"\x9f", reads=AH_FLAGS),
    "sahf": _fixed(b"\x9e", defines=AH_FLAGS),
    "push": _push,
    "pop": _pop,
    "pushf": _pushf,
    "popf": _popf,
    "pusha": _fixed(b"\x60"),
    "leave": _enter,
    "movs": _string(0xA4),
    "stos": _string(0xAA),
    "lods": _string(0xAC),
    "cmps": _string(0xA6, compares=True),
    "scas": _string(0xAE, compares=True),
    "jmp": _jump(b"\xeb", b"\xe9"),
    "jcc": _jcc,
    "call": _jump(b"", b"\xe8"),
    "loop": _jump(b"\xe2", b""),
    "loope": _jump(b"\xe1", b"", ZF),
    "loopne": _jump(b"\xe0", b"", ZF),
    "jcxz": _jump(b"\xe3", b""),
}
