"""The serial port by interrupt: every cause in its order, and input that is waited for at no cost."""

from __future__ import annotations

import io
import os
import pty
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pykvm import Machine, assemble
from pykvm.cli.terminal import Quit, Terminal
from pykvm.devices.serial import Msr
from pykvm.machine import DebugExitWritten, Stopped
from pykvm.testing import Guests

IRQCHIPS = ("user", "kernel", "split")
PORT = 0x66  # of the test's own
READY = 0x80
END = 0xFF  # of the input: the byte after which the guests stop
LIMIT = 30  # seconds: a bound on what takes far less

# Guests in long mode, whose handler of IRQ 4 tells at PORT what IIR says, and does what it wants until it says "none".
HEAD = """
        .include "ports.inc"
        .include "layout.inc"
        .include "idt64.inc"
        .include "pic.inc"

        .set    PORT, 0x66
        .set    READY, 0x80
        .set    END, 0xff
        .set    IER, SERIAL + 1
        .set    IIR, SERIAL + 2
        .set    LSR, SERIAL + 5
        .set    MODEM, SERIAL + 6
        .set    IER_RECEIVED, 0x01
        .set    IER_ALL, 0x0f
        .set    OUT2, 0x08

        .macro  write register, value
        mov     $\\register, %dx
        mov     $\\value, %al
        out     %al, (%dx)
        .endm
        .macro  read register
        mov     $\\register, %dx
        in      (%dx), %al
        .endm
        .macro  tell value
        mov     $\\value, %al
        out     %al, $PORT
        .endm

        .code64
        .globl  _start
_start:
        set_gate idt, (PIC_VECTOR+IRQ_SERIAL), serial
        lidt    idt_pointer
        pic_init ~(1<<IRQ_SERIAL)&0xff, PIC_MASK_ALL
"""
TAIL = """
idt_pointer:
        .word   16 * 256 - 1
        .quad   idt
        .bss
        .balign 16
idt:
        .skip   16 * 256
"""

TELLING = """
serial:
        push    %rax
        push    %rdx
again:
        read    IIR
        and     $0x0f, %al
        out     %al, $PORT                      # why?
        cmp     $0x01, %al
        je      none
        cmp     $0x02, %al
        je      again                           # THR empty: reading IIR was enough
        mov     $LSR, %dx
        cmp     $0x06, %al                      # line status
        je      serve
        mov     $SERIAL_RBR, %dx
        test    $0x04, %al                      # received data, character time-out
        jnz     serve
        mov     $MODEM, %dx
serve:
        in      (%dx), %al
        jmp     again
none:
        pic_eoi
        pop     %rdx
        pop     %rax
        iretq
"""
LINE_STATUS, RECEIVED_DATA, TIMEOUT, THR_EMPTY, MODEM_STATUS, NONE = 0x6, 0x4, 0xC, 0x2, 0x0, 0x1

# Echoes what comes until END, one byte for each interrupt or as many as there are.
ECHO = """
        write   SERIAL_FCR, {fcr}
        write   SERIAL_MCR, OUT2
        write   IER, IER_RECEIVED
        tell    READY
1:      sti
        hlt
        jmp     1b
serial:
        read    LSR                             # an edge may be that of a byte which is taken already
        test    $LSR_DR, %al
        jz      1f
        read    SERIAL_RBR
        cmp     $END, %al
        je      end
        out     %al, (%dx)                      # THR
        {again}
1:      pic_eoi
        iretq
end:
        out     %al, $DEBUG_EXIT
"""
DRAIN = "jmp serial"
PROGRAMS = {
    "no FIFO": ECHO.format(fcr="0", again=""),
    "FIFO": ECHO.format(fcr="FCR_ENABLE|FCR_CLEAR", again=DRAIN),
    "trigger 14": ECHO.format(fcr="FCR_ENABLE|FCR_CLEAR|0xc0", again=DRAIN),
}


class Port:
    """A port where the guest tells the test what has happened; the test may act on it at once."""

    name = "the test's port"

    def __init__(self, machine: Machine) -> None:
        self.told: list[int] = []
        self.act: Callable[[int], object] = lambda value: None
        machine.pio.register(self, PORT, 1)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.told.append(data[0])
        self.act(data[0])


def load(machine: Machine, *code: str) -> Port:
    machine.load(assemble("\n".join([HEAD, *code, TAIL])))
    return Port(machine)


# ---- why the port interrupts ----


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize(
    ("fcr", "received"), [("FCR_ENABLE", RECEIVED_DATA), ("FCR_ENABLE|0xc0", TIMEOUT)], ids=["trigger 1", "trigger 14"]
)
def test_all_causes_are_served_in_the_order_of_their_priority(
    guest: Guests, irqchip: str, fcr: str, received: int
) -> None:
    code = f"""
        write   SERIAL_FCR, {fcr}
        write   SERIAL_MCR, OUT2
        write   IER, IER_ALL                    # THR is empty: that is the first cause
        tell    READY                           # the test adds the other three
        sti
        hlt
"""
    machine = guest.machine("2M", irqchip=irqchip)
    port = load(machine, code, TELLING)

    def act(value: int) -> None:
        if value == READY:
            machine.serial.set_modem_lines(Msr(0))
            machine.serial.receive(b"x")
            machine.serial.receive_break()
        elif value == NONE:
            machine.stop()

    port.act = act
    assert machine.run(LIMIT).stop == Stopped()
    # The break is the second character: its error shows when the first has been read.
    assert port.told == [READY, received, LINE_STATUS, received, THR_EMPTY, MODEM_STATUS, NONE]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_each_cause_interrupts_a_guest_that_waits(guest: Guests, irqchip: str) -> None:
    code = """
        write   SERIAL_MCR, OUT2
        write   IER, IER_ALL
1:      sti
        hlt
        jmp     1b
"""
    machine = guest.machine("2M", irqchip=irqchip)
    port = load(machine, code, TELLING)
    causes = iter(
        [
            lambda: machine.serial.receive(b"x"),
            machine.serial.receive_break,
            lambda: machine.serial.set_modem_lines(Msr.CTS),
            lambda: machine.serial.receive(b"two"),  # one is lost: an overrun
            machine.stop,
        ]
    )

    def cause() -> None:
        time.sleep(0.002)  # the guest is in HLT, most likely
        with machine.lock:
            next(causes)()

    port.act = lambda value: threading.Thread(target=cause).start() if value == NONE else None
    assert machine.run(LIMIT).stop == Stopped()
    told = "".join(f"{value:x}" for value in port.told)
    assert told.split("1")[:5] == ["2", "4", "64", "0", "64"]


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_guest_sends_by_interrupt_alone(guest: Guests, irqchip: str) -> None:
    code = """
        mov     $text, %esi
        write   SERIAL_MCR, OUT2
        write   IER, 0x02                       # THR is empty: this begins it
1:      sti
        hlt
        jmp     1b
serial:
        read    IIR                             # takes THR's interrupt away
        lodsb
        test    %al, %al
        jz      end
        mov     $SERIAL_THR, %dx
        out     %al, (%dx)                      # and this brings it back
        pic_eoi
        iretq
end:
        out     %al, $DEBUG_EXIT
text:
        .rept   20
        .ascii  "every byte asks for the next\\n"
        .endr
        .byte   0
"""
    machine = guest.machine("2M", irqchip=irqchip)
    load(machine, code)
    result = machine.run(LIMIT)
    assert result.stop == DebugExitWritten(0)
    assert result.serial.data == b"every byte asks for the next\n" * 20


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_nothing_interrupts_while_out2_keeps_the_gate_shut(guest: Guests, irqchip: str) -> None:
    code = """
        write   IER, IER_ALL
        sti
        mov     $500, %ecx
1:      loop    1b
        tell    READY
        write   SERIAL_MCR, OUT2
1:      jmp     1b
"""
    machine = guest.machine("2M", irqchip=irqchip)
    port = load(machine, code, TELLING)
    port.act = lambda value: machine.stop() if value == NONE else None
    assert machine.run(LIMIT).stop == Stopped()
    assert port.told == [READY, THR_EMPTY, NONE]


# ---- input ----


def noise(size: int) -> bytes:
    return bytes(random.Random(16550).randrange(END) for _ in range(size))


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_halted_guest_gets_what_another_thread_lets_in(guest: Guests, program: str, irqchip: str) -> None:
    data = noise(300)
    machine = guest.machine("2M", irqchip=irqchip)
    port = load(machine, PROGRAMS[program])

    def send() -> None:
        rest = data + bytes([END])
        while rest:
            with machine.lock:
                taken = machine.serial.receive(rest[: machine.serial.room])
            rest = rest[taken:]
            time.sleep(0.0001 if taken else 0.0005)

    thread = threading.Thread(target=send, daemon=True)
    port.act = lambda value: thread.start()
    result = machine.run(LIMIT)
    thread.join(LIMIT)
    assert result.stop == DebugExitWritten(END)
    assert result.serial.data == data


@pytest.mark.parametrize(
    ("program", "irqchip"), [*((program, "user") for program in PROGRAMS), ("FIFO", "kernel"), ("trigger 14", "split")]
)
def test_a_long_input_from_a_pipe_reaches_the_guest_whole_and_in_order(program: str, irqchip: str) -> None:
    data = noise(5000)
    reader, writer = os.pipe()
    os.write(writer, data + bytes([END]))
    os.close(writer)
    assert echo_of_pipe(PROGRAMS[program], irqchip, reader) == data


@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_input_that_trickles_in_wakes_the_guest_each_time(program: str, irqchip: str) -> None:
    data = noise(200)
    reader, writer = os.pipe()

    def trickle() -> None:
        dice, rest = random.Random(1), data + bytes([END])
        while rest:
            size = dice.choice((1, 2, 15, 16, 17, 40))
            os.write(writer, rest[:size])
            rest = rest[size:]
            time.sleep(dice.choice((0, 0.0005, 0.003)))
        os.close(writer)

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    assert echo_of_pipe(PROGRAMS[program], irqchip, reader) == data
    thread.join(LIMIT)


def echo_of_pipe(program: str, irqchip: str, reader: int) -> bytes:
    """Return what ``program`` sends back of the pipe ``reader``, which is closed."""
    output = io.BytesIO()
    with (
        os.fdopen(reader, "rb", buffering=0),
        Terminal(reader, output) as terminal,
        Machine(
            "2M",
            irqchip=irqchip,
            serial_output=terminal.write,
            serial_input=terminal.read,
            observers=[terminal],
        ) as machine,
    ):
        load(machine, program)
        terminal.serve_serial(machine)
        result = machine.run(LIMIT)
        assert result.stop == DebugExitWritten(END), result.report
    return output.getvalue()


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_the_end_of_the_input_leaves_the_guest_waiting_at_no_cost(irqchip: str) -> None:
    # A pipe at its end can always be read: nobody may look at it again and again.
    assert any(worked < waited / 3 for waited, worked in (wait_at_the_end(irqchip) for _ in range(5)))


def wait_at_the_end(irqchip: str) -> tuple[float, float]:
    """Run a guest at the end of its input for a while; return the seconds that passed, and those of the host's CPU."""
    reader, writer = os.pipe()
    os.write(writer, b"the end")
    os.close(writer)
    with (
        os.fdopen(reader, "rb", buffering=0),
        Terminal(reader, io.BytesIO()) as terminal,
        Machine("2M", irqchip=irqchip, serial_output=terminal.write, serial_input=terminal.read) as machine,
    ):
        load(machine, PROGRAMS["FIFO"])
        terminal.serve_serial(machine)
        timer = threading.Timer(0.3, machine.stop)
        before, start = time.process_time(), time.perf_counter()
        timer.start()
        result = machine.run(LIMIT)
        waited, worked = time.perf_counter() - start, time.process_time() - before
    assert result.stop == Stopped()
    assert result.serial.data == b"the end"
    return waited, worked


# ---- input from a terminal ----


@contextmanager
def at_a_terminal(irqchip: str) -> Iterator[tuple[Machine, Port, Callable[[bytes], object]]]:
    """A guest that echoes what is typed by the function that comes with it, from when it is ready."""
    master, slave = pty.openpty()
    with (
        os.fdopen(master, "wb", buffering=0) as keys,
        os.fdopen(slave, "rb", buffering=0),
        Terminal(slave, io.BytesIO()) as terminal,
        Machine(
            "2M", irqchip=irqchip, serial_output=terminal.write, serial_input=terminal.read, observers=[terminal]
        ) as machine,
    ):
        port = load(machine, PROGRAMS["trigger 14"])
        terminal.serve_serial(machine)
        yield machine, port, keys.write


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_what_is_typed_reaches_a_guest_that_waits_for_the_interrupt(irqchip: str) -> None:
    typed = [b"hello", b"\r", b"\x03", b"x" * 50, b"\x01\x01", bytes([END])]
    with at_a_terminal(irqchip) as (machine, port, write):

        def type_keys() -> None:
            for keys in typed:
                write(keys)
                time.sleep(0.003)

        thread = threading.Thread(target=type_keys, daemon=True)
        port.act = lambda value: thread.start()  # raw by now
        result = machine.run(LIMIT)
        thread.join()
    assert result.stop == DebugExitWritten(END)
    assert result.serial.data == b"hello\r\x03" + b"x" * 50 + b"\x01"


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_ctrl_a_x_ends_a_run_whose_guest_is_halted(irqchip: str) -> None:
    with at_a_terminal(irqchip) as (machine, port, write):
        timer = threading.Timer(0.05, write, [b"\x01x"])
        port.act = lambda value: timer.start()
        with pytest.raises(Quit):
            machine.run(LIMIT)
        timer.join()
