"""pykvm.devices.keyboard: keys at one end, bytes at the other, as IBM's technical reference has it."""

from __future__ import annotations

import pytest

from pykvm.devices.keyboard import BUFFER_SIZE, QUEUE_SIZE, Command, Keyboard, Led
from pykvm.devices.scancodes import parse_keys
from pykvm.errors import ConfigurationError

ACK, RESEND, PASSED = 0xFA, 0xFE, 0xAA
A_DOWN, A_UP = b"\x1c", b"\xf0\x1c"


def taken(keyboard: Keyboard) -> bytes:
    """Everything that the keyboard has to send."""
    return bytes(iter(keyboard.take, None))


def tell(keyboard: Keyboard, *values: int) -> bytes:
    """What the keyboard answers to ``values``, all together."""
    answers = b""
    for value in values:
        keyboard.send(value)
        answers += taken(keyboard)
    return answers


# ---- keys ----


def test_at_first_there_is_nothing_to_send_and_no_light_is_on() -> None:
    keyboard = Keyboard()
    assert keyboard.take() is None
    assert keyboard.leds == Led(0)
    assert keyboard.room == QUEUE_SIZE


def test_a_key_sends_its_make_code_and_its_break_code_of_set_2() -> None:
    keyboard = Keyboard()
    keyboard.press("a")
    assert taken(keyboard) == A_DOWN
    keyboard.release("a")
    assert taken(keyboard) == A_UP


@pytest.mark.parametrize("strike", [Keyboard.press, Keyboard.release])
def test_an_unknown_key_is_refused(strike: object) -> None:
    assert callable(strike)
    with pytest.raises(ConfigurationError, match="no key is called 'escpe'"):
        strike(Keyboard(), "escpe")


def test_the_buffer_holds_16_bytes_and_the_17th_is_the_overrun_code() -> None:
    keyboard = Keyboard()
    for _ in range(BUFFER_SIZE + 5):
        keyboard.press("a")
    assert taken(keyboard) == A_DOWN * BUFFER_SIZE + b"\x00"


def test_in_set_1_the_overrun_code_is_ff() -> None:
    keyboard = Keyboard()
    tell(keyboard, Command.SCAN_CODE_SET, 1)
    for _ in range(BUFFER_SIZE + 1):
        keyboard.press("a")
    assert taken(keyboard) == b"\x1e" * BUFFER_SIZE + b"\xff"


def test_a_key_whose_code_does_not_fit_is_lost_as_a_whole() -> None:
    keyboard = Keyboard()
    for _ in range(BUFFER_SIZE - 1):
        keyboard.press("a")
    keyboard.release("a")
    keyboard.release("a")
    assert taken(keyboard) == A_DOWN * (BUFFER_SIZE - 1) + b"\x00"


def test_after_an_overrun_keys_go_on_once_there_is_room() -> None:
    keyboard = Keyboard()
    for _ in range(BUFFER_SIZE + 1):
        keyboard.press("a")
    for _ in range(3):
        keyboard.take()
    keyboard.release("a")
    assert taken(keyboard) == A_DOWN * (BUFFER_SIZE - 3) + b"\x00" + A_UP


def test_who_is_connected_hears_of_keys() -> None:
    keyboard, heard = Keyboard(), []
    keyboard.connect(lambda: heard.append(keyboard.take()))
    keyboard.press("a")
    keyboard.type("b")
    assert heard == [0x1C, 0x32]


# ---- typing ahead ----


def test_typed_text_never_overruns_however_long() -> None:
    keyboard = Keyboard()
    assert keyboard.type("a" * 1000)
    assert taken(keyboard) == (A_DOWN + A_UP) * 1000
    assert keyboard.room == QUEUE_SIZE


def test_the_queue_takes_all_or_nothing() -> None:
    keyboard = Keyboard()
    assert keyboard.type("a" * (QUEUE_SIZE // 2 - 1))
    assert keyboard.room == 2
    assert not keyboard.enqueue(parse_keys("shift-b"))
    assert keyboard.room == 2
    assert keyboard.enqueue(parse_keys("b"))
    assert keyboard.room == 0
    assert not keyboard.type("c")
    assert keyboard.type("")
    assert taken(keyboard) == (A_DOWN + A_UP) * (QUEUE_SIZE // 2 - 1) + b"\x32\xf0\x32"


def test_text_that_cannot_be_typed_leaves_nothing_behind() -> None:
    keyboard = Keyboard()
    with pytest.raises(ConfigurationError, match="cannot type 'é'"):
        keyboard.type("caf\u00e9")
    assert keyboard.take() is None


def test_a_finger_comes_before_what_is_queued() -> None:
    keyboard = Keyboard()
    keyboard.type("a")
    keyboard.press("b")
    assert taken(keyboard) == b"\x32" + A_DOWN + A_UP


def test_pause_has_no_break_code_and_does_not_stop_what_comes_after() -> None:
    keyboard = Keyboard()
    assert keyboard.enqueue(parse_keys("pause a"))
    assert taken(keyboard).hex() == "e11477e1f014f077" + "1cf01c"


# ---- commands ----


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (Command.RESET, [ACK, PASSED]),
        (Command.SET_DEFAULTS, [ACK]),
        (Command.DISABLE, [ACK]),
        (Command.ENABLE, [ACK]),
        (Command.SET_TYPEMATIC, [ACK]),
        (Command.IDENTIFY, [ACK, 0xAB, 0x83]),
        (Command.SCAN_CODE_SET, [ACK]),
        (Command.ECHO, [0xEE]),
        (Command.SET_LEDS, [ACK]),
    ],
)
def test_a_command_is_answered(command: Command, answer: list[int]) -> None:
    assert tell(Keyboard(), command) == bytes(answer)


@pytest.mark.parametrize("value", [0x00, 0x7F, 0xEC, 0xEF, 0xF1, 0xF7, 0xFD])
def test_what_is_no_command_is_to_be_sent_again(value: int) -> None:
    assert tell(Keyboard(), value) == bytes((RESEND,))


def test_answers_overtake_scan_codes() -> None:
    keyboard = Keyboard()
    keyboard.press("a")
    assert tell(keyboard, Command.IDENTIFY) == b"\xfa\xab\x83" + A_DOWN


def test_a_new_command_takes_back_the_answers_to_the_one_before() -> None:
    keyboard = Keyboard()
    keyboard.send(Command.IDENTIFY)
    assert keyboard.take() == ACK
    assert tell(keyboard, Command.ECHO) == b"\xee"


def test_the_leds_are_set_by_the_option() -> None:
    keyboard = Keyboard()
    assert tell(keyboard, Command.SET_LEDS, 0b110) == bytes((ACK, ACK))
    assert keyboard.leds == Led.CAPS | Led.NUM
    tell(keyboard, Command.SET_LEDS, 0b1111_001 & 0x7F)
    assert keyboard.leds == Led.SCROLL


def test_a_command_in_place_of_an_option_is_obeyed_and_the_option_forgotten() -> None:
    keyboard = Keyboard()
    assert tell(keyboard, Command.SET_LEDS, Command.ECHO) == bytes((ACK, 0xEE))
    assert tell(keyboard, 0b111) == bytes((RESEND,))
    assert keyboard.leds == Led(0)


def test_while_an_option_is_missing_keys_wait() -> None:
    keyboard = Keyboard()
    keyboard.type("a")
    keyboard.press("b")
    assert tell(keyboard, Command.SET_TYPEMATIC) == bytes((ACK,))
    assert tell(keyboard, 0x20) == bytes((ACK,)) + b"\x32" + A_DOWN + A_UP


def test_scan_code_set_1_can_be_chosen_and_asked_for() -> None:
    keyboard = Keyboard()
    assert tell(keyboard, Command.SCAN_CODE_SET, 0) == bytes((ACK, ACK, 2))
    assert tell(keyboard, Command.SCAN_CODE_SET, 1) == bytes((ACK, ACK))
    assert tell(keyboard, Command.SCAN_CODE_SET, 0) == bytes((ACK, ACK, 1))
    keyboard.type("a")
    assert taken(keyboard) == b"\x1e\x9e"


@pytest.mark.parametrize("option", [3, 4, 0x7F])
def test_there_is_no_other_scan_code_set(option: int) -> None:
    keyboard = Keyboard()
    assert tell(keyboard, Command.SCAN_CODE_SET, option) == bytes((ACK, RESEND))
    assert tell(keyboard, Command.SCAN_CODE_SET, 0) == bytes((ACK, ACK, 2))


def test_disabled_it_loses_keys_that_are_pressed_and_leaves_those_in_the_queue() -> None:
    keyboard = Keyboard()
    tell(keyboard, Command.DISABLE)
    keyboard.press("b")
    keyboard.type("a")
    assert keyboard.take() is None
    assert tell(keyboard, Command.ENABLE) == bytes((ACK,)) + A_DOWN + A_UP


def test_set_defaults_leaves_it_disabled_if_it_was_and_reset_enables_it() -> None:
    keyboard = Keyboard()
    tell(keyboard, Command.DISABLE, Command.SET_DEFAULTS)
    keyboard.press("a")
    assert keyboard.take() is None
    tell(keyboard, Command.RESET)
    keyboard.press("a")
    assert taken(keyboard) == A_DOWN


@pytest.mark.parametrize("command", [Command.RESET, Command.SET_DEFAULTS, Command.DISABLE])
def test_defaults_are_set_2_no_lights_and_an_empty_buffer(command: Command) -> None:
    keyboard = Keyboard()
    tell(keyboard, Command.SET_LEDS, 7, Command.SCAN_CODE_SET, 1)
    keyboard.press("a")
    assert tell(keyboard, command) in (bytes((ACK,)), bytes((ACK, PASSED)))
    assert keyboard.leds == Led(0)
    assert tell(keyboard, Command.SCAN_CODE_SET, 0) == bytes((ACK, ACK, 2))


@pytest.mark.parametrize("command", [Command.ENABLE, Command.SCAN_CODE_SET])
def test_some_commands_empty_the_buffer(command: Command) -> None:
    keyboard = Keyboard()
    keyboard.press("a")
    assert tell(keyboard, command) == bytes((ACK,))


def test_resend_gives_the_last_byte_again_and_never_resend_itself() -> None:
    keyboard = Keyboard()
    assert tell(keyboard, Command.RESEND) == bytes((PASSED,)), "it was sent when power came on"
    tell(keyboard, Command.IDENTIFY)
    assert tell(keyboard, Command.RESEND) == b"\x83"
    tell(keyboard, 0x00)
    assert tell(keyboard, Command.RESEND, Command.RESEND) == b"\x83\x83"
