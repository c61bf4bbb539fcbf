"""fw_cfg, QEMU's Firmware Configuration device: named files and a few figures that the host hands to the guest.

    port     register
    0x510    selector: 16 bits, little-endian; which item comes next, from its start
    0x511    data: the item's next byte
    0x514    DMA address: 64 bits, big-endian; writing its low half, at 0x518, starts a transfer

A transfer is described by 16 bytes in guest memory, all big-endian:

    0           4          8                  16
    +-----------+----------+------------------+
    |  control  |  length  |     address      |     control: what to do, see ``Control``; afterwards 0, or ERROR
    +-----------+----------+------------------+

See: QEMU, docs/specs/fw_cfg.rst. Leaves out items that a guest may write, memory-mapped registers, and the items that
only QEMU's own firmware and option ROMs ask for. Unlike QEMU's, a transfer cannot read more than ``ZEROS`` bytes beyond
an item's end, so that no guest keeps the host busy with them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import ClassVar

from pykvm.devices.fields import Number
from pykvm.devices.state import Remembered, Stateful
from pykvm.errors import ConfigurationError, GuestMemoryError
from pykvm.units import KiB, MiB

__all__ = ["NAME_SIZE", "PORT", "REGISTERS", "ZEROS", "Control", "Feature", "FwCfg", "Key", "Offset"]

PORT = 0x510
REGISTERS = 12
NAME_SIZE = 56  # bytes of a file's name, with the NUL at its end
ZEROS = 1 * MiB  # what one transfer may read beyond an item's end


class Offset(enum.IntEnum):
    """Where the registers are, from ``PORT`` on."""

    SELECTOR = 0
    DATA = 1
    DMA_HIGH = 4
    DMA_LOW = 8


class Key(enum.IntEnum):
    """What the selector can name. An item that there is not reads as zeros."""

    SIGNATURE = 0x0000  # "QEMU"
    ID = 0x0001  # u32, a set of ``Feature``; little-endian, as all figures up to the directory
    RAM_SIZE = 0x0003  # u64, bytes
    NB_CPUS = 0x0005  # u16
    MAX_CPUS = 0x000F  # u16
    FILE_DIR = 0x0019  # the files' directory, big-endian
    FILE_FIRST = 0x0020  # the first file; the others follow
    WRITE_CHANNEL = 0x4000  # a bit: once upon a time it let the guest write; now it means nothing


class Feature(enum.Flag):
    """How the items can be read."""

    TRADITIONAL = 1 << 0  # selector and data
    DMA = 1 << 1


class Control(enum.Flag):
    """A transfer's control word. With more than one of READ, WRITE and SKIP, the first of these is done.

     31                 16 15      5    4     3    2    1    0
    +---------------------+---------+-----+------+----+----+-----+
    |         key         |    0    |WRITE|SELECT|SKIP|READ|ERROR|
    +---------------------+---------+-----+------+----+----+-----+
    """

    ERROR = 1 << 0  # set by the device
    READ = 1 << 1  # the item's next bytes, into guest memory
    SKIP = 1 << 2  # go on in the item, and do nothing
    SELECT = 1 << 3  # first select the key, as the selector does
    WRITE = 1 << 4  # the guest's bytes into the item: always an error here


CONTROL_BITS = 0x1F
KEY_NAMES: dict[int, str] = {key: key.name for key in Key if key is not Key.FILE_FIRST}
DMA_NAMES: dict[int, str] = {Offset.DMA_HIGH: "DMA address high", Offset.DMA_LOW: "DMA address low"}
KEY_SHIFT = 16
KEYS = Key.WRITE_CHANNEL - Key.FILE_FIRST  # how many files there can be
SIGNATURE = b"QEMU"
DMA_SIGNATURE = b"QEMU CFG"  # what the DMA address register reads as
DESCRIPTOR = struct.Struct(">IIQ")
DIRECTORY_COUNT = struct.Struct(">I")
DIRECTORY_ENTRY = struct.Struct(f">IHH{NAME_SIZE}s")  # size, key, reserved, name
MAXIMUM_FILE = 2**32 - 1  # bytes
CHUNK = 64 * KiB  # zeros written at a time


class FwCfg(Stateful):
    """The device. ``files`` are listed for the guest in their order.

    ``read_memory(gpa, size)`` and ``write_memory(gpa, data)`` access guest-physical memory for DMA, and raise
    GuestMemoryError where there is none; the guest then sees ERROR. ``ram_size`` is in bytes.

    Raises: ConfigurationError for a file or a figure that fw_cfg has no room for.
    """

    name = "fw_cfg"
    remembers: ClassVar[Remembered] = {
        "_key": Number(0xFFFF),
        "_position": Number(MAXIMUM_FILE),
        "_dma_high": Number(0xFFFF_FFFF),
    }

    def __init__(
        self,
        read_memory: Callable[[int, int], bytes],
        write_memory: Callable[[int, bytes], object],
        *,
        ram_size: int,
        cpus: int,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._read_memory = read_memory
        self._write_memory = write_memory
        self._items = make_items(ram_size, cpus, files or {})
        self._dma_high = 0
        self._select(Key.SIGNATURE)

    def _restored(self) -> None:
        self._item = self._items.get(self._key, b"")

    # ---- the registers ----

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes. The data register has one, the next of the item; the selector cannot be read."""
        return bytes(self._read_byte(offset + position) for position in range(size))

    def write(self, offset: int, data: bytes) -> None:
        """Take ``data`` if it is a whole register, or a half of the DMA address; all else has no effect."""
        match offset, len(data):
            case Offset.SELECTOR, 2:
                self._select(int.from_bytes(data, "little"))
            case Offset.DMA_HIGH, 4:
                self._dma_high = int.from_bytes(data, "big")
            case Offset.DMA_LOW, 4:
                self._start(self._dma_high << 32 | int.from_bytes(data, "big"))
            case Offset.DMA_HIGH, 8:
                self._start(int.from_bytes(data, "big"))

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return the register, and of the data register whose data it has."""
        match offset:
            case Offset.SELECTOR:
                return "selector"
            case Offset.DATA:
                return f"data of {KEY_NAMES.get(self._key, f'{self._key:#06x}')}"
        return DMA_NAMES.get(offset & ~3, f"+{offset:#x}")

    def _read_byte(self, offset: int) -> int:
        if offset == Offset.DATA:
            return self._next_byte()
        position = offset - Offset.DMA_HIGH
        return DMA_SIGNATURE[position] if 0 <= position < len(DMA_SIGNATURE) else 0

    def _select(self, key: int) -> None:
        self._key = key & ~Key.WRITE_CHANNEL
        self._item = self._items.get(self._key, b"")
        self._position = 0  # of the next byte

    def _next_byte(self) -> int:
        if self._position >= len(self._item):
            return 0
        self._position += 1
        return self._item[self._position - 1]

    # ---- DMA ----

    def _start(self, descriptor: int) -> None:
        self._dma_high = 0  # so that a guest below 4 GiB need not write it again
        try:
            control, length, address = DESCRIPTOR.unpack(self._read_memory(descriptor, DESCRIPTOR.size))
            is_done = self._transfer(control, length, address)
        except GuestMemoryError:
            is_done = False
        answer = Control(0) if is_done else Control.ERROR
        with suppress(GuestMemoryError):  # where the question was not in memory, there is no place for the answer
            self._write_memory(descriptor, answer.value.to_bytes(4, "big"))

    def _transfer(self, control: int, length: int, address: int) -> bool:
        """Do what ``control`` says and return whether it could be done. Raises: GuestMemoryError."""
        wanted = Control(control & CONTROL_BITS)
        if Control.SELECT in wanted:
            self._select(control >> KEY_SHIFT)
        if Control.READ in wanted:
            return self._read_out(length, address)
        if Control.WRITE in wanted:
            return length == 0
        if Control.SKIP in wanted:
            self._position = min(self._position + length, len(self._item))
        return True

    def _read_out(self, length: int, address: int) -> bool:
        data = self._item[self._position : self._position + length]
        zeros = length - len(data)
        if zeros > ZEROS:
            return False
        if data:
            self._write_memory(address, data)
            self._position += len(data)
        for done in range(0, zeros, CHUNK):
            self._write_memory(address + len(data) + done, bytes(min(CHUNK, zeros - done)))
        return True


def make_items(ram_size: int, cpus: int, files: Mapping[str, bytes]) -> dict[int, bytes]:
    """Return all items by their keys. Raises: ConfigurationError."""
    if len(files) > KEYS:
        raise ConfigurationError(f"fw_cfg: {len(files)} files are too many: it has keys for {KEYS}")
    figures: dict[int, bytes] = {
        Key.SIGNATURE: SIGNATURE,
        Key.ID: figure((Feature.TRADITIONAL | Feature.DMA).value, 4, "features"),
        Key.RAM_SIZE: figure(ram_size, 8, "RAM size"),
        Key.NB_CPUS: figure(cpus, 2, "number of CPUs"),
        Key.MAX_CPUS: figure(cpus, 2, "number of CPUs"),
    }
    contents = dict(enumerate(map(bytes, files.values()), Key.FILE_FIRST))
    entries = (directory_entry(name, key, contents[key]) for key, name in enumerate(files, Key.FILE_FIRST))
    return {**figures, **contents, Key.FILE_DIR: DIRECTORY_COUNT.pack(len(files)) + b"".join(entries)}


def directory_entry(name: str, key: int, content: bytes) -> bytes:
    """Return the directory's entry of one file. Raises: ConfigurationError."""
    if not name or not name.isascii() or not name.isprintable() or len(name) >= NAME_SIZE:
        limit = f"a name has 1 to {NAME_SIZE - 1} printable ASCII characters"
        raise ConfigurationError(f"fw_cfg: {name!r} cannot be a file's name: {limit}")
    if len(content) > MAXIMUM_FILE:
        raise ConfigurationError(f"fw_cfg: file {name!r} has {len(content)} bytes: {MAXIMUM_FILE} is the most")
    return DIRECTORY_ENTRY.pack(len(content), key, 0, name.encode("ascii"))


def figure(value: int, size: int, what: str) -> bytes:
    """Return ``value`` in ``size`` bytes, little-endian. Raises: ConfigurationError."""
    if not 0 <= value < 1 << 8 * size:
        raise ConfigurationError(f"fw_cfg: the {what} {value} does not fit into {8 * size} bits")
    return value.to_bytes(size, "little")
