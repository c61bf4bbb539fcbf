"""``pykvm replay``: feed a recording's exits to the devices of today, and say where they first answer something else.

Neither KVM nor the guest is needed. Leaves out devices of one's own, which no option can name: see
``pykvm.testing.replay``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pykvm.cli.streams import say
from pykvm.errors import RecordingError

if TYPE_CHECKING:
    from pykvm.observe import Recording

__all__ = ["DIVERGED", "add_parser"]

DIVERGED = 76  # EX_PROTOCOL of sysexits.h: even, so that no guest's debug exit gives it


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "replay",
        help="replay a recorded run without KVM",
        description="Feed the exits that 'pykvm run --record FILE' wrote to the devices of today, up to the first that "
        f"is answered otherwise. The guest's output goes to stdout. The status is the recorded run's, or {DIVERGED}.",
    )
    parser.add_argument("file", metavar="FILE", help="a recording")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--minimize", metavar="OUT", help="write the smallest recording to OUT that diverges as FILE does (status 0)"
    )
    what.add_argument(
        "--without-times",
        action="store_true",
        help="print the recording without its times, to compare it with another one of the same guest",
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    from pykvm.observe import read_recording

    recording = read_recording(options.file)
    if options.without_times:
        return _print_without_times(recording)
    if options.minimize is not None:
        return _minimize(recording, options.minimize)
    return _replay(recording)


def _replay(recording: Recording) -> int:
    from pykvm.boot.image import printable
    from pykvm.observe import replay
    from pykvm.observe.recording import exit_status_of

    result = replay(recording, output=sys.stdout.buffer.write)
    sys.stdout.flush()
    if result.divergence is not None:
        say(f"pykvm: {result.divergence}")
        return DIVERGED
    say(f"pykvm: {result.exits} exits, all answered as recorded; {printable(str(result.stop))}")
    return exit_status_of(result.stop)


def _minimize(recording: Recording, out: str) -> int:
    from pykvm.observe import minimize, write_recording

    if Path(out).exists() and Path(out).samefile(recording.path):
        raise RecordingError(f"{recording.name}: --minimize would overwrite the recording: name another file")
    found = minimize(recording)
    write_recording(out, found.recording)
    before, after = len(recording.lines), len(found.recording.lines)
    say(f"pykvm: {before} lines became {after} in {found.replays} replays, in {out}")
    if not found.is_smallest:
        say("  the search was given up: it may not be the smallest")
    say(f"pykvm: {found.divergence}")
    return 0


def _print_without_times(recording: Recording) -> int:
    from pykvm.observe import without_times
    from pykvm.observe.recording import encode_header, encode_line

    for line in without_times([encode_header(recording.header), *map(encode_line, recording.lines)]):
        print(line)
    return 0
