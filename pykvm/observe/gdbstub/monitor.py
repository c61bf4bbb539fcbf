"""``monitor`` commands: what gdb has no command for, by names that ``monitor help`` lists.

Leaves out how gdb sends them: see ``session``.
"""

from __future__ import annotations

from pykvm.errors import ConfigurationError
from pykvm.kvm import Debug, Intr
from pykvm.machine import Machine, describe_exit
from pykvm.names import did_you_mean
from pykvm.observe.gdbstub.guest import SteppedGuest

__all__ = ["Monitor"]

EXITS_SHOWN = 16

HELP = """\
monitor exits [N]        the last N exits of this thread's CPU (default: 16)
monitor walk ADDRESS     where a linear address leads through this CPU's page tables
monitor screen           the VGA text screen
monitor history on|off   on: go on step by step, so that reverse-stepi undoes one instruction; off: at full speed
monitor reset            back to before the first instruction
monitor help             this list
"""


class Monitor:
    """Answers the commands about ``machine``, which ``guest`` moves."""

    def __init__(self, machine: Machine, guest: SteppedGuest) -> None:
        self._machine = machine
        self._guest = guest

    def __call__(self, cpu: int, command: str) -> str:
        """Return what ``command``, given while gdb looks at ``cpu``, has to say. Raises: PykvmError."""
        name, *arguments = command.split() or ["help"]
        match name, arguments:
            case "exits", []:
                return self._exits(cpu, EXITS_SHOWN)
            case "exits", [number] if number.isdecimal():
                return self._exits(cpu, int(number))
            case "walk", [address]:
                return str(self._guest.walk(cpu, _address(address)))
            case "screen", []:
                return self._machine.screen.text() or "the screen is empty"
            case "history", []:
                return f"history is {'on' if self._guest.keeps_steps else 'off'}"
            case "history", ["on" | "off" as state]:
                self._guest.keeps_steps = state == "on"
                return ""
            case "reset", []:
                self._guest.reset()
                return "reset: 'maintenance flush register-cache' has gdb read the registers again"
            case "help", []:
                return HELP
        return _complaint(name)

    def _exits(self, cpu: int, most: int) -> str:
        exits = [exit for exit in self._guest.log.exits(cpu) if not isinstance(exit, Debug | Intr)]
        shown = exits[max(0, len(exits) - most) :]
        return "\n".join(map(describe_exit, shown)) or f"CPU {cpu} has had no exits yet"


def _address(text: str) -> int:
    try:
        address = int(text, 0)
    except ValueError:
        address = -1
    if not 0 <= address < 1 << 64:
        raise ConfigurationError(f"{text[:40]!r} is not a linear address: write 0x8000 or 32768")
    return address


def _complaint(name: str) -> str:
    names = [line.split()[1] for line in HELP.splitlines()]
    if name in names:
        usage = next(line for line in HELP.splitlines() if line.split()[1] == name)
        return f"it goes like this: {usage}"
    hint = did_you_mean(name, names) or "'monitor help' lists them"
    return f"there is no monitor command {name[:40]!r}; {hint}"
