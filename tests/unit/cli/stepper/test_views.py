"""pykvm.cli.stepper's views: what the panes say of a guest that stands still, as text."""

from __future__ import annotations

import pytest

from pykvm.cli.stepper.listing import Listing, instructions_before
from pykvm.cli.stepper.look import Look
from pykvm.cli.stepper.memory import MemoryView
from pykvm.cli.stepper.pages import walk_rows
from pykvm.cli.stepper.registers import register_rows
from pykvm.cli.stepper.rows import Kind, fit, plain, row
from pykvm.cli.stepper.texts import MOST, output_rows, report_rows
from pykvm.memory import GuestMemory
from pykvm.units import MiB
from pykvm.x86 import Mode, Rflags
from tests.unit.cli.stepper.conftest import CODE, XOR_MOV_LODSB_HLT, image_of, look_at, stepped


def lines(rows: object) -> list[str]:
    return plain(rows).splitlines()  # type: ignore[arg-type]


# ---- rows ----


def test_a_row_that_is_too_long_says_that_there_is_more() -> None:
    assert plain([fit(row("0123456789"), 10), fit(row("0123456789"), 9)]) == "0123456789\n01234567…"
    assert plain([fit((("abc", Kind.TEXT), ("def", Kind.LABEL)), 4)]) == "abc…"


# ---- memory as a look reads it ----


def test_what_is_not_mapped_or_no_memory_reads_as_none(memory: GuestMemory) -> None:
    look = look_at(memory)
    end = 2 * MiB
    assert look.read(CODE, 2) == [0x31, 0xC0]
    assert look.read(end - 1, 3) == [0, None, None]
    assert look.code(end - 3, 15) == bytes(3)
    assert look.read((1 << 64) - 1, 2) == [None, 0], "linear addresses begin anew"


def test_memory_is_read_through_the_guests_page_tables(memory: GuestMemory) -> None:
    look = look_at(memory, mode=Mode.LONG)
    assert look.code(CODE, 2) == b"\x31\xc0"
    assert look.read(1 << 47, 1) == [None], "not canonical"


# ---- registers ----


def test_what_changed_has_a_star_and_the_rest_has_none(memory: GuestMemory) -> None:
    before = look_at(memory)
    assert "*" not in plain(register_rows(before))
    text = plain(register_rows(stepped(before, rax=0x1234, rip=CODE + 2)))
    assert "*eax 00001234  ebx 00000000" in text
    assert "*eip 00008002" in text
    assert text.count("*") == 2


def test_flags_are_decoded_and_those_that_turned_are_named(memory: GuestMemory) -> None:
    before = look_at(memory)
    before.regs.rflags = (Rflags.CF | Rflags.IF).value | 0x2
    after = stepped(before, rflags=(Rflags.ZF | Rflags.IF).value | 0x2)
    assert " flags 203 [IF CF]" in lines(register_rows(before))
    assert "*flags 242 [IF ZF]" in lines(register_rows(after))
    assert "  turned -CF +ZF" in lines(register_rows(after))


def test_64_bit_code_has_sixteen_registers_of_64_bits(memory: GuestMemory) -> None:
    text = plain(register_rows(look_at(memory, mode=Mode.LONG)))
    assert " rax 0000000000000000  rbx 0000000000000000" in text
    assert " r14 0000000000000000  r15 0000000000000000" in text
    assert "[PG NE ET PE]" in text
    assert "long mode, 64-bit code, ring 0" in text


def test_what_32_bit_code_cannot_see_is_shown_if_something_is_there(memory: GuestMemory) -> None:
    assert "*rax 0000000100000000  ebx 00000000" in plain(register_rows(stepped(look_at(memory), rax=1 << 32)))


def test_a_segment_base_is_shown_where_the_selector_does_not_say_it(memory: GuestMemory) -> None:
    look = look_at(memory)
    look.sregs.fs.selector, look.sregs.fs.base = 0x1000, 0x10000
    look.sregs.gs.selector, look.sregs.gs.base = 0x8, 0x1_0000_0000
    assert "fs 1000  gs 0008@100000000" in plain(register_rows(look))


@pytest.mark.parametrize(("mode", "width"), [(Mode.REAL, 43), (Mode.PROTECTED, 43), (Mode.LONG, 43)])
def test_the_general_registers_fit_beside_the_code_on_80_columns(mode: Mode, width: int, memory: GuestMemory) -> None:
    rows = lines(register_rows(look_at(memory, mode=mode)))
    assert all(len(line) <= width for line in rows if not line.startswith(" cr"))


# ---- the listing ----


def listing(look: Look, breakpoints: tuple[int, ...] = (), height: int = 8, width: int = 40) -> list[str]:
    view = Listing()
    view.follow(look)
    return lines(view.rows(look, breakpoints, height, width))


def test_the_next_instruction_is_marked_and_so_are_breakpoints(memory: GuestMemory) -> None:
    assert listing(look_at(memory), breakpoints=(CODE + 4,), height=12)[-8:-4] == [
        " => 00008000  xorw %ax, %ax",
        "    00008002  movw %ax, %ds",
        "B   00008004  lodsb (%si), %al",
        "    00008005  hlt",
    ]


def test_the_cursor_has_a_sign_of_its_own_when_it_is_elsewhere(memory: GuestMemory) -> None:
    look, view = look_at(memory), Listing()
    view.follow(look)
    view.rows(look, (), 8, 40)
    view.move(look, 2)
    shown = lines(view.rows(look, (), 8, 40))
    assert " => 00008000  xorw %ax, %ax" in shown
    assert "  > 00008004  lodsb (%si), %al" in shown
    view.move(look, -1)
    assert view.cursor == CODE + 2


def test_moving_far_up_and_down_stays_among_instructions(memory: GuestMemory) -> None:
    look, view = look_at(memory, XOR_MOV_LODSB_HLT), Listing()
    view.follow(look)
    for by in (5, -5, 1000, -1000, 20):
        view.move(look, by)
        shown = lines(view.rows(look, (), 10, 40))
        assert len(shown) == 10
        assert any(f"{view.cursor:08x}" in line for line in shown)


def test_the_window_does_not_move_while_the_guest_steps_inside_it(memory: GuestMemory) -> None:
    look, view = look_at(memory), Listing()
    view.follow(look)
    first = lines(view.rows(look, (), 8, 40))
    later = stepped(look, rip=CODE + 4)
    view.follow(later)
    assert [line[3:] for line in lines(view.rows(later, (), 8, 40))] == [line[3:] for line in first]


def test_symbols_are_lines_of_their_own_and_code_is_read_from_them_on(memory: GuestMemory) -> None:
    # Read from one byte too early, b8 would take the next two bytes for its operand.
    look = look_at(memory, b"\xb8" + XOR_MOV_LODSB_HLT, image=image_of([("_start", CODE + 1)]), rip=CODE + 5)
    shown = listing(look)
    at = shown.index("_start:")
    assert shown[at + 1 : at + 3] == ["    00008001  xorw %ax, %ax", "    00008003  movw %ax, %ds"]
    assert " => 00008005  lodsb (%si), %al" in shown


def test_instructions_before_an_address_are_found_without_symbols(memory: GuestMemory) -> None:
    look = look_at(memory, b"\x90" * 64 + XOR_MOV_LODSB_HLT)
    texts = [f"{one.mnemonic} {one.operands}" for one in instructions_before(look, CODE + 64 + 5)]
    assert texts[-4:] == ["nop ", "xorw %ax, %ax", "movw %ax, %ds", "lodsb (%si), %al"]


def test_where_there_is_no_code_the_listing_says_so(memory: GuestMemory) -> None:
    look = look_at(memory, rip=4 * MiB)
    assert listing(look) == [f"no code can be read at {4 * MiB:#x}"]
    view = Listing(cursor=4 * MiB)
    view.move(look, 3)
    view.move(look, -3)
    assert view.cursor == 4 * MiB


def test_a_crowd_of_symbols_does_not_hide_the_cursor(memory: GuestMemory) -> None:
    look = look_at(memory, b"\x90" * 64, image=image_of([(f"s{at}", CODE + at) for at in range(64)]), rip=CODE + 20)
    assert any(line.startswith(" =>") for line in listing(look, height=4))


# ---- memory ----


def test_memory_shows_bytes_characters_and_holes(memory: GuestMemory) -> None:
    look = look_at(memory)
    memory.write(2 * MiB - 8, b"Hi\0\xff!~ \x7f")
    assert lines(MemoryView(2 * MiB - 8).rows(look, 1, 79)) == [
        "001ffff8 48 69 00 ff 21 7e 20 7f ?? ?? ?? ?? ?? ?? ?? ??  Hi..!~ ........."
    ]


def test_bytes_that_changed_have_a_star(memory: GuestMemory) -> None:
    look, view = look_at(memory), MemoryView(CODE)
    view.rows(look, 2, 79)
    memory.write(CODE + 1, b"\xff")
    after = stepped(look)
    expected = "00008000 31*ff 8e d8"
    assert lines(view.rows(after, 2, 79))[0].startswith(expected)
    assert lines(view.rows(after, 2, 79))[0].startswith(expected), "however often it is drawn"
    assert lines(view.rows(stepped(after), 2, 79))[0].startswith("00008000 31 ff 8e d8")


def test_a_narrow_pane_or_a_long_address_has_eight_bytes_a_row(memory: GuestMemory) -> None:
    look = look_at(memory)
    assert len(lines(MemoryView(CODE).rows(look, 1, 60))[0].split("  ")[0].split()) == 9
    high = lines(MemoryView((1 << 64) - 8).rows(look, 2, 79))
    assert high[0].startswith("fffffffffffffff8 ?? ??")
    assert high[1].startswith("0000000000000000 00 00")
    assert all(len(line) <= 79 for line in high)


def test_scrolling_goes_round_at_the_last_address(memory: GuestMemory) -> None:
    view = MemoryView(0)
    view.scroll(-16)
    assert view.address == (1 << 64) - 16
    view.scroll(32)
    assert view.address == 16


# ---- page walks ----


def test_a_page_walk_has_a_row_for_each_level(memory: GuestMemory) -> None:
    shown = lines(walk_rows(look_at(memory, mode=Mode.LONG, image=image_of([("_start", CODE)])), CODE))
    assert shown[0].startswith("linear 0x8000 <_start>, 4-level paging, CR3 0x")
    assert [line.split()[1].split("[")[0] for line in shown[1:-1]] == ["PML4", "PDPT", "PD"]
    assert shown[-1] == "guest-physical 0x8000, page of 2 MiB, RWX supervisor, ram 0x0-0x1fffff (2 MiB)"


def test_a_walk_that_ends_nowhere_says_why(memory: GuestMemory) -> None:
    shown = lines(walk_rows(look_at(memory, mode=Mode.LONG), 1 << 40))
    assert shown[-1].startswith("not mapped: ")


def test_without_paging_there_is_no_walk(memory: GuestMemory) -> None:
    assert lines(walk_rows(look_at(memory), 4 * MiB))[1] == "paging is off: guest-physical 0x400000, no memory"


# ---- what the guest printed ----


def test_output_is_wrapped_and_holds_nothing_that_a_terminal_obeys() -> None:
    assert lines(output_rows(b"abcdef\r\n\x1b[2J\x9b\n", 0, 4)) == ["abcd", "ef", "^[[2", "J�"]
    assert lines(output_rows(b"", 0, 80)) == ["nothing yet"]


def test_of_much_output_the_end_is_shown_and_the_rest_is_counted() -> None:
    shown = lines(output_rows(b"x\n" * MOST, 5, 80))
    assert shown[0] == f"... {MOST + 5} bytes before"
    assert len(shown) == MOST // 2 + 1


def test_a_report_goes_on_under_its_text_and_holds_nothing_that_a_terminal_obeys() -> None:
    report = "the guest crashed\n\n  likely cause   no IDT was loaded\x1b[2J"
    assert lines(report_rows(report, 30)) == [
        "the guest crashed",
        "",
        "  likely cause   no IDT was",
        "               loaded^[[2J",
    ]
    assert report_rows(report, 1)
