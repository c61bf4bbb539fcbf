"""``pykvm doctor`` on a host with KVM: what it lists, and what the probes make of it."""

from __future__ import annotations

import re

import pytest

from pykvm.cli.main import main
from pykvm.kvm import CAPABILITIES
from pykvm.probes import Outcome, Probe, all_probes


def test_a_host_with_kvm_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0].split(maxsplit=1) == ["/dev/kvm", "opened read-write, API version 12"]
    assert lines[-1].startswith("ready.")
    assert output.err == ""


def test_every_capability_is_shown_with_its_purpose_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    text = capsys.readouterr().out
    for capability in CAPABILITIES:
        value = r"\d+" if capability.is_figure else "(yes|no)"
        pattern = rf"^{re.escape(capability.name)} +{value} +{re.escape(capability.purpose)}$"
        assert re.search(pattern, text, re.MULTILINE), capability.name


def test_the_doctor_counts_what_the_probes_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {
        "good": Outcome(True, "success"),
        "bad": Outcome(False, "shutdown (triple fault)"),
        "endless": Outcome(False, "the guest was still running after 0.5 s", hangs=True),
    }
    probes = [Probe(name, f"{name} is good", lambda name=name: outcomes[name]) for name in outcomes]  # type: ignore[misc]
    monkeypatch.setattr("pykvm.probes.all_probes", lambda: probes)
    assert main(["doctor", "--probe"]) == 0
    assert capsys.readouterr().out.partition("\nprobes\n")[2].splitlines() == [
        "good     works  good is good",
        "bad      no     bad is good",
        "                -> shutdown (triple fault)",
        "endless  hangs  endless is good",
        "                -> the guest was still running after 0.5 s",
        "1 of 3 probes work here, 1 do not, 1 did not end in time",
        "ready.",
    ]


def test_every_probe_has_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--probe"]) == 0
    text = capsys.readouterr().out.partition("\nprobes\n")[2]
    for probe in all_probes():
        assert re.search(rf"^{re.escape(probe.name)} +(works|no|hangs) +\S", text, re.MULTILINE), probe.name
    summary = re.search(r"^(\d+) of (\d+) probes work here, (\d+) do not, (\d+) did not end", text, re.MULTILINE)
    assert summary is not None
    works, total, no, hangs = map(int, summary.groups())
    assert works + no + hangs == total == len(all_probes())
