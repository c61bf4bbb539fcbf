"""A conversation with gdb: what each packet asks for, and what it is answered.

    q Q      what the stub can do, threads, the target description, monitor commands
    g G p P  registers          m M X    memory           Z z   breakpoints
    vCont c s bc bs             go, and answer when the guest stands still again
    D k      let the guest run on; end it

Whatever a packet holds it is answered: with an empty packet if nobody knows it, with an error if it is malformed. A
step executes one instruction of one CPU while the others stand still; a guest that goes on does so on all CPUs. See:
the manual of gdb, "Packets", "General Query Packets" and "Stop Reply Packets". Leaves out bytes and checksums: see
``packets``.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from pykvm.errors import ConfigurationError, GuestMemoryError, PykvmError
from pykvm.observe.gdbstub.commands import ALL_THREADS, ANY_THREAD, actions, hex_text, number, numbers, thread
from pykvm.observe.gdbstub.debuggee import Debuggee, Ended, Outcome, Standing, Why
from pykvm.observe.gdbstub.hostfile import HostFile
from pykvm.observe.gdbstub.layout import Architecture, layout_of, target_xml
from pykvm.observe.gdbstub.packets import PACKET_SIZE, decode_hex
from pykvm.observe.gdbstub.registers import get_register, put_register
from pykvm.observe.stepping.step import Access, Watchpoint
from pykvm.x86 import cpu_mode

__all__ = ["Ending", "Session"]

T = TypeVar("T")
Monitor = Callable[[int, str], str]
Listen = Callable[[Callable[[], None]], AbstractContextManager[object]]

OK, UNKNOWN = b"OK", b""
NO_ACCESS = b"E14"  # EFAULT in decimal, as other stubs say it
LARGEST = PACKET_SIZE // 2 - 64  # bytes of memory or of a file in an answer, each of which may become two
MOST_BREAKPOINTS = 1024
TRAP, INTERRUPT, CRASH = 5, 2, 11  # the signals that gdb shows: SIGTRAP, SIGINT, SIGSEGV

FEATURES = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;qXfer:exec-file:read+;vContSupported+;"
    "swbreak+;hwbreak+;ReverseStep+;ReverseContinue+"
).encode()

_SOFTWARE, _HARDWARE = 0, 1  # the types of breakpoints in Z packets; then come watchpoints
_ACCESSES = {2: Access.WRITE, 3: Access.READ, 4: Access.ANY}
_HIT = {Access.WRITE: "watch", Access.READ: "rwatch", Access.ANY: "awatch"}


class Ending(enum.Enum):
    """How a conversation ended."""

    DETACHED = "detached"
    KILLED = "killed"
    EXITED = "exited"


class Session:
    """Answers packets about ``debuggee``. The architecture is that of the mode the first CPU is in now.

    ``monitor(cpu, command)`` returns the words for a ``monitor`` command; ``file`` is the guest's ELF file; while the
    guest runs, ``listening(interrupt)`` listens for Ctrl-C. ``last`` is why the guest stands where it does.
    """

    def __init__(
        self,
        debuggee: Debuggee,
        monitor: Monitor,
        file: HostFile,
        listening: Listen = contextlib.nullcontext,
        last: Standing | None = None,
    ) -> None:
        self._debuggee = debuggee
        self._monitor = monitor
        self._file = file
        self._listening = listening
        self._last: Outcome = last or Standing(Why.STEP)
        first = debuggee.registers(0)
        self._architecture = Architecture.of(first.regs, first.sregs)
        self._layout = layout_of(self._architecture)
        self._xml = target_xml(self._architecture).encode()
        self._cpu = last.cpu if last else 0  # whose registers and view of memory are meant
        self._software: set[int] = set()
        self._hardware: set[int] = set()
        self._watchpoints: set[Watchpoint] = set()
        self._told_of = ""  # the mode that gdb was told it does not show
        self.ending: Ending | None = None
        self.no_acks = False
        debuggee.set_breakpoints(frozenset(), frozenset())

    @property
    def last(self) -> Standing | None:
        """Return why the guest stands still, None if it has ended."""
        return self._last if isinstance(self._last, Standing) else None

    def handle(self, data: bytes) -> list[bytes]:
        """Return what the packet ``data`` is answered, in one packet or several."""
        try:
            return self._answer(data)
        except GuestMemoryError:
            return [NO_ACCESS]
        except PykvmError as error:
            return [_error(str(error))]
        except ValueError as error:
            return [_error(f"malformed packet: {error}")]

    # ---- packets by their first letter ----

    def _answer(self, data: bytes) -> list[bytes]:
        rest = data[1:]
        match data[:1]:
            case b"?":
                return [self._stop_reply(self._last)]
            case b"g":
                return [self._read_all().hex().encode()]
            case b"G":
                return [self._write_all(decode_hex(rest))]
            case b"p":
                return [self._read_register(number(rest))]
            case b"P":
                return [self._write_register(rest)]
            case b"m":
                address, size = numbers(rest, 2)
                return [self._debuggee.read(self._cpu, address, min(size, LARGEST)).hex().encode() if size else b""]
            case b"M" | b"X":
                return [self._write_memory(data)]
            case b"H":
                return [self._choose_thread(rest)]
            case b"T":
                return [OK if self._exists(thread(rest)) else _error("there is no such thread")]
            case b"Z" | b"z":
                return [self._change_breakpoints(data)]
            case b"c" | b"C":
                return self._go(self._debuggee.go)
            case b"s" | b"S":
                return self._go(lambda: self._debuggee.step(self._cpu))
            case b"D":
                self.ending = Ending.DETACHED
                self._forget_breakpoints()
                return [OK]
            case b"k":
                self.ending = Ending.KILLED
                return []
        return self._answer_long(data)

    def _answer_long(self, data: bytes) -> list[bytes]:
        if data == b"bs":
            return self._go(self._debuggee.step_back)
        if data == b"bc":
            return self._go(self._debuggee.go_back)
        if data == b"QStartNoAckMode":
            self.no_acks = True
            return [OK]
        if data[:1] == b"v":
            return self._answer_v(data)
        return self._query(data) if data[:1] == b"q" else [UNKNOWN]

    def _answer_v(self, data: bytes) -> list[bytes]:
        name, colon, rest = data.partition(b":")
        if data == b"vCont?":
            return [b"vCont;c;C;s;S"]
        if data.startswith(b"vCont;"):
            return self._continue(data.removeprefix(b"vCont;"))
        if name == b"vFile" and colon:
            return [self._file.handle(rest, LARGEST)]
        if data == b"vKill" or data.startswith(b"vKill;"):
            self.ending = Ending.KILLED
            return [OK]
        return [UNKNOWN]

    def _query(self, data: bytes) -> list[bytes]:
        if data == b"qSupported" or data.startswith(b"qSupported:"):
            return [FEATURES]
        if data.startswith(b"qXfer:"):
            return [self._transfer(data)]
        if data.startswith(b"qRcmd,"):
            return self._command(decode_hex(data.removeprefix(b"qRcmd,")))
        if data.startswith(b"qThreadExtraInfo,"):
            cpu = self._cpu_of(thread(data.removeprefix(b"qThreadExtraInfo,")))
            return [hex_text(f"CPU {cpu}: {self._debuggee.activity(cpu)}")]
        simple = {
            b"qC": b"QC" + _thread_id(self._cpu),
            b"qfThreadInfo": b"m" + b",".join(map(_thread_id, range(self._debuggee.cpus))),
            b"qsThreadInfo": b"l",
            b"qAttached": b"1",  # so that gdb detaches when it quits
            b"qSymbol::": OK,
        }
        return [simple.get(data, UNKNOWN)]

    # ---- registers ----

    def _read_all(self) -> bytes:
        registers = self._debuggee.registers(self._cpu)
        return b"".join(get_register(registers, register) for register in self._layout)

    def _write_all(self, data: bytes) -> bytes:
        wanted = sum(register.size for register in self._layout)
        if len(data) != wanted:
            raise ValueError(f"the registers have {wanted} bytes, not {len(data)}")
        registers = self._debuggee.registers(self._cpu)
        for register in self._layout:
            registers = put_register(registers, register, data[: register.size])
            data = data[register.size :]
        self._debuggee.set_registers(self._cpu, registers)
        return OK

    def _read_register(self, index: int) -> bytes:
        register = self._layout[self._check_register(index)]
        return get_register(self._debuggee.registers(self._cpu), register).hex().encode()

    def _write_register(self, text: bytes) -> bytes:
        index, _, value = text.partition(b"=")
        register = self._layout[self._check_register(number(index))]
        registers = put_register(self._debuggee.registers(self._cpu), register, decode_hex(value))
        self._debuggee.set_registers(self._cpu, registers)
        return OK

    def _check_register(self, index: int) -> int:
        if index >= len(self._layout):
            raise ValueError(f"there are {len(self._layout)} registers, and none has number {index}")
        return index

    # ---- memory ----

    def _write_memory(self, data: bytes) -> bytes:
        head, _, body = data[1:].partition(b":")
        address, size = numbers(head, 2)
        if data[:1] == b"M":
            body = decode_hex(body)
        if len(body) != size:
            raise ValueError(f"{size} bytes are announced, and {len(body)} are there")
        if size:  # gdb asks with none whether X is known
            self._debuggee.write(self._cpu, address, body)
        return OK

    # ---- threads ----

    def _choose_thread(self, text: bytes) -> bytes:
        what, who = text[:1], thread(text[1:])
        if what == b"g" and who != ALL_THREADS and who != ANY_THREAD:
            self._cpu = self._cpu_of(who)
        return OK if what in (b"g", b"c") else UNKNOWN

    def _exists(self, who: int) -> bool:
        return 1 <= who <= self._debuggee.cpus

    def _cpu_of(self, who: int) -> int:
        if not self._exists(who):
            raise ConfigurationError(f"there is no thread {who}: threads are 1 to {self._debuggee.cpus}")
        return who - 1

    # ---- breakpoints ----

    def _change_breakpoints(self, data: bytes) -> bytes:
        kind, address, length = numbers(data[1:].partition(b";")[0], 3)  # conditions follow; gdb looks at them itself
        inserts = data[:1] == b"Z"
        if kind in _ACCESSES:
            _change(self._watchpoints, Watchpoint(address, length, _ACCESSES[kind]), inserts)
        elif kind in (_SOFTWARE, _HARDWARE):
            _change(self._software if kind == _SOFTWARE else self._hardware, address, inserts)
        else:
            return UNKNOWN
        self._tell_breakpoints()
        return OK

    def _forget_breakpoints(self) -> None:
        for known in (self._software, self._hardware, self._watchpoints):
            known.clear()
        self._tell_breakpoints()

    def _tell_breakpoints(self) -> None:
        self._debuggee.set_breakpoints(frozenset(self._software | self._hardware), frozenset(self._watchpoints))

    # ---- going on ----

    def _continue(self, text: bytes) -> list[bytes]:
        wanted = actions(text)
        cpus = range(self._debuggee.cpus)
        chosen = {
            cpu: next((action.letter for action in wanted if action.thread in (cpu + 1, ALL_THREADS, ANY_THREAD)), "")
            for cpu in cpus
        }
        stepped = [cpu for cpu in cpus if chosen[cpu] == "s"]
        if stepped:
            cpu = self._cpu if self._cpu in stepped else stepped[0]
            return self._go(lambda: self._debuggee.step(cpu))
        if all(chosen[cpu] == "c" for cpu in cpus):
            return self._go(self._debuggee.go)
        raise ConfigurationError("CPUs go on together or not at all: set scheduler-locking off")

    def _go(self, do: Callable[[], Outcome]) -> list[bytes]:
        self._debuggee.forget_interrupt()
        with self._listening(self._debuggee.interrupt):
            self._last = do()
        if isinstance(self._last, Ended):
            self.ending = Ending.EXITED
            return [self._stop_reply(self._last)]
        self._cpu = self._last.cpu
        return [*_shown(self._last.words), *self._words_on_mode(), self._stop_reply(self._last)]

    def _stop_reply(self, outcome: Outcome) -> bytes:
        if isinstance(outcome, Ended):
            return f"W{outcome.status:02x}".encode()
        signal = {Why.INTERRUPT: INTERRUPT, Why.CRASH: CRASH}.get(outcome.why, TRAP)
        return f"T{signal:02x}thread:{outcome.cpu + 1:x};{self._why(outcome)}".encode()

    def _why(self, standing: Standing) -> str:
        if standing.watchpoint is not None:
            return f"{_HIT[standing.watchpoint.access]}:{standing.watchpoint.address:x};"
        if standing.why is Why.OLDEST:
            return "replaylog:begin;"
        if standing.why is Why.BREAKPOINT:
            layout, registers = self._layout, self._debuggee.registers(standing.cpu)
            pc = next(register for register in layout if register.name in ("eip", "rip"))
            address = int.from_bytes(get_register(registers, pc), "little")
            return "hwbreak:;" if address in self._hardware and address not in self._software else "swbreak:;"
        return ""

    def _words_on_mode(self) -> list[bytes]:
        """Say, once a mode, that gdb does not know of it: its architecture is fixed as long as it is attached."""
        registers = self._debuggee.registers(self._cpu)
        architecture = Architecture.of(registers.regs, registers.sregs)
        if architecture is self._architecture:
            self._told_of = ""
            return []
        mode = cpu_mode(registers.sregs, registers.regs).name
        if mode == self._told_of:
            return []
        self._told_of = mode
        if architecture.is_64_bit is self._architecture.is_64_bit:
            remedy = f"'set architecture {architecture.value}' has gdb read its code so"
        else:
            remedy = "'disconnect', 'set architecture auto' and 'target remote' again have gdb see all of its registers"
        return _shown(f"pykvm: CPU {self._cpu} is in {mode} now: {remedy}")

    # ---- the rest ----

    def _transfer(self, data: bytes) -> bytes:
        parts = data.split(b":")
        if len(parts) != 5 or parts[2] != b"read":
            return UNKNOWN
        offset, size = numbers(parts[4], 2)
        if parts[1] == b"features" and parts[3] == b"target.xml":
            text = self._xml
        elif parts[1] == b"exec-file" and self._file.name:
            text = self._file.name
        else:
            return b"E00" if parts[1] in (b"features", b"exec-file") else UNKNOWN
        piece = text[offset : offset + min(size, LARGEST)]
        return (b"m" if offset + len(piece) < len(text) else b"l") + piece

    def _command(self, text: bytes) -> list[bytes]:
        try:
            words = self._monitor(self._cpu, text.decode("utf-8", "replace"))
        except (PykvmError, ValueError) as error:  # gdb shows no words of an error here
            words = str(error)
        return [*_shown(words), OK]


def _change(known: set[T], item: T, inserts: bool) -> None:
    if not inserts:
        known.discard(item)
    elif len(known) >= MOST_BREAKPOINTS:
        raise ConfigurationError(f"there are {MOST_BREAKPOINTS} breakpoints of this kind already: delete some")
    else:
        known.add(item)


def _shown(words: str) -> list[bytes]:
    """Return the packets that have gdb show ``words``, which end their line if there are any."""
    digits = hex_text(words if words.endswith("\n") or not words else f"{words}\n")
    return [b"O" + digits[start : start + LARGEST] for start in range(0, len(digits), LARGEST)]


def _thread_id(cpu: int) -> bytes:
    return f"{cpu + 1:x}".encode()


def _error(text: str) -> bytes:
    return b"E." + text.replace("\n", "; ").encode("ascii", "replace")[:LARGEST]
