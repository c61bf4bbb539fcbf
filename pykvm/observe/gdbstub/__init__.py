"""A gdb stub: stock gdb debugs a guest through the remote serial protocol.

    gdb <--bytes--> wire <--packets--> session <--commands--> guest <--> Machine, Stepper
         server: who may attach

See: the manual of gdb, appendix "gdb Remote Serial Protocol". Leaves out how a guest steps, and goes back: see
``pykvm.observe.stepping``. It is only imported by who wants a gdb, and whole.
"""

from pykvm.observe.gdbstub.debuggee import Debuggee, Ended, Outcome, Standing, Why
from pykvm.observe.gdbstub.guest import SteppedGuest
from pykvm.observe.gdbstub.hostfile import HostFile
from pykvm.observe.gdbstub.monitor import Monitor
from pykvm.observe.gdbstub.server import Address, Clients, Pipe, Port, parse_address, serve
from pykvm.observe.gdbstub.session import Ending, Session

__all__ = [
    "Address",
    "Clients",
    "Debuggee",
    "Ended",
    "Ending",
    "HostFile",
    "Monitor",
    "Outcome",
    "Pipe",
    "Port",
    "Session",
    "Standing",
    "SteppedGuest",
    "Why",
    "parse_address",
    "serve",
]
