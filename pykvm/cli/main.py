"""``pykvm``: finds the sub-command, and turns errors into one clear message and a status.

    0     the guest stopped on its own
    v<<1|1  the guest wrote v to the debug-exit port (low 8 bits)
    2     wrong use: an unknown option, a missing or malformed image
    69    KVM cannot be used here (EX_UNAVAILABLE of sysexits.h)
    74    stdout, or a file, cannot be written (EX_IOERR)
    76    a replay is answered otherwise than its recording (EX_PROTOCOL)
    124   the time limit was reached
    125   the guest crashed
    130   interrupted with Ctrl-C
    141   whoever read stdout went away (as a shell shows SIGPIPE)

Leaves out what each sub-command does.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from pykvm.cli import cpuid, disasm, doctor, explain, guests, replay, run, step, trace
from pykvm.cli.streams import discard_output, fill_closed_streams, say
from pykvm.errors import KvmError, KvmUnavailableError, PykvmError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["entry", "main", "make_parser"]

WRONG_USE = 2
UNAVAILABLE = 69
CANNOT_WRITE = 74
INTERRUPTED = 130
BROKEN_PIPE = 141

STATUSES = """\
exit status:
  0         the guest stopped on its own
  v<<1 | 1  the guest wrote v to port 0xf4 (low 8 bits)
  2         wrong use: an unknown option, a missing or malformed image
  69        KVM cannot be used here
  74        stdout, or a file, cannot be written
  76        replay: the devices answer otherwise than in the recording
  124       the time limit was reached
  125       the guest crashed
  130       interrupted with Ctrl-C, or quit with Ctrl-A x
  141       whoever read stdout went away
"""


def entry() -> int:
    """Run the process's own command line; the process is about to end, and with the status that this returns.

    After Ctrl-C nobody listens to another one: it would find Python tidying up, and take the status away.
    """
    try:
        status = main()
    except KeyboardInterrupt:  # another one, while the first was being answered
        status = INTERRUPTED
    if status == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (by default the process's own) and return the exit status.

    Raises: SystemExit for ``--help``, ``--version`` and wrong options, as argparse does.
    """
    fill_closed_streams()
    try:
        try:
            options = make_parser().parse_args(arguments)
            status: int = options.command(options)
            return status
        finally:
            sys.stdout.flush()
    except KvmUnavailableError as error:
        return _complain(f"KVM cannot be used here: {error.reason}", error.remedy, status=UNAVAILABLE)
    except KvmError as error:
        return _complain(f"KVM refused: {error}", status=UNAVAILABLE)
    except PykvmError as error:
        return _complain(str(error), status=WRONG_USE)
    except BrokenPipeError:
        discard_output()
        return BROKEN_PIPE
    except OSError as error:
        discard_output()
        return _complain(f"{error.filename or 'stdout'}: cannot be written: {error.strerror}", status=CANNOT_WRITE)
    except KeyboardInterrupt:
        discard_output()
        return _complain("interrupted with Ctrl-C", status=INTERRUPTED)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="pykvm",
        description="Learn, run and test on raw KVM.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, trace, step, replay, guests, doctor, cpuid, explain, disasm):
        module.add_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse prints the whole usage first. Sub-commands' parsers do too."""

    def error(self, message: str) -> NoReturn:
        self.exit(_complain(message.removeprefix("argument "), f"see {self.prog} --help", status=WRONG_USE))

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        # argparse ignores an OSError here, as if the help had been shown.
        print(self.format_help(), end="", file=file)


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for: importlib.metadata takes longer to load than pykvm."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from importlib import metadata

        print(f"pykvm {metadata.version('pykvm-hypervisor')}")
        parser.exit()


def _complain(message: str, advice: str = "", *, status: int) -> int:
    say("\n".join([f"pykvm: {message}", *(f"  {line}" for line in advice.splitlines())]))
    return status


if __name__ == "__main__":
    sys.exit(entry())
