"""``pykvm cpuid``: what this host's KVM lets CPUID say to guests, and what masking does to it.

Leaves out what KVM then makes of it: it may not obey every bit of KVM_SET_CPUID2.
"""

from __future__ import annotations

import argparse

from pykvm.cli.rows import print_rows
from pykvm.errors import ConfigurationError
from pykvm.x86.cpuid import Cpuid
from pykvm.x86.cpuid_features import find_feature

__all__ = ["add_parser"]

HEADING = ("leaf", "sub", "eax", "ebx", "ecx", "edx", "meaning")
ZEROS = ("00000000",) * 4


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "cpuid",
        help="show what CPUID can say to guests here",
        description="Show what this host's KVM lets CPUID say to guests, numbers in hexadecimal. Features have the "
        "names of /proc/cpuinfo.",
    )
    parser.add_argument("--leaf", type=leaf, metavar="N", help="only this leaf, as 7 or 0x80000001")
    parser.add_argument("--raw", action="store_true", help="numbers only, one line a subleaf, zeros too")
    parser.add_argument(
        "--mask", type=feature, action="append", default=[], metavar="NAME", help="take a feature away (repeatable)"
    )
    parser.add_argument("--add", type=feature, action="append", default=[], metavar="NAME", help="offer one")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    for name in options.mask:
        if name in options.add:
            raise ConfigurationError(f"{name} cannot be masked and added at once")
    offered = _ask_kvm()
    changed = offered.without(*options.mask).with_(*options.add)
    shown = _only(changed, options.leaf)
    if options.raw:
        _print_raw(shown)
        return 0
    _print_table(shown, with_zeros=options.leaf is not None)
    if options.mask or options.add:
        _print_changes(offered, changed)
    return 0


def leaf(text: str) -> int:
    """Return the leaf that ``text`` names, in decimal or as 0x..."""
    try:
        number = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a leaf: write 7 or 0x80000001") from None
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a leaf: they have 32 bits")
    return number


def feature(text: str) -> str:
    """Return the feature's name that ``text`` means."""
    try:
        return find_feature(text).name
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _ask_kvm() -> Cpuid:
    """Return what KVM offers. Raises: KvmUnavailableError, KvmError."""
    from pykvm.kvm import Kvm

    with Kvm.open() as kvm:
        return Cpuid(kvm.get_supported_cpuid())


def _only(cpuid: Cpuid, leaf: int | None) -> Cpuid:
    if leaf is None:
        return cpuid
    entries = [entry for entry in cpuid.entries if entry.function == leaf]
    if not entries:
        raise ConfigurationError(
            f"KVM offers no leaf {leaf:#x} here: guests read zeros; 'pykvm cpuid' shows what it has"
        )
    return Cpuid(entries)


def _print_raw(cpuid: Cpuid) -> None:
    for entry in sorted(cpuid.entries, key=lambda entry: (entry.function, entry.index)):
        registers = {"eax": entry.eax, "ebx": entry.ebx, "ecx": entry.ecx, "edx": entry.edx}
        numbers = " ".join(f"{name}=0x{value:08x}" for name, value in registers.items())
        print(f"0x{entry.function:08x} 0x{entry.index:02x}: {numbers}")


def _print_table(cpuid: Cpuid, with_zeros: bool) -> None:
    rows = cpuid.rows()
    shown = [row for row in rows if with_zeros or row[2:6] != ZEROS]
    print_rows([HEADING, *shown])
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown)} more are all zeros: --raw shows them")


def _print_changes(offered: Cpuid, changed: Cpuid) -> None:
    differences = offered.difference(changed)
    print("\nchanges" if differences else "\nchanges: none, KVM offers it that way already")
    for difference in differences:
        print(f"  {difference}")
