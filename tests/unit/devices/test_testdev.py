"""pykvm.devices.testdev: QEMU's pc-testdev."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.testdev import (
    IRQ_LINES,
    IRQ_PORT,
    MEMORY,
    MEMORY_SIZE,
    PORT,
    REGISTERS,
    EchoMemory,
    EchoPorts,
    IrqPorts,
    PcTestdev,
)
from pykvm.testing import DeviceBench


def ignore(line: int, level: bool) -> None:
    pass


def test_its_parts_fit_on_the_buses_of_a_pc() -> None:
    testdev = PcTestdev(ignore)
    bench = DeviceBench(
        pio={PORT: (testdev.ports, REGISTERS), IRQ_PORT: (testdev.irq_lines, IRQ_LINES)},
        mmio={MEMORY: (testdev.memory, MEMORY_SIZE)},
    )
    bench.pio.write(0xE0, b"\x12\x34\x56\x78")
    assert bench.pio.read(0xE0, 4) == b"\x12\x34\x56\x78"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_port_0xe0_reads_as_what_was_written(size: int) -> None:
    ports = EchoPorts()
    ports.write(0, b"\xaa\xbb\xcc\xdd"[:size])
    assert ports.read(0, 4) == b"\xaa\xbb\xcc\xdd"[:size].ljust(4, b"\0")


def test_a_narrow_write_changes_its_bytes_only() -> None:
    ports = EchoPorts()
    ports.write(0, b"\x11\x22\x33\x44")
    ports.write(1, b"\xff")
    ports.write(2, b"\xee\xdd")
    assert ports.read(0, 4) == b"\x11\xff\xee\xdd"


def test_port_0xe8_is_port_0xe0_again() -> None:
    ports = EchoPorts()
    ports.write(8, b"\x01\x02\x03\x04")
    assert ports.read(0, 4) == b"\x01\x02\x03\x04"
    assert ports.read(8, 4) == b"\x01\x02\x03\x04"


def test_flushing_a_page_is_accepted_and_reads_as_zero() -> None:
    ports = EchoPorts()
    ports.write(0, b"\x01\x02\x03\x04")
    ports.write(4, b"\0\x10\0\0")
    assert ports.read(4, 4) == bytes(4)
    assert ports.read(0, 4) == b"\x01\x02\x03\x04"


@pytest.mark.parametrize("line", [0, 9, 23])
def test_writing_sets_an_interrupt_line_and_writing_zero_clears_it(line: int) -> None:
    levels: list[tuple[int, bool]] = []
    lines = IrqPorts(lambda line, level: levels.append((line, level)))
    lines.write(line, b"\x80")
    lines.write(line, b"\0")
    assert levels == [(line, True), (line, False)]
    assert lines.read(line, 1) == b"\0"


def test_there_is_no_interrupt_line_24() -> None:
    levels: list[tuple[int, bool]] = []
    IrqPorts(lambda line, level: levels.append((line, level))).write(22, b"\x01\x01\x01\x01")
    assert levels == [(22, True), (23, True)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("end", [16, MEMORY_SIZE])
def test_the_memory_window_reads_as_what_was_written(size: int, end: int) -> None:
    memory = EchoMemory()
    data = bytes(range(1, size + 1))
    memory.write(end - size, data)
    assert memory.read(end - size, size) == data
    assert memory.read(end - size - 1, 1) == b"\0"


widths = st.sampled_from([1, 2, 3, 4, 8])
written = widths.flatmap(lambda size: st.binary(min_size=size, max_size=size))
offsets = st.integers(0, 32) | st.integers(MEMORY_SIZE - 8, MEMORY_SIZE + 16)


@given(st.sampled_from(["ports", "irq_lines", "memory"]), st.lists(st.tuples(offsets, widths | written), max_size=30))
def test_no_access_sequence_raises(part: str, sequence: list[tuple[int, int | bytes]]) -> None:
    device = getattr(PcTestdev(ignore), part)
    for offset, access in sequence:
        if isinstance(access, int):
            assert len(device.read(offset, access)) == access
        else:
            device.write(offset, access)


def test_writing_beyond_the_window_does_not_make_it_larger() -> None:
    memory = EchoMemory()
    memory.write(MEMORY_SIZE - 2, b"\x01\x02\x03\x04")
    memory.write(MEMORY_SIZE + 2, b"\x05")
    assert memory.read(MEMORY_SIZE - 2, 4) == b"\x01\x02\xff\xff"
