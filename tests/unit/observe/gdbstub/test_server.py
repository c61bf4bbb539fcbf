from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.errors import ConfigurationError
from pykvm.observe.gdbstub import (
    Address,
    Ended,
    Ending,
    HostFile,
    Outcome,
    Pipe,
    Port,
    Standing,
    Why,
    parse_address,
    serve,
)
from pykvm.observe.gdbstub.packets import PACKET_SIZE, Packet, PacketReader, Received, Sign, encode
from tests.unit.observe.gdbstub.conftest import FakeGuest, answer_monitor

TIMEOUT = 20.0


class Gdb:
    """gdb's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(TIMEOUT)
        self._reader = PacketReader(2 * PACKET_SIZE)
        self._received: list[Received] = []

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def next(self) -> Received | None:
        """Return what comes next, None at the end."""
        while not self._received:
            data = self.connection.recv(4096)
            if not data:
                return None
            self._received = self._reader.feed(data)
        return self._received.pop(0)

    def ask(self, packet: bytes) -> bytes:
        """Return the answer to ``packet``."""
        self.send(encode(packet))
        return self.answer()

    def answer(self) -> bytes:
        while True:
            match self.next():
                case Packet(data):
                    return data
                case None:
                    raise EOFError
                case _:
                    pass


class Runner(FakeGuest):
    """A guest that goes on until it is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = threading.Event()
        self.interrupted = threading.Event()

    def go(self) -> Outcome:
        self.runs.set()
        assert self.interrupted.wait(TIMEOUT)
        self.interrupted.clear()
        return Standing(Why.INTERRUPT)

    def interrupt(self) -> None:
        self.interrupted.set()


class Served:
    """A server on a port, on a thread of its own."""

    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.said: list[str] = []
        self.port = Port(Address("127.0.0.1", 0))
        self.ending: list[Ending | None] = []
        self._attached: list[Gdb] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def attach(self) -> Gdb:
        address = self.port.address
        self._attached.append(Gdb(socket.create_connection((address.host, address.port), TIMEOUT)))
        return self._attached[-1]

    def end(self) -> Ending | None:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        return self.ending[0]

    def close(self) -> None:
        for gdb in self._attached:
            gdb.connection.close()
        if self._thread.is_alive():
            last = self.attach()
            last.send(encode(b"k"))
            self.end()
            last.connection.close()
        self.port.close()

    def _serve(self) -> None:
        self.ending.append(
            serve(self.port, self.guest, answer_monitor, HostFile("guest", b"elf"), say=self.said.append)
        )


@pytest.fixture
def served() -> Iterator[Callable[[FakeGuest], Served]]:
    all_served: list[Served] = []

    def make(guest: FakeGuest) -> Served:
        all_served.append(Served(guest))
        return all_served[-1]

    yield make
    for one in all_served:
        one.close()


Serve = Callable[[FakeGuest], Served]


# ---- addresses ----


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("1234", Address("127.0.0.1", 1234)),
        (":1234", Address("127.0.0.1", 1234)),
        ("0", Address("127.0.0.1", 0)),
        ("example:65535", Address("example", 65535)),
        ("[::1]:80", Address("::1", 80)),
    ],
)
def test_a_port_alone_is_on_the_loopback(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "host:", "65536", "-1", "1234567", "host:x", "²", "1 2", ":"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no place for gdb: write PORT or HOST:PORT"):
        parse_address(text)


def test_an_address_can_be_given_to_gdb() -> None:
    assert str(Address("::1", 80)) == "[::1]:80"
    assert str(Address("127.0.0.1", 80)) == "127.0.0.1:80"


def test_a_port_that_is_taken_is_refused_by_name() -> None:
    with Port(Address("127.0.0.1", 0)) as port:
        assert port.address.port != 0
        with pytest.raises(ConfigurationError, match=rf"nobody can listen at {port.address} for gdb: Address already"):
            Port(port.address)
        port.close()


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nobody can listen at"):
        Port(Address("host.invalid", 0))
    with pytest.raises(ConfigurationError, match="nobody can listen at"):
        Port(Address("a" * 300, 0))


# ---- one gdb ----


def test_a_gdb_attaches_asks_and_ends_it(served: Serve) -> None:
    server = served(FakeGuest())
    gdb = server.attach()
    assert gdb.ask(b"?") == b"T05thread:1;"
    gdb.send(encode(b"k"))
    assert server.end() is Ending.KILLED


def test_the_end_of_the_guest_ends_it(served: Serve) -> None:
    server = served(FakeGuest(outcomes=[Ended(31)]))
    assert server.attach().ask(b"c") == b"W1f"
    assert server.end() is Ending.EXITED


def test_packets_are_acknowledged_until_both_agree_not_to(served: Serve) -> None:
    gdb = served(FakeGuest()).attach()
    gdb.send(encode(b"?"))
    assert [gdb.next(), gdb.next()] == [Sign.ACK, Packet(b"T05thread:1;")]
    gdb.send(encode(b"QStartNoAckMode"))
    assert [gdb.next(), gdb.next()] == [Sign.ACK, Packet(b"OK")]
    gdb.send(encode(b"?"))
    assert gdb.next() == Packet(b"T05thread:1;")


def test_a_damaged_packet_is_asked_for_again_and_a_damaged_answer_sent_again(served: Serve) -> None:
    gdb = served(FakeGuest()).attach()
    gdb.send(b"$?#00")
    assert gdb.next() is Sign.NACK
    assert gdb.ask(b"?") == b"T05thread:1;"
    gdb.send(b"-")
    assert gdb.next() == Packet(b"T05thread:1;")
    gdb.send(encode(b"QStartNoAckMode"))
    assert gdb.answer() == b"OK"
    gdb.send(b"$?#00")
    assert gdb.next() == Packet(b"E.the checksum is wrong")


def test_a_packet_that_is_too_long_is_an_error_and_the_next_one_is_answered(served: Serve) -> None:
    gdb = served(FakeGuest()).attach()
    gdb.send(b"$" + b"m" * (PACKET_SIZE + 1) + b"#00")
    assert gdb.answer() == b"E.a packet has at most 16384 bytes, not 16385"
    assert gdb.ask(b"?") == b"T05thread:1;"


def test_somebody_who_is_no_gdb_at_all_does_no_harm(served: Serve) -> None:
    server = served(FakeGuest())
    with server.attach().connection as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n")
    assert server.attach().ask(b"?") == b"T05thread:1;"


# ---- Ctrl-C, and going ----


def test_ctrl_c_interrupts_a_running_guest(served: Serve) -> None:
    guest = Runner()
    gdb = served(guest).attach()
    gdb.send(encode(b"c"))
    assert guest.runs.wait(TIMEOUT)
    gdb.send(b"\x03")
    assert gdb.answer() == b"T02thread:1;"
    assert gdb.ask(b"s") == b"T05thread:1;"


def test_when_gdb_goes_a_running_guest_stands_still_and_waits_for_another(served: Serve) -> None:
    guest = Runner()
    server = served(guest)
    gdb = server.attach()
    gdb.ask(b"Z0,8000,1")
    gdb.send(encode(b"c"))
    assert guest.runs.wait(TIMEOUT)
    gdb.connection.close()
    other = server.attach()
    assert other.ask(b"?") == b"T02thread:1;"
    assert server.said == ["gdb has gone without a word; the guest stands still and waits for another"]
    assert not guest.breakpoints


def test_commands_sent_ahead_wait_for_their_turn(served: Serve) -> None:
    guest = Runner()
    gdb = served(guest).attach()
    gdb.send(encode(b"c"))
    assert guest.runs.wait(TIMEOUT)
    gdb.send(encode(b"s") * 100 + b"\x03")
    guest.interrupt()
    assert gdb.answer() == b"T02thread:1;"
    assert [gdb.answer() for _ in range(100)] == [b"T05thread:1;"] * 100


def test_a_second_gdb_is_told_that_there_is_one(served: Serve) -> None:
    server = served(FakeGuest())
    first = server.attach()
    assert first.ask(b"?") == b"T05thread:1;"
    second = server.attach()
    second.send(encode(b"qSupported"))
    assert second.answer() == b"E.another gdb is attached to this guest: detach that one first"
    with pytest.raises(EOFError):
        second.answer()
    assert first.ask(b"?") == b"T05thread:1;"


# ---- a pipe ----


def test_a_pipe_has_one_gdb_and_then_none() -> None:
    to_stub, from_gdb = os.pipe()
    to_gdb, from_stub = os.pipe()
    os.write(from_gdb, encode(b"?"))
    os.close(from_gdb)
    try:
        said: list[str] = []
        ended = serve(Pipe(to_stub, from_stub), FakeGuest(), answer_monitor, HostFile("", b""), say=said.append)
        assert ended is None
        assert os.read(to_gdb, 100) == b"+" + encode(b"T05thread:1;")
    finally:
        for end in (to_stub, to_gdb, from_stub):
            os.close(end)


def test_whoever_waits_looks_up_now_and_then() -> None:
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    mine, other = socket.socketpair()
    with mine, other, pytest.raises(Enough):
        serve(Pipe(mine.fileno(), mine.fileno()), FakeGuest(), answer_monitor, HostFile("", b""), on_idle=stop)
    with Port(Address("127.0.0.1", 0)) as port, pytest.raises(Enough):
        serve(port, FakeGuest(), answer_monitor, HostFile("", b""), on_idle=stop)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=30) | st.builds(encode, st.binary(max_size=20)), max_size=8))
def test_whatever_bytes_come_the_server_lives_to_their_end(pieces: list[bytes]) -> None:
    mine, other = socket.socketpair()
    with mine, other:
        other.sendall(b"".join(pieces))
        other.shutdown(socket.SHUT_WR)
        ended = serve(Pipe(mine.fileno(), mine.fileno()), FakeGuest(), answer_monitor, HostFile("g", b"x"))
        assert ended in (None, *Ending)
