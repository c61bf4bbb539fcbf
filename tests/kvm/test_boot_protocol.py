"""A boot protocol of our own: what it writes and says is what the guest finds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pykvm import Machine, assemble
from pykvm.boot import Image, Platform
from pykvm.errors import ConfigurationError
from pykvm.units import Gpa
from pykvm.x86 import CpuState, Mode, set_up


class Greeting:
    """Puts a number at 0x5000, and its address into EBX."""

    name = "the greeting protocol"
    irqchip = "none"
    memory = "16M"
    rom = b""

    def start(self, image: Image, platform: Platform) -> CpuState:
        platform.memory.write(Gpa(0x5000), bytes([42, platform.cpus]))
        state = set_up(Mode.PROTECTED, platform.reset, platform.memory, image.entry)
        state.regs.rbx = 0x5000
        return state


def image() -> Image:
    plain = assemble(".code32\nmov (%ebx), %al\n out %al, $0xf4")
    return replace(plain, protocol=Greeting())


def test_a_guest_finds_what_its_protocol_wrote() -> None:
    with Machine() as machine:
        machine.load(image())
        assert machine.run().exit_code == 42 << 1 | 1


def test_a_mode_that_is_asked_for_takes_the_place_of_the_protocol() -> None:
    with Machine() as machine:
        machine.load(image(), mode="protected")
        assert machine.registers.rbx == 0


@pytest.mark.parametrize("options", [{"ring": 3}, {"page_size": 4096}])
def test_ring_and_page_size_are_the_protocols_business(options: dict[str, int]) -> None:
    with Machine() as machine, pytest.raises(ConfigurationError, match="starts as the greeting protocol says"):
        machine.load(image(), **options)  # type: ignore[arg-type]
