"""pykvm.devices.device: a device of byte-wide registers under accesses of any width."""

from __future__ import annotations

import pytest

from pykvm.devices import ByteRegisters, DebugConsole, DebugExit, Device, PostCode, Serial


class Recorder(ByteRegisters):
    """Answers each register with its own offset, and keeps what is written."""

    name = "recorder"

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.writes: list[tuple[int, int]] = []

    def read_register(self, offset: int) -> int:
        self.reads.append(offset)
        return offset

    def write_register(self, offset: int, value: int) -> None:
        self.writes.append((offset, value))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_wide_read_is_single_reads_lowest_address_first(size: int) -> None:
    recorder = Recorder()
    assert recorder.read(3, size) == bytes(range(3, 3 + size))
    assert recorder.reads == list(range(3, 3 + size))


def test_a_wide_write_is_single_writes_lowest_address_and_lowest_byte_first() -> None:
    recorder = Recorder()
    recorder.write(2, (0x44332211).to_bytes(4, "little"))
    assert recorder.writes == [(2, 0x11), (3, 0x22), (4, 0x33), (5, 0x44)]


def test_a_device_without_register_access_cannot_be_made() -> None:
    class Incomplete(ByteRegisters):
        name = "incomplete"

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()  # type: ignore[abstract]


def test_every_device_here_follows_the_protocol_and_has_a_name_of_its_own() -> None:
    devices: list[Device] = [Serial(print), DebugExit(print), DebugConsole(print), PostCode()]
    assert len({device.name for device in devices}) == len(devices)
