"""``--ioctls``: every system call that KVM gets, a line each, on stderr or in a file.

Leaves out what such a line looks like: see ``pykvm.observe.ioctls``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from pykvm.cli.arguments import check_spares_guest
from pykvm.cli.streams import say

if TYPE_CHECKING:
    from pykvm.kvm import CallLog

__all__ = ["add_ioctl_options", "ioctl_log"]


def add_ioctl_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``ioctl_log`` reads."""
    parser.add_argument(
        "--ioctls", action="store_true", help="show every system call that KVM gets, decoded, a line each on stderr"
    )
    parser.add_argument("--ioctls-file", metavar="FILE", help="write those lines to FILE instead")


@contextmanager
def ioctl_log(options: argparse.Namespace) -> Iterator[CallLog | None]:
    """Yield what is to be told of system calls, or None if nothing is. Raises: OSError; ConfigurationError."""
    if options.ioctls_file is None and not options.ioctls:
        yield None
        return
    from pykvm.observe import CallText

    if options.ioctls_file is None:
        yield CallText(say)
        return
    check_spares_guest("--ioctls-file", options.ioctls_file, options.target)
    with LineFile(options.ioctls_file) as lines:
        yield CallText(lines.write)


class LineFile:
    """A file that lines are written to at once. A line that cannot be written raises at the end, not in a guest's run.

    Raises: OSError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: TextIO = Path(path).open(  # noqa: SIM115 - __exit__ closes it
            "w", buffering=1, encoding="utf-8", errors="backslashreplace"
        )
        self._error: OSError | None = None

    def write(self, line: str) -> None:
        """Write ``line``, unless the one before could not be written."""
        if self._error is not None:
            return
        try:
            self._file.write(line + "\n")
        except OSError as error:
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:  # what could not be written before is tried once more
            self._error = self._error or failure
        if self._error is not None and kind is None:
            raise OSError(self._error.errno, self._error.strerror, self._path)
