"""pykvm.machine.interrupts: who gets which line, and what a line does to KVM or to the chips in user space."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from pykvm.devices import ManualClock
from pykvm.errors import ClosedError, ConfigurationError, KvmError
from pykvm.kvm import Cap, IrqchipId, IrqchipRoute, MsiRoute, Vm
from pykvm.machine.interrupts import (
    Interrupts,
    IrqchipKind,
    IrqfdLine,
    KernelLine,
    make_interrupts,
    to_irqchip,
)

KINDS = tuple(IrqchipKind)
WITH_APIC = (IrqchipKind.KERNEL, IrqchipKind.SPLIT)
IRQ = 5  # which nothing on the mainboard has


class FakeVm:
    """Plays a VM: keeps the calls it gets, and can be told to refuse an irqfd or not to have the split irqchip."""

    def __init__(self, *, refuses_irqfd: bool = False, has_split: bool = True) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.routing: Sequence[IrqchipRoute | MsiRoute] = ()
        self._refuses_irqfd = refuses_irqfd
        self._has_split = has_split

    def create_irqchip(self) -> None:
        self.calls.append(("create_irqchip",))

    def create_pit2(self, *, speaker_dummy: bool = False) -> None:
        self.calls.append(("create_pit2", speaker_dummy))

    def check_extension(self, cap: Cap) -> int:
        assert cap is Cap.SPLIT_IRQCHIP
        return int(self._has_split)

    def enable_cap(self, cap: Cap, arguments: Sequence[int]) -> None:
        self.calls.append(("enable_cap", cap, *arguments))

    def set_gsi_routing(self, entries: Sequence[IrqchipRoute | MsiRoute]) -> None:
        self.calls.append(("set_gsi_routing",))
        self.routing = entries

    def irq_line(self, gsi: int, level: bool) -> None:
        self.calls.append(("irq_line", gsi, level))

    def irqfd(self, fd: int, gsi: int, *, deassign: bool = False) -> None:
        if self._refuses_irqfd:
            raise KvmError("KVM_IRQFD", errno.EINVAL, f"gsi={gsi}")
        self.calls.append(("irqfd", fd, gsi, deassign))

    def signal_msi(self, address: int, data: int) -> int:
        self.calls.append(("signal_msi", address, data))
        return 1

    @property
    def messages(self) -> list[tuple[object, ...]]:
        return [call[1:] for call in self.calls if call[0] == "signal_msi"]


def make(
    kind: IrqchipKind, vm: FakeVm | None = None, on_output: Callable[[bool], None] = lambda level: None
) -> Interrupts:
    return make_interrupts(kind, cast(Vm, vm or FakeVm()), ManualClock(), on_output)


def lines_of(kind: IrqchipKind) -> list[int]:
    return [number for number in range(24 if kind.has_local_apic else 16) if number != 2]


# ---- the arrangements ----


@pytest.mark.parametrize("kind", KINDS)
def test_an_arrangement_goes_by_its_name_or_by_itself(kind: IrqchipKind) -> None:
    assert to_irqchip(kind.value) is kind
    assert to_irqchip(kind) is kind
    assert make(kind).kind is kind


@pytest.mark.parametrize("name", ["", "KERNEL", "apic", "kernel "])
def test_a_name_that_no_arrangement_has_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        to_irqchip(name)
    assert str(raised.value) == f"there is no irqchip {name!r}: choose one of none, user, kernel, split"


@pytest.mark.parametrize(
    ("kind", "chips", "has_apic"),
    [
        (IrqchipKind.NONE, set(), False),
        (IrqchipKind.USER, {"pic", "pit", "source"}, False),
        (IrqchipKind.KERNEL, set(), True),
        (IrqchipKind.SPLIT, {"pic", "pit", "ioapic", "source"}, True),
    ],
)
def test_an_arrangement_has_the_chips_that_are_not_in_the_kernel(
    kind: IrqchipKind, chips: set[str], has_apic: bool
) -> None:
    interrupts = make(kind)
    assert {name for name in ("pic", "pit", "ioapic", "source") if getattr(interrupts, name) is not None} == chips
    assert kind.has_local_apic is has_apic
    assert kind.has_user_pic is ("pic" in chips)


def test_kvm_is_asked_for_what_is_to_be_in_the_kernel_and_for_nothing_else() -> None:
    calls: dict[IrqchipKind, list[tuple[object, ...]]] = {}
    for kind in KINDS:
        vm = FakeVm()
        make(kind, vm)
        calls[kind] = vm.calls
    assert calls[IrqchipKind.NONE] == []
    assert calls[IrqchipKind.USER] == []
    assert calls[IrqchipKind.KERNEL] == [("create_irqchip",), ("create_pit2", True), ("set_gsi_routing",)]
    assert calls[IrqchipKind.SPLIT] == [("enable_cap", Cap.SPLIT_IRQCHIP, 24)]


def test_a_host_without_the_split_irqchip_says_what_to_choose_instead() -> None:
    with pytest.raises(ConfigurationError, match="no split irqchip: choose irqchip kernel"):
        make(IrqchipKind.SPLIT, FakeVm(has_split=False))


# ---- claims ----


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_of_an_arrangement_can_be_had_once(kind: IrqchipKind) -> None:
    interrupts = make(kind)
    taken = interrupts.owners
    assert taken == ({} if kind is IrqchipKind.NONE else {0: "timer"})
    for number in lines_of(kind):
        if number not in taken:
            interrupts.line(number, f"device {number}")
    assert sorted(interrupts.owners) == lines_of(kind)
    with pytest.raises(
        ConfigurationError, match=f"interrupt line {IRQ} belongs to device {IRQ} already; free are none"
    ):
        interrupts.line(IRQ, "one more")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [-1, 2, 24, 1 << 40])
def test_a_line_that_no_arrangement_has_is_refused(kind: IrqchipKind, number: int) -> None:
    interrupts = make(kind)
    before = interrupts.owners
    with pytest.raises(ConfigurationError, match=f"mine: there is no interrupt line {number}") as raised:
        interrupts.line(number, "mine")
    assert f"0 to {23 if kind.has_local_apic else 15}, without 2" in str(raised.value)
    assert interrupts.owners == before


@pytest.mark.parametrize("number", [16, 23])
def test_lines_16_to_23_need_an_io_apic(number: int) -> None:
    for kind in KINDS:
        if kind.has_local_apic:
            make(kind).line(number, "mine")
        else:
            with pytest.raises(ConfigurationError, match=f"there is no interrupt line {number}"):
                make(kind).line(number, "mine")


@pytest.mark.parametrize("kind", KINDS)
def test_the_refusal_of_a_taken_line_names_its_owner_and_the_free_ones(kind: IrqchipKind) -> None:
    interrupts = make(kind)
    interrupts.line(IRQ, "mine")
    with pytest.raises(ConfigurationError, match=f"yours: interrupt line {IRQ} belongs to mine already") as raised:
        interrupts.line(IRQ, "yours")
    free = [number for number in lines_of(kind) if number not in interrupts.owners]
    assert str(raised.value).endswith("free are " + ", ".join(map(str, free)))
    assert interrupts.owners[IRQ] == "mine"


def test_the_owners_are_told_by_a_copy() -> None:
    interrupts = make(IrqchipKind.USER)
    interrupts.owners[IRQ] = "nobody"
    interrupts.line(IRQ, "mine")


# ---- what an arrangement cannot do ----


@pytest.mark.parametrize("kind", [IrqchipKind.NONE, IrqchipKind.USER, IrqchipKind.SPLIT])
def test_only_the_kernels_controllers_take_an_irqfd(kind: IrqchipKind) -> None:
    with pytest.raises(
        ConfigurationError, match=f"irqchip {kind.value} has no way for an irqfd: choose irqchip kernel"
    ):
        make(kind).irqfd(IRQ, "mine")


@pytest.mark.parametrize("kind", [IrqchipKind.NONE, IrqchipKind.USER])
def test_a_message_needs_a_local_apic(kind: IrqchipKind) -> None:
    with pytest.raises(ConfigurationError, match="no way for a message-signalled interrupt: choose irqchip kernel"):
        make(kind).signal_msi(0xFEE0_0000, 0x50)


@pytest.mark.parametrize("kind", WITH_APIC)
def test_a_message_goes_to_kvm_as_it_is(kind: IrqchipKind) -> None:
    vm = FakeVm()
    make(kind, vm).signal_msi(0xFEE0_1000, 0x50)
    assert vm.messages == [(0xFEE0_1000, 0x50)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_eoi_of_a_vector_that_nobody_sent_changes_nothing(kind: IrqchipKind) -> None:
    vm = FakeVm()
    make(kind, vm).eoi(0x50)
    assert vm.messages == []


# ---- lines into the kernel ----


def test_a_kernel_line_costs_an_ioctl_only_when_its_level_changes() -> None:
    vm = FakeVm()
    line = KernelLine(cast(Vm, vm), IRQ)
    for level in (False, True, True, False, False, True):
        line.set_level(level)
    assert vm.calls == [("irq_line", IRQ, level) for level in (True, False, True)]


def test_a_line_of_the_kernels_controllers_is_a_kernel_line() -> None:
    vm = FakeVm()
    line = make(IrqchipKind.KERNEL, vm).line(20, "mine")
    line.set_level(True)
    assert vm.calls[-1] == ("irq_line", 20, True)


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_an_irqfd_line_writes_to_its_eventfd_when_it_goes_high() -> None:
    vm = FakeVm()
    with closing(IrqfdLine(cast(Vm, vm), IRQ)) as line:
        assert vm.calls == [("irqfd", line.fd, IRQ, False)]
        line.set_level(False)
        assert not readable(line.fd)
        for level in (True, True, False, True, False):
            line.set_level(level)
        assert os.eventfd_read(line.fd) == 2
        assert not os.get_inheritable(line.fd)


def test_an_irqfd_line_takes_its_eventfd_off_the_gsi_once() -> None:
    vm = FakeVm()
    with IrqfdLine(cast(Vm, vm), IRQ) as line:
        fd = line.fd
    line.close()
    assert vm.calls == [("irqfd", fd, IRQ, False), ("irqfd", fd, IRQ, True)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_irqfd_line_that_is_closed_says_so() -> None:
    line = IrqfdLine(cast(Vm, FakeVm()), IRQ)
    line.close()
    for level in (True, False):
        with pytest.raises(ClosedError, match=f"interrupt line {IRQ} is closed"):
            line.set_level(level)


def test_an_irqfd_that_kvm_refuses_leaves_no_descriptor_behind() -> None:
    before = descriptors()
    with pytest.raises(KvmError, match="KVM_IRQFD"):
        IrqfdLine(cast(Vm, FakeVm(refuses_irqfd=True)), IRQ)
    assert descriptors() == before


def test_closing_the_interrupts_closes_their_irqfds() -> None:
    vm = FakeVm()
    interrupts = make(IrqchipKind.KERNEL, vm)
    lines = [interrupts.irqfd(gsi, "mine") for gsi in (IRQ, 20)]
    lines[0].close()
    interrupts.close()
    interrupts.close()
    assert [line.fd for line in lines] == [-1, -1]
    assert sorted(call[2] for call in vm.calls if call[0] == "irqfd" and call[3]) == [IRQ, 20]  # type: ignore[type-var]
    assert interrupts.owners == {0: "timer", IRQ: "mine", 20: "mine"}


# ---- the routing tables ----


def test_in_the_kernel_each_isa_irq_goes_to_an_8259a_and_to_the_io_apic() -> None:
    vm = FakeVm()
    make(IrqchipKind.KERNEL, vm)
    routes = [route for route in vm.routing if isinstance(route, IrqchipRoute)]
    assert len(routes) == len(vm.routing)
    pic = {route.gsi: (route.irqchip, route.pin) for route in routes if route.irqchip is not IrqchipId.IOAPIC}
    io_apic = {route.gsi: route.pin for route in routes if route.irqchip is IrqchipId.IOAPIC}
    assert pic == {
        **{gsi: (IrqchipId.PIC_MASTER, gsi) for gsi in (0, 1, 3, 4, 5, 6, 7)},
        **{gsi: (IrqchipId.PIC_SLAVE, gsi - 8) for gsi in range(8, 16)},
    }
    assert io_apic == {0: 2, **{gsi: gsi for gsi in range(1, 24) if gsi != 2}}


IOREGSEL, IOWIN = 0x00, 0x10
LEVEL = 1 << 15
MASKED = 1 << 16


def program(interrupts: Interrupts, pin: int, value: int) -> None:
    assert interrupts.ioapic is not None
    interrupts.ioapic.write(IOREGSEL, bytes([0x10 + 2 * pin]))
    interrupts.ioapic.write(IOWIN, value.to_bytes(4, "little"))


def test_split_the_routing_table_is_what_the_guest_has_unmasked_in_the_io_apic() -> None:
    vm = FakeVm()
    interrupts = make(IrqchipKind.SPLIT, vm)
    program(interrupts, 20, 0x50 | LEVEL)
    program(interrupts, 4, 0x34)
    assert [(route.gsi, route.data & 0xFF) for route in vm.routing if isinstance(route, MsiRoute)] == [
        (4, 0x34),
        (20, 0x50),
    ]
    program(interrupts, 20, 0x50 | LEVEL | MASKED)
    assert [route.gsi for route in vm.routing] == [4]


def test_split_a_level_is_sent_again_at_its_eoi_while_it_stays() -> None:
    vm = FakeVm()
    interrupts = make(IrqchipKind.SPLIT, vm)
    program(interrupts, 20, 0x50 | LEVEL)
    line = interrupts.line(20, "mine")
    line.set_level(True)
    interrupts.eoi(0x51)
    assert len(vm.messages) == 1
    interrupts.eoi(0x50)
    line.set_level(False)
    interrupts.eoi(0x50)
    assert len(vm.messages) == 2


# ---- lines into the chips in user space ----


def ready(interrupts: Interrupts) -> None:
    """Initialise both 8259A, as a PC's firmware does: IRQ 0 is vector 0x20, and nothing is masked."""
    assert interrupts.pic is not None
    for chip, base, cascade in ((interrupts.pic.master, 0x20, 1 << 2), (interrupts.pic.slave, 0x28, 2)):
        chip.write(0, b"\x11")
        for value in (base, cascade, 0x01):
            chip.write(1, bytes([value]))


@pytest.mark.parametrize("kind", [IrqchipKind.USER, IrqchipKind.SPLIT])
@pytest.mark.parametrize("irq", [1, IRQ, 8, 15])
def test_an_isa_irq_reaches_the_8259a_which_asks_for_the_cpu(kind: IrqchipKind, irq: int) -> None:
    heard: list[bool] = []
    interrupts = make(kind, on_output=heard.append)
    ready(interrupts)
    heard.clear()
    interrupts.line(irq, "mine").set_level(True)
    assert heard == [True]
    assert interrupts.source is not None
    assert interrupts.source.output
    assert interrupts.source.acknowledge() == 0x20 + irq
    assert not interrupts.source.output


@pytest.mark.parametrize(("irq", "pin"), [(1, 1), (IRQ, 5), (15, 15), (20, 20)])
def test_split_a_line_reaches_the_io_apic_too(irq: int, pin: int) -> None:
    vm = FakeVm()
    interrupts = make(IrqchipKind.SPLIT, vm)
    program(interrupts, pin, 0x50)
    interrupts.line(irq, "mine").set_level(True)
    assert vm.messages == [(0xFEE0_0000, 0x50)]


def test_split_the_timer_is_wired_to_pin_2() -> None:
    vm = FakeVm()
    clock = ManualClock()
    interrupts = make_interrupts(IrqchipKind.SPLIT, cast(Vm, vm), clock, lambda level: None)
    program(interrupts, 2, 0x50)
    assert interrupts.pit is not None
    for offset, value in ((3, 0x34), (0, 0x00), (0, 0x10)):  # channel 0, mode 2, 4096 counts
        interrupts.pit.write(offset, bytes([value]))
    clock.advance(10_000_000)
    assert len(vm.messages) == 2, "every 3.4 ms"


# ---- driving a line from outside ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [-1, 2, 24, 1 << 40])
def test_driving_a_line_that_is_not_there_has_no_effect(kind: IrqchipKind, number: int) -> None:
    vm = FakeVm()
    interrupts = make(kind, vm)
    before = list(vm.calls)
    interrupts.drive(number, True)
    assert vm.calls == before


def test_driving_a_line_needs_no_claim_and_makes_none() -> None:
    vm = FakeVm()
    interrupts = make(IrqchipKind.KERNEL, vm)
    interrupts.line(IRQ, "mine")
    for level in (True, True, False):
        interrupts.drive(IRQ, level)
        interrupts.drive(6, level)
    assert vm.calls[3:] == [("irq_line", irq, level) for level in (True, False) for irq in (IRQ, 6)]
    assert interrupts.owners == {0: "timer", IRQ: "mine"}


def test_driving_a_line_raises_it_at_the_8259a_in_user_space() -> None:
    interrupts = make(IrqchipKind.USER)
    ready(interrupts)
    interrupts.drive(IRQ, True)
    assert interrupts.source is not None
    assert interrupts.source.acknowledge() == 0x20 + IRQ


def test_without_controllers_a_line_ends_nowhere() -> None:
    interrupts = make(IrqchipKind.NONE)
    line = interrupts.line(IRQ, "mine")
    line.set_level(True)
    interrupts.drive(IRQ, True)
    assert interrupts.source is None
