"""pykvm.cli.stepper.engine: commands in their order on a thread of their own, with a guest that is none."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from operator import methodcaller

import pytest

from pykvm.cli.stepper.engine import MOST_WAITING, Engine, News
from pykvm.memory import GuestMemory
from tests.unit.cli.stepper.conftest import FakeGuest, look_at

PATIENCE = 20  # seconds


class Bench:
    """An engine, its guest, and the news it told."""

    def __init__(self, memory: GuestMemory) -> None:
        self.guest = FakeGuest(look_at(memory))
        self.news: queue.Queue[News] = queue.Queue()
        self.engine = Engine(self.guest, self.news.put)

    def start(self) -> None:
        self.engine.start()
        first = self.next()
        assert first.standing is not None
        assert first.standing.look.step == 0

    def next(self) -> News:
        return self.news.get(timeout=PATIENCE)

    def step_of_next(self) -> int:
        standing = self.next().standing
        assert standing is not None
        return standing.look.step


@pytest.fixture
def bench(memory: GuestMemory) -> Iterator[Bench]:
    bench = Bench(memory)
    yield bench
    bench.engine.close()


def test_commands_are_executed_in_order_on_another_thread(bench: Bench) -> None:
    bench.start()
    threads: list[int] = []
    bench.engine.submit(lambda guest: threads.append(threading.get_ident()))
    bench.engine.submit(methodcaller("step"))
    bench.engine.submit(methodcaller("step"))
    bench.engine.submit(methodcaller("back"))
    while bench.guest.done != ["step", "step", "back"]:
        bench.next()
    assert threads != [threading.get_ident()]


def test_of_many_commands_the_last_one_is_always_told(bench: Bench) -> None:
    bench.start()
    for _ in range(3):
        bench.engine.submit(methodcaller("step"))
    while bench.step_of_next() != 3:
        pass
    assert bench.guest.done == ["step"] * 3


def test_what_is_refused_is_said_and_the_engine_goes_on(bench: Bench) -> None:
    bench.start()
    bench.engine.submit(methodcaller("back"))
    news = bench.next()
    assert news.refusal == "this is where the guest began"
    assert news.standing is not None
    bench.engine.submit(methodcaller("step"))
    assert bench.step_of_next() == 1


def test_a_bug_is_told_and_not_swallowed(bench: Bench) -> None:
    bench.start()
    bench.engine.submit(lambda guest: 1 / 0)  # type: ignore[arg-type]
    news = bench.next()
    assert isinstance(news.failure, ZeroDivisionError)
    assert news.standing is None


def test_an_interrupt_ends_the_command_under_way_and_forgets_the_rest(bench: Bench) -> None:
    bench.start()
    bench.guest.is_endless = True
    bench.engine.submit(methodcaller("go_on"))
    bench.engine.submit(methodcaller("back"))
    assert bench.engine.is_busy
    while "go_on" not in bench.guest.done:
        pass
    bench.engine.interrupt()
    news = bench.next()
    assert news.standing is not None
    assert news.standing.why == "interrupted"
    assert not bench.engine.is_busy
    assert bench.guest.done == ["go_on"]


def test_an_interrupt_of_a_guest_that_stands_still_does_nothing(bench: Bench) -> None:
    bench.start()
    bench.engine.interrupt()
    assert not bench.guest.interrupted.is_set()


def test_a_key_that_is_held_down_fills_no_memory(bench: Bench) -> None:
    for _ in range(MOST_WAITING * 2):
        bench.engine.submit(methodcaller("step"))
    assert len(bench.engine._waiting) == MOST_WAITING


def test_closing_interrupts_a_guest_that_runs_for_ever_and_can_be_repeated(bench: Bench) -> None:
    bench.start()
    bench.guest.is_endless = True
    bench.engine.submit(methodcaller("go_on"))
    bench.engine.close()
    bench.engine.close()
    assert not any(thread.name == "pykvm-step" for thread in threading.enumerate())


def test_an_engine_that_was_never_started_can_be_closed(bench: Bench) -> None:
    bench.engine.close()
