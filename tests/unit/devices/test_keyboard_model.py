"""pykvm.devices.keyboard at pykvm.devices.i8042 against a small model: any sequence of accesses, keys and commands."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pykvm.devices import Disconnected
from pykvm.devices.i8042 import I8042
from pykvm.devices.keyboard import Keyboard
from pykvm.devices.resetcontrol import A20Gate, SystemControlPortA
from pykvm.devices.scancodes import KEYS, TRANSLATION, KeyEvent, ScanCodeSet, TerminalKeys, scan_code

bytes_ = st.integers(0, 0xFF)
widths = st.sampled_from([1, 2, 4, 8])
keys = st.sampled_from(["a", "left", "print", "pause"]) | st.sampled_from(sorted(KEYS))
events = st.builds(KeyEvent, keys, st.booleans())

# Values that switch something, so that random ones do not drown them.
commands = (
    st.sampled_from([0x20, 0x60, 0x60, 0xA7, 0xA8, 0xAA, 0xAD, 0xAE, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xFE]) | bytes_
)
values = st.sampled_from([0, 1, 2, 3, 0x45, 0x65, 0x25, 0x55, 0xED, 0xEE, 0xF0, 0xF0, 0xF2, 0xF3]) | bytes_
keyboard_commands = st.sampled_from([0xF4, 0xF5, 0xF6, 0xFE, 0xFF])


class KeyboardModel:
    """The keyboard written down again: lists, and numbers straight from the manual."""

    def __init__(self) -> None:
        self.queue: list[KeyEvent] = []
        self.codes: list[int] = []
        self.answers: list[int] = []
        self.last = 0xAA
        self.option_of = 0
        self.enabled = True
        self.set = 2
        self.leds = 0

    def strike(self, event: KeyEvent) -> None:
        code = list(scan_code(event, ScanCodeSet(self.set)))
        if len(self.codes) + len(code) <= 16:
            self.codes += code
        elif self.codes[-1] not in (0x00, 0xFF):
            self.codes.append(0xFF if self.set == 1 else 0x00)

    def take(self) -> int | None:
        if self.answers:
            byte = self.answers.pop(0)
        elif self.option_of:
            return None
        else:
            while not self.codes and self.enabled and self.queue:
                self.strike(self.queue.pop(0))
            if not self.codes:
                return None
            byte = self.codes.pop(0)
        if byte != 0xFE:
            self.last = byte
        return byte

    def send(self, byte: int) -> None:
        option_of, self.option_of = self.option_of, 0
        self.answers = self.answer(byte) if not option_of or byte >= 0x80 else self.option(option_of, byte)

    def answer(self, byte: int) -> list[int]:
        if byte in (0xED, 0xF0, 0xF3):
            self.option_of = byte
        if byte in (0xF0, 0xF4, 0xF5, 0xF6, 0xFF):
            self.codes = []
        if byte in (0xF5, 0xF6, 0xFF):
            self.set, self.leds = 2, 0
        self.enabled = (self.enabled or byte in (0xF4, 0xFF)) and byte != 0xF5
        special = {0xEE: [0xEE], 0xF2: [0xFA, 0xAB, 0x83], 0xFE: [self.last], 0xFF: [0xFA, 0xAA]}
        known = [0xFA] if byte in (0xED, 0xF0, 0xF3, 0xF4, 0xF5, 0xF6) else [0xFE]
        return special.get(byte, known)

    def option(self, command: int, byte: int) -> list[int]:
        if command == 0xED:
            self.leds = byte & 7
        if command == 0xF0 and byte == 0:
            return [0xFA, self.set]
        if command == 0xF0 and byte > 2:
            return [0xFE]
        if command == 0xF0:
            self.set = byte
        return [0xFA]


class ControllerModel:
    """The controller, the same way."""

    def __init__(self, keyboard: KeyboardModel) -> None:
        self.keyboard = keyboard
        self.ram = [0x65] + [0] * 31
        self.buffer = [0, 0]  # byte, and its status bits
        self.answers: list[list[int]] = []
        self.prefix = False
        self.parameter_of = 0
        self.command_last = False
        self.a20 = True
        self.resets = 0

    def fill(self) -> None:
        """Move what can move into the output buffer."""
        if self.buffer[1]:
            return
        if self.answers:
            self.buffer = self.answers.pop()
            self.answers = []
        elif not self.ram[0] & 0x10:
            byte = self.keyboard.take()
            if byte == 0xF0 and self.ram[0] & 0x40:
                self.prefix = True
                byte = self.keyboard.take()
            if byte is not None:
                if self.ram[0] & 0x40:
                    byte = TRANSLATION[byte] | 0x80 * self.prefix
                self.prefix = False
                self.buffer = [byte, 0x01]

    def line(self) -> bool:
        return self.buffer[1] == 0x01 and bool(self.ram[0] & 1)

    def status(self) -> int:
        return 0x10 | self.buffer[1] | self.ram[0] & 4 | 8 * self.command_last

    def read(self) -> int:
        byte, self.buffer[1] = self.buffer[0], 0
        self.fill()
        return byte

    def command(self, command: int) -> None:
        self.command_last = True
        self.parameter_of = command if 0x60 <= command < 0x80 or 0xD1 <= command <= 0xD4 else 0
        if command == 0xAA:
            self.buffer[1] = 0
            self.ram[0] |= 4
        self.ram[0] |= {0xA7: 0x20, 0xAD: 0x10}.get(command, 0)
        self.ram[0] &= ~{0xA8: 0x20, 0xAE: 0x10}.get(command, 0)
        if command in (0xDD, 0xDF):
            self.a20 = command == 0xDF
        if command >= 0xF0 and command % 2 == 0:
            self.resets += 1
        pins = 0x81 + 2 * self.a20 + 0x40 * (not self.ram[0] & 0x10)
        pins += {0x00: 0, 0x01: 0x10}.get(self.buffer[1], 0x20)
        lines = 2 + (not self.ram[0] & 0x10)
        answer = {0xA9: 0, 0xAA: 0x55, 0xAB: 0, 0xC0: 0x80, 0xD0: pins, 0xE0: lines}.get(command)
        if 0x20 <= command < 0x40:
            answer = self.ram[command - 0x20]
        if answer is not None:
            self.answers.append([answer, 0x01])
        self.fill()

    def write(self, value: int) -> None:
        self.command_last = False
        command, self.parameter_of = self.parameter_of, 0
        if not command:
            self.ram[0] &= ~0x10
            self.keyboard.send(value)
        elif command < 0x80:
            self.ram[command - 0x60] = value
        elif command == 0xD1:
            self.a20 = bool(value & 2)
            self.resets += not value & 1
        else:
            self.answers.append({0xD2: [value, 0x01], 0xD3: [value, 0x21], 0xD4: [0xFE, 0x61]}[command])
        self.fill()


class KeyboardAgainstModel(RuleBasedStateMachine):
    """Does the same to keyboard and controller, and to their models."""

    def __init__(self) -> None:
        super().__init__()
        self.level = False
        self.resets = 0
        self.keyboard = Keyboard()
        self.a20 = A20Gate()
        self.chip = I8042(self.keyboard, self, self.reset, self.a20)
        self.keys = KeyboardModel()
        self.model = ControllerModel(self.keys)

    def set_level(self, level: bool) -> None:
        assert level != self.level, "the line is told of changes only"
        self.level = level

    def reset(self) -> None:
        self.resets += 1

    @rule(size=widths)
    def read_data(self, size: int) -> None:
        assert self.chip.data.read(0, size) == bytes(self.model.read() for _ in range(size))

    @rule(size=widths)
    def read_status(self, size: int) -> None:
        assert self.chip.status.read(0, size) == bytes((self.model.status(),)) * size

    @rule(value=values)
    def write_data(self, value: int) -> None:
        self.chip.data.write(0, bytes((value,)))
        self.model.write(value)

    @rule(value=keyboard_commands)
    def command_the_keyboard(self, value: int) -> None:
        self.write_data(value)

    @rule(data=widths.flatmap(lambda size: st.binary(min_size=size, max_size=size)))
    def write_wide_data(self, data: bytes) -> None:
        self.chip.data.write(0, data)
        for value in data:
            self.model.write(value)

    @rule(value=commands)
    def command(self, value: int) -> None:
        self.chip.status.write(0, bytes((value,)))
        self.model.command(value)

    @rule(data=widths.flatmap(lambda size: st.binary(min_size=size, max_size=size)))
    def wide_command(self, data: bytes) -> None:
        self.chip.status.write(0, data)
        for value in data:
            self.model.command(value)

    @rule(command_byte=st.sampled_from([0x45, 0x44, 0x05, 0x04, 0x55, 0x61]))
    def write_command_byte(self, command_byte: int) -> None:
        self.command(0x60)
        self.write_data(command_byte)

    @rule(event=events)
    def strike(self, event: KeyEvent) -> None:
        (self.keyboard.press if event.pressed else self.keyboard.release)(event.key)
        if self.keys.enabled:
            self.keys.strike(event)
        self.model.fill()

    @rule(several=st.lists(events, max_size=12))
    def enqueue(self, several: list[KeyEvent]) -> None:
        assert self.keyboard.enqueue(several)
        self.keys.queue += several
        self.model.fill()

    @invariant()
    def status_and_line_are_the_same(self) -> None:
        assert self.chip.status.read(0, 1)[0] == self.model.status()
        assert self.level == self.model.line()

    @invariant()
    def the_rest_is_the_same(self) -> None:
        assert self.keyboard.leds.value == self.keys.leds
        assert self.keyboard.room == 4096 - len(self.keys.queue)
        assert (self.a20.is_open, self.resets) == (self.model.a20, self.model.resets)


TestKeyboardAgainstModel = KeyboardAgainstModel.TestCase
TestKeyboardAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


accesses = st.lists(
    st.tuples(st.sampled_from(["data", "status"]), st.integers(0, 2**16), widths | st.binary(min_size=1, max_size=8)),
    max_size=60,
)


@given(accesses, st.binary(max_size=50), st.lists(events, max_size=30))
def test_no_access_sequence_raises_or_leaves_keys_that_cannot_be_read(
    sequence: list[tuple[str, int, int | bytes]], typed: bytes, struck: list[KeyEvent]
) -> None:
    keyboard = Keyboard()
    chip = I8042(keyboard, Disconnected(), lambda: None)
    port_92 = SystemControlPortA(chip.a20, lambda reason: None)
    terminal = TerminalKeys()
    assert keyboard.enqueue(terminal.feed(typed))
    for position, (name, offset, access) in enumerate(sequence):
        port = chip.data if name == "data" else chip.status
        if isinstance(access, int):
            assert len(port.read(offset, access)) == access
        else:
            port.write(offset, access)
            port_92.write(offset, access)
        for event in struck[position : position + 1]:
            (keyboard.press if event.pressed else keyboard.release)(event.key)
    for value in (b"\xae", b"\x60"):
        chip.status.write(0, value)
    chip.data.write(0, b"\x45")
    chip.data.write(0, b"\xf4")
    for _ in range(6 * 4096):
        if not chip.status.read(0, 1)[0] & 0x01:
            break
        chip.data.read(0, 1)
    assert not chip.status.read(0, 1)[0] & 0x01
    assert keyboard.room == 4096
