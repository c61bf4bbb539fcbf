"""``pykvm``: finds the sub-command, and turns errors into one clear message and a status.

    0     the guest stopped on its own
    v<<1|1  the guest wrote v to the debug-exit port (low 8 bits)
    2     wrong use: an unknown option, a missing or malformed image
    69    KVM cannot be used here (EX_UNAVAILABLE of sysexits.h)
    124   the time limit was reached
    125   the guest crashed
    130   interrupted with Ctrl-C
    141   whoever read the output went away

Leaves out what each sub-command does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pykvm.cli import disasm, doctor, guests, run
from pykvm.errors import KvmError, KvmUnavailableError, PykvmError

__all__ = ["main", "make_parser"]

WRONG_USE = 2
UNAVAILABLE = 69
INTERRUPTED = 130
BROKEN_PIPE = 141

STATUSES = """\
exit status:
  0         the guest stopped on its own
  v<<1 | 1  the guest wrote v to port 0xf4 (low 8 bits)
  2         wrong use: an unknown option, a missing or malformed image
  69        KVM cannot be used here
  124       the time limit was reached
  125       the guest crashed
  130       interrupted with Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (by default the process's own) and return the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except KvmUnavailableError as error:
        return _complain(f"KVM cannot be used here: {error.reason}", error.remedy, status=UNAVAILABLE)
    except KvmError as error:
        return _complain(f"KVM refused: {error}", status=UNAVAILABLE)
    except PykvmError as error:
        return _complain(str(error), status=WRONG_USE)
    except KeyboardInterrupt:
        return _complain("interrupted with Ctrl-C", status=INTERRUPTED)
    except BrokenPipeError:
        # Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="pykvm",
        description="Learn, run and test on raw KVM.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, guests, doctor, disasm):
        module.add_parser(commands)
    return parser


class _ShowVersion(argparse.Action):
    """Looks the version up only when it is asked for: importlib.metadata takes longer to load than pykvm."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from importlib import metadata

        print(f"pykvm {metadata.version('pykvm-hypervisor')}")
        parser.exit()


def _complain(message: str, advice: str = "", *, status: int) -> int:
    print(f"pykvm: {message}", file=sys.stderr)
    for line in advice.splitlines():
        print(f"  {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
