"""The PC's devices as guests see them: keyboard, fw_cfg, pc-testdev, doorbells, PCI, HPET, CMOS memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pykvm import Machine, assemble
from pykvm.devices import hpet, testdev
from pykvm.devices.keyboard import Led
from pykvm.devices.scancodes import keys_for_text, parse_keys
from pykvm.errors import BusError, ConfigurationError
from pykvm.kvm import Cap, IoOut, MmioWrite
from pykvm.machine import Halted, RunResult, TimedOut
from pykvm.testing import Guests
from pykvm.testing.exits import select
from pykvm.units import Gpa, MiB

ENOUGH = 30.0  # seconds
FREE_PORT, FREE_MEMORY = 0x5E0, 0xE000_0000  # where no device is


class Recorder:
    """A device that keeps what is written, and by what name it is known; reads as zeros."""

    def __init__(self, log: list[tuple[str, bytes]] | None = None, name: str = "recorder") -> None:
        self.name = name
        self.log = [] if log is None else log

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        self.log.append((self.name, data))

    @property
    def data(self) -> bytes:
        return b"".join(data for name, data in self.log if name == self.name)


def run(machine: Machine, code: str, mode: str = "real") -> RunResult:
    machine.load(assemble(code + "\n hlt", mode=mode))
    result = machine.run(ENOUGH)
    assert result.stop == Halted(), result.report
    return result


# ---- keyboard and its controller, by polling ----

KEYBOARD = """
        .code16
        .macro  command value                   # to the controller
        call    can_write
        mov     $\\value, %al
        out     %al, $0x64
        .endm

        .macro  send value                      # to the keyboard, or the parameter of a command
        call    can_write
        mov     $\\value, %al
        out     %al, $0x60
        .endm

        .macro  ready                           # for keys: they are typed now
        mov     $'>', %al
        out     %al, $0xe9
        .endm

        .macro  receive count                   # and print them
        mov     $\\count, %cx
        call    receive
        .endm

        .globl  _start
_start: jmp     main
can_write:
        in      $0x64, %al
        test    $2, %al                         # IBF
        jnz     can_write
        ret
receive:
        in      $0x64, %al
        test    $1, %al                         # OBF
        jz      receive
        in      $0x60, %al
        out     %al, $0xe9
        loop    receive
        ret
main:
"""


def receive(guest: Guests, code: str, keys: str = "", irqchip: str = "none") -> bytes:
    """Return what the guest received; ``keys`` are typed when it is ready."""

    def type_when_ready(data: bytes) -> None:
        if data == b">":
            assert machine.board.keyboard.enqueue(parse_keys(keys))

    machine = guest.machine("1M", irqchip=irqchip, debugcon_output=type_when_ready)
    return run(machine, KEYBOARD + code).debugcon.data.replace(b">", b"")


@pytest.mark.parametrize("irqchip", ["none", "user", "kernel"])
def test_a_script_of_keys_is_read_in_set_1_by_polling(guest: Guests, irqchip: str) -> None:
    assert receive(guest, "ready \n receive 6", "a shift-b", irqchip) == bytes.fromhex("1e 9e 2a 30 b0 aa")


def test_text_is_typed_key_by_key(guest: Guests) -> None:
    text = "Hello, World!"
    machine = guest.machine("1M")
    with machine.lock:
        assert machine.board.keyboard.type(text)
    events = len(keys_for_text(text))
    data = run(machine, KEYBOARD + f"receive {events}").debugcon.data
    assert data[:6] == bytes.fromhex("2a 23 a3 aa 12 92")


def test_without_translation_the_keys_come_in_set_2(guest: Guests) -> None:
    data = receive(guest, "command 0x60 \n send 0x04 \n ready \n receive 9", "a shift-b")
    assert data == bytes.fromhex("1c f0 1c 12 32 f0 32 f0 12")


def test_what_was_in_the_output_buffer_stays_translated(guest: Guests) -> None:
    data = receive(guest, "ready \n command 0x60 \n send 0x04 \n receive 3", "a")
    assert data == bytes.fromhex("1e f0 1c")


def test_a_key_that_the_at_did_not_have_has_its_prefix_in_both_sets(guest: Guests) -> None:
    assert receive(guest, "ready \n receive 4", "left") == bytes.fromhex("e0 4b e0 cb")
    assert receive(guest, "command 0x60 \n send 0x04 \n ready \n receive 5", "left") == bytes.fromhex("e0 6b e0 f0 6b")


def test_the_keyboard_itself_can_be_set_to_set_1(guest: Guests) -> None:
    code = "command 0x60 \n send 0x04 \n send 0xf0 \n receive 1 \n send 0x01 \n receive 1 \n send 0xf0 \n receive 1"
    data = receive(guest, code + "\n send 0 \n receive 2 \n ready \n receive 2", "a")
    assert data == bytes.fromhex("fa fa fa fa 01 1e 9e")


def test_the_lights_are_what_the_guest_sets(guest: Guests) -> None:
    machine = guest.machine("1M")
    data = run(machine, KEYBOARD + "send 0xed \n receive 1 \n send 0x05 \n receive 1").debugcon.data
    assert data == b"\xfa\xfa"
    assert machine.board.keyboard.leds == Led.SCROLL | Led.CAPS


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("send 0xff \n receive 2", "fa aa"),
        ("send 0xee \n receive 1", "ee"),
        ("send 0xf2 \n receive 3", "fa ab 41"),
        ("command 0x60 \n send 0x04 \n send 0xf2 \n receive 3", "fa ab 83"),
        ("send 0x01 \n receive 1", "fe"),
        ("command 0xaa \n receive 1", "55"),
        ("command 0xab \n receive 1", "00"),
        ("command 0x20 \n receive 1", "65"),
        ("command 0xd2 \n send 0x5a \n receive 1", "5a"),
        ("command 0xd4 \n send 0xff \n receive 1", "fe"),
    ],
)
def test_keyboard_and_controller_answer_a_command(guest: Guests, code: str, answer: str) -> None:
    assert receive(guest, code) == bytes.fromhex(answer)


@pytest.mark.parametrize(("off", "on"), [("command 0xad", "command 0xae"), ("send 0xf5", "send 0xf4")])
def test_a_keyboard_that_is_switched_off_sends_its_keys_later(guest: Guests, off: str, on: str) -> None:
    answer = "receive 1" if off.startswith("send") else ""
    code = f"{off} \n {answer} \n ready \n in $0x64, %al \n out %al, $0xe9 \n {on} \n {answer} \n receive 2"
    data = receive(guest, code, "a").replace(b"\xfa", b"")
    assert data[0] & 1 == 0
    assert data[1:] == b"\x1e\x9e"


@pytest.mark.parametrize(
    ("close", "open"),
    [
        ("in $0x92, %al \n and $0xfd, %al \n out %al, $0x92", "in $0x92, %al \n or $2, %al \n out %al, $0x92"),
        ("command 0xdd", "command 0xdf"),
        ("command 0xd1 \n send 0xdd", "command 0xd1 \n send 0xdf"),
    ],
    ids=["0x92", "dd and df", "d1"],
)
def test_port_0x92_and_the_keyboard_controller_tell_the_same_a20(guest: Guests, close: str, open: str) -> None:
    tell = "in $0x92, %al \n out %al, $0xe9 \n command 0xd0 \n receive 1 \n"
    data = receive(guest, f"{tell} {close} \n {tell} {open} \n {tell}")
    assert [byte >> 1 & 1 for byte in data] == [1, 1, 0, 0, 1, 1]


# ---- fw_cfg ----

FW_CFG = """
        .code16
        .globl  _start
_start: jmp     main
item:   mov     $0x510, %dx                     # print CX bytes of item AX
        out     %ax, (%dx)
        inc     %dx
item_1: in      (%dx), %al
        out     %al, $0xe9
        loop    item_1
        ret
main:
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [(0, b"QEMU"), (3, (2 * MiB).to_bytes(8, "little")), (5, b"\x03\0"), (15, b"\x03\0"), (25, bytes(4))],
    ids=["signature", "RAM", "CPUs", "most CPUs", "files"],
)
def test_an_item_of_fw_cfg_is_read_by_its_ports(guest: Guests, key: int, value: bytes) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=3)
    result = run(machine, FW_CFG + f"mov ${key}, %ax \n mov ${len(value)}, %cx \n call item")
    assert result.debugcon.data == value


def test_fw_cfg_is_read_by_a_string_instruction(guest: Guests) -> None:
    code = "mov $0x510, %dx \n xor %ax, %ax \n out %ax, (%dx) \n inc %dx \n mov $0x7000, %di \n mov $6, %cx \n rep insb"
    machine = guest.machine("1M")
    run(machine, ".code16\n" + code)
    assert machine.memory.read(0x7000, 6) == b"QEMU\0\0"


DMA = """
        .code64
        .globl  _start
_start: mov     $0x518, %edx
        mov     $descriptor, %eax
        bswap   %eax
        out     %eax, (%dx)                     # the low half starts it
        mov     descriptor, %eax
        bswap   %eax                            # 0: done
        hlt
        .data
        .balign 8
descriptor:
        .byte   0, {key}, 0, 1 << 3 | 1 << 1    # select, read
        .byte   0, 0, 0, {size}
        .byte   0, 0, 0, 0, {address} >> 24, {address} >> 16 & 0xff, {address} >> 8 & 0xff, {address} & 0xff
"""


def test_fw_cfg_writes_an_item_into_memory(guest: Guests) -> None:
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    registers = run(machine, DMA.format(key=5, size=2, address=0x180000), "long").registers
    assert registers.rax & 0xFFFF_FFFF == 0
    assert machine.memory.read_u16(0x180000) == 2


def test_fw_cfg_says_that_memory_is_not_there(guest: Guests) -> None:
    machine = guest.machine("2M")
    registers = run(machine, DMA.format(key=0, size=4, address=0x2000_0000), "long").registers
    assert registers.rax & 0xFFFF_FFFF == 1


def test_fw_cfg_has_its_dma_signature(guest: Guests) -> None:
    code = """
        .code16
        mov     $0x514, %dx
        in      (%dx), %eax
        mov     %eax, 0x7000
        mov     $0x518, %dx
        in      (%dx), %eax
        mov     %eax, 0x7004
    """
    machine = guest.machine("1M")
    run(machine, code)
    assert machine.memory.read(0x7000, 8) == b"QEMU CFG"


# ---- pc-testdev ----


def test_the_test_devices_ports_echo(guest: Guests) -> None:
    code = """
        .code16
        mov     $0x11223344, %eax
        out     %eax, $0xe0
        mov     $0xaa, %al
        out     %al, $0xe1
        in      $0xe0, %eax
        mov     %eax, %ebx
        in      $0xe4, %ax
    """
    machine = guest.machine("1M", devices=["testdev"])
    registers = run(machine, code).registers
    assert registers.rbx == 0x1122AA44
    assert registers.rax & 0xFFFF == 0


IRQ = """
        .include "pic.inc"
        .code16
        .globl  _start
_start: movw    $handler, (PIC_VECTOR + {irq}) * 4
        movw    $0, (PIC_VECTOR + {irq}) * 4 + 2
        pic_init 0, 0
        sti
        mov     $0x2000 + {irq}, %dx
        mov     $3, %cx
raise:  mov     $1, %al
        out     %al, (%dx)
wait:   cmp     %cx, seen
        jne     wait                            # it counts down what is still to come
        loop    raise
        cli
        hlt

handler:
        push    %ax
        mov     $'!', %al
        out     %al, $0xe9
        xor     %al, %al
        out     %al, (%dx)                      # the line down
        mov     %cx, seen
        mov     $OCW2_EOI, %al
        .if     {irq} > 7
        out     %al, $PIC2_COMMAND
        .endif
        out     %al, $PIC1_COMMAND
        pop     %ax
        iret
        .data
seen:   .word   0
"""


@pytest.mark.parametrize("irq", [5, 10])
@pytest.mark.parametrize("irqchip", ["user", "kernel", "split"])
def test_the_test_device_raises_an_interrupt(guest: Guests, irqchip: str, irq: int) -> None:
    machine = guest.machine("1M", irqchip=irqchip, devices=["testdev"])
    result = run(machine, IRQ.format(irq=irq))
    assert result.debugcon.text == "!!!"


def test_lines_that_lead_nowhere_can_be_driven(guest: Guests) -> None:
    code = ".code16\n mov $0x2000, %dx \n mov $24, %cx \n mov $1, %al \n next: out %al, (%dx) \n inc %dx \n loop next"
    for irqchip in ("none", "user", "kernel", "split"):
        run(guest.machine("1M", irqchip=irqchip, devices=["testdev"]), code)


def test_the_test_devices_memory_echoes_and_each_access_is_an_exit(guest: Guests) -> None:
    code = """
        mov     $0xff000000, %ebx
        mov     $0x1122334455667788, %rax
        mov     %rax, 0x10(%rbx)
        movb    $0xaa, 0x11(%rbx)
        mov     0x10(%rbx), %rcx
        mov     0xfffc(%rbx), %esi
    """
    machine = guest.machine("2M", devices=["testdev"])
    registers = run(machine, code, "long").registers
    assert registers.rcx == 0x112233445566AA88
    assert registers.rsi == 0
    assert MmioWrite(Gpa(testdev.MEMORY + 0x11), b"\xaa") in machine.watched.exits()


# ---- doorbells ----

RING = """
        .code16
        mov     $0x5d0, %dx
        mov     ${times}, %cx
ring:   out     %eax, (%dx)
        loop    ring
        {then}
        mov     $0x5d4, %dx
heard:  in      (%dx), %eax
        cmp     ${total}, %eax
        jb      heard
"""


@pytest.mark.parametrize("irqchip", ["none", "kernel"])
def test_every_ring_is_counted_and_none_is_an_exit(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("1M", irqchip=irqchip, devices=["doorbell"])
    registers = run(machine, RING.format(times=2000, then="", total=2000)).registers
    assert registers.rax & 0xFFFF_FFFF == 2000
    assert select(machine.watched.exits(), IoOut, port=0x5D0) == []


def test_a_ring_of_another_width_counts_as_well_and_is_an_exit(guest: Guests) -> None:
    machine = guest.machine("1M", devices=["doorbell"])
    code = RING.format(times=10, then="mov $0x5d0, %dx \n out %al, (%dx) \n out %ax, (%dx)", total=12)
    registers = run(machine, code).registers
    assert registers.rax & 0xFFFF_FFFF == 12
    assert [exit.size for exit in select(machine.watched.exits(), IoOut, port=0x5D0)] == [1, 2]


def test_all_rings_are_heard_before_the_run_returns(guest: Guests) -> None:
    heard: list[int] = []
    machine = guest.machine("1M")
    machine.on_doorbell(FREE_PORT, 4, heard.append, pio=True)
    for round in range(1, 21):
        run(machine, f".code16\n mov ${FREE_PORT}, %dx \n mov $50, %cx \n ring: out %eax, (%dx) \n loop ring")
        assert sum(heard) == 50 * round


def test_a_doorbell_with_a_value_rings_for_that_value_only(guest: Guests) -> None:
    heard: list[tuple[str, int]] = []
    recorder = Recorder()
    code = f"""
        .code16
        mov     ${FREE_PORT}, %dx
        mov     $3, %cx
again:  mov     $7, %ax
        out     %ax, (%dx)
        mov     $8, %ax
        out     %ax, (%dx)
        mov     $9, %ax
        out     %ax, (%dx)
        mov     $7, %al                         # the value, but not the width
        out     %al, (%dx)
        loop    again
    """
    machine = guest.machine("1M")
    machine.pio.register(recorder, FREE_PORT, 2)
    machine.on_doorbell(FREE_PORT, 2, lambda times: heard.append(("7", times)), pio=True, datamatch=7)
    machine.on_doorbell(FREE_PORT, 2, lambda times: heard.append(("8", times)), pio=True, datamatch=8)
    run(machine, code)
    assert sum(times for name, times in heard if name == "7") == 3
    assert sum(times for name, times in heard if name == "8") == 3
    assert recorder.log == [("recorder", b"\x09\0"), ("recorder", b"\x07")] * 3


@pytest.mark.parametrize(("size", "store"), [(4, "mov %eax, (%rbx)"), (8, "mov %rax, (%rbx)")])
def test_a_doorbell_in_memory_rings(guest: Guests, size: int, store: str) -> None:
    heard: list[int] = []
    machine = guest.machine("2M")
    machine.on_doorbell(FREE_MEMORY, size, heard.append)
    code = f"mov ${FREE_MEMORY}, %ebx \n mov $100, %ecx \n again: {store} \n loop again \n movb $1, (%rbx)"
    run(machine, code, "long")
    assert sum(heard) == 100
    assert select(machine.watched.exits(), MmioWrite) == [MmioWrite(Gpa(FREE_MEMORY), b"\x01")]


def test_what_a_doorbells_callback_raises_ends_the_run(guest: Guests) -> None:
    def refuse(times: int) -> None:
        raise BlockingIOError("not now")

    machine = guest.machine("1M")
    machine.on_doorbell(FREE_PORT, 4, refuse, pio=True)
    machine.load(assemble(f".code16\n mov ${FREE_PORT}, %dx \n out %eax, (%dx) \n hlt", mode="real"))
    with pytest.raises(BlockingIOError, match="not now"):
        machine.run(ENOUGH)


# ---- coalesced zones ----


def coalesce(machine: Machine, address: int, size: int, *, pio: bool) -> None:
    cap = Cap.COALESCED_PIO if pio else Cap.COALESCED_MMIO
    if not machine.vm.check_extension(cap):
        pytest.skip(f"this host's KVM cannot keep writes back: KVM_CAP_{cap.name}")
    machine.coalesce(address, size, pio=pio)


COUNT_UP = """
        .code16
        mov     ${port}, %dx
        mov     ${times}, %cx
        xor     %al, %al
next:   out     %al, (%dx)
        inc     %al
        loop    next
        {then}
"""


@pytest.mark.parametrize("times", [1, 100, 1000])
def test_every_write_kept_back_arrives_in_order(guest: Guests, times: int) -> None:
    recorder = Recorder()
    machine = guest.machine("1M")
    machine.pio.register(recorder, FREE_PORT, 1)
    coalesce(machine, FREE_PORT, 1, pio=True)
    run(machine, COUNT_UP.format(port=FREE_PORT, times=times, then=""))
    assert recorder.data == bytes(index & 0xFF for index in range(times))
    assert len(select(machine.watched.exits(), IoOut, port=FREE_PORT)) < max(times / 4, 1)


def test_writes_kept_back_are_there_when_time_runs_out(guest: Guests) -> None:
    recorder = Recorder()
    machine = guest.machine("1M")
    machine.pio.register(recorder, FREE_PORT, 1)
    coalesce(machine, FREE_PORT, 1, pio=True)
    machine.load(assemble(COUNT_UP.format(port=FREE_PORT, times=50, then="jmp ."), mode="real"))
    assert machine.run(0.3).stop == TimedOut(0.3)
    assert recorder.data == bytes(range(50))


def test_serial_output_kept_back_is_complete(guest: Guests) -> None:
    text = "kept back, and then all at once\\n" * 20
    code = """
        .code16
        mov     $text, %si
        mov     $end - text, %cx
        mov     $0x3f8, %dx
        rep outsb
        hlt
        .data
text:   .ascii  "{text}"
end:
    """
    machine = guest.machine("1M")
    coalesce(machine, 0x3F8, 1, pio=True)
    assert run(machine, code.format(text=text)).serial.text == text.replace("\\n", "\n")


def test_writes_kept_back_come_before_the_exit_that_follows(guest: Guests) -> None:
    log: list[tuple[str, bytes]] = []
    code = f"""
        mov     ${FREE_MEMORY}, %ebx
        mov     ${FREE_PORT}, %edx
        mov     $0x31, %al
again:  mov     %al, (%rbx)                     # kept back: memory
        out     %al, (%dx)                      # kept back: port
        mov     %ax, 0x80(%rbx)                 # kept back: wider
        inc     %edx
        out     %al, (%dx)                      # exits
        dec     %edx
        mov     %al, 0x1000(%rbx)               # exits
        in      (%dx), %al
        mov     0x4(%rbx), %cl
        mov     next, %al
        incb    next
        cmp     $0x35, %al
        jb      again
        hlt
        .data
next:   .byte   0x32
    """
    machine = guest.machine("2M")
    machine.pio.register(Recorder(log, "kept port"), FREE_PORT, 1)
    machine.pio.register(Recorder(log, "port"), FREE_PORT + 1, 1)
    machine.mmio.register(Recorder(log, "kept memory"), FREE_MEMORY, 0x100)
    machine.mmio.register(Recorder(log, "memory"), FREE_MEMORY + 0x1000, 0x100)
    coalesce(machine, FREE_PORT, 1, pio=True)
    coalesce(machine, FREE_MEMORY, 0x100, pio=False)
    run(machine, code, "long")
    names = ["kept memory", "kept port", "kept memory", "port", "memory"]
    assert [name for name, _ in log] == names * 4
    assert bytes(data[0] for _, data in log) == b"11111222223333344444"
    assert {len(data) for name, data in log[2::5]} == {2}


TWO_CPUS = f"""
        .include "layout.inc"
        .include "apic.inc"
        .include "smp.inc"
        .code64
        .globl  _start
_start: start_other_cpus trampoline
        mov     $0, %ebx
        call    write
wait:   cmpb    $1, 0x7000
        jb      wait
        hlt
other:  mov     $0x6000, %esp
        mov     $0x80, %ebx
        call    write
        movb    $1, 0x7000
        cli
        hlt
write:  mov     ${FREE_PORT}, %edx
        xor     %ecx, %ecx
write_1:
        lea     (%rbx,%rcx), %eax
        out     %al, (%dx)
        inc     %ecx
        cmp     $100, %ecx
        jb      write_1
        ret
        define_trampoline trampoline, other
"""


def test_writes_of_two_cpus_kept_back_all_arrive_each_in_its_order(guest: Guests) -> None:
    recorder = Recorder()
    machine = guest.machine("2M", irqchip="kernel", cpus=2)
    machine.pio.register(recorder, FREE_PORT, 1)
    coalesce(machine, FREE_PORT, 1, pio=True)
    run(machine, TWO_CPUS, "long")
    assert bytes(byte for byte in recorder.data if byte < 0x80) == bytes(range(100))
    assert bytes(byte for byte in recorder.data if byte >= 0x80) == bytes(range(0x80, 0x80 + 100))


# ---- PCI, HPET, CMOS memory ----


def test_nothing_is_on_the_pci_bus(guest: Guests) -> None:
    code = """
        .code16
        mov     $0x80000000, %ebx               # bus 0, device 0
next:   mov     $0xcf8, %dx
        mov     %ebx, %eax
        out     %eax, (%dx)
        in      (%dx), %eax
        cmp     %ebx, %eax                      # the address reads back
        jne     wrong
        mov     $0xcfc, %dx
        in      (%dx), %eax
        inc     %eax
        jnz     wrong
        in      (%dx), %ax                      # the vendor
        inc     %ax
        jnz     wrong
        mov     $0xcff, %dx
        in      (%dx), %al
        inc     %al
        jnz     wrong
        add     $0x800, %ebx                    # the next device
        cmp     $0x80020000, %ebx               # to the end of bus 1
        jb      next
        mov     $'.', %al
        out     %al, $0xe9
        hlt
wrong:  mov     $'?', %al
        out     %al, $0xe9
    """
    machine = guest.machine("1M")
    assert run(machine, code).debugcon.text == "."


def test_the_hpet_counts_when_it_is_enabled(guest: Guests) -> None:
    code = f"""
        mov     ${hpet.BASE}, %ebx
        movl    $5, 0xf0(%rbx)                  # it stands: it can be set
        mov     0xf0(%rbx), %r8
        movl    $1, 0x10(%rbx)                  # ENABLE
again:  mov     0xf0(%rbx), %r9
        cmp     $1000, %r9
        jb      again
        mov     0xf0(%rbx), %r10
        movl    $0, 0x10(%rbx)
        mov     0xf0(%rbx), %r11
        mov     0xf0(%rbx), %r12                # it stands again
        mov     4(%rbx), %esi                   # COUNTER_CLK_PERIOD
    """
    machine = guest.machine("2M")
    registers = run(machine, code, "long").registers
    assert registers.r8 == 5
    assert 1000 <= registers.r9 < registers.r10 <= registers.r11 == registers.r12
    assert registers.rsi == hpet.PERIOD


def read_cmos(guest: Guests, registers: Sequence[int], memory: str, cpus: int = 1) -> bytes:
    code = "\n".join(f"mov ${index}, %al; out %al, $0x70; in $0x71, %al; out %al, $0xe9" for index in registers)
    with Machine(memory, irqchip="kernel" if cpus > 1 else "none", cpus=cpus) as machine:
        return run(machine, ".code16\n" + code).debugcon.data


@pytest.mark.parametrize(
    ("memory", "base", "extended", "above_16m"),
    [("512K", 512, 0, 0), ("1M", 640, 0, 0), ("16M", 640, 15 * 1024, 0), ("96M", 640, 0xFFFF, 80 * 16)],
)
def test_cmos_memory_says_how_much_memory_there_is(
    guest: Guests, memory: str, base: int, extended: int, above_16m: int
) -> None:
    data = read_cmos(guest, [0x15, 0x16, 0x17, 0x18, 0x30, 0x31, 0x34, 0x35], memory)
    numbers = [int.from_bytes(data[at : at + 2], "little") for at in range(0, 8, 2)]
    assert numbers == [base, extended, extended, above_16m]


def test_cmos_memory_says_how_many_cpus_there_are_and_keeps_what_is_written(guest: Guests) -> None:
    assert read_cmos(guest, [0x5F], "1M", cpus=3) == b"\x02"
    code = ".code16\n mov $0x40, %al; out %al, $0x70; mov $0x5a, %al; out %al, $0x71; xor %al, %al; in $0x71, %al"
    machine = guest.machine("1M")
    assert run(machine, code).registers.rax & 0xFF == 0x5A


# ---- wrong machines ----


def test_a_device_over_another_is_refused_by_both_names(guest: Guests) -> None:
    machine = guest.machine("1M")
    with pytest.raises(BusError, match=r"mine at 0x3f0-0x3ff overlaps .*serial.* at 0x3f8-0x3ff on the port bus"):
        machine.pio.register(Recorder(name="mine"), 0x3F0, 0x10)
    with pytest.raises(BusError, match=r"mine at 0xfed00000-0xfed00fff overlaps HPET at .* on the MMIO bus"):
        machine.mmio.register(Recorder(name="mine"), hpet.BASE, 0x1000)
    assert run(machine, ".code16\n mov $0x3f8, %dx; mov $'A', %al; out %al, (%dx)").serial.text == "A"


def test_an_optional_device_twice_is_refused() -> None:
    with pytest.raises(BusError, match=r"doorbell at 0x5d0-0x5d7 overlaps doorbell"):
        Machine("1M", devices=["doorbell", "doorbell"])


def test_an_unknown_optional_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"no optional device 'mouse': there are testdev, doorbell"):
        Machine("1M", devices=["mouse"])
