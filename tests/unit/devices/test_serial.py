"""pykvm.devices.serial: the 16550A, register by register, as the PC16550D data sheet has it."""

from __future__ import annotations

import pytest

from pykvm.devices import Serial, serial
from pykvm.devices.serial import FIFO_SIZE, Fcr, Ier, Iir, Lcr, Lsr, Mcr, Msr, Offset
from pykvm.testing import DeviceBench, Wire

IDLE = Lsr.THRE | Lsr.TEMT
FIFOS_ON = 0xC0  # IIR bits 7 and 6


class Port:
    """A serial port with a guest at one end and a test at the other; register values go by their flags."""

    def __init__(self, *, fifos: bool = False, loop: bool = False, input: Source | None = None) -> None:
        self.sent = b""
        self.irq = Wire()
        self.levels = self.irq.levels
        self.chip = Serial(self._send, input, irq=self.irq)
        if fifos:
            self.write(Offset.FCR, Fcr.ENABLE.value)
        if loop:
            self.write(Offset.MCR, Mcr.LOOP.value)
            self.read(Offset.MSR)

    def _send(self, data: bytes) -> None:
        self.sent += data

    def read(self, offset: Offset) -> int:
        return self.chip.read(offset, 1)[0]

    def write(self, offset: Offset, value: int) -> None:
        self.chip.write(offset, bytes((value,)))

    def drain(self) -> bytes:
        """Read RBR for as long as LSR says that there is something, as a polling driver does."""
        data = b""
        while self.lsr() & Lsr.DR:
            data += bytes((self.read(Offset.RBR),))
        return data

    def lsr(self) -> Lsr:
        return Lsr(self.read(Offset.LSR))

    def msr(self) -> Msr:
        return Msr(self.read(Offset.MSR))

    def iir(self) -> Iir:
        return Iir(self.read(Offset.IIR) & 0x0F)

    def enable(self, interrupts: Ier) -> None:
        self.write(Offset.IER, interrupts.value)


# ---- after reset ----


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (Offset.RBR, 0),
        (Offset.IER, 0),
        (Offset.IIR, 0x01),
        (Offset.LCR, 0),
        (Offset.MCR, 0),
        (Offset.LSR, 0x60),
        (Offset.MSR, 0xB0),
        (Offset.SCR, 0),
    ],
)
def test_after_reset_a_register_reads_as_the_data_sheet_says(offset: Offset, value: int) -> None:
    assert Port().read(offset) == value


def test_after_reset_nothing_was_sent_and_the_interrupt_line_is_low() -> None:
    port = Port()
    assert (port.sent, port.levels) == (b"", [])


# ---- DLAB and the plain registers ----


def test_dlab_selects_the_divisor_latch() -> None:
    port = Port()
    port.enable(Ier.ERBFI)
    port.write(Offset.LCR, Lcr.DLAB.value)
    port.write(Offset.DLL, 0x34)
    port.write(Offset.DLM, 0x12)
    assert (port.read(Offset.DLL), port.read(Offset.DLM)) == (0x34, 0x12)
    port.write(Offset.LCR, 0)
    assert port.read(Offset.IER) == Ier.ERBFI.value
    assert port.sent == b""


def test_the_divisor_latch_keeps_its_value_while_dlab_is_off() -> None:
    port = Port()
    port.write(Offset.LCR, Lcr.DLAB.value)
    port.write(Offset.DLL, 1)
    port.write(Offset.DLM, 0)
    port.write(Offset.LCR, 0x03)
    port.write(Offset.THR, ord("x"))
    port.enable(Ier.ELSI)
    port.write(Offset.LCR, 0x83)
    assert (port.read(Offset.DLL), port.read(Offset.DLM)) == (1, 0)
    assert port.sent == b"x"


def test_after_reset_the_divisor_stands_for_9600_baud() -> None:
    port = Port()
    port.write(Offset.LCR, Lcr.DLAB.value)
    assert (port.read(Offset.DLL), port.read(Offset.DLM)) == (12, 0)


def test_with_dlab_on_a_waiting_byte_is_not_taken() -> None:
    port = Port()
    port.chip.receive(b"a")
    port.write(Offset.LCR, Lcr.DLAB.value)
    port.read(Offset.DLL)
    port.write(Offset.LCR, 0)
    assert port.drain() == b"a"


@pytest.mark.parametrize("dlab", [0, Lcr.DLAB.value])
def test_iir_fcr_and_the_rest_do_not_depend_on_dlab(dlab: int) -> None:
    port = Port()
    port.write(Offset.LCR, dlab)
    port.write(Offset.FCR, Fcr.ENABLE.value)
    assert port.read(Offset.IIR) == FIFOS_ON | Iir.NONE.value
    assert port.lsr() == IDLE


@pytest.mark.parametrize(
    ("offset", "kept"), [(Offset.IER, 0x0F), (Offset.LCR, 0xFF), (Offset.MCR, 0x1F), (Offset.SCR, 0xFF)]
)
def test_a_register_reads_back_the_bits_that_it_has(offset: Offset, kept: int) -> None:
    port = Port()
    for value in (0xFF, 0x00, 0xA5, 0x5A):
        port.write(offset, value)
        assert port.read(offset) == value & kept
        port.write(Offset.LCR, 0)  # DLAB off, so that IER is to be seen


def test_lsr_and_msr_cannot_be_written() -> None:
    port = Port()
    port.write(Offset.LSR, 0x1F)
    port.write(Offset.MSR, 0x0F)
    assert port.lsr() == IDLE
    assert port.msr() == Msr.CTS | Msr.DSR | Msr.DCD


def test_the_scratch_register_has_no_effect_on_anything() -> None:
    port = Port()
    port.write(Offset.SCR, 0xFF)
    assert [port.read(offset) for offset in Offset if offset is not Offset.SCR] == [0, 0, 0x01, 0, 0, 0x60, 0xB0]


def test_the_eight_registers_repeat_at_higher_offsets_for_the_chip_has_three_address_lines() -> None:
    port = Port()
    port.chip.write(8 + Offset.SCR, b"\x5a")
    port.chip.write(8 + Offset.THR, b"x")
    assert port.chip.read(16 + Offset.SCR, 1) == port.chip.read(Offset.SCR, 1) == b"\x5a"
    assert port.sent == b"x"


# ---- sending ----


def test_what_is_written_to_thr_is_output_byte_by_byte() -> None:
    outputs: list[bytes] = []
    chip = Serial(outputs.append)
    for byte in (b"H", b"\x00", b"\xff"):
        chip.write(Offset.THR, byte)
    assert outputs == [b"H", b"\x00", b"\xff"]


@pytest.mark.parametrize("fifos", [False, True])
def test_the_transmitter_is_always_empty(fifos: bool) -> None:
    port = Port(fifos=fifos)
    for _ in range(3 * FIFO_SIZE):
        assert port.lsr() == IDLE
        port.write(Offset.THR, ord("x"))
    assert port.sent == b"x" * 3 * FIFO_SIZE


def test_a_break_is_sent_as_nothing() -> None:
    port = Port()
    port.write(Offset.LCR, Lcr.BREAK.value)
    port.write(Offset.LCR, 0)
    assert (port.sent, port.lsr()) == (b"", IDLE)


# ---- receiving with the FIFOs off, as a 16450 ----


def test_a_received_byte_sets_dr_until_it_is_read() -> None:
    port = Port()
    assert port.chip.receive(b"a") == 1
    assert port.lsr() == IDLE | Lsr.DR
    assert port.read(Offset.RBR) == ord("a")
    assert port.lsr() == IDLE


def test_without_fifos_the_second_byte_replaces_the_first_and_is_an_overrun() -> None:
    port = Port()
    assert port.chip.receive(b"abc") == 1
    assert port.lsr() == IDLE | Lsr.DR | Lsr.OE
    assert port.drain() == b"c"


def test_without_fifos_there_is_room_for_one_byte() -> None:
    port = Port()
    assert port.chip.room == 1
    port.chip.receive(b"a")
    assert port.chip.room == 0


def test_receiving_nothing_changes_nothing() -> None:
    port = Port()
    assert port.chip.receive(b"") == 0
    assert port.lsr() == IDLE


# ---- receiving with the FIFOs on ----


def test_the_fifo_holds_16_bytes_in_order() -> None:
    port = Port(fifos=True)
    data = bytes(range(FIFO_SIZE))
    assert port.chip.room == FIFO_SIZE
    assert port.chip.receive(data) == FIFO_SIZE
    assert port.chip.room == 0
    assert port.drain() == data


def test_a_17th_byte_is_an_overrun_and_the_fifo_stays_as_it_is() -> None:
    port = Port(fifos=True)
    assert port.chip.receive(b"0123456789abcdef!?") == FIFO_SIZE
    assert port.lsr() == IDLE | Lsr.DR | Lsr.OE
    assert port.drain() == b"0123456789abcdef"


def test_an_overrun_is_no_error_in_the_fifo() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"x" * (FIFO_SIZE + 1))
    assert Lsr.FIFOE not in port.lsr()


def test_a_read_makes_room_for_another_byte() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"0123456789abcdef")
    port.read(Offset.RBR)
    assert port.chip.receive(b"!") == 1
    assert port.drain() == b"123456789abcdef!"


def test_reading_an_empty_fifo_gives_0_and_nothing_else_happens() -> None:
    port = Port(fifos=True)
    assert port.read(Offset.RBR) == 0
    assert port.lsr() == IDLE


def test_reading_lsr_clears_the_overrun() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"x" * 17)
    assert Lsr.OE in port.lsr()
    assert Lsr.OE not in port.lsr()


# ---- FCR ----


@pytest.mark.parametrize("before", [0, Fcr.ENABLE.value])
def test_switching_the_fifos_on_or_off_empties_them(before: int) -> None:
    port = Port()
    port.write(Offset.FCR, before)
    port.chip.receive(b"x")
    port.write(Offset.FCR, before ^ Fcr.ENABLE.value)
    assert port.lsr() == IDLE


def test_writing_fcr_again_with_enable_keeps_what_is_in_the_fifo() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"abc")
    port.write(Offset.FCR, (Fcr.ENABLE | Fcr.TRIGGER_HIGH | Fcr.CLEAR_TX | Fcr.DMA).value)
    assert port.drain() == b"abc"


def test_clear_rx_empties_the_receiver_fifo() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"abc")
    port.write(Offset.FCR, (Fcr.ENABLE | Fcr.CLEAR_RX).value)
    assert port.lsr() == IDLE
    assert port.chip.room == FIFO_SIZE


def test_clear_rx_takes_the_errors_with_the_bytes_but_not_the_overrun() -> None:
    port = Port(fifos=True)
    port.chip.receive_break()
    port.chip.receive(b"x" * FIFO_SIZE)
    port.write(Offset.FCR, (Fcr.ENABLE | Fcr.CLEAR_RX).value)
    assert port.lsr() == IDLE | Lsr.OE


def test_without_enable_the_other_bits_of_fcr_are_not_taken() -> None:
    port = Port()
    port.chip.receive(b"a")
    port.write(Offset.FCR, (Fcr.CLEAR_RX | Fcr.TRIGGER_HIGH | Fcr.TRIGGER_LOW).value)
    assert port.drain() == b"a"
    assert port.read(Offset.IIR) == Iir.NONE.value


def test_iir_tells_whether_the_fifos_are_on_by_which_drivers_know_a_16550a() -> None:
    port = Port()
    assert port.read(Offset.IIR) & FIFOS_ON == 0
    port.write(Offset.FCR, Fcr.ENABLE.value)
    assert port.read(Offset.IIR) & FIFOS_ON == FIFOS_ON
    port.write(Offset.FCR, 0)
    assert port.read(Offset.IIR) & FIFOS_ON == 0


# ---- breaks, and errors that travel with their bytes ----


def test_a_break_arrives_as_a_zero_byte_with_bi_and_fe() -> None:
    port = Port()
    port.chip.receive_break()
    assert port.lsr() == IDLE | Lsr.DR | Lsr.BI | Lsr.FE
    assert port.drain() == b"\x00"


def test_reading_lsr_clears_break_and_framing_error_but_leaves_the_byte() -> None:
    port = Port()
    port.chip.receive_break()
    port.lsr()
    assert port.lsr() == IDLE | Lsr.DR


def test_a_break_further_down_in_the_fifo_shows_as_fifoe_only_until_it_is_on_top() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"a")
    port.chip.receive_break()
    assert port.lsr() == IDLE | Lsr.DR | Lsr.FIFOE
    assert port.lsr() == IDLE | Lsr.DR | Lsr.FIFOE, "reading LSR does not clear an error it has not shown"
    assert port.read(Offset.RBR) == ord("a")
    assert port.lsr() == IDLE | Lsr.DR | Lsr.FIFOE | Lsr.BI | Lsr.FE
    assert port.lsr() == IDLE | Lsr.DR


def test_fifoe_stays_while_a_later_byte_has_an_error() -> None:
    port = Port(fifos=True)
    port.chip.receive_break()
    port.chip.receive_break()
    assert port.lsr() == IDLE | Lsr.DR | Lsr.FIFOE | Lsr.BI | Lsr.FE
    assert port.lsr() == IDLE | Lsr.DR | Lsr.FIFOE
    port.read(Offset.RBR)
    assert port.lsr() == IDLE | Lsr.DR | Lsr.FIFOE | Lsr.BI | Lsr.FE


def test_without_fifos_fifoe_is_always_0() -> None:
    port = Port()
    port.chip.receive_break()
    assert Lsr.FIFOE not in port.lsr()


def test_an_error_is_not_lost_when_rbr_is_read_before_lsr() -> None:
    port = Port()
    port.chip.receive_break()
    port.read(Offset.RBR)
    assert port.lsr() == IDLE | Lsr.BI | Lsr.FE


def test_a_break_that_overruns_a_full_fifo_is_lost() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"x" * FIFO_SIZE)
    port.chip.receive_break()
    assert port.lsr() == IDLE | Lsr.DR | Lsr.OE
    assert port.drain() == b"x" * FIFO_SIZE


# ---- modem lines ----


@pytest.mark.parametrize(("line", "delta"), [(Msr.CTS, Msr.DCTS), (Msr.DSR, Msr.DDSR), (Msr.DCD, Msr.DDCD)])
def test_a_line_that_changes_sets_its_delta_until_msr_is_read(line: Msr, delta: Msr) -> None:
    port = Port()
    connected = port.msr()
    port.chip.set_modem_lines(connected & ~line)
    assert port.msr() == connected & ~line | delta
    assert port.msr() == connected & ~line
    port.chip.set_modem_lines(connected)
    assert port.msr() == connected | delta


def test_ri_counts_when_it_goes_off_not_when_it_goes_on() -> None:
    port = Port()
    port.chip.set_modem_lines(Msr.RI)
    port.msr()
    port.chip.set_modem_lines(Msr(0))
    assert port.msr() == Msr.TERI
    port.chip.set_modem_lines(Msr.RI)
    assert port.msr() == Msr.RI


def test_a_delta_stays_when_the_line_changes_back() -> None:
    port = Port()
    connected = port.msr()
    port.chip.set_modem_lines(connected & ~Msr.CTS)
    port.chip.set_modem_lines(connected)
    assert port.msr() == connected | Msr.DCTS


def test_the_other_end_cannot_set_deltas_by_itself() -> None:
    port = Port()
    port.chip.set_modem_lines(port.msr() | Msr.TERI | Msr.DCTS)
    assert port.msr() == Msr.CTS | Msr.DSR | Msr.DCD


# ---- loopback ----


@pytest.mark.parametrize("fifos", [False, True])
def test_in_loopback_what_is_sent_is_received_and_nothing_is_output(fifos: bool) -> None:
    port = Port(fifos=fifos, loop=True)
    port.write(Offset.THR, ord("x"))
    assert port.sent == b""
    assert port.drain() == b"x"


def test_in_loopback_the_17th_byte_sent_is_an_overrun() -> None:
    port = Port(fifos=True, loop=True)
    for byte in b"0123456789abcdef!":
        port.write(Offset.THR, byte)
    assert Lsr.OE in port.lsr()
    assert port.drain() == b"0123456789abcdef"


def test_in_loopback_the_line_is_cut_off() -> None:
    port = Port(fifos=True, loop=True)
    assert port.chip.room == 0
    assert port.chip.receive(b"abc") == 0
    port.chip.receive_break()
    assert port.lsr() == IDLE


@pytest.mark.parametrize(
    ("output", "status"), [(Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RI), (Mcr.OUT2, Msr.DCD)]
)
def test_in_loopback_each_modem_output_is_wired_to_an_input(output: Mcr, status: Msr) -> None:
    port = Port(loop=True)
    assert port.msr() == Msr(0)
    port.write(Offset.MCR, (Mcr.LOOP | output).value)
    delta = {Msr.CTS: Msr.DCTS, Msr.DSR: Msr.DDSR, Msr.RI: Msr(0), Msr.DCD: Msr.DDCD}[status]
    assert port.msr() == status | delta


def test_in_loopback_out1_going_off_is_the_trailing_edge_of_ri() -> None:
    port = Port(loop=True)
    port.write(Offset.MCR, (Mcr.LOOP | Mcr.OUT1).value)
    port.write(Offset.MCR, Mcr.LOOP.value)
    assert port.msr() == Msr.TERI


def test_the_loopback_test_by_which_linux_finds_a_uart_is_passed() -> None:
    port = Port()
    port.write(Offset.MCR, (Mcr.LOOP | Mcr.OUT2 | Mcr.RTS).value)
    assert port.read(Offset.MSR) & 0xF0 == (Msr.DCD | Msr.CTS).value


def test_the_other_ends_lines_come_back_after_loopback_as_they_are_by_then() -> None:
    port = Port(loop=True)
    port.chip.set_modem_lines(Msr.RI)
    assert port.msr() == Msr(0)
    port.write(Offset.MCR, 0)
    assert port.msr() == Msr.RI


def test_in_loopback_a_break_is_received_once_however_long_it_is_held() -> None:
    port = Port(fifos=True, loop=True)
    port.write(Offset.LCR, Lcr.BREAK.value)
    port.write(Offset.LCR, (Lcr.BREAK | Lcr.WLS0).value)
    assert port.lsr() == IDLE | Lsr.DR | Lsr.FIFOE | Lsr.BI | Lsr.FE
    assert port.drain() == b"\x00"


# ---- interrupts: identification and priority ----


def test_a_disabled_interrupt_is_not_shown() -> None:
    port = Port(fifos=True)
    port.chip.receive(b"x" * 17)
    port.write(Offset.THR, 0)
    port.chip.set_modem_lines(Msr(0))
    assert port.iir() is Iir.NONE


def test_enabling_the_thr_interrupt_while_thr_is_empty_requests_one_at_once() -> None:
    port = Port()
    port.enable(Ier.ETBEI)
    assert port.iir() is Iir.THR_EMPTY


def test_reading_iir_clears_the_thr_interrupt_until_the_next_byte_has_left() -> None:
    port = Port()
    port.enable(Ier.ETBEI)
    assert port.iir() is Iir.THR_EMPTY
    assert port.iir() is Iir.NONE
    port.write(Offset.THR, ord("x"))
    assert port.iir() is Iir.THR_EMPTY


def test_writing_ier_again_with_etbei_on_requests_nothing_new() -> None:
    port = Port()
    port.enable(Ier.ETBEI)
    port.iir()
    port.enable(Ier.ETBEI | Ier.ERBFI)
    assert port.iir() is Iir.NONE


def test_reading_iir_leaves_the_thr_interrupt_when_it_shows_another() -> None:
    port = Port()
    port.enable(Ier.ETBEI | Ier.ERBFI)
    port.chip.receive(b"x")
    assert port.iir() is Iir.RECEIVED_DATA
    port.read(Offset.RBR)
    assert port.iir() is Iir.THR_EMPTY


def test_reading_iir_does_not_clear_received_data() -> None:
    port = Port()
    port.enable(Ier.ERBFI)
    port.chip.receive(b"x")
    assert (port.iir(), port.iir()) == (Iir.RECEIVED_DATA, Iir.RECEIVED_DATA)
    port.read(Offset.RBR)
    assert port.iir() is Iir.NONE


@pytest.mark.parametrize(("bits", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_received_data_is_shown_from_the_trigger_level_on_and_the_time_out_below_it(bits: int, level: int) -> None:
    port = Port()
    port.write(Offset.FCR, Fcr.ENABLE.value | bits << 6)
    port.enable(Ier.ERBFI)
    assert port.iir() is Iir.NONE
    for count in range(1, FIFO_SIZE + 1):
        port.chip.receive(b"x")
        assert port.iir() is (Iir.RECEIVED_DATA if count >= level else Iir.CHARACTER_TIMEOUT)


@pytest.mark.parametrize("cause", ["break", "overrun"])
def test_a_line_error_is_shown_until_lsr_is_read(cause: str) -> None:
    port = Port()
    port.enable(Ier.ELSI)
    if cause == "break":
        port.chip.receive_break()
    else:
        port.chip.receive(b"ab")
    assert (port.iir(), port.iir()) == (Iir.LINE_STATUS, Iir.LINE_STATUS)
    port.lsr()
    assert port.iir() is Iir.NONE


def test_an_error_further_down_in_the_fifo_interrupts_once_it_is_on_top() -> None:
    port = Port(fifos=True)
    port.enable(Ier.ELSI)
    port.chip.receive(b"a")
    port.chip.receive_break()
    assert port.iir() is Iir.NONE
    port.read(Offset.RBR)
    assert port.iir() is Iir.LINE_STATUS


def test_a_modem_line_that_changed_is_shown_until_msr_is_read() -> None:
    port = Port()
    port.enable(Ier.EDSSI)
    assert port.iir() is Iir.NONE
    port.chip.set_modem_lines(Msr(0))
    assert (port.iir(), port.iir()) == (Iir.MODEM_STATUS, Iir.MODEM_STATUS)
    port.msr()
    assert port.iir() is Iir.NONE


def test_interrupts_are_shown_highest_priority_first_and_each_is_cleared_in_its_own_way() -> None:
    port = Port(fifos=True)
    port.enable(Ier.ERBFI | Ier.ETBEI | Ier.ELSI | Ier.EDSSI)
    port.chip.set_modem_lines(Msr(0))
    port.chip.receive_break()
    shown = [port.iir()]
    port.lsr()
    shown.append(port.iir())
    port.read(Offset.RBR)
    shown += [port.iir(), port.iir()]
    port.msr()
    shown.append(port.iir())
    assert shown == [Iir.LINE_STATUS, Iir.RECEIVED_DATA, Iir.THR_EMPTY, Iir.MODEM_STATUS, Iir.NONE]


@pytest.mark.parametrize(
    ("interrupt", "code"),
    [
        (Iir.LINE_STATUS, 0x06),
        (Iir.RECEIVED_DATA, 0x04),
        (Iir.CHARACTER_TIMEOUT, 0x0C),
        (Iir.THR_EMPTY, 0x02),
        (Iir.MODEM_STATUS, 0x00),
        (Iir.NONE, 0x01),
    ],
)
def test_iir_has_the_data_sheets_codes(interrupt: Iir, code: int) -> None:
    assert interrupt.value == code


def test_looking_at_the_pending_interrupt_from_outside_clears_nothing() -> None:
    port = Port()
    port.enable(Ier.ETBEI)
    assert port.chip.pending_interrupt is Iir.THR_EMPTY
    assert port.chip.pending_interrupt is Iir.THR_EMPTY


# ---- the interrupt line ----


def test_the_interrupt_line_follows_the_pending_interrupt_and_is_told_of_changes_only() -> None:
    port = Port(fifos=True)
    port.write(Offset.MCR, Mcr.OUT2.value)
    port.enable(Ier.ERBFI)
    port.chip.receive(b"a")
    port.chip.receive(b"b")
    assert port.levels == [True]
    port.read(Offset.RBR)
    assert port.levels == [True]
    port.read(Offset.RBR)
    assert port.levels == [True, False]


def test_out2_is_the_gate_of_the_interrupt_line() -> None:
    port = Port()
    port.enable(Ier.ETBEI)
    assert port.levels == []
    port.write(Offset.MCR, Mcr.OUT2.value)
    port.write(Offset.MCR, 0)
    assert port.levels == [True, False]


def test_loopback_closes_the_gate_of_the_interrupt_line() -> None:
    port = Port()
    port.enable(Ier.ETBEI)
    port.write(Offset.MCR, (Mcr.OUT2 | Mcr.LOOP).value)
    assert port.levels == []


def test_a_break_and_a_modem_line_move_the_interrupt_line_too() -> None:
    port = Port()
    port.write(Offset.MCR, Mcr.OUT2.value)
    port.enable(Ier.ELSI | Ier.EDSSI)
    port.chip.receive_break()
    port.lsr()
    port.chip.set_modem_lines(Msr(0))
    port.msr()
    assert port.levels == [True, False, True, False]


# ---- a source of input ----


class Source:
    """Input that is there from the start; keeps how many bytes it was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[int] = []

    def __call__(self, limit: int) -> bytes:
        self.asked.append(limit)
        taken, self.data = self.data[:limit], self.data[limit:]
        return taken


@pytest.mark.parametrize("offset", [Offset.LSR, Offset.RBR, Offset.IIR])
def test_the_source_is_asked_when_the_guest_looks_for_a_byte(offset: Offset) -> None:
    source = Source(b"")
    chip = Serial(print, source)
    assert source.asked == []
    chip.read(offset, 1)
    assert source.asked == [1]


@pytest.mark.parametrize("offset", [Offset.IER, Offset.LCR, Offset.MCR, Offset.MSR, Offset.SCR])
def test_the_source_is_not_asked_by_other_reads(offset: Offset) -> None:
    source = Source(b"abc")
    Serial(print, source).read(offset, 1)
    assert source.asked == []


def test_the_source_is_not_asked_while_a_byte_is_waiting_nor_in_loopback() -> None:
    source = Source(b"abc")
    chip = Serial(print, source)
    chip.receive(b"x")
    chip.read(Offset.LSR, 1)
    chip.write(Offset.FCR, bytes((Fcr.ENABLE.value,)))  # this empties it
    chip.write(Offset.MCR, bytes((Mcr.LOOP.value,)))
    chip.read(Offset.LSR, 1)
    assert source.asked == []


@pytest.mark.parametrize("fifos", [False, True])
def test_all_input_arrives_in_order_without_overrun(fifos: bool) -> None:
    source = Source(bytes(range(100)))
    chip = Serial(print, source)
    chip.write(Offset.FCR, bytes((fifos,)))
    received = b""
    while (status := Lsr(chip.read(Offset.LSR, 1)[0])) & Lsr.DR:
        assert Lsr.OE not in status
        received += chip.read(Offset.RBR, 1)
    assert received == bytes(range(100))
    assert set(source.asked) == {16 if fifos else 1}


def test_a_source_that_gives_more_than_it_was_asked_for_cannot_overrun_the_fifo() -> None:
    chip = Serial(print, lambda limit: b"x" * 1000)
    chip.write(Offset.FCR, bytes((Fcr.ENABLE.value,)))
    assert Lsr.OE not in Lsr(chip.read(Offset.LSR, 1)[0])
    assert chip.room == 0


def test_polling_brings_input_in_and_raises_the_interrupt_of_a_guest_that_does_not_look() -> None:
    keyboard = Source(b"")
    port = Port(input=keyboard)
    port.write(Offset.IER, Ier.ERBFI.value)
    port.write(Offset.MCR, Mcr.OUT2.value)
    keyboard.data += b"ab"
    assert port.levels == []
    port.chip.poll()
    assert port.levels == [True]


def test_who_waits_for_the_interrupt_gets_what_is_there_already_and_is_told_of() -> None:
    port = Port(input=Source(b"ab"))
    listening: list[str] = []
    port.chip.on_listen = lambda: listening.append("now")
    port.write(Offset.MCR, Mcr.OUT2.value)
    port.write(Offset.IER, Ier.ETBEI.value)
    assert listening == []
    port.write(Offset.IER, Ier.ERBFI.value)
    port.write(Offset.IER, Ier.ERBFI.value)
    assert listening == ["now"]
    assert port.levels[-1] is True


def test_a_handler_that_reads_one_byte_for_each_interrupt_gets_them_all() -> None:
    port = Port(input=Source(b"abc"))
    port.write(Offset.MCR, Mcr.OUT2.value)
    port.write(Offset.IER, Ier.ERBFI.value)
    received = bytearray()
    while port.levels[-1]:
        received.append(port.read(Offset.RBR))
    assert received == b"abc"
    assert port.levels == [True, False] * 3, "an edge for each, which is all that an 8259A sees"


def test_input_that_came_during_loopback_arrives_after_it() -> None:
    port = Port(input=Source(b"a"))
    port.write(Offset.MCR, (Mcr.OUT2 | Mcr.LOOP).value)
    port.write(Offset.IER, Ier.ERBFI.value)
    assert port.levels == []
    port.write(Offset.MCR, Mcr.OUT2.value)
    assert port.levels == [True]


def test_polling_without_a_source_does_nothing() -> None:
    port = Port()
    port.chip.poll()
    assert port.lsr() == IDLE


# ---- on a bus ----


def test_a_word_written_at_thr_is_a_byte_sent_and_ier_set() -> None:
    port = Port()
    bus = DeviceBench(pio={serial.COM1: (port.chip, serial.REGISTERS)}).pio
    bus.write(serial.COM1, b"x\x05")
    assert port.sent == b"x"
    assert bus.read(serial.COM1 + Offset.IER, 1) == b"\x05"


def test_the_same_registers_answer_on_two_buses() -> None:
    place = (Port().chip, serial.REGISTERS)
    bench = DeviceBench(pio={serial.COM1: place}, mmio={0xD000_0000: place})
    bench.pio.write(serial.COM1 + Offset.SCR, b"\x5a")
    assert bench.mmio.read(0xD000_0000, 8) == b"\x00\x00\x01\x00\x00\x60\xb0\x5a"
