"""``pykvm explain``: what an exit, an ioctl, an errno, a register's bits and more mean.

It needs no KVM. Leaves out the explanations themselves: see ``pykvm.observe.explaining``.
"""

from __future__ import annotations

import argparse
import shutil

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "explain",
        help="explain an exit, an error, an ioctl, a register's bits",
        description="Explain what something means, when it happens, what to do and where it is specified. Without "
        "TOPIC, list what can be explained, with an example each.",
    )
    parser.add_argument(
        "topic", nargs="*", metavar="TOPIC", help="a kind and what of it (exit 8), or a name (KVM_EXIT_MMIO)"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    from pykvm.observe.explaining import explain, format_explanation

    if not options.topic:
        _list_kinds()
        return 0
    print(format_explanation(explain(options.topic), shutil.get_terminal_size().columns))
    return 0


def _list_kinds() -> None:
    from pykvm.observe.explaining import KINDS

    width = max(len(kind.example) for kind in KINDS)
    for kind in KINDS:
        print(f"pykvm explain {kind.example:<{width}}  {kind.about}")
    print("\nNames go without their kind where only one has them: pykvm explain KVM_EXIT_MMIO")
