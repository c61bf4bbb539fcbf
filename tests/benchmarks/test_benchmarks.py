"""The benchmarks run: what they measure is for those who run them by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.kvm
def test_the_restore_benchmark_runs_and_prints_its_figures() -> None:
    script = Path(__file__).with_name("bench_restore.py")
    command = [sys.executable, str(script), "--iterations", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert re.search(r"^restore, 16 pages +[\d.]+ us +[\d,]+ a second$", ran.stdout, re.MULTILINE)
    assert re.search(r"^its ioctls in C +[\d.]+ us$", ran.stdout, re.MULTILINE)
    assert re.search(r"^ratio +[\d.]+ ", ran.stdout, re.MULTILINE)


@pytest.mark.kvm
def test_the_benchmark_of_looking_on_runs_and_prints_its_figures() -> None:
    script = Path(__file__).with_name("bench_stats.py")
    command = [sys.executable, str(script), "--turns", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    lines = re.findall(r"^(.{12}) *[\d.]+ us an exit +[+-][\d.]+ us, ratio [\d.]+ to ", ran.stdout, re.MULTILINE)
    assert [line.strip() for line in lines] == ["statistics", "ioctls", "Vcpu.run"]


@pytest.mark.kvm
def test_the_benchmark_of_a_trace_runs_and_prints_its_figures() -> None:
    script = Path(__file__).with_name("bench_trace.py")
    command = [sys.executable, str(script), "--turns", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    first, *lines = ran.stdout.splitlines()
    assert re.match(r"nobody +[\d.]+ us an exit$", first)
    assert [re.sub(r" +[\d.]+ us an exit +[+-][\d.]+ us, ratio [\d.]+$", "", line) for line in lines] == [
        *("gone", "limit over", "filtered", "no code", "text", "jsonl", "perfetto")
    ]
