"""pykvm.cli.stepper.app by Textual's pilot: keys in, the screen's text out, with a guest that is none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from textual.events import Paste
from textual.pilot import Pilot

from pykvm.cli.stepper.app import StepperApp
from pykvm.cli.stepper.guest import Guest
from pykvm.cli.stepper.keys import KEYS, MOVING, TABS, help_text
from pykvm.devices.screen import Cell, Screen
from pykvm.memory import GuestMemory
from pykvm.observe.stepping import Access, Watchpoint
from pykvm.x86 import Mode
from tests.unit.cli.stepper.conftest import CODE, FakeGuest, image_of, look_at

SIZE = (80, 24)
PATIENCE = 20  # seconds


class Seat:
    """Somebody in front of the stepper: presses keys, and reads the screen."""

    def __init__(self, app: StepperApp, pilot: Pilot[None]) -> None:
        self.app, self._pilot = app, pilot

    async def press(self, *keys: str) -> str:
        """Press ``keys``, wait until the guest stands still, and return what is to be seen."""
        for key in keys[:-1]:
            self.app.simulate_key(key)  # typed ahead: the pilot waits after each key
        await self._pilot.press(keys[-1])
        return await self.rest()

    async def ask(self, key: str, text: str) -> str:
        """Press ``key``, and type ``text`` where the screen asks for something."""
        await self._pilot.press(key)
        return await self.answer(text)

    async def answer(self, text: str) -> str:
        """Type ``text`` where the screen asks for something."""
        self.app.post_message(Paste(text))
        return await self.press("enter")

    async def rest(self) -> str:
        async with asyncio.timeout(PATIENCE):
            while self.app.is_running and self.app.is_busy:
                await asyncio.sleep(0.005)
        return await self.look()

    async def look(self) -> str:
        await self._pilot.pause()
        # What the compositor is about to draw: Textual has no public way to read the screen as text.
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


def at(guest: Guest, scenario: Callable[[Seat], Awaitable[None]], size: tuple[int, int] = SIZE) -> StepperApp:
    """Run ``scenario`` in front of ``guest``."""

    async def run() -> StepperApp:
        app = StepperApp(guest)
        async with app.run_test(size=size) as pilot:
            seat = Seat(app, pilot)
            await seat.rest()
            await scenario(seat)
        return app

    return asyncio.run(run())


@pytest.fixture
def fake(memory: GuestMemory) -> FakeGuest:
    return FakeGuest(look_at(memory, image=image_of([("_start", CODE), ("done", CODE + 5)])))


# ---- what is to be seen ----


def test_the_screen_shows_where_the_guest_is_on_80_columns_and_24_lines(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.look()
        lines = text.splitlines()
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        assert lines[0] == " 0x8000  <_start>  step 0  real mode  fake"
        assert lines[1] == " before the first instruction"
        assert " => 00008000  xorw %ax, %ax" in text
        assert "_start:" in text
        assert " eax 00000000  ebx 00000000" in text
        assert "[1 memory] 2 pages" in text
        assert lines[-1].startswith("s step n over b back c continue r to cursor space break w watch ? help q quit")

    at(fake, scenario)


@pytest.mark.parametrize("size", [(20, 5), (40, 12), (1, 1), (200, 60)])
def test_any_size_of_terminal_will_do(size: tuple[int, int], fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        await seat.press("s", "2", "3", "4", "5", "6", "z", "tab", "z", "down", "pagedown", "d", "g", "escape")
        await seat.press("question_mark")

    at(fake, scenario, size)
    assert fake.done == ["step"]


def test_64_bit_registers_fit_beside_the_code(memory: GuestMemory) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.look()
        assert " r14 0000000000000000  r15 0000000000000000" in text
        assert " => 00008000  xorl %eax, %eax " in text

    at(FakeGuest(look_at(memory, mode=Mode.LONG)), scenario)


# ---- stepping ----


def test_a_step_moves_the_mark_and_marks_what_changed(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("s")
        assert " => 00008002  movw %ax, %ds" in text
        assert "*eax 00000002  ebx 00000000" in text
        assert "*eip 00008002" in text
        assert "step 1" in text

    at(fake, scenario)


def test_each_key_does_what_it_says(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        await seat.press("s")
        await seat.press("n")
        await seat.press("b")
        assert "halted" in await seat.press("c")
        await seat.press("B", "u")

    at(fake, scenario)
    assert fake.done == ["step", "step_over", "step", "back", "go_on", "back_on", "next_cpu"]


def test_keys_typed_ahead_are_all_obeyed(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        assert " => 00008004" in await seat.press("s", "s", "b", "s")

    at(fake, scenario)
    assert fake.done == ["step", "step", "back", "step"]


def test_what_cannot_be_done_is_said_in_the_second_line(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("b")
        assert text.splitlines()[1] == " this is where the guest began"
        assert "this is where" not in await seat.press("s")

    at(fake, scenario)


def test_run_to_the_cursor_and_a_breakpoint_at_the_cursor(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("down", "down")
        assert "  > 00008004  lodsb (%si), %al" in text
        assert "B > 00008004  lodsb (%si), %al" in await seat.press("space")
        assert "breakpoint at 0x8004" in await seat.press("c")
        await seat.press("b", "b")
        await seat.press("down", "r")  # in this order, although nobody waited between them
        assert seat.app.standing is not None
        assert seat.app.standing.look.rip == CODE + 2
        text = await seat.press("down", "space")
        assert "B" not in {line[:1] for line in text.splitlines()}

    at(fake, scenario)
    assert fake.done[-1] == "run_to 0x8002"


def test_a_guest_that_runs_for_ever_leaves_the_screen_alive_and_is_interrupted_with_esc(fake: FakeGuest) -> None:
    fake.is_endless = True

    async def scenario(seat: Seat) -> None:
        await seat._pilot.press("c")
        async with asyncio.timeout(PATIENCE):
            while "Esc interrupts" not in await seat.look():
                await asyncio.sleep(0.05)
        await seat._pilot.press("3")
        assert "[3 serial]" in await seat.look(), "other keys work meanwhile"
        assert "interrupted" in await seat.press("escape")

    at(fake, scenario)


def test_ctrl_c_interrupts_and_does_not_quit(fake: FakeGuest) -> None:
    fake.is_endless = True

    async def scenario(seat: Seat) -> None:
        await seat._pilot.press("c")
        assert "interrupted" in await seat.press("ctrl+c")
        assert "the guest stands still: q quits" in await seat.press("ctrl+c")

    at(fake, scenario)


def test_q_quits_even_while_the_guest_runs(fake: FakeGuest) -> None:
    fake.is_endless = True

    async def scenario(seat: Seat) -> None:
        await seat._pilot.press("c", "q")

    app = at(fake, scenario)
    assert app.return_code == 0
    assert fake.interrupted.is_set()


def test_a_crash_brings_its_report_to_the_front(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        assert "no crash so far" in await seat.press("6")
        await seat.press("1")
        fake.report = "the guest crashed: triple fault\n\n  where   0x8002"
        text = await seat.press("s")
        assert "[6 report]" in text
        assert "the guest crashed: triple fault" in text
        assert "[1 memory]" in await seat.press("1", "s"), "it comes to the front once"

    at(fake, scenario)


def test_a_bug_ends_the_app_and_is_kept_for_whoever_started_it(fake: FakeGuest) -> None:
    def explode() -> None:
        raise ZeroDivisionError

    fake.step = explode  # type: ignore[method-assign]

    async def scenario(seat: Seat) -> None:
        await seat._pilot.press("s")

    assert isinstance(at(fake, scenario).failure, ZeroDivisionError)


# ---- questions ----


def test_memory_is_shown_at_an_address(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        assert "memory at:" in await seat.press("3", "g")
        text = await seat.answer("_start+1")
        assert "memory at:" not in text
        assert "00008001 c0 8e d8 ac f4 00" in text
        assert "00008011" in (await seat.press("tab", "tab", "down"))
        assert "no number, register or symbol" in await seat.ask("g", "nosuch")

    at(fake, scenario)


def test_esc_takes_a_question_back_and_the_focus_returns(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        await seat.press("g")
        text = await seat.press("q", "s", "escape")
        assert "memory at:" not in text
        assert seat.app.focused is seat.app.panel.code
        await seat.press("s")

    at(fake, scenario)
    assert fake.done == ["step"], "what was typed into the question is no command"


def test_watching_asks_where_and_nothing_watches_no_more(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        await seat.ask("w", "0x9000 4 rw")
        assert fake.watchpoints == (Watchpoint(0x9000, 4, Access.ANY),)
        await seat.press("w", "enter")
        assert not fake.watchpoints

    at(fake, scenario)


def test_pages_are_walked_for_rip_or_an_address(memory: GuestMemory) -> None:
    async def scenario(seat: Seat) -> None:
        assert "linear 0x8000, 4-level paging" in await seat.press("2")
        text = await seat.ask("p", "0x123456")
        assert "linear 0x123456" in text
        assert "guest-physical 0x123456, page of 2 MiB, RWX supervisor" in text
        assert "linear 0x8000" in await seat.press("p", "enter")

    at(FakeGuest(look_at(memory, mode=Mode.LONG)), scenario)


def test_the_cursor_can_be_put_at_an_address(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        assert "  > 00008005  hlt" in await seat.ask("f", "done")
        assert " => 00008000" in await seat.press("home")

    at(fake, scenario)


# ---- panes ----


def test_serial_output_exits_and_the_guests_screen_are_shown(fake: FakeGuest) -> None:
    fake.printed = b"Hello\x1b[2J\r\nworld\n"
    cells = (tuple(Cell(character) for character in "On the screen".ljust(80)),)
    stand = fake.stand

    def with_screen() -> object:
        standing = stand()
        return type(standing)(
            standing.look, serial=standing.serial, exits=standing.exits, screen=Screen(cells + ((Cell(),) * 80,) * 24)
        )

    fake.stand = with_screen  # type: ignore[method-assign,assignment]

    async def scenario(seat: Seat) -> None:
        await seat.press("s")
        assert "Hello^[[2J\nworld" in await seat.press("3")
        assert "On the screen" in await seat.press("4")
        assert "1  io out 0x3f8" in await seat.press("5")

    at(fake, scenario)


def test_a_pane_can_have_the_whole_screen_and_give_it_back(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("z")
        assert "eax" not in text
        assert "memory" not in text
        assert text.count("addb") + text.count("xorw") > 14
        assert "eax" in await seat.press("z")
        await seat.press("tab", "tab")
        text = await seat.press("z")
        assert "xorw" not in text
        assert text.count("00 00 00 00") > 15
        assert "xorw" in await seat.press("z")

    at(fake, scenario)


def test_scrolling_stays_inside_and_home_goes_back(fake: FakeGuest) -> None:
    fake.printed = b"".join(b"line %d\n" % number for number in range(100))

    async def scenario(seat: Seat) -> None:
        assert "line 99" in await seat.press("3")
        await seat.press("tab", "tab")
        assert "line 0\n" in await seat.press(*["pageup"] * 30)
        assert "line 99" in await seat.press("home")
        assert "line 99" in await seat.press("down")

    at(fake, scenario)


def test_without_a_source_the_disassembly_stays(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("d")
        assert "no source is known for this code" in text
        assert "disassembly" in text

    at(fake, scenario)


# ---- keys ----


def test_the_help_names_every_key_and_esc_closes_it(fake: FakeGuest) -> None:
    async def scenario(seat: Seat) -> None:
        text = await seat.press("question_mark")
        for key in KEYS[:10]:
            assert f"{key.name:>6}  {key.help[:60]}" in text
        assert "registers" not in text
        assert "eax" in await seat.press("escape")
        assert "eax" in await seat.press("question_mark", "q"), "q closes the help, not the stepper"

    at(fake, scenario)
    assert all(key.help in help_text() for key in (*KEYS, *MOVING) if not key.name.isdecimal())
    assert all(name in help_text() for name in TABS)


def test_news_that_come_while_the_help_is_shown_are_there_afterwards(fake: FakeGuest) -> None:
    fake.is_endless = True

    async def scenario(seat: Seat) -> None:
        await seat._pilot.press("c", "question_mark")
        await seat.press("ctrl+c")
        assert "this help" in await seat.look()
        assert " interrupted" in await seat.press("escape")

    at(fake, scenario)


def test_every_key_has_an_action_and_no_key_has_two() -> None:
    keys = [key.key for key in (*KEYS, *MOVING)]
    assert len(keys) == len(set(keys))
    for key in (*KEYS, *MOVING):
        name = key.action.partition("(")[0].removeprefix("app.")
        assert callable(getattr(StepperApp, f"action_{name}"))
    assert len(TABS) == 6
