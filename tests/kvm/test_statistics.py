"""What a run's time went into, on real guests."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pykvm import Machine, assemble
from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm import Vcpu, Vm
from pykvm.machine import Halted, TimedOut
from pykvm.observe import Statistics, StatisticsResult

PYKVM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from pykvm.cli.main import entry; sys.exit(entry())"
)

TEN_BYTES = "mov $10, %ecx; 1: mov $'x', %al; out %al, $0xe9; in $0x80, %al; loop 1b; hlt"


def counts(result: StatisticsResult) -> dict[tuple[str, int | None], int]:
    return {(exits.reason, exits.place): exits.count for exits in result.exits}


def test_exits_are_counted_by_reason_and_port() -> None:
    with Machine() as machine, Statistics(machine) as statistics:
        machine.load(assemble(TEN_BYTES, mode="long"))
        run = machine.run()
        result = statistics.result()
    assert counts(result) == {("io out", 0xE9): 10, ("io in", 0x80): 10, ("hlt", None): 1}
    assert result.count == run.exits
    assert next(exits.where for exits in result.exits if exits.place == 0xE9) == "0xe9 debug console"
    assert sum(exits.share for exits in result.exits) == pytest.approx(1)
    assert 0 < result.user_total + result.guest_total <= run.duration * 1e9


def test_every_exit_is_timed_on_both_sides() -> None:
    with Machine() as machine, Statistics(machine) as statistics:
        machine.load(assemble(TEN_BYTES, mode="long"))
        machine.run()
        for exits in statistics.result().exits:
            assert None not in (exits.user_p50, exits.user_p99, exits.guest_p50, exits.guest_p99)
            assert exits.user_total > 0 < exits.guest_total


def test_runs_add_up_and_time_between_them_is_nobodys() -> None:
    with Machine() as machine, Statistics(machine) as statistics:
        total = 0.0
        for _ in range(2):
            machine.load(assemble(TEN_BYTES, mode="long"))
            total += machine.run().duration
            time.sleep(0.05)
        result = statistics.result()
    assert counts(result)["io out", 0xE9] == 20
    assert result.user_total + result.guest_total <= total * 1e9


def test_an_endless_loop_is_time_in_the_guest() -> None:
    with Machine() as machine, Statistics(machine) as statistics:
        machine.load(assemble("jmp .", mode="long"))
        assert isinstance(machine.run(0.1).stop, TimedOut)
        [exits] = statistics.result().exits
    assert (exits.reason, exits.count, exits.user_total) == ("no exit", 0, 0)
    assert exits.guest_total > 0


def test_writes_that_kvm_keeps_back_are_no_exits() -> None:
    with Machine() as machine, Statistics(machine) as statistics:
        machine.coalesce(0xE9, 1, pio=True)
        machine.load(assemble("mov $10, %ecx; 1: out %al, $0xe9; loop 1b; hlt", mode="long"))
        machine.run()
        result = statistics.result()
    assert counts(result) == {("coalesced out", 0xE9): 10, ("hlt", None): 1}
    assert result.count == 1


def test_a_guest_that_touches_every_port_is_counted_in_bounded_memory() -> None:
    with Machine() as machine, Statistics(machine, places=16) as statistics:
        sweep = "mov $0x1000, %edx; 1: in (%dx), %al; inc %edx; cmp $0x1400, %edx; jne 1b; hlt"
        machine.load(assemble(sweep, mode="long"))
        machine.run()
        result = statistics.result()
    assert len(result.exits) <= 18
    assert result.count == 0x400 + 1
    assert any(exits.where == "others" and exits.count == 0x400 - 16 for exits in result.exits)


def test_several_cpus_are_counted_together() -> None:
    with Machine(cpus=2, irqchip="kernel") as machine, Statistics(machine) as statistics:
        machine.load(assemble("1: out %al, $0x80; jmp 1b", mode="long"))
        assert isinstance(machine.run(0.1).stop, TimedOut)
        result = statistics.result()
    assert result.counters.keys() == {"VM", "vCPU 0", "vCPU 1"}
    assert counts(result)["io out", 0x80] > 10


def test_kvms_own_counters_are_told_as_differences_and_without_zeros() -> None:
    with Machine() as machine:
        machine.load(assemble(TEN_BYTES, mode="long"))
        machine.run()
        before = machine.vcpu.stats()["exits"].value
        with Statistics(machine) as statistics:
            machine.load(assemble(TEN_BYTES, mode="long"))
            machine.run()
            gained = {counter.name: counter for counter in statistics.result().counters["vCPU 0"]}
        after = machine.vcpu.stats()["exits"].value
    assert 0 < gained["exits"].value <= after - before
    assert all(any(counter.values) for counter in gained.values())


def test_a_kvm_without_counters_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Vm | Vcpu) -> None:
        raise KvmError("KVM_GET_STATS_FD", 25)

    monkeypatch.setattr(Vcpu, "get_stats_fd", refuse)
    with Machine() as machine, Statistics(machine) as statistics:
        machine.load(assemble("hlt", mode="long"))
        machine.run()
        assert statistics.result().counters == {}


def test_who_has_closed_statistics_watches_no_more() -> None:
    with Machine() as machine:
        with Statistics(machine) as statistics:
            pass
        statistics.close()
        machine.load(assemble("hlt", mode="long"))
        assert isinstance(machine.run().stop, Halted)
        assert statistics.result().exits == ()
    statistics.close()


def test_a_machine_may_be_closed_first() -> None:
    with Machine() as machine:
        statistics = Statistics(machine)
    statistics.close()


def test_no_places_are_refused() -> None:
    with Machine() as machine, pytest.raises(ConfigurationError, match="1 place at least, not 0"):
        Statistics(machine, places=0)


# ---- the command line ----


def pykvm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PYKVM, "run", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, input="", timeout=30, check=False)


def test_statistics_follow_a_run_on_stderr(tmp_path: Path) -> None:
    ran, quiet = pykvm("02-hello-real", "--stats", cwd=tmp_path), pykvm("02-hello-real", cwd=tmp_path)
    assert (ran.stdout, ran.returncode) == (quiet.stdout, quiet.returncode)
    first = r"pykvm: \d+ exits, [\d.]+ [mu]s in user space, [\d.]+ [mu]s in the kernel and the guest\n\nexit "
    assert re.match(first, ran.stderr)
    assert re.search(r"^io out  0x3f8 serial.* +\d+ ", ran.stderr, re.MULTILINE)
    assert re.search(r"^KVM's own counters of the vCPU 0\n(  .*\n)*  exits +\d+$", ran.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "arguments", "status", "words"),
    [
        pytest.param("jmp .", ("--timeout", "0.2"), 124, "the time limit of 0.2 s was reached", id="time limit"),
        pytest.param("ud2", ("--mode", "long"), 125, "the guest crashed", id="crash"),
    ],
)
def test_statistics_follow_the_report_of_what_went_wrong(
    tmp_path: Path, source: str, arguments: tuple[str, ...], status: int, words: str
) -> None:
    (tmp_path / "guest.S").write_text(source + "\n")
    ran = pykvm("guest.S", "--stats", *arguments, cwd=tmp_path)
    assert ran.returncode == status
    assert 0 <= ran.stderr.index(words) < ran.stderr.index("in the kernel and the guest")


def test_statistics_follow_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "guest.S").write_text("mov $'R', %al; out %al, $0xe9; mov $'\\n', %al; out %al, $0xe9; jmp .\n")
    command = [sys.executable, "-c", PYKVM, "run", "guest.S", "--stats"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "R\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "2 exits" in stderr
    assert re.search(r"^no exit +0 ", stderr, re.MULTILINE)


def test_statistics_and_ioctls_go_together(tmp_path: Path) -> None:
    ran = pykvm("01-hlt", "--stats", "--ioctls-file", "calls", cwd=tmp_path)
    assert ran.returncode == 0
    assert "KVM_GET_STATS_FD" in (tmp_path / "calls").read_text()
