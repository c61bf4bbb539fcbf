"""The keyboard by interrupt: IRQ 1 of the i8042, with the 8259A in user space and in the kernel."""

from __future__ import annotations

import threading
import time

import pytest

from pykvm import assemble
from pykvm.devices import KeyEvent, keys_for_text, parse_keys
from pykvm.devices.scancodes import ScanCodeSet, scan_code
from pykvm.machine import DebugExitWritten, Stopped
from pykvm.testing import Guests

IRQCHIPS = ("user", "kernel", "split")
LIMIT = 30  # seconds: a bound on what takes milliseconds
LAST = parse_keys("f12")  # after which the guest stops

# Tells every scan code on the serial port, one for each interrupt, until F12 goes up.
GUEST = """
        .include "ports.inc"
        .include "layout.inc"
        .include "idt64.inc"
        .include "pic.inc"
        .set    KBD_DATA, 0x60
        .set    KBD_STATUS, 0x64
        .set    CONFIG, 0x60
        .set    F12_RELEASED, 0xd8
        .code64
_start:
        set_gate idt, (PIC_VECTOR+IRQ_KEYBOARD), keyboard
        lidt    idt_pointer
        pic_init ~(1<<IRQ_KEYBOARD)&0xff, PIC_MASK_ALL
        mov     $CONFIG, %al
        out     %al, $KBD_STATUS
        mov     ${config}, %al
        out     %al, $KBD_DATA
        mov     $'>', %al
        call    send
1:      sti
        hlt
        jmp     1b
keyboard:
        in      $KBD_DATA, %al
        call    send
        cmp     $F12_RELEASED, %al
        je      end
        pic_eoi
        iretq
send:
        mov     $SERIAL_THR, %dx
        out     %al, (%dx)
        ret
end:
        out     %al, $DEBUG_EXIT
idt_pointer:
        .word   16 * 256 - 1
        .quad   idt
        .bss
        .balign 16
idt:
        .skip   16 * 256
"""
IRQ_AND_TRANSLATION = 0x41
TRANSLATION = 0x40


def codes(events: list[KeyEvent]) -> bytes:
    return b"".join(scan_code(event, ScanCodeSet.SET_1) for event in events)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_keys_typed_while_the_guest_waits_come_one_by_one(guest: Guests, irqchip: str) -> None:
    keys = parse_keys("h e l l o shift-1 up ctrl-c")
    machine = guest.machine("2M", irqchip=irqchip, serial_output=lambda data: started.set())
    started = threading.Event()
    machine.load(assemble(GUEST.replace("{config}", str(IRQ_AND_TRANSLATION))))

    def type_keys() -> None:
        started.wait(LIMIT)
        for event in [*keys, *LAST]:
            with machine.lock:
                machine.board.keyboard.enqueue([event])
            time.sleep(0.002)

    thread = threading.Thread(target=type_keys, daemon=True)
    thread.start()
    result = machine.run(LIMIT)
    thread.join()
    assert isinstance(result.stop, DebugExitWritten)
    assert result.serial.data == b">" + codes([*keys, *LAST])


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_keys_typed_ahead_are_not_lost(guest: Guests, irqchip: str) -> None:
    keys = keys_for_text("The quick brown fox jumps over the lazy dog. " * 5)
    machine = guest.machine("2M", irqchip=irqchip, serial_output=lambda data: enqueue())
    todo = [[*keys, *LAST]]

    def enqueue() -> None:  # called when the guest is ready: from a device, in the middle of an exit
        if todo:
            machine.board.keyboard.enqueue(todo.pop())

    machine.load(assemble(GUEST.replace("{config}", str(IRQ_AND_TRANSLATION))))
    result = machine.run(LIMIT)
    assert isinstance(result.stop, DebugExitWritten)
    assert result.serial.data == b">" + codes([*keys, *LAST])


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_no_key_interrupts_a_guest_that_has_not_asked_for_it(guest: Guests, irqchip: str) -> None:
    machine = guest.machine("2M", irqchip=irqchip)
    machine.board.keyboard.enqueue(parse_keys("a"))
    machine.load(assemble(GUEST.replace("{config}", str(TRANSLATION))))
    timer = threading.Timer(0.1, machine.stop)
    timer.start()
    result = machine.run(LIMIT)
    assert result.stop == Stopped()
    assert result.serial.data == b">"
