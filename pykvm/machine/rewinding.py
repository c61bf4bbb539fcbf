"""``Rewindable``: the half of a machine that goes back, to what it was at a snapshot.

It sees to it that the machine stands still: nobody runs it and nobody begins to, or a run is paused, with every vCPU's
thread parked. Leaves out what is saved and in which order: see ``snapshotter``.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pykvm.boot import Image
from pykvm.errors import ConfigurationError, InUseError
from pykvm.machine.hardware import Hardware
from pykvm.machine.journal import Journal
from pykvm.machine.observer import LastExits
from pykvm.machine.output import OutputLog
from pykvm.machine.snapshot import Snapshot
from pykvm.machine.snapshotter import Parts, Snapshotter

if TYPE_CHECKING:
    from pykvm.machine.slowmotion import SlowMotion

__all__ = ["Rewindable"]

SHORT = 0.001  # seconds: between two looks at what takes as long as a thread's start


class Rewindable(Hardware):
    """A machine that can be saved and restored: a base of ``Machine``, which says who runs it."""

    _run_lock: threading.Lock  # held by who runs it
    _runner: int | None
    _image: Image | None
    _journal: Journal | None
    _serial_log: OutputLog
    _debugcon_log: OutputLog
    _last_exits: LastExits
    _snapshotter: Snapshotter | None = None

    def snapshot(self) -> Snapshot:
        """Return what this machine is now: memory, CPUs, interrupt controllers, devices and what they printed.

        It can be restored any number of times, here or into another machine that was made alike, and saved to a file.
        The machine must not run, or be paused. From the first snapshot on KVM keeps track of the pages that the guest
        writes, which costs it a little at the first write to each.

        Raises: InUseError while the machine runs; ConfigurationError if a device on one of its buses cannot be saved;
        SnapshotError if a CPU is in the middle of an instruction that cannot be finished; KvmError.
        """
        with self._standing_still("saved"):
            return self._get_snapshotter().take(self._image)

    def restore(self, snapshot: Snapshot) -> None:
        """Make this machine what ``snapshot`` is, without running anything.

        Time goes back as well, and what was printed since is not in the next result; who got it as it came keeps it.
        ``stop()`` and ``pause()`` stay in force, and so do breakpoints, observers and handlers.

        Raises: InUseError while the machine runs; ConfigurationError if it was not made alike, and then nothing
        changes; KvmError if this host's KVM refuses a part: only another ``restore()`` mends the machine then.
        """
        if self._journal is not None:
            raise ConfigurationError("a machine whose run is being recorded cannot go back: restore() before recording")
        starts_none = self._hold_still("restored")  # no context manager: this is done thousands of times a second
        try:
            self._get_snapshotter().restore(snapshot)
            self._image = snapshot.image or self._image
            self._last_exits.forget()
        finally:
            self._let_go(starts_none)

    def slow_motion(self) -> SlowMotion:
        """Return what enters this machine's guest once at a time, for who steps it: see ``slowmotion``.

        Raises: ConfigurationError if the machine cannot go back; InUseError while it runs.
        """
        if self._journal is not None:
            raise ConfigurationError("a machine whose run is being recorded cannot go back: record it without stepping")
        from pykvm.machine.slowmotion import SlowMotion

        with self._standing_still("stepped"):
            return SlowMotion(self._parts(), self._get_snapshotter().devices, self._being_stepped)

    # ---- inside ----

    @contextlib.contextmanager
    def _being_stepped(self) -> Iterator[None]:
        """Have nobody else run the machine meanwhile. Raises: InUseError if somebody does; ClosedError."""
        self._check_open()
        if not self._run_lock.acquire(blocking=False):
            raise InUseError("this machine is running on another thread: stop() it first")
        self._runner = threading.get_ident()
        try:
            yield
        finally:
            self._runner = None
            self._run_lock.release()

    @contextlib.contextmanager
    def _standing_still(self, purpose: str) -> Iterator[None]:
        """Keep every vCPU out of KVM_RUN meanwhile, and hold the lock. Raises: InUseError if one is inside."""
        starts_none = self._hold_still(purpose)
        try:
            yield
        finally:
            self._let_go(starts_none)

    def _hold_still(self, purpose: str) -> bool:
        """Begin ``_standing_still``; returns what ``_let_go`` is given."""
        self._check_open()
        starts_none = self._run_lock.acquire(blocking=False) or self._wait_for_a_pause(purpose)
        self.lock.acquire()
        if not (starts_none or self._control.stands_still):  # somebody has called resume() meanwhile
            self._let_go(starts_none)
            raise self._cannot_now(purpose)
        return starts_none

    def _let_go(self, starts_none: bool) -> None:
        self.lock.release()
        if starts_none:
            self._run_lock.release()

    def _wait_for_a_pause(self, purpose: str) -> bool:
        """Wait for a run under ``pause()`` to begin or end for good; return whether there is none, and none begins."""
        while not self._run_lock.acquire(blocking=False):
            if self._is_calling or not self._control.is_paused:
                raise self._cannot_now(purpose)
            if self._control.stands_still:
                return False
            time.sleep(SHORT)
        return True

    def _cannot_now(self, purpose: str) -> InUseError:
        return InUseError(f"this machine runs and cannot be {purpose}: pause() or stop() it first")

    @property
    def _is_calling(self) -> bool:
        """Return whether the run, on this thread, has called whoever asks."""
        return (
            self._runner == threading.get_ident() or self._control.current_cpu() is not None or self.events.is_calling
        )

    def _get_snapshotter(self) -> Snapshotter:
        if self._snapshotter is None:
            self._snapshotter = Snapshotter(self._parts())
        return self._snapshotter

    def _parts(self) -> Parts:
        return Parts(
            vm=self.vm,
            vcpus=self.vcpus,
            msrs=self._msr_indices,
            cpuid=self.cpuid,
            memories=(self.memory,) if self._screen is self.memory else (self.memory, self._screen),
            dirty=self._dirty_pages,
            pio=self.pio,
            mmio=self.mmio,
            board=self.board,
            interrupts=self.interrupts,
            events=self.events,
            clock=self._clock,
            control=self._control,
            loops=self._loops,
            debugger=self._debugger,
            handlers=self.msr,
            serial_log=self._serial_log,
            debugcon_log=self._debugcon_log,
            forget_rings=self._forget_rings,
            wake_up=self._wake_up,
        )
