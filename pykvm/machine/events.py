"""What happens without the guest's doing: time passes, and descriptors become readable.

``EventLoop`` is the devices' ``Clock`` in real time, and it watches file descriptors: a terminal, an eventfd. A thread
of its own waits for both, and takes the machine's lock for every call, so that no device is being accessed meanwhile.
The thread exists only during a run, and only if there is something to wait for. Between runs and while the machine is
paused, the clock stands still.

See: epoll(7). Leaves out time inside the kernel: an in-kernel PIT or local APIC does not know of a pause.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from pykvm.devices import SECOND, Alarm, AlarmQueue
from pykvm.errors import ConfigurationError
from pykvm.machine.control import Control

__all__ = ["EventLoop", "Watch"]

MILLISECOND = SECOND // 1000  # epoll counts in these, and rounds up


class Watch:
    """A descriptor that is waited for: ``callback`` is called, once, when it is readable, and again after ``arm()``."""

    def __init__(self, events: EventLoop, fd: int, callback: Callable[[], None]) -> None:
        self.fd = fd
        self.callback = callback
        self.is_armed = False
        self._events = events

    def arm(self) -> None:
        """Wait for the descriptor; does nothing if it is waited for already. With the machine's lock held."""
        self._events.arm(self)

    def cancel(self) -> None:
        """Do not wait for it any more; does nothing the second time."""
        self._events.forget(self)


class EventLoop:
    """The clock of a machine in real time, and its watch over descriptors."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._alarms = AlarmQueue()
        self._watches: dict[int, Watch] = {}
        self._ready: list[Watch] = []  # armed ones that epoll has told of, or does not take: files
        self._passed = 0  # nanoseconds up to the last stop
        self._started: int | None = None  # of the host's clock, while time passes
        self._in_run = False
        self._thread: threading.Thread | None = None
        self._epoll: select.epoll | None = None
        self._doorbell = -1  # an eventfd that gets the thread out of epoll_wait
        self._closed = False

    # ---- the clock ----

    def now(self) -> int:
        """Return the nanoseconds that the machine has run."""
        started = self._started
        return self._passed if started is None else self._passed + time.monotonic_ns() - started

    def call_at(self, when: int, callback: Callable[[], None]) -> Alarm:
        """Call ``callback`` once the clock shows ``when``, on the event loop's thread and with the lock held."""
        with self._control.lock:
            before = self._alarms.next_time()
            alarm = self._alarms.add(when, callback)
            if before is None or when < before:
                self._look_again()
            return alarm

    @property
    def is_calling(self) -> bool:
        """Return whether the calling thread is the event loop's own: it is inside a callback."""
        return self._thread is threading.current_thread()

    # ---- descriptors ----

    def watch(self, fd: int, callback: Callable[[], None]) -> Watch:
        """Call ``callback`` once when ``fd`` is readable, after each ``Watch.arm()``, with the lock held.

        Raises: ConfigurationError if ``fd`` is watched already.
        """
        with self._control.lock:
            if fd in self._watches:
                raise ConfigurationError(f"descriptor {fd} is watched already: cancel() that watch first")
            watch = Watch(self, fd, callback)
            self._watches[fd] = watch
            return watch

    def arm(self, watch: Watch) -> None:
        """See ``Watch.arm``."""
        with self._control.lock:
            if self._watches.get(watch.fd) is not watch or watch.is_armed:
                return
            watch.is_armed = True
            try:
                self._open_epoll().modify(watch.fd, select.EPOLLIN | select.EPOLLONESHOT)
            except FileNotFoundError:  # the first time
                self._register(watch)
            except OSError:
                self._ready.append(watch)
            self._look_again()

    def forget(self, watch: Watch) -> None:
        """See ``Watch.cancel``."""
        with self._control.lock:
            if self._watches.get(watch.fd) is not watch:
                return
            del self._watches[watch.fd]
            if watch in self._ready:
                self._ready.remove(watch)
            if self._epoll is not None:
                with contextlib.suppress(OSError):  # never armed, or a file
                    self._epoll.unregister(watch.fd)

    # ---- a run ----

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let time pass, but for pauses; the thread ends with the run."""
        with self._control.lock:
            self._in_run = True
            self.go()
        try:
            yield
        finally:
            with self._control.lock:
                self.stand_still()
                self._in_run = False
                self._ring()
                thread, self._thread = self._thread, None
            if thread is not None:
                thread.join()

    def go(self) -> None:
        """Let time pass from now on, if there is a run that is not paused. With the lock held."""
        if self._in_run and self._started is None and not self._control.is_paused:
            self._started = time.monotonic_ns()
            if self._watches or self._alarms.next_time() is not None:
                self._look_again()

    def stand_still(self) -> None:
        """Stop the clock; no callback is called until ``go()``. With the lock held."""
        self._passed, self._started = self.now(), None

    def set_time(self, time: int) -> None:
        """Let the clock show ``time`` while it stands still, and forget all calls. With the lock held."""
        self._passed = time
        self._alarms.clear()

    # ---- by hand, while it stands still; with the lock held ----

    def pass_time(self, nanoseconds: int) -> bool:
        """Set the clock forward and make the calls that are due, each at its time; return whether there were any."""
        has_called = self._hear_descriptors()
        end = self._passed + nanoseconds
        for when, callback in self._alarms.take_due(end):
            self._passed = max(self._passed, when)
            callback()
            has_called = True
        self._passed = end
        return has_called

    @property
    def time_to_next(self) -> int | None:
        """Return the nanoseconds to the next call, None if there is none to come."""
        when = self._alarms.next_time()
        return None if when is None else max(0, when - self._passed)

    def go_back(self, time: int) -> None:
        """Let the clock show ``time`` again, at which the same calls were to come as now."""
        self._passed = time

    def close(self) -> None:
        """Close the descriptors of the event loop itself; those watched are their owners'."""
        with self._control.lock:
            if self._epoll is not None:
                self._epoll.close()
                os.close(self._doorbell)
            self._epoll = None
            self._watches.clear()
            self._alarms.clear()

    # ---- inside, with the lock held ----

    def _register(self, watch: Watch) -> None:
        try:
            self._open_epoll().register(watch.fd, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:  # EPERM: a file or /dev/null, which can always be read
            self._ready.append(watch)

    def _open_epoll(self) -> select.epoll:
        if self._epoll is None:
            self._doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._epoll = select.epoll()
            self._epoll.register(self._doorbell, select.EPOLLIN)
        return self._epoll

    def _look_again(self) -> None:
        """Have the thread see that there is something new to wait for; start it if there is none."""
        if not self._in_run:
            return
        self._open_epoll()
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait_and_call, name="pykvm events", daemon=True)
            self._thread.start()
        elif self._thread is not threading.current_thread():
            self._ring()

    def _ring(self) -> None:
        if self._thread is not None:
            os.eventfd_write(self._doorbell, 1)

    def _hear_descriptors(self) -> bool:
        """Make the calls of the descriptors that are readable now; return whether there were any."""
        if self._epoll is not None and any(watch.is_armed for watch in self._watches.values()):
            self._take_readable(self._epoll.poll(0))
        ready, self._ready = self._ready, []
        for watch in ready:
            watch.is_armed = False
            watch.callback()
        return bool(ready)

    def _take_readable(self, found: Iterable[tuple[int, int]]) -> None:
        for fd, _ in found:
            if fd == self._doorbell:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            elif fd in self._watches and self._watches[fd].is_armed:
                self._ready.append(self._watches[fd])

    # ---- the thread ----

    def _wait_and_call(self) -> None:
        try:
            while True:
                with self._control.lock:
                    if not self._in_run:
                        return
                    self._call_due()
                    wait = self._time_to_next()
                self._wait(wait)
        except BaseException as error:
            self._control.fail(error)

    def _call_due(self) -> None:
        if self._started is None:
            return
        for _ in range(len(self._ready)):  # and not those that arm themselves again meanwhile
            if self._ready and self._started is not None:
                watch = self._ready.pop(0)
                watch.is_armed = False
                watch.callback()
        now = self.now()
        while (when := self._alarms.next_time()) is not None and when <= now and self._started is not None:
            callback = self._alarms.pop()
            if callback is not None:
                callback()

    def _time_to_next(self) -> int | None:
        """Return the nanoseconds to wait; None if only a descriptor can end it."""
        if self._started is None:
            return None
        if self._ready:
            return 0
        when = self._alarms.next_time()
        return None if when is None else max(0, when - self.now())

    def _wait(self, nanoseconds: int | None) -> None:
        """Wait for a descriptor, or ``nanoseconds``, and note which watch is to be called. Without the lock."""
        if nanoseconds is not None and nanoseconds < MILLISECOND:
            time.sleep(nanoseconds / SECOND)
            nanoseconds = 0
        # Whole milliseconds, rounded down: the rest is slept, since epoll would wait too long.
        timeout = -1 if nanoseconds is None else nanoseconds // MILLISECOND / 1000
        epoll = self._epoll
        if epoll is None:
            return
        found = epoll.poll(timeout)
        with self._control.lock:
            self._take_readable(found)
