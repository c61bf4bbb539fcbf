"""Interrupt controllers and timers inside the kernel: lines, routes, messages, and the state they have."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pykvm.errors import ConfigurationError, KvmError
from pykvm.kvm import (
    Cap,
    ClockData,
    Intr,
    IoOut,
    IrqchipId,
    IrqchipRoute,
    Kvm,
    MpStateValue,
    MsiRoute,
    Vm,
)

if TYPE_CHECKING:
    from tests.conftest import RealModeGuest

HANDLER = 0x9000
VECTOR = 0x20  # of the first PIC's line 0
READY = IoOut(0x80, 1, 1, b"\x00")
DONE = IoOut(0x82, 1, 1, b"\x20")
SPURIOUS_VECTOR = 0xF0  # a local APIC's register, and the bit that switches it on (SDM volume 3, section 11.9)
APIC_ENABLE = 1 << 8
ANY_APIC_0 = 0xFEE0_0000


def out(port: int, value: int) -> bytes:
    return bytes([0xB0, value, 0xE6, port])  # mov $value, %al; out %al, $port


# ICW1 to ICW4 of both 8259A, every line unmasked
INIT_PIC = b"".join(
    (
        *(out(0x20, 0x11), out(0x21, VECTOR), out(0x21, 4), out(0x21, 1), out(0x21, 0)),
        *(out(0xA0, 0x11), out(0xA1, VECTOR + 8), out(0xA1, 2), out(0xA1, 1), out(0xA1, 0)),
    )
)
EOI = out(0xA0, 0x20) + out(0x20, 0x20)
IRET = b"\xcf"
# xor %ax, %ax; out %al, $0x80; sti; hlt; jmp to the hlt
WAIT = bytes.fromhex("31 c0 e6 80 fb f4 eb fd")


@pytest.fixture
def vm(vm: Vm) -> Vm:
    """A VM with interrupt controllers in the kernel."""
    vm.create_irqchip()
    return vm


@pytest.fixture
def bare_vm(kvm: Kvm) -> Iterator[Vm]:
    """A VM without."""
    with kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def ready(guest: RealModeGuest, *lines: int, end: bytes = EOI) -> None:
    """Have the guest program its PICs and wait; line n's handler says n at port 0x81 and 0x20 at port 0x82."""
    for line in lines:
        handler = HANDLER + 0x40 * line
        guest.set_vector(VECTOR + line, handler)
        guest.write(handler, out(0x81, line) + end + out(0x82, 0x20) + IRET)
    guest.load(INIT_PIC, WAIT)
    assert run(guest) == READY


def run(guest: RealModeGuest) -> object:
    while (exit := guest.vcpu.run()) == Intr():
        pass
    return exit


def handled(line: int) -> IoOut:
    return IoOut(0x81, 1, 1, bytes([line]))


def pulse(vm: Vm, gsi: int) -> None:
    vm.irq_line(gsi, True)
    vm.irq_line(gsi, False)


# ---- lines ----


@pytest.mark.parametrize("line", [1, 7, 10])
def test_a_raised_line_reaches_the_guests_handler_through_the_pic(bare_guest: RealModeGuest, line: int) -> None:
    ready(bare_guest, line)
    pulse(bare_guest.vm, line)
    assert run(bare_guest) == handled(line)
    assert run(bare_guest) == DONE


def test_a_line_raised_by_another_thread_wakes_a_halted_guest(bare_guest: RealModeGuest) -> None:
    ready(bare_guest, 4)
    for _ in range(100):
        thread = threading.Thread(target=pulse, args=(bare_guest.vm, 4))
        thread.start()
        assert run(bare_guest) == handled(4)
        assert run(bare_guest) == DONE
        thread.join()


def test_lines_may_be_raised_by_many_threads_while_the_guest_runs(bare_guest: RealModeGuest) -> None:
    ready(bare_guest, 3, 4, 5, 6)
    stop = threading.Event()

    def storm(line: int) -> None:
        pulse(bare_guest.vm, line)
        while not stop.is_set():
            pulse(bare_guest.vm, line)

    threads = [threading.Thread(target=storm, args=(line,)) for line in (3, 4, 5, 6)]
    for thread in threads:
        thread.start()
    wanted = {handled(line) for line in (3, 4, 5, 6)}
    while wanted:  # the storm lasts until line 3 came through; what the others raised stays latched in the PIC
        wanted.discard(run(bare_guest))
        if handled(3) not in wanted:
            stop.set()
    for thread in threads:
        thread.join()


def test_an_edge_interrupts_once_however_long_the_line_stays_up(bare_guest: RealModeGuest) -> None:
    ready(bare_guest, 4, 5)
    bare_guest.vm.irq_line(4, True)
    assert [run(bare_guest), run(bare_guest)] == [handled(4), DONE]
    pulse(bare_guest.vm, 5)
    assert [run(bare_guest), run(bare_guest)] == [handled(5), DONE], "not line 4, which comes first, again"


def test_a_level_interrupts_until_the_line_is_lowered(bare_guest: RealModeGuest) -> None:
    ready(bare_guest, 5, 7)
    bare_guest.load(bytes.fromhex("ba d0 04"), bytes.fromhex("b0 20 ee"), WAIT)  # ELCR, port 0x4d0: line 5 by level
    assert run(bare_guest) == READY
    bare_guest.vm.irq_line(5, True)
    for _ in range(3):
        assert [run(bare_guest), run(bare_guest)] == [handled(5), DONE]
    bare_guest.vm.irq_line(5, False)
    pulse(bare_guest.vm, 7)
    assert [run(bare_guest), run(bare_guest)] == [handled(7), DONE]


def test_a_line_without_a_route_is_ignored(bare_guest: RealModeGuest) -> None:
    ready(bare_guest, 1)
    pulse(bare_guest.vm, 3000)
    pulse(bare_guest.vm, 1)
    assert run(bare_guest) == handled(1)


def test_a_line_needs_an_interrupt_controller(bare_vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"KVM_IRQ_LINE\(gsi=1, level=True\): ENXIO: .*call create_irqchip\(\) first"):
        bare_vm.irq_line(1, True)


@pytest.mark.parametrize("gsi", [-1, 1 << 32])
def test_a_line_number_that_does_not_fit_is_refused(vm: Vm, gsi: int) -> None:
    with pytest.raises(ConfigurationError, match=r"KVM_IRQ_LINE: .*fit"):
        vm.irq_line(gsi, True)


# ---- irqfd ----


def test_a_write_to_an_irqfd_is_an_interrupt(bare_guest: RealModeGuest, eventfd: int) -> None:
    ready(bare_guest, 3)
    bare_guest.vm.irqfd(eventfd, 3)
    for _ in range(3):
        os.eventfd_write(eventfd, 1)
        assert [run(bare_guest), run(bare_guest)] == [handled(3), DONE]


def test_a_deassigned_irqfd_interrupts_no_more(bare_guest: RealModeGuest, eventfd: int) -> None:
    ready(bare_guest, 3, 4)
    bare_guest.vm.irqfd(eventfd, 3)
    bare_guest.vm.irqfd(eventfd, 3, deassign=True)
    os.eventfd_write(eventfd, 1)
    pulse(bare_guest.vm, 4)
    assert run(bare_guest) == handled(4)
    assert os.eventfd_read(eventfd) == 1, "nobody took it"


def test_an_irqfd_works_after_its_descriptor_is_closed_here(bare_guest: RealModeGuest, eventfd: int) -> None:
    ready(bare_guest, 3)
    fd = os.dup(eventfd)
    bare_guest.vm.irqfd(fd, 3)
    os.close(fd)
    os.eventfd_write(eventfd, 1)
    assert run(bare_guest) == handled(3)


def test_a_resamplefd_tells_that_the_guest_ended_a_level_interrupt(bare_guest: RealModeGuest, eventfd: int) -> None:
    ready(bare_guest, 5)
    bare_guest.load(bytes.fromhex("ba d0 04"), bytes.fromhex("b0 20 ee"), WAIT)  # ELCR, port 0x4d0: line 5 by level
    assert run(bare_guest) == READY
    resamplefd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    bare_guest.vm.irqfd(eventfd, 5, resamplefd=resamplefd)
    for _ in range(2):  # who still wants the line up writes again
        os.eventfd_write(eventfd, 1)
        assert run(bare_guest) == handled(5)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(resamplefd)
        assert run(bare_guest) == DONE, "after its EOI"
        assert os.eventfd_read(resamplefd) == 1
    os.close(resamplefd)


def test_an_irqfd_bound_twice_is_explained(vm: Vm, eventfd: int) -> None:
    vm.irqfd(eventfd, 3)
    with pytest.raises(KvmError, match=r"KVM_IRQFD\(fd=\d+, gsi=4, .*EBUSY: that eventfd is bound"):
        vm.irqfd(eventfd, 4)


def test_an_irqfd_that_is_no_eventfd_is_explained(vm: Vm) -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    with pytest.raises(KvmError, match="EINVAL: fd or resamplefd is no eventfd"):
        vm.irqfd(null, 3)
    os.close(null)
    with pytest.raises(KvmError, match="EBADF: there is no such file descriptor"):
        vm.irqfd(1 << 20, 3)
    with pytest.raises(ConfigurationError, match=r"KVM_IRQFD: .*fit"):
        vm.irqfd(-1, 3)


# ---- routes and messages ----


def test_a_route_leads_a_line_to_another_pin(bare_guest: RealModeGuest) -> None:
    ready(bare_guest, 3, 6)
    bare_guest.vm.set_gsi_routing(
        [IrqchipRoute(40, IrqchipId.PIC_MASTER, 3), IrqchipRoute(3, IrqchipId.PIC_MASTER, 6)],
    )
    pulse(bare_guest.vm, 40)
    assert [run(bare_guest), run(bare_guest)] == [handled(3), DONE]
    pulse(bare_guest.vm, 3)
    assert [run(bare_guest), run(bare_guest)] == [handled(6), DONE]


def test_an_empty_table_leads_nowhere(bare_guest: RealModeGuest) -> None:
    ready(bare_guest, 3, 4)
    bare_guest.vm.set_gsi_routing([])
    pulse(bare_guest.vm, 3)
    bare_guest.vm.set_gsi_routing([IrqchipRoute(4, IrqchipId.PIC_MASTER, 4)])
    pulse(bare_guest.vm, 4)
    assert run(bare_guest) == handled(4)


def enable_apic(guest: RealModeGuest) -> None:
    lapic = bytearray(guest.vcpu.get_lapic())
    lapic[SPURIOUS_VECTOR : SPURIOUS_VECTOR + 4] = (APIC_ENABLE | 0xFF).to_bytes(4, "little")
    guest.vcpu.set_lapic(bytes(lapic))


def ready_for_messages(guest: RealModeGuest) -> None:
    enable_apic(guest)
    guest.set_vector(0x41, HANDLER)
    guest.write(HANDLER, out(0x81, 0x41) + IRET)
    guest.load(WAIT)
    assert run(guest) == READY


def test_a_message_reaches_the_local_apic(bare_guest: RealModeGuest) -> None:
    ready_for_messages(bare_guest)
    assert bare_guest.vm.signal_msi(ANY_APIC_0, 0x41) > 0
    assert run(bare_guest) == handled(0x41)


def test_a_line_may_be_routed_to_a_message(bare_guest: RealModeGuest) -> None:
    ready_for_messages(bare_guest)
    bare_guest.vm.set_gsi_routing([MsiRoute(5, ANY_APIC_0, 0x41)])
    bare_guest.vm.irq_line(5, True)
    assert run(bare_guest) == handled(0x41)


def test_an_irqfd_may_be_routed_to_a_message(bare_guest: RealModeGuest, eventfd: int) -> None:
    ready_for_messages(bare_guest)
    bare_guest.vm.set_gsi_routing([MsiRoute(30, ANY_APIC_0, 0x41)])
    bare_guest.vm.irqfd(eventfd, 30)
    os.eventfd_write(eventfd, 1)
    assert run(bare_guest) == handled(0x41)


def test_an_apic_that_is_switched_off_takes_no_message(bare_guest: RealModeGuest) -> None:
    assert bare_guest.vm.signal_msi(ANY_APIC_0, 0x41) == 0


def test_a_message_before_the_first_vcpu_is_explained(vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"KVM_SIGNAL_MSI\(address=0xfee00000, data=0x41\): EPERM: no local APIC"):
        vm.signal_msi(ANY_APIC_0, 0x41)


def test_a_message_needs_a_local_apic(bare_vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"KVM_SIGNAL_MSI\(.*\): EINVAL: .*create_irqchip"):
        bare_vm.signal_msi(ANY_APIC_0, 0x41)


@pytest.mark.parametrize(("address", "data"), [(1 << 64, 0), (-1, 0), (0, 1 << 32)])
def test_a_message_that_does_not_fit_is_refused(vm: Vm, address: int, data: int) -> None:
    with pytest.raises(ConfigurationError, match=r"KVM_SIGNAL_MSI: .*fit"):
        vm.signal_msi(address, data)
    with pytest.raises(ConfigurationError, match=r"KVM_SET_GSI_ROUTING: .*fit"):
        vm.set_gsi_routing([MsiRoute(1, address, data)])


@pytest.mark.parametrize(
    "routes",
    [
        [IrqchipRoute(3, IrqchipId.IOAPIC, 77)],
        [IrqchipRoute(3, IrqchipId.PIC_MASTER, 1), IrqchipRoute(3, IrqchipId.PIC_MASTER, 2)],
        [MsiRoute(1 << 20, ANY_APIC_0, 0x41)],
    ],
)
def test_a_table_that_cannot_be_is_explained(vm: Vm, routes: list[IrqchipRoute | MsiRoute]) -> None:
    with pytest.raises(KvmError, match=r"KVM_SET_GSI_ROUTING\(entries=.*\): EINVAL: .*a pin that it does not have"):
        vm.set_gsi_routing(routes)


# ---- making them ----


def test_a_second_irqchip_is_explained(vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"KVM_CREATE_IRQCHIP\(\): EEXIST: this VM has interrupt controllers .* already"):
        vm.create_irqchip()


def test_an_irqchip_after_the_first_vcpu_is_explained(bare_vm: Vm) -> None:
    with bare_vm.create_vcpu(), pytest.raises(KvmError, match="EINVAL: only before the first vCPU"):
        bare_vm.create_irqchip()


def test_an_interrupt_beside_the_irqchip_is_explained(bare_guest: RealModeGuest) -> None:
    with pytest.raises(KvmError, match=r"KVM_INTERRUPT\(irq=32\): ENXIO: the interrupt controllers are in the kernel"):
        bare_guest.vcpu.interrupt(0x20)


def test_a_second_interrupt_beside_a_split_irqchip_is_explained(bare_vm: Vm) -> None:
    bare_vm.enable_cap(Cap.SPLIT_IRQCHIP, [24])
    with bare_vm.create_vcpu() as vcpu:
        vcpu.interrupt(0x20)
        with pytest.raises(KvmError, match="EEXIST: an interrupt is queued already"):
            vcpu.interrupt(0x21)


def test_a_split_irqchip_has_local_apics_alone(bare_vm: Vm) -> None:
    bare_vm.enable_cap(Cap.SPLIT_IRQCHIP, [24])
    with bare_vm.create_vcpu() as vcpu:
        assert len(vcpu.get_lapic()) == 1024
        with pytest.raises(KvmError, match="ENXIO"):
            bare_vm.get_irqchip(IrqchipId.PIC_MASTER)
        with pytest.raises(KvmError, match=r"EINVAL: .*a resamplefd needs the full one"):
            bare_vm.irqfd(0, 1, resamplefd=0)


def test_only_the_boot_cpu_is_runnable_at_first(bare_vm: Vm) -> None:
    bare_vm.create_irqchip()
    bare_vm.set_boot_cpu_id(1)
    with bare_vm.create_vcpu(0) as first, bare_vm.create_vcpu(1) as second:
        assert first.get_mp_state().mp_state == MpStateValue.UNINITIALIZED
        assert second.get_mp_state().mp_state == MpStateValue.RUNNABLE
        with pytest.raises(KvmError, match=r"KVM_SET_BOOT_CPU_ID\(id=0\): EBUSY: only before the first vCPU"):
            bare_vm.set_boot_cpu_id(0)


# ---- state ----


@pytest.mark.parametrize("chip", IrqchipId)
def test_a_controllers_state_survives_a_round_trip(bare_guest: RealModeGuest, chip: IrqchipId) -> None:
    ready(bare_guest)
    state = bare_guest.vm.get_irqchip(chip)
    assert len(state) == 512
    bare_guest.vm.set_irqchip(chip, state)
    assert bare_guest.vm.get_irqchip(chip) == state


def test_a_controllers_state_holds_what_the_guest_programmed(bare_guest: RealModeGuest) -> None:
    before = bare_guest.vm.get_irqchip(IrqchipId.PIC_MASTER)
    ready(bare_guest, 3)
    after = bare_guest.vm.get_irqchip(IrqchipId.PIC_MASTER)
    assert after != before
    bare_guest.vm.set_irqchip(IrqchipId.PIC_MASTER, before)
    bare_guest.vm.set_irqchip(IrqchipId.PIC_MASTER, after)
    pulse(bare_guest.vm, 3)
    assert run(bare_guest) == handled(3)


def test_a_controller_that_does_not_exist_is_explained(vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"EINVAL: 7 is none of the interrupt controllers: 0 \(PIC_MASTER\), 1"):
        vm.get_irqchip(7)  # type: ignore[arg-type]


def test_states_of_the_wrong_length_are_refused(bare_guest: RealModeGuest) -> None:
    with pytest.raises(ConfigurationError, match="an interrupt controller's state has 512 bytes, not 3"):
        bare_guest.vm.set_irqchip(IrqchipId.IOAPIC, b"abc")
    with pytest.raises(ConfigurationError, match="the timer's state has 112 bytes, not 0"):
        bare_guest.vm.set_pit2(b"")
    with pytest.raises(ConfigurationError, match="a local APIC's state has 1024 bytes, not 1023"):
        bare_guest.vcpu.set_lapic(bytes(1023))


def test_a_local_apics_state_survives_a_round_trip(bare_guest: RealModeGuest) -> None:
    enable_apic(bare_guest)
    state = bare_guest.vcpu.get_lapic()
    assert state[SPURIOUS_VECTOR : SPURIOUS_VECTOR + 2] == b"\xff\x01"
    bare_guest.vcpu.set_lapic(state)
    assert bare_guest.vcpu.get_lapic() == state


def test_a_local_apic_that_is_not_in_the_kernel_is_explained(bare_vm: Vm) -> None:
    with bare_vm.create_vcpu() as vcpu:
        for use in (vcpu.get_lapic, lambda: vcpu.set_lapic(bytes(1024))):
            with pytest.raises(KvmError, match=r"KVM_[GS]ET_LAPIC\(\): EINVAL: the kernel has no local APIC"):
                use()


# ---- time ----


def test_the_pit_ticks_on_line_0(bare_guest: RealModeGuest) -> None:
    bare_guest.vm.create_pit2(speaker_dummy=True)
    ready(bare_guest, 0)
    # channel 0, low and high byte, mode 2 (rate generator), about 1000 Hz
    bare_guest.load(out(0x43, 0x34), out(0x40, 0xA9), out(0x40, 0x04), WAIT)
    assert run(bare_guest) == READY
    for _ in range(3):
        assert [run(bare_guest), run(bare_guest)] == [handled(0), DONE]


def test_the_pits_state_survives_a_round_trip(vm: Vm) -> None:
    vm.create_pit2()
    state = vm.get_pit2()
    changed = (0x1234).to_bytes(4, "little") + state[4:]  # channel 0's count
    vm.set_pit2(changed)
    assert vm.get_pit2()[:4] == changed[:4]


def test_a_pit_that_is_not_there_is_explained(bare_vm: Vm) -> None:
    for use in (bare_vm.get_pit2, lambda: bare_vm.set_pit2(bytes(112))):
        with pytest.raises(KvmError, match=r"KVM_[GS]ET_PIT2\(\): ENXIO: this VM has no timer in the kernel"):
            use()
    with pytest.raises(KvmError, match=r"KVM_CREATE_PIT2\(.*\): ENOENT: .*call create_irqchip\(\) first"):
        bare_vm.create_pit2()


def test_a_second_pit_is_explained(vm: Vm) -> None:
    vm.create_pit2()
    with pytest.raises(KvmError, match="EEXIST: this VM has a timer in the kernel already"):
        vm.create_pit2()


def test_the_clock_goes_on_from_what_it_was_set_to(bare_vm: Vm) -> None:
    year = 365 * 24 * 3600 * 10**9
    bare_vm.set_clock(ClockData(year))
    clock = bare_vm.get_clock()
    assert clock.clock >= year
    bare_vm.set_clock(clock)
    assert bare_vm.get_clock().clock >= clock.clock


def test_a_clock_that_does_not_fit_is_refused(bare_vm: Vm) -> None:
    with pytest.raises(ConfigurationError, match=r"KVM_SET_CLOCK: .*fit"):
        bare_vm.set_clock(ClockData(-1))


def test_the_tsc_keeps_the_speed_it_has(bare_guest: RealModeGuest) -> None:
    khz = bare_guest.vcpu.get_tsc_khz()
    assert khz > 0
    bare_guest.vcpu.set_tsc_khz(khz)
    assert bare_guest.vcpu.get_tsc_khz() == khz
