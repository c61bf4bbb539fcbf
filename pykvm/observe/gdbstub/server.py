"""Where gdb attaches: a TCP port, or this process's own standard input and output; one gdb at a time.

    wait --gdb--> attached --disconnect--> wait           the guest stands still meanwhile
                  attached --detach, kill, the guest's end--> over

A second gdb is told that there is one already. Whoever can reach the port has the guest: it is a loopback address
unless somebody asks for another. Leaves out what gdb may say: see ``session``.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from pykvm.errors import ConfigurationError
from pykvm.observe.gdbstub.debuggee import Debuggee, Standing
from pykvm.observe.gdbstub.hostfile import HostFile
from pykvm.observe.gdbstub.packets import encode
from pykvm.observe.gdbstub.session import Ending, Monitor, Session
from pykvm.observe.gdbstub.wire import TICK, Disconnected, Wire

__all__ = ["Address", "Clients", "Pipe", "Port", "parse_address", "serve"]

LOOPBACK = "127.0.0.1"
PORTS = 1 << 16
REFUSAL_TIME = 1.0  # seconds for a second gdb to read that it is one
REFUSAL = encode(b"E.another gdb is attached to this guest: detach that one first")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address that [HOST:]PORT names. Raises: ConfigurationError."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) >= PORTS:
        raise ConfigurationError(f"{text!r} is no place for gdb: write PORT or HOST:PORT, the port 0 to {PORTS - 1}")
    return Address(host.strip("[]") or LOOPBACK, int(port))


class Clients(Protocol):
    """Who may attach."""

    def wait(self, on_idle: Callable[[], None]) -> AbstractContextManager[tuple[int, int]] | None:
        """Return the next client's descriptors, to read from and to write to; None if there will be none."""


def serve(
    clients: Clients,
    debuggee: Debuggee,
    monitor: Monitor,
    file: HostFile,
    *,
    on_idle: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Ending | None:
    """Let one client after the other debug ``debuggee``, until one ends it; None if there will be no more.

    ``on_idle`` is called now and then while nobody wants anything; ``say`` is told who comes and goes.
    """
    last: Standing | None = None
    while True:
        client = clients.wait(on_idle)
        if client is None:
            return None
        with client as (source, sink):
            wire = Wire(source, sink, on_idle)
            session = Session(debuggee, monitor, file, wire.listening, last)
            with contextlib.suppress(Disconnected):
                _converse(wire, session)
        if session.ending is not None:
            return session.ending
        last = session.last
        say("gdb has gone without a word; the guest stands still and waits for another")


def _converse(wire: Wire, session: Session) -> None:
    """Answer until the conversation ends. Raises: Disconnected."""
    while session.ending is None:
        wire.send(session.handle(wire.receive()))
        if session.no_acks:
            wire.leave_out_acks()


# ---- who may attach ----


class Pipe:
    """One client, at the other end of two descriptors: ``target remote | pykvm run ... --gdb -``."""

    def __init__(self, source: int, sink: int) -> None:
        self._ends: tuple[int, int] | None = (source, sink)

    def wait(self, on_idle: Callable[[], None]) -> AbstractContextManager[tuple[int, int]] | None:
        """Return the client the first time, and then nobody."""
        ends, self._ends = self._ends, None
        return None if ends is None else contextlib.nullcontext(ends)


class Port:
    """A TCP port; a context manager that stops listening. Port 0 is any free one: ``address`` says which.

    Raises: ConfigurationError if nobody can listen there.
    """

    def __init__(self, address: Address) -> None:
        self._socket = _listen(address)
        self.address = Address(*self._socket.getsockname()[:2])
        self._arrived: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._is_free = threading.Event()
        self._is_free.set()
        self._thread = threading.Thread(target=self._open_door, name="pykvm gdb port", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def _client(self, connection: socket.socket) -> Iterator[tuple[int, int]]:
        with connection:
            try:
                yield connection.fileno(), connection.fileno()
            finally:
                self._is_free.set()

    def wait(self, on_idle: Callable[[], None]) -> AbstractContextManager[tuple[int, int]] | None:
        """Return the next client, once there is one."""
        while True:
            try:
                return self._client(self._arrived.get(timeout=TICK))
            except queue.Empty:
                on_idle()

    def close(self) -> None:
        """Stop listening; does nothing the second time."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join()
        self._socket.close()
        while not self._arrived.empty():
            self._arrived.get().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_door(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            if not self._is_free.wait(REFUSAL_TIME):  # the one before may be on its way out
                _refuse(connection)
            else:
                self._is_free.clear()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._arrived.put(connection)


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address.host, address.port), family=family)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such host"
        raise ConfigurationError(f"nobody can listen at {address} for gdb: {reason}") from error


def _refuse(connection: socket.socket) -> None:
    """Say why, and wait until it is read, or else closing would take the words back."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(REFUSAL_TIME)
        connection.sendall(b"+" + REFUSAL)
        connection.shutdown(socket.SHUT_WR)
        for _ in range(16):
            if not connection.recv(4096):
                break
