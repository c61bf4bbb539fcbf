"""How fast a snapshot is restored: ``python tests/benchmarks/bench_restore.py``.

A guest with 16 MiB writes to 16 pages and stops; then it is restored. For comparison the same ioctls with the same
arguments are issued by a loop in C, which is compiled here: KVM_GET_DIRTY_LOG, KVM_SET_CLOCK, and those of a vCPU. The
two take turns, each right after the guest ran, so that whatever else the host does slows both. What restoring costs
beyond its ioctls is copying the pages, and Python's: a look at every device, and bookkeeping. Leaves out running the
guest, which is not timed.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pykvm import Machine, assemble
from pykvm._shim import ffi, lib
from pykvm.machine.snapshot import Snapshot

if TYPE_CHECKING:
    from pykvm._shim import CData

MEMORY = "16M"
PAGES = 16
GUEST = f"""
        .globl  _start
_start: mov     $0x200000, %rdi
        mov     ${PAGES}, %ecx
1:      incq    (%rdi)                  # one page in two, so that none of them adjoin
        add     $0x2000, %rdi
        loop    1b
        out     %al, $0xf4
"""
LOOP = """
#include <stdint.h>
#include <sys/ioctl.h>
#include <time.h>

struct step { int fd; unsigned long request; void *argument; };

int64_t issue(const struct step *steps, int count)
{
        struct timespec start, end;

        clock_gettime(CLOCK_MONOTONIC, &start);
        for (int i = 0; i < count; i++)
                if (ioctl(steps[i].fd, steps[i].request, steps[i].argument) < 0)
                        return -1;
        clock_gettime(CLOCK_MONOTONIC, &end);
        return (end.tv_sec - start.tv_sec) * 1000000000 + end.tv_nsec - start.tv_nsec;
}
"""


class Step(ctypes.Structure):
    """An ioctl, as the loop in C takes it."""

    _fields_ = (("fd", ctypes.c_int), ("request", ctypes.c_ulong), ("argument", ctypes.c_void_p))


class IoctlsInC:
    """The ioctls of restoring ``snapshot`` into ``machine``, issued by compiled code."""

    def __init__(self, machine: Machine, snapshot: Snapshot) -> None:
        self._loop = compile_loop()
        steps = [log.step(machine.vm.fileno()) for log in machine.vm._dirty_logs()]
        steps += machine.vm.load_steps(snapshot.vm)
        for vcpu, saved in zip(machine.vcpus, snapshot.vcpus, strict=True):
            steps += vcpu.load_steps(saved)
        self._steps = (Step * len(steps))(*(Step(s.fd, getattr(lib, s.name), address(s.argument)) for s in steps))

    def run(self) -> float:
        """Issue them and return the seconds it took."""
        nanoseconds = self._loop(self._steps, len(self._steps))
        if nanoseconds < 0:
            raise OSError("an ioctl failed in C")
        return nanoseconds / 1e9


def address(c: CData) -> int:
    # SAFETY: the structures live as long as the snapshot, and the machine's dirty log.
    return int(ffi.cast("uintptr_t", c))


def compile_loop() -> Callable[[ctypes.Array[Step], int], int]:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "loop.c"), Path(folder, "loop.so")
        source.write_text(LOOP)
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        loop = ctypes.CDLL(str(library)).issue
    loop.restype = ctypes.c_int64
    return cast("Callable[[ctypes.Array[Step], int], int]", loop)


@dataclass(frozen=True)
class Figures:
    """What was measured: medians, in seconds."""

    restore: float
    ioctls: float

    def __str__(self) -> str:
        return (
            f"restore, {PAGES} pages  {self.restore * 1e6:7.1f} us   {1 / self.restore:,.0f} a second\n"
            f"its ioctls in C    {self.ioctls * 1e6:7.1f} us\n"
            f"ratio              {self.restore / self.ioctls:7.2f}      aims: 3,000 a second, a ratio of 1.5"
        )


def measure(iterations: int) -> Figures:
    """Restore so many times, and issue the ioctls in C as often."""
    restores, ioctls = [], []
    with Machine(MEMORY) as machine:
        machine.load(assemble(GUEST, mode="long"))
        snapshot = machine.snapshot()
        in_c = IoctlsInC(machine, snapshot)
        for _ in range(iterations):
            machine.run()
            start = time.perf_counter()
            machine.restore(snapshot)
            restores.append(time.perf_counter() - start)
            machine.run()
            ioctls.append(in_c.run())
    return Figures(statistics.median(restores), statistics.median(ioctls))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="How fast a snapshot is restored.")
    parser.add_argument("--iterations", type=int, default=2000)
    print(measure(parser.parse_args(arguments).iterations))


if __name__ == "__main__":
    main(sys.argv[1:])
