"""What a trace costs an exit: ``python tests/benchmarks/bench_trace.py``.

A guest writes to a port again and again: with nobody who looks on; with a tracer that was there and has gone; with one
that has written all the lines it may; and with one that writes each line, in every format. They take turns, so that
whatever else the host does slows all of them. The trace itself goes nowhere. Leaves out disks and terminals.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pykvm import Machine, assemble
from pykvm.observe import TraceFilter, Tracer

EXITS = 2000
GUEST = f"""
        mov     ${EXITS}, %ecx
        mov     $0x3f8, %dx
1:      out     %al, (%dx)
        loop    1b
        out     %al, $0xf4
"""


class Nowhere(io.BytesIO):
    """A stream that keeps nothing."""

    def write(self, data: object) -> int:
        return 0


def time_run(machine: Machine) -> float:
    """Return the seconds an exit takes, one of many."""
    machine.load(assemble(GUEST, mode="long"))
    start = time.perf_counter()
    machine.run()
    return (time.perf_counter() - start) / EXITS


@contextmanager
def machines() -> Iterator[dict[str, Machine]]:
    """Make one machine for each way to look on."""
    tracers = {
        "gone": Tracer(Nowhere()),
        "limit over": Tracer(Nowhere(), limit=1),
        "filtered": Tracer(Nowhere(), only=TraceFilter(kinds=["hlt"])),
        "no code": Tracer(Nowhere(), instructions=False),
        "text": Tracer(Nowhere()),
        "jsonl": Tracer(Nowhere(), format="jsonl"),
        "perfetto": Tracer(Nowhere(), format="perfetto"),
    }
    with ExitStack() as stack:
        made = {name: stack.enter_context(Machine(observers=[tracer])) for name, tracer in tracers.items()}
        made["gone"].remove_observer(tracers["gone"])
        yield {"nobody": stack.enter_context(Machine()), **made}


def measure(turns: int) -> dict[str, list[float]]:
    """Take turns; return the seconds of an exit, by who looked on."""
    with machines() as ways:
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, machine in ways.items():
                times[name].append(time_run(machine))
    return times


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="What a trace costs an exit.")
    parser.add_argument("--turns", type=int, default=20)
    times = measure(parser.parse_args(arguments).turns)
    base = times.pop("nobody")
    print(f"nobody      {statistics.median(base) * 1e6:7.2f} us an exit")
    for name, values in times.items():
        # In each turn by itself, for the host changes its mind in between.
        more = statistics.median(a - b for a, b in zip(values, base, strict=True))
        ratio = statistics.median(values) / statistics.median(base)
        print(f"{name:<12}{statistics.median(values) * 1e6:7.2f} us an exit   {more * 1e6:+6.2f} us, ratio {ratio:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
