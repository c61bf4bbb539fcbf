"""pykvm.machine.control: threads that play vCPUs, and requests from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pykvm.errors import InUseError
from pykvm.machine.control import Control
from pykvm.machine.stop import Halted, Stop, Stopped, TimedOut


class Player:
    """Plays a vCPU: its thread comes out of KVM_RUN when kicked, and counts what happens to it."""

    def __init__(self, id: int, control: Control) -> None:
        self.id = id
        self.control = control
        self.kicks = 0
        self.nmis = 0
        self.rounds = 0
        self.inside = False  # in KVM_RUN
        self.ended: Stop | None = None
        self._kicked = threading.Event()

    def kick(self) -> None:
        self.kicks += 1
        self._kicked.set()

    def nmi(self) -> None:
        self.nmis += 1

    def play(self) -> None:
        with self.control.running(self):
            while True:
                if self.control.attention:
                    stop = self.control.attend(self)
                    if stop is not None:
                        self.ended = stop
                        return
                self.inside = True
                self._kicked.wait(0.002)
                self._kicked.clear()
                self.inside = False
                self.rounds += 1


@contextmanager
def playing(count: int) -> Iterator[tuple[Control, list[Player]]]:
    control = Control()
    players = [Player(id, control) for id in range(count)]
    control.attach(tuple(players))
    threads = [threading.Thread(target=player.play) for player in players]
    for thread in threads:
        thread.start()
    try:
        yield control, players
    finally:
        control.resume()
        control.stop(Stopped())
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(5000):
        if condition():
            return
        waited.wait(0.002)
    raise AssertionError("it never came true")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_pause_returns_when_every_vcpu_is_out_and_none_goes_in_before_resume(count: int) -> None:
    with playing(count) as (control, players):
        wait_for(lambda: all(player.rounds for player in players))
        for _ in range(100):
            control.pause()
            assert not any(player.inside for player in players)
            rounds = [player.rounds for player in players]
            assert [player.rounds for player in players] == rounds
            control.resume()
        rounds = [player.rounds for player in players]
        wait_for(lambda: all(player.rounds > before for player, before in zip(players, rounds, strict=True)))


def test_the_first_stop_wins_and_reaches_every_vcpu() -> None:
    with playing(3) as (control, players):
        control.stop(Halted(), 2)
        control.stop(TimedOut(1.0), 0)
        wait_for(lambda: all(player.ended for player in players))
        assert {player.ended for player in players} == {Halted()}
        assert control.take() == (Halted(), 2)
        assert control.take() is None


def test_a_stop_before_the_run_is_for_the_next_one() -> None:
    control = Control()
    player = Player(0, control)
    control.attach((player,))
    control.stop(Stopped())
    player.play()
    assert player.ended == Stopped()


def test_a_stop_ends_a_paused_run_and_leaves_the_next_one_paused() -> None:
    with playing(2) as (control, players):
        control.pause()
        control.stop(Stopped())
        wait_for(lambda: all(player.ended for player in players))
        control.take()
        assert control.attention
        assert control.is_paused


def test_an_error_ends_the_run_and_comes_out_of_take() -> None:
    with playing(2) as (control, players):
        control.fail(ValueError("first"))
        control.fail(ValueError("second"))
        wait_for(lambda: all(player.ended for player in players))
        with pytest.raises(ValueError, match="first"):
            control.take()
        assert control.take() is None


def test_an_nmi_reaches_its_vcpu_once() -> None:
    with playing(2) as (control, players):
        for sent in range(1, 51):
            control.nmi(1)
            wait_for(lambda sent=sent: players[1].nmis == sent)  # type: ignore[misc]
        assert players[0].nmis == 0


def test_pause_on_a_thread_that_runs_a_vcpu_is_refused() -> None:
    control = Control()
    player = Player(0, control)
    control.attach((player,))
    with control.running(player), pytest.raises(InUseError, match="another thread"):
        control.pause()


def test_pause_with_nobody_running_returns_at_once() -> None:
    control = Control()
    control.pause()
    control.pause()
    assert control.is_paused
    control.resume()
    control.resume()
    assert not control.attention


def test_one_vcpu_can_hold_the_others_out() -> None:
    control = Control()
    players = [Player(id, control) for id in range(3)]
    control.attach(tuple(players))
    threads = [threading.Thread(target=player.play) for player in players[1:]]
    for thread in threads:
        thread.start()
    with control.running(players[0]):
        wait_for(lambda: all(player.rounds for player in players[1:]))
        for _ in range(50):
            with control.others_parked(players[0]):
                assert not any(player.inside for player in players[1:])
        control.stop(Stopped())
    for thread in threads:
        thread.join(10)


def test_a_sleeping_machine_wakes_when_all_are_parked() -> None:
    with playing(3) as (control, players):
        wait_for(lambda: all(player.rounds for player in players))
        with control.lock:
            control.sleep()
        inside: list[bool] = []
        control.wake(lambda: inside.extend(player.inside for player in players))
        wait_for(lambda: len(inside) == 3)
        assert not any(inside)
        rounds = [player.rounds for player in players]
        wait_for(lambda: all(player.rounds > before for player, before in zip(players, rounds, strict=True)))


def test_waking_a_machine_that_is_awake_does_nothing() -> None:
    control = Control()
    control.wake(lambda: pytest.fail("there is nothing to wake"))
    assert not control.attention


def test_waiting_ends_with_what_is_waited_for_and_with_a_request() -> None:
    control = Control()
    control.attach(())
    arrived: list[int] = []

    def arrive() -> None:
        with control.lock:
            arrived.append(1)
            control.notify()

    timer = threading.Timer(0.01, arrive)
    timer.start()
    while not arrived:
        control.wait(lambda: bool(arrived))
    timer.join()
    control.stop(Stopped())
    control.wait(lambda: False)  # returns: there is a request
    assert control.attention
