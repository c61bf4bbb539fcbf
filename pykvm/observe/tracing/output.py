"""Where bytes go while a guest runs: a file of its own, or a stream of somebody's, written as they come.

What cannot be written is an error once, and whatever is written later is lost. Leaves out what is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

__all__ = ["OutputFile"]

BUFFER = 1 << 16  # bytes that wait for a flush at most


class OutputFile:
    """Bytes on their way to ``target``: a path, whose file is created or emptied, or a binary stream of the caller's.

    Raises: OSError, with ``filename`` if it is about a path.
    """

    def __init__(self, target: str | Path | BinaryIO) -> None:
        self._path = str(target) if isinstance(target, str | Path) else None
        # closed by close()
        self._stream = Path(target).open("wb", BUFFER) if isinstance(target, str | Path) else target  # noqa: SIM115
        self._waiting: list[bytes] = []
        self._size = 0
        self.has_failed = False

    @property
    def is_own(self) -> bool:
        """Return whether it is a file that was opened here."""
        return self._path is not None

    def write(self, data: bytes) -> None:
        """Write ``data``, at the next ``flush()`` if there is little of it. Raises: OSError."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= BUFFER:
            self._hand_over()

    def flush(self) -> None:
        """Hand everything to the operating system. Raises: OSError."""
        self._hand_over()
        if not self.has_failed:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """Flush, and close the file if it was opened here. Raises: OSError, unless one was raised before."""
        try:
            self.flush()
        finally:
            if self._path is not None:
                self._close_file()

    def _close_file(self) -> None:
        try:
            self._stream.close()
        except OSError as error:
            if not self.has_failed:
                self._fail(error)

    def _hand_over(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if self.has_failed or not data:
            return
        try:
            self._stream.write(data)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.has_failed = True
        if self._path is None:
            raise error
        raise OSError(error.errno, error.strerror, self._path) from error
