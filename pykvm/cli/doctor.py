"""``pykvm doctor``: whether KVM can be used here, what it offers, and what it really does.

Ends with status 0 if guests can run here, and 69 if not. Leaves out mending anything.
"""

from __future__ import annotations

import argparse
import os
import platform

from pykvm.cli.rows import print_rows
from pykvm.errors import ConfigurationError, KvmError, KvmUnavailableError

__all__ = ["add_parser"]

DEVICE = "/dev/kvm"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command to ``commands``."""
    parser = commands.add_parser(
        "doctor",
        help="check whether and how well KVM works here",
        description="Check whether and how well KVM works here. Ends with status 0 if it can be used, else 69.",
    )
    parser.add_argument("--probe", action="store_true", help="run tiny guests to see what this host's KVM really does")
    parser.add_argument(
        "--device", type=device, default=DEVICE, metavar="PATH", help=f"the KVM device (default: {DEVICE})"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Do it and return the exit status."""
    if options.probe and options.device != DEVICE:
        raise ConfigurationError(f"--probe runs guests on {DEVICE}: leave --device out")
    try:
        host, capabilities = _examine(options.device)
    except (KvmUnavailableError, KvmError) as error:
        return _not_ready(options.device, error)
    print_rows(host)
    print("\ncapabilities")
    print_rows(capabilities)
    if options.probe:
        _print_probes()
    print("ready." if options.probe else "ready.  (doctor --probe shows what guests really can do here)")
    return 0


def device(text: str) -> str:
    """Return ``text`` if it can be a device's path."""
    if text.isprintable() and text:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no device's path")


def _examine(path: str) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Return what there is to say about the host, and its capabilities. Raises: KvmUnavailableError, KvmError."""
    from pykvm.kvm import Kvm, survey

    with Kvm.open(path) as kvm:
        version = kvm.get_api_version()
        msrs, leaves = len(kvm.get_msr_index_list()), len(kvm.get_supported_cpuid())
        with kvm.create_vm() as vm, vm.create_vcpu():
            pass  # KVM may answer every question and yet have no processor to give: another hypervisor has it
        capabilities = [
            (capability.name, str(value) if capability.is_figure else "yes" if value else "no", capability.purpose)
            for capability, value in survey(kvm)
        ]
    host = [
        (path, f"opened read-write, API version {version}"),
        ("host", f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs"),
        ("CPU state", f"{msrs} MSRs, {leaves} CPUID leaves"),
        ("VM", "created, with a vCPU"),
    ]
    return host, capabilities


def _not_ready(path: str, error: KvmUnavailableError | KvmError) -> int:
    reason, remedy = (error.reason, error.remedy) if isinstance(error, KvmUnavailableError) else (str(error), "")
    print(reason)
    for line in remedy.splitlines():
        print(f"  {line}")
    print("not ready.")
    return 69


def _print_probes() -> None:
    from pykvm.probes import all_probes

    print("\nprobes")
    rows: list[tuple[str, str, str]] = []
    for probe in all_probes():
        outcome = probe.ask()
        word = "works" if outcome.works else "hangs" if outcome.hangs else "no"
        rows.append((probe.name, word, probe.proves if outcome.works else f"{probe.proves}\n-> {outcome.detail}"))
    print_rows(rows)
    words = [word for _, word, _ in rows]
    counts = f"{words.count('works')} of {len(words)} probes work here"
    print(f"{counts}, {words.count('no')} do not, {words.count('hangs')} did not end in time")
