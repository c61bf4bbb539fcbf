"""pykvm.devices.i8042: the keyboard controller, as IBM's technical reference has it."""

from __future__ import annotations

import pytest

from pykvm.devices import keyboard as keyboard_module
from pykvm.devices.i8042 import (
    DATA_PORT,
    I8042,
    STATUS_PORT,
    Command,
    CommandByte,
    InputLines,
    OutputPort,
    Status,
)
from pykvm.devices.keyboard import Keyboard
from pykvm.devices.resetcontrol import A20Gate, SystemControlPortA
from pykvm.devices.scancodes import KEYS, KeyEvent, ScanCodeSet, keys_for_text, parse_keys, scan_code
from pykvm.testing import DeviceBench, Wire

IDLE = Status.UNLOCK | Status.SYS
AFTER_COMMAND = IDLE | Status.CMD
AS_LEFT = CommandByte.INT | CommandByte.SYS | CommandByte.AUX_OFF | CommandByte.XLATE


class Desk:
    """A keyboard at its controller; a guest at one end and fingers at the other."""

    def __init__(self) -> None:
        self.irq = Wire()
        self.levels = self.irq.levels
        self.resets = 0
        self.keyboard = Keyboard()
        self.a20 = A20Gate()
        self.chip = I8042(self.keyboard, self.irq, self._reset, self.a20)

    def _reset(self) -> None:
        self.resets += 1

    def status(self) -> Status:
        return Status(self.chip.status.read(0, 1)[0])

    def read(self) -> int:
        return self.chip.data.read(0, 1)[0]

    def write(self, value: int) -> None:
        self.chip.data.write(0, bytes((value,)))

    def command(self, command: int, *parameters: int) -> None:
        self.chip.status.write(0, bytes((command,)))
        for parameter in parameters:
            self.write(parameter)

    def ask(self, command: int) -> int:
        """Obey, and return the answer, which must be there at once."""
        self.command(command)
        assert Status.OBF in self.status()
        return self.read()

    def command_byte(self) -> CommandByte:
        return CommandByte(self.ask(Command.READ_RAM))

    def set_command_byte(self, value: CommandByte) -> None:
        self.command(Command.WRITE_RAM, value.value)

    def drain(self) -> bytes:
        """Read for as long as there is something, as a polling driver does."""
        data = b""
        while Status.OBF in self.status():
            data += bytes((self.read(),))
        return data


# ---- at first ----


def test_at_first_it_is_as_firmware_leaves_it() -> None:
    desk = Desk()
    assert desk.status() == IDLE
    assert desk.levels == []
    assert desk.command_byte() == AS_LEFT


def test_an_empty_output_buffer_shows_its_last_byte_again() -> None:
    desk = Desk()
    assert desk.read() == 0
    desk.keyboard.press("a")
    assert [desk.read(), desk.read()] == [0x1E, 0x1E]
    assert desk.status() == IDLE


# ---- from the keyboard to the guest ----


def test_a_key_fills_the_output_buffer_and_raises_the_line_until_it_is_read() -> None:
    desk = Desk()
    desk.keyboard.press("a")
    assert desk.status() == IDLE | Status.OBF
    assert desk.levels == [True]
    assert desk.read() == 0x1E
    assert desk.status() == IDLE
    assert desk.levels == [True, False]


def test_each_byte_makes_an_edge_of_its_own() -> None:
    desk = Desk()
    desk.keyboard.type("a")
    assert desk.levels == [True]
    assert desk.read() == 0x1E
    assert desk.levels == [True, False, True]
    assert desk.read() == 0x9E
    assert desk.levels == [True, False, True, False]


def test_reading_the_status_takes_nothing() -> None:
    desk = Desk()
    desk.keyboard.press("a")
    assert desk.status() == desk.status() == IDLE | Status.OBF


@pytest.mark.parametrize("key", sorted(KEYS))
def test_the_guest_sees_set_1_for_the_keyboard_speaks_set_2_and_the_controller_translates(key: str) -> None:
    desk = Desk()
    desk.keyboard.enqueue(parse_keys(key))
    down, up = (scan_code(KeyEvent(key, pressed), ScanCodeSet.SET_1) for pressed in (True, False))
    assert desk.drain() == down + up


@pytest.mark.parametrize("key", sorted(KEYS))
def test_without_translation_the_guest_sees_set_2(key: str) -> None:
    desk = Desk()
    desk.set_command_byte(AS_LEFT & ~CommandByte.XLATE)
    desk.keyboard.enqueue(parse_keys(key))
    down, up = (scan_code(KeyEvent(key, pressed), ScanCodeSet.SET_2) for pressed in (True, False))
    assert desk.drain() == down + up


def test_translation_reaches_the_keyboards_answers_too() -> None:
    desk = Desk()
    desk.write(keyboard_module.Command.IDENTIFY)
    assert desk.drain() == b"\xfa\xab\x41"
    desk.write(keyboard_module.Command.SCAN_CODE_SET)
    desk.read()
    desk.write(0)
    assert desk.drain() == b"\xfa\x41"


def test_a_sentence_comes_through_whole_and_in_order() -> None:
    desk = Desk()
    text = "Hello, World! " * 100
    assert desk.keyboard.type(text)
    expected = b"".join(scan_code(event, ScanCodeSet.SET_1) for event in keys_for_text(text))
    assert desk.drain() == expected


def test_an_overrun_shows_as_ff_with_translation() -> None:
    desk = Desk()
    for _ in range(30):
        desk.keyboard.press("a")
    assert desk.drain() == b"\x1e" * 17 + b"\xff"  # one in the output buffer, 16 in the keyboard


# ---- interrupt and interface, on and off ----


def test_without_int_the_line_stays_low_and_goes_up_once_it_is_set() -> None:
    desk = Desk()
    desk.set_command_byte(AS_LEFT & ~CommandByte.INT)
    desk.keyboard.press("a")
    assert (desk.levels, desk.status()) == ([], AFTER_COMMAND & ~Status.CMD | Status.OBF)
    desk.set_command_byte(AS_LEFT)
    assert desk.levels == [True]
    desk.set_command_byte(AS_LEFT & ~CommandByte.INT)
    assert desk.levels == [True, False]


@pytest.mark.parametrize("by_command", [True, False])
def test_a_disabled_interface_holds_the_keyboard_back(by_command: bool) -> None:
    desk = Desk()
    if by_command:
        desk.command(Command.DISABLE_KEYBOARD)
    else:
        desk.set_command_byte(AS_LEFT | CommandByte.KBD_OFF)
    desk.keyboard.type("a")
    assert Status.OBF not in desk.status()
    assert CommandByte.KBD_OFF in desk.command_byte()
    if by_command:
        desk.command(Command.ENABLE_KEYBOARD)
    else:
        desk.set_command_byte(AS_LEFT)
    assert desk.drain() == b"\x1e\x9e"


def test_a_byte_that_is_there_stays_when_the_interface_is_disabled() -> None:
    desk = Desk()
    desk.keyboard.type("a")
    desk.command(Command.DISABLE_KEYBOARD)
    assert desk.drain() == b"\x1e"


def test_sending_to_the_keyboard_enables_the_interface() -> None:
    desk = Desk()
    desk.command(Command.DISABLE_KEYBOARD)
    desk.write(keyboard_module.Command.ECHO)
    assert desk.drain() == b"\xee"
    assert desk.command_byte() == AS_LEFT


# ---- commands of the controller ----


def test_the_status_tells_to_which_port_the_last_write_went() -> None:
    desk = Desk()
    desk.command(0xFF)
    assert desk.status() == AFTER_COMMAND
    desk.write(keyboard_module.Command.ECHO)
    assert desk.status() == IDLE | Status.OBF


def test_the_self_test_passes_and_sets_the_system_flag() -> None:
    desk = Desk()
    desk.set_command_byte(CommandByte(0))
    assert Status.SYS not in desk.status()
    assert desk.ask(Command.TEST_CONTROLLER) == 0x55
    assert desk.status() == AFTER_COMMAND
    assert desk.command_byte() == CommandByte.SYS


def test_the_self_test_drops_what_is_in_the_output_buffer() -> None:
    desk = Desk()
    desk.keyboard.press("a")
    assert desk.ask(Command.TEST_CONTROLLER) == 0x55
    assert desk.levels == [True, False, True, False]


@pytest.mark.parametrize(
    ("command", "answer"), [(Command.TEST_KEYBOARD, 0), (Command.TEST_AUX, 0), (Command.READ_INPUT_PORT, 0x80)]
)
def test_a_command_is_answered(command: Command, answer: int) -> None:
    assert Desk().ask(command) == answer


def test_an_answer_waits_behind_a_scan_code_and_before_the_next() -> None:
    desk = Desk()
    desk.keyboard.type("a")
    desk.command(Command.READ_RAM)
    assert desk.drain() == bytes((0x1E, AS_LEFT.value, 0x9E))


def test_of_two_answers_that_wait_the_last_counts() -> None:
    desk = Desk()
    desk.keyboard.press("a")
    desk.command(Command.READ_INPUT_PORT)
    desk.command(Command.TEST_KEYBOARD)
    assert desk.drain() == b"\x1e\x00"


def test_answers_of_the_controller_raise_the_line_as_well() -> None:
    desk = Desk()
    desk.ask(Command.TEST_KEYBOARD)
    assert desk.levels == [True, False]


def test_the_ram_keeps_32_bytes_the_first_is_the_command_byte() -> None:
    desk = Desk()
    for address in range(1, 0x20):
        desk.command(Command.WRITE_RAM + address, 0xE0 - address)
    assert [desk.ask(Command.READ_RAM + address) for address in range(0x20)] == [
        AS_LEFT.value,
        *(0xE0 - address for address in range(1, 0x20)),
    ]


def test_a_parameter_that_does_not_come_is_not_waited_for_after_the_next_command() -> None:
    desk = Desk()
    desk.command(Command.WRITE_RAM)
    desk.command(Command.ENABLE_KEYBOARD)
    desk.write(keyboard_module.Command.ECHO)
    assert desk.drain() == b"\xee"
    assert desk.command_byte() == AS_LEFT


@pytest.mark.parametrize("command", [0x00, 0x1F, 0x40, 0x5F, 0x80, 0xA4, 0xAC, 0xC1, 0xD5, 0xDE, 0xEF, 0xFF])
def test_other_commands_do_nothing(command: int) -> None:
    desk = Desk()
    desk.command(command)
    assert (desk.status(), desk.levels, desk.resets) == (AFTER_COMMAND, [], 0)


def test_a_byte_can_be_put_into_the_output_buffer_as_if_the_keyboard_had_sent_it() -> None:
    desk = Desk()
    desk.command(Command.WRITE_OUTPUT_BUFFER, 0x1C)
    assert desk.levels == [True]
    assert desk.drain() == b"\x1c", "it is not translated"


def test_the_input_lines_are_high_unless_the_interface_is_disabled() -> None:
    desk = Desk()
    assert InputLines(desk.ask(Command.READ_TEST_INPUTS)) == InputLines.CLOCK | InputLines.DATA
    desk.command(Command.DISABLE_KEYBOARD)
    assert InputLines(desk.ask(Command.READ_TEST_INPUTS)) == InputLines.DATA


# ---- the auxiliary port ----


def test_the_auxiliary_port_is_switched_in_the_command_byte() -> None:
    desk = Desk()
    desk.command(Command.ENABLE_AUX)
    assert desk.command_byte() == AS_LEFT & ~CommandByte.AUX_OFF
    desk.command(Command.DISABLE_AUX)
    assert desk.command_byte() == AS_LEFT


def test_a_byte_of_the_auxiliary_device_is_marked_and_raises_no_irq_1() -> None:
    desk = Desk()
    desk.command(Command.WRITE_AUX_OUTPUT_BUFFER, 0x5A)
    assert desk.status() == IDLE | Status.OBF | Status.AUX
    assert desk.read() == 0x5A
    assert (desk.status(), desk.levels) == (IDLE, [])


def test_what_is_sent_to_the_auxiliary_device_times_out_for_there_is_none() -> None:
    desk = Desk()
    desk.command(Command.WRITE_AUX, 0xF2)
    assert desk.status() == IDLE | Status.OBF | Status.AUX | Status.TIMEOUT
    assert desk.read() == 0xFE
    assert desk.status() == IDLE


# ---- A20 and reset ----


def test_the_output_port_shows_and_moves_the_a20_gate() -> None:
    desk = Desk()
    idle = OutputPort.RESET | OutputPort.A20 | OutputPort.CLOCK | OutputPort.DATA
    assert OutputPort(desk.ask(Command.READ_OUTPUT_PORT)) == idle
    desk.command(Command.WRITE_OUTPUT_PORT, OutputPort.RESET.value)
    assert not desk.a20.is_open
    assert OutputPort(desk.ask(Command.READ_OUTPUT_PORT)) == idle & ~OutputPort.A20
    desk.command(Command.WRITE_OUTPUT_PORT, 0xDF)
    assert (desk.a20.is_open, desk.resets) == (True, 0)


def test_the_output_port_shows_whose_byte_waits_and_whether_the_clock_is_on() -> None:
    desk = Desk()
    desk.keyboard.press("a")
    desk.command(Command.DISABLE_KEYBOARD)
    desk.command(Command.READ_OUTPUT_PORT)
    desk.read()
    pins = OutputPort(desk.read())
    assert OutputPort.IRQ1 in pins
    assert OutputPort.CLOCK not in pins
    desk.command(Command.WRITE_AUX_OUTPUT_BUFFER, 0)
    desk.command(Command.READ_OUTPUT_PORT)
    desk.read()
    assert OutputPort(desk.read()) & (OutputPort.IRQ1 | OutputPort.IRQ12) == OutputPort.IRQ12


def test_two_commands_move_the_a20_gate_by_themselves() -> None:
    desk = Desk()
    desk.command(Command.CLOSE_A20)
    assert not desk.a20.is_open
    desk.command(Command.OPEN_A20)
    assert desk.a20.is_open


def test_port_92_and_the_controller_move_the_same_gate() -> None:
    desk = Desk()
    port_92 = SystemControlPortA(desk.a20, print)
    desk.command(Command.CLOSE_A20)
    assert port_92.read(0, 1) == b"\x00"
    port_92.write(0, b"\x02")
    assert OutputPort.A20 in OutputPort(desk.ask(Command.READ_OUTPUT_PORT))


def test_a_controller_that_is_given_no_gate_has_its_own() -> None:
    assert I8042(Keyboard(), Wire(), print).a20.is_open


@pytest.mark.parametrize("command", range(0xF0, 0x100))
def test_pulsing_the_reset_pin_resets(command: int) -> None:
    desk = Desk()
    desk.command(command)
    assert desk.resets == (command % 2 == 0)


def test_the_output_ports_reset_bit_resets_when_it_is_0() -> None:
    desk = Desk()
    desk.command(Command.WRITE_OUTPUT_PORT, OutputPort.A20.value)
    assert desk.resets == 1


# ---- on a bus ----


def test_the_two_ports_leave_the_one_between_them_to_others() -> None:
    desk = Desk()
    bus = DeviceBench(pio={DATA_PORT: (desk.chip.data, 1), STATUS_PORT: (desk.chip.status, 1)}).pio
    bus.write(STATUS_PORT, b"\xaa")
    assert bus.read(STATUS_PORT, 1) == bytes(((AFTER_COMMAND | Status.OBF).value,))
    assert bus.read(DATA_PORT, 4) == b"\x55\xff\xff\xff"


def test_the_sequence_by_which_operating_systems_start_the_controller_works() -> None:
    desk = Desk()
    desk.keyboard.press("a")
    desk.command(Command.DISABLE_KEYBOARD)
    desk.command(Command.DISABLE_AUX)
    desk.drain()
    config = desk.command_byte() & ~(CommandByte.INT | CommandByte.XLATE)
    desk.set_command_byte(config)
    assert desk.ask(Command.TEST_CONTROLLER) == 0x55
    desk.set_command_byte(config)
    assert desk.ask(Command.TEST_KEYBOARD) == 0
    desk.command(Command.ENABLE_KEYBOARD)
    desk.write(keyboard_module.Command.RESET)
    assert desk.drain() == b"\xfa\xaa"
    desk.write(keyboard_module.Command.IDENTIFY)
    assert desk.drain() == b"\xfa\xab\x83"
    desk.set_command_byte(config & ~CommandByte.KBD_OFF | CommandByte.INT | CommandByte.XLATE)
    desk.levels.clear()
    desk.keyboard.type("a")
    assert (desk.drain(), desk.levels) == (b"\x1e\x9e", [True, False, True, False])
