"""pykvm.devices.pic: the 8259A pair, command word by command word, as the data sheet has it."""

from __future__ import annotations

import pytest

from pykvm.devices.pic import CASCADE, IRQS, Icw1, Icw4, Ocw2, Ocw3, Offset, Pic, PicPair
from pykvm.errors import ConfigurationError

MASTER_VECTORS, SLAVE_VECTORS = 0x20, 0x28
SPURIOUS_7, SPURIOUS_15 = 0x27, 0x2F
EDGES, PLAIN = Icw1(0), Icw4(0)  # nothing special asked for


class Pc:
    """The pair with a guest at one end and devices at the other, initialised as PC software does it."""

    def __init__(self, *, icw1: Icw1 = EDGES, icw4: Icw4 = PLAIN, initialised: bool = True) -> None:
        self.outputs: list[bool] = []
        self.pair = PicPair(self.outputs.append)
        self.lines = {irq: self.pair.line(irq) for irq in range(IRQS) if irq != CASCADE}
        if initialised:
            self.initialise(icw1, icw4)

    @property
    def chips(self) -> tuple[tuple[Pic, int, int], ...]:
        return ((self.pair.master, MASTER_VECTORS, 1 << CASCADE), (self.pair.slave, SLAVE_VECTORS, CASCADE))

    def initialise(self, icw1: Icw1 = EDGES, icw4: Icw4 = PLAIN) -> None:
        for chip, vectors, icw3 in self.chips:
            command(chip, (Icw1.INIT | Icw1.IC4 | icw1).value)
            for word in (vectors, icw3, (Icw4.UPM | icw4).value):
                data(chip, word)

    def pulse(self, *irqs: int) -> None:
        for irq in irqs:
            self.lines[irq].set_level(True)
            self.lines[irq].set_level(False)

    def raise_line(self, irq: int) -> None:
        self.lines[irq].set_level(True)

    def lower(self, irq: int) -> None:
        self.lines[irq].set_level(False)

    def take(self) -> int | None:
        """Do what the CPU does: return the vector, or None if INTR is low."""
        return self.pair.acknowledge() if self.pair.output else None

    def eoi(self, irq: int) -> None:
        """End interrupt ``irq`` as PC software does it: at the slave, if it came from there, and at the master."""
        if irq >= 8:
            ocw2(self.pair.slave, Ocw2.EOI)
        ocw2(self.pair.master, Ocw2.EOI)

    def drain(self) -> list[int]:
        """Serve all that is requested, one after the other, and return the IRQs in that order."""
        served = []
        while (vector := self.take()) is not None:
            served.append(vector - MASTER_VECTORS)
            self.eoi(served[-1])
        return served


def command(chip: Pic, value: int) -> None:
    chip.write(Offset.COMMAND, bytes((value,)))


def data(chip: Pic, value: int) -> None:
    chip.write(Offset.DATA, bytes((value,)))


def ocw2(chip: Pic, what: Ocw2, level: int = 0) -> None:
    command(chip, what.value | level)


def ocw3(chip: Pic, what: Ocw3) -> None:
    command(chip, (Ocw3.OCW3 | what).value)


def status(chip: Pic) -> int:
    return chip.read(Offset.COMMAND, 1)[0]


# ---- initialisation: ICW1 to ICW4 ----


def test_a_chip_that_is_not_initialised_never_interrupts() -> None:
    pc = Pc(initialised=False)
    pc.pulse(0, 1, 8)
    assert (pc.outputs, pc.pair.output, pc.pair.master.is_ready) == ([], False, False)


@pytest.mark.parametrize(
    ("icw1", "words"),
    [
        (Icw1.IC4, 3),
        (Icw1(0), 2),
        (Icw1.SNGL | Icw1.IC4, 2),
        (Icw1.SNGL, 1),
    ],
)
def test_icw3_is_expected_unless_single_and_icw4_only_if_icw1_asks_for_it(icw1: Icw1, words: int) -> None:
    chip = Pc(initialised=False).pair.master
    command(chip, (Icw1.INIT | icw1).value)
    for _ in range(words):
        assert not chip.is_ready
        data(chip, 0x21)
    assert chip.is_ready
    data(chip, 0x5A)
    assert chip.imr == 0x5A, "the word after the last ICW is OCW1"


def test_icw2_gives_the_upper_five_bits_of_the_vector() -> None:
    pc = Pc()
    command(pc.pair.master, (Icw1.INIT | Icw1.SNGL).value)
    data(pc.pair.master, 0x77)
    pc.pulse(3)
    assert pc.take() == 0x73


def test_nothing_interrupts_in_the_middle_of_an_initialisation() -> None:
    pc = Pc()
    command(pc.pair.master, (Icw1.INIT | Icw1.IC4).value)
    pc.pulse(1)
    data(pc.pair.master, MASTER_VECTORS)
    data(pc.pair.master, 1 << CASCADE)
    assert pc.take() is None
    data(pc.pair.master, Icw4.UPM.value)
    assert pc.take() == 0x21


def test_icw1_begins_again_in_the_middle_of_an_initialisation() -> None:
    pc = Pc(initialised=False)
    command(pc.pair.master, (Icw1.INIT | Icw1.IC4).value)
    data(pc.pair.master, 0x40)
    pc.initialise()
    pc.pulse(0)
    assert pc.take() == MASTER_VECTORS


def test_icw1_clears_mask_requests_service_and_priorities() -> None:
    pc = Pc()
    master = pc.pair.master
    pc.pulse(4)
    pc.take()
    pc.pulse(6)
    data(master, 0x0F)
    ocw2(master, Ocw2.SET_PRIORITY, 2)
    ocw3(master, Ocw3.RR | Ocw3.RIS)
    ocw3(master, Ocw3.ESMM | Ocw3.SMM)
    pc.initialise()
    assert (master.irr, master.isr, master.imr, status(master)) == (0, 0, 0, 0)
    pc.pulse(7, 0)
    assert pc.drain() == [0, 7]


def test_after_icw1_a_line_that_is_high_must_fall_and_rise_to_request() -> None:
    pc = Pc()
    pc.raise_line(5)
    pc.initialise()
    pc.raise_line(5)
    assert pc.take() is None
    pc.lower(5)
    pc.raise_line(5)
    assert pc.take() == 0x25


def test_icw1_without_icw4_ends_automatic_eoi() -> None:
    pc = Pc(icw4=Icw4.AEOI)
    command(pc.pair.master, (Icw1.INIT | Icw1.SNGL).value)
    data(pc.pair.master, MASTER_VECTORS)
    pc.pulse(1)
    pc.take()
    assert pc.pair.master.isr == 1 << 1


# ---- requests and acknowledgement ----


def test_a_rising_edge_requests_once_however_long_the_line_is_high() -> None:
    pc = Pc()
    pc.raise_line(1)
    pc.raise_line(1)
    assert pc.pair.master.irr == 1 << 1
    assert pc.drain() == [1]
    assert pc.pair.master.irr == 0


def test_an_edge_stays_requested_when_the_line_falls() -> None:
    pc = Pc()
    pc.pulse(1)
    assert (pc.pair.master.irr, pc.take()) == (1 << 1, 0x21)


def test_acknowledging_moves_the_request_from_irr_to_isr_and_lowers_intr() -> None:
    pc = Pc()
    pc.pulse(6)
    assert pc.outputs == [True]
    assert pc.take() == 0x26
    master = pc.pair.master
    assert (master.irr, master.isr, pc.outputs) == (0, 1 << 6, [True, False])


def test_intr_makes_an_edge_for_each_request() -> None:
    pc = Pc(icw4=Icw4.AEOI)
    pc.pulse(1, 3)
    pc.take()
    assert pc.outputs == [True, False, True]


@pytest.mark.parametrize("irq", [irq for irq in range(IRQS) if irq != CASCADE])
def test_each_irq_has_its_vector(irq: int) -> None:
    pc = Pc()
    pc.pulse(irq)
    assert pc.take() == MASTER_VECTORS + irq
    pc.eoi(irq)
    assert (pc.pair.master.isr, pc.pair.slave.isr, pc.pair.output) == (0, 0, False)


# ---- fixed priorities and EOI ----


def test_the_lowest_number_has_the_highest_priority_and_the_slave_comes_between_1_and_3() -> None:
    pc = Pc()
    pc.pulse(*(irq for irq in reversed(range(IRQS)) if irq != CASCADE))
    assert pc.drain() == [0, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7]


def test_what_is_in_service_holds_back_its_own_and_lower_priorities() -> None:
    pc = Pc()
    pc.pulse(3)
    pc.take()
    pc.pulse(3, 4)
    assert pc.take() is None
    pc.pulse(1)
    assert pc.take() == 0x21
    ocw2(pc.pair.master, Ocw2.EOI)
    assert pc.take() is None
    ocw2(pc.pair.master, Ocw2.EOI)
    assert pc.drain() == [3, 4]


def test_a_non_specific_eoi_ends_the_highest_in_service() -> None:
    pc = Pc()
    pc.pulse(5)
    pc.take()
    pc.pulse(2 + 1)
    pc.take()
    ocw2(pc.pair.master, Ocw2.EOI)
    assert pc.pair.master.isr == 1 << 5


def test_a_specific_eoi_ends_the_level_it_names_and_no_other() -> None:
    pc = Pc()
    pc.pulse(5)
    pc.take()
    pc.pulse(3)
    pc.take()
    ocw2(pc.pair.master, Ocw2.SPECIFIC_EOI, 5)
    assert pc.pair.master.isr == 1 << 3
    ocw2(pc.pair.master, Ocw2.SPECIFIC_EOI, 4)
    assert pc.pair.master.isr == 1 << 3


@pytest.mark.parametrize("what", [Ocw2.EOI, Ocw2.ROTATE_ON_EOI, Ocw2.NOTHING])
def test_an_eoi_with_nothing_in_service_and_no_operation_change_nothing(what: Ocw2) -> None:
    pc = Pc()
    ocw2(pc.pair.master, what, 5)
    pc.pulse(7, 0)
    assert pc.drain() == [0, 7]


def test_with_automatic_eoi_nothing_stays_in_service() -> None:
    pc = Pc(icw4=Icw4.AEOI)
    pc.pulse(1, 9)
    assert (pc.take(), pc.take(), pc.take()) == (0x21, 0x29, None)
    assert (pc.pair.master.isr, pc.pair.slave.isr) == (0, 0)


# ---- rotation ----


def test_set_priority_names_the_lowest() -> None:
    pc = Pc()
    ocw2(pc.pair.master, Ocw2.SET_PRIORITY, 4)
    pc.pulse(0, 1, 3, 4, 5, 6, 7)
    assert pc.drain() == [5, 6, 7, 0, 1, 3, 4]


def test_rotate_on_non_specific_eoi_makes_what_was_served_the_lowest() -> None:
    pc = Pc()
    pc.pulse(4, 6)
    assert pc.take() == 0x24
    ocw2(pc.pair.master, Ocw2.ROTATE_ON_EOI)
    pc.pulse(4, 5)
    assert pc.drain() == [5, 6, 4]


def test_rotate_on_specific_eoi_makes_the_named_level_the_lowest() -> None:
    pc = Pc()
    pc.pulse(1)
    pc.take()
    ocw2(pc.pair.master, Ocw2.ROTATE_ON_SPECIFIC_EOI, 1)
    assert pc.pair.master.isr == 0
    pc.pulse(0, 1, 3)
    assert pc.drain() == [3, 0, 1]


def test_rotate_in_automatic_eoi_mode_takes_turns_until_it_is_cleared() -> None:
    pc = Pc(icw4=Icw4.AEOI)
    ocw2(pc.pair.master, Ocw2.SET_ROTATE_IN_AEOI)
    for irq in (0, 1):
        pc.pulse(0, 1)
        assert pc.take() == MASTER_VECTORS + irq
    assert pc.take() == 0x20
    ocw2(pc.pair.master, Ocw2.CLEAR_ROTATE_IN_AEOI)
    pc.pulse(1, 0)
    assert [pc.take(), pc.take()] == [0x21, 0x20], "the priorities stay as they are by then"
    pc.pulse(1, 0)
    assert [pc.take(), pc.take()] == [0x21, 0x20]


# ---- the mask ----


def test_ocw1_masks_and_reads_back() -> None:
    pc = Pc()
    data(pc.pair.master, 0b0000_0010)
    pc.pulse(1)
    assert pc.take() is None
    assert pc.pair.master.irr == 1 << 1, "a masked request waits"
    assert pc.pair.master.read(Offset.DATA, 1) == b"\x02"
    data(pc.pair.master, 0)
    assert pc.take() == 0x21


def test_masking_a_request_takes_intr_back() -> None:
    pc = Pc()
    pc.pulse(1)
    data(pc.pair.master, 0xFF)
    assert pc.outputs == [True, False]


def test_masking_the_cascade_masks_the_slave() -> None:
    pc = Pc()
    data(pc.pair.master, 1 << CASCADE)
    pc.pulse(8)
    assert pc.take() is None
    data(pc.pair.master, 0)
    assert pc.take() == 0x28


# ---- special mask mode ----


def test_in_special_mask_mode_what_is_in_service_and_masked_holds_nothing_back() -> None:
    pc = Pc()
    pc.pulse(3)
    pc.take()
    pc.pulse(6)
    data(pc.pair.master, 1 << 3)
    assert pc.take() is None
    ocw3(pc.pair.master, Ocw3.ESMM | Ocw3.SMM)
    assert pc.take() == 0x26
    ocw2(pc.pair.master, Ocw2.EOI)
    assert pc.pair.master.isr == 1 << 3, "an EOI that names no level does not find what is masked"
    ocw2(pc.pair.master, Ocw2.SPECIFIC_EOI, 3)
    assert pc.pair.master.isr == 0


def test_special_mask_mode_is_left_by_esmm_without_smm_and_kept_without_esmm() -> None:
    pc = Pc()
    ocw3(pc.pair.master, Ocw3.ESMM | Ocw3.SMM)
    ocw3(pc.pair.master, Ocw3(0))
    pc.pulse(3)
    pc.take()
    data(pc.pair.master, 1 << 3)
    pc.pulse(6)
    assert pc.pair.output
    ocw3(pc.pair.master, Ocw3.ESMM)
    assert not pc.pair.output


# ---- reading: IRR, ISR, poll ----


def test_the_command_port_reads_as_irr_or_isr_whichever_was_chosen_last() -> None:
    pc = Pc()
    master = pc.pair.master
    pc.pulse(1)
    pc.take()
    pc.pulse(4)
    assert status(master) == 1 << 4
    ocw3(master, Ocw3.RR | Ocw3.RIS)
    assert (status(master), status(master)) == (1 << 1, 1 << 1)
    ocw3(master, Ocw3.RIS)
    assert status(master) == 1 << 1, "without RR the choice stays"
    ocw3(master, Ocw3.RR)
    assert status(master) == 1 << 4


def test_a_poll_acknowledges_once_and_tells_the_level() -> None:
    pc = Pc()
    master = pc.pair.master
    pc.pulse(5)
    ocw3(master, Ocw3.P)
    assert status(master) == 0x80 | 5
    assert (master.isr, master.irr, pc.pair.output) == (1 << 5, 0, False)
    assert status(master) == 0, "the read after it is IRR again"


def test_a_poll_of_nothing_has_bit_7_clear() -> None:
    pc = Pc()
    ocw3(pc.pair.master, Ocw3.P)
    assert status(pc.pair.master) & 0x80 == 0
    assert pc.pair.master.isr == 0


def test_a_poll_can_be_read_from_the_data_port() -> None:
    pc = Pc()
    pc.pulse(5)
    ocw3(pc.pair.master, Ocw3.P)
    assert pc.pair.master.read(Offset.DATA, 1) == b"\x85"


def test_a_slave_is_polled_after_the_master() -> None:
    pc = Pc()
    pc.pulse(12)
    for chip, word in ((pc.pair.master, 0x82), (pc.pair.slave, 0x84)):
        ocw3(chip, Ocw3.P)
        assert status(chip) == word
    pc.eoi(12)
    assert (pc.pair.output, pc.pair.master.isr, pc.pair.slave.isr) == (False, 0, 0)


def test_a_word_read_from_the_command_port_is_status_and_mask() -> None:
    pc = Pc()
    data(pc.pair.master, 0xAB)
    pc.pulse(3)
    assert pc.pair.master.read(Offset.COMMAND, 2) == b"\x08\xab"


# ---- cascade ----


def test_the_slaves_next_request_comes_after_eoi_at_both() -> None:
    pc = Pc()
    pc.pulse(8, 9)
    assert pc.take() == 0x28
    ocw2(pc.pair.slave, Ocw2.EOI)
    assert pc.take() is None, "the master still has its input 2 in service"
    ocw2(pc.pair.master, Ocw2.EOI)
    assert pc.take() == 0x29


def test_fully_nested_the_master_holds_back_a_higher_request_of_the_slave() -> None:
    pc = Pc()
    pc.pulse(9)
    pc.take()
    pc.pulse(8)
    assert pc.take() is None


def test_special_fully_nested_a_higher_request_of_the_slave_interrupts_a_lower_one() -> None:
    pc = Pc(icw4=Icw4.SFNM)
    pc.pulse(9)
    pc.take()
    pc.pulse(10, 3)
    assert pc.take() is None, "lower ones wait, at the slave and at the master"
    pc.pulse(8)
    assert pc.take() == 0x28
    ocw2(pc.pair.slave, Ocw2.EOI)
    ocw2(pc.pair.slave, Ocw2.EOI)
    assert pc.take() == 0x2A


def test_special_fully_nested_mode_is_for_slaves_only() -> None:
    pc = Pc(icw4=Icw4.SFNM)
    pc.pulse(5)
    pc.take()
    pc.pulse(5)
    assert pc.take() is None


def test_a_master_that_was_not_told_of_the_slave_answers_for_input_2_itself() -> None:
    pc = Pc()
    command(pc.pair.master, (Icw1.INIT | Icw1.SNGL).value)
    data(pc.pair.master, MASTER_VECTORS)
    pc.pulse(8)
    assert pc.take() == 0x22


def test_a_slave_with_a_wrong_number_in_icw3_leaves_the_bus_floating() -> None:
    pc = Pc()
    command(pc.pair.slave, (Icw1.INIT | Icw1.IC4).value)
    for word in (SLAVE_VECTORS, 1 << CASCADE, Icw4.UPM.value):
        data(pc.pair.slave, word)
    pc.pulse(8)
    assert pc.take() == 0xFF


# ---- edges and levels ----


@pytest.mark.parametrize("irq", [5, 11])
def test_a_level_triggered_line_requests_for_as_long_as_it_is_high(irq: int) -> None:
    pc = Pc()
    pc.pair.elcr.write(irq // 8, bytes((1 << irq % 8,)))
    pc.raise_line(irq)
    for _ in range(3):
        assert pc.take() == MASTER_VECTORS + irq
        pc.eoi(irq)
    pc.take()
    pc.lower(irq)
    pc.eoi(irq)
    assert pc.take() is None


def test_elcr_reads_back_without_the_lines_that_are_always_edges() -> None:
    elcr = Pc().pair.elcr
    elcr.write(0, b"\xff\xff")
    assert elcr.read(0, 2) == b"\xf8\xde"
    elcr.write(0, b"\x00")
    assert elcr.read(0, 2) == b"\x00\xde"


def test_elcr_outlives_an_initialisation() -> None:
    pc = Pc()
    pc.pair.elcr.write(0, b"\x20")
    pc.raise_line(5)
    pc.initialise()
    assert pc.take() == 0x25


def test_ltim_makes_all_lines_of_the_chip_level_triggered() -> None:
    pc = Pc(icw1=Icw1.LTIM)
    pc.raise_line(0)
    pc.raise_line(8)
    assert pc.take() == 0x20
    pc.lower(0)
    pc.eoi(0)
    for _ in range(2):
        assert pc.take() == 0x28
        pc.eoi(8)


def test_an_edge_that_waits_is_forgotten_when_its_line_becomes_level_triggered() -> None:
    pc = Pc()
    pc.pulse(5)
    pc.pair.elcr.write(0, b"\x20")
    pc.pair.elcr.write(0, b"\x00")
    assert (pc.pair.output, pc.pair.master.irr) == (False, 0)


# ---- spurious interrupts ----


def test_a_level_that_is_gone_when_the_cpu_asks_gives_spurious_irq_7_without_service() -> None:
    pc = Pc()
    pc.pair.elcr.write(0, b"\x20")
    pc.raise_line(5)
    pc.lower(5)
    assert pc.pair.acknowledge() == SPURIOUS_7
    assert pc.pair.master.isr == 0, "by which software knows it from a real IRQ 7"


def test_a_request_of_the_slave_that_is_gone_gives_spurious_irq_15_with_service_at_the_master_only() -> None:
    pc = Pc()
    pc.pulse(10)
    data(pc.pair.slave, 0xFF)
    assert pc.take() == SPURIOUS_15
    assert (pc.pair.master.isr, pc.pair.slave.isr) == (1 << CASCADE, 0)


def test_a_spurious_interrupt_holds_nothing_back() -> None:
    pc = Pc()
    assert pc.pair.acknowledge() == SPURIOUS_7
    pc.pulse(7)
    assert pc.take() == SPURIOUS_7
    assert pc.pair.master.isr == 1 << 7


# ---- the wires ----


@pytest.mark.parametrize("irq", [CASCADE, -1, IRQS, 255])
def test_there_is_no_line_to_the_cascade_or_beyond_the_last_irq(irq: int) -> None:
    with pytest.raises(ConfigurationError, match=f"IRQ {irq}"):
        Pc().pair.line(irq)


def test_registers_repeat_at_higher_offsets_for_a_chip_has_one_address_line() -> None:
    pc = Pc()
    pc.pair.master.write(3, b"\x55")
    assert pc.pair.master.read(1, 1) == b"\x55"
