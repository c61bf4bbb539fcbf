"""``Wire``: packets over two file descriptors, with acknowledgements, and Ctrl-C while the guest runs.

    between commands     receive() waits, and looks up now and then
    during a command     a thread of its own listens for 0x03, and for the end

A peer that sends more than one command ahead waits; one that does not read what it is sent is given up. Leaves out
where the descriptors come from: see ``server``.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from pykvm.observe.gdbstub.packets import Damaged, Packet, PacketReader, Sign, encode

__all__ = ["Disconnected", "Wire"]

PIECE = 4096  # bytes read or written at once; a pipe that can be written takes as many
MOST_AHEAD = 16  # packets that wait for the command before them; then nothing more is read
PATIENCE = 30.0  # seconds for a peer that does not read
TICK = 0.1


class Disconnected(Exception):
    """The peer is gone: there is nobody to answer any more."""


class Wire:
    """Sends and receives packets over ``source`` and ``sink``, which stay the caller's to close.

    ``on_idle`` is called about ten times a second while nothing comes.
    """

    def __init__(self, source: int, sink: int, on_idle: Callable[[], None]) -> None:
        self._source = source
        self._sink = sink
        self._on_idle = on_idle
        self._reader = PacketReader()
        self._packets: deque[bytes] = deque()
        self._sent: list[bytes] = []  # the last answer, in case it arrived damaged
        self._has_acks = True
        self._is_ended = False

    def receive(self) -> bytes:
        """Return the data of the next packet, once it is there. Raises: Disconnected."""
        while not self._packets:
            if self._is_ended:
                raise Disconnected
            if select.select([self._source], [], [], TICK)[0]:
                self._take()
            else:
                self._on_idle()
        return self._packets.popleft()

    def send(self, answers: list[bytes]) -> None:
        """Send ``answers``, a packet each. Raises: Disconnected."""
        self._sent = [encode(answer) for answer in answers]
        self._write(b"".join(self._sent))

    def leave_out_acks(self) -> None:
        """Neither send acknowledgements from now on, nor wait for any."""
        self._has_acks = False

    @contextlib.contextmanager
    def listening(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Meanwhile call ``interrupt``, from another thread, when Ctrl-C comes or the peer goes."""
        ended, end = os.pipe()
        thread = threading.Thread(target=self._listen, args=(ended, interrupt), name="pykvm gdb", daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.close(end)
            thread.join()
            os.close(ended)

    # ---- inside ----

    def _listen(self, ended: int, interrupt: Callable[[], None]) -> None:
        while not self._is_ended and len(self._packets) < MOST_AHEAD:
            ready, _, _ = select.select([self._source, ended], [], [])
            if ended in ready:
                return
            with contextlib.suppress(Disconnected):
                if self._take():
                    interrupt()
            if self._is_ended:
                interrupt()

    def _take(self) -> bool:
        """Read what is there; return whether Ctrl-C is in it."""
        try:
            data = os.read(self._source, PIECE)
        except OSError:
            data = b""
        if not data:
            self._is_ended = True
        is_interrupted = wants_again = False
        for received in self._reader.feed(data):
            match received:
                case Packet():
                    self._acknowledge(Sign.ACK)
                    self._packets.append(received.data)
                case Damaged():
                    self._complain(received)
                case Sign.NACK:
                    wants_again = True
                case Sign.INTERRUPT:
                    is_interrupted = True
        if wants_again:
            self._write(b"".join(self._sent))
        return is_interrupted

    def _acknowledge(self, sign: Sign) -> None:
        if self._has_acks:
            self._write(bytes([sign.value]))

    def _complain(self, damaged: Damaged) -> None:
        if damaged.may_repeat and self._has_acks:
            self._acknowledge(Sign.NACK)
            return
        self._acknowledge(Sign.ACK)
        self._write(encode(f"E.{damaged.reason}".encode()))

    def _write(self, data: bytes) -> None:
        deadline = time.monotonic() + PATIENCE
        while data:
            try:
                if not select.select([], [self._sink], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise TimeoutError
                data = data[os.write(self._sink, data[:PIECE]) :]
            except OSError:
                self._is_ended = True
                raise Disconnected from None
