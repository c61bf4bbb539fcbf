"""``pykvm doctor``: can KVM be used here, what does it offer, and what does it really do?

Ends with status 0 if guests can run here, and 69 if not. Leaves out mending anything.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable

from pykvm.errors import KvmUnavailableError

__all__ = ["add_parser"]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "doctor",
        help="check whether and how well KVM works here",
        description="Check whether and how well KVM works here. Ends with status 0 if it can be used, else 69.",
    )
    parser.add_argument("--probe", action="store_true", help="run tiny guests to see what this host's KVM really does")
    parser.add_argument("--device", default="/dev/kvm", metavar="PATH", help="the KVM device (default: /dev/kvm)")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    from pykvm.kvm import Kvm, survey

    try:
        with Kvm.open(options.device) as kvm:
            version = kvm.get_api_version()
            capabilities = survey(kvm)
            msrs, leaves = len(kvm.get_msr_index_list()), len(kvm.get_supported_cpuid())
    except KvmUnavailableError as error:
        _print_rows([(options.device, error.reason), ("", error.remedy)])
        print("not ready.")
        return 69
    _print_rows(
        [
            (options.device, f"opened read-write, API version {version}"),
            ("host", f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs"),
            ("CPU state", f"{msrs} MSRs, {leaves} CPUID leaves"),
        ]
    )
    print("\ncapabilities")
    _print_rows(
        (capability.name, str(value) if capability.is_figure else "yes" if value else "no", capability.purpose)
        for capability, value in capabilities
    )
    if options.probe:
        _print_probes()
    print("ready." if options.probe else "ready.  (doctor --probe shows what guests really can do here)")
    return 0


def _print_probes() -> None:
    from pykvm.probes import all_probes

    print("\nprobes")
    rows = []
    for probe in all_probes():
        outcome = probe.ask()
        rows.append((probe.name, "works" if outcome.works else "no", probe.proves if outcome.works else outcome.detail))
    _print_rows(rows)


def _print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True, highlight=False).print(table)
