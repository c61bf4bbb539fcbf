"""What the tests of stepping share: a memory with page tables and code, without KVM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pykvm.kvm import Sregs
from pykvm.memory import GuestMemory
from pykvm.observe.stepping.reading import Reader
from pykvm.units import MiB
from pykvm.x86 import CpuState, Mode, set_up

CODE = 0x8000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 * MiB) as memory:
        yield memory


@pytest.fixture
def reader(memory: GuestMemory) -> Reader:
    return Reader(memory)


@pytest.fixture(params=[Mode.REAL, Mode.PROTECTED, Mode.LONG], ids=lambda mode: mode.value)
def any_mode(request: pytest.FixtureRequest) -> Mode:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def state(any_mode: Mode, memory: GuestMemory) -> CpuState:
    """The state of a CPU in any of the modes, at CODE."""
    return set_up(any_mode, Sregs(), memory, CODE)


@pytest.fixture
def long(memory: GuestMemory) -> CpuState:
    return set_up(Mode.LONG, Sregs(), memory, CODE)
