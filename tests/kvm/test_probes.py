"""Probes: questions that every host answers, one way or the other."""

from __future__ import annotations

import errno

import pytest

from pykvm import probes
from pykvm.boot import bundled_guests, flat_image
from pykvm.errors import ConfigurationError, KvmError, KvmUnavailableError
from pykvm.probes import Outcome, all_probes, probe
from pykvm.x86 import Mode

# What any host's KVM can do: whoever cannot do this cannot run the rest of the tests either.
EVERYWHERE = ["hlt", "real-mode", "protected-mode", "long-mode", "triple-fault", "port-io-32", "exception-idt"]


@pytest.mark.parametrize("name", [item.name for item in all_probes()])
def test_a_probe_answers_and_says_why(name: str) -> None:
    outcome = probe(name)
    assert outcome.detail
    assert "\n" not in outcome.detail
    assert not (outcome.works and outcome.hangs)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_every_host_can_do_works(name: str) -> None:
    assert probe(name).works, probe(name).detail


def test_probes_have_different_names_and_say_what_they_prove() -> None:
    names = [item.name for item in all_probes()]
    assert names == sorted(set(names))
    assert len(names) >= 20
    assert all(item.proves for item in all_probes())


def test_every_need_of_a_bundled_guest_is_a_probe() -> None:
    names = {item.name for item in all_probes()}
    assert {need for guest in bundled_guests() for need in guest.needs} <= names


def test_a_probe_is_asked_once() -> None:
    assert probe("hlt") is probe("hlt")


def test_an_unknown_probe_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match="there is no probe 'long-mod'; did you mean long-mode"):
        probe("long-mod")
    with pytest.raises(ConfigurationError, match=r"there is no probe 'frob': there are .*hlt"):
        probe("frob")


def test_a_probe_that_the_host_refuses_to_set_up_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: object) -> None:
        raise KvmError("KVM_CREATE_VM", errno.ENOMEM)

    monkeypatch.setattr(probes, "Machine", refuse)
    outcomes = [item.ask() for item in all_probes()]
    assert all(outcome.detail.startswith("KVM_CREATE_VM(): ENOMEM") for outcome in outcomes)
    assert not any(outcome.works for outcome in outcomes)


def test_a_host_without_kvm_answers_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(size: object) -> None:
        raise KvmUnavailableError("/dev/kvm does not exist")

    monkeypatch.setattr(probes, "Machine", refuse)
    for item in all_probes():
        with pytest.raises(KvmUnavailableError):
            item.ask()


def test_a_guest_that_hangs_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spin = flat_image(b"\xeb\xfe", mode=Mode.REAL)  # jmp to itself
    monkeypatch.setattr(probes, "open_image", lambda path, mode: spin)
    monkeypatch.setattr(probes, "TIME_LIMIT", 0.1)
    real_mode = next(item for item in all_probes() if item.name == "real-mode")
    assert real_mode.ask() == Outcome(False, "the guest was still running after 0.1 s", hangs=True)
