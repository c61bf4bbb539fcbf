"""What this host's KVM really does, beyond what it claims.

A capability says that KVM has an interface; whether a guest then runs is another matter: some hosts interpret ring 0
with an emulator that lacks instructions, some cannot run 32-bit paging at all. A probe is a guest of a few instructions
that asks one such question, under a time limit. ``pykvm doctor --probe`` prints the answers, and tests skip by them.
Leaves out: why a host is as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from pykvm.boot import BUNDLE, flat_image, open_image, probe_settings
from pykvm.errors import ConfigurationError, ImageError, KvmUnavailableError, PykvmError
from pykvm.kvm import Debug, Exit, GuestDebugControl, Hlt, InternalError, Intr, Shutdown
from pykvm.machine import Crashed, DebugExitWritten, Halted, Machine, RunResult, Stop, TimedOut, describe_exit
from pykvm.memory.layout import LOAD, REAL_LOAD
from pykvm.names import did_you_mean
from pykvm.units import GiB, KiB, MiB, parse_size
from pykvm.x86 import BreakpointKind, HardwareBreakpoint, Mode, cpu_mode, encode_breakpoints, instruction_at

__all__ = ["Outcome", "Probe", "all_probes", "probe"]

SUCCESS = 0x2A  # what a probe guest writes to the debug-exit port
TIME_LIMIT = 0.5  # seconds; a probe takes about a millisecond where it works
EXIT_LIMIT = 16  # of a guest that is debugged

PAGE_SIZES = {"4K": 4 * KiB, "2M": 2 * MiB, "1G": GiB}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a probe succeeded, and what happened, in a few words. ``hangs`` tells that it ran into its time limit."""

    works: bool
    detail: str
    hangs: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to this host's KVM. ``proves`` says what a yes means; ``ask`` puts it, under a time limit."""

    name: str
    proves: str
    ask: Callable[[], Outcome]


def all_probes() -> list[Probe]:
    """Return every probe, by name. Raises: ImageError if the package was installed without its guests."""
    paths = sorted((BUNDLE / "probes").glob("*.elf"))
    if not paths:
        raise ImageError("the probes are missing: install pykvm again with pip install .")
    return sorted([*map(_guest_probe, paths), *_DEBUG_PROBES, _HYPERCALL_PROBE], key=lambda item: item.name)


@cache
def probe(name: str) -> Outcome:
    """Return the outcome of the probe called ``name``; asked once a process, for hosts do not change.

    Raises: ConfigurationError if there is no such probe; KvmUnavailableError.
    """
    probes = {candidate.name: candidate for candidate in all_probes()}
    if name not in probes:
        raise ConfigurationError(f"there is no probe {name!r}{_suggestion(name, probes)}")
    return probes[name].ask()


def _suggestion(name: str, probes: Iterable[str]) -> str:
    close = did_you_mean(name, probes)
    return f"; {close}" if close else f": there are {', '.join(probes)}"


# ---- probes that are guests: they write SUCCESS to the debug-exit port, or end as their source says ----


def _guest_probe(path: Path) -> Probe:
    settings = probe_settings(path.with_suffix(".S"))
    return Probe(path.stem, settings["proves"], partial(_safely, partial(_run_guest, path, settings)))


def _run_guest(path: Path, settings: dict[str, str]) -> Outcome:
    mode = Mode(settings["mode"])
    page_size = PAGE_SIZES.get(settings.get("page-size", ""))
    with Machine(parse_size(settings.get("memory", "2M"))) as machine:
        machine.load(open_image(path, mode=mode), ring=int(settings.get("ring", "0")), page_size=page_size)
        result = machine.run(TIME_LIMIT)
    works = _is_success(result.stop, settings.get("expect", ""))
    return Outcome(works, _in_words(result), hangs=isinstance(result.stop, TimedOut))


def _is_success(stop: Stop, expected: str) -> bool:
    match expected:
        case "hlt":
            return isinstance(stop, Halted)
        case "shutdown":
            return isinstance(stop, Crashed) and isinstance(stop.exit, Shutdown)
    return stop == DebugExitWritten(SUCCESS)


def _in_words(result: RunResult) -> str:
    match result.stop:
        case Crashed(exit=InternalError(instruction=code)) if code:
            width = cpu_mode(result.sregs, result.registers).width
            refused = instruction_at(code, result.registers.rip, width)
            return f"KVM's emulator does not know {refused.mnemonic} {refused.operands}".rstrip() if refused else ""
        case Crashed(exit=exit):
            return describe_exit(exit)
        case DebugExitWritten(value=value):
            return "success" if value == SUCCESS else f"the guest found a wrong result ({value:#x})"
        case Halted():
            return "the guest halted"
        case TimedOut(limit=limit):
            return f"the guest was still running after {limit:g} s"
    return str(result.stop)


def _safely(ask: Callable[[], Outcome]) -> Outcome:
    """Return what ``ask`` does, or that this host refuses even to set the guest up."""
    try:
        return ask()
    except KvmUnavailableError:
        raise
    except PykvmError as error:
        return Outcome(False, str(error).partition("\n")[0])


# ---- probes of KVM_SET_GUEST_DEBUG: what is seen from outside while a guest runs ----


@dataclass(frozen=True, slots=True)
class _Debugged:
    """A guest to be debugged: how it starts, what KVM is asked for, and the exits by which it works."""

    code: bytes
    mode: Mode
    control: GuestDebugControl
    wanted: Callable[[list[Exit]], bool]
    ring: int = 0
    breakpoint: HardwareBreakpoint | None = None

    def ask(self) -> Outcome:
        with Machine(2 * MiB) as machine:
            machine.load(flat_image(self.code, mode=self.mode), ring=self.ring)
            debugreg = encode_breakpoints([self.breakpoint] if self.breakpoint else [])
            machine.vcpu.set_guest_debug(GuestDebugControl.ENABLE | self.control, debugreg)
            exits = _debug_exits(machine)
        shown = ", ".join(f"stop at {e.pc:#x}" if isinstance(e, Debug) else describe_exit(e) for e in exits[:5])
        return Outcome(self.wanted(exits), shown, hangs=isinstance(exits[-1], Intr))


def _debug_exits(machine: Machine) -> list[Exit]:
    """Return the exits up to the first that is not of debugging, or is the time limit's."""
    exits: list[Exit] = []
    deadline = time.monotonic() + TIME_LIMIT
    machine.vcpu.start_ticks(TIME_LIMIT, TIME_LIMIT)
    try:
        while len(exits) < EXIT_LIMIT and (not exits or isinstance(exits[-1], Debug)):
            exit = machine.vcpu.run()
            if not isinstance(exit, Intr) or time.monotonic() >= deadline:  # any signal makes it return Intr
                exits.append(exit)
    finally:
        machine.vcpu.stop_ticks()
    return exits


def _stops_first_at(address: int, exits: list[Exit]) -> bool:
    return isinstance(exits[0], Debug) and exits[0].pc == address


def _shows_hlt_second(exits: list[Exit]) -> bool:
    return len(exits) > 1 and isinstance(exits[1], Hlt)


NOP_HLT = b"\x90\xf4\x90\x90\xf4"  # nop; hlt; nop; nop; hlt
NOP_UD2 = b"\x90\x90\x90\x0f\x0b"  # nop; nop; nop; ud2

STORE_HLT = b"\xc6\x04\x25\x00\x90\x00\x00\x07\xf4"  # movb $7, 0x9000; hlt
STORED = 0x9000

_STEPPED = partial(_Debugged, NOP_HLT, Mode.REAL, GuestDebugControl.SINGLESTEP)
_STOPPED = partial(_Debugged, NOP_UD2, Mode.LONG, GuestDebugControl.USE_HW_BP, breakpoint=HardwareBreakpoint(LOAD + 2))
_WATCHED = partial(
    _Debugged,
    STORE_HLT,
    Mode.LONG,
    GuestDebugControl.USE_HW_BP,
    breakpoint=HardwareBreakpoint(STORED, BreakpointKind.WRITE),
)


def _debug_probe(name: str, proves: str, guest: _Debugged) -> Probe:
    return Probe(name, proves, partial(_safely, guest.ask))


_DEBUG_PROBES = (
    _debug_probe(
        "single-step",
        "KVM_SET_GUEST_DEBUG stops after every instruction",
        _STEPPED(partial(_stops_first_at, REAL_LOAD + 1)),
    ),
    _debug_probe(
        "single-step-ring3",
        "a single step of KVM_SET_GUEST_DEBUG is seen in ring 3 of long mode",
        _Debugged(NOP_UD2, Mode.LONG, GuestDebugControl.SINGLESTEP, partial(_stops_first_at, LOAD + 1), ring=3),
    ),
    _debug_probe("single-step-hlt", "a single step over HLT shows KVM_EXIT_HLT", _STEPPED(_shows_hlt_second)),
    _debug_probe(
        "hw-breakpoint-ring0",
        "a hardware breakpoint of KVM_SET_GUEST_DEBUG stops a guest in ring 0",
        _STOPPED(partial(_stops_first_at, LOAD + 2)),
    ),
    _debug_probe(
        "hw-breakpoint-ring3",
        "a hardware breakpoint of KVM_SET_GUEST_DEBUG stops a guest in ring 3",
        _STOPPED(partial(_stops_first_at, LOAD + 2), ring=3),
    ),
    _debug_probe(
        "watchpoint-host",
        "a write watchpoint of KVM_SET_GUEST_DEBUG stops a guest in ring 0",
        _WATCHED(partial(_stops_first_at, LOAD + 8)),
    ),
)


# ---- a probe of KVM_EXIT_HYPERCALL: whether user space can answer a hypercall ----

MAP_GPA_RANGE = 12  # KVM_HC_MAP_GPA_RANGE, the one hypercall that KVM hands over

# mov $12, %eax; mov $0x100000, %ebx; mov $1, %ecx; xor %edx, %edx; vmcall; out %al, $0xf4; hlt. On AMD-V, KVM puts
# VMMCALL in VMCALL's place.
CALL_AND_TELL = bytes.fromhex("b8 0c000000 bb 00001000 b9 01000000 31d2 0f01c1 e6f4 f4")


def _ask_hypercall() -> Outcome:
    with Machine(2 * MiB) as machine:
        machine.load(flat_image(CALL_AND_TELL, mode=Mode.LONG))
        machine.on_hypercall(MAP_GPA_RANGE, lambda call: SUCCESS)
        result = machine.run(TIME_LIMIT)
    return Outcome(_is_success(result.stop, ""), _in_words(result), hangs=isinstance(result.stop, TimedOut))


_HYPERCALL_PROBE = Probe(
    "hypercall-exit",
    "user space answers a hypercall of ring 0 (KVM_EXIT_HYPERCALL for KVM_HC_MAP_GPA_RANGE)",
    partial(_safely, _ask_hypercall),
)
