"""What looking on costs an exit: ``python tests/benchmarks/bench_stats.py``.

A guest writes to a port again and again: with nobody who looks on, with statistics, and with a log of system calls
that nobody writes down. The three take turns, so that whatever else the host does slows all of them. And that the log
costs nothing when there is none: ``Vcpu.run()`` against one that calls the shim by its own name. Leaves out what the
guest and the device do, which is the same each time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import MethodType

from pykvm import Machine, assemble
from pykvm._shim import lib
from pykvm.errors import UnansweredReadError
from pykvm.kvm import Exit, Vcpu
from pykvm.observe import Statistics
from pykvm.observe.ioctls import CallText

EXITS = 2000
GUEST = f"""
        mov     ${EXITS}, %ecx
1:      out     %al, $0x80
        loop    1b
        out     %al, $0xf4
"""


def run_directly(vcpu: Vcpu) -> Exit:
    """Do what ``Vcpu.run()`` does, without the detour by ``Calls``."""
    if vcpu._unanswered is not None:
        raise UnansweredReadError("not answered")
    return vcpu._take_exit(vcpu._enter(lib.pykvm_run))


def time_run(machine: Machine) -> float:
    """Return the seconds an exit takes, one of many."""
    machine.load(assemble(GUEST, mode="long"))
    start = time.perf_counter()
    machine.run()
    return (time.perf_counter() - start) / EXITS


def time_vcpu(machine: Machine, run: Callable[[], Exit]) -> float:
    """Return the seconds that ``run`` takes for an exit, without a run loop."""
    machine.load(assemble(GUEST, mode="long"))
    start = time.perf_counter()
    for _ in range(EXITS):
        run()
    return (time.perf_counter() - start) / EXITS


def measure(turns: int) -> dict[str, list[float]]:
    """Take turns; return the seconds of an exit, by who looked on."""
    with ExitStack() as stack:
        plain, watched = (stack.enter_context(Machine()) for _ in range(2))
        logged = stack.enter_context(Machine(ioctls=CallText(lambda line: None)))
        stack.enter_context(Statistics(watched))
        ways: dict[str, Callable[[], float]] = {
            "nobody": lambda: time_run(plain),
            "statistics": lambda: time_run(watched),
            "ioctls": lambda: time_run(logged),
            "Vcpu.run": lambda: time_vcpu(plain, plain.vcpu.run),
            "the shim": lambda: time_vcpu(plain, MethodType(run_directly, plain.vcpu)),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                times[name].append(way())
    return times


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="What looking on costs an exit.")
    parser.add_argument("--turns", type=int, default=50)
    times = measure(parser.parse_args(arguments).turns)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, base in (("statistics", "nobody"), ("ioctls", "nobody"), ("Vcpu.run", "the shim")):
        # In each turn by itself, for the host changes its mind in between.
        more = statistics.median(a - b for a, b in zip(times[name], times[base], strict=True))
        ratio = medians[name] / medians[base]
        print(f"{name:<12}{medians[name] * 1e6:7.2f} us an exit   {more * 1e6:+6.2f} us, ratio {ratio:.2f} to {base}")


if __name__ == "__main__":
    main(sys.argv[1:])
