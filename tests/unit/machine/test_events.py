"""pykvm.machine.events: a clock that stands still between runs, and descriptors that are waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykvm.devices import SECOND
from pykvm.errors import ConfigurationError
from pykvm.machine.control import Control
from pykvm.machine.events import EventLoop
from pykvm.machine.stop import Stopped

MS = SECOND // 1000


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def events(control: Control) -> Iterator[EventLoop]:
    events = EventLoop(control)
    yield events
    events.close()


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("pykvm")}


def test_time_passes_only_during_a_run(events: EventLoop) -> None:
    assert events.now() == 0
    with events.running():
        time.sleep(0.002)
    after = events.now()
    assert after >= 2 * MS
    time.sleep(0.002)
    assert events.now() == after


def test_time_stands_still_in_a_pause(events: EventLoop, control: Control) -> None:
    with events.running():
        with control.lock:
            events.stand_still()
        before = events.now()
        time.sleep(0.002)
        assert events.now() == before
        with control.lock:
            events.go()
        time.sleep(0.002)
        assert events.now() >= before + 2 * MS


def test_a_run_that_begins_paused_has_no_time(events: EventLoop, control: Control) -> None:
    control.pause()
    with events.running():
        time.sleep(0.002)
        assert events.now() == 0


def test_a_call_comes_at_its_time_and_not_before_with_the_lock_held(events: EventLoop, control: Control) -> None:
    called = threading.Event()
    times: list[int] = []

    def call() -> None:
        times.append(events.now())
        assert control.lock._is_owned()  # type: ignore[attr-defined]
        called.set()

    with events.running():
        when = events.now() + 3 * MS
        events.call_at(when, call)
        assert called.wait(10)
    assert times[0] >= when


def test_calls_come_in_order_and_cancelled_ones_never(events: EventLoop) -> None:
    order: list[int] = []
    done = threading.Event()
    with events.running():
        start = events.now()
        events.call_at(start + 6 * MS, done.set)
        cancelled = events.call_at(start + 3 * MS, lambda: order.append(0))
        for number in (4, 3, 2, 1):
            events.call_at(start + number * MS, lambda number=number: order.append(number))  # type: ignore[misc]
        cancelled.cancel()
        assert done.wait(10)
    assert order == [1, 2, 3, 4]


def test_a_call_asked_for_between_runs_comes_in_the_next(events: EventLoop) -> None:
    called = threading.Event()
    events.call_at(0, called.set)
    assert not called.wait(0.01)
    with events.running():
        assert called.wait(10)


def test_no_thread_without_need_and_none_after_a_run(events: EventLoop) -> None:
    with events.running():
        assert not threads()
        events.call_at(events.now() + 1000 * SECOND, lambda: None)
        assert threads() == {"pykvm events"}
    assert not threads()


def test_an_earlier_call_overtakes_one_that_is_waited_for(events: EventLoop) -> None:
    called = threading.Event()
    with events.running():
        events.call_at(events.now() + 1000 * SECOND, lambda: None)
        time.sleep(0.005)
        events.call_at(events.now() + MS, called.set)
        assert called.wait(10)


def test_a_descriptor_is_told_of_once_for_each_arming(events: EventLoop, control: Control) -> None:
    reader, writer = os.pipe()
    told = threading.Semaphore(0)
    watch = events.watch(reader, told.release)
    with events.running():
        os.write(writer, b"x")
        assert not told.acquire(timeout=0.02)  # not armed
        for _ in range(3):
            with control.lock:
                watch.arm()
                watch.arm()
            assert told.acquire(timeout=10)
            assert not told.acquire(timeout=0.02)
        watch.cancel()
        watch.cancel()
        watch.arm()
        assert not told.acquire(timeout=0.02)
    os.close(reader)
    os.close(writer)


def test_a_file_can_always_be_read(events: EventLoop, control: Control, tmp_path: Path) -> None:
    told = threading.Semaphore(0)
    path = tmp_path / "file"
    path.write_text("x")
    with path.open() as file, events.running():
        watch = events.watch(file.fileno(), told.release)
        for _ in range(3):
            with control.lock:
                watch.arm()
            assert told.acquire(timeout=10)
            assert not told.acquire(timeout=0.02)


def test_what_becomes_readable_in_a_pause_is_told_of_afterwards(events: EventLoop, control: Control) -> None:
    reader, writer = os.pipe()
    told = threading.Event()
    with events.running():
        with control.lock:
            events.watch(reader, told.set).arm()
            events.stand_still()
        os.write(writer, b"x")
        assert not told.wait(0.05)
        with control.lock:
            events.go()
        assert told.wait(10)
    os.close(reader)
    os.close(writer)


def test_a_descriptor_is_watched_once(events: EventLoop) -> None:
    events.watch(0, lambda: None)
    with pytest.raises(ConfigurationError, match="descriptor 0 is watched already"):
        events.watch(0, lambda: None)


def test_an_error_in_a_call_ends_the_run(events: EventLoop, control: Control) -> None:
    def fail() -> None:
        raise ValueError("from a device")

    with events.running():
        events.call_at(0, fail)
        for _ in range(1000):
            if control.attention:
                break
            time.sleep(0.002)
    with pytest.raises(ValueError, match="from a device"):
        control.take()


def test_time_flies_in_a_run_that_was_asked_to_stop_already(events: EventLoop, control: Control) -> None:
    control.stop(Stopped())
    with events.running():
        events.call_at(10 * SECOND, lambda: None)
    assert not threads()


def test_nothing_is_left_open_after_close() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(3):
        events = EventLoop(Control())
        with events.running():
            events.call_at(0, lambda: None)
        events.close()
        events.close()
    assert count() == before


def test_by_hand_time_goes_as_far_as_one_says_and_calls_come_at_theirs(events: EventLoop, control: Control) -> None:
    seen: list[tuple[str, int]] = []
    for name, when in (("b", 20), ("a", 10), ("later", 31)):
        events.call_at(when, lambda name=name: seen.append((name, events.now())))  # type: ignore[misc]
    with control.lock:
        assert events.time_to_next == 10
        assert events.pass_time(30)
        assert (seen, events.now()) == ([("a", 10), ("b", 20)], 30)
        assert not events.pass_time(0)
        assert events.time_to_next == 1
        events.go_back(5)
    assert (events.now(), events.time_to_next) == (5, 26)


def test_by_hand_a_descriptor_is_heard_when_time_passes(events: EventLoop, control: Control) -> None:
    read, write = os.pipe()
    heard: list[bytes] = []
    watch = events.watch(read, lambda: heard.append(os.read(read, 10)))
    with control.lock:
        watch.arm()
        assert not events.pass_time(1)
        os.write(write, b"x")
        assert events.pass_time(1)
        assert not events.pass_time(1), "it was not armed again"
    assert heard == [b"x"]
    watch.cancel()
    os.close(read)
    os.close(write)
