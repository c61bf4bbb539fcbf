"""pykvm.devices.scancodes: two tables that must agree, scripts, text, and what a terminal sends."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.scancodes import (
    ALIASES,
    KEYS,
    TRANSLATION,
    KeyEvent,
    ScanCodeSet,
    TerminalKeys,
    keys_for_text,
    parse_keys,
    scan_code,
)
from pykvm.errors import ConfigurationError

SET_1, SET_2 = ScanCodeSet.SET_1, ScanCodeSet.SET_2
UP_AND_DOWN = [True, False]


def translated(codes: bytes) -> bytes:
    """What a keyboard controller with translation on makes of ``codes``."""
    result, break_bit = bytearray(), 0
    for code in codes:
        if code == 0xF0:
            break_bit = 0x80
        else:
            result.append(TRANSLATION[code] | break_bit)
            break_bit = 0
    return bytes(result)


def chords(events: list[KeyEvent]) -> list[str]:
    """The keys that went down, those of a chord joined by ``-``; every key comes up again, last one first."""
    result: list[str] = []
    down: list[str] = []
    chord = ""
    for event in events:
        if event.pressed:
            chord = f"{chord}-{event.key}" if down else event.key
            down.append(event.key)
        else:
            assert down.pop() == event.key
            if not down:
                result.append(chord)
    assert not down
    return result


# ---- codes ----


@pytest.mark.parametrize("pressed", UP_AND_DOWN)
@pytest.mark.parametrize("key", sorted(KEYS))
def test_set_2_translated_is_set_1(key: str, pressed: bool) -> None:
    event = KeyEvent(key, pressed)
    assert translated(scan_code(event, SET_2)) == scan_code(event, SET_1)


@pytest.mark.parametrize("scan_set", ScanCodeSet)
def test_no_two_keys_send_the_same(scan_set: ScanCodeSet) -> None:
    codes = [scan_code(KeyEvent(key, pressed), scan_set) for key in KEYS for pressed in UP_AND_DOWN]
    codes.remove(b"")  # pause coming up
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("key", "set_1", "set_2"),
    [
        ("a", "1e 9e", "1c f0 1c"),
        ("esc", "01 81", "76 f0 76"),
        ("ret", "1c 9c", "5a f0 5a"),
        ("f7", "41 c1", "83 f0 83"),
        ("sysrq", "54 d4", "84 f0 84"),
        ("left", "e0 4b e0 cb", "e0 6b e0 f0 6b"),
        ("ctrl_r", "e0 1d e0 9d", "e0 14 e0 f0 14"),
        ("print", "e0 2a e0 37 e0 b7 e0 aa", "e0 12 e0 7c e0 f0 7c e0 f0 12"),
        ("pause", "e1 1d 45 e1 9d c5", "e1 14 77 e1 f0 14 f0 77"),
    ],
)
def test_keys_send_what_the_specification_says(key: str, set_1: str, set_2: str) -> None:
    for scan_set, codes in ((SET_1, set_1), (SET_2, set_2)):
        sent = scan_code(KeyEvent(key, True), scan_set) + scan_code(KeyEvent(key, False), scan_set)
        assert sent.hex(" ") == codes


def test_the_letters_lie_in_set_1_as_they_lie_on_the_keyboard() -> None:
    rows = {0x02: "1234567890", 0x10: "qwertyuiop", 0x1E: "asdfghjkl", 0x2C: "zxcvbnm"}
    for first, row in rows.items():
        codes = b"".join(scan_code(KeyEvent(key, True), SET_1) for key in row)
        assert codes == bytes(range(first, first + len(row)))


def test_the_translation_is_one_to_one_below_0x80_and_leaves_answers_and_prefixes_alone() -> None:
    assert sorted(TRANSLATION[:0x80]) == sorted({*range(1, 0x80), 0xFF})
    assert len(TRANSLATION) == 0x100
    for value in (0xAA, 0xAB, 0xE0, 0xE1, 0xEE, 0xFA, 0xFE):
        assert TRANSLATION[value] == value


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_a_second_name_is_the_same_key(alias: str) -> None:
    assert ALIASES[alias] in KEYS
    assert scan_code(KeyEvent(alias, True), SET_2) == scan_code(KeyEvent(ALIASES[alias], True), SET_2)


# ---- scripts ----


def test_a_script_presses_and_releases_key_after_key() -> None:
    assert parse_keys("h i") == [
        KeyEvent("h", True),
        KeyEvent("h", False),
        KeyEvent("i", True),
        KeyEvent("i", False),
    ]


def test_keys_joined_by_a_hyphen_are_held_together_and_come_up_in_the_opposite_order() -> None:
    assert parse_keys("ctrl-alt-delete") == [
        KeyEvent("ctrl", True),
        KeyEvent("alt", True),
        KeyEvent("delete", True),
        KeyEvent("delete", False),
        KeyEvent("alt", False),
        KeyEvent("ctrl", False),
    ]


def test_any_white_space_separates_and_an_empty_script_is_no_event() -> None:
    assert chords(parse_keys("\t a\n shift-b  ret\n")) == ["a", "shift-b", "ret"]
    assert parse_keys(" \n") == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("h escap", r"no key is called 'escap': did you mean esc"),
        ("shift-backspce", r"no key is called 'backspce': did you mean backspace"),
        ("CTRL-c", r"no key is called 'CTRL': did you mean .*ctrl"),
        ("zzzzzzzzz", r"no key is called 'zzzzzzzzz': keys have QEMU's names"),
        ("ctrl-", r"no key is called ''"),
        ("-", r"no key is called ''"),
    ],
)
def test_an_unknown_key_in_a_script_is_named_with_what_comes_close(script: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_keys(script)


def test_an_event_of_an_unknown_key_cannot_be_made() -> None:
    with pytest.raises(ConfigurationError, match="'nokey'"):
        KeyEvent("nokey", False)


@given(st.text(alphabet="ab-ctrl shift\n\x00é", max_size=30))
def test_a_script_is_parsed_or_refused_and_nothing_else(script: str) -> None:
    try:
        events = parse_keys(script)
    except ConfigurationError:
        return
    assert sum(event.pressed for event in events) * 2 == len(events)


# ---- text ----


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("aZ5", "a shift-z 5"),
        (" -=[];'`\\,./", "spc minus equal bracket_left bracket_right semicolon apostrophe grave_accent backslash "
         "comma dot slash"),
        ("!@#$%^&*()", "shift-1 shift-2 shift-3 shift-4 shift-5 shift-6 shift-7 shift-8 shift-9 shift-0"),
        ("_+{}:\"~|<>?", "shift-minus shift-equal shift-bracket_left shift-bracket_right shift-semicolon "
         "shift-apostrophe shift-grave_accent shift-backslash shift-comma shift-dot shift-slash"),
        ("\n\r\t", "ret ret tab"),
        ("\x7f\x08", "backspace backspace"),
        ("\x01\x03\x1a", "ctrl-a ctrl-c ctrl-z"),
        ("\x00\x1c\x1d\x1e\x1f", "ctrl-shift-2 ctrl-backslash ctrl-bracket_right ctrl-shift-6 ctrl-shift-minus"),
        ("\x1b", "esc"),
        ("", ""),
    ],
)  # fmt: skip
def test_text_is_typed_as_on_a_us_keyboard(text: str, keys: str) -> None:
    assert chords(keys_for_text(text)) == keys.split()


def test_every_ascii_character_can_be_typed_and_printable_ones_are_told_apart() -> None:
    typed = {character: tuple(keys_for_text(character)) for character in map(chr, range(0x80))}
    assert all(typed.values())
    printable = [typed[character] for character in string.printable if character.isprintable()]
    assert len(set(printable)) == len(printable)


@pytest.mark.parametrize("text", ["naïve", "日本", "a\x80"])
def test_text_that_a_us_keyboard_cannot_type_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="a US keyboard cannot type"):
        keys_for_text(text)


# ---- a terminal ----


@pytest.mark.parametrize(
    ("sequence", "key"),
    [
        (b"\x1b[A", "up"),
        (b"\x1b[B", "down"),
        (b"\x1b[C", "right"),
        (b"\x1b[D", "left"),
        (b"\x1bOA", "up"),
        (b"\x1bOP", "f1"),
        (b"\x1b[H", "home"),
        (b"\x1b[3~", "delete"),
        (b"\x1b[6~", "pgdn"),
    ],
)
def test_an_escape_sequence_is_a_key_however_it_is_cut(sequence: bytes, key: str) -> None:
    for cut in range(len(sequence) + 1):
        terminal = TerminalKeys()
        events = terminal.feed(b"x" + sequence[:cut]) + terminal.feed(sequence[cut:] + b"y")
        assert chords(events) == ["x", key, "y"]
        assert not terminal.is_waiting


def test_an_escape_byte_waits_until_it_is_clear_that_nothing_follows() -> None:
    terminal = TerminalKeys()
    assert terminal.feed(b"\x1b") == []
    assert terminal.is_waiting
    assert chords(terminal.flush()) == ["esc"]
    assert not terminal.is_waiting
    assert terminal.flush() == []


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"\x1bx", ["esc", "x"]),
        (b"\x1b\x1b[A", ["esc", "up"]),
        (b"\x1b[\x1b[A", ["esc", "bracket_left", "up"]),
        (b"\x1b[1\n", ["esc", "bracket_left", "1", "ret"]),
        (b"\x1b[", ["esc", "bracket_left"]),
        (b"\x1bO", ["esc", "shift-o"]),
    ],
)
def test_what_turns_out_to_be_no_escape_sequence_was_typed(data: bytes, keys: list[str]) -> None:
    terminal = TerminalKeys()
    assert chords(terminal.feed(data) + terminal.flush()) == keys


def test_escape_sequences_of_unknown_keys_and_bytes_beyond_ascii_are_dropped() -> None:
    assert chords(TerminalKeys().feed(b"a\x1b[1;5Ab\x1b[99zc\xc3\xa9d")) == ["a", "b", "c", "d"]


@given(st.lists(st.binary(max_size=40) | st.text("\x1b[O0123;~AZ", max_size=40).map(str.encode), max_size=10))
def test_any_bytes_in_any_pieces_give_the_same_keys_and_little_is_held_back(pieces: list[bytes]) -> None:
    terminal, whole = TerminalKeys(), TerminalKeys()
    events = [event for piece in pieces for event in terminal.feed(piece)]
    held_back = terminal.flush()
    assert len(held_back) <= 15 * 4
    assert events + held_back == whole.feed(b"".join(pieces)) + whole.flush()
    chords(events + held_back)


def test_an_escape_sequence_that_does_not_end_is_typed_and_not_kept() -> None:
    terminal = TerminalKeys()
    assert len(chords(terminal.feed(b"\x1b[" + b"1" * 10_000))) >= 9_000
