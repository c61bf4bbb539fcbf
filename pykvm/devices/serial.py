"""A 16550A serial port, register by register.

    offset   read (DLAB=0)       write (DLAB=0)        DLAB=1
    0        RBR  received byte  THR  byte to send     DLL  divisor latch, low byte
    1        IER                 IER  which interrupts DLM  divisor latch, high byte
    2        IIR  why it did     FCR  FIFOs            the same
    3        LCR                 LCR  frame, DLAB      the same
    4        MCR                 MCR  modem outputs    the same
    5        LSR  line status    -                     the same
    6        MSR  modem inputs   -                     the same
    7        SCR  scratch        SCR                   the same

DLAB is the Divisor Latch Access Bit, LCR bit 7. Bytes take no time here: what is written to THR has left at once, so
the transmitter is always empty, and the character time-out elapses as soon as the FIFO is below its trigger level.
See: PC16550D data sheet (National Semiconductor, now TI SNLS378), chapter "Registers". Leaves out what changes nothing
on a line without noise (baud rate, word length, parity, stop bits) and the chip's DMA pins.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from pykvm.devices.device import ByteRegisters
from pykvm.devices.fields import BYTE, Bool, Choice, Flags, Mask, Number, Queue, Tuple
from pykvm.devices.irq import IrqLine
from pykvm.devices.state import Remembered, Stateful

__all__ = ["COM1", "FIFO_SIZE", "REGISTERS", "Fcr", "Ier", "Iir", "Lcr", "Lsr", "Mcr", "Msr", "Offset", "Serial"]

COM1 = 0x3F8  # where a PC has its first serial port
REGISTERS = 8
FIFO_SIZE = 16


class Offset(enum.IntEnum):
    """Where the registers are. Some share an offset: reading and writing differ, and DLAB shows others."""

    RBR = THR = DLL = 0
    IER = DLM = 1
    IIR = FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCR = 7


class Ier(enum.Flag):
    """Interrupt Enable Register.

      7   6   5   4     3     2     1     0
    +---+---+---+---+-----+-----+-----+-----+
    | 0 | 0 | 0 | 0 |EDSSI| ELSI|ETBEI|ERBFI|
    +---+---+---+---+-----+-----+-----+-----+
    """

    ERBFI = 1 << 0  # received data available, or character time-out
    ETBEI = 1 << 1  # transmitter holding register empty
    ELSI = 1 << 2  # line status: an error or a break
    EDSSI = 1 << 3  # modem status: a line changed


class Iir(enum.Enum):
    """Interrupt Identification Register: the interrupt with the highest priority, which is the first in this list.

      7   6   5   4   3   2   1   0
    +---+---+---+---+-----------+---+
    | FIFOs | 0 | 0 | which one |IPN|      IPN: 0 when an interrupt is pending
    +---+---+---+---+-----------+---+
    """

    #                            taken away by
    LINE_STATUS = 0b011_0  #     reading LSR
    RECEIVED_DATA = 0b010_0  #   reading RBR until the FIFO is below its trigger level
    CHARACTER_TIMEOUT = 0b110_0  # reading RBR
    THR_EMPTY = 0b001_0  #       reading IIR when it shows this, or writing THR
    MODEM_STATUS = 0b000_0  #    reading MSR
    NONE = 0b000_1


class Fcr(enum.Flag):
    """FIFO Control Register; the other bits are taken only together with ENABLE.

      7     6    5   4     3        2        1       0
    +----+-----+---+---+-------+--------+--------+------+
    | TRIGGER  | - | - |  DMA  |CLEAR_TX|CLEAR_RX|ENABLE|
    +----+-----+---+---+-------+--------+--------+------+
    """

    ENABLE = 1 << 0
    CLEAR_RX = 1 << 1
    CLEAR_TX = 1 << 2
    DMA = 1 << 3
    TRIGGER_LOW = 1 << 6  # TRIGGER: 1, 4, 8 or 14 received bytes request an interrupt
    TRIGGER_HIGH = 1 << 7


class Lcr(enum.Flag):
    """Line Control Register.

       7     6     5     4     3     2     1    0
    +-----+-----+-----+-----+-----+-----+-----+----+
    | DLAB|BREAK|STICK| EPS | PEN | STB | WLS1|WLS0|
    +-----+-----+-----+-----+-----+-----+-----+----+
    """

    WLS0 = 1 << 0  # word length: 5 to 8 bits
    WLS1 = 1 << 1
    STB = 1 << 2  # two stop bits
    PEN = 1 << 3  # a parity bit
    EPS = 1 << 4  # even parity
    STICK = 1 << 5  # the parity bit is always 1, or with EPS always 0
    BREAK = 1 << 6  # hold the line at 0
    DLAB = 1 << 7  # offsets 0 and 1 are the divisor latch


class Mcr(enum.Flag):
    """Modem Control Register.

      7   6   5    4    3    2    1   0
    +---+---+---+----+----+----+---+---+
    | 0 | 0 | 0 |LOOP|OUT2|OUT1|RTS|DTR|
    +---+---+---+----+----+----+---+---+
    """

    DTR = 1 << 0
    RTS = 1 << 1
    OUT1 = 1 << 2
    OUT2 = 1 << 3  # on a PC: lets the interrupt out of the card
    LOOP = 1 << 4  # what is sent is received, and the line is cut off


class Lsr(enum.Flag):
    """Line Status Register; reading it clears OE, PE, FE and BI.

       7     6    5   4   3   2   1   0
    +-----+----+----+---+---+---+---+---+
    |FIFOE|TEMT|THRE| BI| FE| PE| OE| DR|
    +-----+----+----+---+---+---+---+---+
    """

    DR = 1 << 0  # a byte is in RBR
    OE = 1 << 1  # overrun: a byte came and there was no room
    PE = 1 << 2  # parity error
    FE = 1 << 3  # framing error: no stop bit
    BI = 1 << 4  # break: the line was 0 for a whole character
    THRE = 1 << 5  # THR takes a byte
    TEMT = 1 << 6  # and the last one has left
    FIFOE = 1 << 7  # PE, FE or BI of some byte in the FIFO


class Msr(enum.Flag):
    """Modem Status Register: the lines, and which of them changed since it was last read.

      7   6   5   4    3    2    1    0
    +---+---+---+---+----+----+----+----+
    |DCD| RI|DSR|CTS|DDCD|TERI|DDSR|DCTS|
    +---+---+---+---+----+----+----+----+
    """

    DCTS = 1 << 0
    DDSR = 1 << 1
    TERI = 1 << 2  # trailing edge: RI went off; going on does not count
    DDCD = 1 << 3
    CTS = 1 << 4
    DSR = 1 << 5
    RI = 1 << 6
    DCD = 1 << 7


# What every access needs, as plain numbers: an enum's value costs more than the access.
DLAB, BREAK = Lcr.DLAB.value, Lcr.BREAK.value
LOOP, OUT2 = Mcr.LOOP.value, Mcr.OUT2.value
ERBFI = Ier.ERBFI.value
READY, OVERRUN, FIFO_ERROR = Lsr.DR.value, Lsr.OE.value, Lsr.FIFOE.value
TRANSMITTER_EMPTY = (Lsr.THRE | Lsr.TEMT).value
CHARACTER_ERRORS = (Lsr.PE | Lsr.FE | Lsr.BI).value
BREAK_RECEIVED = (Lsr.BI | Lsr.FE).value  # a break is a zero byte whose stop bit is missing

IER_BITS, MCR_BITS, OFFSET_BITS = 0x0F, 0x1F, REGISTERS - 1
FIFOS_ON = 0b1100_0000  # in IIR
TRIGGER_LEVELS = (1, 4, 8, 14)
READ_NAMES = ("RBR", "IER", "IIR", "LCR", "MCR", "LSR", "MSR", "SCR")
NAMES = (READ_NAMES, ("THR", "IER", "FCR", *READ_NAMES[3:]))
DLAB_NAMES = [("DLL", "DLM", *names[2:]) for names in NAMES]
DIVISOR_9600 = 12  # of the PC's 1.8432 MHz / 16

MODEM_LINES = Msr.CTS | Msr.DSR | Msr.RI | Msr.DCD
CONNECTED = Msr.CTS | Msr.DSR | Msr.DCD  # somebody is at the other end, and ready

# In loopback the modem outputs are wired to the modem inputs (data sheet, Modem Control Register, bit 4).
LOOPBACK_WIRES = ((Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RI), (Mcr.OUT2, Msr.DCD))


class Serial(ByteRegisters, Stateful):
    """A serial port. ``output`` gets each byte that the guest sends.

    Bytes come in by ``receive``, or from ``input(n)``, which is asked for up to n bytes when the guest looks for one
    and none is there; it must not wait. A guest that does not look, but waits for the interrupt, is served by
    ``poll()``: ``on_listen`` is called when it begins to wait. ``irq`` is the interrupt line; it is set only when its
    level changes.
    """

    name = "serial"
    text_registers = ("RBR", "THR")
    remembers: ClassVar[Remembered] = {
        "_interrupt_level": Bool(),
        "_received": Queue(Tuple(BYTE, Mask(CHARACTER_ERRORS)), FIFO_SIZE),
        "_line_errors": Mask(OVERRUN | CHARACTER_ERRORS),
        "_fifos_on": Bool(),
        "_trigger": Choice(*TRIGGER_LEVELS),
        "_divisor": Number(0xFFFF),
        "_ier": Mask(IER_BITS),
        "_lcr": BYTE,
        "_mcr": Mask(MCR_BITS),
        "_scr": BYTE,
        "_thr_empty_pending": Bool(),
        "_far_lines": Flags(MODEM_LINES),
        "_modem_lines": Flags(MODEM_LINES),
        "_modem_deltas": Flags(~MODEM_LINES),
    }

    def __init__(
        self,
        output: Callable[[bytes], object],
        input: Callable[[int], bytes] | None = None,
        irq: IrqLine | None = None,
    ) -> None:
        self._output = output
        self._input = input
        self._irq = irq
        self.on_listen: Callable[[], None] = lambda: None
        self._interrupt_level = False
        # What the data sheet's master reset leaves behind.
        self._received: deque[tuple[int, int]] = deque()  # bytes, each with its CHARACTER_ERRORS; the next one first
        self._line_errors = 0  # OE, and the CHARACTER_ERRORS of bytes that have come to the top
        self._fifos_on = False
        self._trigger = TRIGGER_LEVELS[0]
        self._divisor = DIVISOR_9600
        self._ier = self._lcr = self._mcr = self._scr = 0
        self._thr_empty_pending = False
        self._far_lines = self._modem_lines = CONNECTED
        self._modem_deltas = Msr(0)

    def _restored(self) -> None:
        if self._ier & ERBFI:
            self.on_listen()

    # ---- the other end of the line ----

    @property
    def room(self) -> int:
        """Return how many bytes ``receive`` can take without losing one."""
        if self._mcr & LOOP:
            return 0
        return max(0, self._capacity - len(self._received))

    def receive(self, data: bytes) -> int:
        """Let ``data`` come in from the line, and return how many bytes of it there was ``room`` for.

        The line does not wait: any more are an overrun. With the FIFOs on, what is in the FIFO stays and the new byte
        is lost; with them off, the new byte takes the old one's place. In loopback the line is cut off.
        """
        if self._mcr & LOOP:
            return 0
        fitting = min(len(data), self.room)
        for byte in data:
            self._arrive(byte)
        self._update_interrupt()
        return fitting

    def receive_break(self) -> None:
        """Let a break come in from the line: the other end holds it at 0."""
        if not self._mcr & LOOP:
            self._arrive(0, BREAK_RECEIVED)
            self._update_interrupt()

    def set_modem_lines(self, lines: Msr) -> None:
        """Let the other end put ``lines`` (of CTS, DSR, RI, DCD) on, and the rest off. They start as CTS, DSR, DCD."""
        self._far_lines = lines & MODEM_LINES
        self._update_modem_lines()
        self._update_interrupt()

    def poll(self) -> None:
        """Ask ``input`` for bytes, if none are waiting: for a guest that waits for the interrupt, not at LSR."""
        self._pull()
        self._update_interrupt()

    # ---- the guest's side ----

    def read_register(self, offset: int) -> int:
        """Return the register at ``offset``, with all that reading it does.

        The chip has three address lines, so its eight registers repeat at higher offsets.
        """
        value = self._read(offset & OFFSET_BITS)
        self._update_interrupt()
        return value

    def write_register(self, offset: int, value: int) -> None:
        """Write ``value`` into the register at ``offset``. LSR and MSR cannot be written."""
        self._write(offset & OFFSET_BITS, value)
        self._update_interrupt()

    def register_name(self, offset: int, is_write: bool) -> str:
        """Return which register is there, as DLAB is now."""
        return (DLAB_NAMES if self._lcr & DLAB else NAMES)[is_write][offset & OFFSET_BITS]

    def _read(self, offset: int) -> int:
        match offset:
            case Offset.DLL if self._lcr & DLAB:
                return self._divisor & 0xFF
            case Offset.DLM if self._lcr & DLAB:
                return self._divisor >> 8
            case Offset.RBR:
                return self._read_rbr()
            case Offset.IER:
                return self._ier
            case Offset.IIR:
                return self._read_iir()
            case Offset.LCR:
                return self._lcr
            case Offset.MCR:
                return self._mcr
            case Offset.LSR:
                return self._read_lsr()
            case Offset.MSR:
                return self._read_msr()
            case _:
                return self._scr

    def _write(self, offset: int, value: int) -> None:
        match offset:
            case Offset.DLL if self._lcr & DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            case Offset.DLM if self._lcr & DLAB:
                self._divisor = value << 8 | self._divisor & 0x00FF
            case Offset.THR:
                self._write_thr(value)
            case Offset.IER:
                self._write_ier(value)
            case Offset.FCR:
                self._write_fcr(value)
            case Offset.LCR:
                self._write_lcr(value)
            case Offset.MCR:
                self._write_mcr(value)
            case Offset.SCR:
                self._scr = value

    # ---- receiving: RBR and LSR ----

    @property
    def _capacity(self) -> int:
        return FIFO_SIZE if self._fifos_on else 1

    def _read_rbr(self) -> int:
        self._pull()
        if not self._received:
            return 0
        byte, _ = self._received.popleft()
        self._reveal_errors()
        if self._ier & ERBFI:
            # On behalf of a handler that reads one byte for each interrupt: the line falls before another can come.
            self._update_interrupt()
            self._pull()
        return byte

    def _read_lsr(self) -> int:
        self._pull()
        status = TRANSMITTER_EMPTY | self._line_errors
        if self._received:
            status |= READY
        if self._fifos_on and (self._line_errors & CHARACTER_ERRORS or any(errors for _, errors in self._received)):
            status |= FIFO_ERROR
        self._line_errors = 0
        return status

    def _pull(self) -> None:
        if self._input is None or self._received or self._mcr & LOOP:
            return
        for byte in self._input(self._capacity)[: self._capacity]:
            self._arrive(byte)

    def _arrive(self, byte: int, errors: int = 0) -> None:
        if len(self._received) < self._capacity:
            self._received.append((byte, errors))
        else:
            self._line_errors |= OVERRUN
            if not self._fifos_on:
                self._received[0] = (byte, errors)
        self._reveal_errors()

    def _reveal_errors(self) -> None:
        # The errors of a byte travel with it through the FIFO, and show in LSR once it is the next to be read.
        if self._received and self._received[0][1]:
            byte, errors = self._received[0]
            self._line_errors |= errors
            self._received[0] = (byte, 0)

    # ---- sending: THR, and the frame: LCR ----

    def _write_thr(self, value: int) -> None:
        # Writing THR takes its interrupt away; the byte leaves at once, and that brings it back.
        self._thr_empty_pending = True
        if self._mcr & LOOP:
            self._arrive(value)
        else:
            self._output(bytes((value,)))

    def _write_lcr(self, value: int) -> None:
        begins_break = value & BREAK and not self._lcr & BREAK
        self._lcr = value
        if begins_break and self._mcr & LOOP:
            self._arrive(0, BREAK_RECEIVED)

    # ---- the FIFOs: FCR ----

    def _write_fcr(self, value: int) -> None:
        control = Fcr(value & ~0b0011_0000)
        was_on, self._fifos_on = self._fifos_on, Fcr.ENABLE in control
        self._trigger = TRIGGER_LEVELS[value >> 6 if self._fifos_on else 0]
        # Switching over empties the FIFOs too. CLEAR_TX finds nothing to clear.
        if self._fifos_on != was_on or Fcr.ENABLE | Fcr.CLEAR_RX in control:
            self._received.clear()
            self._line_errors &= ~CHARACTER_ERRORS  # they go with their bytes

    # ---- interrupts: IER and IIR ----

    @property
    def pending_interrupt(self) -> Iir:
        """Return the interrupt that IIR shows: of those enabled, the one with the highest priority."""
        enabled = Ier(self._ier)
        if Ier.ELSI in enabled and self._line_errors:
            return Iir.LINE_STATUS
        if Ier.ERBFI in enabled and self._received:
            below = self._fifos_on and len(self._received) < self._trigger
            return Iir.CHARACTER_TIMEOUT if below else Iir.RECEIVED_DATA
        if Ier.ETBEI in enabled and self._thr_empty_pending:
            return Iir.THR_EMPTY
        if Ier.EDSSI in enabled and self._modem_deltas:
            return Iir.MODEM_STATUS
        return Iir.NONE

    def _write_ier(self, value: int) -> None:
        newly_enabled = Ier(value & IER_BITS & ~self._ier)
        self._ier = value & IER_BITS
        if Ier.ETBEI in newly_enabled:
            self._thr_empty_pending = True  # for THR is empty; drivers start sending by this
        if Ier.ERBFI in newly_enabled:
            self.on_listen()
            self._pull()

    def _read_iir(self) -> int:
        self._pull()
        shown = self.pending_interrupt
        if shown is Iir.THR_EMPTY:
            self._thr_empty_pending = False
        return shown.value | (FIFOS_ON if self._fifos_on else 0)

    def _update_interrupt(self) -> None:
        if self._irq is None:
            return
        # A PC's card leads the chip's INTR pin through a gate that OUT2 opens; loopback turns the pin OUT2 off.
        gate_open = self._mcr & (OUT2 | LOOP) == OUT2
        level = gate_open and self.pending_interrupt is not Iir.NONE
        if level != self._interrupt_level:
            self._interrupt_level = level
            self._irq.set_level(level)

    # ---- the modem: MCR and MSR ----

    def _write_mcr(self, value: int) -> None:
        leaves_loopback = self._mcr & LOOP and not value & LOOP
        self._mcr = value & MCR_BITS
        self._update_modem_lines()
        if leaves_loopback and self._ier & ERBFI:
            self._pull()  # the line is connected again, and somebody waits

    def _read_msr(self) -> int:
        status = self._modem_lines | self._modem_deltas
        self._modem_deltas = Msr(0)
        return status.value

    def _update_modem_lines(self) -> None:
        before, lines = self._modem_lines, self._far_lines
        if self._mcr & LOOP:
            outputs, lines = Mcr(self._mcr), Msr(0)
            for output, wired_to in LOOPBACK_WIRES:
                if output in outputs:
                    lines |= wired_to
        for line, delta in ((Msr.CTS, Msr.DCTS), (Msr.DSR, Msr.DDSR), (Msr.DCD, Msr.DDCD)):
            if line in before ^ lines:
                self._modem_deltas |= delta
        if Msr.RI in before & ~lines:
            self._modem_deltas |= Msr.TERI
        self._modem_lines = lines
