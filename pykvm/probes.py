"""What this host's KVM really does, beyond what it claims.

A capability says that KVM has an interface; whether a guest then runs is another matter: some hosts interpret ring 0 with
an emulator that lacks instructions, some cannot run 32-bit paging at all. A probe is a guest of a few
instructions that asks one such question, under a time limit. ``pykvm doctor --probe`` prints the answers, and tests skip by
them. Leaves out: why a host is as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from pykvm.boot import BUNDLE, flat_image, open_image, probe_settings
from pykvm.errors import ConfigurationError
from pykvm.kvm import Debug, Exit, GuestDebugControl, Hlt
from pykvm.machine import Crashed, DebugExitWritten, Halted, Machine, Stop
from pykvm.kvm import Shutdown
from pykvm.units import KiB, MiB, GiB, parse_size
from pykvm.x86 import Mode

__all__ = ["Outcome", "Probe", "all_probes", "probe"]

SUCCESS = 0x2A  # what a probe guest writes to the debug-exit port
TIME_LIMIT = 0.5  # seconds; a probe takes about a millisecond where it works
STEP_LIMIT = 16

PAGE_SIZES = {"4K": 4 * KiB, "2M": 2 * MiB, "1G": GiB}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a probe succeeded, and in words what happened instead."""

    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to this host's KVM. ``proves`` says what a yes means."""

    name: str
    proves: str
    ask: Callable[[], Outcome]


def all_probes() -> list[Probe]:
    """Return every probe, by name. Raises: ImageError if the package was installed without its guests."""
    guests = [_guest_probe(path) for path in sorted((BUNDLE / "probes").glob("*.elf"))]
    return sorted([*guests, *_STEP_PROBES], key=lambda item: item.name)


@cache
def probe(name: str) -> Outcome:
    """Return the outcome of the probe called ``name``; asked once a process, for hosts do not change.

    Raises: ConfigurationError if there is no such probe; KvmUnavailableError.
    """
    for candidate in all_probes():
        if candidate.name == name:
            return candidate.ask()
    raise ConfigurationError(f"there is no probe {name!r}: there are {', '.join(p.name for p in all_probes())}")


def _guest_probe(path: Path) -> Probe:
    settings = probe_settings(path.with_suffix(".S"))
    return Probe(path.stem, settings["proves"], partial(_run_guest, path, settings))


def _run_guest(path: Path, settings: dict[str, str]) -> Outcome:
    mode = Mode(settings["mode"])
    page_size = PAGE_SIZES.get(settings.get("page-size", ""))
    with Machine(parse_size(settings.get("memory", "2M"))) as machine:
        try:
            machine.load(open_image(path, mode=mode), ring=int(settings.get("ring", "0")), page_size=page_size)
        except ConfigurationError as error:
            return Outcome(False, str(error))
        stop = machine.run(TIME_LIMIT).stop
    return Outcome(_is_success(stop, settings.get("expect", "")), str(stop))


def _is_success(stop: Stop, expected: str) -> bool:
    match expected:
        case "hlt":
            return isinstance(stop, Halted)
        case "shutdown":
            return isinstance(stop, Crashed) and isinstance(stop.exit, Shutdown)
    return stop == DebugExitWritten(SUCCESS)


# The guest of the stepping probes, at 0x8000 in real mode: nop; hlt; nop; nop; hlt
_STEPPED = b"\x90\xf4\x90\x90\xf4"


def _step(wanted: Callable[[list[Exit]], bool]) -> Outcome:
    """Step through ``_STEPPED`` and ask ``wanted`` about the exits."""
    exits: list[Exit] = []
    with Machine(1 * MiB) as machine:
        machine.load(flat_image(_STEPPED, mode=Mode.REAL))
        vcpu = machine.vcpu
        vcpu.set_guest_debug(GuestDebugControl.ENABLE | GuestDebugControl.SINGLESTEP)
        vcpu.start_ticks(TIME_LIMIT, TIME_LIMIT)
        for _ in range(STEP_LIMIT):
            exits.append(vcpu.run())
            if not isinstance(exits[-1], Debug):
                break
        vcpu.stop_ticks()
    shown = ", ".join(f"step to {e.pc:#x}" if isinstance(e, Debug) else type(e).__name__ for e in exits[:5])
    return Outcome(wanted(exits), shown)


def _first_step_is_seen(exits: list[Exit]) -> bool:
    return isinstance(exits[0], Debug) and exits[0].pc == 0x8001


def _hlt_is_seen(exits: list[Exit]) -> bool:
    return len(exits) > 1 and isinstance(exits[1], Hlt)


_STEP_PROBES = (
    Probe("single-step", "KVM_SET_GUEST_DEBUG stops after every instruction", partial(_step, _first_step_is_seen)),
    Probe("single-step-hlt", "a single step over HLT shows KVM_EXIT_HLT", partial(_step, _hlt_is_seen)),
)
