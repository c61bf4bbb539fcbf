"""stdin, stdout and stderr of this process, which may be closed, full, or read by nobody.

What a closed one would leave behind is a trap: the next file opened gets its number, so that a message for stderr might
end up in a virtual machine's descriptor. Leaves out terminals: see ``terminal``.
"""

from __future__ import annotations

import io
import os
import sys

__all__ = ["discard_output", "fill_closed_streams", "say"]

STDIN, STDOUT, STDERR = 0, 1, 2


def fill_closed_streams() -> None:
    """Put something in the place of the standard streams that are closed, and let any text be printed.

    A closed stdin is empty and a closed stderr swallows everything. A closed stdout refuses to be written: whoever
    prints gets an OSError, and who does not may go on.
    """
    for fd, flags in ((STDIN, os.O_RDONLY), (STDOUT, os.O_RDONLY), (STDERR, os.O_WRONLY)):
        if not _is_open(fd):
            os.open(os.devnull, flags)  # gets the lowest number that is free, which is this one
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(STDERR, "w", closefd=False)
    # A guest's symbols and a file's name may hold characters that this terminal's encoding lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print ``text`` and a newline on stderr: all that pykvm itself has to say. Does nothing if nobody listens."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(STDERR)


def discard_output() -> None:
    """Forget what was printed on stdout and cannot be written, lest Python try again when it exits."""
    _discard(STDOUT)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _discard(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
