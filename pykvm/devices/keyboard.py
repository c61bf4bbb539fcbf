"""A PS/2 keyboard of 101 keys: it sends scan codes, and obeys commands.

    command                      answers, after ACK (fa)    command                       answers
    ff  reset                    aa: self-test passed       f2  identify                  fa ab 83
    f6  set defaults                                        f0  scan code set, option     fa, fa; the set, for option 0
    f5  set defaults, disable                               ee  echo                      ee, no ACK
    f4  enable                                              fe  resend                    the last byte that was not fe
    f3  typematic, option        fa                         ed  LEDs, option              fa

Anything else is answered with fe: send it again. Scan codes wait in a buffer of 16 bytes; answers overtake them. At
first it is as firmware leaves it: self-test passed, enabled, scan code set 2. See: IBM PS/2 Hardware Interface
Technical Reference, "Keyboard (101- and 102-Key)". Leaves out auto-repeat (a rate is taken and means nothing), scan
code set 3, and the time that the serial line to the controller takes.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Collection
from typing import ClassVar

from pykvm.devices.fields import BYTE, Bool, Bytes, Choice, Flags, Maybe, Member, Queue, Record
from pykvm.devices.scancodes import ALIASES, KEYS, KeyEvent, ScanCodeSet, keys_for_text, scan_code
from pykvm.devices.state import Remembered, Stateful

__all__ = ["BUFFER_SIZE", "QUEUE_SIZE", "Command", "Keyboard", "Led", "Response"]

BUFFER_SIZE = 16  # bytes of scan codes
QUEUE_SIZE = 4096  # events on the host's side


class Command(enum.IntEnum):
    """What the system may send."""

    SET_LEDS = 0xED
    ECHO = 0xEE
    SCAN_CODE_SET = 0xF0
    IDENTIFY = 0xF2
    SET_TYPEMATIC = 0xF3
    ENABLE = 0xF4
    DISABLE = 0xF5
    SET_DEFAULTS = 0xF6
    RESEND = 0xFE
    RESET = 0xFF


class Response(enum.IntEnum):
    """What the keyboard says when it sends no scan code."""

    OVERRUN = 0x00  # in place of scan codes that were lost; 0xff in set 1
    SELF_TEST_PASSED = 0xAA
    ECHO = 0xEE
    ACK = 0xFA
    RESEND = 0xFE
    OVERRUN_SET_1 = 0xFF


class Led(enum.Flag):
    """The lights, as the option of ED has them.

      7   6   5   4   3    2    1     0
    +---+---+---+---+---+----+---+------+
    | 0 | 0 | 0 | 0 | 0 |CAPS|NUM|SCROLL|
    +---+---+---+---+---+----+---+------+
    """

    SCROLL = 1 << 0
    NUM = 1 << 1
    CAPS = 1 << 2


IDENTITY = (0xAB, 0x83)
OVERRUNS = (Response.OVERRUN, Response.OVERRUN_SET_1)
FIRST_COMMAND = 0x80  # an option is less than this; a byte from here on is a new command, and the option never comes
CURRENT_SET = 0  # option of F0: tell which
ALL_LEDS = Led.SCROLL | Led.NUM | Led.CAPS
ANSWERS = 1 + len(IDENTITY)  # bytes of the longest answer
KEY_EVENT = Record(KeyEvent, key=Choice(*sorted(KEYS | set(ALIASES))), pressed=Bool())


class Keyboard(Stateful):
    """A keyboard: keys at one end, bytes at the other.

    ``press()`` and ``release()`` are a finger, which does not wait: with the buffer full, keys are lost. ``type()`` and
    ``enqueue()`` are a typist who looks at the screen: the next key is not touched before the guest has taken the
    scan codes of the one before, nor while the keyboard is disabled.
    """

    name = "keyboard"
    remembers: ClassVar[Remembered] = {
        "_queue": Queue(KEY_EVENT, QUEUE_SIZE),
        "_codes": Bytes(BUFFER_SIZE + 1),
        "_answers": Bytes(ANSWERS),
        "_last_sent": BYTE,
        "_awaiting": Maybe(Member(Command)),
        "_enabled": Bool(),
        "_scan_set": Member(ScanCodeSet),
        "_leds": Flags(ALL_LEDS),
    }

    def __init__(self) -> None:
        self._queue: deque[KeyEvent] = deque()
        self._codes: deque[int] = deque()  # up to BUFFER_SIZE, and an overrun code
        self._answers: deque[int] = deque()
        self._on_data: Callable[[], None] = lambda: None
        # Hears of keys before they have an effect, and whether they are queued.
        self.on_keys: Callable[[tuple[KeyEvent, ...], bool], None] = lambda events, queued: None
        self._last_sent: int = Response.SELF_TEST_PASSED
        self._awaiting: Command | None = None  # its option
        self._enabled = True
        self._scan_set = ScanCodeSet.SET_2
        self._leds = Led(0)

    # ---- the side of the keys ----

    @property
    def leds(self) -> Led:
        """Return which lights are on."""
        return self._leds

    @property
    def room(self) -> int:
        """Return how many events ``enqueue()`` can take."""
        return QUEUE_SIZE - len(self._queue)

    def press(self, key: str) -> None:
        """Press ``key`` now, before any that are queued. Raises: ConfigurationError if no key has that name."""
        self._strike(KeyEvent(key, True))

    def release(self, key: str) -> None:
        """Release ``key`` now. Raises: ConfigurationError if no key has that name."""
        self._strike(KeyEvent(key, False))

    def type(self, text: str) -> bool:
        """Queue the keys for ``text``; return whether there was room for all of them, or else take none.

        Raises: ConfigurationError if a US keyboard cannot type it.
        """
        return self.enqueue(keys_for_text(text))

    def enqueue(self, events: Collection[KeyEvent]) -> bool:
        """Queue ``events``; return whether there was ``room`` for all of them, or else take none.

        All or none, for half of them might leave a key down.
        """
        if len(events) > self.room:
            return False
        self.on_keys(tuple(events), True)
        self._queue.extend(events)
        self._on_data()
        return True

    def _strike(self, event: KeyEvent) -> None:
        self.on_keys((event,), False)
        if self._enabled:
            self._buffer(event)
            self._on_data()

    def _buffer(self, event: KeyEvent) -> None:
        # A key whose whole code does not fit is lost, and one overrun code stands for any number of them in a row.
        code = scan_code(event, self._scan_set)
        if len(self._codes) + len(code) <= BUFFER_SIZE:
            self._codes.extend(code)
        elif len(self._codes) <= BUFFER_SIZE and self._codes[-1] not in OVERRUNS:
            self._codes.append(OVERRUNS[self._scan_set is ScanCodeSet.SET_1])

    # ---- the side of the controller ----

    def connect(self, on_data: Callable[[], None]) -> None:
        """Call ``on_data`` whenever a key gives the keyboard something to send."""
        self._on_data = on_data

    def take(self) -> int | None:
        """Return the next byte that the keyboard sends, or None.

        While it waits for an option it sends nothing but answers.
        """
        if self._answers:
            return self._sent(self._answers.popleft())
        if self._awaiting is not None:
            return None
        while self._enabled and self._queue and not self._codes:
            self._buffer(self._queue.popleft())
        return self._sent(self._codes.popleft()) if self._codes else None

    def send(self, value: int) -> None:
        """Let the keyboard have a byte, 0 to 0xff: a command, or the option of the one before.

        It answers by ``take()``; answers to an earlier command that nobody took are lost.
        """
        self._answers.clear()
        command, self._awaiting = self._awaiting, None
        if command is not None and value < FIRST_COMMAND:
            self._obey_option(command, value)
        else:
            self._obey(value)

    def _sent(self, value: int) -> int:
        if value != Response.RESEND:
            self._last_sent = value
        return value

    def _obey(self, value: int) -> None:
        match value:
            case Command.SET_LEDS | Command.SET_TYPEMATIC:
                self._await_option(Command(value))
            case Command.SCAN_CODE_SET:
                self._codes.clear()
                self._await_option(Command.SCAN_CODE_SET)
            case Command.ECHO:
                self._answer(Response.ECHO)
            case Command.IDENTIFY:
                self._answer(Response.ACK, *IDENTITY)
            case Command.ENABLE:
                self._codes.clear()
                self._enabled = True
                self._answer(Response.ACK)
            case Command.DISABLE:
                self._set_defaults(enabled=False)
                self._answer(Response.ACK)
            case Command.SET_DEFAULTS:
                self._set_defaults(enabled=self._enabled)
                self._answer(Response.ACK)
            case Command.RESEND:
                self._answer(self._last_sent)
            case Command.RESET:
                self._set_defaults(enabled=True)
                self._answer(Response.ACK, Response.SELF_TEST_PASSED)
            case _:
                self._answer(Response.RESEND)

    def _obey_option(self, command: Command, option: int) -> None:
        match command:
            case Command.SET_LEDS:
                self._leds = Led(option & ALL_LEDS.value)
                self._answer(Response.ACK)
            case Command.SCAN_CODE_SET:
                self._select_set(option)
            case _:  # SET_TYPEMATIC
                self._answer(Response.ACK)

    def _select_set(self, option: int) -> None:
        if option == CURRENT_SET:
            self._answer(Response.ACK, self._scan_set.value)
        elif option in (ScanCodeSet.SET_1.value, ScanCodeSet.SET_2.value):
            self._scan_set = ScanCodeSet(option)
            self._answer(Response.ACK)
        else:
            self._answer(Response.RESEND)

    def _set_defaults(self, *, enabled: bool) -> None:
        self._codes.clear()
        self._scan_set = ScanCodeSet.SET_2
        self._leds = Led(0)
        self._enabled = enabled

    def _await_option(self, command: Command) -> None:
        self._awaiting = command
        self._answer(Response.ACK)

    def _answer(self, *answers: int) -> None:
        self._answers.extend(answers)
