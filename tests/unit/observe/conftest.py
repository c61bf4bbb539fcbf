"""What the tests of recordings share: a device in two versions, and its recordings, made without KVM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from pykvm.devices import Bus
from pykvm.kvm import Exit, IoIn, IoOut
from pykvm.observe import Recorder, ReplayResult, replay
from pykvm.testing import DeviceBench

BASE, REGISTERS = 0x300, 4


class Cell:
    """Four registers of a byte that keep what is written. ``mask`` is what reads of register 1 lose: a bug."""

    name = "cell"

    def __init__(self, mask: int = 0) -> None:
        self.bytes = bytearray(REGISTERS)
        self.mask = mask

    def read(self, offset: int, size: int) -> bytes:
        read = bytearray(self.bytes)
        read[1] &= ~self.mask
        return bytes(read[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data


class HasPorts(Protocol):
    pio: Bus


@dataclass
class Lab:
    """Records exits that reach a Cell, and replays them."""

    folder: Path

    def write(self, register: int, value: int) -> IoOut:
        return IoOut(BASE + register, 1, 1, bytes([value]))

    def read(self, register: int) -> IoIn:
        return IoIn(BASE + register, 1, 1)

    def plug_in(self, bench: HasPorts, mask: int = 0) -> None:
        bench.pio.register(Cell(mask), BASE, REGISTERS)

    def with_mask(self, mask: int) -> Callable[[HasPorts], None]:
        return lambda bench: self.plug_in(bench, mask)

    def record(self, exits: Iterable[Exit], name: str = "run.jsonl") -> Path:
        path = self.folder / name
        with Recorder(path, guest="a test") as recorder:
            bench = DeviceBench(observers=[recorder])
            self.plug_in(bench)
            bench.run(exits)
        return path

    def replay(self, path: Path, mask: int = 0) -> ReplayResult:
        return replay(path, self.with_mask(mask), board=False)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)
