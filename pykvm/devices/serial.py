"""A 16550A serial port, register by register.

    offset  DLAB=0, read     DLAB=0, write    DLAB=1
    0       RBR  received    THR  to send     DLL  divisor, low byte
    1       IER              IER              DLM  divisor, high byte
    2       IIR              FCR  FIFOs       as with DLAB=0
    3       LCR  line: bit 7 is DLAB, the Divisor Latch Access Bit
    4       MCR  modem control
    5       LSR  line status
    6       MSR  modem status
    7       SCR  scratch

Bytes take no time here: what is written to THR is out at once, so the transmitter is always empty, and a character
time-out elapses as soon as the FIFO is below its trigger level. See: National Semiconductor PC16550D data sheet, section 8. Leaves
out baud rates, parity and framing, which change nothing on a line without noise, and (so far) the interrupt line.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

from pykvm.devices.device import ByteRegisters

__all__ = ["COM1", "FIFO_SIZE", "REGISTERS", "Fcr", "Ier", "Iir", "Lcr", "Lsr", "Mcr", "Msr", "Serial"]

COM1 = 0x3F8  # the first serial port's place on a PC
REGISTERS = 8
FIFO_SIZE = 16

RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(REGISTERS)


class Ier(enum.Flag):
    """Interrupt Enable Register.

    7       4   3     2    1     0
    +--------+-----+----+-----+-----+
    |   0    |EDSSI|ELSI|ETBEI|ERBFI|
    +--------+-----+----+-----+-----+
    """

    ERBFI = 1 << 0  # received data available, and character time-out
    ETBEI = 1 << 1  # transmitter holding register empty
    ELSI = 1 << 2  # line status: an error or a break
    EDSSI = 1 << 3  # modem status: a line changed


class Iir(enum.IntEnum):
    """Interrupt Identification Register, bits 3 to 0, the highest priority first; bits 7 and 6 tell that FIFOs are on."""

    LINE_STATUS = 0b0110
    RECEIVED_DATA = 0b0100
    CHARACTER_TIMEOUT = 0b1100
    THR_EMPTY = 0b0010
    MODEM_STATUS = 0b0000
    NONE = 0b0001


class Fcr(enum.Flag):
    """FIFO Control Register.

    7     6 5   4  3     2       1      0
    +------+-----+---+-------+-------+------+
    |TRIGGER| 0  |DMA|CLEAR_TX|CLEAR_RX|ENABLE|
    +------+-----+---+-------+-------+------+
    """

    ENABLE = 1 << 0
    CLEAR_RX = 1 << 1
    CLEAR_TX = 1 << 2
    DMA = 1 << 3
    TRIGGER_LOW = 1 << 6
    TRIGGER_HIGH = 1 << 7


class Lcr(enum.Flag):
    """Line Control Register.

    7    6     5      4   3   2   1  0
    +----+-----+-----+---+---+---+----+
    |DLAB|BREAK|STICK|EPS|PEN|STB|WLS |
    +----+-----+-----+---+---+---+----+
    """

    WLS0 = 1 << 0  # word length: 5 to 8 bits
    WLS1 = 1 << 1
    STB = 1 << 2  # two stop bits
    PEN = 1 << 3  # parity
    EPS = 1 << 4  # even parity
    STICK = 1 << 5
    BREAK = 1 << 6  # hold the line at 0
    DLAB = 1 << 7


class Mcr(enum.Flag):
    """Modem Control Register.

    7     5  4    3    2    1   0
    +------+----+----+----+---+---+
    |  0   |LOOP|OUT2|OUT1|RTS|DTR|
    +------+----+----+----+---+---+
    """

    DTR = 1 << 0
    RTS = 1 << 1
    OUT1 = 1 << 2
    OUT2 = 1 << 3  # on a PC: lets the interrupt out
    LOOP = 1 << 4  # what is sent is received, and nothing goes out


class Lsr(enum.Flag):
    """Line Status Register; reading it clears OE, PE, FE and BI.

    7      6    5   4  3  2  1  0
    +-----+----+----+--+--+--+--+--+
    |FIFOE|TEMT|THRE|BI|FE|PE|OE|DR|
    +-----+----+----+--+--+--+--+--+
    """

    DR = 1 << 0  # data ready in RBR
    OE = 1 << 1  # overrun: a byte came and there was no room
    PE = 1 << 2
    FE = 1 << 3
    BI = 1 << 4  # break
    THRE = 1 << 5  # THR takes a byte
    TEMT = 1 << 6  # and the last one has left
    FIFOE = 1 << 7  # a byte with an error is in the FIFO


class Msr(enum.Flag):
    """Modem Status Register: the lines, and below which of them changed since it was read.

    7   6  5   4   3    2    1    0
    +---+--+---+---+----+----+----+----+
    |DCD|RI|DSR|CTS|DDCD|TERI|DDSR|DCTS|
    +---+--+---+---+----+----+----+----+
    """

    DCTS = 1 << 0
    DDSR = 1 << 1
    TERI = 1 << 2  # trailing edge: RI went off
    DDCD = 1 << 3
    CTS = 1 << 4
    DSR = 1 << 5
    RI = 1 << 6
    DCD = 1 << 7


# Plain numbers for what every access needs.
ALWAYS_EMPTY = (Lsr.THRE | Lsr.TEMT).value
LINE_ERRORS = (Lsr.OE | Lsr.PE | Lsr.FE | Lsr.BI).value
READY = Lsr.DR.value
DELTAS = 0x0F
CONNECTED = Msr.CTS | Msr.DSR | Msr.DCD  # somebody is at the other end, and ready
FIFOS_ON = 0b1100_0000
TRIGGER_LEVELS = (1, 4, 8, 14)

# In loopback the modem control outputs are wired to the modem status inputs (data sheet, section 8.6.6, bit 4).
LOOPBACK_WIRES = ((Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RI), (Mcr.OUT2, Msr.DCD))


class Serial(ByteRegisters):
    """A serial port. ``output`` gets each byte the guest sends.

    Bytes come in by ``receive``, or from ``input(n)``, which is asked for up to n bytes when the guest looks for one and
    none is there; it must not wait.
    """

    name = "serial"

    def __init__(self, output: Callable[[bytes], object], input: Callable[[int], bytes] | None = None) -> None:
        self._output = output
        self._input = input
        self._received: deque[tuple[int, int]] = deque()  # bytes, each with its error bits
        self._fifos_on = False
        self._trigger = TRIGGER_LEVELS[0]
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._line_errors = 0
        self._modem_lines = CONNECTED
        self._modem_deltas = 0
        self._scr = 0
        self._divisor = 12  # 9600 baud from the PC's 1.8432 MHz
        self._thr_empty_pending = False

    # ---- the other end of the line ----

    def receive(self, data: bytes) -> int:
        """Take ``data`` from the line and return how many bytes had room; the first that has none is an overrun.

        With the FIFO off each byte takes the place of the last. In loopback the line is cut off, and nothing is taken.
        """
        if self._mcr & Mcr.LOOP.value:
            return 0
        for taken, byte in enumerate(data):
            if not self._arrive(byte):
                return taken
        return len(data)

    # ---- registers ----

    def read_register(self, offset: int) -> int:
        """Return the register at ``offset`` (0 to 7), with all that reading it does."""
        if offset == LSR:
            return self._read_lsr()
        if offset == RBR_THR:
            return self._divisor & 0xFF if self._dlab else self._read_rbr()
        if offset == IER:
            return self._divisor >> 8 if self._dlab else self._ier
        if offset == IIR_FCR:
            return self._read_iir()
        if offset == LCR:
            return self._lcr
        if offset == MCR:
            return self._mcr
        if offset == MSR:
            return self._read_msr()
        return self._scr

    def write_register(self, offset: int, value: int) -> None:
        """Write ``value`` into the register at ``offset`` (0 to 7). LSR and MSR cannot be written."""
        if offset == RBR_THR:
            if self._dlab:
                self._divisor = (self._divisor & 0xFF00) | value
            else:
                self._write_thr(value)
        elif offset == IER:
            if self._dlab:
                self._divisor = (self._divisor & 0x00FF) | value << 8
            else:
                self._write_ier(value)
        elif offset == IIR_FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self._write_lcr(value)
        elif offset == MCR:
            self._write_mcr(value)
        elif offset == SCR:
            self._scr = value

    @property
    def pending_interrupt(self) -> Iir:
        """Return the enabled interrupt of the highest priority, as IIR names it."""
        if self._ier & Ier.ELSI.value and self._line_status() & LINE_ERRORS:
            return Iir.LINE_STATUS
        if self._ier & Ier.ERBFI.value and self._received:
            if not self._fifos_on or len(self._received) >= self._trigger:
                return Iir.RECEIVED_DATA
            return Iir.CHARACTER_TIMEOUT
        if self._ier & Ier.ETBEI.value and self._thr_empty_pending:
            return Iir.THR_EMPTY
        if self._ier & Ier.EDSSI.value and self._modem_deltas:
            return Iir.MODEM_STATUS
        return Iir.NONE

    # ---- receiving ----

    def _read_rbr(self) -> int:
        self._pull()
        if not self._received:
            return 0
        byte, errors = self._received.popleft()
        self._line_errors &= ~errors
        return byte

    def _read_lsr(self) -> int:
        self._pull()
        status = self._line_status()
        self._line_errors = 0
        if self._received:
            # The errors of the byte on top are told once; those further down stay with their bytes.
            self._received[0] = (self._received[0][0], 0)
        return status

    def _line_status(self) -> int:
        status = ALWAYS_EMPTY | self._line_errors
        if self._received:
            status |= READY | self._received[0][1]
            if self._fifos_on and any(errors for _, errors in self._received):
                status |= Lsr.FIFOE.value
        return status

    def _pull(self) -> None:
        if self._received or self._input is None or self._mcr & Mcr.LOOP.value:
            return
        room = FIFO_SIZE if self._fifos_on else 1
        for byte in self._input(room)[:room]:
            self._arrive(byte)

    def _arrive(self, byte: int, errors: int = 0) -> bool:
        """Put a byte from the line into the FIFO, or into RBR. Returns whether nothing was lost."""
        room = FIFO_SIZE if self._fifos_on else 1
        if len(self._received) < room:
            self._received.append((byte, errors))
            return True
        self._line_errors |= Lsr.OE.value
        if not self._fifos_on:
            self._received[0] = (byte, errors)
        return False

    # ---- sending ----

    def _write_thr(self, value: int) -> None:
        # Writing THR takes the interrupt away; the byte leaves at once, which brings it back.
        self._thr_empty_pending = True
        if self._mcr & Mcr.LOOP.value:
            self._arrive(value)
        else:
            self._output(bytes((value,)))

    # ---- control ----

    @property
    def _dlab(self) -> int:
        return self._lcr & Lcr.DLAB.value

    def _write_ier(self, value: int) -> None:
        was_on = self._ier & Ier.ETBEI.value
        self._ier = value & 0x0F
        if self._ier & Ier.ETBEI.value and not was_on:
            self._thr_empty_pending = True  # enabling it while THR is empty requests one at once

    def _read_iir(self) -> int:
        self._pull()
        interrupt = self.pending_interrupt
        if interrupt is Iir.THR_EMPTY:
            self._thr_empty_pending = False  # reading IIR is what clears this one, and only when it is the one shown
        return interrupt | (FIFOS_ON if self._fifos_on else 0)

    def _write_fcr(self, value: int) -> None:
        on = bool(value & Fcr.ENABLE.value)
        if on != self._fifos_on or (on and value & Fcr.CLEAR_RX.value):
            self._received.clear()
        self._fifos_on = on
        # The other bits are taken only together with ENABLE (data sheet, section 8.4, bit 0).
        self._trigger = TRIGGER_LEVELS[value >> 6] if on else TRIGGER_LEVELS[0]

    def _write_lcr(self, value: int) -> None:
        begins_break = value & Lcr.BREAK.value and not self._lcr & Lcr.BREAK.value
        self._lcr = value
        if begins_break and self._mcr & Mcr.LOOP.value:
            # A break is received as a zero byte whose stop bit is missing.
            self._arrive(0, (Lsr.BI | Lsr.FE).value)

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & 0x1F
        control = Mcr(self._mcr)
        lines = CONNECTED
        if control & Mcr.LOOP:
            lines = Msr(0)
            for output, wired_to in LOOPBACK_WIRES:
                if control & output:
                    lines |= wired_to
        self._set_modem_lines(lines)

    def _set_modem_lines(self, lines: Msr) -> None:
        changed = lines ^ self._modem_lines
        for line, delta in ((Msr.CTS, Msr.DCTS), (Msr.DSR, Msr.DDSR), (Msr.DCD, Msr.DDCD)):
            if changed & line:
                self._modem_deltas |= delta.value
        if changed & Msr.RI and not lines & Msr.RI:
            self._modem_deltas |= Msr.TERI.value
        self._modem_lines = lines

    def _read_msr(self) -> int:
        status = self._modem_lines.value | self._modem_deltas
        self._modem_deltas = 0
        return status
