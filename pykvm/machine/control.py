"""What the threads of a run share: one lock, and the requests by which any thread stops, pauses or interrupts a vCPU.

Each vCPU has a thread of its own, which is in one of three places:

    in KVM_RUN    --exit-->    at work, holding the lock    --request-->    parked, waiting for it to be over
        ^                              |                                        |
        +------------------------------+----------------------------------------+

A request is written down under the lock, ``attention`` is raised, and every vCPU is kicked; a thread that comes out of
KVM_RUN looks at ``attention`` before it goes back. So a request is carried out once by each vCPU, never twice and
never not at all. Devices are accessed only under the lock, and so need none of their own.

See: Documentation/virt/kvm/api.rst, KVM_RUN (immediate_exit). Leaves out what the threads do between requests: see
``runloop``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pykvm.errors import InUseError
from pykvm.machine.stop import Interrupted, Stop, Stopped

__all__ = ["TICK", "Control", "Kickable", "Requests"]

# How often a guest that runs, waits or is paused is looked in on: for time limits, Ctrl-C and output to be flushed.
TICK = 0.1

_USERS_OWN = (Stopped, Interrupted)  # stops that no guest can ask for


class Kickable(Protocol):
    """What a request needs of a vCPU: ``pykvm.kvm.Vcpu`` has it."""

    @property
    def id(self) -> int:
        """Return the vCPU's id."""

    def kick(self) -> None:
        """Make the KVM_RUN under way, or else the next one, return."""

    def nmi(self) -> None:
        """Queue a non-maskable interrupt; called by the vCPU's own thread."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What is asked of the vCPUs and is not done yet, as far as it is the guest's doing.

    ``nmis`` is the vCPUs that are to take one; ``asleep`` says that the machine sleeps (S3), ``waking`` that it is
    about to wake up; ``stop`` is why the next run ends at once, and ``cpu`` whose doing that is.
    """

    nmis: frozenset[int] = frozenset()
    asleep: bool = False
    waking: bool = False
    stop: Stop | None = None
    cpu: int | None = None


class Control:
    """The lock of a machine, and what is asked of its vCPUs.

    ``lock`` is held whenever a device is accessed; ``attention`` says that ``attend()`` has something to do. Whoever
    changes what a halted vCPU waits for calls ``notify()``.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.attention = False
        self._changed = threading.Condition(self.lock)
        self._vcpus: tuple[Kickable, ...] = ()
        self._threads: dict[int, int] = {}  # those that run a vCPU now, and which
        self._parked = 0  # how many of them wait in attend()
        self._stop: tuple[Stop, int | None] | None = None
        self._error: BaseException | None = None
        self._paused = False
        self._holder: int | None = None  # the vCPU that wants all others parked
        self._asleep = False
        self._wake_up: Callable[[], None] | None = None
        self._nmis: set[int] = set()

    def attach(self, vcpus: tuple[Kickable, ...]) -> None:
        """Say which vCPUs there are."""
        self._vcpus = vcpus

    # ---- requests, from any thread ----

    def stop(self, stop: Stop, cpu: int | None = None) -> None:
        """End the run under way, or else the next one, with ``stop``; ``cpu`` is whose doing it is. The first wins."""
        with self.lock:
            if self._stop is None:
                self._stop = (stop, cpu)
            self._request()

    def fail(self, error: BaseException) -> None:
        """End the run by raising ``error`` in the thread that called ``run()``. The first wins."""
        with self.lock:
            self._error = self._error or error
            self._request()

    def pause(self) -> None:
        """Keep every vCPU out of KVM_RUN from now on; returns when they all are. A run that starts meanwhile waits.

        Raises: InUseError when called by a device or an observer, on a thread that would have to wait for itself.
        """
        with self.lock:
            if threading.get_ident() in self._threads:
                raise InUseError("pause() waits for every vCPU and this thread runs one: call it from another thread")
            self._paused = True
            self._request()
            self._changed.wait_for(lambda: self._parked == len(self._threads) or not self._paused)

    def resume(self) -> None:
        """End ``pause()``; does nothing if there is none."""
        with self.lock:
            self._paused = False
            self._settle()

    @property
    def is_running(self) -> bool:
        """Return whether a thread runs a vCPU, and is not parked by ``pause()``."""
        with self.lock:
            return bool(self._threads) and not (self._paused and self._parked == len(self._threads))

    @property
    def is_paused(self) -> bool:
        """Return whether ``pause()`` is in force."""
        return self._paused

    def nmi(self, cpu: int) -> None:
        """Have the vCPU ``cpu`` take a non-maskable interrupt, at once if it runs, else when it does."""
        with self.lock:
            self._nmis.add(cpu)
            self._request()

    @property
    def has_nmi(self) -> bool:
        """Return whether a vCPU is still to take what ``nmi()`` asked for."""
        return bool(self._nmis)

    @property
    def stands_still(self) -> bool:
        """Return whether there is a run, and ``pause()`` keeps every vCPU of it out of KVM_RUN."""
        with self.lock:
            return self._paused and bool(self._threads) and self._parked == len(self._threads)

    @property
    def requests(self) -> Requests:
        """Return what a snapshot keeps of the requests."""
        with self.lock:
            stop, cpu = self._stop or (None, None)
            if isinstance(stop, _USERS_OWN):
                stop = cpu = None
            return Requests(frozenset(self._nmis), self._asleep, self._wake_up is not None, stop, cpu)

    def put_back(self, requests: Requests, wake_up: Callable[[], None]) -> None:
        """Make ``requests`` those that there are, but for the user's own; ``wake_up`` is what ``wake()`` is given."""
        with self.lock:
            self._nmis = set(requests.nmis)
            self._asleep, self._wake_up = requests.asleep, wake_up if requests.waking else None
            if self._stop is None or not isinstance(self._stop[0], _USERS_OWN):
                self._stop = None if requests.stop is None else (requests.stop, requests.cpu)
            self._look()
            if self._threads:
                self._changed.notify_all()

    def sleep(self) -> None:
        """Park every vCPU until ``wake()``. Called by a device, in the middle of an exit."""
        with self.lock:
            self._asleep, self._wake_up = True, None
            self._request()

    def wake(self, prepare: Callable[[], None]) -> bool:
        """End ``sleep()``: vCPU 0's thread calls ``prepare`` once all are parked, then they go on.

        Returns whether there was a sleep to end.
        """
        with self.lock:
            if self._asleep:
                self._wake_up = prepare
                self._settle()
            return self._asleep

    def forget_sleep(self) -> None:
        """End ``sleep()`` without more ado: the vCPUs start anew."""
        with self.lock:
            self._asleep, self._wake_up = False, None
            self._settle()

    def notify(self) -> None:
        """Wake whoever waits in ``wait()``. The lock is held."""
        self._changed.notify_all()

    # ---- the threads that run vCPUs ----

    @contextmanager
    def running(self, vcpu: Kickable) -> Iterator[None]:
        """Count this thread among those that run a vCPU: it runs ``vcpu``."""
        thread = threading.get_ident()
        with self.lock:
            self._threads[thread] = vcpu.id
            self._settle()
        try:
            yield
        finally:
            with self.lock:
                del self._threads[thread]
                self._settle()

    def current_cpu(self) -> int | None:
        """Return the id of the vCPU that this thread runs, or None."""
        return self._threads.get(threading.get_ident())

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Wait until ``is_over``, a request, or the next tick. The lock is not held by the caller."""
        with self.lock:
            self._changed.wait_for(lambda: is_over() or self.attention, TICK)

    def attend(self, vcpu: Kickable, tick: Callable[[], Stop | None] | None = None) -> Stop | None:
        """Do what is asked of ``vcpu``; returns why it is to stop, or None to go on.

        While it is parked, ``tick`` is called now and then without the lock, and may end the wait by returning a stop.
        """
        while True:
            with self.lock:
                if vcpu.id in self._nmis:
                    self._nmis.discard(vcpu.id)
                    vcpu.nmi()
                self._try_to_wake(vcpu)
                if not self._must_park(vcpu):
                    self._settle()
                    return self._reason()
                self._park(vcpu, None if tick is None else TICK)
            if tick is not None:
                stop = tick()
                if stop is not None:
                    return stop

    @contextmanager
    def others_parked(self, vcpu: Kickable) -> Iterator[None]:
        """Keep every other vCPU out of KVM_RUN meanwhile. Called by the thread that runs ``vcpu``."""
        with self.lock:
            self._holder = vcpu.id
            try:
                self._request()
                self._changed.wait_for(lambda: self._parked >= len(self._threads) - 1)
                yield
            finally:
                self._holder = None
                self._settle()

    def take(self) -> tuple[Stop, int | None] | None:
        """Return the stop that was asked for, if any, and whose doing it was, and forget it; the run is over.

        Raises: the error that ``fail()`` was given.
        """
        with self.lock:
            stop, error = self._stop, self._error
            self._stop = self._error = None
            self._settle()
        if error is not None:
            raise error
        return stop

    # ---- inside, all with the lock held ----

    def _request(self) -> None:
        self._settle()
        for vcpu in self._vcpus:
            vcpu.kick()

    def _settle(self) -> None:
        self._look()
        self._changed.notify_all()

    def _look(self) -> None:
        self.attention = bool(
            self._stop or self._error or self._paused or self._holder is not None or self._asleep or self._nmis
        )

    def _must_park(self, vcpu: Kickable) -> bool:
        if self._stop is not None or self._error is not None:
            return False
        return self._paused or self._asleep or (self._holder is not None and self._holder != vcpu.id)

    def _park(self, vcpu: Kickable, timeout: float | None) -> None:
        self._parked += 1
        self._changed.notify_all()
        try:
            # Not every notice is for this vCPU, and those that wake up for one and park again would wake each other.
            self._changed.wait_for(lambda: not self._must_park(vcpu) or self._can_wake(vcpu, parked=1), timeout)
        finally:
            self._parked -= 1

    def _can_wake(self, vcpu: Kickable, parked: int) -> bool:
        """Return whether ``vcpu``, ``parked`` of which is parked, is the one to end ``sleep()``, and all are."""
        return self._wake_up is not None and vcpu.id == 0 and self._parked == len(self._threads) - 1 + parked

    def _try_to_wake(self, vcpu: Kickable) -> None:
        if self._wake_up is not None and self._can_wake(vcpu, parked=0):
            prepare, self._wake_up = self._wake_up, None
            self._asleep = False
            prepare()

    def _reason(self) -> Stop | None:
        if self._stop is not None:
            return self._stop[0]
        return Stopped() if self._error is not None else None
