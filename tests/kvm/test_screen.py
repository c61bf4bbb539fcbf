"""The screen in text mode: what a guest writes at 0xb8000 and into the CRT controller, the host sees."""

from __future__ import annotations

import threading

import pytest

from pykvm import GuestMemory, Machine, assemble
from pykvm.devices.screen import COLUMNS, ROWS, Cell
from pykvm.machine import Halted
from pykvm.memory import layout
from pykvm.testing import Guests

ENOUGH = 30.0  # seconds
MEMORIES = ("512K", "740K", "1M", "16M")  # without text memory, with its first 4 KiB, with all of it

CRTC = """
        .code16
        .macro  crtc register, value            # index and data in one access of 16 bits
        mov     $0x3d4, %dx
        mov     $\\value << 8 | \\register, %ax
        out     %ax, (%dx)
        .endm

        .macro  put row, column, character, attribute
        movw    $\\attribute << 8 | \\character, %es:(\\row * 80 + \\column) * 2
        .endm

        .globl  _start
_start: mov     $0xb800, %ax
        mov     %ax, %es
        cld
"""


def load(machine: Machine, code: str) -> None:
    machine.load(assemble(CRTC + code + "\n hlt", mode="real"))


def run(machine: Machine, code: str) -> None:
    load(machine, code)
    assert machine.run(ENOUGH).stop == Halted()


@pytest.mark.parametrize("memory", MEMORIES)
def test_what_a_guest_writes_is_on_the_screen(guest: Guests, memory: str) -> None:
    machine = guest.machine(memory)
    assert machine.screen.text().strip() == ""
    run(machine, "put 0, 0, 'H', 0x1f \n put 0, 1, 'i', 0x1f \n put 24, 79, '!', 0x07")
    lines = machine.screen.text().split("\n")
    assert lines[0] == "Hi"
    assert lines[1:-1] == [""] * (ROWS - 2)
    assert lines[-1] == " " * (COLUMNS - 1) + "!"


@pytest.mark.parametrize("memory", ["512K", "1M"])
def test_the_guest_reads_back_what_it_wrote(guest: Guests, memory: str) -> None:
    machine = guest.machine(memory)
    load(machine, "put 0, 0, 'H', 0x1f \n mov %es:0, %bx \n mov %es:0x7ffe, %cx")
    registers = machine.run(ENOUGH).registers
    assert registers.rbx & 0xFFFF == 0x1F48
    assert registers.rcx & 0xFFFF == 0


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_snapshot_has_the_colours(guest: Guests, memory: str) -> None:
    machine = guest.machine(memory)
    run(machine, "put 1, 2, 'A', 0x4e \n put 1, 3, 'B', 0xf1 \n put 1, 4, 0x01, 0x02")
    row = machine.screen.snapshot().rows[1]
    assert row[2] == Cell("A", foreground=14, background=4)
    assert row[3] == Cell("B", foreground=1, background=7, blink=True)
    assert row[4] == Cell("☺", foreground=2, background=0)


def test_bit_7_of_an_attribute_is_a_bright_background_without_blinking(guest: Guests) -> None:
    no_blinking = """
        put     0, 0, 'B', 0xf1
        mov     $0x3da, %dx                     # the next write to 0x3c0 is an index
        in      (%dx), %al
        mov     $0x3c0, %dx
        mov     $0x30, %al                      # attribute mode control, palette on
        out     %al, (%dx)
        mov     $0x04, %al
        out     %al, (%dx)
    """
    machine = guest.machine("1M")
    run(machine, no_blinking)
    assert machine.screen.snapshot().rows[0][0] == Cell("B", foreground=1, background=15)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 79), (1, 0), (12, 34), (24, 79)])
def test_the_cursor_is_where_the_crtc_has_it(guest: Guests, row: int, column: int) -> None:
    at = row * COLUMNS + column
    machine = guest.machine("1M")
    run(machine, f"crtc 0x0e, {at >> 8} \n crtc 0x0f, {at & 0xFF}")
    assert machine.screen.snapshot().cursor == (row, column)


@pytest.mark.parametrize(
    "code",
    ["crtc 0x0a, 0x20", "crtc 0x0a, 0x0f \n crtc 0x0b, 0x0e", "crtc 0x0e, 0x07 \n crtc 0x0f, 0xd0"],
    ids=["switched off", "without a line", "below the last row"],
)
def test_a_cursor_that_is_not_to_be_seen_is_none(guest: Guests, code: str) -> None:
    machine = guest.machine("1M")
    run(machine, code)
    assert machine.screen.snapshot().cursor is None


def test_the_guest_reads_the_cursor_back(guest: Guests) -> None:
    machine = guest.machine("1M")
    load(machine, "crtc 0x0e, 0x03 \n mov $0x3d5, %dx \n in (%dx), %al")
    assert machine.run(ENOUGH).registers.rax & 0xFF == 0x03


@pytest.mark.parametrize("memory", ["512K", "1M"])
def test_the_start_address_scrolls_text_and_cursor(guest: Guests, memory: str) -> None:
    machine = guest.machine(memory)
    code = "put 1, 0, '1', 7 \n put 25, 0, 'z', 7 \n crtc 0x0e, 0 \n crtc 0x0f, 80 \n crtc 0x0c, 0 \n crtc 0x0d, 80"
    run(machine, code)
    lines = machine.screen.text().split("\n")
    assert (lines[0], lines[24]) == ("1", "z")
    assert machine.screen.snapshot().cursor == (0, 0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_screen_wraps_at_the_end_of_text_memory(guest: Guests, memory: str) -> None:
    machine = guest.machine(memory)
    run(machine, "put 0, 0, '0', 7 \n movw $'9' | 0x700, %es:0x7ffe \n crtc 0x0c, 0x3f \n crtc 0x0d, 0xff")
    last = " " if memory == "740K" else "9"  # there its end is no memory
    assert machine.screen.text() == last + "0"


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("start", [0x0001, 0x0400, 0x0800, 0x1FFF, 0xFFFF])
def test_any_start_address_can_be_looked_at(guest: Guests, memory: str, start: int) -> None:
    machine = guest.machine(memory)
    run(machine, f"crtc 0x0c, {start >> 8} \n crtc 0x0d, {start & 0xFF}")
    machine.screen.snapshot()


def test_the_screen_can_be_looked_at_while_the_guest_writes(guest: Guests) -> None:
    count = """
again:  incb    %es:0
        cmpb    $0, 0x7000
        je      again
    """
    machine = guest.machine("1M")
    load(machine, count)
    runner = threading.Thread(target=machine.run, args=(ENOUGH,))
    runner.start()
    seen: set[str] = set()
    while len(seen) < 5:
        with machine.lock:
            seen.add(machine.screen.text())
    machine.memory.write_u8(0x7000, 1)
    runner.join()
    assert not machine.is_running


@pytest.mark.parametrize("memory", ["512K", "1M"])
def test_the_screen_is_there_between_runs_and_after_a_load(guest: Guests, memory: str) -> None:
    machine = guest.machine(memory)
    run(machine, "put 0, 0, 'a', 7")
    run(machine, "put 0, 1, 'b', 7")
    assert machine.screen.text() == "ab"


def test_a_screen_of_its_own_is_no_part_of_guest_memory() -> None:
    with GuestMemory("512K") as memory, Machine(memory) as machine:
        run(machine, "put 0, 0, 'a', 7")
        assert memory.find(layout.VGA_TEXT) is None
        assert memory.regions[0].size == 512 * 1024


@pytest.mark.parametrize("memory", ["512K", "1M"])
def test_writing_the_screen_makes_its_page_dirty(guest: Guests, memory: str) -> None:
    machine = guest.machine(memory, dirty="log")
    load(machine, "put 0, 0, 'a', 7")
    list(machine.dirty_pages())
    machine.run(ENOUGH)
    assert layout.VGA_TEXT in list(machine.dirty_pages())
