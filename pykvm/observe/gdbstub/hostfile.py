"""The guest's ELF file as gdb fetches it: gdb knows its symbols and lines without being given a file.

gdb asks which file is executed, opens that, and reads it piece by piece. There is no other file, whatever gdb asks for,
and nothing of the host's. See: the manual of gdb, "Host I/O Packets" and "struct stat". Leaves out writing.
"""

from __future__ import annotations

import errno
import struct

from pykvm.observe.gdbstub.commands import number, numbers
from pykvm.observe.gdbstub.packets import decode_hex

__all__ = ["HostFile"]

DESCRIPTOR = 3
READ_ONLY = 0
REGULAR_FILE = 0o100444

# Device, inode, mode, links, user, group, special device, size, block size, blocks, and three times; big-endian.
_STAT = struct.Struct(">7I3Q3I")


class HostFile:
    """One file, called ``name`` by gdb; without ``data`` there is none."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name = name.encode("utf-8", "replace")
        self._data = data

    @property
    def name(self) -> bytes:
        """Return its name as gdb is told; empty if there is no file."""
        return b"/" + self._name.lstrip(b"/") if self._data else b""

    def handle(self, text: bytes, limit: int) -> bytes:
        """Return the answer to the packet vFile:``text``, in at most about ``limit`` bytes. Raises: ValueError."""
        operation, _, arguments = text.partition(b":")
        match operation:
            case b"setfs":
                return b"F0"
            case b"open":
                return self._open(arguments)
            case b"pread":
                descriptor, count, offset = numbers(arguments, 3)
                return self._read(descriptor, min(count, limit), offset)
            case b"fstat":
                return self._status(number(arguments))
            case b"close":
                return b"F0" if number(arguments) == DESCRIPTOR else _failed(errno.EBADF)
        return b""

    def _open(self, arguments: bytes) -> bytes:
        name, flags, _ = arguments.split(b",")
        if not self._data or decode_hex(name) != self.name:
            return _failed(errno.ENOENT)
        return f"F{DESCRIPTOR:x}".encode() if number(flags) == READ_ONLY else _failed(errno.EACCES)

    def _read(self, descriptor: int, count: int, offset: int) -> bytes:
        if descriptor != DESCRIPTOR or not self._data:
            return _failed(errno.EBADF)
        data = self._data[offset : offset + count]
        return f"F{len(data):x};".encode() + data

    def _status(self, descriptor: int) -> bytes:
        if descriptor != DESCRIPTOR or not self._data:
            return _failed(errno.EBADF)
        status = _STAT.pack(0, 0, REGULAR_FILE, 1, 0, 0, 0, len(self._data), 512, -(-len(self._data) // 512), 0, 0, 0)
        return f"F{len(status):x};".encode() + status


def _failed(number: int) -> bytes:
    return f"F-1,{number:x}".encode()
