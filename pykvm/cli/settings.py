"""The options that say what the machine is like: memory, CPUs, interrupt controllers, devices, and its time limit.

Leaves out what is run on it: see ``arguments``.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypedDict

from pykvm.cli.arguments import count, size
from pykvm.errors import ConfigurationError

if TYPE_CHECKING:
    from pykvm.cli.arguments import Target
    from pykvm.machine import Machine

__all__ = ["Settings", "add_machine_options", "msr_value", "seconds"]

DEFAULT_MEMORY = "16M"


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``Settings.choose`` reads, and the time limit."""
    parser.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help=f"RAM, such as 16M (default: {DEFAULT_MEMORY}, or what a bundled guest asks for)",
    )
    parser.add_argument("--ring", type=int, choices=(0, 3), help="start in ring 3, unprivileged (default: 0)")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="time limit (default: none)")
    parser.add_argument(
        "--irqchip",
        choices=("none", "user", "kernel", "split"),
        help="interrupt controllers: none (HLT ends the run), user (8259A and 8254 in Python), kernel, or split (the "
        "local APIC in the kernel, the rest in Python) (default: none, or what a bundled guest asks for)",
    )
    parser.add_argument("--cpus", type=count, metavar="N", help="how many CPUs (default: 1); more need local APICs")
    parser.add_argument(
        "--device",
        dest="devices",
        action="append",
        metavar="NAME",
        help="plug in an optional device: testdev or doorbell; repeatable",
    )
    parser.add_argument("--keys", metavar="KEYS", help='type on the keyboard, such as "h e l l o shift-1 ret ctrl-c"')
    parser.add_argument(
        "--msr",
        dest="msrs",
        action="append",
        type=msr_value,
        metavar="MSR=VALUE",
        help="an MSR, by number or name, that holds VALUE until the guest writes it; repeatable",
    )
    parser.add_argument(
        "--assist",
        action="store_true",
        help="finish instructions that this host's KVM cannot emulate (needs Unicorn: pip install "
        "'pykvm-hypervisor[assist]')",
    )


class MachineArguments(TypedDict):
    """Those arguments of ``Machine`` that options and targets have a say in."""

    memory: int | str
    irqchip: str
    cpus: int
    devices: tuple[str, ...]
    rom: bytes
    assist: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """How the machine is to be: what the options say, or else what the target asks for, or else the defaults."""

    memory: int | str = DEFAULT_MEMORY
    ring: int = 0
    irqchip: str = "none"
    cpus: int = 1
    devices: tuple[str, ...] = ()
    keys: str = ""
    msrs: tuple[tuple[int, int], ...] = ()
    assist: bool = False

    @classmethod
    def choose(cls, options: argparse.Namespace, target: Target) -> Settings:
        """Return the settings for ``options`` and ``target``."""
        names = [field.name for field in fields(cls)]
        guest, protocol = target.guest, target.image.protocol
        wanted = cls() if guest is None else cls(**{name: getattr(guest, name) for name in names if name != "assist"})
        if protocol is not None:
            wanted = replace(wanted, irqchip=protocol.irqchip, memory=protocol.memory)
        given = {name: getattr(options, name) for name in names}
        return replace(wanted, **{name: value for name, value in given.items() if value is not None})

    def arguments(self, target: Target) -> MachineArguments:
        """Return what ``Machine`` is given to run ``target``, beside what is at the other ends of its wires."""
        return {
            "memory": self.memory,
            "irqchip": self.irqchip,
            "cpus": self.cpus,
            "devices": self.devices,
            "rom": target.rom,
            "assist": self.assist,
        }

    def apply(self, machine: Machine) -> None:
        """Tell ``machine`` what is not said when it is made. Raises: ConfigurationError."""
        from pykvm.devices import parse_keys

        for index, value in self.msrs:
            machine.msr.store(index, value)
        keys = parse_keys(self.keys)
        if not machine.board.keyboard.enqueue(keys):
            raise ConfigurationError(f"these are {len(keys)} key strokes, more than fit: type fewer")


def msr_value(text: str) -> tuple[int, int]:
    """Return the number and the value that MSR=VALUE names. Raises: ArgumentTypeError."""
    from pykvm.x86 import parse_msr

    name, _, value = text.partition("=")
    try:
        index, number = parse_msr(name), int(value, 0)
    except (ConfigurationError, ValueError) as error:
        reason = str(error) if isinstance(error, ConfigurationError) else "write MSR=VALUE, such as 0x1234=42"
        raise argparse.ArgumentTypeError(f"{text!r} sets no MSR: {reason}") from None
    if not 0 <= number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} sets no MSR: a value has 64 bits")
    return index, number


def seconds(text: str) -> float:
    """Return a time limit in seconds. Raises: ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time limit: write seconds above 0, such as 2 or 0.5")
    return value
