"""The keys of a PC keyboard: their names, the scan codes they send, and the characters they stand for.

A key sends its make code when it goes down and its break code when it comes up. Two sets of codes matter:

                       set 1 (IBM PC)          set 2 (IBM AT, what a keyboard speaks)
    a                  1e / 9e                 1c / f0 1c           one code; break: bit 7, or f0 before it
    left               e0 4b / e0 cb           e0 6b / e0 f0 6b     keys that the AT's keyboard did not have
    print, pause       sequences               sequences            written out below

The keyboard controller translates set 2 into set 1 by ``TRANSLATION``. Names are those of QEMU's sendkey. See: IBM PS/2
Hardware Interface Technical Reference, "Keyboard", and Microsoft's Keyboard Scan Code Specification. Leaves out set 3,
layouts other than the US one, multimedia keys, and the shift codes that keyboards add around the cursor keys while
Shift is held or Num Lock is on.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pykvm.errors import ConfigurationError
from pykvm.names import did_you_mean

__all__ = [
    "ALIASES",
    "BREAK_BIT",
    "BREAK_PREFIX",
    "KEYS",
    "TRANSLATION",
    "KeyEvent",
    "ScanCodeSet",
    "TerminalKeys",
    "keys_for_text",
    "parse_keys",
    "scan_code",
]


class ScanCodeSet(enum.Enum):
    """The sets of scan codes, with their numbers in the keyboard's command F0."""

    SET_1 = 1
    SET_2 = 2


BREAK_BIT = 0x80  # set 1: a code with this bit is a key coming up
BREAK_PREFIX = 0xF0  # set 2: the code after this byte is
EXTENDED_PREFIX = b"\xe0"

# Each key's code in set 1 and in set 2.
# fmt: off
PLAIN: Mapping[str, tuple[int, int]] = {
    "esc": (0x01, 0x76), "1": (0x02, 0x16), "2": (0x03, 0x1E), "3": (0x04, 0x26), "4": (0x05, 0x25),
    "5": (0x06, 0x2E), "6": (0x07, 0x36), "7": (0x08, 0x3D), "8": (0x09, 0x3E), "9": (0x0A, 0x46),
    "0": (0x0B, 0x45), "minus": (0x0C, 0x4E), "equal": (0x0D, 0x55), "backspace": (0x0E, 0x66),
    "tab": (0x0F, 0x0D), "q": (0x10, 0x15), "w": (0x11, 0x1D), "e": (0x12, 0x24), "r": (0x13, 0x2D),
    "t": (0x14, 0x2C), "y": (0x15, 0x35), "u": (0x16, 0x3C), "i": (0x17, 0x43), "o": (0x18, 0x44),
    "p": (0x19, 0x4D), "bracket_left": (0x1A, 0x54), "bracket_right": (0x1B, 0x5B), "ret": (0x1C, 0x5A),
    "ctrl": (0x1D, 0x14), "a": (0x1E, 0x1C), "s": (0x1F, 0x1B), "d": (0x20, 0x23), "f": (0x21, 0x2B),
    "g": (0x22, 0x34), "h": (0x23, 0x33), "j": (0x24, 0x3B), "k": (0x25, 0x42), "l": (0x26, 0x4B),
    "semicolon": (0x27, 0x4C), "apostrophe": (0x28, 0x52), "grave_accent": (0x29, 0x0E),
    "shift": (0x2A, 0x12), "backslash": (0x2B, 0x5D), "z": (0x2C, 0x1A), "x": (0x2D, 0x22), "c": (0x2E, 0x21),
    "v": (0x2F, 0x2A), "b": (0x30, 0x32), "n": (0x31, 0x31), "m": (0x32, 0x3A), "comma": (0x33, 0x41),
    "dot": (0x34, 0x49), "slash": (0x35, 0x4A), "shift_r": (0x36, 0x59), "kp_multiply": (0x37, 0x7C),
    "alt": (0x38, 0x11), "spc": (0x39, 0x29), "caps_lock": (0x3A, 0x58), "f1": (0x3B, 0x05), "f2": (0x3C, 0x06),
    "f3": (0x3D, 0x04), "f4": (0x3E, 0x0C), "f5": (0x3F, 0x03), "f6": (0x40, 0x0B), "f7": (0x41, 0x83),
    "f8": (0x42, 0x0A), "f9": (0x43, 0x01), "f10": (0x44, 0x09), "num_lock": (0x45, 0x77),
    "scroll_lock": (0x46, 0x7E), "kp_7": (0x47, 0x6C), "kp_8": (0x48, 0x75), "kp_9": (0x49, 0x7D),
    "kp_subtract": (0x4A, 0x7B), "kp_4": (0x4B, 0x6B), "kp_5": (0x4C, 0x73), "kp_6": (0x4D, 0x74),
    "kp_add": (0x4E, 0x79), "kp_1": (0x4F, 0x69), "kp_2": (0x50, 0x72), "kp_3": (0x51, 0x7A), "kp_0": (0x52, 0x70),
    "kp_decimal": (0x53, 0x71), "sysrq": (0x54, 0x84), "less": (0x56, 0x61), "f11": (0x57, 0x78), "f12": (0x58, 0x07),
}

# The same for keys that came with the keyboard of 101 keys: e0 goes before the code, and before f0.
EXTENDED: Mapping[str, tuple[int, int]] = {
    "kp_enter": (0x1C, 0x5A), "ctrl_r": (0x1D, 0x14), "kp_divide": (0x35, 0x4A), "alt_r": (0x38, 0x11),
    "home": (0x47, 0x6C), "up": (0x48, 0x75), "pgup": (0x49, 0x7D), "left": (0x4B, 0x6B), "right": (0x4D, 0x74),
    "end": (0x4F, 0x69), "down": (0x50, 0x72), "pgdn": (0x51, 0x7A), "insert": (0x52, 0x70), "delete": (0x53, 0x71),
    "meta_l": (0x5B, 0x1F), "meta_r": (0x5C, 0x27), "compose": (0x5D, 0x2F),
}
# fmt: on

# Two keys whose codes are made for old programs: print has a Shift around it; pause is Ctrl and Num Lock, down and up.
SEQUENCES: Mapping[tuple[str, bool], tuple[bytes, bytes]] = {
    ("print", True): (bytes.fromhex("e0 2a e0 37"), bytes.fromhex("e0 12 e0 7c")),
    ("print", False): (bytes.fromhex("e0 b7 e0 aa"), bytes.fromhex("e0 f0 7c e0 f0 12")),
    ("pause", True): (bytes.fromhex("e1 1d 45 e1 9d c5"), bytes.fromhex("e1 14 77 e1 f0 14 f0 77")),
    ("pause", False): (b"", b""),
}

KEYS = frozenset(PLAIN) | frozenset(EXTENDED) | {"print", "pause"}
ALIASES: Mapping[str, str] = {"asterisk": "kp_multiply", "enter": "ret", "menu": "compose", "space": "spc"}

# What the controller makes of a byte of set 2. Answers to commands (0xaa, 0xfa, 0xfe, ...) and 0xe0 stay what they are.
TRANSLATION = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59"
    "65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d"
    "69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61"
    "6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f"
    "52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
    "80 81 82 41 54"
) + bytes(range(0x85, 0x100))


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """A key goes down, or comes up. Raises: ConfigurationError if no key has that name."""

    key: str
    pressed: bool

    def __post_init__(self) -> None:
        if self.key not in KEYS and self.key not in ALIASES:
            raise ConfigurationError(f"no key is called {self.key!r}: {advice(self.key)}")


def scan_code(event: KeyEvent, scan_set: ScanCodeSet) -> bytes:
    """Return what the keyboard sends: one to eight bytes, or none when pause comes up."""
    key = ALIASES.get(event.key, event.key)
    column = 0 if scan_set is ScanCodeSet.SET_1 else 1
    if sequences := SEQUENCES.get((key, event.pressed)):
        return sequences[column]
    prefix, table = (b"", PLAIN) if key in PLAIN else (EXTENDED_PREFIX, EXTENDED)
    code = table[key][column]
    if event.pressed:
        return prefix + bytes((code,))
    return prefix + (bytes((code | BREAK_BIT,)) if column == 0 else bytes((BREAK_PREFIX, code)))


# ---- keys by name ----


def parse_keys(text: str) -> list[KeyEvent]:
    """Return the events of a script such as ``"h e l l o shift-a ret ctrl-c"``.

    White space separates what is typed one after the other; keys joined by ``-`` go down in this order and come up in
    the opposite one. Raises: ConfigurationError if no key has one of these names.
    """
    return [event for chord in text.split() for event in events_of(chord)]


def events_of(chord: str) -> list[KeyEvent]:
    """Return the events of keys held together, such as ``ctrl-alt-delete``."""
    keys = chord.split("-")
    return [KeyEvent(key, True) for key in keys] + [KeyEvent(key, False) for key in reversed(keys)]


def advice(name: str) -> str:
    """Return how to go on after ``name``, which is no key's."""
    close = did_you_mean(name.lower(), sorted(KEYS | set(ALIASES)))
    return (
        close or "keys have QEMU's names, as a, 1, ret, spc, minus, up, f1, kp_enter; shift-a is Shift and a together"
    )


# ---- keys by character ----

NAMED: Mapping[str, str] = {
    "\b": "backspace",
    "\x7f": "backspace",  # what terminals send for it
    "\t": "tab",
    "\n": "ret",
    "\r": "ret",
    "\x1b": "esc",
    " ": "spc",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    "\\": "backslash",
    ",": "comma",
    ".": "dot",
    "/": "slash",
}
SHIFTED: Mapping[str, str] = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))

ESCAPE = 0x1B
# What terminals send, after ESC, for keys that have no character.
ESCAPE_SEQUENCES: Mapping[bytes, str] = {
    **{b"[" + letter: key for letter, key in ((b"A", "up"), (b"B", "down"), (b"C", "right"), (b"D", "left"))},
    **{b"O" + letter: key for letter, key in ((b"A", "up"), (b"B", "down"), (b"C", "right"), (b"D", "left"))},
    **{b"O" + letter: key for letter, key in ((b"P", "f1"), (b"Q", "f2"), (b"R", "f3"), (b"S", "f4"))},
    **{b"[H": "home", b"[F": "end", b"[2~": "insert", b"[3~": "delete", b"[5~": "pgup", b"[6~": "pgdn"},
}
BEGUN_SEQUENCE = rb"\x1b[\[O][ -?]{0,12}"  # an introducer and parameters; with more of them it is none
WHOLE_SEQUENCE = BEGUN_SEQUENCE + rb"[@-~]"


def keys_for_text(text: str) -> list[KeyEvent]:
    """Return the events of typing ``text``, control characters included, on a US keyboard.

    Raises: ConfigurationError if it has a character that is not ASCII.
    """
    for position, character in enumerate(text):
        if not character.isascii():
            raise ConfigurationError(f"a US keyboard cannot type {character!r}, character {position} of the text")
    decoder = TerminalKeys()
    return decoder.feed(text.encode()) + decoder.flush()


def chord_for(character: str) -> str:
    """Return the keys that type an ASCII character: ``a`` is a, ``A`` is shift-a, 0x03 is ctrl-c."""
    if character in NAMED:
        return NAMED[character]
    if character < " ":
        return "ctrl-" + chord_for(chr(ord(character) | 0x40).lower())
    if character in SHIFTED or character.isupper():
        return "shift-" + chord_for(SHIFTED.get(character, character.lower()))
    return character


class TerminalKeys:
    """Turns bytes that a terminal sends into events of a US keyboard; they may come in pieces.

    ESC is a key and the start of an escape sequence: it is held back until the next byte, or ``flush()``, says which.
    Bytes that are not ASCII are dropped, and so are escape sequences of keys not known here.
    """

    def __init__(self) -> None:
        self._held = b""  # of an escape sequence, what has come so far

    @property
    def is_waiting(self) -> bool:
        """Whether something is held back: ``flush()`` when a moment has passed and nothing followed."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[KeyEvent]:
        """Return the events of ``data``."""
        return [event for byte in data for event in self._take(byte)]

    def flush(self) -> list[KeyEvent]:
        """Return the events of what is held back, which was no escape sequence."""
        held, self._held = self._held, b""
        return [event for byte in held for event in events_of(chord_for(chr(byte)))]

    def _take(self, byte: int) -> list[KeyEvent]:
        if not self._held:
            return self._begin(byte)
        sequence = self._held + bytes((byte,))
        if re.fullmatch(BEGUN_SEQUENCE, sequence):
            self._held = sequence
            return []
        if re.fullmatch(WHOLE_SEQUENCE, sequence):
            self._held = b""
            key = ESCAPE_SEQUENCES.get(sequence[1:])
            return events_of(key) if key else []
        return self.flush() + self._begin(byte)

    def _begin(self, byte: int) -> list[KeyEvent]:
        if byte == ESCAPE:
            self._held = b"\x1b"
            return []
        return events_of(chord_for(chr(byte))) if byte < 0x80 else []
